"""Synthetic scenes: the default data set."""

from __future__ import annotations

from typing import Any

from datamodules.base import SegmentationDataModule
from datamodules.scenes import CLASSES, Scenes, draw_scene, number_scenes


class Synthetic(Scenes, SegmentationDataModule):
    """Synthetic scenes of textured shapes, 6 classes; needs no files, the same on every machine.

    Args:
        train: number of training scenes.
        val: number of validation scenes.
        test: number of test scenes.
        side: height and width of a scene in pixels.
        kwargs: see `datamodules.base.SegmentationDataModule`.
    """

    class_names = CLASSES
    colors = ((0, 0, 0), (230, 85, 75), (70, 130, 220), (245, 190, 60), (70, 180, 110), (170, 95, 200))
    background = 0
    draw = staticmethod(draw_scene)

    def __init__(self, train: int = 200, val: int = 50, test: int = 100, side: int = 96, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if side < 1:
            raise ValueError(f"data.side is a number of pixels, at least 1, got {side}")
        self.splits, self.side = number_scenes(train, val, test), side
