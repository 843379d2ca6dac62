"""Images with depth, cameras and boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.ops.array import Array
from common.ops.geometry import Intrinsics, check_pose, ray_to_z
from common.training.files import read_json
from datamodules.base import SegmentationDataModule
from datamodules.decode import naming
from datamodules.depth_layouts import LAYOUTS, Layout, boxes_of
from datamodules.files import default_color, find_images
from datamodules.splits import SPLITS, check_disjoint, first_few, read_list
from datamodules.splits import missing as lost_of
from datamodules.views import View, Views

FARTHEST = 100.0  # metres; more is another unit
LARGEST = 2**28  # bytes of a JSON file


class RGBD(Views, SegmentationDataModule):
    """Images with depth, cameras and boxes: `images/`, `depth/`, `cameras.json`, `boxes.json`, and masks to compare.

    `depth/ID.png` is a 16-bit PNG. `cameras.json` says of each id its `scene` (a room), `group` (views whose poses can
    be compared) and `world_to_camera` (4 x 4, metres; camera x right, y down, z forward), the last two null where the
    pose is unknown. `boxes.json` holds `intrinsics` (width, height, fx, fy, cx, cy; one for all, or one for each id;
    integer coordinates are the pixels' centres) and `boxes`, [x0, y0, x1, y1, class] by id; an image that it does not
    name has no boxes, one with an empty list shows no object. Masks are needed for val and test only. Files are found
    by stem. NYUv2's single file and raw SUN3D are not read: convert them to this.

    With `layout` the folder is an official one, 2D-3D-S or SUN RGB-D, see `datamodules.depth_layouts` (not tried on the
    official files); its boxes are those of the labelled objects, which nobody drew.

    Args:
        root: the folder, also with `train.txt`, `val.txt` and `test.txt`, split by room.
        depth_unit: metres per step of the depth files, 0.001 for millimetres; of an official layout it is known, as
            are the next option and `missing`.
        depth_kind: `z`: depth along the optical axis; `ray`: the length of the ray.
        classes: names, the first one `background`; default: those that `boxes.json` names.
        layout: `folder`: as above; `2d3ds`; `sunrgbd`.
        missing: value of depth that was not measured.
        sensor: how closely depth and poses must agree: `sensor` (Kinect-like, estimated poses) or `exact`.
        kwargs: see `datamodules.base.SegmentationDataModule`.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: bad content, named with the file and the way out.
    """

    background = 0

    def __init__(
        self,
        root: str,
        depth_unit: float | None = None,
        depth_kind: Literal["z", "ray"] | None = None,
        classes: list[str] | None = None,
        missing: int = 0,
        sensor: Literal["exact", "sensor"] = "sensor",
        layout: Literal["folder", "2d3ds", "sunrgbd"] = "folder",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.missing, self.sensor = Path(root).expanduser(), missing, sensor
        refuse_single_files(self.root)
        self.official: Layout | None = None
        if layout != "folder":
            if depth_unit is not None or depth_kind is not None or missing:
                raise ValueError(
                    f"data.layout={layout} says what its depth is: leave depth_unit, depth_kind, missing out"
                )
            self._read_official(layout, classes)
            return
        if depth_unit is None or not 0 < depth_unit < np.inf or depth_kind not in ("z", "ray"):
            raise ValueError(
                f"data.depth_unit is in metres per step and depth_kind z or ray, got {depth_unit} and {depth_kind}: "
                "say what the depth files hold"
            )
        self.depth_unit, self.depth_kind = depth_unit, depth_kind
        self.images = find_images(self.root / "images")
        self.masks = find_images(self.root / "masks", needed=False)
        self.depths: Mapping[str, Path] = find_images(self.root / "depth")
        self.files = {name: self.root / f"{name}.json" for name in ("cameras", "boxes")}
        boxes = read_entries(self.files["boxes"])
        self._name_classes(classes or boxes.get("classes"), str(self.files["boxes"]))
        self.splits = {split: read_list(self.root / f"{split}.txt", self.images) for split in SPLITS}
        check_disjoint(self.splits)
        listed = {name for names in self.splits.values() for name in names}
        for kind, found in (("images", self.images), ("depth", self.depths)):
            if lost := lost_of(listed, found):
                raise FileNotFoundError(
                    f"{self.root / kind} lacks {lost}: add the files, or take the ids off the lists"
                )
        if lost := lost_of({*self.splits["val"], *self.splits["test"]}, self.masks):
            raise ValueError(f"{self.root / 'masks'} lacks {lost}: val and test are compared with masks")
        self.views = self._read_views(read_entries(self.files["cameras"]), boxes, listed)
        self._check_rooms()
        self.boxed = self._read_boxes(boxes)

    def _name_classes(self, names: Any, where: str) -> None:
        if not isinstance(names, list) or len(names) < 2 or names[0] != "background":
            raise ValueError(f"{where} names no classes: give data.classes, the first one background")
        self.class_names = [str(name) for name in names]
        self.colors = [(60, 60, 60), *(default_color(number) for number in range(1, len(names)))]

    def _read_official(self, layout: str, classes: list[str] | None) -> None:
        self._name_classes(classes, f"data.layout={layout}")
        found = self.official = LAYOUTS[layout](self.root, self.class_names)
        self.images, self.masks, self.depths = found.images, found.labeled, found.depths
        self.depth_unit, self.depth_kind, self.missing = found.unit, "z", found.missing
        self.files, self.views, self.splits = found.cameras, found.views, found.splits
        check_disjoint(self.splits)
        self._check_rooms()
        self.boxed = dict.fromkeys(self.splits["train"], ())  # those who ask for the boxes read them

    def _read_views(self, cameras: Mapping[str, Any], boxes: Mapping[str, Any], names: set[str]) -> dict[str, View]:
        views: dict[str, View] = {}
        rooms: dict[str, str] = {}
        shared = boxes.get("intrinsics")
        for name in sorted(names):
            where = f"{self.files['cameras']}: {name}"
            one = cameras.get(name)
            if not isinstance(one, dict) or not isinstance(one.get("scene"), str):
                raise ValueError(f"{where} is not there, or has no scene: say which room it was taken in")
            group, matrix = one.get("group"), one.get("world_to_camera")
            if (group is None) != (matrix is None):
                raise ValueError(
                    f"{where} has a pose or a group, but not both: a pose means something in its group only"
                )
            pose = None
            if matrix is not None:
                try:
                    pose = torch.tensor(matrix, dtype=torch.float64)
                    check_pose(pose)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{where}: world_to_camera is no pose ({error})") from error
                if rooms.setdefault(str(group), one["scene"]) != one["scene"]:
                    raise ValueError(
                        f"{where}: group {group} has views of {rooms[str(group)]} and {one['scene']}, whose poses "
                        "cannot be compared: give each room groups of its own"
                    )
            camera = shared.get(name, shared) if isinstance(shared, dict) else None
            views[name] = View(one["scene"], None if group is None else str(group), self._camera(name, camera), pose)
        return views

    def _camera(self, name: str, content: Any) -> Intrinsics:
        try:
            numbers = [float(content[key]) for key in Intrinsics._fields]
        except (TypeError, KeyError, ValueError):
            raise ValueError(
                f"{self.files['boxes']}: intrinsics of {name} need the numbers {', '.join(Intrinsics._fields)}"
            ) from None
        if not np.isfinite(numbers).all() or min(numbers[:4]) <= 0 or any(side % 1 for side in numbers[:2]):
            raise ValueError(
                f"{self.files['boxes']}: intrinsics of {name} are not positive, or width and height no whole numbers: "
                f"{numbers}"
            )
        return Intrinsics(int(numbers[0]), int(numbers[1]), *numbers[2:])

    def _check_rooms(self) -> None:
        """Raise ValueError if a room is in two splits: its frames overlap."""
        of = {split: {self.views[name].scene for name in names} for split, names in self.splits.items()}
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            if both := of[one] & of[other]:
                raise ValueError(
                    f"room {first_few(both)} is in {one}.txt and {other}.txt: split by room, frames overlap"
                )

    def _read_boxes(self, content: Mapping[str, Any]) -> dict[str, list[list[float]]]:
        found = content.get("boxes")
        if not isinstance(found, dict):
            raise ValueError(f"{self.files['boxes']} has no boxes by id")
        kept: dict[str, list[list[float]]] = {}
        for name, rows in found.items():
            if name not in self.views:
                continue
            if not isinstance(rows, list):
                raise ValueError(f"{self.files['boxes']}: the boxes of {name}, {rows}, are no list")
            camera, kept[name] = self.views[name].camera, []
            for number, row in enumerate(rows):
                where = f"{self.files['boxes']}: box {number} of {name}, {row},"
                try:
                    if not isinstance(row, list):
                        raise TypeError
                    x0, y0, x1, y1, label = map(float, row)
                except (TypeError, ValueError):
                    raise ValueError(f"{where} is not [x0, y0, x1, y1, class]") from None
                if not 0 < label < self.num_classes or label != int(label):
                    raise ValueError(f"{where} is of no class: they are 1..{self.num_classes - 1}")
                # By a pixel at most: some count to the last pixel, others to the one behind it.
                across, down = -1 <= x0 <= x1 <= camera.width, -1 <= y0 <= y1 <= camera.height
                if not (across and down and x0 < camera.width and y0 < camera.height and x1 >= 0 and y1 >= 0):
                    raise ValueError(
                        f"{where} is not inside its image of {camera.width} x {camera.height} pixels: corners are x0, "
                        "y0, x1, y1, not a width and a height; cut it"
                    )
                kept[name].append([x0, y0, x1, y1, label])
        return kept

    def sources(self) -> dict[str, Mapping[str, Path]]:
        files = {path.name: path for path in self.files.values()}
        return {**super().sources(), "depth": self.depths, "views": files}

    def has_mask(self, name: str) -> bool:
        return name in self.masks

    def mask(self, name: str) -> Array | None:
        return super().mask(name) if self.official is None else self.official.labels(name)[0]

    def boxes(self, name: str) -> Sequence[Sequence[float]]:
        return super().boxes(name) if self.official is None else boxes_of(self.official.labels(name))

    def depth(self, name: str) -> Tensor:
        path, camera = self.depths[name], self.views[name].camera
        with naming(path), Image.open(path, formats=["PNG", "TIFF"]) as picture:
            kind = picture.mode
            steps = np.asarray(picture)
        if not kind.startswith("I") or steps.ndim != 2:
            raise ValueError(
                f"{path} is no 16-bit picture of one channel (it is {kind}, values {steps.min()} to {steps.max()}): "
                "depth in 8 bits, in colours or as disparity is not read"
            )
        if steps.shape != (camera.height, camera.width):
            raise ValueError(
                f"{path} is {steps.shape[0]} x {steps.shape[1]}, but its camera has {camera.height} x {camera.width} "
                "pixels: resize depth by nearest neighbours, and give the camera of that size"
            )
        if self.official is not None:
            steps = self.official.steps(steps)
        metres = np.where(steps == self.missing, 0, steps.astype(np.float64) * self.depth_unit)
        if metres.max() > FARTHEST and self.official is None:
            raise ValueError(
                f"{path} holds depth up to {metres.max():.0f} m at data.depth_unit={self.depth_unit:g}: millimetres "
                "have 0.001; raw files of SUN3D are rotated by three bits, (d >> 3) | (d << 13)"
            )
        depth = torch.from_numpy(metres)
        return ray_to_z(depth, camera) if self.depth_kind == "ray" else depth


def read_entries(path: Path) -> dict[str, Any]:
    """Entries by id. Raises FileNotFoundError, ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: it belongs to a folder with depth, see `RGBD`")
    return read_json(path, most=LARGEST)


def refuse_single_files(root: Path) -> None:
    """Raise ValueError for NYUv2 as it is published."""
    inside = [*root.glob("*.mat"), *root.glob("*.h5")] if root.is_dir() else []
    if inside or root.suffix in (".mat", ".h5", ".hdf5"):
        raise ValueError(
            f"{(inside or [root])[0]} is a single file (NYUv2's is HDF5), which is not read: write its images and "
            "depth as files, see `RGBD`"
        )
