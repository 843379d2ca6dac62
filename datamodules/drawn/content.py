"""What annotation files hold, as far as it can be trusted: text, JSON, numbers, names of classes.

An error says what is wrong; `naming` puts the file before it.
"""

from __future__ import annotations

import difflib
import json
import re
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree

import numpy as np

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.class_list import background_of, is_void
from datamodules.text import normal

FILE = 2**29  # bytes of a file; the largest of COCO's own has 450 MiB
POINTS = 100_000  # of a shape
FAR = 2**20  # pixels, of a coordinate or a side of an image
BOXES = "boxes.json"  # of boxes alone, which are no masks, see `datamodules.boxes`
FORMATS = (
    "labelme and X-AnyLabeling (NAME.json beside the image or in masks/), COCO (coco.json), Label Studio (its JSON), "
    "CVAT for images 1.1 (annotations.xml), YOLO polygons (labels/NAME.txt)"
)
ELSEWHERE = {  # formats that are known and not read
    "via": "a file of the VGG Image Annotator: export it as COCO, and name that coco.json",
    "supervisely": "a file of Supervisely: export the project as COCO, and name that coco.json",
    "json_min": "Label Studio's JSON-MIN: export JSON",
    "panoptic": "a panoptic COCO file: save its pictures as masks of class ids, or export polygons",
}


@contextmanager
def naming(what: object) -> Iterator[None]:
    """Put `what` before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def brief(value: object) -> str:
    """A value from a file for a message, cut short."""
    return reprlib.repr(value)


def read_bytes(path: Path, most: int = FILE) -> bytes:
    """Raise ValueError for what is no file, or larger than `most`."""
    try:
        if not path.is_file():
            raise ValueError("this is no file: remove it")
        if (size := path.stat().st_size) > most:
            raise ValueError(f"it has {size / 2**20:.1f} MiB, at most {most / 2**20:g} are read: is it the right file?")
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from error


def read_text(path: Path, most: int = FILE) -> str:
    """UTF-8. Raises what `read_bytes` does, and ValueError for other text."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text in UTF-8 ({error.reason} at byte {error.start}): save it again") from error


def read_json(path: Path) -> Any:
    """Raise ValueError for what is no JSON; NaN and Infinity are none."""
    try:
        return json.loads(read_bytes(path), parse_constant=no_number)
    except RecursionError:
        raise ValueError("it is nested too deep to be an annotation: export it again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"it cannot be read as JSON ({error}): export it again") from error


def read_xml(path: Path, most: int = FILE) -> ElementTree.Element:
    """Raise ValueError for what is no XML, or declares a document type: so no entity is ever expanded."""
    text = read_text(path, most)
    if match := re.search(r"<!(DOCTYPE|ENTITY)", text):
        raise ValueError(f"it has a {match[1]}, which no such file needs: remove that, or export it again")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"it cannot be read as XML ({error}): export it again") from error


def no_number(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, which is no number: export it again")


def recognise(content: Any) -> str | None:
    """The format of what a JSON file holds: labelme, coco, label_studio, one of `ELSEWHERE`, or None."""
    if isinstance(content, list):
        records = [one for one in content[:10] if isinstance(one, dict)]
        if any({"data", "annotations"} <= one.keys() for one in records):
            return "label_studio"
        return "json_min" if any({"annotation_id", "annotator"} & one.keys() for one in records) else None
    if not isinstance(content, dict):
        return None
    if "shapes" in content:
        return "labelme"
    if "images" in content and content.keys() & {"annotations", "categories"}:
        records = content["annotations"] if isinstance(content.get("annotations"), list) else []
        return "panoptic" if any(isinstance(one, dict) and "segments_info" in one for one in records[:10]) else "coco"
    if "objects" in content or {"classes", "tags"} <= content.keys():
        return "supervisely"
    first = next(iter(content.values()), None)
    return "via" if "_via_img_metadata" in content or (isinstance(first, dict) and "regions" in first) else None


def unread(content: Any) -> str:
    """What to say of a JSON file that is none of those which are read in its place."""
    kind = recognise(content)
    if kind in ELSEWHERE:
        return f"this is {ELSEWHERE[kind]}"
    places = {"labelme": "beside its image, under the image's name", "coco": "in the data folder, as coco.json"}
    place = places.get(kind or "", "in the data folder, as the only JSON file")
    return f"this is a {kind} file: it belongs {place}" if kind else f"the format is unknown. What is read: {FORMATS}"


def take(record: Any, key: str, *kinds: type) -> Any:
    """`record[key]`, which must be of one of the kinds."""
    if not isinstance(record, dict):
        raise ValueError(f"{brief(record)} stands where something with '{key}' should: export it again")
    if key not in record:
        raise ValueError(f"'{key}' is missing in {brief(record)}: export it again")
    if not isinstance(record[key], kinds):
        raise ValueError(f"'{key}' is {brief(record[key])}: export it again")
    return record[key]


def size_of(width: Any, height: Any) -> tuple[int, int] | None:
    """(width, height) in pixels as a file says; None if it does not."""
    if width is None and height is None:
        return None
    for side in (width, height):
        if isinstance(side, bool) or not isinstance(side, int | float) or not 1 <= side <= FAR or side % 1:
            raise ValueError(f"it says that its image is {brief(width)} x {brief(height)} pixels: correct it")
    return int(width), int(height)


def coordinates(values: Any) -> Array:
    """float64 (N, 2) of a list of points, or of a list x, y, x, y, ..., in numbers or as text."""
    if not isinstance(values, list):
        raise ValueError(f"{brief(values)} stands where a list of points should: export it again")
    if len(values) > (2 * POINTS if values and isinstance(values[0], int | float | str) else POINTS):
        raise ValueError(f"a shape has more than {POINTS} points: it is no drawing")
    try:
        points = np.asarray(values, np.float64)
        points = points.reshape(-1, 2) if points.ndim == 1 else points
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{brief(values)} are no points: export it again")
    if not (np.abs(points) <= FAR).all():  # nor is NaN
        raise ValueError(f"{brief(values)} are coordinates that no image has: export it again")
    return points


def class_id(name: Any, class_names: Sequence[str]) -> int:
    """The class of a label; 255 for `__ignore__`, void and the like. labelme's `_background_` is background.

    Raises:
        ValueError: a label that is no class, with near names.
    """
    if not isinstance(name, str):
        raise ValueError(f"the label {brief(name)} is no text: export it again")
    name = normal(name)
    if name in class_names:
        return list(class_names).index(name)
    if is_void(name):
        return IGNORE
    if name == "_background_" and (background := background_of(class_names)) is not None:
        return background
    near = difflib.get_close_matches(name[:100], class_names, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"the classes are {', '.join(class_names)}"
    raise ValueError(f"the label {brief(name)} is no class: {hint}")
