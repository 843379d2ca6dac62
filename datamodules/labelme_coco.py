"""Annotations that people drew with common tools: labelme and COCO JSON files, as label maps."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from common.ops.array import Array
from common.ops.batch import IGNORE

STROKE = 3  # pixels, the width of a line in a label map, as in PASCAL's rasterised scribbles
MOST = 2**28  # pixels of a label map: what a file says of its size is not trusted with any amount of memory


def class_id(name: str, class_names: Sequence[str], path: Path) -> int:
    """Raise ValueError, with near names, for a label that is no class."""
    if name not in class_names:
        near = difflib.get_close_matches(name, class_names, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"the classes are {', '.join(class_names)}"
        raise ValueError(f"{path} has the label '{name}', which classes.txt does not have: {hint}")
    return list(class_names).index(name)


def read_json(path: Path) -> Any:
    """Raise ValueError naming a file that is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): export it again") from error


def blank(size: tuple[int, int], path: Path) -> Image.Image:
    """A label map without labels, of (width, height) as a file says. Raises ValueError for more than `MOST` pixels."""
    if min(size) < 1 or size[0] * size[1] > MOST:
        raise ValueError(f"{path} says that its image is {size[0]} x {size[1]} pixels: correct it")
    return Image.new("L", size, IGNORE)


def read_labelme(path: Path, class_names: Sequence[str]) -> Array:
    """Label map (H, W) uint8 of a labelme file; what lies outside its shapes is 255.

    Polygons, rectangles and circles are filled, linestrips and lines are drawn `STROKE` pixels wide, a point is one
    pixel; later shapes lie over earlier ones.

    Raises:
        ValueError: no labelme file, an unknown label or kind of shape, or a shape outside the image.
    """
    content = read_json(path)
    try:
        size = (int(content["imageWidth"]), int(content["imageHeight"]))
        shapes = [
            (one["label"], one.get("shape_type", "polygon"), [tuple(map(float, p)) for p in one["points"]])
            for one in content["shapes"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a labelme file ({error!r} is missing or wrong): export it again") from error
    canvas = blank(size, path)
    draw = ImageDraw.Draw(canvas)
    for label, kind, points in shapes:
        value = class_id(label, class_names, path)
        if not any(0 <= x <= size[0] and 0 <= y <= size[1] for x, y in points):
            raise ValueError(
                f"{path}: a {kind} of '{label}' lies outside the image of {size[0]} x {size[1]}: redraw it"
            )
        if kind == "polygon" and len(points) > 2:
            draw.polygon(points, fill=value)
        elif kind == "rectangle" and len(points) == 2:
            (x0, y0), (x1, y1) = points
            draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=value)
        elif kind == "circle" and len(points) == 2:
            draw.circle(points[0], np.hypot(points[1][0] - points[0][0], points[1][1] - points[0][1]), fill=value)
        elif kind in ("linestrip", "line") and len(points) > 1:
            draw.line(points, fill=value, width=STROKE, joint="curve")
        elif kind == "point" and len(points) == 1:
            draw.point((min(points[0][0], size[0] - 1), min(points[0][1], size[1] - 1)), fill=value)
        else:
            raise ValueError(f"{path}: a {kind} with {len(points)} points of '{label}' cannot be used: redraw it")
    return np.asarray(canvas)


def read_coco(path: Path, class_names: Sequence[str]) -> dict[str, Callable[[], Array]]:
    """Per image stem of a COCO file, a function that draws its label map (H, W) uint8; 255 outside the annotations.

    Polygons and run lengths are read, compressed ones too; larger areas are drawn first, so that small objects stay
    visible.

    Raises:
        ValueError: no COCO file, an unknown category, or, when a map is drawn, run lengths that do not fit the image.
    """
    content = read_json(path)
    try:
        sizes = {one["id"]: (int(one["width"]), int(one["height"])) for one in content["images"]}
        stems = {one["id"]: Path(one["file_name"]).stem for one in content["images"]}
        labels = {one["id"]: class_id(one["name"], class_names, path) for one in content["categories"]}
        found: dict[Any, list[tuple[float, int, Any]]] = {key: [] for key in sizes}
        for one in content["annotations"]:
            if one.get("segmentation"):
                entry = (float(one.get("area", 0)), labels[one["category_id"]], one["segmentation"])
                found[one["image_id"]].append(entry)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a COCO file ({error!r} is missing or wrong): export it again") from error

    def draw_map(key: Any) -> Array:
        canvas = blank(sizes[key], path)
        for _, value, shape in sorted(found[key], key=lambda entry: -entry[0]):
            if isinstance(shape, dict):
                canvas.paste(value, mask=Image.fromarray(from_run_lengths(shape, sizes[key], path)))
                continue
            for ring in shape:
                ImageDraw.Draw(canvas).polygon([float(v) for v in ring], fill=value)
        return np.asarray(canvas)

    return {stem: partial(draw_map, key) for key, stem in stems.items() if found[key]}


def from_run_lengths(shape: dict[str, Any], size: tuple[int, int], path: Path) -> Array:
    """uint8 (H, W), 255 inside: COCO counts pixels column by column, outside first, in a list or a compressed text.

    Not by pycocotools, which leaves memory as it was where the counts are too few, and reads beyond a cut text.
    """
    counts = shape.get("counts")
    if isinstance(counts, str):
        counts = decompressed(counts)
    if not isinstance(counts, list) or any(type(count) is not int or count < 0 for count in counts):
        raise ValueError(f"{path} has run lengths that cannot be read: export it again, or polygons")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(
            f"{path}: run lengths of {sum(counts)} pixels in an image of {size[0]} x {size[1]}: export it again"
        )
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.where(values.reshape(size).T, 255, 0).astype(np.uint8)


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
