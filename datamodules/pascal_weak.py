"""Weak annotations of PASCAL VOC drawn by people: scribbles (ScribbleSup) and clicks (What's the Point)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_warn
from PIL import Image, ImageDraw

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.decode import check_pixels
from datamodules.files import read_mask
from datamodules.supervision import shrink_mask

STROKE = 3  # the width of a scribble in published work, in pixels of the original image
# Words of ScribbleSup, or of its readers, for VOC's classes.
TAGS = {
    "plane": "aeroplane",
    "bike": "bicycle",
    "table": "diningtable",
    "mbike": "motorbike",
    "motorcycle": "motorbike",
    "plant": "pottedplant",
    "monitor": "tvmonitor",
    "tv": "tvmonitor",
}


def read_scribbles(folder: Path, name: str, size: tuple[int, int], class_names: Sequence[str]) -> Array | None:
    """Scribbles of one image from `name.xml` or `name.png`, as the two functions below read them; None without any."""
    xml, png = folder / f"{name}.xml", folder / f"{name}.png"
    if xml.is_file():
        return read_scribble_xml(xml, size, class_names)
    return read_scribble_png(png, size, len(class_names)) if png.is_file() else None


def read_scribble_xml(path: Path, size: tuple[int, int], class_names: Sequence[str]) -> Array:
    """Scribbles of one image from the XML of ScribbleSup (Lin et al., CVPR 2016).

    Every `polygon` is an open polyline. It is drawn 3 pixels wide at the size that the file gives, later ones over
    earlier ones, and then resized so that it survives.

    Args:
        path: the XML file.
        size: (height, width) of the image here.
        class_names: VOC's, the first one is background.

    Returns:
        uint8 (H, W): class id on the scribbles, 255 elsewhere. Points outside the image are moved to its border, with
        a warning that counts them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such XML, or has a tag that is no class.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: check the path")
    try:
        annotation = ElementTree.parse(path).getroot()
        drawn_at = int(_text(annotation, "size/width")), int(_text(annotation, "size/height"))
        polylines = [
            (_text(line, "tag").strip(), [(float(_text(p, "X")), float(_text(p, "Y"))) for p in line.iter("point")])
            for line in annotation.iter("polygon")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a ScribbleSup annotation ({error}): replace it") from error
    if min(drawn_at) < 1:
        raise ValueError(f"{path} is drawn at {drawn_at[0]} x {drawn_at[1]} pixels: replace it")
    check_pixels(path, *drawn_at)
    scribbles = Image.new("L", drawn_at, IGNORE)
    draw, outside = ImageDraw.Draw(scribbles), 0
    for tag, points in polylines:
        name = TAGS.get(tag.lower(), tag.lower())
        if name not in class_names:
            near = difflib.get_close_matches(name, [*TAGS, *class_names]) or class_names
            raise ValueError(f"{path} has a scribble of '{tag}', which is no class; near names: {', '.join(near)}")
        inside = [(min(max(x, 0), drawn_at[0] - 1), min(max(y, 0), drawn_at[1] - 1)) for x, y in points]
        outside += sum(a != b for a, b in zip(points, inside, strict=True))
        label = list(class_names).index(name)
        draw.line(inside, fill=label, width=STROKE)
        for x, y in inside[:1]:  # a line of one point draws nothing
            draw.rectangle((x - 1, y - 1, x + 1, y + 1), fill=label)
    if outside:
        rank_zero_warn(f"{path}: {outside} points outside the image were moved to its border")
    return shrink_mask(np.asarray(scribbles), size, keep_strokes=True)


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"<{element.tag}> has no <{path}>")
    return text


def read_scribble_png(path: Path, size: tuple[int, int], num_classes: int) -> Array:
    """Rasterised scribbles, a PNG with class ids and 255 = no label, at `size` (height, width): see `read_mask`."""
    return shrink_mask(read_mask(path, num_classes, None), size, keep_strokes=True)


def read_clicks(path: Path, num_classes: int) -> dict[str, dict[str, Any]]:
    """Clicks of What's the Point (Bearman et al., ECCV 2016), with background points, per image.

    The file is `{id: {"size": [w, h], "fg": [[x, y, class, rank], ...], "bg": [[x, y, 0], ...]}}` in pixels of the
    original image, whose size is `size`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: check the path")
    try:
        entries: dict[str, dict[str, Any]] = json.loads(path.read_text())
        for name, entry in entries.items():
            clicks = [*entry["fg"], *entry["bg"]]
            if len(entry["size"]) != 2 or min(entry["size"]) < 1 or any(len(click) < 3 for click in clicks):
                raise ValueError(f"a size or a click of '{name}' is incomplete")
            if not all(type(label) is int and 0 <= label < num_classes for _, _, label, *_ in clicks):
                raise ValueError(f"a click of '{name}' is of no class from 0 to {num_classes - 1}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as clicks ({type(error).__name__}: {error}): replace it") from error
    return entries


def clicks_mask(entry: Mapping[str, Any], size: tuple[int, int]) -> Array:
    """The clicks of one image as a mask of single pixels.

    Args:
        entry: one value of `read_clicks`.
        size: (height, width) of the image here; the clicks are scaled to it.

    Returns:
        uint8 (H, W): class id at the clicks, 255 elsewhere. On one pixel, an object's click goes before the
        background's, an earlier one before a later one. Clicks outside the image are moved to its border, with a
        warning that counts them.
    """
    mask, outside = np.full(size, IGNORE, np.uint8), 0
    width, height = entry["size"]
    for x, y, label, *_ in reversed([*entry["fg"], *entry["bg"]]):
        row, column = int(y * size[0] // height), int(x * size[1] // width)
        outside += not (0 <= row < size[0] and 0 <= column < size[1])
        mask[min(max(row, 0), size[0] - 1), min(max(column, 0), size[1] - 1)] = label
    if outside:
        rank_zero_warn(f"{outside} clicks outside their image were moved to its border")
    return mask
