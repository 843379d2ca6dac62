"""Stanford Background."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_warn

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.base import SegmentationDataModule
from datamodules.files import find_images
from datamodules.splits import hold_out, in_hash_order, missing


class StanfordBackground(SegmentationDataModule):
    """Stanford Background, 8 classes, 715 images (Gould et al., ICCV 2009).

    Layout of the authors' `iccv09Data`: `images/ID.jpg` and `labels/ID.regions.txt`, the matrix of the class ids, a row
    a line. A negative id is unknown and becomes 255.

    There is no official split; published work draws 572 / 143 five times. Ours is one such draw: in the order of a hash
    of the name every fifth image is test (143), and of the sorted others every fifth is val (458 / 114).
    `fold` moves the test set by one, so that 0 to 4 are the five folds of a cross-validation.

    Args:
        root: the folder `iccv09Data`.
        fold: 0 to 4, which fifth of the images is the test set.
        kwargs: see `datamodules.base.SegmentationDataModule`.

    Raises:
        FileNotFoundError: `root` has no such folders.
        ValueError: an image without labels, labels that are no matrix or no class ids, or a wrong fold.
    """

    class_names = ("sky", "tree", "road", "grass", "water", "building", "mountain", "foreground")
    colors = (
        *((128, 180, 230), (40, 110, 50), (110, 110, 120), (120, 200, 80)),
        *((30, 80, 200), (170, 60, 50), (140, 110, 80), (240, 170, 40)),
    )

    def __init__(self, root: str, fold: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= fold < 5:
            raise ValueError(f"data.fold must be 0 to 4, got {fold}")
        self.root = Path(root).expanduser()
        self.images = find_images(self.root / "images")
        labels = self.root / "labels"
        self.masks = {path.name.removesuffix(".regions.txt"): path for path in labels.glob("*.regions.txt")}
        if lost := missing(self.images, self.masks):
            raise ValueError(f"{labels} has no ID.regions.txt of {lost}: unpack iccv09Data again")
        if len(self.images) != 715:
            rank_zero_warn(f"{self.root / 'images'} has {len(self.images)} images, not 715: the splits are others")
        self.splits = hold_out(self.images, in_hash_order(self.images)[fold::5])

    def mask(self, name: str) -> Array:
        path = self.masks[name]
        try:
            rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
            labels = np.array(rows, np.int64)
        except ValueError as error:
            raise ValueError(f"{path} is not a matrix of integers ({error}): replace it") from error
        if labels.ndim != 2 or labels.max() >= self.num_classes:
            raise ValueError(f"{path} must be a matrix with values up to {self.num_classes - 1}: replace it")
        return np.where(labels < 0, IGNORE, labels).astype(np.uint8)
