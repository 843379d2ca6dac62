"""CVAT's own format, "CVAT for images 1.1": an XML file of all images of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from common.ops.array import Array
from datamodules.drawn.content import brief, class_id, coordinates, naming, read_xml, size_of
from datamodules.drawn.paint import (
    Drawing,
    Shape,
    bits,
    box_ring,
    dots,
    ellipse_ring,
    from_runs,
    line,
    polygon,
    run_lengths,
    turned,
)


def read(path: Path, class_names: Sequence[str], keep_empty: bool) -> dict[str, Callable[[], Drawing]]:
    """The drawing of each image, by its name; images without a shape only with `keep_empty`.

    Polygons, boxes, ellipses and masks are filled, polylines are drawn, points are pixels. A shape of a higher
    `z_order` lies over others, and those of one in the order of the file.

    Raises:
        ValueError: no file of this format, an unknown label, or another kind of shape.
    """
    root = read_xml(path)
    if root.tag != "annotations" or root.find("track") is not None:
        raise ValueError("it is not of the format 'CVAT for images 1.1': export that")
    drawings: dict[str, Callable[[], Drawing]] = {}
    for image in root.iter("image"):
        name = image.get("name", "")
        with naming(f"image {brief(name)}"):
            if name in drawings:
                raise ValueError("it occurs twice: keep one, with all its shapes")
            size = size_of(integer(image, "width"), integer(image, "height"))
            shapes = []
            for one in image:
                if one.tag == "tag":  # of the whole image
                    continue
                label = one.get("label", "")
                shape = Shape(label, one.tag, class_id(label, class_names), painter(one))
                shapes.append((integer(one, "z_order") if "z_order" in one.attrib else 0, shape))
            if shapes or keep_empty:
                drawings[name] = partial(Drawing, size, [shape for _, shape in sorted(shapes, key=lambda one: one[0])])
    return drawings


def painter(shape: ElementTree.Element) -> Callable[[Image.Image, int], None]:
    kind = shape.tag
    if kind in ("polygon", "polyline", "points"):
        pairs = [pair.split(",") for pair in shape.get("points", "").split(";")]
        return partial({"polygon": polygon, "polyline": line, "points": dots}[kind], points=coordinates(pairs))
    if kind == "box":
        (left, top), (right, bottom) = pairs_of(shape, "xtl", "ytl", "xbr", "ybr").tolist()
        ring = box_ring(left, top, right, bottom)
        return partial(polygon, points=turned(ring, ring.mean(0).tolist(), rotation(shape)))
    if kind == "ellipse":
        (x, y), (radius_x, radius_y) = pairs_of(shape, "cx", "cy", "rx", "ry").tolist()
        return partial(polygon, points=turned(ellipse_ring(x, y, radius_x, radius_y), (x, y), rotation(shape)))
    if kind == "mask":
        left, top, width, height = (integer(shape, key) for key in ("left", "top", "width", "height"))
        try:
            counts = [int(count) for count in shape.get("rle", "").split(",")]
        except ValueError:
            counts = []
        return partial(rows, corner=(left, top), size=(width, height), counts=run_lengths(counts))
    raise ValueError(f"a {kind} cannot be used: draw polygons or masks")


def rows(canvas: Image.Image, value: int, corner: tuple[int, int], size: tuple[int, int], counts: list[int]) -> None:
    """Paint run lengths, which CVAT counts row by row in the bounding box."""
    if not (0 < size[0] <= canvas.size[0] and 0 < size[1] <= canvas.size[1]):
        raise ValueError(f"has a box of {size[0]} x {size[1]} pixels: export it again")
    bits(canvas, value, corner, from_runs(counts, size[0] * size[1]).reshape(size[::-1]))


def integer(element: ElementTree.Element, key: str) -> int:
    """A whole number of an attribute."""
    try:
        return int(element.get(key, ""))
    except ValueError:
        raise ValueError(f"the {key} of a {element.tag} is {brief(element.get(key))}: export it again") from None


def pairs_of(element: ElementTree.Element, *keys: str) -> Array:
    """Numbers (N, 2) of attributes."""
    return coordinates([element.get(key, "") for key in keys])


def rotation(element: ElementTree.Element) -> float:
    """Degrees, clockwise about the middle."""
    return float(coordinates([element.get("rotation", "0"), "0"])[0, 0])
