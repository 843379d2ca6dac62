"""Which images are for training, validation and test: lists on disk, and splits of ours where the authors give none."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def read_list(path: Path) -> list[str]:
    """Image ids of a list file: one a line, or `image mask` pairs as in published lists; the id is the first word's
    stem. Paths may be those of another machine, Windows too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty or names an id twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"list {path} does not exist: check the path, or write it, one image id a line")
    lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    names = [Path(words[0].replace("\\", "/")).stem for words in lines]
    if not names:
        raise ValueError(f"list {path} is empty: write one image id a line")
    twice = sorted({name for name in names if names.count(name) > 1}) if len({*names}) != len(names) else []
    if twice:
        raise ValueError(f"list {path} names {first_few(twice)} more than once: keep one line of each")
    return names


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
    return sorted(names, key=lambda name: hashlib.sha256(f"{salt}{name}".encode()).digest())


def hold_out(names: Iterable[str], test: Iterable[str], keep: Iterable[str] = ()) -> dict[str, list[str]]:
    """Splits where the authors give no validation set: every fifth of the sorted other images, from the fifth on, but
    none in `keep` (a published list of labelled images). Names in `test`, which keeps its order, do not count."""
    test = list(test)
    every = {*names} - {*test}
    val = sorted(every - {*keep})[4::5]
    return {"train": sorted(every - {*val}), "val": val, "test": test}
