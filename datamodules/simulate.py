"""Weak annotations simulated from a dense mask: pixels, clicks, scribbles, boxes.

uint8 (H, W) in and out, 255 = no label. Nothing here looks at anything but one mask and one stream of random numbers.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.draw import disk
from skimage.graph import MCP
from skimage.morphology import skeletonize

from common.ops.array import Array
from common.ops.batch import IGNORE

EIGHT = np.ones((3, 3), bool)
SMALLEST = 9  # pixels; an annotator overlooks a smaller component unless its class has no other


def components(mask: Array) -> list[tuple[int, Array]]:
    """Class id and region (H, W) bool of each connected component (8 neighbours), by class, then in reading order.

    Components under `SMALLEST` pixels are left out where their class has a larger one.
    """
    found: list[tuple[int, Array]] = []
    for label in np.unique(mask[mask != IGNORE]).tolist():
        numbered, count = ndimage.label(mask == label, structure=EIGHT)
        sizes = np.bincount(numbered.reshape(-1), minlength=count + 1)[1:]
        floor = min(SMALLEST, int(sizes.max()))
        found += [(label, numbered == number) for number in range(1, count + 1) if sizes[number - 1] >= floor]
    return found


def draw_pixels(mask: Array, fraction: float, rng: np.random.Generator) -> Array:
    """A share of the labelled pixels: one pixel of each class present, then pixels drawn uniformly from the rest until
    the share is reached (more only if the classes alone exceed it)."""
    order = _shuffled(mask, rng)
    first = _first_of_each_class(mask, order, 1)
    count = round(fraction * order.size)
    rest = order[~np.isin(order, first)]
    return _keep(mask, np.concatenate([first, rest[: max(0, count - first.size)]]))


def draw_points(mask: Array, per_class: int, rng: np.random.Generator) -> Array:
    """`per_class` pixels of each class present, uniform inside the class; fewer where it is smaller."""
    return _keep(mask, _first_of_each_class(mask, _shuffled(mask, rng), per_class))


def draw_clicks(mask: Array, rng: np.random.Generator) -> Array:
    """One pixel inside each connected component, drawn from its inner half: people click well inside an object."""
    drawn = np.full_like(mask, IGNORE)
    for label, region in components(mask):
        depth = _depth(region)
        inner = np.flatnonzero(depth >= np.median(depth[region]))
        drawn.reshape(-1)[rng.choice(inner)] = label
    return drawn


def draw_scribbles(mask: Array, length: float, width: int, rng: np.random.Generator) -> Array:
    """One stroke in each connected component, along its skeleton.

    The stroke is the longest path through the skeleton of the component, cut to a random stretch of the share
    `length`, and drawn `width` pixels wide, but never beyond the component.

    [ours]: how people scribble in a data set is known only by its files; this is a stand-in with two knobs.
    """
    drawn = np.full_like(mask, IGNORE)
    for label, region in components(mask):
        path = _longest_path(skeletonize(np.pad(region, 1))[1:-1, 1:-1])
        count = max(1, round(length * len(path)))
        start = int(rng.integers(0, len(path) - count + 1))
        stroke = np.zeros(mask.shape, bool)
        for row, column in path[start : start + count]:
            stroke[disk((row, column), width / 2, shape=mask.shape)] = True
        stroke[tuple(np.array(path[start : start + count]).T)] = True
        drawn[stroke & region] = label
    return drawn


def draw_boxes(mask: Array, background: int) -> Array:
    """What the bounding boxes of all components say of single pixels: outside every box is background, inside is not
    known (255). Void pixels stay 255."""
    drawn = np.where(mask == IGNORE, IGNORE, background).astype(np.uint8)
    for label, region in components(mask):
        if label != background:
            rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
            drawn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = IGNORE
    return drawn


def _shuffled(mask: Array, rng: np.random.Generator) -> Array:
    labelled = np.flatnonzero(mask != IGNORE)
    return labelled[rng.permutation(labelled.size)]


def _first_of_each_class(mask: Array, order: Array, count: int) -> Array:
    labels = mask.reshape(-1)[order]
    return np.concatenate([order[labels == label][:count] for label in np.unique(labels)] or [order])


def _keep(mask: Array, pixels: Array) -> Array:
    drawn = np.full_like(mask, IGNORE)
    drawn.reshape(-1)[pixels] = mask.reshape(-1)[pixels]
    return drawn


def _depth(region: Array) -> Array:
    """Distance to the region's border; beyond the image there is none of it."""
    return ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]


def _longest_path(skeleton: Array) -> list[tuple[int, int]]:
    """Pixels of the (about) longest shortest path in a connected skeleton: from any pixel to the farthest, from there
    to the farthest again (exact on a tree)."""
    costs = np.where(skeleton, 1.0, -1.0)  # MCP does not enter negative costs
    start = tuple(int(i) for i in np.argwhere(skeleton)[0])
    for _ in range(2):
        graph = MCP(costs, fully_connected=True)
        reached, _ = graph.find_costs([start])
        reached = np.where(np.isfinite(reached) & skeleton, reached, -1)
        end = tuple(int(i) for i in np.unravel_index(int(reached.argmax()), reached.shape))
        path = [(int(row), int(column)) for row, column in graph.traceback(end)]
        start = end
    return path
