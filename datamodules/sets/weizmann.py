"""Weizmann horses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.base import SegmentationDataModule
from datamodules.files import find_images
from datamodules.splits import hold_out, missing


class WeizmannHorse(SegmentationDataModule):
    """Weizmann horses, 2 classes, 327 usable images (Borenstein & Ullman, ECCV 2002).

    There is no official split. Ours: of the sorted usable images the first 200 are for training, every fifth of which
    is validation (160/40), the last 127 are the test set. `horse318` is black in the source and is left out.

    Args:
        root: folder that holds `rgb/` and `figure_ground/` of the authors' `weizmann_horse_db` (or a copy with
            re-encoded images: files are found by stem).
        kwargs: see `datamodules.base.SegmentationDataModule`.

    Raises:
        FileNotFoundError: `root` has no such folders.
        ValueError: an image without a mask, or not the 327 images.
    """

    class_names = ("background", "horse")
    colors = ((60, 60, 60), (230, 140, 40))
    background = 0

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.images = {name: path for name, path in find_images(self.root / "rgb").items() if name != "horse318"}
        self.masks = find_images(self.root / "figure_ground")
        if lost := missing(self.images, self.masks):
            raise ValueError(f"{self.root / 'figure_ground'} has no mask of {lost}: unpack weizmann_horse_db again")
        if len(self.images) != 327:
            raise ValueError(
                f"{self.root / 'rgb'} has {len(self.images)} usable images, not 327, so that the split would differ: "
                "unpack weizmann_horse_db again"
            )
        every = sorted(self.images)
        self.splits = hold_out(every[:200], every[200:])
