"""Official layouts of sets with depth, for `RGBD(layout=...)`. Written after what is published about the files, tested
on small files of the same layout, **not tried on the official ones**.

2D-3D-S (Armeni et al. 2017, arXiv 1702.01105), of `README.md` and `assets/utils.py` of
github.com/alexsax/2D-3D-Semantics: folders, file names, pose files, depth (16-bit PNG, 1/512 m a step, 65535 missing,
*along z* in `data/`; the panoramas in `pano/` have distances and are not read), labels (RGB is a number of 24 bits, an
index into `semantic_labels.json`, whose entries are `class_instance_roomType_room_area`; 0x0D0D0D is missing). The
README calls `camera_rt_matrix` 4 x 3; programs that use it read rows of 3 x 4, world to camera, axes x right, y down, z
forward. So it is read, and checked: it must carry the file's `camera_location` to 0. Not documented: that
`camera_k_matrix` counts from the image's corner [ours: 540 is the middle of 1080 pixels], so half a pixel is taken off.

SUN RGB-D (Song et al. 2015), of the toolbox's `readme.txt` and `read3dPoints.m` and its ports in Python: folders, depth
`(v >> 3) | (v << 13)` in uint16, millimetres along z, 0 missing; `intrinsics.txt` is the matrix K row by row, for
pixels that are counted from 1 as in MATLAB, so one is taken off. `extrinsics/` has a rotation to gravity and no
position: frames have no pose. Labels are polygons of `annotation2Dfinal/index.json`, `{"objects": [{"name"}], "frames":
[{"polygon": [{"x", "y", "object"}]}]}`, as programs read them; the toolbox itself makes its 37 classes from .mat files,
which are not read. A few of the official files are said to be broken JSON: they are refused by name. What stands behind
a colon in a name is left out [ours].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from common.ops.array import Array
from common.ops.batch import IGNORE
from common.ops.geometry import Intrinsics, check_pose
from datamodules.decode import decode, stored_size
from datamodules.drawn.content import brief, coordinates, naming, read_json, read_text, take
from datamodules.files import find_images, image_id
from datamodules.splits import SPLITS, in_hash_order, read_list
from datamodules.splits import missing as lost_of
from datamodules.views import View

Labels = tuple[Array, NDArray[np.int64]]  # class ids and 255, uint8 (H, W); numbers of objects, 0 where there is none
MISSING = 0x0D0D0D  # of 2D-3D-S's labels
LEAST = 30 / (160 * 120)  # share of the image that an object needs to get a box [ours]
TEXT = 2**16  # bytes of a file of intrinsics


class Layout(NamedTuple):
    """A folder as it lies there: files by id, splits, views, and what the numbers in the files mean."""

    images: dict[str, Path]
    depths: dict[str, Path]
    labeled: dict[str, Path]
    cameras: dict[str, Path]
    views: dict[str, View]
    splits: dict[str, list[str]]
    unit: float  # metres a step
    missing: int
    steps: Callable[[Array], Array]  # of the numbers in a depth file
    labels: Callable[[str], Labels]


def boxes_of(labels: Labels) -> list[list[float]]:
    """x0, y0, x1, y1, class of each object of some size, the last pixels included: simulated, nobody drew them."""
    mask, objects = labels
    found = []
    for number in np.unique(objects[(objects > 0) & (mask != IGNORE) & (mask > 0)]).tolist():
        where = objects == number
        if where.mean() >= LEAST:
            rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
            corners = map(float, (columns[0], rows[0], columns[-1], rows[-1]))
            found.append([*corners, float(mask[where][0])])
    return found


def stanford(root: Path, class_names: Sequence[str]) -> Layout:
    """2D-3D-S: `area_N/data/{rgb,depth,pose,semantic}` and `assets/semantic_labels.json`; classes that are not named
    are background. The views of a room are a group. Lists are `train.txt` and so on, if there are any; else areas 5a
    and 5b are for test, as most do, or a fifth of the rooms where these are missing or alone; and a fifth of the other
    rooms is for val [ours]."""
    areas = [path.parent for path in sorted(root.glob("area_*/data")) if path.is_dir()]
    if not areas:
        raise FileNotFoundError(f"{root} has no area_1/data or the like: give the folder with the areas as data.root")
    found: dict[str, dict[str, Path]] = {}
    for part in ("rgb", "depth", "semantic"):
        found[part] = {}
        for area in areas:
            files = find_images(area / "data" / part)
            found[part] |= {f"{area.name}/{frame_of(name)}": path for name, path in files.items()}
    poses = {f"{area.name}/{frame_of(p.stem)}": p for area in areas for p in (area / "data" / "pose").glob("*.json")}
    images = found["rgb"]
    for part, paths in (("depth", found["depth"]), ("pose", poses), ("semantic", found["semantic"])):
        if lost := lost_of(images, paths):
            raise FileNotFoundError(f"{root}: data/{part} lacks {lost}: add the files, or remove the images")
    views = {}
    for name in images:
        with naming(poses[name]):
            views[name] = posed(read_json(poses[name]), images[name])
    file = root / "assets" / "semantic_labels.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: it is in the set's repository, alexsax/2D-3D-Semantics")
    with naming(file):
        table = classes_of(read_json(file), class_names)
    return Layout(
        images, found["depth"], found["semantic"], {**poses, file.name: file}, views, split(root, views, images),
        1 / 512, 2**16 - 1, np.asarray, lambda name: coded(found["semantic"][name], table),
    )  # fmt: skip


def frame_of(stem: str) -> str:
    """What files of a frame share, `camera_ID_room_1_frame_2_domain`; what follows is rgb, depth, pose or semantic."""
    return stem.rpartition("_")[0].rstrip("_")


def posed(content: Any, image: Path) -> View:
    k, rt = (numbers_of(take(content, f"camera_{key}_matrix", list)) for key in ("k", "rt"))
    if k.shape != (3, 3) or rt.shape != (3, 4):
        raise ValueError(f"camera_k_matrix is {k.shape} and camera_rt_matrix {rt.shape}, not (3, 3) and (3, 4)")
    place = numbers_of(take(content, "camera_location", list))
    if place.shape != (3,) or np.abs(rt[:, :3] @ place + rt[:, 3]).max() > 0.01:
        raise ValueError("camera_rt_matrix does not carry camera_location to 0: it is not world to camera, in metres")
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3] = torch.from_numpy(rt)
    check_pose(pose)
    height, width = stored_size(image)[0]
    room = take(content, "room", str)
    return View(room, room, Intrinsics(width, height, k[0, 0], k[1, 1], k[0, 2] - 0.5, k[1, 2] - 0.5), pose)


def numbers_of(rows: list[Any]) -> NDArray[np.float64]:
    """A list of numbers, or of lists of them."""
    try:
        found = np.array(rows, np.float64)
    except (TypeError, ValueError, OverflowError):
        found = np.array([np.nan])
    if found.size > 16 or not np.isfinite(found).all():
        raise ValueError(f"{brief(rows)} stands where a matrix or a place should")
    return found


def classes_of(entries: Any, class_names: Sequence[str]) -> Array:
    """uint8, the class of each entry of `semantic_labels.json`; 255: unknown."""
    if not isinstance(entries, list) or not all(isinstance(one, str) for one in entries) or len(entries) >= MISSING:
        raise ValueError("it is no list of labels")
    words = [one.split("_")[0] for one in entries]
    if absent := {*class_names[1:]} - {*words}:
        raise ValueError(f"it has no {', '.join(sorted(absent))}: data.classes are of {', '.join(sorted({*words}))}")
    ids = {name: number for number, name in enumerate(class_names)}
    return np.array([IGNORE if word == "<UNK>" else ids.get(word, 0) for word in words], np.uint8)


def coded(path: Path, table: Array) -> Labels:
    pixels = decode(path).pixels
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"{path} is no RGB picture of 8 bits: is it that of semantic/?")
    numbers = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    known = numbers != MISSING
    if (wrong := known & (numbers >= len(table))).any():
        raise ValueError(f"{path} holds the label {numbers[wrong][0]}, but semantic_labels.json has {len(table)}")
    mask = np.where(known, table[np.where(known, numbers, 0)], IGNORE).astype(np.uint8)
    return mask, np.where(known, numbers + 1, 0)


def split(root: Path, views: Mapping[str, View], names: Mapping[str, Path]) -> dict[str, list[str]]:
    if any((root / f"{part}.txt").exists() for part in SPLITS):
        return {part: read_list(root / f"{part}.txt", names) for part in SPLITS}
    fold = {view.scene for name, view in views.items() if name.startswith(("area_5a/", "area_5b/"))}
    rooms = in_hash_order({view.scene for view in views.values()})
    test = fold if 0 < len(fold) < len(rooms) else {*rooms[::5]}
    rest = [room for room in rooms if room not in test]
    val = {*rest[::5]}
    if len(rest) < 2:
        raise ValueError(f"{root} has {len(rooms)} rooms, too few to keep some for val and test: write train.txt, ...")
    of = {room: "test" if room in test else "val" if room in val else "train" for room in rooms}
    return {part: [name for name, view in views.items() if of[view.scene] == part] for part in SPLITS}


def sun(root: Path, class_names: Sequence[str]) -> Layout:
    """SUN RGB-D: folders with `image/`, `depth_bfx/`, `intrinsics.txt` and `annotation2Dfinal/index.json`, one a frame,
    anywhere below the root; an id is the folder's path. `train.txt`, `val.txt` and `test.txt` list them: the official
    split is in the toolbox's `allsplit.mat`. What no polygon covers has no label, other names are background."""
    frames = {}
    for path in sorted(root.rglob("intrinsics.txt")):
        if path.parent.name != "fullres":
            frames[image_id(path.parent.relative_to(root) / "x").rpartition("/")[0]] = path.parent
    if not frames:
        raise FileNotFoundError(f"{root} has no folder with intrinsics.txt: give the folder SUNRGBD as data.root")
    splits: dict[str, list[str]] = {part: read_list(root / f"{part}.txt", frames) for part in SPLITS}
    listed = {name: frames[name] for names in splits.values() for name in names if name in frames}
    if lost := lost_of({name for names in splits.values() for name in names}, frames):
        raise FileNotFoundError(f"{root} has no frame {lost}: the lists are of folders such as {next(iter(frames))}")
    images, depths, labeled, cameras, views = {}, {}, {}, {}, {}
    for name, folder in listed.items():
        images[name], depths[name] = (only(folder / part) for part in ("image", "depth_bfx"))
        labeled[name], cameras[name] = folder / "annotation2Dfinal" / "index.json", folder / "intrinsics.txt"
        if not labeled[name].is_file():
            raise FileNotFoundError(f"{labeled[name]} does not exist: take the frame off the lists")
        with naming(cameras[name]):
            (height, width), words = stored_size(images[name])[0], read_text(cameras[name], TEXT).split()
            k = coordinates([*words, "0"]).ravel()[:-1] if len(words) == 9 else np.empty(0)
            if len(k) != 9 or min(k[0], k[4]) <= 0:
                raise ValueError(f"it has {len(words)} numbers, not the 9 of a camera matrix")
        views[name] = View(name, None, Intrinsics(width, height, k[0], k[4], k[2] - 1, k[5] - 1), None)
    return Layout(
        images, depths, labeled, cameras, views, splits, 0.001, 0, rotated,
        lambda name: outlined(labeled[name], views[name].camera, class_names),
    )  # fmt: skip


def only(folder: Path) -> Path:
    """The one picture of a folder."""
    found = [*find_images(folder).values()]
    if len(found) > 1:
        raise ValueError(f"{folder} holds {len(found)} pictures, {found[0].name} and others: keep that of the frame")
    return found[0]


def rotated(stored: Array) -> Array:
    """Millimetres of the toolbox's 16 bits, of which the last three come first."""
    bits = stored.astype(np.uint16)
    return (bits >> 3) | (bits << 13)


def outlined(path: Path, camera: Intrinsics, class_names: Sequence[str]) -> Labels:
    """Polygons painted in their order."""
    mask = Image.new("L", (camera.width, camera.height), IGNORE)
    objects = Image.new("I", mask.size, 0)
    with naming(path):
        content = read_json(path)
        names = take(content, "objects", list)
        frames = take(content, "frames", list)
        for number, one in enumerate(take(frames[0] if frames else {}, "polygon", list), 1):
            with naming(f"polygon {number - 1}"):
                ring = [list(pair) for pair in zip(take(one, "x", list), take(one, "y", list), strict=True)]
                index = take(one, "object", int)
                if not 0 <= index < len(names):
                    raise ValueError(f"it is of object {index}, and there are {len(names)}")
                word = take(names[index], "name", str).split(":")[0].strip().lower()
                if len(ring) < 3:  # no pixel is in it
                    continue
                points = coordinates(ring).ravel().tolist()
            label = class_names.index(word) if word in class_names else 0
            ImageDraw.Draw(mask).polygon(points, fill=label)
            ImageDraw.Draw(objects).polygon(points, fill=number)
    return np.asarray(mask), np.asarray(objects).astype(np.int64)


LAYOUTS: dict[str, Callable[[Path, Sequence[str]], Layout]] = {"2d3ds": stanford, "sunrgbd": sun}
