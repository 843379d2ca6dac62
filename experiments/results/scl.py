"""Writes scl.md from the runs' artefacts, after testing those that are not tested yet.

    python -m experiments.results.scl runs experiments/results/scl.md

Made by, with FILES = --data.init_args.root DIR --model.init_args.network.weights FILE:

    python -m experiments.study experiments/sweeps/weizmann_semi.yaml -- FILES
    python -m experiments.study experiments/sweeps/weizmann_full.yaml -- FILES
    python -m experiments.study experiments/sweeps/synthetic_semi.yaml
    python -m experiments.study experiments/sweeps/synthetic_full.yaml
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch

from common.pictures import picture_row, save_grid
from experiments.load import load_run
from experiments.results.tables import Summary, about, cell, evaluate, fill, read

FRACTIONS = {"1/16": 0.0625, "1/8": 0.125}
SEEDS = (0, 1, 2)
ROWS = {
    "supervised": "semi_supervised",
    "CutMix-Seg": "cutmix",
    "SCL, sampled pairs": "scl_sampled",
    "SCL, all pairs": "scl",
    "UniMatch": "unimatch",
}
BASELINE = "supervised"
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


def folder(runs: Path, data: str, recipe: str, fraction: float, seed: int) -> Path:
    return runs / f"{data}_semi" / f"config={data}_{recipe},fraction={fraction},seed_everything={seed}"


def scores(summaries: list[Summary], which: str, suffix: str = "") -> list[float]:
    return [s["test"][which][f"test/miou{suffix}"] for s in summaries if which in s.get("test", {})]


def table(runs: Path, data: str) -> str:
    """mIoU of the evaluated network, of the network that is trained, and the gain over the baseline, seed by seed."""
    rows = [
        "| labelled | method | mIoU best | gain, seed by seed | mIoU last | trained network, best |",
        "|---" * 6 + "|",
    ]
    for label, fraction in FRACTIONS.items():
        base: list[float] = []
        for name, recipe in ROWS.items():
            summaries = [read(folder(runs, data, recipe, fraction, seed)) for seed in SEEDS]
            best = scores(summaries, "best")
            if name == BASELINE:
                base, gains = best, ""
            else:
                gains = ", ".join(f"{a - b:+.1f}" for a, b in zip(best, base, strict=False))
            student = scores(summaries, "best", "_network") if name == BASELINE else (
                best if name == "UniMatch" else scores(summaries, "best", "_student")
            )  # fmt: skip
            cells = [
                cell(best, len(SEEDS)),
                gains,
                cell(scores(summaries, "last"), len(SEEDS)),
                cell(student, len(SEEDS)),
            ]
            rows.append(f"| {label} | {name} | " + " | ".join(cells) + " |")
    full = [read(path) for path in full_folders(runs, data)]
    cells = [cell(scores(full, which), len(SEEDS)) for which in ("best", "last")]
    rows.append(
        f"| all | supervised | {cells[0]} | | {cells[1]} | {cell(scores(full, 'best', '_network'), len(SEEDS))} |"
    )
    return "\n".join(rows)


def full_folders(runs: Path, data: str) -> list[Path]:
    return [runs / f"{data}_full" / f"config={data}_full,seed_everything={seed}" for seed in SEEDS]


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
    found = {name: load_run(folder(runs, "synthetic", recipe, 0.125, 0)) for name, recipe in ROWS.items()}
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
        folders = [folder(runs, data, r, f, s) for r in ROWS.values() for f in FRACTIONS.values() for s in SEEDS]
        folders += full_folders(runs, data)
        evaluate(folders)
        contents[data] = table(runs, data)
        contents[f"{data} runs"] = about([read(one) for one in folders])
    contents["search"] = search_table(runs)
    fill(page, contents)
    picture(runs, page.parents[2] / "docs" / "scl.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
