"""Decoded, resized images kept between epochs: in memory that the loader processes share, or in files.

What is kept is what would be read, byte for byte. Two processes that fill one place write the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from common.ops.array import Array
from common.training.files import clean, written_whole
from datamodules.transforms import Box, fit_size, resize_image

HEADER = 16  # bytes before a record's pixels: heights and widths of the small and the original image, 32 bits each
FORMAT = 2  # of the disk cache; raise it when decoding or resizing gives other values


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """An error of writing below the cache folder, told with the way out; other errors, such as those of reading images
    in the same block, stay what they are."""
    try:
        yield
    except OSError as error:
        below = error.filename is not None and Path(str(error.filename)).is_relative_to(folder)
        if not below and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise OSError(
            f"cannot write into the cache folder {folder} ({error.strerror}): set WEAKSEG_CACHE or --data.cache_dir to "
            "a folder that you can write to"
        ) from error


class Small(NamedTuple):
    """A decoded image that fits the training size: uint8 (C, h, w), and its original height and width."""

    image: Array
    size: tuple[int, int]


def shrink(image: Array, box: Box) -> Small:
    """uint8 (H, W, C), resized to fit inside `box`, if there is one."""
    size = (image.shape[0], image.shape[1])
    return Small(np.ascontiguousarray(resize_image(image, fit_size(size, box)).transpose(2, 0, 1)), size)


class RamCache:
    """Images in shared memory, read on first use. Each device's process has its own, shared with its loader processes
    whether they are forked or spawned; files that change during a run are not noticed.

    Args:
        names: the images that are kept; others are read each time.
        box: the most that an image can take, memory is only used for what it does take.
        read: reads one.
        channels: bands of an image.

    Raises:
        ValueError: there is less shared memory than the images can take.
    """

    def __init__(
        self, names: Sequence[str], box: tuple[int, int], read: Callable[[str], Small], channels: int = 3
    ) -> None:
        self.slots, self.read = {name: slot for slot, name in enumerate(names)}, read
        self.channels = channels
        width = HEADER * -(-(HEADER + channels * box[0] * box[1]) // HEADER)  # so that every header is aligned
        shared = Path("/dev/shm")
        if shared.is_dir() and len(names) * width > (free := shutil.disk_usage(shared).free):
            raise ValueError(
                f"data.cache=ram needs up to {len(names) * width / 2**30:.1f} GiB of shared memory for {len(names)} "
                f"images, {shared} has {free / 2**30:.1f}: use data.cache=disk, a smaller data.size, or give the "
                "container more (docker run --shm-size)"
            )
        # As torch's own loaders get theirs. `torch.zeros(...).share_memory_()` would touch every page.
        storage = torch.UntypedStorage._new_shared(len(names) * width)
        self.records = torch.empty(0, dtype=torch.uint8).set_(storage).view(len(names), width)

    def get(self, name: str) -> Small:
        """The image, read once."""
        if name not in self.slots:
            return self.read(name)
        record = self.records[self.slots[name]].numpy()
        small = unpack(record, self.channels)
        if small is None:
            small = self.read(name)
            filled = pack(small)
            # The header last: who sees it finds the pixels.
            record[HEADER : len(filled)] = filled[HEADER:]
            record[:HEADER] = filled[:HEADER]
        return small


class DiskCache:
    """Images in files, for all runs and devices. A file's key is the image's name and file (path, size and time of
    change), the training size and the options of reading, so a replaced image is read again; delete the folder to free
    the space.

    Args:
        folder: where they are kept.
        box: the training size; None is the image's own.
        read: reads one.
        file: where an image comes from; None: from no file.
        reading: how it is read: part of the key.
        channels: bands of an image.
    """

    def __init__(
        self,
        folder: Path,
        box: Box,
        read: Callable[[str], Small],
        file: Callable[[str], Path | None],
        reading: str = "",
        channels: int = 3,
    ) -> None:
        self.folder, self.box, self.read, self.file, self.reading = folder, box, read, file, reading
        self.channels = channels
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        clean(folder)

    def path(self, name: str) -> Path:
        """Where an image is kept."""
        file = self.file(name)
        if file is None:
            raise ValueError("data.cache=disk is for images that come from files: use data.cache=ram")
        state = file.stat()
        place = os.path.abspath(file), state.st_size, state.st_mtime_ns
        key = (FORMAT, name, *place, *(self.box or ()), self.reading)  # the slices of a volume have one file
        return self.folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.bin"

    def get(self, name: str) -> Small:
        """The image, read once. Raises what `path` does."""
        path = self.path(name)
        small = None
        if path.exists():
            record = np.fromfile(path, np.uint8)
            small = unpack(record, self.channels)
            # Also one that is too long: nothing that we wrote is.
            if small is None or len(record) != HEADER + small.image.size:
                rank_zero_warn(f"{path} is broken ({len(record)} bytes): its image is read again")
                small = None
        if small is None:
            small = self.read(name)
            with writing(self.folder), written_whole(path) as scratch:
                pack(small).tofile(scratch)
        return small


def pack(small: Small) -> Array:
    """A record: header, then the pixels."""
    header = np.array([*small.image.shape[1:], *small.size], "<u4").view(np.uint8)
    return np.concatenate([header, small.image.ravel()])


def unpack(record: Array, channels: int = 3) -> Small | None:
    """The image of a record (a view), or None if the record is empty or cut short."""
    if len(record) < HEADER:
        return None
    height, width, *size = record[:HEADER].view("<u4").tolist()
    end = HEADER + channels * height * width
    if end == HEADER or len(record) < end:
        return None
    return Small(record[HEADER:end].reshape(channels, height, width), (size[0], size[1]))
