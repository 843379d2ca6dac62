"""The folder that people draw in: its images, the masks that `datamodules.sets.folder.Folder` reads, what is done."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.ops.array import Array
from common.ops.batch import IGNORE
from common.training.files import held, write_text, written_whole
from datamodules.class_list import class_file, read_classes
from datamodules.decode import decode, stored_size
from datamodules.drawn import NAMES, find
from datamodules.files import default_color, find_images, read_image, read_mask, unread_images, upright_mask
from datamodules.images import check_sizes

NO_MASK = "none"  # the version of a mask that there is not
MOST_PIXELS, LONGEST = 2**26, 2**14  # of an image that a browser's canvas holds
UNLABELLED = (224, 224, 192)  # colour of 255 in the files, as in PASCAL VOC


class Stale(ValueError):
    """Somebody else has written the mask since it was read."""


class Drawings:
    """A folder with `images/`, `masks/` and a list of classes, as `Folder` reads it.

    Masks are read and written upright, as `Folder` takes them. Nothing of them is kept in memory, so that several
    programs may work in one folder: who writes says which version was read, and a version is the file's content. The
    ids of images that are done are in `done.txt`, one a line.

    Args:
        root: the folder.
        classes: names for a folder without a list of classes, which is written; None: there has to be one.
        read: reads an image file, uint8 (H, W, 3) RGB, upright.

    Raises:
        FileNotFoundError: no images, or no list of classes.
        ValueError: what is there cannot be drawn on here: another list of classes, a file of all images,
            a name that is no text.
    """

    def __init__(
        self, root: Path, classes: Sequence[str] | None = None, read: Callable[[Path], Array] = read_image
    ) -> None:
        self.root, self.read, self.lock = root, read, threading.Lock()
        if not (root / "images").is_dir():
            raise FileNotFoundError(f"{root / 'images'} does not exist: put the photos there")
        self.images = find_images(root / "images", nested=True)
        for name in self.images:
            if name.encode(errors="ignore").decode() != name:  # as of an archive from another system
                raise ValueError(
                    f"{str(self.images[name])!a} has a name that is no text in UTF-8, which a browser cannot ask "
                    "for: rename it"
                )
        if classes is not None:
            write_classes(root, classes)
        elif not class_file(root).is_file():
            raise FileNotFoundError(f"{class_file(root)} does not exist: name the classes, --classes background,horse")
        found, self.given, void_before = read_classes(class_file(root))
        self.class_names, self.colors = [one.name for one in found], [one.color for one in found]
        if void_before:
            raise ValueError(void_before)
        try:
            self.tools = find(root, self.images, self.class_names, None)
        except FileNotFoundError:  # nothing is drawn yet
            self.tools = {}
        for one in self.tools.values():
            if not self._is_of_one_image(one.path):
                raise ValueError(
                    f"{one.path} holds drawings, and masks beside it are refused: go on in the tool that wrote it, or "
                    "move it away"
                )
        self.masks = find_images(root / "masks", nested=True, needed=False)
        self.unread = unread_images(root / "masks", nested=True)

    def _is_of_one_image(self, path: Path) -> bool:
        """Whether a file is labelme's, which may lie among masks."""
        below = any(path.is_relative_to(self.root / folder) for folder in ("images", "masks"))
        return below and path.suffix == ".json" and path.name not in NAMES

    def image(self, name: str) -> Array:
        """uint8 (H, W, 3) RGB, upright. Raises KeyError for an unknown id, ValueError, OSError if it cannot be read."""
        height, width = self.size(name)
        if height * width > MOST_PIXELS or max(height, width) > LONGEST:
            raise ValueError(
                f"{self.images[name]} is {width} x {height} pixels, too many to draw on: cut it into tiles"
            )
        return self.read(self.images[name])

    def size(self, name: str) -> tuple[int, int]:
        """Height and width, upright."""
        (height, width), turn = stored_size(self.images[name])
        return (width, height) if turn in (5, 6, 7, 8) else (height, width)

    def mask(self, name: str) -> tuple[Array, str]:
        """uint8 (H, W) of class ids and 255, upright, and its version.

        Raises:
            KeyError: there is no such image.
            ValueError: the image has labels that are not drawn on here; the message says which, and the way out.
        """
        path, size = self._file(name), self.size(name)
        before = self.version(name)
        if before == NO_MASK:
            return np.full(size, IGNORE, np.uint8), before
        mask = self._read(path, name)
        if (after := self.version(name)) != before:
            raise Stale(f"{path} is being written: load it again")
        return mask, after

    def _read(self, path: Path, name: str) -> Array:
        mask = read_mask(path, len(self.class_names), self.given)
        mask, _ = upright_mask(mask, self.images[name])
        check_sizes(name, self.size(name), mask)
        if len(self.class_names) == 2 and {*np.unique(mask)} == {0, IGNORE} and decode(path).colors is None:
            raise ValueError(
                f"{path} holds 0 and {IGNORE}: is {IGNORE} '{self.class_names[1]}' or no label? save class ids, 0 and 1"
            )
        return mask

    def _file(self, name: str) -> Path:
        """Where the mask is, or will be. Raises ValueError if the image has other labels."""
        self.images[name]  # no name comes further that is no image's
        if name in self.tools:
            raise ValueError(
                f"{self.tools[name].path} has the labels of {name}: draw in the tool that wrote it, or move it away"
            )
        path = self.masks.get(name, self.unread.get(name, self.root / "masks" / f"{name}.png"))
        if path.suffix.lower() != ".png":
            raise ValueError(f"{path} is the mask of {name} and no PNG: save it as PNG, and move this one away")
        return path

    def version(self, name: str) -> str:
        """What tells one content of the mask's file from another."""
        try:
            return hashlib.sha256(self._file(name).read_bytes()).hexdigest()[:16]
        except FileNotFoundError:
            return NO_MASK

    def write(self, name: str, mask: Array, version: str) -> str:
        """Write a mask, whole or not at all; one without a label is removed.

        Args:
            name: id of the image.
            mask: uint8 (H, W), class ids and 255, upright.
            version: of the mask that was read and changed.

        Returns:
            The new version.

        Raises:
            KeyError, ValueError: as in `mask`; a mask of another size, or with other values.
            Stale: the file is not of that version any more; it stays.
        """
        path = self._file(name)
        check_sizes(name, self.size(name), mask)
        if not ((mask < len(self.class_names)) | (mask == IGNORE)).all():
            raise ValueError(f"the mask of {name} has values that are no class (0..{len(self.class_names) - 1}, 255)")
        with self._alone():
            if self.version(name) != version:
                raise Stale(f"{path} was changed elsewhere since this page read it: it was not written over")
            if (mask == IGNORE).all():
                path.unlink(missing_ok=True)
                return NO_MASK
            with written_whole(path) as scratch:
                self._picture(mask).save(scratch, "PNG")
                if not (self._read(scratch, name) == mask).all():
                    raise ValueError(f"{path} would be read otherwise than drawn: see the colours in classes.txt")
            return self.version(name)

    def _picture(self, mask: Array) -> Image.Image:
        """Indexed, in the colours of the classes, so that neither the index nor the colour means another class."""
        palette = np.zeros((256, 3), np.uint8)
        spare = (color for color in map(default_color, range(len(self.colors), 256)) if color not in self.given)
        for number, color in enumerate(self.colors):
            palette[number] = color if self.given.get(color, number) == number else next(spare)
        palette[IGNORE] = (0, 0, 0) if UNLABELLED in self.given else UNLABELLED
        picture = Image.fromarray(mask)
        picture.putpalette(palette.tobytes())
        return picture

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time, of all processes. The kernel frees the folder when its holder dies; some file systems
        (NFS) lock no folder, where two tabs of one page still wait for each other."""
        with self.lock, held(os.open(self.root, os.O_RDONLY)):
            yield

    def is_labelled(self, name: str) -> bool:
        try:
            return self._file(name).is_file()
        except ValueError:
            return True

    def done(self) -> list[str]:
        """Ids of the images that are done, in the order of the file."""
        with contextlib.suppress(FileNotFoundError):
            return [line for line in (self.root / "done.txt").read_text(encoding="utf-8").split("\n") if line]
        return []

    def set_done(self, name: str, done: bool) -> None:
        """Raises KeyError for an unknown id."""
        self.images[name]
        with self._alone():
            names = [one for one in self.done() if one != name] + [name] * done
            write_text(self.root / "done.txt", "".join(f"{one}\n" for one in names))


def write_classes(root: Path, names: Sequence[str]) -> None:
    """Write `classes.txt`, or find that it says the same.

    Raises:
        ValueError: names that a list of classes cannot hold, or another list is there.
    """
    path = class_file(root)
    if path.is_file():
        known = [one.name for one in read_classes(path).classes]
        if known != [*names]:
            raise ValueError(f"{path} has the classes {','.join(known)}: leave --classes out, or change the file")
        return
    with written_whole(path) as scratch:
        scratch.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        try:
            read = [one.name for one in read_classes(scratch).classes]
        except ValueError as error:
            raise ValueError(str(error).replace(str(scratch), "--classes")) from error
        if read != [*names]:
            raise ValueError(f"--classes {','.join(names)} would be read as {','.join(read)}: choose plainer names")


def to_runs(mask: Array) -> list[int]:
    """A mask (H, W) row by row as value, length, value, length and so on."""
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(np.append(starts, flat.size))
    return [int(number) for number in np.stack([flat[starts].astype(np.int64), lengths], 1).ravel()]


def from_runs(runs: Any, size: tuple[int, int]) -> Array:
    """The mask uint8 (H, W) of runs that anybody may have sent. Raises ValueError if they are none of that size."""
    wrong = ValueError(f"not the runs of a mask of {size[0]} x {size[1]} pixels")
    if not isinstance(runs, list) or len(runs) % 2 or not all(type(number) is int for number in runs):
        raise wrong
    if not all(0 <= value <= 255 for value in runs[::2]) or not all(length > 0 for length in runs[1::2]):
        raise wrong
    if sum(runs[1::2]) != size[0] * size[1]:  # before any memory is taken
        raise wrong
    return np.repeat(np.array(runs[::2], np.uint8), runs[1::2]).reshape(size)
