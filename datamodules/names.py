"""Names of images and their files, a million of them in a few tens of megabytes.

As Python objects a name and its path take half a kilobyte, and a loader process that merely looks at them gets pages of
its own: reading an object writes its reference count. Here they lie in arrays, which forked processes share.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

CODE = ("utf-8", "surrogateescape")  # as the names of files


class Names(Sequence[str]):
    """Sorted strings, each once."""

    text: bytes
    ends: NDArray[np.int64]
    order: NDArray[np.uint32]  # numbers of the names by their hash
    hashes: array[int]  # sorted

    def __init__(self, names: Iterable[str] = ()) -> None:
        if isinstance(names, Names):
            self.text, self.ends, self.order, self.hashes = names.text, names.ends, names.order, names.hashes
            return
        every = [*names]
        if any(one >= after for one, after in pairwise(every)):  # most often they come in order
            every = sorted({*every})
        parts = [name.encode(*CODE) for name in every]
        self.text = b"".join(parts)
        self.ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        self._find(every)

    def _find(self, every: Iterable[str]) -> None:
        hashes = np.fromiter(map(hash, every), np.int64, len(self))
        self.order = hashes.argsort().astype(np.uint32)
        self.hashes = array("q", hashes[self.order].tobytes())

    def __getstate__(self) -> Any:
        return self.text, self.ends  # another process has other hashes

    def __setstate__(self, state: Any) -> None:
        self.text, self.ends = state
        self._find(self)

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Names: ...
    def __getitem__(self, at: int | slice) -> str | Names:
        if isinstance(at, slice):
            return Names(self[number] for number in range(*at.indices(len(self))))
        at = range(len(self))[at]  # raises IndexError
        return self.text[self.ends[at] : self.ends[at + 1]].decode(*CODE)

    def __iter__(self) -> Iterator[str]:
        if self.text.isascii():  # bytes are letters: decoded at once
            text = self.text.decode()
            for start, end in pairwise(self.ends.tolist()):
                yield text[start:end]
            return
        for start, end in pairwise(self.ends.tolist()):
            yield self.text[start:end].decode(*CODE)

    def place(self, name: object) -> int | None:
        """The number of a name; None if it is not there."""
        key = hash(name)
        at = bisect_left(self.hashes, key)
        while at < len(self.hashes) and self.hashes[at] == key:
            number = int(self.order[at])
            if self[number] == name:
                return number
            at += 1
        return None

    def __contains__(self, name: object) -> bool:
        return self.place(name) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{len(self)} names"


class Files(Mapping[str, Path]):
    """The file of each image by its id, in order, below one folder: that of `a/b` is most often `FOLDER/a/b.png`.

    Args:
        folder: all of them lie in it or below.
        paths: of each id, the path in the folder.
    """

    def __init__(self, folder: Path, paths: Mapping[str, str]) -> None:
        self.folder, self.names = folder, Names(paths)
        tails: dict[str, int] = {}
        self.kinds = np.zeros(len(self.names), np.uint16)
        self.others: dict[str, str] = {}  # whose path is not the id and a suffix, such as one in another normal form
        for number, name in enumerate(self.names):
            path = paths[name]
            if not path.startswith(name) or len(tails) == 2**16 - 1:
                self.others[name] = path
            else:
                self.kinds[number] = tails.setdefault(path[len(name) :], len(tails))
        self.tails = [*tails]

    def folders(self) -> set[Path]:
        """The folders of the files."""
        return {self.folder / folder for folder in {os.path.dirname(path) for path in self.paths()}}

    def paths(self) -> Iterator[str]:
        """The paths in the folder, in order of the ids."""
        for name, kind in zip(self.names, self.kinds.tolist(), strict=True):
            yield self.others.get(name) or name + self.tails[kind]

    def __getitem__(self, name: str) -> Path:
        if (place := self.names.place(name)) is None:
            raise KeyError(name)
        return self.folder / (self.others.get(name) or name + self.tails[self.kinds[place]])

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def items(self) -> ItemsView[str, Path]:
        return _Items(self)


class _Items(ItemsView[str, Path]):
    _mapping: Files

    def __iter__(self) -> Iterator[tuple[str, Path]]:
        return zip(self._mapping.names, map(self._mapping.folder.joinpath, self._mapping.paths()), strict=True)


class Stamps(NamedTuple):
    """Size and time of change (ns) of files, int64 (N, 2), by their ids."""

    names: Names
    rows: NDArray[np.int64]

    def plain(self) -> dict[str, list[int]]:
        """As files hold them."""
        return dict(zip(self.names, self.rows.tolist(), strict=True))
