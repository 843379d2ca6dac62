"""Writes evidence.md, evidence.csv and README's table from the runs' artefacts, after testing those that lack it.

    python -m experiments.results.evidence runs experiments/results/evidence.md README.md

The runs of Weizmann horses are those of weizmann_tv.py, scl.py, level_set.py, rrn.py, regularized.py and dfr.py. The
others are made by, with FILES = --data.init_args.root DIR --model.init_args.network.weights FILE:

    python -m experiments.studies.runner experiments/sweeps/camvid.yaml -- FILES
    python -m experiments.studies.runner experiments/sweeps/voc_clicks.yaml -- FILES

and what was tried where a gain is small by experiments/sweeps/remedies_*.yaml (`scratch` without the weights' file).
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from experiments.compare.report import markdown
from experiments.compare.tables import bootstrap
from experiments.results.tables import (
    SEEDS,
    TRAINED,
    cell,
    differences,
    evaluate,
    fill,
    folders,
    gains,
    known,
    named,
    read,
    scores,
)

DRAWS = 1000  # of the bootstrap over test images


@dataclass(frozen=True)
class Column:
    """One data set with one kind of labels: its runs below `runs`, with {} for the seed."""

    data: str
    labels: str
    base: str
    full: str
    methods: dict[str, str]
    seeds: tuple[int, ...] = SEEDS


EIGHTH = ",fraction=0.125"
COLUMNS = (
    Column(
        "Weizmann",
        "0.02 % of the pixels",
        "weizmann_supervised/fraction=0.0002,seed_everything={}",
        "weizmann_supervised/fraction=1.0,seed_everything={}",
        {"TV": "weizmann_tv_weight/fraction=0.0002,tv_weight=1.0,seed_everything={}"},
    ),
    Column(
        "Weizmann",
        "0.1 % of the pixels",
        "weizmann_supervised/fraction=0.001,seed_everything={}",
        "weizmann_supervised/fraction=1.0,seed_everything={}",
        {"TV": "weizmann_tv_weight/fraction=0.001,tv_weight=0.3,seed_everything={}"},
    ),
    Column(
        "Weizmann",
        "1/8 of the images",
        named("weizmann_semi", "weizmann_semi_supervised", EIGHTH),
        named("weizmann_full", "weizmann_full"),
        {
            "LevelSet": named("weizmann_level_set", "weizmann_level_set", EIGHTH),
            "CutMix-Seg": named("weizmann_semi", "weizmann_cutmix", EIGHTH),
            "SCL": named("weizmann_semi", "weizmann_scl", EIGHTH),
            "UniMatch": named("weizmann_semi", "weizmann_unimatch", EIGHTH),
            "CPS": named("weizmann_rrn", "weizmann_cps", EIGHTH),
            "CPS, weight 0.3": named("remedies_cps_weight", "weizmann_cps", ",dynamic_weight=0.3"),
            "RRN": named("weizmann_rrn", "weizmann_rrn", EIGHTH),
        },
    ),
    Column(
        "Weizmann",
        "scribbles",
        named("weizmann_scribbles", "weizmann_scribbles", ",kind=scribbles"),
        "weizmann_supervised/fraction=1.0,seed_everything={}",
        {
            "dense CRF": named("weizmann_regularized", "weizmann_regularized", ",kind=scribbles"),
            "normalised cut": named("weizmann_regularized", "weizmann_normalized_cut", ",kind=scribbles"),
            "kernel cut": named("weizmann_regularized", "weizmann_kernel_cut", ",kind=scribbles"),
            "Gated CRF": named("weizmann_regularized", "weizmann_gated_crf", ",kind=scribbles"),
            "DFR": named("weizmann_dfr", "weizmann_dfr_mobilenet"),
            "DFR, sigma_f 1": named("remedies_dfr_bandwidth", "weizmann_dfr_mobilenet", ",sigma_f=1.0"),
        },
    ),
    Column(
        "CamVid",
        "1/8 of the frames, by sequence",
        named("camvid", "camvid_semi_supervised"),
        named("camvid", "camvid_full"),
        {"CutMix-Seg": named("camvid", "camvid_cutmix"), "SCL": named("camvid", "camvid_scl")},
        (0,),
    ),
    Column(
        "VOC, local split",
        "clicks of people",
        named("voc_clicks", "voc_clicks"),
        named("voc_clicks", "voc_full"),
        {"Gated CRF": named("voc_clicks", "voc_gated_crf"), "DFR": named("voc_clicks", "voc_dfr")},
        (0,),
    ),
)


# What was tried where a method misses the goal: the runs of method and baseline with the same change, seed 0.
PIXELS, SCRIBBLES = (f"weizmann_{name},seed_everything=0" for name in (
    "supervised/fraction=0.0002", "scribbles/config=weizmann_scribbles,kind=scribbles"
))  # fmt: skip
IMAGES = named("weizmann_semi", "weizmann_semi_supervised", EIGHTH).format(0)
SPARSE_TV = "weizmann_tv_{}/fraction=0.0002,tv_weight={},seed_everything=0"
CHANGES = {
    "scratch": ("no pretraining, 240 steps", ",max_steps=240,precision=bf16-mixed"),
    "larger": ("192 px", ",size=192,precision=bf16-mixed"),
    "longer": ("360 steps", ",max_steps=360,precision=bf16-mixed"),
}


def remedy(sweep: str, recipe: str, change: str) -> str:
    return named(f"remedies_{sweep}", f"weizmann_{recipe}", change).format(0)


def changed(
    method: str, recipe: str, base: str = "scribbles", sweeps: Sequence[str] = tuple(CHANGES)
) -> Iterator[tuple[str, str, str, str]]:
    """The rows of changes that method and baseline share."""
    for sweep in sweeps:
        name, change = CHANGES[sweep]
        yield method, name, remedy(sweep, recipe, change), remedy(sweep, base, change)


REMEDIES = (
    ("TV, 0.02 %", "none", SPARSE_TV.format("weight", "1.0"), PIXELS),
    ("TV, 0.02 %", "three times the weight", SPARSE_TV.format("weight", "3.0"), PIXELS),
    ("TV, 0.02 %", "contrast weights", SPARSE_TV.format("contrast", "1.0"), PIXELS),
    ("TV, 0.02 %", "contrast, three times the weight", SPARSE_TV.format("contrast", "3.0"), PIXELS),
    ("TV, 0.02 %", "from the first step", remedy("tv_start", "sparse_tv", ",start=0.0"), PIXELS),
    *changed("TV, 0.02 %", "sparse_tv", "sparse", ("scratch", "longer")),
    ("LevelSet", "none", named("weizmann_level_set", "weizmann_level_set", EIGHTH).format(0), IMAGES),
    ("LevelSet", "four times the weight", remedy("level_set_beta", "level_set", ",beta=1.0"), IMAGES),
    ("LevelSet", "regions of features", remedy("level_set_features", "level_set", ",target=features"), IMAGES),
    *changed("LevelSet", "level_set", "semi_supervised", ("longer",)),
    ("CPS", "none", named("weizmann_rrn", "weizmann_cps", EIGHTH).format(0), IMAGES),
    ("CPS", "a third of the weight", remedy("cps_weight", "cps", ",dynamic_weight=0.3"), IMAGES),
    *changed("CPS", "cps", "semi_supervised", ("longer",)),
    ("Gated CRF", "none", named("weizmann_regularized", "weizmann_gated_crf", ",kind=scribbles").format(0), SCRIBBLES),
    ("Gated CRF", "stride 2", remedy("gated_crf_stride", "gated_crf", ",stride=2"), SCRIBBLES),
    *changed("Gated CRF", "gated_crf"),
    ("DFR", "none", named("weizmann_dfr", "weizmann_dfr_mobilenet").format(0), SCRIBBLES),
    ("DFR", "sigma_f 1", remedy("dfr_bandwidth", "dfr_mobilenet", ",sigma_f=1.0"), SCRIBBLES),
    ("DFR", "pair loss of ten times the weight", remedy("dfr_pairs", "dfr_mobilenet", ",fch_weight=1.0"), SCRIBBLES),
    *changed("DFR", "dfr_mobilenet"),
)  # fmt: skip


def remedies(runs: Path) -> str:
    """Val mIoU at the last step of method and baseline."""
    rows = []
    for method, change, *pair in REMEDIES:
        ours, theirs = (read(runs / one).get("last") for one in pair)
        a = ours and ours["val/miou"]
        b = theirs and theirs.get("val/miou_network", theirs["val/miou"])
        texts = [f"{value:.1f}" if value else "" for value in (b, a)]
        rows.append([method, change, *texts, f"{a - b:+.1f}" if a and b else ""])
    return markdown(["method", "change", "baseline", "method's", "gain"], rows)


def images(path: Path, trained: bool) -> Any:
    """Confusion matrices of the test images, (N, K, K); of the network that was trained where a baseline evaluates its
    average too."""
    with np.load(path / "test_last_images.npz") as content:
        name = "confusion_network" if trained and "confusion_network" in content else "confusion"
        return content[name]


def interval(ours: list[Path], theirs: list[Path]) -> str:
    """95 % of the mean gain over resampled test images, of the seeds that both have."""
    both = [pair for pair in zip(ours, theirs, strict=True) if read(pair[0]) and read(pair[1])]
    matrices = [images(one, False) for one, _ in both], [images(other, True) for _, other in both]
    return "{:+.1f} to {:+.1f}".format(*bootstrap(*matrices, DRAWS))


def rows(runs: Path) -> list[dict[str, str]]:
    """Test mIoU at the last step: the method's, and that of the network that its baseline trained."""
    made = []
    for column in COLUMNS:
        base_paths = folders(runs, column.base, column.seeds)
        base = scores(base_paths, "last", *TRAINED)
        full = scores(folders(runs, column.full, column.seeds), "last", *TRAINED)
        for method, pattern in column.methods.items():
            paths = folders(runs, pattern, column.seeds)
            ours = scores(paths, "last")
            paired = differences(ours, base)
            gap = mean(known(full)) - mean(known(base)) if known(full) and known(base) else None
            row = {"data": column.data, "labels": column.labels, "method": method}
            for name, values in (("baseline", base), ("mIoU", ours), ("all labels", full)):
                row[name] = cell(values)
            row["gain, seed by seed"] = gains(ours, base)
            row["95 % over images"] = interval(paths, base_paths) if paired else ""
            row["share of the gap"] = f"{mean(paired) / gap:.0%}" if paired and gap else ""
            row["above 2 sd"] = ("yes" if mean(paired) > 2 * stdev(paired) else "no") if len(paired) > 1 else ""
            made.append(row)
    return made


def overview(runs: Path) -> str:
    """A row for each kind of labels: baseline, methods from the best down, all labels."""
    found = []
    for column in COLUMNS:
        base, full = (
            known(scores(folders(runs, pattern, column.seeds), "last", *TRAINED))
            for pattern in (column.base, column.full)
        )
        ours = {name: known(scores(folders(runs, one, column.seeds), "last")) for name, one in column.methods.items()}
        best = sorted(((mean(values), name) for name, values in ours.items() if values), reverse=True)
        edges = [f"{mean(values):.1f}" if values else "" for values in (base, full)]
        methods = ", ".join(f"{name} {value:.1f}" for value, name in best)
        found.append([f"{column.data}, {column.labels}", edges[0], methods, edges[1]])
    return markdown(["data, labels", "supervised", "with a method", "all labels"], found)


def budget(runs: Path) -> str:
    """Runs planned and done, and the minutes that one took."""
    rows = []
    for column in COLUMNS:
        for method, pattern in {"baseline": column.base, **column.methods, "all labels": column.full}.items():
            done = [one for one in map(read, folders(runs, pattern, column.seeds)) if one]
            minutes = f"{mean(float(one['seconds']) for one in done) / 60:.1f}" if done else ""
            rows.append([column.data, column.labels, method, str(len(column.seeds)), str(len(done)), minutes])
    return markdown(["data", "labels", "method", "runs", "done", "minutes each"], rows)


def main(runs: Path, page: Path, readme: Path) -> None:
    for column in COLUMNS:
        for pattern in (column.base, column.full, *column.methods.values()):
            evaluate(folders(runs, pattern, column.seeds), ("last",))
    table = rows(runs)
    with page.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*table[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    tables = {"evidence": markdown([*table[0]], [[*row.values()] for row in table]), "budget": budget(runs)}
    fill(page, {**tables, "remedies": remedies(runs)})
    fill(readme, {"results": overview(runs)})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
