"""What the data of a run are: classes, splits, and size and time of change of every file, with a digest, by which a run
that continues and an annotation that was drawn before know whether they still are the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.names import Files, Names, Stamps
from datamodules.pseudo import ABOUT
from datamodules.splits import first_few

if TYPE_CHECKING:
    from datamodules.base import SegmentationDataModule

BLOCK = 10_000  # files whose state becomes text at once
State = dict[str, Any]


def state_of(data: SegmentationDataModule) -> State:
    """What the data are: classes, colours, splits, and size and time of change (ns) of each file, by part and id.

    Without paths, so that data that were moved are the same; no file is opened.
    """
    parts = data.sources()
    if data.pseudo is not None:
        pseudo = {ABOUT: data.pseudo.folder / ABOUT, **data.pseudo.files(data.names("train"))}
        parts = {**parts, "pseudo-masks": pseudo}
    return {
        "classes": [*data.class_names],
        "colors": [[*color] for color in data.colors],
        "splits": {split: Names(names) for split, names in data.splits.items()},
        "files": {part: stamps_of(files) for part, files in parts.items()},
    }


def stamps_of(files: Mapping[str, Path]) -> Stamps:
    """Size and time of change (ns) of files by their ids."""
    if isinstance(files, Files):
        names, paths = files.names, (f"{files.folder}/{path}" for path in files.paths())
    else:
        names = Names(files)
        paths = (str(files[name]) for name in names)
    values, last = np.empty((len(names), 2), np.int64), ""
    for number, path in enumerate(paths):
        if path == last:  # one file may hold the labels of all images
            values[number] = values[number - 1]
            continue
        try:
            found = os.stat(path)
        except OSError as error:
            raise FileNotFoundError(f"{path} cannot be read ({error.strerror}): put it back, or remove it") from error
        values[number], last = (found.st_size, found.st_mtime_ns), path
    return Stamps(names, values)


def plain(state: State) -> State:
    """A state as files hold it."""
    return {
        **state,
        "splits": {split: [*names] for split, names in state["splits"].items()},
        "files": {part: stamps.plain() for part, stamps in state["files"].items()},
    }


def digest_of(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


def json_parts(value: Any) -> Iterator[str]:
    """`json.dumps` of a state as files hold it, in parts: of a million files it is long."""
    if isinstance(value, Names):
        names = iter(value)
        blocks = iter(lambda: [*islice(names, BLOCK)], [])
        yield from _enclosed("[]", ([json.dumps(block)[1:-1]] for block in blocks))
    elif isinstance(value, Stamps):
        rows = zip(value.names, value.rows.tolist(), strict=True)
        parts = iter(lambda: dict(islice(rows, BLOCK)), {})
        yield from _enclosed("{}", ([json.dumps(part)[1:-1]] for part in parts))
    elif isinstance(value, dict):
        yield from _enclosed("{}", (chain([f"{json.dumps(key)}: "], json_parts(one)) for key, one in value.items()))
    else:
        yield json.dumps(value)


def _enclosed(ends: str, texts: Iterable[Iterable[str]]) -> Iterator[str]:
    yield ends[0]
    for number, text in enumerate(texts):
        yield ", " * (number > 0)
        yield from text
    yield ends[1]


def digest_of_state(state: State) -> str:
    """`digest_of` a state as files hold it."""
    found = hashlib.sha256(b"[")
    for part in json_parts(state):
        found.update(part.encode())
    found.update(b"]")
    return found.hexdigest()


def changes(before: State, now: State) -> str:
    """What differs between two states of data, in words."""
    told = [
        f"{key} {shortly(before[key])} are now {shortly(now[key])}"
        for key in ("classes", "colors")
        if before[key] != now[key]
    ]
    for part in sorted(before["files"].keys() | now["files"].keys()):
        old, new = before["files"].get(part, {}), now["files"].get(part, {})
        kinds = {
            "changed": [name for name in old.keys() & new.keys() if old[name] != new[name]],
            "new": new.keys() - old.keys(),
            "missing": old.keys() - new.keys(),
        }
        told += [f"{len(names)} {part} {kind} ({first_few(names)})" for kind, names in kinds.items() if names]
    if not told and before["splits"] != now["splits"]:
        told.append("the splits are others")
    return "; ".join(told)


def shortly(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
