"""What a page needs of finished runs, small enough for git: their directories are large, and may vanish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from common.training.files import write_bytes
from experiments.studies.plan import Place, Run, check_options

# In this order, since a run with a summary is finished.
FILES = ("config.yaml", "metrics.csv", "postprocess_val.json", "test_*_images.npz", "summary.json")


def record(runs: Sequence[Run], place: Place, records: Path) -> None:
    """Copy what was measured of each finished run to the same place below `records`. This machine's folders of data and
    weights are written as `data` and `weights`."""
    named = ((place.data, b"data"), (place.weights, b"weights"))
    folders = [(folder, name) for folder, name in named if folder and folder.is_absolute()]
    for run in runs:
        for file in files_of(run.folder) if run.finished else ():
            content = file.read_bytes()
            if file.suffix != ".npz":
                for folder, name in folders:
                    content = content.replace(f"{folder}/".encode(), name + b"/")
            write(records / file.relative_to(place.runs), content)


def take(runs: Sequence[Run], place: Place, records: Path) -> None:
    """Copy the records of runs that are not there to their directories, where they count as finished.

    Raises:
        ValueError: a record is of a run with other options: it, and no directory, is what is to be removed.
    """
    for run in runs:
        recorded = records / run.folder.relative_to(place.runs)
        if not run.folder.exists() and (recorded / "summary.json").exists():
            check_options(replace(run, folder=recorded))
            for file in files_of(recorded):
                write(run.folder / file.name, file.read_bytes())


def files_of(folder: Path) -> Iterator[Path]:
    for pattern in FILES:
        yield from sorted(folder.glob(pattern))


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_bytes() != content:
        write_bytes(file, content)
