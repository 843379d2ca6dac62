"""Writes scl.md from the runs' artefacts, after testing those that are not tested yet.

    python -m experiments.results.scl runs experiments/results/scl.md

Made by, with FILES = --data.init_args.root DIR --model.init_args.network.weights FILE:

    python -m experiments.studies.runner experiments/sweeps/weizmann_semi.yaml -- FILES
    python -m experiments.studies.runner experiments/sweeps/weizmann_full.yaml -- FILES
    python -m experiments.studies.runner experiments/sweeps/synthetic_semi.yaml
    python -m experiments.studies.runner experiments/sweeps/synthetic_full.yaml
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch

from common.training.pictures import picture_row, save_grid
from experiments.results.tables import TRAINED, about, cell, evaluate, fill, folders, gains, named, read, scores
from experiments.runs.load import load_run

FRACTIONS = {"1/16": 0.0625, "1/8": 0.125}
BASELINE = "supervised"
ROWS = {
    BASELINE: "semi_supervised",
    "CutMix-Seg": "cutmix",
    "SCL, sampled pairs": "scl_sampled",
    "SCL, all pairs": "scl",
    "UniMatch": "unimatch",
}
# Runs that the recipes' decay and weight were chosen by: 1/16 labelled, seed 0, 128 px, 240 steps, at earlier commits.
SEARCH = {
    "supervised, average with decay 0.99": "sup",
    "CutMix-Seg, decay 0.99 from the first step": "cut",
    "SCL, decay 0.99 from the first step, weight 1": "scl",
    "CutMix-Seg, decay 0.99 with warm-up": "cut_w",
    "SCL, decay 0.99 with warm-up, weight 0.1": "scl_01",
    "CutMix-Seg, decay 0.9 with warm-up": "cut_d90",
    "SCL, decay 0.9 with warm-up, weight 1 times the share of confident pixels": "scl_gate",
    "SCL, decay 0.9 with warm-up, weight 0.1": "scl_d90_01",
    "UniMatch": "uni",
}


def row_pattern(data: str, row: str, fraction: float) -> str:
    return named(f"{data}_semi", f"{data}_{ROWS[row]}", f",fraction={fraction}")


def full_pattern(data: str) -> str:
    return named(f"{data}_full", f"{data}_full")


def table(runs: Path, data: str) -> str:
    """mIoU of the evaluated network, of the network that is trained, and the gain over the baseline, seed by seed."""
    rows = [
        "| labelled | method | mIoU best | gain, seed by seed | mIoU last | trained network, best |",
        "|---" * 6 + "|",
    ]
    for label, fraction in FRACTIONS.items():
        base = scores(folders(runs, row_pattern(data, BASELINE, fraction)), "best")
        for name in ROWS:
            paths = folders(runs, row_pattern(data, name, fraction))
            best = scores(paths, "best")
            cells = [cell(best), "" if name == BASELINE else gains(best, base)]
            cells += [cell(scores(paths, "last")), cell(scores(paths, "best", *TRAINED))]
            rows.append(f"| {label} | {name} | " + " | ".join(cells) + " |")
    full = folders(runs, full_pattern(data))
    cells = [cell(scores(full, which)) for which in ("best", "last")]
    rows.append(f"| all | supervised | {cells[0]} | | {cells[1]} | {cell(scores(full, 'best', *TRAINED))} |")
    return "\n".join(rows)


def search_table(runs: Path) -> str:
    """Val mIoU at the last step: of the evaluated network and of the trained one."""
    rows = ["| Weizmann, 1/16 labelled | val mIoU | trained network |", "|---|---|---|"]
    for name, run in SEARCH.items():
        last = read(runs / "weizmann_semi_search" / run).get("last", {})
        trained = last.get("val/miou_student", last.get("val/miou_network", last.get("val/miou")))
        rows.append(f"| {name} | {last['val/miou']:.1f} | {trained:.1f} |" if last else f"| {name} | | |")
    return "\n".join(rows)


def picture(runs: Path, path: Path, count: int = 4) -> None:
    """The first test scenes (drawn ones: nobody's photographs): image, truth, and what each method makes of them."""
    found = {name: load_run(runs / row_pattern("synthetic", name, 0.125).format(0)) for name in ROWS}
    rows = []
    for batch in itertools.islice(next(iter(found.values())).data.test_dataloader(), count):
        batch["image"] = batch["image"].float() / 255
        with torch.no_grad():
            labels = [run.model.predict_labels(run.network, batch, refine=False)[0][0] for run in found.values()]
        rows.append(picture_row(batch["image"][0], [batch["mask"][0], *labels], next(iter(found.values())).colors))
    save_grid(path, rows, ["image", "truth", *found])


def main(runs: Path, page: Path) -> None:
    contents = {}
    for data in ("weizmann", "synthetic"):
        patterns = [row_pattern(data, row, fraction) for row in ROWS for fraction in FRACTIONS.values()]
        paths = [path for pattern in (*patterns, full_pattern(data)) for path in folders(runs, pattern)]
        evaluate(paths)
        contents[data] = table(runs, data)
        contents[f"{data} runs"] = about(paths)
    contents["search"] = search_table(runs)
    fill(page, contents)
    picture(runs, page.parents[2] / "docs" / "scl.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
