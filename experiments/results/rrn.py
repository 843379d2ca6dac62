"""Writes rrn.md from the runs' artefacts, after testing those that are not tested yet.

    python -m experiments.results.rrn runs experiments/results/rrn.md

Made by, with FILES = --data.init_args.root DIR --model.init_args.network.weights FILE, after those of scl.py:

    python -m experiments.studies.runner experiments/sweeps/weizmann_rrn_search.yaml -- FILES   # these four: chosen on val
    python -m experiments.studies.runner experiments/sweeps/weizmann_rrn_matching.yaml -- FILES
    python -m experiments.studies.runner experiments/sweeps/weizmann_rrn_selection.yaml -- FILES
    python -m experiments.studies.runner experiments/sweeps/weizmann_rrn_threshold.yaml -- FILES
    python -m experiments.studies.runner experiments/sweeps/weizmann_rrn.yaml -- FILES
    python -m experiments.studies.runner experiments/sweeps/synthetic_rrn.yaml

Times are from experiments/benchmarks/steps.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

from experiments.results.tables import (
    TRAINED,
    about,
    cell,
    evaluate,
    fill,
    folders,
    gains,
    known,
    last_logged,
    named,
    read,
    scores,
)

BASELINE = "supervised"
ROWS = {
    BASELINE: ("semi", "semi_supervised"),
    "CPS + CutMix": ("rrn", "cps"),
    "+ filtering": ("rrn", "rrn_filtering"),
    "+ dynamic region loss (RRN-style)": ("rrn", "rrn"),
}
DIAGNOSTICS = ("precision_all", "precision_kept", "auroc", "auroc_own", "auroc_cross", "weight_correlation")
FILTERING = "config=weizmann_rrn_filtering,selection_weight="
TRIED = {
    "CPS + CutMix": "weizmann_rrn/config=weizmann_cps,fraction=0.125,seed_everything=0",
    "RRN, selection 1, discriminators at 1e-4": (
        "weizmann_rrn_search/config=weizmann_rrn,selection_weight=1.0,discriminator_lr=0.0001,seed_everything=0"
    ),
    "RRN, selection 1, discriminators at 1e-3 (from here on)": (
        "weizmann_rrn_search/config=weizmann_rrn,selection_weight=1.0,discriminator_lr=0.001,seed_everything=0"
    ),
    "RRN, selection 1, no feature matching": (
        "weizmann_rrn_matching/config=weizmann_rrn,selection_weight=1.0,matching_weight=0.0,seed_everything=0"
    ),
    "filtering, selection 1": f"weizmann_rrn_selection/{FILTERING}1.0,threshold=0.6,seed_everything=0",
    "filtering, selection 1, no feature matching": (
        f"weizmann_rrn_matching/{FILTERING}1.0,matching_weight=0.0,seed_everything=0"
    ),
    "filtering, selection 0.1": f"weizmann_rrn_selection/{FILTERING}0.1,threshold=0.6,seed_everything=0",
    "filtering, selection 0.1, threshold 0.3": f"weizmann_rrn_threshold/{FILTERING}0.1,threshold=0.3,seed_everything=0",
}


def of_row(runs: Path, data: str, row: str) -> list[Path]:
    """The runs of a row, seed by seed."""
    sweep, recipe = ROWS[row]
    return folders(runs, named(f"{data}_{sweep}", f"{data}_{recipe}", ",fraction=0.125"))


def table(runs: Path, data: str) -> str:
    rows = [
        "| method | branch 1, last | gain, seed by seed | best | branch 2, last | ensemble, last |",
        "|---" * 6 + "|",
    ]
    base = scores(of_row(runs, data, BASELINE), "last", *TRAINED)
    for row in ROWS:
        paths = of_row(runs, data, row)
        last, best = (scores(paths, which, *TRAINED) for which in ("last", "best"))
        cells = [cell(last), "" if row == BASELINE else gains(last, base), cell(best)]
        cells += [cell(scores(paths, "last", f"miou_{name}")) for name in ("branch2", "ensemble")]
        rows.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def diagnostics(runs: Path) -> str:
    """What the discriminators and the agreement are worth at the last step, mean over seeds."""
    logged = ("train/discriminator1", "train/score", "train/kept", "train/weight")
    rows = [
        "| data, method | " + " | ".join((*DIAGNOSTICS, "D loss", "score", "kept", "weight")) + " |",
        "|---" * 11 + "|",
    ]
    for data in ("weizmann", "synthetic"):
        for row in ("+ filtering", "+ dynamic region loss (RRN-style)"):
            paths = of_row(runs, data, row)
            found = [[read(path).get("last", {}).get(f"val/{name}") for path in paths] for name in DIAGNOSTICS]
            found += [[last_logged(path, name) for path in paths] for name in logged]
            means = [f"{mean(known(values)):.3f}" if known(values) else "" for values in found]
            rows.append(f"| {data}, {row} | " + " | ".join(means) + " |")
    return "\n".join(rows)


def search(runs: Path) -> str:
    """What was tried with one seed: val mIoU of the first network, and what the discriminators keep."""
    rows = ["| tried | val mIoU | val AUROC | D loss | kept |", "|---" * 5 + "|"]
    for name, folder in TRIED.items():
        last = read(runs / folder).get("last", {})
        found = [last.get("val/miou"), last.get("val/auroc")]
        found += [last_logged(runs / folder, f"train/{column}") for column in ("discriminator1", "kept")]
        rows.append(f"| {name} | " + " | ".join("" if v is None else f"{v:.3g}" for v in found) + " |")
    return "\n".join(rows)


def main(runs: Path, page: Path) -> None:
    contents = {"search": search(runs), "diagnostics": diagnostics(runs)}
    for data in ("weizmann", "synthetic"):
        paths = [path for row in ROWS for path in of_row(runs, data, row)]
        evaluate(paths)
        contents |= {data: table(runs, data), f"{data} runs": about(paths)}
    fill(page, contents)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
