"""Which images are for training, validation and test: lists on disk, and splits of ours where the authors give none."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from datamodules.decode import SUFFIXES
from datamodules.text import normal, read_lines

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
# First words of a line that names columns.
HEADER = {
    *("image", "images", "img", "file", "files", "filename", "file_name", "name", "names", "path", "image_path"),
    *("id", "image_id", "image_name"),
}


def read_list(path: Path, known: Container[str] = ()) -> list[str]:
    """Image ids of a list file: one a line, as an id, a file name or a path (another machine's too, Windows or not),
    perhaps with the mask's file behind it, as in published lists. Lines that begin with `#` are left out, and a first
    line that names columns, such as `image,mask`.

    Args:
        known: ids that there are, where a list is of one's own. A line that is one of them is taken as it is, with its
            spaces and dots, and of a path as much is the id as is known.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, no UTF-8, names an id twice, or has a line with more than an image and its mask (where
            `known` is given).
    """
    if not path.is_file():
        raise FileNotFoundError(f"list {path} does not exist: check the path, or write it, one image id a line")
    names: list[str] = []
    first = True
    for number, line in enumerate(map(str.strip, read_lines(path)), 1):
        if not line or (line.startswith("#") and normal(line) not in known):
            continue
        name, behind = _image_of(line, known)
        header, first = first and bool(behind) and name.lower() in HEADER and name not in known, False
        if header:
            continue
        if known and behind and (len(behind) > 1 or not _is_mask_of(behind[0], name)):
            raise ValueError(
                f"list {path}, line {number}: '{line}' is more than an image and its mask: write one id a line"
            )
        names.append(name)
    if not names:
        raise ValueError(f"list {path} is empty: write one image id a line")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"list {path} names {first_few(twice)} more than once: keep one line of each")
    return names


def _image_of(line: str, known: Container[str]) -> tuple[str, list[str]]:
    """The id that a line of a list stands for, and what stands behind it."""
    for whole in (normal(line), normal(_without_suffix(line))):
        if whole in known:
            return whole, []
    columns = [column.strip("\"' ") for column in re.split(r"[,;\t]", line) if column.strip("\"' ")] or [line]
    words = columns if len(columns) > 1 else columns[0].split()
    pictures = [word for word in words if PurePosixPath(word).suffix.lower() in SUFFIXES]
    if len(columns) == 1 and len(pictures) < 2 and (name := known_id(columns[0], known)):  # with spaces in it
        return name, []
    return known_id(words[0], known) or _stem(words[0]), words[1:]


def known_id(text: str, known: Container[str]) -> str | None:
    """The known id that a path means: as it is, without a suffix, without folders in front."""
    text = normal(text.replace("\\", "/"))
    parts = _without_suffix(text).split("/")
    found = (name for at in range(len(parts)) if (name := "/".join(parts[at:])) in known)
    return text if text in known else next(found, None)


def _stem(text: str) -> str:
    return normal(_without_suffix(PurePosixPath(text.replace("\\", "/")).name))


def _without_suffix(text: str) -> str:
    """Dots belong to a name, but for the suffix of an image."""
    return str(PurePosixPath(text).with_suffix("")) if PurePosixPath(text).suffix.lower() in SUFFIXES else text


def _is_mask_of(text: str, name: str) -> bool:
    return "/" in text or "\\" in text or _stem(text) != text or text == name


def read_lists(folder: Path) -> dict[str, list[str]]:
    """Lists of one's own: `train.txt` and `test.txt`, perhaps `val.txt`, or with a number (`train1000.txt`).

    Raises:
        FileNotFoundError: one is missing, or there are two of a split.
        ValueError: what `read_list` raises.
    """
    splits: dict[str, list[str]] = {}
    for split in SPLITS:
        found = [path for path in sorted(folder.glob("*.txt")) if re.fullmatch(rf"{split}\d*", path.stem)]
        if len(found) != 1 and (found or split != "val"):
            names = ", ".join(path.name for path in found) or "none"
            raise FileNotFoundError(f"{folder} needs one list {split}.txt (or {split}NUMBER.txt), it has {names}")
        if found:
            splits[split] = read_list(found[0])
    return splits


def first_few(names: Iterable[str]) -> str:
    """Names for a message: the first five in order, and how many there are."""
    every = sorted(names)
    return ", ".join(every[:5]) + (f" ({len(every)} in all)" if len(every) > 5 else "")


def missing(names: Iterable[str], found: Container[str]) -> str:
    """Those of `names` that are not in `found`, for a message (see `first_few`); empty if all are."""
    return first_few(name for name in names if name not in found)


def check_disjoint(splits: Mapping[str, Iterable[str]]) -> None:
    """Raise ValueError for an image that is in two splits."""
    owner: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if owner.setdefault(name, split) != split:
                raise ValueError(f"'{name}' is in the lists of both {owner[name]} and {split}: keep it in one of them")


def in_hash_order(names: Iterable[str], salt: str = "") -> list[str]:
    """The names in an order that depends on `salt` and on each name, not on the order in which they come."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{salt}{name}".encode(errors="surrogateescape")).digest())


def hold_out(
    names: Iterable[str], test: Iterable[str], keep: Iterable[str] = (), official: bool = False
) -> dict[str, list[str]]:
    """Splits where the authors give no validation set: every fifth of the sorted other images, from the fifth on, but
    none in `keep` (a published list of labelled images). Names in `test`, which keeps its order, do not count.

    With `official` nothing is held out, and val is `test`, as published codes have it: they train on all images, and
    their best checkpoint is chosen on the images that score it. The last one is not.
    """
    test = list(test)
    every = {*names} - {*test}
    if official:
        return {"train": sorted(every), "val": test, "test": test}
    val = sorted(every - {*keep})[4::5]
    return {"train": sorted(every - {*val}), "val": val, "test": test}
