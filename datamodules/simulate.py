"""Weak annotations simulated from a dense mask: pixels, clicks, scribbles, boxes.

uint8 (H, W) in and out, 255 = no label. Nothing here looks at anything but one mask and one stream of random numbers,
and GrabCut at the colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Literal

import numpy as np
from scipy import ndimage
from skimage.draw import disk
from skimage.graph import MCP
from skimage.measure import find_contours
from skimage.morphology import skeletonize

from common.ops.array import Array
from common.ops.batch import IGNORE

EIGHT = np.ones((3, 3), bool)
Inside = Literal["filled", "grabcut"]
Place = tuple[slice, slice]  # rows and columns
KEPT = 0.2  # of a box, that an object fills at least
SURELY_NOT, SURELY, LIKELY_NOT, LIKELY = range(4)  # the object, as OpenCV's GrabCut numbers it
# Strokes of people, as measured on ACDC (experiments/results/human_scribbles.md).
DEPTHS = (0.4, 0.75)  # of an object's stroke: its distance from the border, in parts of the largest there
AROUND = (0.1, 0.45)  # distance of the background's stroke from the objects, in parts of the root of their area
DRAWN = (0.6, 1.0)  # of such a line
THICK = 0.0065  # the width of a stroke, in parts of the image's longer side: of 500 pixels the 3 of ScribbleSup's
SMALLEST = 9  # pixels; an annotator overlooks a smaller component unless its class has no other


def components(mask: Array) -> Iterator[tuple[int, Place, Array]]:
    """Class id, place (rows and columns) and region there, bool (h, w), of each connected component (8 neighbours), by
    class, then in reading order.

    Components under `SMALLEST` pixels are left out where their class has a larger one. Of a large mask with thousands
    of them, whole pictures would take the memory of the machine.
    """
    for label in np.unique(mask[mask != IGNORE]).tolist():
        numbered, count = ndimage.label(mask == label, structure=EIGHT)
        sizes = np.bincount(numbered.reshape(-1), minlength=count + 1)[1:]
        floor = min(SMALLEST, int(sizes.max()))
        for number, place in enumerate(ndimage.find_objects(numbered), 1):
            if sizes[number - 1] >= floor:
                yield label, place, numbered[place] == number


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
    for label, place, region in components(mask):
        depth = _depth(region)
        inner = np.flatnonzero(depth >= np.median(depth[region]))
        drawn[place].flat[rng.choice(inner)] = label
    return drawn


def draw_scribbles(mask: Array, length: float, width: int, rng: np.random.Generator) -> Array:
    """One stroke in each connected component, along its skeleton.

    The stroke is the longest path through the skeleton of the component, cut to a random stretch of the share
    `length`, and drawn `width` pixels wide, but never beyond the component.

    [ours]: a stand-in with two knobs; people draw nearer to borders, see `draw_human_scribbles`.
    """
    drawn = np.full_like(mask, IGNORE)
    for label, place, region in components(mask):
        path = _longest_path(skeletonize(np.pad(region, 1))[1:-1, 1:-1])
        count = max(1, round(length * len(path)))
        start = int(rng.integers(0, len(path) - count + 1))
        drawn[place][_stroke(np.array(path[start : start + count]), width, region.shape) & region] = label
    return drawn


def draw_human_scribbles(mask: Array, background: int | None, width: int | None, rng: np.random.Generator) -> Array:
    """Strokes as the experts of ACDC drew them: one in each component of an object, along its border and well inside,
    and one around the objects, so that most of the background has no stroke near it.

    [ours]: lines of equal distance from a border, of which a random stretch is drawn. Their distances, lengths and
    shares of the pixels are close to those of ACDC's strokes (experiments/results/human_scribbles.md).

    Args:
        background: class id; None where every class is an object's.
        width: of a stroke in pixels; None: as `THICK` says, at least one.
    """
    width = width or max(1, round(THICK * max(mask.shape)))
    drawn, objects = np.full_like(mask, IGNORE), np.zeros(mask.shape, bool)
    for label, place, part in components(mask):
        if label != background:
            region = np.zeros(mask.shape, bool)  # whole: in a part, sums of floats would round to other pixels
            region[place] = part
            drawn[_stroke_inside(region, width, rng)] = label
            objects |= region
    if background is not None and (ground := mask == background).any():
        far = ndimage.distance_transform_edt(~objects) if objects.any() else np.zeros(mask.shape)
        level = float(np.exp(rng.uniform(*np.log(AROUND)))) * float(objects.sum()) ** 0.5
        around = _stroke(_stretch(far, level, rng), width, mask.shape) & ground
        drawn[around if around.any() else _stroke_inside(ground, width, rng)] = background
    return drawn


def bounding_boxes(mask: Array, background: int) -> list[tuple[int, Place]]:
    """Class id, rows and columns of the box of each component of an object, the largest box first."""
    found = [(label, place) for label, place, _ in components(mask) if label != background]
    return sorted(found, key=lambda box: -mask[box[1]].size)


def draw_boxes(mask: Array, background: int, inside: Inside | None = None, image: Array | None = None) -> Array:
    """What the bounding boxes of all components of a mask (H, W) say of single pixels, see `paint_boxes`; void pixels
    outside of them stay 255."""
    drawn = np.where(mask == IGNORE, IGNORE, background).astype(np.uint8)
    return paint_boxes(drawn, bounding_boxes(mask, background), inside, image)


def paint_boxes(drawn: Array, boxes: Sequence[tuple[int, Place]], inside: Inside | None, image: Array | None) -> Array:
    """What boxes say of single pixels: outside every box is background, and what is inside is for `inside` to say. A
    smaller box lies on top of a larger one.

    Args:
        drawn: uint8 (H, W), the background; it is painted on.
        boxes: class id, rows and columns of each, the largest first; 255: no label inside.
        inside: None: not known (255). `filled`: the class of the box. `grabcut`: its class and background as GrabCut
            (Rother et al. 2004) parts them by colour, with all outside the box as background; where it leaves less than
            a fifth of a box to the object, or a box is the whole image, 255.
        image: uint8 (H, W, C), RGB first; for `grabcut`.

    Raises:
        ModuleNotFoundError: `grabcut` without OpenCV.
    """
    for label, box in boxes:
        if inside == "grabcut" and label != IGNORE:
            assert image is not None
            found = grabcut(image, box)
            drawn[box] = np.where(found, label, drawn[box]) if found.mean() >= KEPT else IGNORE
        else:
            drawn[box] = IGNORE if inside is None else label
    return drawn


def grabcut(image: Array, box: Place) -> Array:
    """Which pixels of a box are its object, bool (h, w), by colour: OpenCV's GrabCut, five rounds, the same each time.
    None of them where there is nothing outside the box, or too little inside, to learn colours from."""
    part = np.full(image.shape[:2], SURELY_NOT, np.uint8)
    part[box] = LIKELY
    if (part == SURELY_NOT).any():
        return cut_by_color(image, part)[box]
    return np.zeros(part[box].shape, bool)


def cut_by_color(image: Array, part: Array) -> Array:
    """Which pixels of an image, uint8 (H, W, C), RGB first, are an object, bool (H, W), by OpenCV's GrabCut (Rother et
    al. 2004). `part`, uint8 (H, W), says which are so surely or likely, in OpenCV's numbers.

    Raises:
        ModuleNotFoundError: without OpenCV.
    """
    if find_spec("cv2") is None:
        raise ModuleNotFoundError("GrabCut needs OpenCV: pip install -e '.[boxes]'")
    import cv2

    part, models = part.copy(), np.zeros((2, 1, 65))
    cv2.setRNGSeed(0)
    picture = np.ascontiguousarray(image[..., 2::-1])  # BGR
    cv2.grabCut(picture, part, (0, 0, 0, 0), models[0], models[1], 5, cv2.GC_INIT_WITH_MASK)
    return np.isin(part, (SURELY, LIKELY))


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


def _stroke(path: Array, width: int, shape: tuple[int, ...]) -> Array:
    """The pixels (H, W) of a stroke along `path`, rows and columns (N, 2)."""
    stroke = np.zeros(shape, bool)
    for row, column in path:
        stroke[disk((row, column), width / 2, shape=shape)] = True
    stroke[tuple(np.rint(path).astype(int).T)] = True
    return stroke


def _stroke_inside(region: Array, width: int, rng: np.random.Generator) -> Array:
    """A stroke (H, W) along the border of a region, at a drawn depth; at least its deepest pixel."""
    depth = _depth(region)
    line = _stretch(np.pad(depth, 1), rng.uniform(*DEPTHS) * depth.max(), rng) - 1  # closed also at the image's border
    stroke = _stroke(np.clip(line, 0, np.array(region.shape) - 1), width, region.shape) & region
    return stroke if stroke.any() else depth == depth.max()


def _stretch(height: Array, level: float, rng: np.random.Generator) -> Array:
    """Points, rows and columns (N, 2), of a drawn stretch of the longest line on which `height` (H, W) is `level`; of
    none where there is no such line."""
    lines = find_contours(height, level) if min(height.shape) > 1 else []
    if not lines:
        return np.zeros((0, 2))
    line = max(lines, key=len)
    closed = (line[0] == line[-1]).all()
    count = max(1, round(rng.uniform(*DRAWN) * len(line)))
    start = int(rng.integers(len(line) if closed else len(line) - count + 1))
    return np.roll(line, -start, axis=0)[:count]


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
