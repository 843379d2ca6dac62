"""Synthetic scenes of two textures."""

from __future__ import annotations

from typing import Any

from datamodules.base import SegmentationDataModule
from datamodules.scenes import TEXTURES, Scenes, draw_textures, number_scenes


class Textures(Scenes, SegmentationDataModule):
    """Synthetic scenes of two textures of equal colours, stripes across and down; no files, the same on every machine.

    Both are the same stripes, turned by about a quarter: the same two tones in the same shares, new ones in each scene,
    also in means over small squares. So no colour tells the classes apart and their border is no edge: a kernel over
    colour cannot see it, one over learned features can.

    Args:
        train: number of training scenes.
        val: number of validation scenes.
        test: number of test scenes.
        side: height and width of a scene in pixels.
        kwargs: see `datamodules.base.SegmentationDataModule`.
    """

    class_names = TEXTURES
    colors = ((70, 130, 220), (245, 190, 60))
    draw = staticmethod(draw_textures)

    def __init__(self, train: int = 200, val: int = 50, test: int = 100, side: int = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.splits, self.side = number_scenes(train, val, test), side
