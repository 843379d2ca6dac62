"""ACDC, slices of cardiac MRI."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.base import SegmentationDataModule
from datamodules.files import find_images, read_mask
from datamodules.nifti import Volumes
from datamodules.splits import SPLITS, Split, check_disjoint, missing, read_list

PATIENT = re.compile(r"patient\d+")
VOLUME = re.compile(r"patient\d+_frame\d+")
NO_LABEL = 4  # in scribbles as volumes


class ACDC(SegmentationDataModule):
    """ACDC, slices of cardiac MRI with scribbles that experts drew, 4 classes.

    Hearts at the end of diastole and systole (Bernard et al., TMI 2018); scribbles of Valvano et al., TMI 2021.

    Layout of the challenge: `training/patientNNN/` and `testing/patientNNN/` with `patientNNN_frameFF.nii.gz` and
    `patientNNN_frameFF_gt.nii.gz` (their axial slices are the images, `patient001_frame01/003`), and of the scribbles'
    authors `patientNNN_frameFF_scribble.nii.gz` beside them (4: no label). There is no official validation set: it is
    every fifth training patient. Tones are stretched from the first to the 99th percentile of each slice. Distances are
    in millimetres.

    Or slices: `images/ID.png` (grey, 8 bits), `masks/ID.png` (0..3), `scribbles/ID.png` (0..3, 255 elsewhere; only the
    training images need one) and the lists `train.txt`, `val.txt`, `test.txt`, where ids begin with patient and frame,
    `patient001_frame01_slice_3`. A patient is in one of the lists only.

    Images of a patient are a sequence (`supervision.by_sequence`), those of a frame a volume, by which scores of groups
    are measured.

    Args:
        root: folder that holds either.
        kwargs: see `datamodules.base.SegmentationDataModule`. `supervision: {kind: scribbles, real: true}` takes the
            experts' scribbles.

    Raises:
        FileNotFoundError: a folder, a list, or an image's mask or scribble is missing.
        ModuleNotFoundError: volumes need nibabel, and it is not installed.
        ValueError: an id without patient and frame, or a patient in two lists.
    """

    class_names = ("background", "RV", "myocardium", "LV")
    colors = ((0, 0, 0), (230, 85, 75), (90, 190, 110), (80, 130, 230))
    background = 0
    own_splits = True
    value_range: ClassVar[Literal["percentiles"]] = "percentiles"  # of volumes, also those that are predicted

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.volumes: dict[str, Volumes] = {}  # by the id of a slice
        self.labels: dict[tuple[str, str], tuple[Volumes, str]] = {}  # by kind and that: with their own id of it
        if (self.root / "training").is_dir():
            self._read_volumes()
        else:
            self._read_slices()
        for name in self.images:
            if not VOLUME.match(name):
                raise ValueError(f"'{name}' does not begin with patient and frame, as patient001_frame01: rename it")
        patients = {split: {self.sequence(name) for name in names} for split, names in self.splits.items()}
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            if both := sorted(patients[one] & patients[other]):
                raise ValueError(f"{', '.join(both[:3])} has slices in {one}.txt and {other}.txt: keep one of them")

    def _read_slices(self) -> None:
        self.splits = {split: read_list(self.root / f"{split}.txt") for split in SPLITS}
        check_disjoint(self.splits)
        self.images, self.masks = (self._files(folder, SPLITS) for folder in ("images", "masks"))
        self.scribbles = self._files("scribbles", ("train",)) if self.supervision.real else {}

    def _files(self, folder: str, splits: tuple[Split, ...]) -> dict[str, Path]:
        found = find_images(self.root / folder)
        names = [name for split in splits for name in self.splits[split]]
        if lost := missing(names, found):
            raise FileNotFoundError(f"{self.root / folder} has no picture of {lost}: add it, or take it off the lists")
        return {name: found[name] for name in names}

    def _read_volumes(self) -> None:
        self.images, self.masks, self.scribbles = {}, {}, {}
        found: dict[str, list[str]] = {"training": [], "testing": []}
        for part, names in found.items():
            for path in sorted((self.root / part).glob("patient*/patient*_frame??.nii.gz")):
                volume = Volumes(path)
                names += volume.slices
                self.volumes |= dict.fromkeys(volume.slices, volume)
                self.images |= volume.images()
                self.masks |= self._beside(volume, path, "gt")
                if self.supervision.real and part == "training":
                    self.scribbles |= self._beside(volume, path, "scribble")
            if not names:
                raise FileNotFoundError(f"{self.root / part} has no patientNNN/patientNNN_frameFF.nii.gz: unpack it")
        patients = sorted({self.sequence(name) for name in found["training"]})
        held = {*patients[4::5]}
        self.splits = {
            "train": [name for name in found["training"] if self.sequence(name) not in held],
            "val": [name for name in found["training"] if self.sequence(name) in held],
            "test": found["testing"],
        }

    def _beside(self, volume: Volumes, path: Path, kind: str) -> dict[str, Path]:
        """The file of labels of each slice of a volume."""
        file = path.with_name(path.name.replace(".nii.gz", f"_{kind}.nii.gz"))
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: unpack it beside {path.name}")
        labels = Volumes(file)
        if labels.about[file.name[:-7]].size != volume.about[path.name[:-7]].size:
            raise ValueError(f"{file} has another size than {path.name}: replace one of them")
        self.labels |= {(kind, name): (labels, of) for name, of in zip(volume.slices, labels.slices, strict=True)}
        return dict.fromkeys(volume.slices, file)

    def image(self, name: str) -> Array:
        if name not in self.volumes:
            return super().image(name)
        return self.volumes[name].image(name, self.value_range)

    def mask(self, name: str) -> Array | None:
        return super().mask(name) if name not in self.volumes else self._of_volume("gt", name)

    def _of_volume(self, kind: str, name: str) -> Array:
        labels, of = self.labels[kind, name]
        values = labels.whole(of)
        if values.min() < 0 or values.max() > NO_LABEL or (kind == "gt" and values.max() == NO_LABEL):
            raise ValueError(f"{self.masks[name]}: {of} holds {values.min()} to {values.max()}, classes are 0 to 3")
        return np.where(values == NO_LABEL, IGNORE, values).astype(np.uint8)

    def spacing(self, name: str) -> tuple[float, float] | None:
        return self.volumes[name].spacing(name) if name in self.volumes else None

    def sequence(self, name: str) -> str:
        return PATIENT.match(name)[0]  # type: ignore[index]

    def knows_sequences(self) -> bool:
        return True

    def scored_with(self, name: str) -> str:
        return VOLUME.match(name)[0]  # type: ignore[index]

    def annotation(self, name: str, kind: Literal["points", "scribbles"]) -> Array | None:
        if kind != "scribbles":
            return super().annotation(name, kind)
        if name in self.volumes:
            return self._of_volume("scribble", name)
        return read_mask(self.scribbles[name], self.num_classes, None)

    def sources(self) -> dict[str, Mapping[str, Path]]:
        return {**super().sources(), "scribbles": self.scribbles}
