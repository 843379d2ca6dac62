"""Pseudo-masks: labels of training images that another run made (`weakseg pseudo`), trained on in place of masks.

The folder holds `ID.png`, class ids and 255 (not sure) at the image's original size, and `pseudo.json`, which says what
made them and for which classes. Like every file from elsewhere it is data: nothing in it names a file to open.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.ops.array import Array
from common.ops.batch import IGNORE
from common.training.files import read_json
from datamodules.decode import decode

ABOUT = "pseudo.json"
OTHERWISE = "or set data.pseudo_masks to null"


class PseudoMasks:
    """A folder of pseudo-masks. It is opened with the first use: who only tests a run does not need it.

    Args:
        folder: of `weakseg pseudo`.
        class_names: of the data, which must be those of the folder.
    """

    def __init__(self, folder: Path, class_names: Sequence[str]) -> None:
        self.folder, self.class_names = folder, class_names

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """What `pseudo.json` says.

        Raises:
            FileNotFoundError, ValueError: there is none, it is broken, or it is of other classes.
        """
        return read_about(self.folder, self.class_names)

    def files(self, names: Collection[str]) -> dict[str, Path]:
        """The file of each of the images.

        Raises:
            FileNotFoundError: one is missing, or what `about` raises.
        """
        assert self.about
        found = {name: self.folder / f"{name}.png" for name in names}
        if lost := sorted(name for name, path in found.items() if not path.is_file()):
            named = ", ".join(f"{name}.png" for name in lost[:4])
            raise FileNotFoundError(
                f"{self.folder} lacks {len(lost)} of the {len(names)} training images' pseudo-masks ({named}"
                f"{', ...' if len(lost) > 4 else ''}): make them with `weakseg pseudo` on these data, {OTHERWISE}"
            )
        return found

    def mask(self, name: str, size: Sequence[int]) -> Array:
        """The pseudo-mask of an image of `size` (height, width), uint8 (H, W), class id or 255.

        Raises:
            ValueError: another size, an id that is no class, or no picture of ids.
        """
        path = self.folder / f"{name}.png"
        picture = decode(path)
        ids = picture.pixels
        if ids.ndim != 2 or ids.dtype != np.uint8 or picture.opacity is not None:
            raise ValueError(f"{path} is a {picture.kind} image: pseudo-masks are indexed or grey PNGs of class ids")
        ids = ids // picture.step
        if ids.shape != tuple(size[:2]):
            raise ValueError(
                f"{path} is {ids.shape[0]} x {ids.shape[1]} pixels, but its image {size[0]} x {size[1]}: make the "
                "pseudo-masks anew, with these images"
            )
        wrong = (ids >= len(self.class_names)) & (ids != IGNORE)
        if wrong.any():
            y, x = np.argwhere(wrong)[0]
            raise ValueError(
                f"{path} holds {ids[y, x]} at row {y}, column {x}, but there are {len(self.class_names)} classes "
                f"(0..{len(self.class_names) - 1}, {IGNORE} = not sure): make the pseudo-masks anew"
            )
        return np.ascontiguousarray(ids)


def read_about(folder: Path, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """The content of a folder's `pseudo.json`.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: it is broken, or of other classes than `class_names`.
    """
    path = folder / ABOUT
    if not path.is_file():
        what = f"folder {folder} does not exist" if not folder.is_dir() else f"{folder} has no {ABOUT}"
        raise FileNotFoundError(
            f"{what}: give data.pseudo_masks a folder of `weakseg pseudo`; masks of your own go into the data set"
        )
    way_out = ": make the pseudo-masks anew with `weakseg pseudo`"
    content = read_json(path, way_out)
    names = content.get("classes")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} is broken (it names no classes){way_out}")
    if class_names is not None and names != [*class_names]:
        raise ValueError(
            f"{path} is of the classes {first_words(names)}, but the data's are {first_words(class_names)}: ids would "
            "mean something else; make the pseudo-masks on these data"
        )
    return content


def first_words(names: Sequence[str]) -> str:
    """A list of classes in a message, in its order."""
    return ", ".join(name[:40] for name in names[:8]) + (f", ... ({len(names)})" if len(names) > 8 else "")
