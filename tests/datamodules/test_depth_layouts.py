"""2D-3D-S and SUN RGB-D as they are published, drawn small."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.ops.batch import IGNORE
from datamodules.depth_layouts import rotated
from datamodules.sets.rgbd import RGBD
from datamodules.sets.rooms import Rooms

CLASSES = ["background", "box", "cylinder", "table"]
AREAS = {"train000": "area_1", "train001": "area_1", "train002": "area_3", "val000": "area_5a"}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="module")
def rooms():
    return Rooms(3, 1, 1, around=4, width=64, noise="none")


def stanford_name(name):
    """Two underscores before what a file is, as the set's README writes them."""
    room, view = name.split("_")
    return f"{AREAS[room]}/camera_{room}f0_office_{room[-1]}_frame_{int(view)}_domain"


@pytest.fixture
def stanford(rooms, tmp_path):
    """Rooms of three areas; objects are numbers in a list of labels."""
    entries = ["<UNK>_0_<UNK>_0_0"]
    for name in (n for split in ("train", "val") for n in rooms.names(split)):
        seen, view, (area, frame) = rooms.rendered(name), rooms.views[name], stanford_name(name).split("/")
        folder, numbers = tmp_path / area / "data", np.full(seen.mask.shape, 0x0D0D0D)
        for instance in np.unique(seen.instances):
            label = CLASSES[seen.mask[seen.instances == instance][0]] if instance else "wall"
            numbers[seen.instances == instance] = len(entries)
            entries.append(f"{label}_{instance}_office_{name[-4]}_1")
        numbers[0, :5], numbers[1, :5] = 0x0D0D0D, 0
        colors = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], -1).astype(np.uint8)
        steps = (seen.depth * 512).round().astype(np.uint16)
        steps[2, :5] = 65535
        for part, sign, array in (("rgb", "__", seen.image), ("depth", "_", steps), ("semantic", "_", colors)):
            save(folder / part / f"{frame}{sign}{part}.png", array)
        fx, fy, cx, cy = view.camera[2:]
        pose = {
            "camera_k_matrix": [[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1]],
            "camera_rt_matrix": view.pose[:3].tolist(),
            "camera_location": (-view.pose[:3, :3].T @ view.pose[:3, 3]).tolist(),
            "room": f"office_{name.split('_')[0]}",
        }
        (folder / "pose").mkdir(exist_ok=True)
        (folder / "pose" / f"{frame}_pose.json").write_text(json.dumps(pose))
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "semantic_labels.json").write_text(json.dumps(entries))
    return tmp_path


def test_2d3ds_is_what_was_rendered(stanford, rooms):
    data = RGBD(str(stanford), classes=CLASSES, layout="2d3ds", sensor="exact")
    assert {split: len(data.names(split)) for split in ("train", "val", "test")} == {"train": 8, "val": 4, "test": 4}
    assert {name.split("/")[0] for name in data.names("test")} == {"area_5a"}
    for room in AREAS:
        name, other = stanford_name(f"{room}_01"), f"{room}_01"
        seen, wanted = rooms.rendered(other), rooms.rendered(other).mask.copy()
        wanted[:2, :5] = IGNORE
        np.testing.assert_array_equal(data.mask(name), wanted)
        np.testing.assert_array_equal(data.image(name), seen.image)
        depth = torch.from_numpy(seen.depth)
        depth[2, :5] = 0
        assert (data.depth(name) - depth).abs().max() <= 0.5 / 512
        assert data.boxes(name) == seen.boxes
        assert torch.equal(data.views[name].pose, rooms.views[other].pose)
        assert data.views[name].camera == pytest.approx(rooms.views[other].camera)
    for group, names in data.groups(data.names("train")).items():
        room = group.removeprefix("office_")
        wanted = rooms.agreement(room, [name for name in rooms.views if name.startswith(room)])
        assert data.agreement(group, names) == pytest.approx(wanted, abs=0.03)
        assert len(names) == 4
    assert data.lists()[0] == data.names("train")
    assert data.boxed.keys() == {*data.names("train")}


def change(path, **more):
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def inverted(root, pose):
    content = json.loads(pose.read_text())
    matrix = np.linalg.inv(np.array([*content["camera_rt_matrix"], [0, 0, 0, 1]]))
    change(pose, camera_rt_matrix=matrix[:3].tolist())


STANFORD = {
    "camera to world": (inverted, "_pose.json: camera_rt_matrix does not carry camera_location to 0"),
    "4 x 3": (
        lambda r, p: change(p, camera_rt_matrix=[[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]), r"is \(3, 3\) .*\(4, 3\)"
    ),
    "words": (lambda r, p: change(p, camera_k_matrix=[["a"]]), "_pose.json: .*stands where a matrix"),
    "no pose": (lambda r, p: p.unlink(), "data/pose lacks area_1"),
    "no depth": (lambda r, p: next((r / "area_3/data/depth").iterdir()).unlink(), "data/depth lacks area_3"),
    "no labels": (lambda r, p: (r / "assets/semantic_labels.json").unlink(), "semantic_labels.json does not exist"),
    "other classes": (
        lambda r, p: (r / "assets/semantic_labels.json").write_text('["wall_1_a_1"]'), "it has no box, cylinder, table"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", STANFORD)
def test_bad_2d3ds_is_refused_by_name(fault, stanford):
    spoil, told = STANFORD[fault]
    spoil(stanford, sorted((stanford / "area_1/data/pose").iterdir())[0])
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        RGBD(str(stanford), classes=CLASSES, layout="2d3ds")


def test_labels_beyond_the_list_and_options_that_are_known_are_refused(stanford, tmp_path):
    path = stanford / "assets/semantic_labels.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:2] + CLASSES[1:]))
    data = RGBD(str(stanford), classes=CLASSES, layout="2d3ds")
    with pytest.raises(ValueError, match=r"semantic.*holds the label \d+, but semantic_labels.json has 5"):
        data.mask(data.names("test")[0])
    with pytest.raises(ValueError, match=r"data\.layout=2d3ds says what its depth is"):
        RGBD(str(stanford), 0.001, classes=CLASSES, layout="2d3ds")
    with pytest.raises(ValueError, match=r"data\.layout=2d3ds names no classes"):
        RGBD(str(stanford), layout="2d3ds")
    with pytest.raises(FileNotFoundError, match="no area_1/data or the like"):
        RGBD(str(stanford / "assets"), classes=CLASSES, layout="2d3ds")


SUN = ["background", "chair", "table"]


@pytest.fixture
def sun(tmp_path):
    """Four frames of two sensors; in each a table with a chair before it, and a lamp."""
    rng, frames = np.random.default_rng(2), ["kv1/a/f0", "kv1/a/f1", "kv2/b/f2", "kv2/b/f3"]
    for number, name in enumerate(frames):
        folder = tmp_path / name
        save(folder / "image" / f"x{number}.png", rng.integers(0, 255, (48, 64, 3), np.uint8))
        depth = np.full((48, 64), 1234 + number, np.uint16)
        depth[0, 0] = 0
        save(folder / "depth_bfx" / "d.png", (depth << 3) | (depth >> 13))
        for place in (folder, folder / "fullres"):
            place.mkdir(exist_ok=True)
            (place / "intrinsics.txt").write_text("70 0 33\n0 71 25\n0 0 1\n")
        square = {"x": [10, 40, 40, 10], "y": [10, 10, 30, 30], "object": 0}
        small = {"x": [20, 25, 25, 20], "y": [12, 12, 20, 20], "object": 2}
        lamp = {"x": [50, 55, 55], "y": [1, 1, 9], "object": 3}
        names = [{"name": "table:occluded"}, None, {"name": "Chair"}, {"name": "lamp"}]
        content = {"objects": names, "frames": [{"polygon": [square, small, lamp, {"x": [1], "y": [1], "object": 3}]}]}
        (folder / "annotation2Dfinal").mkdir()
        (folder / "annotation2Dfinal" / "index.json").write_text(json.dumps(content))
    for split, names in (("train", frames[:2]), ("val", frames[2:3]), ("test", frames[3:])):
        (tmp_path / f"{split}.txt").write_text("\n".join(f"/n/fs/sun3d/data/SUNRGBD/{name}" for name in names))
    return tmp_path


def test_sun_rgbd_is_read_as_its_toolbox_does(sun):
    data = RGBD(str(sun), classes=SUN, layout="sunrgbd")
    assert [data.names(split) for split in ("train", "val", "test")] == [
        ["kv1/a/f0", "kv1/a/f1"],
        ["kv2/b/f2"],
        ["kv2/b/f3"],
    ]
    name = "kv1/a/f1"
    wanted = np.full((48, 64), 1.235)
    wanted[0, 0] = 0
    np.testing.assert_allclose(data.depth(name), wanted)
    view = data.views[name]
    assert tuple(view.camera) == (64, 48, 70, 71, 32, 24)  # MATLAB counts pixels from 1
    assert (view.group, view.pose) == (None, None)
    mask = data.mask(name)
    assert (mask[11, 11], mask[15, 22], mask[2, 54], mask[40, 40]) == (2, 1, 0, IGNORE)
    assert data.boxes(name) == [[10, 10, 40, 30, 2], [20, 12, 25, 20, 1]]


def test_the_bits_of_the_toolbox():
    assert rotated(np.array([9872, 14457], np.uint16)).tolist() == [1234, 9999]
    every = np.arange(2**16, dtype=np.uint16)
    np.testing.assert_array_equal(rotated((every << 3) | (every >> 13)), every)


def labels_of(root):
    return root / "kv1/a/f0/annotation2Dfinal/index.json"


FAULTS = {
    "cut": (lambda r: labels_of(r).write_text('{"objects": ['), "f0/annotation2Dfinal/index.json: it cannot be read"),
    "object": (
        lambda r: change(labels_of(r), objects=[]), "index.json: polygon 0: it is of object 0, and there are 0"
    ),
    "no labels": (lambda r: labels_of(r).unlink(), "index.json does not exist: take the frame off the lists"),
    "two pictures": (lambda r: save(r / "kv1/a/f0/image/y.png", np.zeros((4, 4), np.uint8)), "holds 2 pictures"),
    "intrinsics": (lambda r: (r / "kv1/a/f0/intrinsics.txt").write_text("70 0 33"), "intrinsics.txt: it has 3 numbers"),
    "unknown frame": (lambda r: (r / "val.txt").write_text("kv9/none"), "no frame none: the lists are of folders"),
    "no list": (lambda r: (r / "val.txt").unlink(), "val.txt does not exist"),
    "nothing": (lambda r: [p.unlink() for p in r.rglob("intrinsics.txt")], "no folder with intrinsics.txt"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_sun_rgbd_is_refused_by_name(fault, sun):
    spoil, told = FAULTS[fault]
    spoil(sun)
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        RGBD(str(sun), classes=SUN, layout="sunrgbd").mask("kv1/a/f0")
