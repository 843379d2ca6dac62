"""Synthetic slices of a heart."""

from __future__ import annotations

from typing import Any

from datamodules.base import SegmentationDataModule
from datamodules.scenes import CHAMBERS, Scenes, draw_heart, number_scenes


class Hearts(Scenes, SegmentationDataModule):
    """Synthetic slices in the manner of cardiac MRI, 4 classes; no files, the same on every machine.

    Two bright chambers, one of them in a dark wall, lie among organs of the same tones, which are background: strokes
    around the heart alone leave open what these are.

    Args:
        train: number of training slices.
        val: number of validation slices.
        test: number of test slices.
        side: height and width of a slice in pixels.
        kwargs: see `datamodules.base.SegmentationDataModule`.
    """

    class_names = CHAMBERS
    colors = ((0, 0, 0), (230, 85, 75), (70, 180, 110), (70, 130, 220))
    background = 0
    draw = staticmethod(draw_heart)

    def __init__(self, train: int = 100, val: int = 50, test: int = 100, side: int = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.splits, self.side = number_scenes(train, val, test), side
