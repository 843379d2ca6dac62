"""Label Studio's JSON export: all tasks of a project in one file, places in per cent of the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from common.ops.array import Array
from datamodules.decode import SUFFIXES
from datamodules.drawn.content import brief, class_id, coordinates, naming, size_of, take
from datamodules.drawn.paint import Drawing, Shape, bits, box_ring, ellipse_ring, polygon, turned

# Kinds of results that say something of the whole image, or of another result.
ASIDE = ("choices", "taxonomy", "textarea", "rating", "number", "datetime", "pairwise", "ranker", "relation")


def read(content: Any, class_names: Sequence[str], keep_empty: bool) -> dict[str, Callable[[], Drawing]]:
    """The drawing of each image, by its path or address in the task; those without a region only with `keep_empty`.

    Brushes, polygons, rectangles and ellipses are filled, in the order of the file. Tasks without an annotation are
    unlabelled, predictions are not looked at.

    Raises:
        ValueError: no Label Studio file, a task with two annotations, an unknown label, or another kind of region.
    """
    drawings: dict[str, Callable[[], Drawing]] = {}
    for number, task in enumerate(content):
        with naming(f"task {brief(task['id']) if isinstance(task, dict) and 'id' in task else number}"):
            done = [
                one for one in take(task, "annotations", list)
                if not (isinstance(one, dict) and one.get("was_cancelled"))
            ]  # fmt: skip
            if not done:
                continue
            if len(done) > 1:
                raise ValueError(f"it has {len(done)} annotations: keep one")
            drawing = drawing_of(take(done[0], "result", list), class_names)
            name = file_of(take(task, "data", dict))
            if name in drawings:
                raise ValueError(f"the image {brief(name)} has a task already: keep one")
            if drawing.shapes or keep_empty:
                drawings[name] = partial(Drawing, *drawing)
    return drawings


def drawing_of(results: Sequence[Any], class_names: Sequence[str]) -> Drawing:
    """The regions of an annotation."""
    labelled = {brief(one.get("id")) for one in results if labels_of(one)}
    shapes, sizes = [], set()
    for one in results:
        kind = take(one, "type", str)
        labels = labels_of(one)
        if kind in ASIDE or (not labels and brief(one.get("id")) in labelled):
            continue  # the second: a shape whose label is a result of its own, which repeats the shape
        if len(labels) != 1:
            raise ValueError(f"a {kind} has {len(labels)} labels: give it one")
        size = size_of(one.get("original_width"), one.get("original_height"))
        if size is None or one.get("image_rotation"):
            raise ValueError(f"a {kind} has no image size, or a turned image: turn images before you draw")
        value = class_id(labels[0], class_names)
        shapes.append(Shape(labels[0], kind, value, painter(kind, take(one, "value", dict), size)))
        sizes.add(size)
    if len(sizes) > 1:
        raise ValueError(f"its results say different sizes of the image, {sorted(sizes)}: export it again")
    return Drawing(next(iter(sizes), None), shapes)


def labels_of(result: Any) -> list[Any]:
    """What a result is labelled as."""
    value = result.get("value") if isinstance(result, dict) else None
    found = [one for key, one in value.items() if key.endswith("labels")] if isinstance(value, dict) else []
    return found[0] if found and isinstance(found[0], list) else []


def file_of(data: dict[str, Any]) -> str:
    """The path of a task's image: uploaded (`/data/upload/1/0a1b2c3d-a.jpg`), local (`/data/local-files/?d=x/a.jpg`),
    or at an address."""
    words = [word for word in data.values() if isinstance(word, str)]
    found = [unquote(word.split("?d=")[-1] if "?d=" in word else urlsplit(word).path) for word in words]
    pictures = [name for name in found if name.lower().endswith(SUFFIXES)]
    if len(pictures) != 1:
        raise ValueError(f"its data have {len(pictures)} images ({brief(words)}): one is needed")
    return pictures[0]


def painter(kind: str, value: dict[str, Any], size: tuple[int, int]) -> Callable[[Image.Image, int], None]:
    if "rle" in value:
        return partial(brush, data=take(value, "rle", list))
    if "points" in value and kind in ("polygonlabels", "polygon", "labels"):
        if value.get("closed") is False:
            raise ValueError("a polygon is not closed: close it")
        return partial(polygon, points=coordinates(value["points"]) / 100 * size)
    if {"x", "y", "width", "height"} <= value.keys() and kind in ("rectanglelabels", "rectangle", "labels"):
        left, top, width, height = numbers(value, ("x", "y", "width", "height"), size)
        ring = box_ring(left, top, left + width, top + height)
        return partial(polygon, points=turned(ring, (left, top), rotation(value)))
    if {"x", "y", "radiusX", "radiusY"} <= value.keys():
        x, y, radius_x, radius_y = numbers(value, ("x", "y", "radiusX", "radiusY"), size)
        return partial(polygon, points=turned(ellipse_ring(x, y, radius_x, radius_y), (x, y), rotation(value)))
    raise ValueError(f"a result of type '{kind}' is no area: draw with brush, polygon, rectangle or ellipse")


def numbers(value: dict[str, Any], keys: Sequence[str], size: tuple[int, int]) -> list[float]:
    """Two pairs in per cent as pixels."""
    return (coordinates([value[key] for key in keys]) / 100 * size).ravel().tolist()


def rotation(value: dict[str, Any]) -> float:
    """Degrees, clockwise."""
    return float(coordinates([value.get("rotation", 0), 0])[0, 0])


def brush(canvas: Image.Image, value: int, data: list[Any]) -> None:
    """Paint a brush's run lengths: the RGBA values of all pixels, row by row; alpha above half is inside."""
    width, height = canvas.size
    try:
        values = unpacked(bytes(data), 4 * width * height)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"has run lengths that are not those of {width} x {height} pixels: export it again") from None
    bits(canvas, value, (0, 0), values.reshape(height, width, 4)[..., 3] > 127)


def unpacked(data: bytes, count: int) -> Array:
    """uint8 (count) of Label Studio's run lengths, which are packed bit by bit without gaps.

    32 bits say how many values there are, 5 how many bits a value has, less one, and four times 4 how many bits a
    run's length has, less one. Then come runs: a bit says whether one value is repeated or each is written, two bits
    choose the width of the length, then the length less one, and the value or values.

    Raises:
        ValueError: the data are cut, or of another number of values.
    """
    if len(data) > 4 * count + 16:
        raise ValueError("longer than what it stands for")
    text, place = "".join(f"{byte:08b}" for byte in data), 0

    def take_bits(number: int) -> int:
        nonlocal place
        place += number
        if place > len(text):
            raise ValueError("cut")
        return int(text[place - number : place], 2)

    if take_bits(32) != count:
        raise ValueError("of another size")
    word, widths = take_bits(5) + 1, [take_bits(4) + 1 for _ in range(4)]
    values, lengths, total = [], [], 0
    while total < count:
        repeated = take_bits(1)
        length = 1 + take_bits(widths[take_bits(2)])
        total += length
        values += [take_bits(word)] if repeated else [take_bits(word) for _ in range(length)]
        lengths += [length] if repeated else [1] * length
    if total != count or max(values) > 255:
        raise ValueError("of another size")
    return np.repeat(np.array(values, np.uint8), lengths)
