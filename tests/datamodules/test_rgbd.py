"""`RGBD`: a folder with depth, drawn small, and every fault of it by name."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from common.ops.geometry import rays
from conftest import ROOT
from datamodules.annotation import people_boxes
from datamodules.sets.rgbd import RGBD
from datamodules.sets.rooms import Rooms
from datamodules.supervision import Supervision

SHARED = ROOT.parent / "shared" / "data"
CLASSES = ["background", "box", "cylinder", "table"]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Three rooms of four views each, one room a split, in the layout of `RGBD`."""
    root = tmp_path_factory.mktemp("rgbd")
    rooms = Rooms(1, 1, 1, around=4, width=64, noise="none")
    for folder in ("images", "masks", "depth"):
        (root / folder).mkdir()
    cameras, boxes = {}, {}
    for split in ("train", "val", "test"):
        (root / f"{split}.txt").write_text("\n".join(rooms.names(split)))
        for name in rooms.names(split):
            seen, view = rooms.rendered(name), rooms.views[name]
            Image.fromarray(seen.image).save(root / "images" / f"{name}.png")
            Image.fromarray(seen.mask).save(root / "masks" / f"{name}.png")
            Image.fromarray((seen.depth * 1000).round().astype(np.uint16)).save(root / "depth" / f"{name}.png")
            cameras[name] = {"scene": view.scene, "group": view.group, "world_to_camera": view.pose.tolist()}
            boxes[name] = seen.boxes
    (root / "cameras.json").write_text(json.dumps(cameras))
    intrinsics = view.camera._asdict()
    (root / "boxes.json").write_text(json.dumps({"classes": CLASSES, "intrinsics": intrinsics, "boxes": boxes}))
    return root


@pytest.fixture
def root(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "data")


def opened(root, **options):
    return RGBD(str(root), **{"depth_unit": 0.001, "depth_kind": "z", **options})


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_images_depth_boxes_and_poses_are_read(root):
    data, rooms = opened(root), Rooms(1, 1, 1, around=4, width=64, noise="none")
    name = data.names("train")[0]
    assert [*data.class_names] == CLASSES
    assert (data.image(name) == rooms.image(name)).all()
    assert (data.depth(name) - rooms.depth(name)).abs().max() < 0.00051
    assert torch.equal(data.views[name].pose, rooms.views[name].pose)
    assert data.boxes(name) == rooms.boxes(name)
    assert data.sequence(name) == "train000"
    assert data.groups(data.names("train")) == {"train000": data.names("train")}
    assert data.agreement("train000", data.names("train")) > 0.9
    assert {"depth", "views"} <= data.sources().keys()


def test_the_length_of_rays_becomes_depth_and_missing_is_zero(root):
    data, name = opened(root, depth_kind="ray"), "train000_00"
    factor = rays(data.views[name].camera).norm(dim=-1)
    torch.testing.assert_close(data.depth(name) * factor, opened(root).depth(name))
    steps = np.asarray(Image.open(root / "depth" / f"{name}.png"))
    assert (opened(root, missing=int(steps[5, 5])).depth(name)[5, 5] == 0).item()


def set_pose(root, name, matrix, group="train000"):
    edit(root / "cameras.json", lambda c: c[name].update(world_to_camera=matrix, group=group))


def pose(root, name):
    return np.array(json.loads((root / "cameras.json").read_text())[name]["world_to_camera"])


def set_box(root, box):
    edit(root / "boxes.json", lambda c: c["boxes"].update(train000_00=[box]))


def write_depth(root, values):
    Image.fromarray(values).save(root / "depth" / "train000_00.png")


FAULTS = {
    "box outside": (lambda r: set_box(r, [3, 3, 70, 20, 1]), "box 0 of train000_00.*not inside its image of 64 x 48"),
    "box of width and height": (lambda r: set_box(r, [30, 30, 9, 9, 1]), "corners are x0, y0, x1, y1, not a width"),
    "box of no class": (lambda r: set_box(r, [3, 3, 9, 9, 4]), r"of no class: they are 1\.\.3"),
    "box of words": (lambda r: set_box(r, ["a", 3, 9, 9, 4]), "is not .x0, y0, x1, y1, class."),
    "scaled pose": (
        lambda r: set_pose(r, "train000_00", (pose(r, "train000_00") * 1.1).tolist()), "train000_00: .*no rotation"
    ),
    "mirrored pose": (
        lambda r: set_pose(r, "train000_00", (np.diag([-1, 1, 1, 1]) @ pose(r, "train000_00")).tolist()), "reflection"
    ),
    "pose of words": (lambda r: set_pose(r, "train000_00", "here"), "world_to_camera is no pose"),
    "pose without a group": (lambda r: set_pose(r, "train000_00", np.eye(4).tolist(), None), "a pose or a group"),
    "group over rooms": (
        lambda r: set_pose(r, "val000_00", np.eye(4).tolist()), "group train000 has views of .*cannot be compared"
    ),
    "room in two splits": (
        lambda r: edit(r / "cameras.json", lambda c: c["val000_00"].update(scene="train000")),
        "group val000 has views of|room train000 is in",
    ),
    "no scene": (lambda r: edit(r / "cameras.json", lambda c: c.pop("val000_00")), "has no scene"),
    "no intrinsics": (lambda r: edit(r / "boxes.json", lambda c: c["intrinsics"].pop("fx")), "need the numbers"),
    "no classes": (lambda r: edit(r / "boxes.json", lambda c: c.pop("classes")), "give data.classes"),
    "broken": (lambda r: (r / "cameras.json").write_text("{"), "cameras.json is broken"),
    "a list": (lambda r: (r / "cameras.json").write_text("[]"), "holds no object"),
    "missing": (lambda r: (r / "boxes.json").unlink(), "boxes.json does not exist"),
    "no depth": (lambda r: (r / "depth" / "train000_00.png").unlink(), "depth lacks train000_00"),
    "no mask of val": (lambda r: (r / "masks" / "val000_00.png").unlink(), "masks lacks val000_00"),
    "NYUv2": (lambda r: (r / "nyu_depth_v2_labeled.mat").write_bytes(b""), "nyu_depth_v2_labeled.mat is a single file"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_folders_are_refused_by_name(fault, root):
    change, told = FAULTS[fault]
    change(root)
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        opened(root)


DEPTHS = {
    "8 bits": (np.full((48, 64), 200, np.uint8), {}, "no 16-bit picture .* values 200 to 200"),
    "colours": (np.full((48, 64, 3), 200, np.uint8), {}, "no 16-bit picture"),
    "another size": (np.full((24, 32), 2000, np.uint16), {}, "24 x 32, but its camera has 48 x 64"),
    "millimetres as metres": (np.full((48, 64), 2000, np.uint16), {"depth_unit": 1}, "2000 m at data.depth_unit=1"),
}


@pytest.mark.parametrize("fault", DEPTHS)
def test_bad_depth_is_refused_with_its_range(fault, root):
    values, options, told = DEPTHS[fault]
    write_depth(root, values)
    with pytest.raises(ValueError, match=told):
        opened(root, **options).depth("train000_00")


def test_boxes_of_people_are_painted_at_the_training_size(root):
    set_box(root, [8, 8, 23, 15, 2])
    data = opened(root, size=[24, 32], supervision=Supervision("boxes", real=True, inside="filled"))
    wanted = np.zeros((24, 32), np.uint8)
    wanted[4:8, 4:12] = 2
    image = np.zeros((24, 32, 3), np.uint8)
    np.testing.assert_array_equal(people_boxes(data.boxes("train000_00"), (48, 64), (24, 32), data, image), wanted)
    assert data.lists()[0] == data.names("train")
    edit(root / "boxes.json", lambda c: c["boxes"].pop("train000_01"))
    data = opened(root, supervision=Supervision("boxes", real=True))
    assert data.lists() == ([n for n in data.names("train") if n != "train000_01"], ["train000_01"])


def test_suns_rotated_bits_come_back():
    for millimetres, stored in ((1234, 9872), (9999, 14457)):
        d = np.uint16(stored)
        assert ((d >> 3) | (d << 13)) & 0xFFFF == millimetres


@pytest.mark.skipif(not (SHARED / "sun3d_tables").is_dir(), reason="needs SUN3D tables in ../shared/data")
def test_real_frames_agree_with_their_estimated_poses():
    data = opened(SHARED / "sun3d_tables", classes=["background", "table"])
    assert [len(data.names(split)) for split in ("train", "val", "test")] == [152, 28, 60]
    groups = data.groups(data.names("val"))
    assert sum(map(len, groups.values())) == 26
    largest = max(groups, key=lambda group: len(groups[group]))
    assert data.agreement(largest, groups[largest][:4]) > 0.8


@pytest.mark.skipif(not (SHARED / "ycbv_sample").is_dir(), reason="needs the YCB-Video sample in ../shared/data")
def test_several_classes_and_true_poses(tmp_path):
    for path in (SHARED / "ycbv_sample").iterdir():
        (tmp_path / path.name).symlink_to(path)
    for split, scenes in (("train", ("0000", "0001", "0002")), ("val", ("0049",)), ("test", ("0050",))):
        names = [one for one in (SHARED / "ycbv_sample" / "all.txt").read_text().split() if one[:4] in scenes]
        (tmp_path / f"{split}.txt").write_text("\n".join(names))
    data = opened(tmp_path)
    assert len(data.class_names) == 22
    for group, names in data.groups(data.names("train")).items():
        assert data.agreement(group, names) > 0.9
