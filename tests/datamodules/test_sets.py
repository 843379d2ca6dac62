"""The published data sets: tiny files of the official layouts, and the real ones where they are."""

import json
import shutil
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import yaml
from official_layouts import (
    SIZE,
    draw_acdc,
    draw_ade20k,
    draw_bsds,
    draw_camvid,
    draw_cityscapes,
    draw_coco,
    draw_sift_flow,
    draw_stanford,
    draw_voc,
    labels,
    save,
    scribble,
)
from PIL import Image
from scipy.io import savemat

import datamodules
from common.ops.batch import IGNORE
from conftest import ROOT, fit_tiny
from datamodules.pascal_weak import clicks_mask, read_clicks, read_scribble_png, read_scribble_xml
from datamodules.photos import Photos
from datamodules.sets.acdc import ACDC
from datamodules.sets.ade20k import ADE20K
from datamodules.sets.bsds500 import BSDS500
from datamodules.sets.camvid import CamVid
from datamodules.sets.cityscapes import EVALUATED, Cityscapes
from datamodules.sets.coco import COCO
from datamodules.sets.sift_flow import SCENES, SIFTFlow
from datamodules.sets.stanford_background import StanfordBackground
from datamodules.sets.voc import PascalVOC
from datamodules.splits import read_list
from datamodules.supervision import Supervision
from experiments.runs.checkpoint import Classes, photos_part

SHARED = ROOT.parent / "shared" / "data"
CONFIGS = ROOT / "experiments" / "configs" / "data"
SPLITS = ("train", "val", "test")


def shared(*parts):
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the real files are not here: {'/'.join(parts)}")
    return path


def refused(kind, words, call, *arguments, **options):
    with pytest.raises(kind) as caught:
        call(*arguments, **options)
    assert all(str(word) in str(caught.value) for word in words), str(caught.value)


# Tiny copies -------------------------------------------------------------------------------------------------------

# How to draw it, its class, the sizes of its splits, the number of classes.
SETS = {
    "voc": (draw_voc, PascalVOC, (16, 4, 5), 21),
    "cityscapes": (draw_cityscapes, Cityscapes, (8, 2, 3), 19),
    "camvid": (draw_camvid, CamVid, (5, 2, 3), 11),
    "stanford_background": (draw_stanford, StanfordBackground, (10, 2, 3), 8),
    "sift_flow": (draw_sift_flow, SIFTFlow, (8, 1, 3), 33),
    "ade20k": (draw_ade20k, ADE20K, (6, 1, 3), 150),
    "coco": (draw_coco, COCO, (6, 1, 3), 81),
    "acdc": (draw_acdc, ACDC, (8, 4, 4), 4),
}
quiet = pytest.mark.filterwarnings("ignore:.*images, not 715.*")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder of a tiny copy; read it, but do not write into it."""
    folders = {}

    def draw(name):
        if name not in folders:
            folders[name] = SETS[name][0](tmp_path_factory.mktemp(name) / "data")
        return folders[name]

    return draw


@quiet
@pytest.mark.parametrize("name", SETS)
def test_splits_and_masks_of_the_official_layout(drawn, name):
    _, data_set, sizes, classes = SETS[name]
    data = data_set(str(drawn(name)))
    names = {split: data.names(split) for split in SPLITS}
    assert tuple(len(names[split]) for split in SPLITS) == sizes
    assert sum(sizes) == len({one for split in names.values() for one in split}), "the splits overlap"
    assert names == {split: sorted(data_set(str(drawn(name))).names(split)) for split in SPLITS}
    assert data.num_classes == classes == len(data.colors) == len(set(data.colors))
    for one in names["train"][0], names["val"][0], names["test"][0]:
        image, mask = data.image(one), data.mask(one)
        assert image.shape == (*SIZE, 3)
        assert image.dtype == mask.dtype == np.uint8
        assert mask.shape == SIZE
        assert np.unique(mask).tolist() == [
            *range(classes),
            *[IGNORE] * (name not in ("coco", "acdc")),
        ]  # where all is labelled
    assert data.source().startswith(str(drawn(name).resolve()))


@quiet
@pytest.mark.parametrize("name", SETS)
def test_a_fit_with_the_shipped_config(drawn, tmp_path, name):
    options = {"root": drawn(name), "size": 32, "crop": "[32, 32]", "batch_size": 2, "num_workers": 0}
    words = [word for key, value in options.items() for word in (f"--data.init_args.{key}", value)]
    words += ["--data.init_args.supervision.fraction", "null"]  # tiny.yaml's
    trainer = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]
    fit_tiny(tmp_path / "run", "--config", CONFIGS / f"{name}.yaml", *words, *trainer)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["data"] == SETS[name][1].__name__
    assert summary["annotation"]["images"] == SETS[name][2][0]
    assert len(summary["annotation"]["per_class"]) == SETS[name][3]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_options_of_the_shipped_configs(path):
    config = yaml.safe_load(path.read_text())["data"]
    options = {**config["init_args"], "supervision": Supervision(**config["init_args"].get("supervision", {}))}
    data_set = getattr(datamodules, config["class_path"])
    if "root" in options:
        refused(FileNotFoundError, ["nowhere"], data_set, **{**options, "root": "nowhere"})


# Files that are missing or wrong ------------------------------------------------------------------------------------

VOC = "VOCdevkit/VOC2012"
CITY = "gtFine/train/jena/jena_000001_000019_gtFine_labelIds.png"
ADE = "ADE_train_00000005"
WRONG = {
    "voc-images": ("voc", f"{VOC}/JPEGImages", None, FileNotFoundError, ["JPEGImages", "does not exist"]),
    "voc-masks": ("voc", f"{VOC}/SegmentationClassAug", None, FileNotFoundError, ["SegmentationClassAug"]),
    "voc-list": ("voc", f"{VOC}/ImageSets/Segmentation/val.txt", None, FileNotFoundError, ["val.txt", "does not"]),
    "voc-image": ("voc", f"{VOC}/JPEGImages/2007_000012.jpg", None, FileNotFoundError, ["2007_000012", "test"]),
    "voc-mask": ("voc", f"{VOC}/SegmentationClassAug/2007_000012.png", None, ValueError, ["2007_000012", "test"]),
    "cityscapes-labels": ("cityscapes", "gtFine/train", None, FileNotFoundError, ["gtFine_trainvaltest.zip", "login"]),
    "cityscapes-mask": ("cityscapes", CITY, None, ValueError, ["jena_000001_000019", "labelTrainIds.png"]),
    "acdc-list": ("acdc", "test.txt", None, FileNotFoundError, ["test.txt"]),
    "acdc-mask": (
        "acdc",
        "masks/patient003_frame01_slice_0.png",
        None,
        FileNotFoundError,
        ["masks", "patient003_frame01"],
    ),
    "camvid-list": ("camvid", "val.txt", None, FileNotFoundError, ["val.txt"]),
    "camvid-folder": ("camvid", "valannot", None, FileNotFoundError, ["valannot", "does not exist"]),
    "camvid-image": ("camvid", "train/trainTP_000001.png", None, FileNotFoundError, ["train.txt", "trainTP_000001"]),
    "camvid-mask": ("camvid", "testannot/testTP_000001.png", None, FileNotFoundError, ["test.txt", "testannot"]),
    "camvid-stray": ("camvid", "val.txt", "a/trainTP_000001.png b\n", FileNotFoundError, ["val.txt", "not in"]),
    "stanford-labels": ("stanford_background", "labels/0000003.regions.txt", None, ValueError, ["0000003"]),
    "ade-names": ("ade20k", "objectInfo150.txt", None, FileNotFoundError, ["objectInfo150.txt", "names the classes"]),
    "ade-few": ("ade20k", "objectInfo150.txt", "Idx\n1\ta\n", ValueError, ["objectInfo150.txt", "names 1 classes"]),
    "ade-mask": ("ade20k", f"annotations/training/{ADE}.png", None, ValueError, ["no mask of", ADE]),
    "coco-map": ("coco", f"stuffthingmaps/train2017/{5:012d}.png", None, ValueError, ["no map of", f"{5:012d}"]),
    "coco-maps": ("coco", "stuffthingmaps/val2017", None, FileNotFoundError, ["val2017", "does not exist"]),
    "sift-labels": ("sift_flow", f"SemanticLabels/{SCENES}/coast_arnat3.mat", None, ValueError, ["coast_arnat3"]),
    "sift-image": ("sift_flow", f"Images/{SCENES}/coast_arnat5.jpg", None, FileNotFoundError, ["coast_arnat5"]),
}


@quiet
@pytest.mark.parametrize("case", WRONG)
def test_a_missing_piece_is_named(drawn, tmp_path, case):
    name, piece, content, kind, words = WRONG[case]
    root = shutil.copytree(drawn(name), tmp_path / "copy")
    path = root / piece
    if content is not None:
        path.write_text(content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    refused(kind, [*words, root], SETS[name][1], str(root))


def test_an_image_in_two_camvid_lists(drawn, tmp_path):
    root = shutil.copytree(drawn("camvid"), tmp_path / "copy")
    for folder in ("", "annot"):
        shutil.copy(root / f"train{folder}" / "trainTP_000001.png", root / f"val{folder}")
    (root / "val.txt").write_text((root / "val.txt").read_text() + "val/trainTP_000001.png x\n")
    refused(ValueError, ["trainTP_000001", "both train and val"], CamVid, str(root))


def test_scribbles_and_volumes_of_acdc(drawn, tmp_path):
    root = shutil.copytree(drawn("acdc"), tmp_path / "copy")
    real = Supervision(kind="scribbles", real=True)
    data = ACDC(str(root), supervision=real, size=32, cache_dir=str(tmp_path / "cache"))
    name = "patient001_frame12_slice_1"
    assert (data.annotation(name, "scribbles") != IGNORE).sum() == 2 * SIZE[1]
    assert (data.sequence(name), data.scored_with(name)) == ("patient001", "patient001_frame12")
    data.prepare_data()
    before = data.annotation_dir()
    (root / "scribbles" / f"{name}.png").touch()  # drawn anew
    assert ACDC(str(root), supervision=real, size=32, cache_dir=str(tmp_path / "cache")).annotation_dir() != before
    one = {data.sequence(name) for name in ACDC(str(root), supervision=FEW_PATIENTS).lists()[0]}
    assert len(one) == 1
    (root / "scribbles" / f"{name}.png").unlink()
    refused(FileNotFoundError, ["scribbles", name], ACDC, str(root), supervision=real)
    ACDC(str(root))  # others need none
    refused(ValueError, ["no points"], ACDC(str(root)).annotation, name, "points")


FEW_PATIENTS = Supervision(kind="image_subset", fraction=0.5, by_sequence=True)


def test_a_patient_of_acdc_is_in_one_list(drawn, tmp_path):
    root = shutil.copytree(drawn("acdc"), tmp_path / "copy")
    moved = "patient001_frame12_slice_1"
    for split in ("train", "val"):
        names = {*(root / f"{split}.txt").read_text().split()} ^ {moved}
        (root / f"{split}.txt").write_text("\n".join(sorted(names)))
    refused(ValueError, ["patient001", "train.txt and val.txt"], ACDC, str(root))
    for folder in ("images", "masks"):
        shutil.move(root / folder / f"{moved}.png", root / folder / "slice.png")
    (root / "val.txt").write_text("slice")
    refused(ValueError, ["'slice'", "patient and frame"], ACDC, str(root))


def test_volumes_of_acdc_as_the_challenge_has_them(tmp_path):
    nibabel = pytest.importorskip("nibabel")

    def write(path, values):
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.5, -1.25, 10.0, 1.0])), path)

    draw = np.random.default_rng(0)
    truth = np.zeros((20, 24, 3), np.uint8)
    truth[5:15, 6:18], truth[8:12, 9:15] = 2, 3
    strokes = np.full_like(truth, 4)
    strokes[9, :] = truth[9, :]
    for part, patients in {"training": range(1, 6), "testing": (101,)}.items():
        for patient in patients:
            for frame in ("frame01", "frame12"):
                stem = tmp_path / part / f"patient{patient:03}" / f"patient{patient:03}_{frame}"
                write(
                    Path(f"{stem}.nii.gz"),
                    (truth.astype(int) * 300 + draw.integers(0, 200, truth.shape)).astype(np.int16),
                )
                write(Path(f"{stem}_gt.nii.gz"), truth)
                if part == "training":
                    write(Path(f"{stem}_scribble.nii.gz"), strokes)
            write(Path(f"{stem.parent}/patient{patient:03}_4d.nii.gz"), truth)  # not read
    data = ACDC(str(tmp_path), supervision=Supervision(kind="scribbles", real=True))
    assert [len(data.names(split)) for split in SPLITS] == [24, 6, 6]
    assert {data.sequence(name) for name in data.names("val")} == {"patient005"}
    name = "patient001_frame12/001"
    image, mask = data.image(name), data.mask(name)
    assert image.shape == (24, 20, 3)  # rows run to the back
    assert (int(image.min()), int(image.max())) == (0, 255)
    assert np.array_equal(mask, truth[:, :, 1].T)
    voxels = nibabel.load(tmp_path / "training/patient001/patient001_frame12.nii.gz").get_fdata()[:, :, 1].T
    low, high = np.percentile(voxels, (1, 99))
    assert np.array_equal(image[..., 2], np.clip((voxels - low) / (high - low) * 255, 0, 255).round())
    trained_on = {"data": {"class_path": "datamodules.ACDC", "init_args": {}}}
    told = photos_part(Classes([*data.class_names], [*data.colors], (24, 24)), trained_on)
    photos = Photos(**told["init_args"])
    photos.show(tmp_path / "training/patient001/patient001_frame12.nii.gz")
    assert np.array_equal(photos.image(name), image), "what a model that was trained on them sees of a volume"
    assert data.spacing(name) == (1.25, 1.5)
    assert data.scored_with(name) == "patient001_frame12"
    drawn = data.annotation(name, "scribbles")
    assert (drawn != IGNORE).sum() == 24
    assert np.array_equal(drawn[:, 9], truth[9, :, 1])
    (tmp_path / "training/patient002/patient002_frame01_gt.nii.gz").unlink()
    refused(FileNotFoundError, ["patient002_frame01_gt.nii.gz", "unpack it"], ACDC, str(tmp_path))
    shutil.rmtree(tmp_path / "testing")
    write(tmp_path / "training/patient002/patient002_frame01_gt.nii.gz", truth)
    refused(FileNotFoundError, ["testing", "unpack it"], ACDC, str(tmp_path))


def test_the_real_acdc_is_read():
    data = ACDC(str(shared("ACDC")), supervision=Supervision(kind="scribbles", real=True))
    assert [len(data.names(split)) for split in SPLITS] == [396, 100, 288]
    assert len({data.sequence(name) for name in data.names("train")}) == 20
    drawn = np.concatenate([data.annotation(name, "scribbles").ravel() for name in data.names("train")])
    assert round((drawn != IGNORE).mean(), 4) == 0.0106  # as its page says


@quiet
def test_broken_label_files_are_named(drawn, tmp_path):
    root = shutil.copytree(drawn("stanford_background"), tmp_path / "stanford")
    data = StanfordBackground(str(root))
    path = root / "labels" / "0000003.regions.txt"
    for content in ("0 1 2\n0 1\n", "0 1\nsky 1\n", "0 1\n8 1\n", ""):
        path.write_text(content)
        refused(ValueError, [path, "replace it"], data.mask, "0000003")
    root = shutil.copytree(drawn("sift_flow"), tmp_path / "sift")
    path = root / "SemanticLabels" / SCENES / "coast_arnat3.mat"
    savemat(path, {"S": labels(0, 34)})
    refused(ValueError, [path, "0 to 34"], SIFTFlow(str(root)).mask, "coast_arnat3")
    path.write_bytes(b"no mat file")
    refused(ValueError, [path, "replace it"], SIFTFlow(str(root)).mask, "coast_arnat3")


# PASCAL VOC ---------------------------------------------------------------------------------------------------------


def test_voc_training_images_of_the_fine_masks(drawn):
    data = PascalVOC(str(drawn("voc")), masks="SegmentationClass")
    assert [len(data.names(split)) for split in SPLITS] == [8, 2, 5]
    assert data.names("val") == ["2007_000004", "2007_000009"]
    assert np.unique(data.mask("2007_000000")).tolist() == [*range(21), IGNORE]  # the index, not the colour


def test_voc_lists_of_ones_own(drawn, tmp_path):
    names = [f"2007_{number:06d}" for number in range(25)]
    (tmp_path / "train20.txt").write_text("\n".join(names[:20]))
    (tmp_path / "train20_labeled_1_2.txt").write_text("\n".join(names[:10]))
    refused(FileNotFoundError, [tmp_path, "test.txt", "none"], PascalVOC, str(drawn("voc")), splits=str(tmp_path))
    (tmp_path / "test.txt").write_text("\n".join(names[20:]))
    data = PascalVOC(str(drawn("voc")), splits=str(tmp_path))
    assert [len(data.names(split)) for split in SPLITS] == [16, 4, 5]
    (tmp_path / "val.txt").write_text("\n".join(names[18:20]))
    refused(ValueError, [names[18], "train", "val"], PascalVOC, str(drawn("voc")), splits=str(tmp_path))
    (tmp_path / "train20.txt").write_text("\n".join(names[:18]))
    data = PascalVOC(str(drawn("voc")), splits=str(tmp_path))
    assert [len(data.names(split)) for split in SPLITS] == [18, 2, 5]
    (tmp_path / "test5.txt").write_text("\n".join(names[20:]))
    refused(FileNotFoundError, ["test.txt, test5.txt"], PascalVOC, str(drawn("voc")), splits=str(tmp_path))


def test_voc_paths_are_taken_from_here_or_from_the_root(drawn, tmp_path, monkeypatch):
    root = shutil.copytree(drawn("voc"), tmp_path / "root")
    for folder, name in ((root, "2007_000001"), (tmp_path, "2007_000002")):
        (folder / "lists").mkdir()
        (folder / "lists" / "train.txt").write_text("\n".join(f"2007_{n:06d}" for n in range(5, 15)))
        (folder / "lists" / "test.txt").write_text(name)
        (folder / "clicks.json").write_text("{}")
        (folder / "strokes").mkdir()
    monkeypatch.chdir(root.parent)
    given = {"splits": "lists", "clicks": "clicks.json", "scribbles": "strokes"}
    data = PascalVOC("root", **given)
    assert (data.names("test"), data.click_file, data.scribbles) == (
        ["2007_000002"], Path("clicks.json"), Path("strokes")
    )  # fmt: skip
    monkeypatch.chdir("/")
    data = PascalVOC(str(root), **given)
    assert (data.names("test"), data.click_file) == (["2007_000001"], root / "clicks.json")
    assert data.scribbles == root / "strokes"
    refused(FileNotFoundError, [root / "nothing"], PascalVOC, str(root), scribbles="nothing")


def test_voc_training_images_without_a_mask_are_unlabelled(drawn, tmp_path):
    names = [f"2007_{number:06d}" for number in range(25)]
    for split, listed in (("train", names[:5] + names[15:]), ("val", names[5:8]), ("test", names[10:15])):
        (tmp_path / f"{split}.txt").write_text("\n".join(listed))
    data = PascalVOC(str(drawn("voc")), masks="SegmentationClass", splits=str(tmp_path))
    assert data.lists() == (names[:5], names[15:])
    assert data.mask(names[20]) is None


def test_ade20k_masks_begin_with_other_and_names_are_told_apart(drawn):
    data = ADE20K(str(drawn("ade20k")))
    assert data.mask("ADE_train_00000001")[0, :4].tolist() == [IGNORE, 0, 1, 2]
    assert data.class_names[:2] == ("thing 1", "thing 2")
    assert [name for name in data.class_names if "screen" in name] == ["screen 131", "screen 142"]


def test_cocos_ids_are_counted_without_their_gaps(drawn):
    """Things of the official list: id less 1 in the map, and what they become. All else is background."""
    data = COCO(str(drawn("coco")))
    mask = data.mask(f"{0:012d}").reshape(-1)
    known = {
        0: "person",
        10: "fire hydrant",
        12: "stop sign",
        26: "backpack",
        30: "handbag",
        43: "bottle",
        45: "wine glass",
    }
    known |= {64: "bed", 66: "dining table", 69: "toilet", 71: "tv", 81: "refrigerator", 83: "book", 89: "toothbrush"}
    assert {value: data.class_names[mask[value]] for value in known} == known
    assert {data.class_names[mask[value]] for value in (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90, 91, 181, 182)} == {
        "background"
    }


@pytest.mark.parametrize("name", ["voc", "cityscapes", "ade20k", "coco"])
def test_with_the_official_val_nothing_is_held_out(drawn, name):
    data_set, sizes = SETS[name][1:3]
    data = data_set(str(drawn(name)), official_val=True)
    assert [len(data.names(split)) for split in SPLITS] == [sizes[0] + sizes[1], sizes[2], sizes[2]]
    assert data.names("val") == data.names("test") == data_set(str(drawn(name))).names("test")


@pytest.mark.parametrize("name", ["voc", "cityscapes"])
def test_images_of_a_published_list_are_not_held_out(drawn, tmp_path, name):
    data_set = SETS[name][1]
    held = data_set(str(drawn(name))).names("val")
    folders = ("JPEGImages", "SegmentationClass") if name == "voc" else ("leftImg8bit/train/c", "gtFine/train/c")
    lines = [f"{folders[0]}/{one}.jpg {folders[1]}/{one}.png\n" for one in held]
    (tmp_path / "labeled.txt").write_text("".join(lines))
    supervision = Supervision(kind="image_subset", list_file=str(tmp_path / "labeled.txt"))
    data = data_set(str(drawn(name)), supervision=supervision)
    assert data.lists()[0] == held
    assert not {*held} & {*data.names("val")}
    assert len(data.names("val")) > 0


def test_voc_of_official_val_images_alone(drawn, tmp_path):
    root = shutil.copytree(drawn("voc"), tmp_path / "copy")
    lists = root / VOC / "ImageSets" / "Segmentation"
    (lists / "val.txt").write_text("\n".join(f"2007_{number:06d}" for number in range(25)))
    refused(ValueError, ["official val images alone", "data.splits"], PascalVOC, str(root))


def test_a_download_without_network_says_what_to_get(monkeypatch, tmp_path, drawn):
    def refuse(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.datasets.VOCSegmentation", refuse)
    words = ["no network", "VOCtrainval_11-May-2012.tar", tmp_path / VOC / "JPEGImages"]
    refused(ConnectionError, words, PascalVOC, str(tmp_path), download=True)
    assert PascalVOC(str(drawn("voc")), download=True).names("val"), "what is there is not downloaded"


def test_masks_of_sbd_fill_what_voc_lacks(monkeypatch, tmp_path, drawn):
    root = shutil.copytree(drawn("voc"), tmp_path / "copy")
    shutil.rmtree(root / VOC / "SegmentationClassAug")
    (root / "SBD" / "cls").mkdir(parents=True)

    class Coarse:
        def __init__(self, root, image_set, mode):
            number = {"train": 3, "val": 20}[image_set]  # 3 has a mask of VOC's own
            self.masks = [f"{root}/cls/2007_{number:06d}.mat"]

        def __getitem__(self, index):
            return None, Image.fromarray(np.full(SIZE, 7, np.uint8))

    monkeypatch.setattr("torchvision.datasets.SBDataset", Coarse)
    data = PascalVOC(str(root), download=True)
    assert len(data.masks) == 16
    assert (data.mask("2007_000020") == 7).all()
    assert np.unique(data.mask("2007_000003")).tolist() == [*range(21), IGNORE]
    assert not list((root / VOC).glob("*.part"))


# Scribbles and clicks -------------------------------------------------------------------------------------------------


def test_scribbles_of_xml_are_polylines_three_pixels_wide(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(scribble(("person", [(5, 10), (20, 10), (20, 20)]), ("background", [(30, 5)])))
    mask = read_scribble_xml(path, SIZE, PascalVOC.class_names)
    assert mask.shape == SIZE
    assert mask.dtype == np.uint8
    assert np.unique(mask).tolist() == [0, 15, IGNORE]
    assert np.flatnonzero(mask[:, 12] == 15).tolist() == [9, 10, 11]
    assert np.flatnonzero(mask[15] == 15).tolist() == [19, 20, 21]
    assert mask[19, 6] == IGNORE, "the line is not closed"
    assert (mask == 0).sum() == 9
    assert mask[5, 30] == 0
    half = read_scribble_xml(path, (18, 24), PascalVOC.class_names)
    assert half.shape == (18, 24)
    assert (half[5, 3:9] == 15).all(), "thin lines survive shrinking"


def test_tags_of_scribbles_stand_for_vocs_classes(tmp_path):
    path = tmp_path / "a.xml"
    words = ["background", "plane", "bike", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table"]
    words += ["dog", "horse", "motorbike", "person", "plant", "sheep", "sofa", "train", "monitor"]
    path.write_text(scribble(*[(word, [(10 * number + 5, 5)]) for number, word in enumerate(words)], size=(12, 220)))
    mask = read_scribble_xml(path, (12, 220), PascalVOC.class_names)
    assert mask[5, 5::10][:21].tolist() == list(range(21))


def test_points_outside_the_image_are_counted(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(scribble(("cow", [(-3, 10), (20, 10), (48, 10), (20, 99)])))
    with pytest.warns(UserWarning, match=r"a\.xml: 3 points outside the image"):
        mask = read_scribble_xml(path, SIZE, PascalVOC.class_names)
    assert (mask[10] == 10).all()
    path.write_text(scribble(("cow", [(0, 0), (47, 35)])))
    assert read_scribble_xml(path, SIZE, PascalVOC.class_names)[0, 0] == 10


def test_bad_scribbles_are_named(tmp_path):
    path = tmp_path / "a.xml"
    arguments = path, SIZE, PascalVOC.class_names
    refused(FileNotFoundError, [path, "does not exist"], read_scribble_xml, *arguments)
    path.write_text(scribble(("moterbike", [(1, 1), (2, 2)])))
    refused(ValueError, [path, "moterbike", "near names", "motorbike"], read_scribble_xml, *arguments)
    path.write_text(scribble(("zzz", [(1, 1), (2, 2)])))
    refused(ValueError, [path, "zzz", "aeroplane"], read_scribble_xml, *arguments)
    for content in ("<annotation>", "no xml", "<annotation></annotation>", scribble(("cow", [("x", 1), (2, 2)]))):
        path.write_text(content)
        refused(ValueError, [path, "ScribbleSup", "replace it"], read_scribble_xml, *arguments)


def test_rasterised_scribbles_are_resized_so_that_they_survive(tmp_path):
    strokes = np.full(SIZE, IGNORE)
    strokes[11, 4:44] = 15
    save(tmp_path / "a.png", strokes)
    assert (read_scribble_png(tmp_path / "a.png", SIZE, 21) == strokes).all()
    assert (read_scribble_png(tmp_path / "a.png", (9, 12), 21)[2, 1:11] == 15).all()
    refused(ValueError, ["a.png", "15"], read_scribble_png, tmp_path / "a.png", SIZE, 15)


def test_clicks_are_scaled_to_the_image_here():
    entry = {"size": [96, 72], "fg": [[10.9, 20.0, 15, 1], [90.0, 71.9, 3, 2]], "bg": [[11.0, 20.5, 0], [40, 2, 0]]}
    mask = clicks_mask(entry, SIZE)
    assert mask[10, 5] == 15, "an object's click goes before the background's"
    assert mask[35, 45] == 3
    assert mask[1, 20] == 0
    assert (mask != IGNORE).sum() == 3
    with pytest.warns(UserWarning, match="2 clicks outside"):
        mask = clicks_mask({"size": [48, 36], "fg": [[48.0, 0.0, 5, 1], [-1.0, 5.0, 6, 2]], "bg": []}, SIZE)
    assert mask[0, 47] == 5
    assert mask[5, 0] == 6


def test_bad_clicks_are_named(tmp_path):
    path = tmp_path / "clicks.json"
    refused(FileNotFoundError, [path, "does not exist"], read_clicks, path, 21)
    for content in (
        "{",
        "[]",
        '{"a": 3}',
        '{"a": {"fg": [], "bg": []}}',
        '{"a": {"size": [1, 2], "fg": [[3]], "bg": []}}',
        '{"a": {"size": [0, 2], "fg": [], "bg": []}}',
        '{"a": {"size": [9, 9], "fg": [[3, 3, 21, 1]], "bg": []}}',
        '{"a": {"size": [9, 9], "fg": [[3, 3, -1, 1]], "bg": []}}',
    ):
        path.write_text(content)
        refused(ValueError, [path, "cannot be read as clicks", "replace it"], read_clicks, path, 21)


def test_voc_gives_what_people_drew(drawn, tmp_path):
    plain = PascalVOC(str(drawn("voc")))
    refused(ValueError, ["data.scribbles"], plain.annotation, "2007_000000", "scribbles")
    refused(ValueError, ["data.clicks"], plain.annotation, "2007_000000", "points")
    (tmp_path / "2007_000000.xml").write_text(scribble(("cow", [(5, 5), (30, 5)]), size=(72, 96)))
    save(tmp_path / "2007_000001.png", np.where(labels(0, 3) == 2, 7, IGNORE))
    clicks = {"2007_000000": {"size": [96, 72], "fg": [[20, 30, 15, 1]], "bg": []}}
    (tmp_path / "clicks.json").write_text(json.dumps(clicks))
    options = {"scribbles": str(tmp_path), "clicks": str(tmp_path / "clicks.json")}
    data = PascalVOC(str(drawn("voc")), **options)
    assert np.unique(data.annotation("2007_000000", "scribbles")).tolist() == [10, IGNORE]
    assert np.unique(data.annotation("2007_000001", "scribbles")).tolist() == [7, IGNORE]
    assert data.annotation("2007_000002", "scribbles") is None
    assert np.argwhere(data.annotation("2007_000000", "points") == 15).tolist() == [[15, 10]]
    assert data.annotation("2007_000001", "points") is None
    assert data.annotation_dir() != plain.annotation_dir(), "another annotation, another cache"
    refused(FileNotFoundError, ["nowhere", "data.scribbles"], PascalVOC, str(drawn("voc")), scribbles="nowhere")


# The others ---------------------------------------------------------------------------------------------------------


def test_cityscapes_labels_are_mapped_to_train_ids(tmp_path, drawn):
    data = Cityscapes(str(drawn("cityscapes")))
    mask = data.mask("aachen_000000_000019_leftImg8bit")
    expected = [EVALUATED.index(value) if value in EVALUATED else IGNORE for value in labels(0, 33, 255)[0].tolist()]
    assert mask[0].tolist() == expected
    assert data.class_names[EVALUATED.index(26)] == "car"
    both = draw_cityscapes(shutil.copytree(drawn("cityscapes"), tmp_path / "both"), "labelTrainIds")
    mask = Cityscapes(str(both)).mask("aachen_000000_000019_leftImg8bit")
    assert (mask == labels(0, 18, 255)).all(), "labelTrainIds go first"
    assert not any(name.startswith("bonn") for split in SPLITS for name in data.names(split)), "it has no labels"


@quiet
def test_folds_of_stanford_background_part_the_images(drawn):
    folds = [StanfordBackground(str(drawn("stanford_background")), fold=fold) for fold in range(5)]
    tests = [name for data in folds for name in data.names("test")]
    assert len(tests) == len({*tests}) == 15
    refused(ValueError, ["data.fold", "5"], StanfordBackground, str(drawn("stanford_background")), fold=5)


def test_stanford_background_says_when_images_are_missing(drawn):
    with pytest.warns(UserWarning, match="15 images, not 715"):
        StanfordBackground(str(drawn("stanford_background")))


def test_sift_flow_without_the_official_list_or_the_sub_folder(drawn, tmp_path):
    root = tmp_path / "flat"
    for kind in ("Images", "SemanticLabels"):
        shutil.copytree(drawn("sift_flow") / kind / SCENES, root / kind)
    with pytest.warns(UserWarning, match=r"TestSet1\.txt.*a draw of ours"):
        data = SIFTFlow(str(root))
    assert [len(data.names(split)) for split in SPLITS] == [9, 2, 1]
    shutil.copy(drawn("sift_flow") / "TestSet1.txt", root)
    assert SIFTFlow(str(root)).names("test") == ["coast_arnat0", "coast_arnat10", "coast_arnat5"]
    assert data.class_names[data.mask("coast_arnat0")[0, -1]] == "window"


def test_bsds_has_segmentations_and_no_masks(tmp_path):
    root = draw_bsds(tmp_path / "data")
    data = BSDS500(str(root), phases=3, size=40, num_workers=0, cache_dir=str(tmp_path / "cache"))
    assert data.supervision.kind == "none"
    for kind in ("dense", "tags"):
        words = ["BSDS500 has no class labels", "supervision.kind=none"]
        refused(ValueError, words, BSDS500, str(root), supervision=Supervision(kind=kind))
    assert [data.names(split) for split in SPLITS] == [["12003"], ["3096"], ["2018"]]
    assert list(data.class_names) == ["phase 1", "phase 2", "phase 3"]
    assert data.lists() == ([], ["12003"])
    assert data.mask("12003") is None
    assert not data.has_mask("12003")
    drawings = data.segmentations("3096")
    assert [np.unique(one).tolist() for one in drawings] == [[1, 2], [1, 2, 3], [1, 2, 3, 4]]
    assert all(one.shape == data.image("3096").shape[:2] for one in drawings)
    data.prepare_data()
    drawn = list((tmp_path / "cache").rglob("*"))
    assert [path.name for path in sorted(drawn) if path.is_file()] == ["annotation.json", "findings.json"]
    report = data.annotation_report()
    assert (report["images"], report["labeled_pixels"], report["pixels"]) == (0, 0, 0)
    refused(ValueError, ["labels no image", "data.unlabeled_batch_size above 0"], data.setup, "fit")
    data.unlabeled_batch_size = 1
    assert data.streams == ("unlabeled",)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))[0]
    assert list(batch) == ["unlabeled"]
    assert (batch["unlabeled"]["mask"] == IGNORE).all()
    batch = data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)
    assert list(batch) == ["unlabeled"]
    assert batch["unlabeled"]["image"].shape == (1, 3, 40, 40)
    assert batch["unlabeled"]["image"].max() <= 1
    assert len(data.val_dataloader()) == 1
    folder = root / "data" / "groundTruth" / "val"
    (folder / "3096.mat").write_bytes(b"no mat file")
    refused(ValueError, [folder, "3096", "replace it"], data.segmentations, "3096")
    (folder / "3096.mat").unlink()
    refused(FileNotFoundError, [folder, "3096.mat"], data.segmentations, "3096")
    for person in (2, 10, 1):
        save(folder / f"3096_{person}.png", np.full(SIZE, person))
    assert [one[0, 0] for one in data.segmentations("3096")] == [1, 2, 10]
    shutil.rmtree(root / "data" / "images" / "train")
    refused(FileNotFoundError, ["train", "does not exist"], BSDS500(str(root)).names, "train")
    refused(ValueError, ["data.phases", "1"], BSDS500, str(root), phases=1)
    refused(FileNotFoundError, [tmp_path / "none"], BSDS500, str(tmp_path / "none"))


# The real files -----------------------------------------------------------------------------------------------------


def check_real(data, sizes):
    names = {split: data.names(split) for split in SPLITS}
    assert tuple(len(names[split]) for split in SPLITS) == sizes
    assert len({one for split in names.values() for one in split}) == sum(sizes)
    for split in SPLITS:
        for name in names[split][:: len(names[split]) // 5]:
            mask = data.mask(name)
            assert mask.shape == data.image(name).shape[:2]
            assert {*np.unique(mask).tolist()} <= {*range(data.num_classes), IGNORE}


def test_real_camvid():
    check_real(CamVid(str(shared("CamVid"))), (367, 101, 233))


def test_real_voc_with_local_splits_and_clicks():
    root = shared("VOC2012_val")
    clicks = root / "points_val1449.json"
    data = PascalVOC(str(root), splits=str(root / "local_splits"), clicks=str(clicks))
    check_real(data, (800, 200, 449))
    assert set(data.clicks) == set(data.images)
    right = total = 0
    for name in data.names("train")[::40]:
        points, mask = data.annotation(name, "points"), data.mask(name)
        at = (points != IGNORE) & (points != 0) & (mask != IGNORE)
        right, total = right + (points[at] == mask[at]).sum(), total + at.sum()
    assert right > 0.8 * total > 0, "clicks lie on their objects"
    refused(ValueError, ["official val images alone"], PascalVOC, str(root))


def test_real_bsds():
    data = BSDS500(str(shared("BSDS500")))
    assert data.names("test") == sorted(read_list(SHARED / "BSDS500" / "test.txt"))
    assert len(data.names("test")) == 100
    for name in data.names("test")[::20]:
        drawings = data.segmentations(name)
        assert 4 <= len(drawings) <= 9
        assert all(one.shape == data.image(name).shape[:2] for one in drawings)


def test_ids_of_the_published_cityscapes_list():
    names = read_list(shared("splits", "cityscapes", "1_16", "labeled.txt"))
    assert len(names) == 186
    assert all(name.endswith("_leftImg8bit") for name in names), "an image's id is its stem"


@pytest.mark.parametrize("name", ["camvid", "cityscapes"])
def test_video_is_labelled_sequence_by_sequence(name, drawn):
    data = SETS[name][1](str(drawn(name)), supervision=Supervision(kind="image_subset", number=2, by_sequence=True))
    labeled, _ = data.lists()
    assert len(labeled) == 2
    assert len({data.sequence(one) for one in labeled}) == 1
