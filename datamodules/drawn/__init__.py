"""What people draw with annotation tools, found in a data folder and turned into label maps; one format a file.

`FORMATS` says what is read. The files are found by where they lie and what they hold, and are never trusted: each
mistake is a ValueError that names the file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from operator import eq
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.class_list import background_of
from datamodules.decode import SUFFIXES
from datamodules.drawn import coco, cvat, label_studio, labelme, yolo
from datamodules.drawn.content import BOXES, FORMATS, brief, naming, read_json, recognise, unread
from datamodules.drawn.paint import Drawing, render
from datamodules.files import TOOLS_FOLDERS, visible_paths
from datamodules.names import Files
from datamodules.text import normal

# As the tools name a file of all images.
NAMES = ("coco.json", "result.json", "_annotations.coco.json", "instances_default.json", "annotations.json")

Parts = tuple[str, ...]  # a path without its suffix
Sources = dict[str, tuple[Path, Callable[[], Drawing]]]  # by image id: the file, and what reads it


class Drawn(NamedTuple):
    """Where the drawing of an image comes from, how it is read, and how it becomes a label map (H, W) uint8."""

    path: Path
    read: Callable[[], Drawing]
    mask: Callable[[], Array]


def find(
    root: Path, images: Mapping[str, Path], class_names: Sequence[str], fill: int | None, needed: bool = True
) -> dict[str, Drawn]:
    """The drawings of a data folder by image id, empty if there are none.

    There is one file of all images, or a file for each: labelme's beside the images or in `masks/` (where pictures may
    lie too), YOLO's in `labels/`. Images without a shape count as drawn where `fill` says what they show. A drawing
    whose image is not there has its own name as id.

    Args:
        root: the folder; the images lie below `images/`.
        images: file of each image.
        class_names: the classes.
        fill: class id of what lies outside the shapes; None: 255.
        needed: whether there must be some, or pictures.

    Raises:
        FileNotFoundError: there are none, and no `masks/` either.
        ValueError: files that contradict each other, or one of all images that cannot be used; the rest is read later.
    """
    inside, masks, labels = root / "images", root / "masks", root / "labels"
    folders = images.folders() if isinstance(images, Files) else {path.parent for path in images.values()}
    beside = [path for folder in {inside, *folders} for path in folder.glob("*.json")]
    in_masks, texts = files_below(masks, ".json"), files_below(labels, ".txt")
    some = beside or in_masks or texts or files_of_all(root, [], [])  # there may be a million images, and nothing drawn
    ids = {parts_of(path.relative_to(inside).as_posix()): name for name, path in images.items()} if some else {}
    below = []
    sources: Sources = {}
    for folder, paths in ((inside, beside), (masks, in_masks)):
        for path in shown(paths, folder):
            parts = parts_of_file(path, folder, ids)
            if parts in ids or path.name not in NAMES:
                add(sources, ids, parts, path, partial(labelme.read, path, class_names))
            elif folder == inside:
                below.append(path)
            else:
                raise ValueError(f"{path} is called like a file of all images: put it into {root}, or rename it")
    texts = [path for path in texts if path != labels / "classes.txt"]
    values = yolo.numbering(root, class_names, fill) if texts else []
    for path in texts:
        add(sources, ids, parts_of_file(path, labels, ids), path, partial(yolo.read, path, values, class_names))
    whole = files_of_all(root, below, {path for path, _ in sources.values()})
    for path in whole:
        within = path.parent.relative_to(inside).parts if inside in path.parents else ()
        with naming(path):
            drawings = matched(read_all(path, class_names, fill is not None), ids, within)
        for parts, read in drawings.items():
            add(sources, ids, parts, path, read)
    if whole and not sources:
        raise ValueError(f"{whole[0]}: none of its images has a shape: draw some")
    if needed and not (sources or masks.exists()):
        raise FileNotFoundError(f"{root} has neither masks/ nor files of annotation tools. What is read: {FORMATS}")
    found = {}
    for name, (path, read) in sources.items():
        reading = partial(named, f"{path}, image {name}" if path in whole else str(path), read)
        found[name] = Drawn(path, reading, partial(mask, reading, images.get(name), fill))
    return found


def add(sources: Sources, ids: Mapping[Parts, str], parts: Parts, path: Path, read: Callable[[], Drawing]) -> None:
    """Put what is in `path` under the id of the image with these parts. Raises ValueError if that has a source."""
    name = ids.get(parts, "/".join(parts))
    if name in sources:
        raise ValueError(f"{sources[name][0]} and {path} are of one image, {name}: keep one of them")
    sources[name] = (path, read)


def files_of_all(root: Path, below: Sequence[Path], single: Collection[Path]) -> list[Path]:
    """Files of all images: one in the data folder or in `annotations/`, under a name of `NAMES`, or under any if there
    is nothing else; or those in `images/` and below, `below`, one for each folder, as Roboflow writes them.

    Raises:
        ValueError: there are several, or other drawings than these (`single`: files of one image).
    """
    found = [root / place / name for place in ("", "annotations") for name in (*NAMES, "annotations.xml")]
    found = [path for path in found if path.is_file()]
    if not (found or below or single or (root / "masks").exists()):
        found = [path for folder in (root, root / "annotations") for path in shown(folder.glob("*.json"), folder)]
        found = [path for path in found if path != root / BOXES]
    places = [path.relative_to(root).as_posix() for path in found]
    folders = {f"{path.relative_to(root).parts[0]}/*{path.suffix}" for path in single}
    if places or below or "labels/*.txt" in folders:  # only pictures and labelme's files may be mixed
        places += sorted(folders)
        places += ["masks/"] if (root / "masks").exists() and "masks/*.json" not in folders else []
    if places or len({path.parent for path in below}) < len(below):
        places += [path.relative_to(root).as_posix() for path in below]
    if len(places) > 1:
        raise ValueError(f"{root} has both {places[0]} and {', '.join(places[1:])}: which one holds? remove the other")
    return [*found, *below]


def shown(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Paths in a folder in order, without hidden ones and copies that systems make."""
    parts = {path: path.relative_to(folder).parts for path in paths}
    return sorted(path for path in parts if not any(part[0] == "." or part in TOOLS_FOLDERS for part in parts[path]))


def files_below(folder: Path, suffix: str) -> list[Path]:
    """The files of a suffix in a folder and those below, linked ones too, without hidden ones; none if there is no
    folder."""
    paths = visible_paths(folder, nested=True) if folder.is_dir() else ()
    return [folder / path for path in paths if path.endswith(suffix)]


def parts_of_file(path: Path, folder: Path, ids: Mapping[Parts, str]) -> Parts:
    """The parts of the image of a file `NAME.json` or `NAME.jpg.json` in a folder."""
    name = path.relative_to(folder).with_suffix("").as_posix()
    whole = tuple(normal(name).split("/"))
    return whole if whole in ids else parts_of(name)


def parts_of(name: str) -> Parts:
    """The parts of a path without its image suffix, whatever system wrote it."""
    *folders, last = [part for part in normal(name).replace("\\", "/").split("/") if part] or [""]
    path = PurePosixPath(last)
    return (*folders, path.stem if path.suffix.lower() in SUFFIXES else last)


def read_all(path: Path, class_names: Sequence[str], keep_empty: bool) -> dict[str, Callable[[], Drawing]]:
    """The drawings of a file of all images, by the names that it has for them."""
    if path.suffix == ".xml":
        return cvat.read(path, class_names, keep_empty)
    content = read_json(path)
    kind = recognise(content)
    if kind == "coco":
        return coco.read(path, content, class_names, keep_empty)
    if kind == "label_studio":
        return label_studio.read(content, class_names, keep_empty)
    raise ValueError(unread(content))


def matched(
    drawings: Mapping[str, Callable[[], Drawing]], ids: Mapping[Parts, str], within: Parts
) -> dict[Parts, Callable[[], Drawing]]:
    """Drawings by the parts of the images. Names are paths, which begin in the folder `within` of `images/`."""
    tails: dict[str, list[Parts]] = defaultdict(list)
    for parts in ids:
        tails[parts[-1]].append(parts)
    found: dict[Parts, Callable[[], Drawing]] = {}
    names: dict[Parts, str] = {}
    for name, read in drawings.items():
        parts = (*within, *parts_of(name))
        match = best_match(parts, tails)
        if match is None and not read().shapes:
            continue  # of an image that is not there
        parts = match or parts
        if parts in found:
            raise ValueError(f"its images {brief(names[parts])} and {brief(name)} are one file: keep one of them")
        found[parts], names[parts] = read, name
    return found


def best_match(parts: Parts, tails: Mapping[str, Sequence[Parts]]) -> Parts | None:
    """The image file that a path means: the paths agree from the end on, as far as the shorter one goes.

    Where nothing has that name, the eight digits that Label Studio puts before the names of uploaded files are left
    out.

    Raises:
        ValueError: there are several.
    """
    if parts[-1] not in tails and (match := re.fullmatch(r"[0-9a-f]{8}-(.+)", parts[-1])):
        parts = (*parts[:-1], match[1])
    ends = [one for one in tails.get(parts[-1], ()) if all(map(eq, reversed(one), reversed(parts)))]
    longest = [parts] if parts in ends else [one for one in ends if len(one) == max(map(len, ends))]
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
    background = background_of(class_names) or 0
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
