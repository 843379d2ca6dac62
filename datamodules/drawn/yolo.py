"""YOLO's polygons: a text file for each image, a line for each object, places as shares of the image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from common.ops.array import Array
from common.training.files import plain_yaml
from datamodules.drawn.content import brief, class_id, coordinates, naming, read_text
from datamodules.drawn.paint import Drawing, Shape, polygon

NAMES_FILE = 2**16  # bytes, more than any list of classes
BRACKETS = 500  # in it; the time that YAML takes for nested ones grows with their square


def read(path: Path, values: Sequence[int | None], class_names: Sequence[str]) -> Drawing:
    """Lines `number x1 y1 x2 y2 x3 y3 ...`; `values` gives the class id of each number, None for one that cannot be.

    Raises:
        ValueError: an unknown number, a box, or what is no polygon.
    """
    shapes, boxes = [], 0
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    for words in lines:
        if len(words) in (5, 6):  # with 6, a confidence
            boxes += 1
            continue
        if len(words) < 7 or not len(words) % 2:
            raise ValueError(f"{brief(' '.join(words))} is not `class x1 y1 x2 y2 x3 y3 ...`: export polygons")
        if not words[0].isdecimal() or len(words[0]) > 9 or int(words[0]) >= len(values):
            raise ValueError(f"the class {brief(words[0])} is none of the numbers 0 to {len(values) - 1}: correct it")
        value = values[int(words[0])]
        if value is None:
            raise ValueError(
                f"the class {words[0]} is '{class_names[int(words[0])]}', which data.fill gives to all that is not "
                "outlined: are the numbers those of classes.txt? if not, add data.yaml with their names"
            )
        points = coordinates(words[1:])
        if (np.abs(points - 0.5) > 1).any():
            raise ValueError(f"{brief(' '.join(words))} are no shares of the image's width and height: export it again")
        label = class_names[value] if value < len(class_names) else "no label"
        shapes.append(Shape(label, "polygon", value, partial(scaled, points=points)))
    if boxes:
        raise ValueError(f"{boxes} of {len(lines)} objects are boxes, which are no masks: outline them, or remove them")
    return Drawing(None, shapes)


def scaled(canvas: Image.Image, value: int, points: Array) -> None:
    """Paint a polygon (N, 2) in shares of the image."""
    polygon(canvas, value, points * canvas.size)


def numbering(root: Path, class_names: Sequence[str], fill: int | None) -> Sequence[int | None]:
    """The class id of each number: by name if `data.yaml` or `labels/classes.txt` names them, else the number itself.

    YOLO's own numbers leave the background out. An outlined object of the class `fill` means that this was forgotten:
    it has None.

    Raises:
        ValueError: it cannot be read, or names what is no class.
    """
    path = names_file(root)
    if path is None:
        return [None if number == fill else number for number in range(len(class_names))]
    with naming(path):
        return [class_id(name, class_names) for name in names_of(path)]


def names_file(root: Path) -> Path | None:
    """The file that names the numbers, if there is one."""
    return next((path for path in (root / "data.yaml", root / "labels" / "classes.txt") if path.exists()), None)


def names_of(path: Path) -> list[str]:
    text = read_text(path, most=NAMES_FILE)
    if path.suffix == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        content = plain_yaml(text) if text.count("[") + text.count("{") <= BRACKETS else None
    except RecursionError:
        content = None
    except yaml.YAMLError as error:
        raise ValueError(f"it cannot be read as YAML ({brief(str(error))}): correct it") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("it has no list `names` of the classes: write them in the order of their numbers")
    return names
