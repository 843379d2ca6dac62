"""What people draw with annotation tools, found in a data folder and turned into label maps; one format a file.

`FORMATS` says what is read. The files are found by where they lie and what they hold, and are never trusted: each
mistake is a ValueError that names the file.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.drawn import coco, cvat, label_studio, labelme, yolo
from datamodules.drawn.content import FORMATS, brief, naming, read_json, recognise, unread
from datamodules.drawn.paint import Drawing, render
from datamodules.files import SUFFIXES

# As the tools name a file of all images, and where it may lie.
JSON = ("coco.json", "result.json", "_annotations.coco.json", "instances_default.json", "annotations.json")
NAMES = (*JSON, "annotations.xml")
PLACES = ("", "annotations", "images")

Parts = tuple[str, ...]  # a path without its suffix


class Drawn(NamedTuple):
    """Where the drawing of an image comes from, how it is read, and how it becomes a label map (H, W) uint8."""

    path: Path
    read: Callable[[], Drawing]
    mask: Callable[[], Array]


def find(root: Path, images: Mapping[str, Path], class_names: Sequence[str], fill: int | None) -> dict[str, Drawn]:
    """The drawings of a data folder by image id, empty if there are none.

    There is one file of all images, or a file for each: labelme's beside the images or in `masks/` (where pictures may
    lie too), YOLO's in `labels/`. Images without a shape count as drawn where `fill` says what they show. A drawing
    whose image is not there has its own name as id.

    Args:
        root: the folder; the images lie below `images/`.
        images: file of each image.
        class_names: the classes.
        fill: class id of what lies outside the shapes; None: 255.

    Raises:
        ValueError: files that contradict each other, or one of all images that cannot be used; the rest is read later.
    """
    ids = {parts_of(path.relative_to(root / "images").as_posix()): name for name, path in images.items()}
    whole = [root / place / name for place in PLACES for name in NAMES if (root / place / name).is_file()]
    whole = [path for path in whole if path.parent.name != "images" or (path.stem,) not in ids]
    single: dict[str, tuple[Path, Callable[[], Drawing]]] = {}
    for folder in (root / "images", root / "masks"):
        for path in files_below(folder, ".json"):
            if path not in whole:
                add(single, ids, folder, path, partial(labelme.read, path, class_names))
    values = yolo.numbering(root, class_names) if (root / "labels").is_dir() else []
    for path in files_below(root / "labels", ".txt"):
        if path != root / "labels" / "classes.txt":
            add(single, ids, root / "labels", path, partial(yolo.read, path, values, class_names))
    if not (whole or single or (root / "masks").exists()):  # one of all images, with a name of its owner's
        whole = [*sorted(root.glob("[!._]*.json")), *sorted((root / "annotations").glob("[!._]*.json"))]
    check_one(root, whole, {path for path, _ in single.values()})
    if whole:
        with naming(whole[0]):
            single = {name: (whole[0], read) for name, read in of_all(whole[0], ids, class_names, fill).items()}
    found = {}
    for name, (path, read) in single.items():
        reading = partial(named, f"{path}, image {name}" if whole else str(path), read)
        found[name] = Drawn(path, reading, partial(mask, reading, images.get(name), fill))
    return found


def check_one(root: Path, whole: Sequence[Path], single: Iterable[Path]) -> None:
    """Raise ValueError if there is more than one place where the drawings can be."""
    folders = {f"{path.relative_to(root).parts[0]}/*{path.suffix}" for path in single}
    places = [str(path.relative_to(root)) for path in whole]
    if not folders <= {"masks/*.json", "images/*.json"} or whole:
        places += sorted(folders)
        places += ["masks/"] if (root / "masks").exists() and "masks/*.json" not in folders else []
    if len(places) > 1:
        raise ValueError(f"{root} has both {places[0]} and {', '.join(places[1:])}: which one holds? remove the other")


def files_below(folder: Path, suffix: str) -> list[Path]:
    """Files at any depth, without hidden ones and what a Mac leaves in archives."""
    return [
        path for path in sorted(folder.rglob(f"*{suffix}"))
        if not any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)
    ]  # fmt: skip


def parts_of(name: str) -> Parts:
    """The parts of a path without its image suffix, whatever system wrote it."""
    *folders, last = [part for part in unicodedata.normalize("NFC", name).replace("\\", "/").split("/") if part] or [""]
    path = PurePosixPath(last)
    return (*folders, path.stem if path.suffix.lower() in SUFFIXES else last)


def add(
    single: dict[str, tuple[Path, Callable[[], Drawing]]],
    ids: Mapping[Parts, str],
    folder: Path,
    path: Path,
    read: Callable[[], Drawing],
) -> None:
    """Put a file for one image, `NAME.json` or `NAME.jpg.json`, under the image's id."""
    parts = parts_of(path.relative_to(folder).with_suffix("").as_posix())
    name = ids.get(parts, "/".join(parts))
    if name in single:
        raise ValueError(f"{single[name][0]} and {path} are of one image: keep one of them")
    single[name] = (path, read)


def of_all(
    path: Path, ids: Mapping[Parts, str], class_names: Sequence[str], fill: int | None
) -> dict[str, Callable[[], Drawing]]:
    """The drawings of a file of all images, by image id."""
    keep_empty = fill is not None
    if path.suffix == ".xml":
        drawings = cvat.read(path, class_names, keep_empty)
    else:
        content = read_json(path)
        kind = recognise(content)
        if kind == "coco":
            drawings = coco.read(path, content, class_names, keep_empty)
        elif kind == "label_studio":
            drawings = label_studio.read(content, class_names, keep_empty)
        else:
            raise ValueError(unread(content))
    tails: dict[str, list[Parts]] = defaultdict(list)
    for parts in ids:
        tails[parts[-1]].append(parts)
    found: dict[str, Callable[[], Drawing]] = {}
    names: dict[str, str] = {}
    for name, read in drawings.items():
        match = best_match(parts_of(name), tails)
        if match is None and not read().shapes:
            continue  # of an image that is not there
        key = ids[match] if match else "/".join(parts_of(name))
        if key in found:
            raise ValueError(f"its images {brief(names[key])} and {brief(name)} are one file, {key}: keep one of them")
        found[key], names[key] = read, name
    return found


def best_match(parts: Parts, tails: Mapping[str, Sequence[Parts]]) -> Parts | None:
    """The image file that a path means: the paths agree from the end on, as far as the shorter one goes.

    Label Studio puts eight digits before the names of uploaded files; they are left out where nothing has that name.

    Raises:
        ValueError: there are several.
    """
    found = [
        one for one in tails.get(parts[-1], ())
        if all(a == b for a, b in zip(reversed(one), reversed(parts), strict=False))
    ]  # fmt: skip
    if not found and (match := re.fullmatch(r"[0-9a-f]{8}-(.+)", parts[-1])):
        return best_match((*parts[:-1], match[1]), tails)
    longest = [one for one in found if len(one) == max(map(len, found))] if parts not in found else [parts]
    if len(longest) > 1:
        places = " and ".join("/".join(one) for one in longest[:2])
        raise ValueError(f"its image {brief('/'.join(parts))} may be {places}: give its folder, as in the first")
    return longest[0] if longest else None


def named(where: str, read: Callable[[], Drawing]) -> Drawing:
    """What `read` gives; its mistakes say where they are."""
    with naming(where):
        return read()


def mask(read: partial[Drawing], image: Path | None, fill: int | None) -> Array:
    """The label map of a drawing that `named` reads, see `render`."""
    drawing = read()
    with naming(read.args[0]):
        if image is None:
            raise ValueError("this image is missing: add it, or remove the annotation")
        return render(drawing, image, fill)


def check_classes(
    drawn: Collection[Drawn], class_names: Sequence[str], fill: int | None, pictures: Iterable[Array | None]
) -> None:
    """Raise ValueError if the drawings cannot teach two classes, of which background (or class 0) is one: then any
    network that always answers the other one is right at every pixel.

    Files are read until this is seen, which is soon where all is well. One that cannot be read counts as anything: it
    is named when its mask is drawn. Nothing is drawn here; `pictures` are the label maps of masks that are pictures,
    which are looked at last.
    """
    background = class_names.index("background") if "background" in class_names else 0
    seen = set() if fill is None else {fill}

    def enough() -> bool:
        return len(seen) > 1 and (fill is not None or background in seen)

    for one in drawn:
        try:
            seen |= {shape.value for shape in one.read().shapes} - {IGNORE}
        except ValueError:
            return
        if enough():
            return
    for picture in pictures:
        seen |= set(np.unique(picture if picture is not None else np.array([])).tolist()) - {IGNORE}
        if enough():
            return
    name, only = class_names[background], ", ".join(class_names[value] for value in sorted(seen)) or "nothing"
    ways = f"draw some of another class than {only}" if background in seen else (
        f"say what lies outside of the shapes (data.init_args.fill={name}), or mark some {name} in the files"
    )  # fmt: skip
    where = f"{next(iter(drawn)).path}{' and others' if len({one.path for one in drawn}) > 1 else ''}"
    raise ValueError(f"{where}: all that is labelled is {only}, so there is nothing to tell apart: {ways}")


__all__ = ["FORMATS", "Drawn", "check_classes", "find"]
