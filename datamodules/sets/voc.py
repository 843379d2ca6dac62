"""PASCAL VOC 2012."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from common.ops.array import Array
from datamodules.base import SegmentationDataModule
from datamodules.files import default_color, find_images, near
from datamodules.pascal_download import VOC, download
from datamodules.pascal_weak import clicks_mask, read_clicks, read_scribbles
from datamodules.splits import check_disjoint, hold_out, missing, read_list, read_lists

Masks = Literal["SegmentationClassAug", "SegmentationClass"]


class PascalVOC(SegmentationDataModule):
    """PASCAL VOC 2012, 21 classes (Everingham et al., IJCV 2010), with the masks of SBD (Hariharan et al., ICCV 2011).

    Layout: `VOCdevkit/VOC2012/` with `JPEGImages/ID.jpg`, `SegmentationClass/ID.png`, `SegmentationClassAug/ID.png` and
    `ImageSets/Segmentation/{train,val}.txt`. 255 is the void along the objects. A training image without a mask is
    unlabelled.

    Splits: the official test set has no public labels, so the official val (1,449) is `test`. `val` is ours: every
    fifth of the sorted training images, which leaves less for training than in published work. Training images are
    those of `train.txt` (1,464) for `SegmentationClass`, and all with a mask that are not in `val.txt` (10,582) for
    `SegmentationClassAug`. Images of `supervision.list_file` are not held out: published lists work as they are.

    Args:
        root: folder that holds `VOCdevkit/`. The paths below are relative to the working directory or, where nothing
            is there, to this folder.
        masks: folder of the masks.
        splits: folder with lists of one's own (not the official protocol): `train.txt` and `test.txt`, perhaps
            `val.txt`, or with a number, `train1000.txt`.
        official_val: as published codes: see `datamodules.splits.hold_out`. A `val.txt` in `splits` comes first.
        scribbles: folder with real scribbles, `ID.xml` (ScribbleSup) or `ID.png`.
        clicks: JSON file with real clicks (What's the Point).
        download: get what `root` lacks, several GB. For many machines, call `PascalVOC.prepare` once before.
        kwargs: see `datamodules.base.SegmentationDataModule`.

    Raises:
        FileNotFoundError: a folder, a list or a listed image is missing.
        ValueError: a val or test image without a mask, an image in two lists, or no training image.
    """

    class_names = (
        *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
        *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    )
    colors = tuple(default_color(number) for number in range(21))
    background = 0

    def __init__(
        self,
        root: str,
        masks: Masks = "SegmentationClassAug",
        splits: str | None = None,
        official_val: bool = False,
        scribbles: str | None = None,
        clicks: str | None = None,
        download: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.kind = Path(root).expanduser(), masks
        if download:
            self.prepare(self.root, masks)
        self.images = find_images(self.root / VOC / "JPEGImages")
        self.masks = find_images(self.root / VOC / masks)
        self.scribbles = near(self.root, scribbles) if scribbles else None
        if self.scribbles and not self.scribbles.is_dir():
            raise FileNotFoundError(f"folder {self.scribbles} does not exist: check data.scribbles")
        self.click_file = near(self.root, clicks) if clicks else None
        self.clicks = read_clicks(self.click_file, self.num_classes) if self.click_file else None
        self.splits = read_lists(near(self.root, splits)) if splits else self._official()
        check_disjoint(self.splits)
        if "val" not in self.splits:
            train, test = self.splits["train"], self.splits["test"]
            self.splits = hold_out(train, test, keep=self.supervision.listed(), official=official_val)
        for split, names in self.splits.items():
            if lost := missing(names, self.images):
                raise FileNotFoundError(f"{self.root / VOC / 'JPEGImages'} has no image of {lost}, of {split}: add it")
            if split != "train" and (lost := missing(names, self.masks)):
                raise ValueError(f"{self.root / VOC / masks} has no mask of {lost}, of {split}: add it")

    def _official(self) -> dict[str, list[str]]:
        lists = self.root / VOC / "ImageSets" / "Segmentation"
        test = read_list(lists / "val.txt")
        fine = self.kind == "SegmentationClass"
        train = read_list(lists / "train.txt") if fine else list(self.masks.keys() - {*test})
        if not train:
            raise ValueError(f"{self.root / VOC / self.kind} has the official val images alone: give data.splits")
        return {"train": train, "test": test}

    prepare = staticmethod(download)

    def sources(self) -> dict[str, Mapping[str, Path]]:
        drawn = {path.name: path for path in self.scribbles.iterdir()} if self.scribbles else {}
        clicks = {self.click_file.name: self.click_file} if self.click_file else {}
        return {**super().sources(), "scribbles": drawn, "clicks": clicks}

    def annotation(self, name: str, kind: Literal["scribbles", "points"]) -> Array | None:
        """What people drew on an image: uint8 (H, W), class id or 255; None where nobody drew.

        Raises:
            ValueError: data.scribbles or data.clicks is not given.
        """
        size = self.image(name).shape[0], self.image(name).shape[1]
        if kind == "points":
            if self.clicks is None:
                raise ValueError("real points need the file of the clicks: give data.clicks")
            return clicks_mask(self.clicks[name], size) if name in self.clicks else None
        if self.scribbles is None:
            raise ValueError("real scribbles need their folder: give data.scribbles")
        return read_scribbles(self.scribbles, name, size, self.class_names)
