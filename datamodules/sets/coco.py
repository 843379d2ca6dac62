"""COCO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.ops.array import Array
from datamodules.base import SegmentationDataModule
from datamodules.files import default_color, find_images, read_mask
from datamodules.splits import hold_out, missing

# Values of the pixel maps are official ids less 1: things below 91, of which these are no class, then stuff.
UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82)
THINGS = [value for value in range(90) if value not in UNUSED]
CLASS_IDS = np.zeros(256, np.uint8)
CLASS_IDS[THINGS] = np.arange(1, len(THINGS) + 1)


class COCO(SegmentationDataModule):
    """COCO 2017, the 80 things and a background, as in tables of few labels (Lin et al., ECCV 2014).

    Layout: `{train2017,val2017}/ID.jpg` and `stuffthingmaps/{train2017,val2017}/ID.png`, the pixel maps of COCO-Stuff
    (Caesar et al., CVPR 2018). Whatever is no thing in a map, stuff and unlabelled pixels (255) alike, is background.
    Published codes draw their masks from the polygons themselves; where objects overlap, these can differ.

    Splits: the official test set has no public labels, so the official val (5,000) is `test`. `val` is ours: every
    fifth of the sorted official training images (118,287). Images of `supervision.list_file` are not held out.

    Args:
        root: folder with train2017.zip and val2017.zip of images.cocodataset.org/zips unpacked, and in `stuffthingmaps`
            stuffthingmaps_trainval2017.zip of github.com/nightrome/cocostuff.
        official_val: as published codes: see `datamodules.splits.hold_out`.
        kwargs: see `datamodules.base.SegmentationDataModule`.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: an image without a map.
    """

    class_names = (
        *("background", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
        *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse"),
        *("sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase"),
        *("frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard"),
        *("surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana"),
        *("apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
        *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard"),
        *("cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors"),
        *("teddy bear", "hair drier", "toothbrush"),
    )
    colors = tuple(default_color(number) for number in range(81))
    background = 0

    def __init__(self, root: str, official_val: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        train, test = (find_images(self.root / f"{part}2017") for part in ("train", "val"))
        self.images = dict(train.items()) | dict(test.items())
        maps = self.root / "stuffthingmaps"
        masks = (find_images(maps / f"{part}2017") for part in ("train", "val"))
        self.masks = {name: path for part in masks for name, path in part.items()}
        if lost := missing(self.images, self.masks):
            raise ValueError(f"{maps} has no map of {lost}: unpack stuffthingmaps_trainval2017.zip anew")
        self.splits = hold_out(train, test, keep=self.supervision.listed(), official=official_val)

    def mask(self, name: str) -> Array:
        return CLASS_IDS[read_mask(self.masks[name], 182, None)]
