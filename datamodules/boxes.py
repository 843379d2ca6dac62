"""Bounding boxes that people drew in images of their own, for `supervision: {kind: boxes, real: true}`: COCO's JSON and
VOC's XML.

The files are never trusted: each mistake is an error of one line that names the file and the way out, and no box is
left out in silence.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from datamodules.class_list import background_of
from datamodules.drawn import Parts, best_match, files_below, parts_of, parts_of_file
from datamodules.drawn.coco import identity, listed
from datamodules.drawn.content import (
    BOXES,
    brief,
    class_id,
    coordinates,
    naming,
    read_json,
    read_xml,
    size_of,
    take,
)
from datamodules.splits import first_few

LARGEST = 2**22  # bytes of a file of one image
Rows = list[list[float]]  # x0, y0, x1, y1, class; pixels, the last ones included
Size = tuple[int, int]  # width and height


class Boxes(NamedTuple):
    """The boxes of each image that was looked at, by id, empty where there is no object; the size that its file says it
    has, and the file."""

    rows: dict[str, Rows]
    sizes: dict[str, Size | None]
    files: dict[str, Path]


def read_boxes(root: Path, images: Mapping[str, Path], class_names: Sequence[str]) -> Boxes | None:
    """The boxes of a folder: `boxes.json`, or `boxes/NAME.xml`; None if it has neither. Images that have none in these
    are not labelled; a class named `void` or `ignore` makes boxes without a label.

    Args:
        root: the folder, with `images/`.
        images: file of each image.
        class_names: the classes, among them `background`.

    Raises:
        ValueError: a fault, with the file's name.
    """
    whole, folder = root / BOXES, root / Path(BOXES).stem
    if not whole.exists() and not folder.is_dir():
        return None
    if whole.exists() and folder.is_dir():
        raise ValueError(f"{root} has both {whole.name} and {folder.name}/: which one holds? remove the other")
    if background_of(class_names) is None:
        raise ValueError(
            f"{whole if whole.exists() else folder}: what lies in no box is background, and the list of classes has no "
            "class of that name: add it"
        )
    ids = {parts_of(path.relative_to(root / "images").as_posix()): name for name, path in images.items()}
    found = Boxes({}, {}, {})
    if whole.exists():
        with naming(whole):
            found.rows.update(from_coco(read_json(whole), ids, class_names, found.sizes))
        found.files.update(dict.fromkeys(found.rows, whole))
        return found
    for path in files_below(folder, ".xml"):
        with naming(path):
            name = ids.get(parts_of_file(path, folder, ids))
            if name is None:
                raise ValueError("its image is not in images/: add it, or remove the file")
            if name in found.files:
                raise ValueError(f"{found.files[name].name} is of the same image: keep one of them")
            found.rows[name], found.sizes[name] = from_voc(read_xml(path, LARGEST), class_names)
            found.files[name] = path
    if not found.files:
        raise ValueError(f"{folder} holds no NAME.xml: add some, or remove the folder")
    return found


def from_coco(
    content: Any, ids: Mapping[Parts, str], class_names: Sequence[str], sizes: dict[str, Size | None]
) -> dict[str, Rows]:
    """COCO's `bbox` is x, y, width, height in pixels, from the image's corner; outlines are not looked at. An image
    that is listed and has no annotation shows no object. `sizes` is filled."""
    if isinstance(content, dict) and "boxes" in content and "images" not in content:
        raise ValueError("this is the file of a folder with depth, see data set RGBD: Folder reads COCO's")
    images, categories = listed(content)
    tails: dict[str, list[Parts]] = defaultdict(list)
    for parts in ids:
        tails[parts[-1]].append(parts)
    found: dict[str, Rows] = {}
    names: dict[str, str] = {}
    lost = []
    for key, (file, size) in images.items():
        match = best_match(parts_of(file), tails)
        if match is None:
            lost.append(file[:100])
            continue
        name = names[key] = ids[match]
        if name in found:
            raise ValueError(f"it lists the image {brief(file)} twice: keep one, with all its annotations")
        found[name], sizes[name] = [], size
    if lost:
        raise ValueError(
            f"{len(lost)} of the images that it lists are not in images/ ({first_few(lost)}): add them, or take them "
            "and their annotations out"
        )
    for one in take(content, "annotations", list):
        image, category = identity(one, "image_id"), identity(one, "category_id")
        with naming(f"annotation {brief(one.get('id'))}"):
            if image not in names:
                raise ValueError(f"it is of image {image:.40}, which is not listed: list it, or take it out")
            if category not in categories:
                raise ValueError(f"it is of the category {category:.40}, which is not listed: correct it")
            if one.get("iscrowd"):
                raise ValueError(
                    "it is a crowd, whose box is not that of an object: take it out, or give it the category 'ignore', "
                    "whose boxes have no label"
                )
            label = class_id(categories[category], class_names)
            box = take(one, "bbox", list)
            if len(box) != 4:
                raise ValueError(f"'bbox' is {brief(box)}, not x, y, width, height: correct it")
            (x, y), (width, height) = coordinates(box).tolist()
            if min(width, height) <= 0:
                raise ValueError(f"its box {brief(box)} is empty (x, y, width, height): correct it, or take it out")
            found[names[image]].append([x, y, x + width - 1, y + height - 1, label])
    return found


def from_voc(root: Element, class_names: Sequence[str]) -> tuple[Rows, Size | None]:
    """VOC's corners count pixels from 1, the last ones included. Objects that are `difficult` or `truncated` are like
    the others; their parts are not looked at, nor is `filename`."""
    if root.tag != "annotation":
        raise ValueError("it is not of VOC's format, an <annotation> with an <object> for each box: export that")
    rows: Rows = []
    for number, one in enumerate(root.findall("object")):
        with naming(f"object {number}"):
            label, box = class_id((one.findtext("name") or "").strip(), class_names), one.find("bndbox")
            if box is None:
                raise ValueError("it has no <bndbox>: boxes that are turned and outlines are not read; draw a box")
            words = [(box.findtext(key) or "").strip() for key in ("xmin", "ymin", "xmax", "ymax")]
            (x0, y0), (x1, y1) = (coordinates(words) - 1).tolist()
            if x1 < x0 or y1 < y0:
                raise ValueError(f"its box {brief(words)} is empty (xmin, ymin, xmax, ymax): correct it, or remove it")
            rows.append([x0, y0, x1, y1, label])
    said = root.find("size")
    sides = ["", ""] if said is None else [(said.findtext(key) or "").strip() for key in ("width", "height")]
    width, height = (float(side) if side.isdecimal() and len(side) < 10 else side or None for side in sides)
    return rows, size_of(width, height)


def check_boxes(rows: Sequence[Sequence[float]], said: Size | None, size: Size) -> None:
    """Raise ValueError if an image of this size (width, height), upright, is not what its file says, or a box is not
    inside. By a pixel at most it may be: some tools count from 0, others from 1."""
    if said not in (None, size):
        raise ValueError(
            f"its image is said to have {said[0]} x {said[1]} pixels, and has {size[0]} x {size[1]} (upright, as EXIF "
            "says): draw on that picture, or correct the size"
        )  # fmt: skip
    for x0, y0, x1, y1, _ in rows:
        # Of a box that lies on the margin alone nothing would be left.
        if not (-1 <= x0 <= size[0] - 1 and -1 <= y0 <= size[1] - 1 and 0 <= x1 <= size[0] and 0 <= y1 <= size[1]):
            corners = ", ".join(f"{value:g}" for value in (x0, y0, x1, y1))
            raise ValueError(
                f"the box from pixel {corners} (first and last, from 0 on) is not inside its image of {size[0]} x "
                f"{size[1]}: are its numbers corners where a width and a height should be, or is it another image's? "
                "correct it"
            )


def placed(
    boxes: Sequence[Sequence[float]], of: Sequence[int], size: Sequence[int]
) -> list[tuple[int, tuple[slice, slice]]]:
    """Class, rows and columns of the boxes of an image of size `of` (height, width) when it has another `size`, the
    largest first."""
    found = []
    for x0, y0, x1, y1, label in boxes:
        rows, columns = (
            slice(max(0, math.floor(low * new / old)), min(new, math.ceil((high + 1) * new / old)))
            for low, high, new, old in zip((y0, x0), (y1, x1), size, of, strict=False)
        )
        found.append((int(label), (rows, columns)))
    return sorted(found, key=lambda box: -math.prod(max(0, side.stop - side.start) for side in box[1]))
