"""Writes regularized.md from the runs' artefacts, after testing those that are not tested yet.

    python -m experiments.results.regularized runs experiments/results/regularized.md

Made by, with FILES = --data.init_args.root DIR --model.init_args.network.weights FILE:

    python -m experiments.studies.runner experiments/sweeps/weizmann_crf_weight.yaml -- FILES             # these three: chosen
    python -m experiments.studies.runner experiments/sweeps/weizmann_normalized_cut_weight.yaml -- FILES  # on val
    python -m experiments.studies.runner experiments/sweeps/weizmann_gated_crf_weight.yaml -- FILES
    python -m experiments.studies.runner experiments/sweeps/weizmann_scribbles.yaml -- FILES
    python -m experiments.studies.runner experiments/sweeps/weizmann_regularized.yaml -- FILES
    python -m experiments.studies.tune_postprocess dense_crf runs/weizmann_scribbles/*kind=scribbles,seed_everything=0

The times are from experiments/benchmarks/affinity.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.results.tables import about, cell, evaluate, fill, folders, gains, named, read, scores

KINDS = {"scribbles": "scribbles", "clicks": "points"}
BASELINE = "partial cross entropy"
ROWS = {
    BASELINE: ("weizmann_scribbles", "weizmann_scribbles"),
    "dense CRF": ("weizmann_regularized", "weizmann_regularized"),
    "normalised cut": ("weizmann_regularized", "weizmann_normalized_cut"),
    "kernel cut": ("weizmann_regularized", "weizmann_kernel_cut"),
    "Gated CRF": ("weizmann_regularized", "weizmann_gated_crf"),
}
SEARCH = {
    "dense CRF": ("weizmann_crf_weight", "config=weizmann_regularized,crf_weight={}", (0.3, 1.0, 2.0), (15, 40)),
    "normalised cut": (
        "weizmann_normalized_cut_weight",
        "config=weizmann_normalized_cut,nc_weight={}",
        (0.1, 0.4, 1.6),
        (15, 40),
    ),
    "Gated CRF": ("weizmann_gated_crf_weight", "config=weizmann_gated_crf,crf_weight={}", (0.1, 0.3, 1.0), (None,)),
}
# Chosen on val with the baseline's first run (dense_crf_val.json): its weight. Stride and iterations are for speed.
REFINED = {"kind": "dense_crf", "crf_weight": "10.0", "crf_stride": "8", "crf_iterations": "5"}


def of_row(runs: Path, kind: str, row: str) -> list[Path]:
    """The runs of a row, seed by seed."""
    return folders(runs, named(*ROWS[row], f",kind={kind}"))


def table(runs: Path) -> str:
    rows = ["| labels | loss | mIoU last | gain, seed by seed | best | last, with dense-CRF post-processing |"]
    rows.append("|---" * 6 + "|")
    for label, kind in KINDS.items():
        base = scores(of_row(runs, kind, BASELINE), "last")
        for row in ROWS:
            paths = of_row(runs, kind, row)
            last = scores(paths, "last")
            cells = [cell(last), "" if row == BASELINE else gains(last, base)]
            cells += [cell(scores(paths, which)) for which in ("best", "last+dense_crf")]
            rows.append(f"| {label} | {row} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def search_table(runs: Path) -> str:
    """Val mIoU of the last step, seed 0, scribbles."""
    rows = ["| loss | sigma_xy | weight: val mIoU |", "|---|---|---|"]
    for name, (sweep, start, weights, sigmas) in SEARCH.items():
        for sigma in sigmas:
            middle = "" if sigma is None else f",sigma_xy={sigma}"
            ends = {weight: start.format(weight) + f"{middle},seed_everything=0" for weight in weights}
            found = {w: read(runs / sweep / end).get("last", {}).get("val/miou") for w, end in ends.items()}
            cells = ", ".join(f"{w:g}: {value:.1f}" for w, value in found.items() if value is not None)
            rows.append(f"| {name} | {sigma or ''} | {cells} |")
    crf = read(of_row(runs, "scribbles", BASELINE)[0], "dense_crf_val.json").get("weight", {})
    rows.append(f"| post-processing of the first | 80 | {', '.join(f'{w}: {v:.1f}' for w, v in crf.items())} |")
    return "\n".join(rows)


def main(runs: Path, page: Path) -> None:
    paths = [path for kind in KINDS.values() for row in ROWS for path in of_row(runs, kind, row)]
    evaluate(paths)
    evaluate(paths, ("last",), REFINED)
    fill(page, {"weizmann": table(runs), "search": search_table(runs), "runs": about(paths)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
