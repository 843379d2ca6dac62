"""Writes dfr.md from the runs' artefacts, after testing those that are not tested yet.

    python -m experiments.results.dfr runs experiments/results/dfr.md

Made by, with FILES = --data.init_args.root DIR, and for the row on MobileNetV2, whose others are those of
regularized.py, also --model.init_args.network.weights FILE:

    python -m experiments.studies.runner experiments/sweeps/textures_dfr_weight.yaml
    python -m experiments.studies.runner experiments/sweeps/textures_dfr.yaml
    python -m experiments.studies.runner experiments/sweeps/weizmann_dfr_weight.yaml -- FILES
    python -m experiments.studies.runner experiments/sweeps/weizmann_dfr_deep_weight.yaml -- FILES
    python -m experiments.studies.runner experiments/sweeps/weizmann_dfr_mobilenet_weight.yaml -- FILES
    python -m experiments.studies.runner experiments/sweeps/weizmann_dfr.yaml -- FILES

The picture is made by experiments/results/dfr_picture.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

from experiments.results.tables import (
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

Ladder = dict[str, str]  # a row's name and its runs, with {} for the seed; the first is the baseline
LADDERS: dict[str, Ladder] = {  # the block of the page: its rows
    "textures": {
        "pCE": named("textures_dfr", "textures_pce"),
        "+ shallow kernel": named("textures_dfr", "textures_shallow"),
        "+ kernel of a frozen random head": named("textures_dfr", "textures_random_head"),
        "+ pair loss alone": named("textures_dfr", "textures_fch"),
        "+ deep kernel, pair loss": named("textures_dfr", "textures_deep"),
        "DFR: both kernels, pair loss": named("textures_dfr", "textures_dfr"),
    },
    "weizmann": {
        "pCE": named("weizmann_dfr", "weizmann_dfr_pce"),
        "+ shallow kernel": named("weizmann_dfr", "weizmann_dfr_shallow"),
        "+ kernel of a frozen random head": named("weizmann_dfr", "weizmann_dfr_random_head"),
        "+ pair loss alone": named("weizmann_dfr", "weizmann_dfr_fch"),
        "+ deep kernel, pair loss": named("weizmann_dfr", "weizmann_dfr_deep"),
        "DFR: both kernels, pair loss": named("weizmann_dfr", "weizmann_dfr"),
    },
    "mobilenet": {
        "pCE": named("weizmann_scribbles", "weizmann_scribbles", ",kind=scribbles"),
        "+ shallow kernel (Gated CRF)": named("weizmann_regularized", "weizmann_gated_crf", ",kind=scribbles"),
        "DFR": named("weizmann_dfr", "weizmann_dfr_mobilenet"),
    },
}
WEIGHTS = (0.01, 0.03, 0.1, 0.3, 1.0)
SEARCHES = {
    "textures_dfr_weight": ("textures_shallow", "textures_dfr"),
    "weizmann_dfr_weight": ("weizmann_dfr_shallow", "weizmann_dfr"),
    "weizmann_dfr_deep_weight": ("weizmann_dfr_deep",),
    "weizmann_dfr_mobilenet_weight": ("weizmann_dfr_mobilenet",),
}


def table(runs: Path, ladder: Ladder) -> str:
    """Test mIoU, the gain over the first row seed by seed, and at the end of the run the mean cosines of pairs of one
    class and of two, and the share of confident val pixels that are right."""
    rows = [
        "| method | mIoU best | gain, seed by seed | mIoU last | cosine, same | cosine, other | confident right, % |",
        "|---" * 7 + "|",
    ]
    baseline, *_ = ladder
    base = scores(folders(runs, ladder[baseline]), "best")
    for name, pattern in ladder.items():
        paths = folders(runs, pattern)
        best = scores(paths, "best")
        cells = [cell(best), "" if name == baseline else gains(best, base), cell(scores(paths, "last"))]
        for column in ("train/cos_pos", "train/cos_neg"):
            cosines = known(last_logged(path, column) for path in paths)
            cells.append(f"{mean(cosines):.2f}" if cosines else "")
        cells.append(cell([last_logged(path, "val/confident_precision") for path in paths]))
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def search_table(runs: Path) -> str:
    """Best val mIoU by weight of the regularised loss, seed 0."""
    rows = [
        "| recipe | " + " | ".join(f"weight {weight:g}" for weight in WEIGHTS) + " |",
        "|---" * (1 + len(WEIGHTS)) + "|",
    ]
    for sweep, recipes in SEARCHES.items():
        for recipe in recipes:
            cells = []
            for weight in WEIGHTS:
                best = read(runs / sweep / f"config={recipe},dfr_weight={weight},seed_everything=0").get("best", {})
                cells.append(f"{best['val/miou']:.1f}" if best else "")
            rows.append(f"| {recipe} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main(runs: Path, page: Path) -> None:
    contents = {"search": search_table(runs)}
    for name, ladder in LADDERS.items():
        paths = [path for pattern in ladder.values() for path in folders(runs, pattern)]
        evaluate(paths)
        contents[name] = table(runs, ladder)
        contents[f"{name} runs"] = about(paths)
    fill(page, contents)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
