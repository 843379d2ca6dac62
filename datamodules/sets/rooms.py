"""Synthetic rooms, with depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from common.ops.array import Array
from common.ops.geometry import Intrinsics
from datamodules.base import SegmentationDataModule
from datamodules.rooms import CLASSES, SIDE, Rendered, make_room, render
from datamodules.splits import SPLITS
from datamodules.views import View, Views


class Rooms(Views, SegmentationDataModule):
    """Synthetic rooms with boxes, cylinders and tables, 4 classes, seen from all sides with depth; no files.

    Boxes and tables share a colour, so that colour alone does not tell them. Each image comes with depth, pose and the
    bounding boxes of what is visible (`supervision: {kind: boxes, real: true}`). A room's views are one group.

    Args:
        train: number of training rooms.
        val: number of validation rooms.
        test: number of test rooms.
        around: views of a room, on a circle around its middle.
        width: of an image in pixels; its height is three quarters of it.
        noise: of the depth, that of a sensor, or none.
        kwargs: see `datamodules.base.SegmentationDataModule`.
    """

    class_names = CLASSES
    colors = ((60, 60, 60), (230, 85, 75), (70, 130, 220), (245, 190, 60))
    background = 0

    def __init__(
        self,
        train: int = 8,
        val: int = 2,
        test: int = 4,
        around: int = 12,
        width: int = 160,
        noise: Literal["sensor", "none"] = "sensor",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if width % 4 or width < 16 or around < 2:
            raise ValueError(f"data.width is a multiple of 4 and data.around at least 2, got {width} and {around}")
        self.around, self.width, self.noise = around, width, noise
        self.sensor = "sensor" if noise == "sensor" else "exact"
        focal, height = 140.0 * width / SIDE[0], width * SIDE[1] // SIDE[0]
        camera = Intrinsics(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)
        self.splits, self.views = {}, {}
        for split, count in zip(SPLITS, (train, val, test), strict=True):
            rooms = {f"{split}{number:03d}": number for number in range(count)}
            self.splits[split] = [f"{room}_{view:02d}" for room in rooms for view in range(around)]
            for room, number in rooms.items():
                poses = make_room(SPLITS.index(split), number, around).poses
                for view, pose in enumerate(poses):
                    self.views[f"{room}_{view:02d}"] = View(room, room, camera, torch.from_numpy(pose))

    @cached_property
    def boxed(self) -> Mapping[str, Sequence[Sequence[float]]]:  # type: ignore[override]
        return {name: self.rendered(name).boxes for name in self.splits["train"]}

    def rendered(self, name: str) -> Rendered:
        """All that there is of a view."""
        room, view = name.split("_")
        return rendered(SPLITS.index(room[:-3]), int(room[-3:]), self.around, int(view), self.width, self.noise)

    def source(self) -> str:
        return f"{self.around} {self.width} {self.noise}"

    def image(self, name: str) -> Array:
        return self.rendered(name).image

    def mask(self, name: str) -> Array:
        return self.rendered(name).mask

    def depth(self, name: str) -> Tensor:
        return torch.from_numpy(self.rendered(name).depth)


@lru_cache(maxsize=256)
def rendered(seed: int, room: int, around: int, view: int, width: int, noise: str) -> Rendered:
    made = make_room(seed, room, around)
    return render(made, made.poses[view], width, int(noise == "sensor"), (seed, room, view))
