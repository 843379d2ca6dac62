"""Cityscapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.base import SegmentationDataModule
from datamodules.files import find_images, read_mask
from datamodules.splits import hold_out

# labelIds run to 33; these are the 19 that are evaluated, in the order of their train ids.
EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
TRAIN_IDS = np.full(256, IGNORE, np.uint8)
TRAIN_IDS[list(EVALUATED)] = np.arange(len(EVALUATED))


class Cityscapes(SegmentationDataModule):
    """Cityscapes, 19 classes, fine annotations (Cordts et al., CVPR 2016).

    Layout: `leftImg8bit/{train,val}/CITY/X_leftImg8bit.png` and `gtFine/{train,val}/CITY/X_gtFine_labelTrainIds.png`,
    or `..._labelIds.png` where there is no such file: then the 19 evaluated classes are mapped to their train ids and
    all others are 255, no label. An image's id is `X_leftImg8bit`, as in published lists; X begins with the city.

    Splits: the official test set has no public labels, so the official val (500) is `test`. `val` is ours: every fifth
    of the sorted official training images (2,975), which leaves less for training than in published work. Images of
    `supervision.list_file` are not held out: published lists work as they are.

    Args:
        root: folder that holds `leftImg8bit/` and `gtFine/`. Both are at cityscapes-dataset.com, which asks for a
            login: leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip.
        official_val: as published codes: see `datamodules.splits.hold_out`.
        kwargs: see `datamodules.base.SegmentationDataModule`.

    Raises:
        FileNotFoundError: one of these folders is missing.
        ValueError: an image without a mask.
    """

    class_names = (
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
        *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    )
    colors = (
        *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153)),
        *((250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0)),
        *((0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
    )

    def __init__(self, root: str, official_val: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        train, test = self._files("leftImg8bit", "train"), self._files("leftImg8bit", "val")
        self.images = train | test
        labels = self._files("gtFine", "train") | self._files("gtFine", "val")
        self.masks: dict[str, Path] = {}
        for name in self.images:
            stem = name.removesuffix("_leftImg8bit") + "_gtFine_label"
            mask = labels.get(f"{stem}TrainIds") or labels.get(f"{stem}Ids")
            if mask is None:
                raise ValueError(f"{self.root / 'gtFine'} has neither {stem}TrainIds.png nor {stem}Ids.png")
            self.masks[name] = mask
        self.splits = hold_out(train, test, keep=self.supervision.listed(), official=official_val)

    def _files(self, kind: str, part: str) -> dict[str, Path]:
        folder = self.root / kind / part
        if not folder.is_dir():
            raise FileNotFoundError(
                f"folder {folder} does not exist: unpack {kind}_trainvaltest.zip of cityscapes-dataset.com (it asks "
                f"for a login) into {self.root}"
            )
        cities = [city for city in sorted(folder.iterdir()) if city.is_dir()]
        return {name: path for city in cities for name, path in find_images(city).items()}

    def sequence(self, name: str) -> str:
        """The city: images are not consecutive frames, but of the same streets."""
        return name.split("_")[0]

    def mask(self, name: str) -> Array:
        path = self.masks[name]
        if path.stem.endswith("TrainIds"):
            return read_mask(path, self.num_classes, None)
        return TRAIN_IDS[read_mask(path, 34, None)]
