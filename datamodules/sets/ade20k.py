"""ADE20K."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.base import SegmentationDataModule
from datamodules.files import default_color, find_images, read_mask
from datamodules.splits import hold_out, missing
from datamodules.text import read_lines

CLASSES = 150


class ADE20K(SegmentationDataModule):
    """ADE20K as in the scene parsing challenge, 150 classes (Zhou et al., CVPR 2017).

    Layout: `images/{training,validation}/ID.jpg`, `annotations/{training,validation}/ID.png` and `objectInfo150.txt`,
    which names the classes. 0 in a mask is none of them and becomes 255.

    Splits: the official test set has no public labels, so the official validation set (2,000) is `test`. `val` is ours:
    every fifth of the sorted official training images (20,210). Images of `supervision.list_file` are not held out.

    Args:
        root: the folder `ADEChallengeData2016`, of data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip.
        official_val: as published codes: see `datamodules.splits.hold_out`.
        kwargs: see `datamodules.base.SegmentationDataModule`.

    Raises:
        FileNotFoundError: a folder or `objectInfo150.txt` is missing.
        ValueError: an image without a mask, or a list of other than 150 classes.
    """

    colors = tuple(default_color(number) for number in range(1, CLASSES + 1))

    def __init__(self, root: str, official_val: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        train, test = (find_images(self.root / "images" / part) for part in ("training", "validation"))
        self.images = dict(train.items()) | dict(test.items())
        parts = [find_images(self.root / "annotations" / part) for part in ("training", "validation")]
        self.masks = {name: path for part in parts for name, path in part.items()}
        if lost := missing(self.images, self.masks):
            raise ValueError(f"{self.root / 'annotations'} has no mask of {lost}: unpack ADEChallengeData2016.zip anew")
        self.class_names = self._names(self.root / "objectInfo150.txt")
        self.splits = hold_out(train, test, keep=self.supervision.listed(), official=official_val)

    @staticmethod
    def _names(path: Path) -> tuple[str, ...]:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: it is in ADEChallengeData2016.zip, and names the classes")
        rows = [line.split("\t") for line in read_lines(path)[1:] if line.strip()]
        names = tuple(row[-1].split(",")[0].strip() for row in rows)
        if len(names) != CLASSES:
            raise ValueError(f"{path} names {len(names)} classes, not {CLASSES}: replace it by the official one")
        # Two synonyms of `screen` and the like may come out alike: a name stands for one class.
        return tuple(f"{name} {at + 1}" if names.count(name) > 1 else name for at, name in enumerate(names))

    def mask(self, name: str) -> Array:
        mask = read_mask(self.masks[name], CLASSES + 1, None)
        return np.where((mask == 0) | (mask == IGNORE), np.uint8(IGNORE), mask - np.uint8(1))
