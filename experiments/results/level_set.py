"""Writes the Weizmann tables of level_set.md from the runs' artefacts, after testing those that are not tested yet.

    python -m experiments.results.level_set runs experiments/results/level_set.md

Made by, with FILES = --data.init_args.root DIR --model.init_args.network.weights FILE, after those of scl.py:

    python -m experiments.studies.runner experiments/sweeps/weizmann_full.yaml -- FILES
    python -m experiments.studies.runner experiments/sweeps/weizmann_level_set_weight.yaml -- FILES   # beta, on val
    python -m experiments.studies.runner experiments/sweeps/weizmann_level_set.yaml -- FILES
    python -m experiments.studies.runner experiments/sweeps/weizmann_level_set_full.yaml -- FILES

The rest of the page is from bsds500_level_set.py (--side 128 --steps 100), level_set_light.py and
experiments/benchmarks/level_set_loss.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.results.tables import TRAINED, about, cell, evaluate, fill, folders, gains, named, read, scores

LEVEL_SET = "weizmann_level_set"
BETAS = (0.03, 0.1, 0.262)
PAIRS = {  # the share of labelled images: runs of the baseline and of the method
    label: (named("weizmann_semi", "weizmann_semi_supervised", share), named(LEVEL_SET, LEVEL_SET, share))
    for label, share in {"1/16": ",fraction=0.0625", "1/8": ",fraction=0.125"}.items()
}
PAIRS["all"] = (named("weizmann_full", "weizmann_full"), named(f"{LEVEL_SET}_full", f"{LEVEL_SET}_full"))


def table(runs: Path) -> str:
    rows = ["| labelled images | method | mIoU last | gain, seed by seed | mIoU best |", "|---" * 5 + "|"]
    for label, (baseline, level_set) in PAIRS.items():
        base = scores(folders(runs, baseline), "last", *TRAINED)
        for name, pattern in (("supervised", baseline), ("level set", level_set)):
            paths = folders(runs, pattern)
            last, best = (scores(paths, which, *TRAINED) for which in ("last", "best"))
            gain = "" if pattern == baseline else gains(last, base)
            rows.append(f"| {label} | {name} | {cell(last)} | {gain} | {cell(best)} |")
    return "\n".join(rows)


def weights_table(runs: Path) -> str:
    """Val mIoU of the last step, seed 0."""
    rows = [f"| | {' | '.join(f'beta {beta:g}' for beta in BETAS)} |", "|---" * (len(BETAS) + 1) + "|"]
    folder = runs / "weizmann_level_set_weight"
    ends = [f"config=weizmann_level_set,beta={beta},seed_everything=0" for beta in BETAS]
    found = [read(folder / end).get("last", {}).get("val/miou") for end in ends]
    rows.append(f"| 1/8 labelled | {' | '.join('' if one is None else f'{one:.1f}' for one in found)} |")
    return "\n".join(rows)


def main(runs: Path, page: Path) -> None:
    paths = [path for pair in PAIRS.values() for pattern in pair for path in folders(runs, pattern)]
    evaluate(paths)
    fill(page, {"weizmann": table(runs), "weights": weights_table(runs), "runs": about(paths)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
