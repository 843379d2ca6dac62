"""Writes the Weizmann tables of level_set.md from the runs' artefacts, after testing those that are not tested yet.

    python -m experiments.results.level_set runs experiments/results/level_set.md

Made by, with FILES = --data.init_args.root DIR --model.init_args.network.weights FILE, after those of scl.py:

    python -m experiments.study experiments/sweeps/weizmann_full.yaml -- FILES
    python -m experiments.study experiments/sweeps/weizmann_level_set_weight.yaml -- FILES   # beta, on val
    python -m experiments.study experiments/sweeps/weizmann_level_set.yaml -- FILES
    python -m experiments.study experiments/sweeps/weizmann_level_set_full.yaml -- FILES

The rest of the page is from bsds500_level_set.py (--side 128 --steps 100), level_set_light.py and
experiments/benchmarks/level_set_loss.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.results.tables import Summary, about, cell, evaluate, fill, read

SEEDS = (0, 1, 2)
BETAS = (0.03, 0.1, 0.262)


def folders(runs: Path) -> dict[tuple[str, str], list[Path]]:
    """The runs of each row of the table, by share of labelled images and method."""
    found = {}
    for label, fraction in {"1/16": 0.0625, "1/8": 0.125}.items():
        for name, sweep, recipe in (("supervised", "semi", "semi_supervised"), ("level set", "level_set", "level_set")):
            end = f"config=weizmann_{recipe},fraction={fraction},seed_everything="
            found[label, name] = [runs / f"weizmann_{sweep}" / f"{end}{seed}" for seed in SEEDS]
    for name, recipe in (("supervised", "weizmann_full"), ("level set", "weizmann_level_set_full")):
        found["all", name] = [runs / recipe / f"config={recipe},seed_everything={seed}" for seed in SEEDS]
    return found


def scores(summaries: list[Summary], which: str) -> list[float]:
    """Test mIoU of the network that was trained (the baseline evaluates its moving average too)."""
    tests = [s["test"][which] for s in summaries if which in s.get("test", {})]
    return [test.get("test/miou_network", test["test/miou"]) for test in tests]


def table(runs: Path) -> str:
    rows = ["| labelled images | method | mIoU last | gain, seed by seed | mIoU best |", "|---" * 5 + "|"]
    base: list[float] = []
    for (label, name), paths in folders(runs).items():
        summaries = [read(path) for path in paths]
        last, gains = scores(summaries, "last"), ""
        if name == "supervised":
            base = last
        else:
            gains = ", ".join(f"{a - b:+.1f}" for a, b in zip(last, base, strict=False))
        best = cell(scores(summaries, "best"), len(SEEDS))
        rows.append(f"| {label} | {name} | {cell(last, len(SEEDS))} | {gains} | {best} |")
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
    paths = [path for group in folders(runs).values() for path in group]
    evaluate(paths)
    summaries = [read(path) for path in paths]
    fill(page, {"weizmann": table(runs), "weights": weights_table(runs), "runs": about(summaries)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
