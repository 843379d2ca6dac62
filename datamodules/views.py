"""What data sets with depth share: views with cameras and poses, boxes, and whether the poses agree with the depth."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from torch import Tensor

from common.ops.geometry import Intrinsics, Tolerance, agreement, exact_tolerance, sensor_tolerance

TOLERANCES: dict[str, Tolerance] = {"exact": exact_tolerance, "sensor": sensor_tolerance}
LEAST = 0.5  # share of pixels on which depth and poses of a group must agree [ours]
PAIRS = 24  # of neighbouring views of a group that are looked at


class View(NamedTuple):
    """Where an image was taken: its scene (a room), the group of views whose poses have one world, camera, and pose
    world to camera (4, 4) in metres. Without a pose there is no group."""

    scene: str
    group: str | None
    camera: Intrinsics
    pose: Tensor | None


class Views:
    """A data set whose images have depth. It sets `views`, and `boxed` of `SegmentationDataModule`."""

    views: Mapping[str, View]
    sensor: Literal["exact", "sensor"] = "exact"  # how far depth and poses can be trusted

    def depth(self, name: str) -> Tensor:
        """Depth of an image in metres, (H, W) float64, 0 where it was not measured."""
        raise NotImplementedError

    def knows_sequences(self) -> bool:
        return True

    def sequence(self, name: str) -> str:
        """The room that an image was taken in."""
        return self.views[name].scene

    def groups(self, names: Collection[str]) -> dict[str, list[str]]:
        """The views of each group with a pose, in order of name."""
        found: dict[str, list[str]] = {}
        for name in sorted(names):
            if (group := self.views[name].group) is not None:
                found.setdefault(group, []).append(name)
        return found

    def agreement(self, group: str, names: list[str]) -> float | None:
        """Share of the pixels of neighbouring views of a group whose depth agrees after the poses have carried it over,
        of those that the other view does not hide; None where no two views overlap.

        Raises:
            ValueError: it is below a half: the poses mean something else.
        """
        near = counted = 0
        for one, other in itertools.islice(itertools.pairwise(names), PAIRS):
            here, there = self.views[one], self.views[other]
            assert here.pose is not None
            assert there.pose is not None
            depths, poses = (self.depth(one), self.depth(other)), (here.pose, there.pose)
            found = agreement(*depths, here.camera, there.camera, poses, TOLERANCES[self.sensor])
            near, counted = near + found[0], counted + found[1]
        if not counted:
            return None
        if near < LEAST * counted:
            raise ValueError(
                f"group {group}: carried from view to view by their poses, only {near / counted:.0%} of the depth "
                "agrees: are the poses camera to world (give their inverse), or in other units or axes than metres, x "
                "right, y down, z forward? Or is the depth the length of rays (depth_kind)?"
            )
        return near / counted
