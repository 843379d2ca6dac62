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
SEEDS = (0, 1, 2)
# The network that is trained, where a method's teacher or a baseline's moving average is what `miou` scores.
TRAINED = ("miou_student", "miou_network", "miou")


def named(sweep: str, recipe: str, more: str = "") -> str:
    """Where a sweep over recipes and seeds puts its runs, below `runs`, with {} for the seed."""
    return f"{sweep}/config={recipe}{more},seed_everything={{}}"


def folders(runs: Path, pattern: str, seeds: Iterable[int] = SEEDS) -> list[Path]:
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


def scores(folders: Iterable[Path], which: str, *metrics: str) -> list[float | None]:
    """Test mIoU run by run, or the first of `metrics` that a run has; None where it is missing."""
    tests = [read(folder).get("test", {}).get(which, {}) for folder in folders]
    names = [f"test/{metric}" for metric in metrics or ("miou",)]
    return [next((test[name] for name in names if name in test), None) for test in tests]


def known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def differences(ours: Sequence[float | None], base: Sequence[float | None]) -> list[float]:
    """Gains over a baseline, each at one seed; a seed that one of the two lacks is left out."""
    return [a - b for a, b in zip(ours, base, strict=True) if a is not None and b is not None]


def gains(ours: Sequence[float | None], base: Sequence[float | None]) -> str:
    """`differences` as the tables show them."""
    return ", ".join(f"{gain:+.1f}" for gain in differences(ours, base))


def cell(values: Sequence[float | None]) -> str:
    """`mean ± standard deviation` of what is known; says of how many if some are missing, empty if all are."""
    found = known(values)
    if not found:
        return ""
    text = f"{mean(found):.1f}" + (f" ± {stdev(found):.1f}" if len(found) > 1 else "")
    return text + ("" if len(found) == len(values) else f" (n={len(found)})")


def fill(page: Path, contents: Mapping[str, str]) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` of a page; the words around are the writer's."""
    text = page.read_text()
    for name, content in contents.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        text = text[: text.index(start) + len(start)] + f"\n{content}\n" + text[text.index(end) :]
    page.write_text(text)


def about(folders: Iterable[Path]) -> str:
    """What the artefacts say of the runs themselves."""
    found = [summary for summary in map(read, folders) if summary]
    if not found:
        return "No run yet."
    commits = ", ".join(sorted({str(one["commit"]) for one in found}))
    seconds = [float(one["seconds"]) for one in found]
    versions = ", ".join(sorted({str(one["versions"]["torch"]) for one in found}))
    return (
        f"{len(found)} runs, {mean(seconds):.0f} s each on average ({found[0]['devices']}, shared machine), "
        f"commits {commits}, torch {versions}."
    )
