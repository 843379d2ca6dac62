"""Shapes painted into a label map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.decode import MOST_PIXELS, stored_size
from datamodules.drawn.content import brief

STROKE = 3  # pixels, the width of a line in a label map, as in PASCAL's rasterised scribbles


class Shape(NamedTuple):
    """What is drawn, and how: `paint(canvas, value)`."""

    label: str
    kind: str
    value: int  # class id, or 255
    paint: Callable[[Image.Image, int], None]


class Drawing(NamedTuple):
    """The shapes of an image, later ones over earlier ones. `size` is (width, height), None where no file says it."""

    size: tuple[int, int] | None
    shapes: Sequence[Shape]


def render(drawing: Drawing, image: Path, fill: int | None) -> Array:
    """Label map (H, W) uint8 of the image file's upright size; outside of the shapes `fill`, or 255 if that is None.

    Raises:
        ValueError: the drawing is of another size, or a shape cannot be drawn.
    """
    size = upright_size(image)
    if drawing.size not in (None, size):
        raise ValueError(
            f"its image is said to have {drawing.size[0]} x {drawing.size[1]} pixels, {image.name} has {size[0]} x "
            f"{size[1]} (upright, as EXIF says): draw on that picture, or correct the size"
        )  # fmt: skip
    canvas = Image.new("L", size, IGNORE if fill is None else fill)
    for shape in drawing.shapes:
        try:
            shape.paint(canvas, shape.value)
        except ValueError as error:
            raise ValueError(f"a {shape.kind} of '{shape.label}' {error}") from error
    return np.asarray(canvas)


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image file, turned as its EXIF orientation says. No pixel is decoded.

    Raises:
        ValueError: no image, or one that is too large.
    """
    (height, width), turn = stored_size(path)
    if width * height > MOST_PIXELS:
        raise ValueError(f"{path} has {width} x {height} pixels, at most {MOST_PIXELS} are drawn on: make it smaller")
    return (height, width) if turn in (5, 6, 7, 8) else (width, height)


def check_inside(canvas: Image.Image, points: Array) -> None:
    """Raise ValueError if the bounding box of the points (N, 2) does not touch the image."""
    if (points.max(0) < 0).any() or (points.min(0) > canvas.size).any():
        raise ValueError(f"lies outside the image of {canvas.size[0]} x {canvas.size[1]}: redraw it")


def polygons(canvas: Image.Image, value: int, rings: Sequence[Array]) -> None:
    """Fill rings (N, 2) of at least three points."""
    check_inside(canvas, np.concatenate(rings))
    for ring in rings:
        ImageDraw.Draw(canvas).polygon(ring.ravel().tolist(), fill=value)


def polygon(canvas: Image.Image, value: int, points: Array) -> None:
    """Fill one ring (N, 2)."""
    if len(points) < 3:
        raise ValueError(f"has {len(points)} points, at least 3 are needed: redraw it")
    polygons(canvas, value, [points])


def rectangle(canvas: Image.Image, value: int, points: Array) -> None:
    """Fill between two corners (2, 2)."""
    check_inside(canvas, points)
    ImageDraw.Draw(canvas).rectangle((*points.min(0).tolist(), *points.max(0).tolist()), fill=value)


def circle(canvas: Image.Image, value: int, points: Array) -> None:
    """Fill about the first point, through the second."""
    (x, y), radius = points[0].tolist(), float(np.hypot(*(points[1] - points[0])))
    polygons(canvas, value, [ellipse_ring(x, y, radius, radius)])


def line(canvas: Image.Image, value: int, points: Array) -> None:
    """`STROKE` pixels wide through the points (N, 2)."""
    check_inside(canvas, points)
    ImageDraw.Draw(canvas).line(points.ravel().tolist(), fill=value, width=STROKE, joint="curve")


def dots(canvas: Image.Image, value: int, points: Array) -> None:
    """One pixel for each point (N, 2)."""
    check_inside(canvas, points)
    ImageDraw.Draw(canvas).point(np.minimum(points, np.subtract(canvas.size, 1)).ravel().tolist(), fill=value)


def bits(canvas: Image.Image, value: int, corner: tuple[int, int], inside: Array) -> None:
    """Where `inside` (h, w) of bool is true, from the pixel `corner` (x, y) on."""
    low = np.array(corner)
    check_inside(canvas, np.stack([low, low + inside.shape[::-1] - 1]))
    canvas.paste(value, (corner[0], corner[1], *(low + inside.shape[::-1]).tolist()), Image.fromarray(inside))


def turned(points: Array, center: Sequence[float], degrees: float) -> Array:
    """Points (N, 2) turned clockwise, as it looks in an image, about (x, y)."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (points - center) @ turn + center


def box_ring(left: float, top: float, right: float, bottom: float) -> Array:
    """The corners (4, 2) of a box."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def ellipse_ring(x: float, y: float, radius_x: float, radius_y: float) -> Array:
    """Points (256, 2) of an ellipse."""
    angle = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    return np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], 1)


def run_lengths(counts: Any) -> list[int]:
    """Numbers of pixels in turn outside and inside. Raises ValueError for what is no list of them."""
    if not isinstance(counts, list) or any(type(count) is not int or count < 0 for count in counts):
        raise ValueError("run lengths that cannot be read: export it again, or polygons")
    return counts


def from_runs(counts: list[int], pixels: int) -> Array:
    """bool (pixels) of run lengths. Raises ValueError if they are not those of so many pixels."""
    if sum(counts) != pixels:
        raise ValueError(f"has run lengths of {brief(sum(counts))} pixels where there are {pixels}: export it again")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)
