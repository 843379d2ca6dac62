"""Votes of views for points: what boxes in some views say of the same surface in others. Float64, no gradient.

Formulas are ours; of the paper (Sun et al., ACCV 2020, arXiv 2012.00242) the abstract is known: a probability of each
class for each point of a cloud, by the boxes that it projects into.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from common.ops.batch import IGNORE
from common.ops.geometry import (
    Intrinsics,
    Tolerance,
    backproject,
    exact_tolerance,
    ransac_plane,
    visible,
)

Vote = Literal["mean", "veto"]
PRIOR = 0.5  # votes for and against that every point has beforehand
SURE = 0.6  # of a label; less is 255
FILLED = 0.2  # least share of a box that its class keeps
BOXED = 2.0  # weight of a boxed view among predictions
MARGIN = 1.0  # pixels around a box that still belong to it
NEAR, FAR = 0.3, 6.0  # metres within which depth is used
JUMP = 0.05  # metres, per metre of depth: an edge of it


class Voter(NamedTuple):
    """What a view says: `planes` (C, h, w) in [0, 1], of the classes 1..C, at any size; `knows` (C,) which of them it
    was annotated for; its weight."""

    depth: Tensor
    camera: Intrinsics
    pose: Tensor
    planes: Tensor
    knows: Tensor
    weight: float = 1.0


def box_planes(boxes: Sequence[Sequence[float]], camera: Intrinsics, classes: int) -> Tensor:
    """(C, H, W) float64: 1 where a pixel is in any box of a class, its edges and a pixel around it included."""
    planes = torch.zeros(classes, camera.height, camera.width, dtype=torch.float64)
    for x0, y0, x1, y1, label in boxes:
        rows, columns = box_slices((x0, y0, x1, y1), camera, MARGIN)
        planes[int(label) - 1, rows, columns] = 1
    return planes


def box_slices(box: Sequence[float], camera: Intrinsics, margin: float) -> tuple[slice, slice]:
    """Rows and columns of a box [x0, y0, x1, y1] with a margin in pixels, cut at the image."""
    x0, y0, x1, y1 = box[:4]
    rows = slice(max(0, int(np.ceil(y0 - margin))), min(camera.height, int(np.floor(y1 + margin)) + 1))
    return rows, slice(max(0, int(np.ceil(x0 - margin))), min(camera.width, int(np.floor(x1 + margin)) + 1))


class Tally(NamedTuple):
    """Votes for N points and C classes: `inside` and `seen`, sums of weights (N, C); `against` (N, C) bool, whether a
    view sees the point outside of its boxes."""

    inside: Tensor
    seen: Tensor
    against: Tensor


@torch.no_grad()
def tally(
    points: Tensor, voters: Iterable[Voter], tolerance: Tolerance = exact_tolerance, hidden: bool = True
) -> Tally:
    """The votes of views for points (N, 3) of the world, each of those that it sees; without `hidden` of all that are
    in its frame, also behind others."""
    inside = seen = against = torch.zeros(())
    for voter in voters:
        there, rows, columns = visible(points, voter.depth if hidden else None, voter.camera, voter.pose, tolerance)
        height, width = voter.planes.shape[1:]
        at = rows * height // voter.camera.height, columns * width // voter.camera.width
        said = voter.planes.double()[:, at[0], at[1]].T
        counts = there[:, None] * voter.knows.double() * voter.weight
        inside, seen = inside + counts * said, seen + counts
        against = against + (counts > 0) * (said < 0.5)
    if inside.ndim == 0:
        raise ValueError("nobody votes: give at least one view")
    return Tally(inside, seen, against > 0)


def objectness(votes: Tally, vote: Vote = "mean") -> Tensor:
    """`s_c = (inside + 1/2) / (seen + 1)`, (N, C): the mean of the votes and one of 1/2. With `veto` a class is 0 for a
    point that any view sees outside of its boxes, as a visual hull is carved."""
    s = (votes.inside + PRIOR) / (votes.seen + 2 * PRIOR)
    return s.masked_fill(votes.against, 0) if vote == "veto" else s


@torch.no_grad()
def view_votes(
    view: tuple[Tensor, Intrinsics, Tensor],
    voters: Iterable[Voter],
    tolerance: Tolerance = exact_tolerance,
    hidden: bool = True,
) -> Tally:
    """The votes for the pixels of a view (depth, camera, pose), in order of rows; none for those without depth."""
    depth, camera, pose = view
    good = ((depth > NEAR) & (depth < FAR)).reshape(-1)
    points = (backproject(depth, camera).reshape(-1, 3) - pose[:3, 3]) @ pose[:3, :3]
    found = tally(points, voters, tolerance, hidden)
    return Tally(found.inside * good[:, None], found.seen * good[:, None], found.against & good[:, None])


def with_own_boxes(votes: Tally, planes: Tensor, knows: Tensor) -> Tally:
    """The boxes of the view itself, (C, H, W), are one more vote for each of its pixels."""
    own, knows = planes.flatten(1).T, knows.double()
    return Tally(votes.inside + own * knows, votes.seen + knows, votes.against | ((own < 0.5) & (knows > 0)))


def probabilities(s: Tensor, seen: Tensor, shape: tuple[int, int], boxes: Tensor | None = None) -> Tensor:
    """(C + 1, H, W) of objectness s and `seen` (N, C): background `1 - max s`, then the classes, divided by their sum;
    NaN where nobody saw the point. `boxes` (C, H, W), of a boxed view: outside of its boxes a class is 0."""
    known = (seen > 0).any(1)
    if boxes is not None:
        s = s * (boxes.flatten(1).T > 0.5)
    found = torch.cat([1 - s.amax(1, keepdim=True), s], 1)
    found = (found / found.sum(1, keepdim=True)).masked_fill(~known[:, None], torch.nan)
    return found.T.reshape(-1, *shape)


def labels(p: Tensor, s: Tensor | None = None) -> Tensor:
    """(H, W) int64: the most probable of background and classes, 255 where its probability is below 0.6 or unknown.

    Args:
        p: (C + 1, H, W), NaN where nobody knows.
        s: objectness (C, H, W), which the threshold then is on, as classes do not share one probability.
    """
    unknown = p.isnan().any(0)
    score = p if s is None else torch.cat([1 - s.amax(0, keepdim=True), s])
    best, found = score.nan_to_num(0).max(0)
    return found.masked_fill(unknown | (best < SURE), IGNORE)


def keep_boxes_filled(found: Tensor, boxes: Sequence[Sequence[float]], camera: Intrinsics) -> Tensor:
    """Labels (H, W) in which a box that keeps less than a fifth of its pixels for its class says nothing: 255."""
    found = found.clone()
    empty = []
    for box in boxes:
        inside = found[box_slices(box, camera, 0)]
        if inside.numel() and (inside == int(box[4])).double().mean() < FILLED:
            empty.append(box_slices(box, camera, 0))
    for at in empty:
        found[at] = IGNORE
    return found


@torch.no_grad()
def alone(depth: Tensor, camera: Intrinsics, boxes: Sequence[Sequence[float]], classes: int) -> Tensor:
    """Objectness (C, H, W) of a boxed view without a pose, from its own depth [ours].

    Around a box, planes are fitted to the surface (RANSAC, at most three, as of floor and walls). What is in the box
    and on none of them is cut at depth edges, and the largest piece is the object: 0.75, the rest of the box 0.25,
    outside 0. Where there is no depth, or nothing is off the planes, the box stays 0.5.
    """
    s = torch.zeros(classes, camera.height, camera.width, dtype=torch.float64)
    points = backproject(depth, camera)
    good = (depth > NEAR) & (depth < FAR)
    edge = torch.zeros_like(good)
    edge[:, 1:] |= (depth[:, 1:] - depth[:, :-1]).abs() > JUMP * depth[:, 1:]
    edge[1:] |= (depth[1:] - depth[:-1]).abs() > JUMP * depth[1:]
    for box in boxes:
        at = box_slices(box, camera, 0)
        margin = 0.25 * max(box[2] - box[0], box[3] - box[1]) + 2
        ring = torch.zeros_like(good)
        ring[box_slices(box, camera, margin)] = True
        ring[at] = False
        ring &= good
        around, off = points[ring], good[at].clone()
        for number in range(3):
            if len(around) < max(10, 0.2 * int(ring.sum())):
                break
            try:
                normal, offset, near = ransac_plane(around, 0.03, seed=number)
            except ValueError:  # a ring of one row or column: its points are on a line
                break
            off &= (points[at] @ normal - offset).abs() > 0.03
            around = around[~near]
        pieces, count = ndimage.label((off & ~edge[at]).numpy())
        value = torch.full(off.shape, 0.5, dtype=torch.float64)
        if count:
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0
            largest = torch.from_numpy(pieces == int(sizes.argmax()))
            value = torch.where(largest, 0.75, torch.where(good[at], 0.25, 0.5).double())
        label = int(box[4]) - 1
        s[label][at] = torch.maximum(s[label][at], value)
    return s
