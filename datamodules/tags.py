"""Image tags that people gave: a file with a line for each image, or folders named by class."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from datamodules.splits import HEADER, first_few, known_id
from datamodules.text import normal, read_lines

FOLDERS = "folders"
Tags = dict[str, frozenset[int]]


def read_tags(path: Path, images: Collection[str], class_names: Sequence[str]) -> Tags:
    """The classes of each image that a file names. UTF-8, one image a line: its id, file name or path, and its classes,
    separated by spaces (`a.jpg dog cat`), or in the columns of a CSV file (`a.jpg,dog,cat` or `a.jpg,dog;cat`; tabs and
    semicolons do too); or a column of 0 and 1 for each class that a header names. A name alone is an image without an
    object. Lines that begin with `#` and a header are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no UTF-8, no line, an image or a class that there is not or that stands twice.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"tags file {path} does not exist: check data.tags, or write it, a line for each image: its name and its "
            "classes"
        )
    found: Tags = {}
    lines: dict[str, int] = {}
    columns: list[str] | None = None  # classes of a table of 0 and 1
    for number, line in enumerate(read_lines(path), 1):
        line = normal(line).strip()
        if not line:
            continue
        where = f"{path}, line {number}"
        first, rest = _cells(line, images)
        name = known_id(first, images)
        if name is None and line.startswith("#"):
            continue
        if name is None and not lines and columns is None and first.lower() in HEADER:
            columns = rest if rest and {*rest} <= {*class_names} else []
            continue
        if name is None:
            raise ValueError(f"{where}: there is no image '{first}' in images/{nearest(first, images)}")
        if name in lines:
            raise ValueError(
                f"{where}: image '{name}' stands in line {lines[name]} already: write all its classes in one line"
            )
        lines[name] = number
        if columns and {*rest} <= {"0", "1", ""}:
            if len(rest) != len(columns):
                raise ValueError(f"{where}: {len(rest)} values behind the name, but the header names {len(columns)}")
            rest = [column for column, value in zip(columns, rest, strict=True) if value == "1"]
        found[name] = frozenset(_ids(where, [word for word in rest if word], class_names))
    if not lines:
        raise ValueError(f"tags file {path} is empty: write a line for each image, its name and its classes")
    return found


def folder_tags(folder: Path, images: Collection[str], class_names: Sequence[str]) -> Tags:
    """The class of each image of a folder `images/CLASS/NAME.jpg`.

    Raises:
        ValueError: an image that lies in no folder, or in one that is named by no class.
    """
    if loose := [name for name in images if "/" not in name]:
        raise ValueError(
            f"data.tags={FOLDERS} takes the class of an image from its folder, and {first_few(loose)} lie in {folder} "
            "itself: put them into the folder of their class (images without an object into 'background')"
        )
    found: Tags = {}
    for name in images:
        top = name.split("/")[0]
        found[name] = frozenset(_ids(f"folder {folder / top}", [top], class_names))
    return found


def _cells(line: str, images: Collection[str]) -> tuple[str, list[str]]:
    """The name in a line, and the words behind it."""
    mark = next((mark for mark in ",\t;" if mark in line), None)
    if mark and known_id(line, images) is None:
        first, *rest = (cell.strip() for cell in next(csv.reader([line], delimiter=mark, skipinitialspace=True)))
        return first, [word.strip() for cell in rest for word in re.split(r"[,;|]", cell)]
    # A name may have spaces: it is the longest beginning that there is.
    ends = [len(line), *(match.start() for match in reversed([*re.finditer(r"\s+", line)]))]
    end = next((end for end in ends if known_id(line[:end], images)), ends[-1])
    return line[:end], line[end:].split()


def _ids(where: str, words: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """The ids of classes, whose names may have spaces."""
    found: list[int] = []
    at = 0
    while at < len(words):
        names = {end: " ".join(words[at:end]) for end in range(len(words), at, -1)}
        end = next((end for end, name in names.items() if name in class_names), None)
        if end is None:
            raise ValueError(
                f"{where}: '{words[at]}' is none of the classes, {', '.join(class_names)}"
                f"{nearest(words[at], class_names)}"
            )
        number = class_names.index(names[end])
        if number in found:
            raise ValueError(f"{where}: names '{names[end]}' twice: name it once")
        found.append(number)
        at = end
    return found


def nearest(name: str, known: Collection[str]) -> str:
    """Part of an error: what is spelled nearly so; empty if nothing is."""
    near = difflib.get_close_matches(name, known)
    return f"; nearest: {', '.join(near)}" if near else ""


def check_tagged(tagged: Mapping[str, object], train: Collection[str], what: str) -> None:
    """Raise ValueError for training images without a line."""
    if lost := [name for name in train if name not in tagged]:
        raise ValueError(
            f"{what} has no line of the training images {first_few(lost)}: write one for each, the name alone where no "
            "object is in the image, or leave them out of train.txt"
        )
