"""labelme's files (versions 3 to 5), and those of X-AnyLabeling, which have more kinds of shapes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.ops.array import Array
from datamodules.drawn.content import class_id, coordinates, read_json, recognise, size_of, take, unread
from datamodules.drawn.paint import Drawing, Shape, bits, circle, dots, line, polygon, rectangle

QUADRANGLES = ("rectangle", "rotation", "oriented_rectangle", "quadrilateral")  # four corners, turned already


def read(path: Path, class_names: Sequence[str]) -> Drawing:
    """Polygons, rectangles, circles and masks are filled, linestrips and lines are drawn, points are pixels.

    Neither the picture in the file nor the one at its `imagePath` is looked at.

    Raises:
        ValueError: no labelme file, an unknown label or kind of shape.
    """
    content = read_json(path)
    if recognise(content) != "labelme":
        raise ValueError(unread(content))
    shapes = []
    for one in take(content, "shapes", list):
        label = take(one, "label", str)
        kind = (
            "polygon" if one.get("shape_type") is None else take(one, "shape_type", str)
        )  # version 3 has polygons only
        value = class_id(label, class_names)
        paint = painter(kind, coordinates(take(one, "points", list)), label, one.get("mask"))
        shapes.append(Shape(label, kind, value, paint))
    return Drawing(size_of(content.get("imageWidth"), content.get("imageHeight")), shapes)


def painter(kind: str, points: Array, label: str, mask: Any) -> Callable[[Image.Image, int], None]:
    count = len(points)
    if kind == "polygon" and count > 2:
        return partial(polygon, points=points)
    if kind == "rectangle" and count == 2:
        return partial(rectangle, points=points)
    if kind in QUADRANGLES and count == 4:
        return partial(polygon, points=points)
    if kind == "circle" and count == 2:
        return partial(circle, points=points)
    if kind in ("linestrip", "line") and count > 1:
        return partial(line, points=points)
    if (kind == "point" and count == 1) or (kind == "points" and count):
        return partial(dots, points=points)
    if kind == "mask" and count == 2 and isinstance(mask, str):
        return partial(picture, points=points, text=mask)
    raise ValueError(f"a {kind} of '{label}' with {count} points cannot be used: redraw it")


def picture(canvas: Image.Image, value: int, points: Array, text: str) -> None:
    """Paint a mask: a PNG in base64 that fills its bounding box, whose corners (2, 2) are its first and last pixel."""
    (left, top), (right, bottom) = points.astype(int).tolist()
    size = (right - left + 1, bottom - top + 1)
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as image:
            if image.size != size or size[0] > canvas.size[0] or size[1] > canvas.size[1]:
                raise ValueError(f"{image.size[0]} x {image.size[1]} pixels in a box of {size[0]} x {size[1]}")
            inside = np.asarray(image) != 0
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"holds a picture that cannot be read ({error}): redraw it") from error
    if inside.ndim != 2:
        raise ValueError("holds a picture in colours: redraw it")
    bits(canvas, value, (left, top), inside)
