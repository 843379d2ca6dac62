"""Label maps as polygons that people can go on drawing on: files of labelme, which `datamodules.drawn` reads back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage
from skimage import measure

from common.ops.array import Array

SHARE = 0.0005  # of the image's pixels: smaller regions are given to their neighbours
LEAST = 16  # pixels, likewise
TOLERANCE = 0.001  # of the image's longer side, and at least a pixel: how far an outline may leave the region's


def regions_of(labels: Array) -> Array:
    """The connected regions (4 neighbours) of a label map (H, W), numbered from 1 on."""
    regions: Array = measure.label(labels.astype(np.int32) + 1, background=0, connectivity=1)  # type: ignore[no-untyped-call]
    return regions


def without_small(labels: Array, least: int) -> Array:
    """Give the pixels of connected regions of less than `least` pixels the class of the nearest larger region."""
    regions = regions_of(labels)
    small = (np.bincount(regions.ravel()) < least)[regions]
    if small.all() or not small.any():
        return labels
    rows, columns = ndimage.distance_transform_edt(small, return_distances=False, return_indices=True)
    found: Array = labels[rows, columns]
    return found


def outline(inside: Array, tolerance: float) -> Array:
    """The outer contour (N, 2), x and y, of one connected region, bool (h, w), through the centres of its outermost
    pixels: the vertices that a painter of filled polygons needs to give the same pixels."""
    padded = np.pad(ndimage.binary_fill_holes(inside), 1)
    # Just outside of the centres, and so on them when rounded; the longest one, should corners touch.
    contours = measure.find_contours(padded.astype(np.float32), 0.999)  # type: ignore[no-untyped-call]
    ring = np.round(max(contours, key=len)) - 1
    points: Array = measure.approximate_polygon(ring, tolerance)  # type: ignore[no-untyped-call]
    return points[:-1, ::-1]


def polygons(labels: Array) -> list[tuple[int, Array]]:
    """A label map, uint8 (H, W), as pairs of a class and its polygon (N, 2), x and y, in the order in which to paint.

    Small regions go to their neighbours, outlines are simplified. A polygon has no holes: regions come in the order of
    their filled area, so that what lies in a hole is painted later.
    """
    height, width = labels.shape
    labels = without_small(labels, max(LEAST, round(SHARE * height * width)))
    tolerance = max(1.0, TOLERANCE * max(height, width))
    regions = regions_of(labels)
    found = []
    for number, place in enumerate(ndimage.find_objects(regions), 1):
        inside = regions[place] == number
        points = outline(inside, tolerance) + np.array([place[1].start, place[0].start])
        value = int(labels[place][inside][0])
        if len(points) > 2:
            found.append((int(ndimage.binary_fill_holes(inside).sum()), value, points))
    return [(value, points) for _, value, points in sorted(found, key=lambda one: -one[0])]


def labelme(
    labels: Array, class_names: Sequence[str], image: str, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """The content of labelme's file (version 5) for a label map (h, w) of an image at a path, relative to the file; of
    a large image a smaller map, and its `size` (height, width)."""
    height, width = size or labels.shape
    stretch = (width - 1) / max(1, labels.shape[1] - 1), (height - 1) / max(1, labels.shape[0] - 1)
    shapes = [
        {"label": class_names[value], "points": (points * stretch).tolist(), "group_id": None, "description": "",
         "shape_type": "polygon", "flags": {}, "mask": None}
        for value, points in polygons(labels)
    ]  # fmt: skip
    about: dict[str, Any] = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None}
    return {**about, "imageHeight": height, "imageWidth": width}
