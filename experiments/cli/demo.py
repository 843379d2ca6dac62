"""`weakseg demo`: strokes on synthetic slices of a heart. The baseline, its best MRF, TV and Gated CRF, then a table
and a picture."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from common.training.files import read_summary
from common.training.pictures import colorize, mark_pixels, save_grid
from datamodules.cache import shrink
from datamodules.decode import read_drawn
from experiments.runs.load import Run, load_run
from experiments.studies.plan import find_place, row_run
from experiments.studies.postprocess import make_config
from experiments.studies.runner import Runner
from experiments.studies.spec import KIND, folder_name, read_study

ROWS = ("partial cross entropy", "+ MRF", "TV", "Gated CRF")  # of the study `hearts`
SHOWN = 5  # slices in the picture
JOBS = 2  # trainings at a time: small networks gain little from a second core


def table(summaries: dict[str, dict[str, float | None]], stage: str = "test") -> str:
    """Rows of metrics, a column per run."""
    widths = {name: max(12, len(name) + 2) for name in summaries}
    rows = [f"{'per cent':22}" + "".join(f"{name:>{width}}" for name, width in widths.items())]
    metrics = dict.fromkeys(key for values in summaries.values() for key in values)
    order = sorted(metrics, key=lambda key: (key != f"{stage}/miou", key != f"{stage}/accuracy", key))
    for key in order:
        values = [(widths[name], values.get(key)) for name, values in summaries.items()]
        cells = "".join(f"{'' if value is None else f'{value:.1f}':>{width}}" for width, value in values)
        rows.append(f"{key.removeprefix(f'{stage}/'):22}{cells}")
    return "\n".join(rows)


def picture(path: Path, runs: dict[str, Run], names: Sequence[str]) -> None:
    """Training images in rows: image, labelled pixels, truth, and the prediction of each run."""
    data = next(iter(runs.values())).data
    rows = []
    for name in names:
        image, mask = data.image(name), data.mask(name)
        assert mask is not None
        drawn = read_drawn(data.annotation_dir() / f"{name}.png")
        found = [colorize(run.predict(image), data.colors) for run in runs.values()]
        small = torch.from_numpy(shrink(image, data.size).image) / 255
        rows.append([image, mark_pixels(small, drawn, data.colors), colorize(mask, data.colors), *found])
    save_grid(path, rows, ["image", "labelled pixels", "truth", *runs])


def demo(folder: Path, more: Sequence[str] = ()) -> int:
    """Train and test rows of the study `hearts`, first seed, into `folder`, then compare them on the test slices.

    Args:
        folder: of the run directories and the picture; finished runs in it are kept, interrupted ones resumed.
        more: further options of `weakseg fit`.

    Returns:
        The exit status.

    Raises:
        ValueError: the folder holds runs with other options.
    """
    study = read_study("hearts")
    (regime,), place = study.regimes, find_place(folder, None, None, more)
    rows = [study.rows[name] for name in ROWS]
    made = [
        replace(row_run(study, place, regime, row, study.seeds[0]), folder=folder / folder_name(row.name))
        for row in rows
        if row.of is None
    ]
    for run in made:
        print(f"weakseg fit {' '.join(run.fit)} --run_dir {run.folder}", flush=True)
    if failed := Runner(made[::-1], min(JOBS, os.cpu_count() or 1)).run():  # the longest one first
        print(f"{len(failed)} runs failed: {', '.join(map(str, failed))}", file=sys.stderr)
        return 1
    scores, runs = {}, {}
    for row in rows:
        run_dir = folder / folder_name(row.of or row.name)
        runs[row.name] = load_run(run_dir, "last")
        if row.of:
            runs[row.name].model.postprocess = make_config(vars(runs[row.name].model.postprocess), row.test)
        name = f"last+{row.test[KIND]}" if row.of else "last"
        scores[row.name] = read_summary(run_dir)["test"][name]
    path, data = folder / "comparison.png", runs[ROWS[0]].data
    picture(path, runs, data.lists()[0][:SHOWN])
    print(f"\n{len(data.names('test'))} test slices\n\n{table(scores)}\n\npicture: {path.resolve()}")
    return 0


def main(arguments: Sequence[str]) -> int:
    about = str(__doc__).partition(": ")[2]
    about = about[0].upper() + about[1:]
    parser = argparse.ArgumentParser(prog="weakseg demo", allow_abbrev=False, description=about)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder of the runs and the picture (demo)")
    parser.add_argument("fit", nargs="*", metavar="-- OPTION VALUE", help="options of `weakseg fit`")
    options = parser.parse_args(arguments)
    return demo(options.output, options.fit)
