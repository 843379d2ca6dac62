"""ACDC, slices of cardiac MRI."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from common.ops.array import Array
from datamodules.base import SegmentationDataModule
from datamodules.files import find_images, read_mask
from datamodules.splits import SPLITS, check_disjoint, missing, read_list

PATIENT = re.compile(r"patient\d+")
VOLUME = re.compile(r"patient\d+_frame\d+")


class ACDC(SegmentationDataModule):
    """ACDC, slices of cardiac MRI at the end of diastole and systole, 4 classes (Bernard et al., TMI 2018), with the
    scribbles that experts drew (Valvano et al., TMI 2021).

    Layout: `images/ID.png` (grey, 8 bits), `masks/ID.png` (0..3), `scribbles/ID.png` (0..3, 255 elsewhere; the training
    images alone need one) and the lists `train.txt`, `val.txt`, `test.txt`, where an id begins with patient and frame,
    `patient001_frame01_slice_3`. Lists are of the user: a patient is in one of them only.

    Images of a patient are a sequence (`supervision.by_sequence`), those of a frame a volume, by which scores of groups
    are measured.

    Args:
        root: folder that holds these.
        kwargs: see `datamodules.base.SegmentationDataModule`. `supervision: {kind: scribbles, real: true}` takes the
            experts' scribbles.

    Raises:
        FileNotFoundError: a folder, a list, or a listed image, mask or scribble is missing.
        ValueError: an id without patient and frame, or a patient in two lists.
    """

    class_names = ("background", "RV", "myocardium", "LV")
    colors = ((0, 0, 0), (230, 85, 75), (90, 190, 110), (80, 130, 230))
    background = 0
    own_splits = True

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.splits = {split: read_list(self.root / f"{split}.txt") for split in SPLITS}
        check_disjoint(self.splits)
        self.images, self.masks = (self._files(folder, SPLITS) for folder in ("images", "masks"))
        real = self.supervision.real
        self.scribbles = self._files("scribbles", ("train",)) if real else {}
        for name in self.images:
            if not VOLUME.match(name):
                raise ValueError(f"'{name}' does not begin with patient and frame, as patient001_frame01: rename it")
        patients = {split: {self.sequence(name) for name in names} for split, names in self.splits.items()}
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            if both := sorted(patients[one] & patients[other]):
                raise ValueError(f"{', '.join(both[:3])} has slices in {one}.txt and {other}.txt: keep one of them")

    def _files(self, folder: str, splits: tuple[str, ...]) -> dict[str, Path]:
        found = find_images(self.root / folder)
        names = [name for split in splits for name in self.splits[split]]
        if lost := missing(names, found):
            raise FileNotFoundError(f"{self.root / folder} has no picture of {lost}: add it, or take it off the lists")
        return {name: found[name] for name in names}

    def sequence(self, name: str) -> str:
        return PATIENT.match(name)[0]  # type: ignore[index]

    def knows_sequences(self) -> bool:
        return True

    def scored_with(self, name: str) -> str:
        return VOLUME.match(name)[0]  # type: ignore[index]

    def annotation(self, name: str, kind: Literal["points", "scribbles"]) -> Array | None:
        if kind != "scribbles":
            return super().annotation(name, kind)
        return read_mask(self.scribbles[name], self.num_classes, None)

    def sources(self) -> dict[str, Mapping[str, Path]]:
        return {**super().sources(), "scribbles": self.scribbles}
