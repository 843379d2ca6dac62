"""Volumes in NIfTI files: slices against nibabel's own reorientation, headers that lie, and the command."""

import gzip
import itertools
import json
import math
import shutil
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy import ndimage

from common.model.measures import surface_distances
from conftest import fit_tiny, weakseg
from datamodules.nifti import MOST_BYTES, Volumes, read_header
from datamodules.photos import Photos
from datamodules.sets.folder import Folder
from experiments.cli import own_data

nibabel = pytest.importorskip("nibabel")
RNG = np.random.default_rng(5)
VALUES = RNG.integers(-900, 1500, (5, 4, 3)).astype(np.int16)
CT = [-160.0, 240.0]


def save(path, values, affine=None, **fields):
    """Write a volume; `fields` are set in its header after nibabel has made it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, np.diag([-1.0, -1, 1, 1]) if affine is None else affine)
    image.header.set_xyzt_units(fields.pop("units", "mm"))
    image.to_filename(path)
    if fields:
        packed = path.suffix == ".gz"
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        header = nibabel.Nifti1Header(content[:348], check=False)
        for name, value in fields.items():
            header[name] = value
        content = header.binaryblock + content[348:]
        path.write_bytes(gzip.compress(content) if packed else content)
    return path


def test_slices_are_axial_and_seen_from_the_feet_however_the_file_lies(tmp_path):
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = 0
            for axis, (row, sign) in enumerate(zip(axes, signs, strict=True)):
                affine[row, axis] = sign * (0.5, 0.75, 3.0)[row]
            path = save(tmp_path / "a.nii", VALUES, affine)
            right_front_up = nibabel.as_closest_canonical(nibabel.load(path))
            expected = np.asarray(right_front_up.dataobj)[::-1, ::-1]  # left, back, up
            volumes = Volumes(tmp_path)
            assert len(volumes.slices) == expected.shape[2]
            for number in range(expected.shape[2]):
                found = volumes.slice(f"a/{number:03d}")
                assert np.array_equal(found, expected[..., number].T)
                assert found.dtype == np.int16
            assert volumes.spacing("a/000") == pytest.approx((0.75, 0.5))


def test_packed_and_scaled_files_of_either_byte_order_give_the_same_values(tmp_path):
    save(tmp_path / "plain.nii", VALUES)
    save(tmp_path / "packed.nii.gz", VALUES)
    save(tmp_path / "SCALED.NII", VALUES, scl_slope=0.5, scl_inter=-3.0)
    save(tmp_path / "nothing.nii", VALUES, scl_slope=np.nan)
    big = nibabel.Nifti1Image(VALUES, np.diag([-1.0, -1, 1, 1]), nibabel.Nifti1Header(endianness=">"))
    big.to_filename(tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == struct.pack(">i", 348)
    volumes = Volumes(tmp_path)
    for number in range(3):
        plain = volumes.slice(f"plain/{number:03d}")
        assert np.array_equal(plain, VALUES[..., number].T)
        for other in ("packed", "nothing", "big"):
            assert np.array_equal(volumes.slice(f"{other}/{number:03d}"), plain)
        assert np.allclose(volumes.slice(f"SCALED/{number:03d}"), plain * 0.5 - 3)


@pytest.mark.parametrize(("units", "factor"), [("mm", 1), ("micron", 1e-3), ("meter", 1e3), ("unknown", 1)])
def test_spacing_is_in_millimetres(tmp_path, units, factor):
    save(tmp_path / "a.nii", VALUES, np.diag([-2.0, -3, 4, 1]), units=units)
    assert Volumes(tmp_path).spacing("a/000") == pytest.approx((3 * factor, 2 * factor))


def pair(path):
    save(path, VALUES, magic=b"ni1")


def cut(path):
    save(path, VALUES)
    path.write_bytes(path.read_bytes()[:-20])


def cut_gz(path):
    save(path.with_suffix(".nii.gz"), VALUES)
    content = path.with_suffix(".nii.gz").read_bytes()
    path.with_suffix(".nii.gz").write_bytes(content[: len(content) // 2])


def replaced(path):
    path.write_bytes(b"no volume at all" * 40)


BAD = {
    "pair": (pair, "is no NIfTI-1 file in one piece"),
    "other": (replaced, "is no NIfTI-1 file in one piece"),
    "empty": (lambda path: path.write_bytes(b""), "is no NIfTI-1 file in one piece"),
    "cut": (cut, "is cut off"),
    "cut and packed": (cut_gz, "cannot be read|is cut off"),
    "frames": (lambda path: save(path, np.zeros((3, 3, 3, 2), np.int16)), "volumes have three axes"),
    "plane": (lambda path: save(path, np.zeros((3, 3), np.int16)), "volumes have three axes"),
    "complex": (lambda path: save(path, VALUES.astype(np.complex64)), "of the type complex64"),
    "colours": (
        lambda path: save(path, np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "of one channel",
    ),
    "type": (lambda path: save(path, VALUES, datatype=9999), "cannot be read"),
    "huge": (lambda path: save(path, VALUES, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "volumes of up to 512 MiB"),
    "negative": (lambda path: save(path, VALUES, dim=[3, 5, -4, 3, 1, 1, 1, 1]), "volumes have three axes"),
    "offset": (lambda path: save(path, VALUES, vox_offset=1e30), "begin at byte 1e"),
    "offset before": (lambda path: save(path, VALUES, vox_offset=-8), "begin at byte -8"),
    "no spacing": (lambda path: save(path, VALUES, sform_code=0, qform_code=0, pixdim=[1, 0, 1, 1] + [0] * 4), "of 0"),
    "no numbers": (lambda path: save(path, VALUES, srow_x=[np.nan] * 4), "voxels of nan"),
    "one way": (lambda path: save(path, VALUES, srow_x=[1, 1, 0, 0], srow_y=[0, 0, 0, 0]), "of 1 x 1 x|same way|of "),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_in_one_line(tmp_path, kind):
    write, message = BAD[kind]
    write(tmp_path / "a.nii")
    with pytest.raises(ValueError, match=message) as error:
        [volumes.slice(name) for volumes in (Volumes(tmp_path),) for name in volumes.slices]
    assert "a.nii" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_header_claims_takes_no_memory(tmp_path):
    """An extension of two gigabytes that is not there, voxels that are not, and a packed file of zeros."""
    save(tmp_path / "extension.nii", VALUES)
    content = bytearray((tmp_path / "extension.nii").read_bytes())
    content[348:352] = b"\1\0\0\0"
    content[352:360] = struct.pack("<ii", 2**31 - 16, 0)
    (tmp_path / "extension.nii").write_bytes(content)
    sides = [3, 512, 512, 1024, 1, 1, 1, 1]
    assert math.prod(sides[1:4]) * 2 == MOST_BYTES
    save(tmp_path / "voxels.nii", VALUES, dim=sides)
    save(tmp_path / "packed.nii.gz", VALUES)
    header = gzip.decompress((tmp_path / "packed.nii.gz").read_bytes())[:352]
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(header), *(packer.compress(bytes(2**22)) for _ in range(50)), packer.flush()]
    (tmp_path / "packed.nii.gz").write_bytes(b"".join(parts))
    tracemalloc.start()
    volumes = Volumes(tmp_path)
    volumes.slice("extension/000")
    volumes.slice("packed/000")
    with pytest.raises(ValueError, match="cut off"):
        volumes.slice("voxels/0000")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


# The data set -------------------------------------------------------------------------------------------------------


def draw_volumes(root, count=6, spacing=(2.0, 2.0, 5.0), suffix=".nii.gz"):
    """Volumes of a bright ball in noise, in the units of CT."""
    rng = np.random.default_rng(1)
    (root / "images").mkdir(parents=True)
    (root / "classes.txt").write_text("background\nball\n")
    grid = np.stack(np.meshgrid(np.arange(36), np.arange(30), np.arange(4), indexing="ij"), -1)
    for number in range(count):
        distance = np.linalg.norm((grid - rng.integers([10, 10, 1], [26, 20, 3])) * (1, 1, 4), axis=-1)
        mask = (distance < 9).astype(np.uint8)
        values = (150.0 * mask - 50 + rng.normal(0, 20, mask.shape)).astype(np.int16)
        affine = np.diag([*spacing, 1.0])
        save(root / "images" / f"case{number}{suffix}", values, affine)
        save(root / "masks" / f"case{number}{suffix}", mask.astype(np.float32), affine)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return draw_volumes(tmp_path_factory.mktemp("volumes") / "data")


def test_slices_of_a_volume_stay_together_and_have_its_masks(root):
    data = Folder(str(root), value_range=CT)
    of = {split: {name.split("/")[0] for name in data.names(split)} for split in ("train", "val", "test")}
    assert sorted(name for names in of.values() for name in names) == [f"case{number}" for number in range(6)]
    assert all(of.values())
    assert sum(len(data.names(split)) for split in of) == 24
    image, mask = data.image("case0/001"), data.mask("case0/001")
    assert image.shape == (30, 36, 3)
    assert image.dtype == mask.dtype == np.uint8
    assert {*np.unique(mask)} == {0, 1}
    assert image[mask == 1].mean() > image[mask == 0].mean() + 60
    assert data.spacing("case0/001") == (2, 2)
    assert data.knows_sequences()
    assert data.sequence("case0/001") == "case0"


def test_lists_name_volumes_or_slices(root, tmp_path):
    own = shutil.copytree(root, tmp_path / "data")
    (own / "train.txt").write_text("case0\ncase1.nii.gz\ncase2/001\n")
    (own / "val.txt").write_text("images/case3.nii.gz\n")
    (own / "test.txt").write_text("case4\n")
    data = Folder(str(own), value_range=CT)
    assert data.names("train") == [*(f"case{v}/{n:03d}" for v in (0, 1) for n in range(4)), "case2/001"]
    assert data.names("val") == [f"case3/{n:03d}" for n in range(4)]


@pytest.mark.parametrize(("suffix", "cache"), [(".nii.gz", "disk"), (".nii", None)])
def test_fit_on_a_folder_of_packed_volumes_unpacks_each_slice_once(suffix, cache, tmp_path):
    draw_volumes(tmp_path, suffix=suffix)
    data = Folder(str(tmp_path), value_range=CT)
    chosen = own_data.choose(data, ["--model.network.encoder", "tu-test_resnet"], own_data.kind_of(data))
    assert chosen.get("--data.cache") == cache
    config = {"data": {}, "model": {"network": own_data.NETWORK | {"freeze_bn": False}}, "trainer": {}}
    for option, value in chosen.items():
        part, *_, key = option.removeprefix("--").split(".")
        config[part].setdefault(key, yaml.safe_load(value))
    parts = {part: config[part] if part == "trainer" else {"init_args": config[part]} for part in config}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(parts))
    assert own_data._stored(tmp_path, {}).get("--data.cache") == cache  # a run that goes on


def test_a_model_of_many_bands_refuses_volumes(root):
    photos = Photos(["background", "ball"], [[0, 0, 0], [9, 9, 9]], channels=5, value_range=CT)
    with pytest.raises(ValueError, match="images holds volumes, which are grey, and the model sees 5 bands"):
        photos.show(root / "images")


def without_range(root):
    return {}


def other_size(root):
    save(root / "masks" / "case1.nii.gz", np.zeros((36, 30, 5), np.uint8), np.diag([2.0, 2, 5, 1]))


def other_spacing(root):
    save(root / "masks" / "case1.nii.gz", np.zeros((36, 30, 4), np.uint8), np.diag([1.0, 1, 1, 1]))


def fractions(root):
    save(root / "masks" / "case1.nii.gz", np.full((36, 30, 4), 0.5, np.float32), np.diag([2.0, 2, 5, 1]))


def unknown(root):
    save(root / "masks" / "case1.nii.gz", np.full((36, 30, 4), 7, np.uint8), np.diag([2.0, 2, 5, 1]))


def pictures(root):
    Image.new("RGB", (36, 30)).save(root / "images" / "photo.png")


def lonely(root):
    (root / "images" / "case1.nii.gz").unlink()


def twice(root):
    shutil.copy(root / "images" / "case1.nii.gz", root / "images" / "case1.nii")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_range, "which are black and white"),
        (other_size, "its mask 5 of 30 x 36"),
        (other_spacing, "other spacings or directions"),
        (fractions, "no class ids, such as 0.5"),
        (unknown, "holds 7 at row 0, column 0"),
        (pictures, "holds volumes and pictures"),
        (lonely, "masks without a volume: case1"),
        (twice, "an id must be unique"),
    ],
)
def test_what_does_not_fit_is_refused(root, tmp_path, change, message):
    own = shutil.copytree(root, tmp_path / "data")
    options = change(own)
    options = {"value_range": CT} if options is None else options
    with pytest.raises(ValueError, match=message):
        [(data.image(name), data.mask(name)) for data in (Folder(str(own), **options),) for name in data.images]


def test_a_distance_in_millimetres_is_that_of_the_formula():
    pytest.importorskip("monai")
    labels, mask = np.zeros((2, 24, 20), np.int64)
    labels[4:15, 6:17] = 1
    mask[6:19, 3:14] = 1
    spacing = (0.5, 2.0)

    def border(one):
        return one & ~ndimage.binary_erosion(one)

    sets = [np.argwhere(border(one == 1)) * spacing for one in (labels, mask)]
    every = np.linalg.norm(sets[0][:, None] - sets[1][None], axis=-1)
    there, back = every.min(1), every.min(0)
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    assd = np.concatenate([there, back]).mean()
    found = surface_distances(torch.from_numpy(labels), torch.from_numpy(mask), 2, spacing)
    assert found[:, 1].tolist() == pytest.approx([hd95, assd], abs=1e-4)
    gone = surface_distances(torch.zeros(24, 20, dtype=torch.int64), torch.from_numpy(mask), 2, spacing)
    assert gone[0, 1].item() == pytest.approx(np.hypot(24 * 0.5, 20 * 2.0))


def test_the_command_takes_volumes_from_fit_to_predict(root, tmp_path):
    """Distances are in mm, and those of twice the spacing are twice as far; scores go by volume."""
    pytest.importorskip("monai")
    words = [
        "--data",
        "Folder",
        "--data.root",
        root,
        "--data.init_args.value_range",
        str(CT),
        "--data.init_args.cache",
        "disk",
    ]
    drop = ["--data.init_args.size", "[30, 36]", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    run_dir = tmp_path / "run"
    fit_tiny(run_dir, *words, *drop)
    weakseg("test", "--run", run_dir, "--metrics", "hd95", "dice_groups")
    tested = json.loads((run_dir / "summary.json").read_text())["test"]["best"]
    assert "test/hd95" not in tested
    far = draw_volumes(tmp_path / "far", spacing=(4.0, 4.0, 5.0))
    weakseg("test", "--run", run_dir, "--metrics", "hd95", "--data.init_args.root", far)
    doubled = json.loads((run_dir / "summary.json").read_text())["test"]["best"]
    assert doubled["test/hd95_mm/ball"] == pytest.approx(2 * tested["test/hd95_mm/ball"], rel=1e-4)
    weakseg("predict", "--run", run_dir, "--images", root / "images" / "case0.nii.gz", "--output", tmp_path / "out")
    assert sorted(path.stem for path in (tmp_path / "out" / "case0").iterdir()) == ["000", "001", "002", "003"]
    assert Image.open(tmp_path / "out" / "case0" / "000.png").size == (36, 30)
    text = weakseg("suggest", "--run", run_dir, "--images", root / "images", "--output", tmp_path / "next", expect=1)
    assert "holds volumes, which labelme does not draw on" in text


def test_slices_kept_on_disk_are_not_mixed_up(root, tmp_path):
    data = Folder(str(root), value_range=CT, cache="disk", cache_dir=str(tmp_path), size=[30, 36], num_workers=0)
    for _ in range(2):  # filled, then read
        for batch in data.val_dataloader():
            expected = data.image(batch["name"][0])
            assert np.array_equal(batch["image"][0].permute(1, 2, 0).numpy(), expected)


def test_photos_are_slices_too(root):
    photos = Photos(["background", "ball"], [[0, 0, 0], [9, 9, 9]], value_range=CT)
    assert len(photos.show(root / "images")) == 24
    assert np.array_equal(photos.image("case2/003"), Folder(str(root), value_range=CT).image("case2/003"))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii", VALUES)
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(ModuleNotFoundError, match=r"\[medical\]"):
        read_header(path)
