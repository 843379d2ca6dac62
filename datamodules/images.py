"""What a loader's processes do: read an image and its labels, and pad them to one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.cache import Small
from datamodules.decode import read_drawn
from datamodules.samplers import Draw
from datamodules.superpixels import Superpixels
from datamodules.transforms import Box, cut_box, cut_span, draw_uniform, fit_size, pad_to


class Cut(NamedTuple):
    """What `random_crop` will read of an image at its own size: drawn from `seed` and the sample's key, as there."""

    seed: int
    crop: tuple[int, int]
    scale: tuple[float, float]


class TrainingImages(Dataset[dict[str, Any]]):
    """Training images padded to one size, with their drawn annotation (none: everything 255). Indexed by `Draw`.

    Args:
        names: of the list.
        read: gives an image.
        box: the size that images fit; None: of images at their own size the part is given that is cropped.
        annotations: folder of the drawn annotation.
        cut: that part, where `box` is None.
        superpixels: gives those of an image; None: none are needed.
        tags: bool (N, K), the classes that occur in each image, where these are a label.
    """

    def __init__(
        self,
        names: Sequence[str],
        read: Callable[[str], Small],
        box: Box,
        annotations: Path | None,
        cut: Cut | None = None,
        superpixels: Superpixels | None = None,
        tags: Array | None = None,
    ) -> None:
        self.names, self.read, self.box, self.annotations, self.cut = names, read, box, annotations, cut
        self.superpixels, self.tags = superpixels, tags

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        name = self.names[draw.image]
        small, size = self.read(name)
        extent = fit_size(size, self.box)
        mask = np.full(extent, IGNORE, np.uint8)
        if self.annotations is not None:
            mask = read_drawn(self.annotations / f"{name}.png")
        if mask.shape != extent:
            raise ValueError(f"image '{name}' is {size}, its annotation {mask.shape}: delete {self.annotations}")
        key, box, part = torch.tensor([draw.epoch, draw.position]), self.box or extent, {}
        if self.cut is not None:
            box = cut_box(self.cut.crop, self.cut.scale)
            rows, columns = cut_span(draw_uniform(self.cut.seed, key[None])[0], extent, self.cut.crop, self.cut.scale)
            small, mask = small[:, rows, columns], mask[rows, columns]
            part = {"origin": torch.tensor([rows.start, columns.start])}
        image = torch.zeros(len(small), *box, dtype=torch.uint8)
        image[:, : small.shape[1], : small.shape[2]] = torch.from_numpy(small)
        if self.superpixels is not None:
            found = pad_to(self.superpixels.get(name, small), box, 0)
            part["superpixels"] = torch.from_numpy(found.astype(np.int32))
        tags = {} if self.tags is None else {"tags": torch.from_numpy(self.tags[draw.image])}
        return {
            "image": image,
            "mask": torch.from_numpy(pad_to(mask, box, IGNORE).copy()),
            "extent": torch.tensor(extent),
            "key": key,
            "name": name,
            "size": torch.tensor(size),
            **part,
            **tags,
        }


class WholeImages(Dataset[dict[str, Any]]):
    """Evaluation images, see `whole_image`; with their `tags`, if these are given."""

    def __init__(
        self,
        names: Sequence[str],
        image: Callable[[str], Small],
        mask: Callable[[str], Array | None],
        tags: Callable[[str, Array | None], Array] | None = None,
    ) -> None:
        self.names, self.read, self.read_mask, self.tags = names, image, mask, tags

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        mask = self.read_mask(name)
        tags = {} if self.tags is None else {"tags": torch.from_numpy(self.tags(name, mask))}
        return {**whole_image(name, self.read(name), mask), **tags}


def whole_image(name: str, small: Small, mask: Array | None) -> dict[str, Any]:
    """An evaluation sample: the image at the training size, uint8 (C, h, w), and its mask (H, W), 255 if none."""
    check_sizes(name, small.size, mask)
    mask = np.full(small.size, IGNORE, np.uint8) if mask is None else mask.copy()
    return {
        "image": torch.from_numpy(small.image),
        "mask": torch.from_numpy(mask),
        "name": name,
        "size": torch.tensor(small.size),
    }


def check_sizes(name: str, size: Sequence[int], mask: Array | None) -> None:
    """Raise ValueError if an image (H, W, ...) and its mask differ in size."""
    if mask is not None and mask.shape != tuple(size[:2]):
        raise ValueError(
            f"image '{name}' is {size[0]} x {size[1]} pixels but its mask {mask.shape[0]} x "
            f"{mask.shape[1]}: replace one of them"
        )
