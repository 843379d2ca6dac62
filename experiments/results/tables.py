"""What the pages of this folder are made with: reading runs, evaluating them on test, and filling in tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from experiments.cli import main as weakseg

Summary = dict[str, Any]


def named(sweep: str, recipe: str, more: str = "") -> str:
    """Where a sweep over recipes and seeds puts its runs, below `runs`, with {} for the seed."""
    return f"{sweep}/config={recipe}{more},seed_everything={{}}"


def folders(runs: Path, pattern: str, seeds: Iterable[int]) -> list[Path]:
    """The runs of such a pattern, seed by seed."""
    return [runs / pattern.format(seed) for seed in seeds]


def last_logged(folder: Path, column: str) -> float | None:
    """The last value of a column of a run's `metrics.csv`; None where there is none, or no number."""
    path = folder / "metrics.csv"
    if not path.exists():
        return None
    with path.open() as file:
        values = [row[column] for row in csv.DictReader(file) if row.get(column)]
    return float(values[-1]) if values and values[-1] != "nan" else None


def read(folder: Path, name: str = "summary.json") -> Summary:
    """A run's `summary.json` (or another of its files); empty while the run is not finished."""
    path = folder / name
    return dict(json.loads(path.read_text())) if path.exists() else {}


def evaluate(
    folders: Iterable[Path], which: Sequence[str] = ("best", "last"), refined: Mapping[str, str] | None = None
) -> None:
    """Run `weakseg test` on each finished run that lacks its result (or, from an earlier version, the matrices of its
    images), with the given `postprocess` options if any."""
    options = [word for name, value in (refined or {}).items()
               for word in (f"--model.init_args.postprocess.{name}", value)]  # fmt: skip
    for folder in folders:
        for one in which:
            name = one + (f"+{refined['kind']}" if refined else "")
            done = name in read(folder).get("test", {}) and has_images(folder / f"test_{name}_images.npz")
            if read(folder) and not done:
                words = ["test", "--run", str(folder), "--which", one, "--trainer.enable_progress_bar", "false"]
                if weakseg([*words, *options]):
                    raise RuntimeError(f"weakseg test failed on {folder}")


def has_images(file: Path) -> bool:
    """Whether `weakseg test` has written the matrices of each image and of each network that it evaluates."""
    if not file.exists():
        return False
    others = sum(name.startswith("test/miou_") for name in read(file.parent)["test"][file.stem[5:-7]])
    with np.load(file) as content:
        return bool(others == sum(name.startswith("confusion_") for name in content.files))


def cell(values: Sequence[float], expected: int) -> str:
    """`mean ± standard deviation`; says how many values there are if fewer than expected, empty if there is none."""
    if not values:
        return ""
    text = f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
    return text + ("" if len(values) == expected else f" (n={len(values)})")


def fill(page: Path, contents: Mapping[str, str]) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` of a page; the words around are the writer's."""
    text = page.read_text()
    for name, content in contents.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        text = text[: text.index(start) + len(start)] + f"\n{content}\n" + text[text.index(end) :]
    page.write_text(text)


def about(summaries: Sequence[Summary]) -> str:
    """What the artefacts say of the runs themselves."""
    found = [one for one in summaries if one]
    if not found:
        return "No run yet."
    commits = ", ".join(sorted({str(one["commit"]) for one in found}))
    seconds = [float(one["seconds"]) for one in found]
    versions = ", ".join(sorted({str(one["versions"]["torch"]) for one in found}))
    return (
        f"{len(found)} runs, {mean(seconds):.0f} s each on average ({found[0]['devices']}, shared machine), "
        f"commits {commits}, torch {versions}."
    )
