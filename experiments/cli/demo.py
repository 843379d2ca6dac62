"""`weakseg demo`: the baseline and TV on synthetic scenes with few labelled pixels, then a table and a picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.training.pictures import colorize, mark_pixels, save_grid
from datamodules.cache import shrink
from experiments.cli import main as weakseg
from experiments.runs.load import Run, load_run
from experiments.studies.plan import find_place, row_run
from experiments.studies.spec import read_study


def table(summaries: dict[str, dict[str, float | None]], stage: str = "test") -> str:
    """Rows of metrics, a column per run."""
    rows = [f"{'per cent':22}" + "".join(f"{name:>12}" for name in summaries)]
    metrics = dict.fromkeys(key for values in summaries.values() for key in values)
    order = sorted(metrics, key=lambda key: (key != f"{stage}/miou", key != f"{stage}/accuracy", key))
    for key in order:
        cells = [values.get(key) for values in summaries.values()]
        rows.append(
            f"{key.removeprefix(f'{stage}/'):22}" + "".join(f"{'' if c is None else f'{c:.1f}':>12}" for c in cells)
        )
    return "\n".join(rows)


def picture(path: Path, runs: dict[str, Run], names: Sequence[str]) -> None:
    """Training images in rows: image, labelled pixels, truth, and the prediction of each run."""
    data = next(iter(runs.values())).data
    rows = []
    for name in names:
        image, mask = data.image(name), data.mask(name)
        assert mask is not None
        drawn = np.asarray(Image.open(data.annotation_dir() / f"{name}.png"))
        found = [colorize(run.predict(image), data.colors) for run in runs.values()]
        small = torch.from_numpy(shrink(image, data.size).image) / 255
        rows.append([image, mark_pixels(small, drawn, data.colors), colorize(mask, data.colors), *found])
    save_grid(path, rows, ["image", "labelled pixels", "truth", *runs])


def demo(folder: Path, more: Sequence[str] = ()) -> int:
    """Train the rows of the study `quickstart` into `folder`, then compare them on the test scenes.

    Args:
        folder: of the run directories and the picture.
        more: further options of `weakseg fit`.

    Returns:
        The exit status.
    """
    study = read_study("quickstart")
    (regime,), place = study.regimes, find_place(folder, None, None, more)
    summaries, runs = {}, {}
    for number, row in enumerate(study.rows.values(), 1):
        words = ["fit", *row_run(study, place, regime, row, study.seeds[0]).fit]
        print(f"\n[{number}/{len(study.rows)}] weakseg {' '.join(words)}\n", flush=True)
        run_dir = folder / row.name.lower()
        status = weakseg([*words, "--run_dir", str(run_dir), "--overwrite"])
        status = status or weakseg(["test", "--run", str(run_dir), "--trainer.enable_progress_bar", "false"])
        if status:
            return status
        summaries[row.name] = json.loads((run_dir / "summary.json").read_text())["test"]["best"]
        runs[row.name] = load_run(run_dir)
    path, data = folder / "comparison.png", next(iter(runs.values())).data
    picture(path, runs, data.lists()[0][:5])
    print(f"\n{len(data.names('test'))} test scenes\n\n{table(summaries)}\n\npicture: {path.resolve()}")
    return 0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="weakseg demo", description=__doc__.partition(": ")[2].capitalize())
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder of the runs and the picture (demo)")
    parser.add_argument("fit", nargs="*", metavar="-- OPTION VALUE", help="options of `weakseg fit`")
    options = parser.parse_args(arguments)
    return demo(options.output, options.fit)
