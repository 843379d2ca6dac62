"""COCO files: polygons and run lengths of all images in one JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_warn
from PIL import Image

from common.ops.array import Array
from datamodules.drawn.content import BOXES, brief, class_id, coordinates, naming, size_of, take
from datamodules.drawn.paint import Drawing, Shape, bits, from_runs, polygons, run_lengths
from datamodules.splits import first_few


class Thing(NamedTuple):
    """An annotation: `outline` is a list of rings, or run lengths."""

    key: str
    label: str
    value: int
    outline: Any


def read(path: Path, content: Any, class_names: Sequence[str], keep_empty: bool) -> dict[str, Callable[[], Drawing]]:
    """The drawing of each image, by its `file_name`; images without annotations only with `keep_empty`.

    Crowds (`iscrowd`) are pixels of their class like any other. Categories that no annotation uses need not be classes.
    Rings of fewer than three points, and annotations of images that the file does not list, are left out with a
    warning.

    Raises:
        ValueError: no COCO file, an unknown class, an annotation without a mask, or of a category that is not listed.
    """
    images, names = listed(content)
    found: dict[str, list[Thing]] = {key: [] for key in images}
    values: dict[str, int] = {}
    boxes, lost, thin = [], [], []
    annotations = take(content, "annotations", list)
    for one in annotations:
        image, category, key = identity(one, "image_id"), identity(one, "category_id"), brief(one.get("id"))
        if image not in images:
            lost.append(f"annotation {key} of image {image:.40}")
            continue
        if category not in names:
            raise ValueError(f"annotation {key} is of the category {category:.40}, which is not listed: correct it")
        if category not in values:
            values[category] = class_id(names[category], class_names)
        with naming(f"annotation {key}"):
            outline, left_out = outline_of(one.get("segmentation"))
        thin += [key] * left_out
        if outline is None:
            boxes.append(key)
        elif outline:
            found[image].append(Thing(key, names[category], values[category], outline))
    if boxes:
        raise ValueError(
            f"{len(boxes)} of {len(annotations)} objects have no outline, at most a box, which is no mask "
            f"(annotations {first_few(boxes)}): outline them, take them out, or learn from boxes: call the file {BOXES}"
        )
    if lost:
        rank_zero_warn(f"{path}: left out, since the file does not list their images: {first_few(lost)}")
    if thin:
        rank_zero_warn(f"{path}: left out, {len(thin)} rings of fewer than three points: annotations {first_few(thin)}")
    drawings: dict[str, Callable[[], Drawing]] = {}
    for key, (name, size) in images.items():
        if name in drawings:
            raise ValueError(f"it lists the image {brief(name)} twice: keep one, with all its annotations")
        if keep_empty or found[key]:
            drawings[name] = partial(drawing, size, found[key])
    return drawings


def listed(content: Any) -> tuple[dict[str, tuple[str, tuple[int, int] | None]], dict[str, str]]:
    """By id: the file names and sizes of the images, and the names of the categories."""
    images: dict[str, tuple[str, tuple[int, int] | None]] = {}
    for one in take(content, "images", list):
        entry = (take(one, "file_name", str), size_of(one.get("width"), one.get("height")))
        if images.setdefault(key := identity(one, "id"), entry) != entry:
            raise ValueError(f"{brief(images[key][0])} and {brief(entry[0])} have one id: correct it")
    names: dict[str, str] = {}
    for one in take(content, "categories", list):
        name = take(one, "name", str)
        if names.setdefault(key := identity(one, "id"), name) != name:
            raise ValueError(
                f"the categories {brief(names[key])} and {brief(name)} have one id ({key:.40}): correct it"
            )
    return images, names


def identity(record: Any, key: str) -> str:
    """An id, which is a number or a text."""
    value = take(record, key, int, str, float)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def outline_of(segmentation: Any) -> tuple[Any, int]:
    """Rings of at least three points, or run lengths, or None if there is nothing; and how many rings are left out.

    A ring is a list x, y, x, y, ..., or of pairs, as some tools write it; they may also write a single ring, bare.
    """
    if isinstance(segmentation, dict):
        return segmentation or None, 0
    if not segmentation:
        return None, 0
    rings = [segmentation] if is_ring(segmentation) else segmentation
    if not isinstance(rings, list) or not all(ring == [] or is_ring(ring) for ring in rings):
        raise ValueError(f"'segmentation' is {brief(segmentation)}, no rings of numbers: export it again")
    if not any(rings):
        return None, 0
    kept = [ring for ring in rings if len(ring) > (2 if ring and isinstance(ring[0], list) else 5)]
    return kept, len(rings) - len(kept)


def is_ring(values: Any) -> bool:
    """Whether this is a list of numbers, or of at least three pairs of them."""
    if not isinstance(values, list) or not values:
        return False
    pairs = len(values) > 2 and all(isinstance(pair, list) and len(pair) == 2 for pair in values)
    first = values[0][0] if pairs else values[0]
    return isinstance(first, int | float)


def drawing(size: tuple[int, int] | None, things: Sequence[Thing]) -> Drawing:
    """Larger areas come first, so that small objects stay visible."""
    shapes: list[tuple[float, Shape]] = []
    for one in things:
        with naming(f"annotation {one.key}"):
            if isinstance(one.outline, dict):
                counts = one.outline.get("counts")
                runs = run_lengths(decompressed(counts) if isinstance(counts, str) else counts)
                paint = partial(columns, size=one.outline.get("size"), counts=runs)
                shapes.append((sum(runs[1::2]), Shape(one.label, f"mask (annotation {one.key})", one.value, paint)))
            else:
                rings = [coordinates(ring) for ring in one.outline]
                kind, paint = f"polygon (annotation {one.key})", partial(polygons, rings=rings)
                shapes.append((sum(map(area_of, rings)), Shape(one.label, kind, one.value, paint)))
    return Drawing(size, [shape for _, shape in sorted(shapes, key=lambda entry: -entry[0])])


def area_of(ring: Array) -> float:
    """Square pixels in a ring (N, 2)."""
    x, y = ring.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def columns(canvas: Image.Image, value: int, size: Any, counts: list[int]) -> None:
    """Paint run lengths, which COCO counts column by column; `size` is [height, width].

    Not by pycocotools, which leaves memory as it was where the counts are too few, and reads beyond a cut text.

    Raises:
        ValueError: they are those of another image size.
    """
    if size is not None and size != [canvas.size[1], canvas.size[0]]:
        raise ValueError(f"has run lengths of size {brief(size)}, the image is {canvas.size[1]} x {canvas.size[0]}")
    inside = from_runs(counts, canvas.size[0] * canvas.size[1])
    bits(canvas, value, (0, 0), inside.reshape(canvas.size).T)


def decompressed(text: str) -> list[int] | None:
    """The counts in COCO's compressed run lengths; None if the text is cut or has other characters.

    A character holds five bits, lowest ones first, and a sixth that says whether more follow; the highest bit of a
    number is its sign. From the fourth number on, each is the difference to the one before the last.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << shift - 4
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return None if shift else counts
