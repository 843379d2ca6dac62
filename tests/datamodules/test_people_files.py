"""Folders as people have them, through the data module and the command."""

import json
import os
import re
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from conftest import draw_folder, fit_tiny, on_folder, snapshot, weakseg, weakseg_process
from datamodules import Folder
from datamodules.files import read_image
from datamodules.supervision import Supervision

BASE = ["doctor", "--config", "tests/tiny.yaml"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("WEAKSEG_CACHE", str(tmp_path / "cache"))
    return draw_folder(tmp_path / "data")


def unlist(root):
    for split in ("train", "val", "test"):
        (root / f"{split}.txt").unlink(missing_ok=True)


def refused(root, *words, **options):
    """`weakseg doctor` ends in one line that holds every word, and writes nothing into the folder."""
    before = snapshot(root)
    given = [word for key, value in options.items() for word in (f"--data.{key}", json.dumps(value))]
    text = weakseg("doctor", "--data", "Folder", "--data.root", root, *given, expect=1)
    lines = [line for line in text.splitlines() if line.startswith(("problem: ", "weakseg: error: "))]
    assert any(all(str(word) in line for word in words) for line in lines), f"{words} not in one of {lines}"
    assert "Traceback" not in text
    assert snapshot(root) == before


def read_all(data):
    for name in data.images:
        data.image(name), data.mask(name)


def masks(root):
    return sorted((root / "masks").iterdir())


def rewrite(path, change, to=None):
    array = change(np.asarray(Image.open(path)))
    path.unlink()
    Image.fromarray(array).save(to or path)


# Names -------------------------------------------------------------------------------------------------------------


def test_files_that_systems_leave_behind_are_passed_over(root):
    before = Folder(str(root))
    for name in ("images/._0.png", "masks/._0.png", "masks/.DS_Store", "images/Thumbs.db", "._classes.txt"):
        (root / name).write_bytes(b"\0\5\x16\7")
    after = Folder(str(root))
    assert (after.images, after.masks, after.splits) == (before.images, before.masks, before.splits)


def test_folders_that_are_called_as_splits_are_no_splits_and_a_warning_says_so(root):
    unlist(root)
    for number in range(10):
        for part in ("images", "masks"):
            place = root / part / ("Val" if number < 4 else "train")
            place.mkdir(exist_ok=True)
            (root / part / f"{number}.png").rename(place / f"{number}.png")
    with pytest.warns(UserWarning, match=r"the folders Val, train in .*images are no splits.*such as Val/0"):
        Folder(str(root))
    for split, numbers in (("train", (4, 5, 6, 7, 8, 9)), ("val", (0, 1)), ("test", (2, 3))):
        folder = "train" if split == "train" else "Val"
        (root / f"{split}.txt").write_text("\n".join(f"{folder}/{number}" for number in numbers))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Folder(str(root))


@pytest.mark.parametrize("place", ["none", "images/0.png"])
def test_a_path_that_is_no_folder_is_named_and_not_its_list_of_classes(place, root):
    with pytest.raises(FileNotFoundError, match=rf"^folder {re.escape(str(root / place))} does not exist"):
        Folder(str(root / place))


def test_masks_under_other_names_than_their_images_are_told_how_to_be_called(root):
    unlist(root)
    for path in masks(root):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    refused(root, "masks without an image: 0_mask, 1_mask", "name each mask as its image")


def test_names_that_are_no_utf8_are_told(root):
    unlist(root)
    for part in ("images", "masks"):
        (root / part / "0.png").rename(root / part / os.fsdecode(b"caf\xe9.png"))
    (root / "masks" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    words = ["doctor", "--data", "Folder", "--data.root", str(root)]
    output = weakseg_process(*words, PYTHONIOENCODING="utf-8:strict").communicate()[0]
    assert r"caf\udce9.png cannot be read as an image (the file is empty, 0 bytes)" in output


def test_folders_below_images_and_masks(root):
    unlist(root)
    for part in ("images", "masks"):
        for number in range(10):
            place = root / part / f"day{number % 2}" / "a b.c"
            place.mkdir(parents=True, exist_ok=True)
            (root / part / f"{number}.png").rename(place / f"{number}.png")
    supervision = Supervision("image_subset", list_file=str(root / "labelled.txt"))
    data = Folder(str(root), supervision=supervision, size=[32, 40], batch_size=2, num_workers=0)
    assert sorted(data.images) == sorted(f"day{number % 2}/a b.c/{number}" for number in range(10))
    labelled = data.names("train")[:3]
    (root / "labelled.txt").write_text("\n".join(f"images/{name}.png" for name in labelled))
    data.prepare_data()
    data.setup("fit")
    batch, _, _ = next(iter(data.train_dataloader()))
    assert {*batch["labeled"]["name"]} <= {*labelled}
    shutil.rmtree(root / "masks" / "day0")
    assert Folder(str(root)).masks.keys() == {f"day1/a b.c/{number}" for number in range(1, 10, 2)}


def test_names_in_another_normal_form_and_with_dots(root):
    unlist(root)
    names = ["geb\u00fcsch", "IMG.2020.rf.0a1b", "my photo", "a.png", "x", "y", "z"]
    for number, name in enumerate(names):
        (root / "images" / f"{number}.png").rename(root / "images" / f"{name}.PNG")
        (root / "masks" / f"{number}.png").rename(root / "masks" / f"{name.replace(chr(0xFC), 'u' + chr(0x308))}.png")
    (root / "train.txt").write_text("images/geb\u00fcsch.PNG\nIMG.2020.rf.0a1b\nmy photo\na.png\n7\n8\n9\n")
    (root / "val.txt").write_text("# mine\nx.jpg masks/x.png\n")
    (root / "test.txt").write_text("image,mask\nC:\\images\\y.jpg,y.png\nz\n")
    data = Folder(str(root))
    assert data.masks.keys() == data.images.keys()
    assert data.splits == {"train": sorted([*names[:4], "7", "8", "9"]), "val": ["x"], "test": ["y", "z"]}


def test_pictures_in_formats_that_are_not_read_are_never_lost(root):
    rewrite(root / "images" / "3.png", np.array, root / "images" / "3.gif")
    refused(root, "masks without an image: 3", "3.gif cannot be read", "convert")
    (root / "masks" / "3.png").unlink()
    refused(root, "train.txt lists 3", "not in images/", "3.gif cannot be read")
    (root / "train.txt").write_text("0\n1\n2\n4\n5\n")
    with pytest.warns(UserWarning, match="1 pictures in .*images are not read: 3.gif"):
        Folder(str(root))
    rewrite(root / "masks" / "2.png", np.array, root / "masks" / "2.gif")
    refused(root, "masks are in another format", "2.gif cannot be read")


# Lists -------------------------------------------------------------------------------------------------------------


def test_images_of_no_list_take_the_place_of_a_missing_list(root):
    (root / "masks" / "5.png").unlink()
    (root / "train.txt").unlink()
    with pytest.warns(UserWarning, match="lists of val, test; of the other images are train the rest"):
        assert Folder(str(root)).splits == {"train": [*"012345"], "val": ["6", "7"], "test": ["8", "9"]}
    (root / "val.txt").unlink()
    with pytest.warns(UserWarning, match="lists of test; of the other images are val 2 and train the rest"):
        splits = Folder(str(root)).splits
    assert splits["test"] == ["8", "9"]
    assert len(splits["val"]) == 2
    assert sorted([*splits["train"], *splits["val"]]) == [*"01234567"]
    (root / "test.txt").unlink()
    (root / "train.txt").write_text("\n".join("01234"))
    with pytest.warns(UserWarning, match="lists of train; of the other images are val 2, test 2"):
        splits = Folder(str(root)).splits
    assert splits["train"] == [*"01234"]
    assert sorted([*splits["val"], *splits["test"]]) == [*"6789"]
    (root / "train.txt").write_text("\n".join("01234678"))
    refused(root, "no test.txt", "too few images with a mask are in no list")


def test_few_images_change_the_split_when_others_get_a_mask(root):
    unlist(root)
    for number in range(10, 30):
        for part in ("images", "masks"):
            shutil.copy(root / part / "0.png", root / part / f"{number}.png")
    hidden = [(root / "masks" / f"{number}.png").rename(root / f"{number}.png") for number in range(20, 30)]
    before = Folder(str(root)).splits
    for file in hidden:
        file.rename(root / "masks" / file.name)
    after = Folder(str(root)).splits
    assert [len(before[split]) for split in ("val", "test")] == [4, 4]
    assert [len(after[split]) for split in ("val", "test")] == [6, 6]
    for split in ("val", "test"):
        assert len({*before[split]} & {*after[split]}) >= 3
    learned = {*before["train"]} & {*map(str, range(20))}
    assert len(learned & {*after["val"], *after["test"]}) <= 1
    assert not {*after["val"]} & {*after["test"]}


def test_without_any_list_the_splits_are_those_of_the_hash(root):
    unlist(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = Folder(str(root)).splits
    assert sorted(name for names in splits.values() for name in names) == [*"0123456789"]
    assert {split: len(names) for split, names in splits.items()} == {"train": 6, "val": 2, "test": 2}


@pytest.mark.parametrize("name", ["valid.txt", "validation.csv", "VAL.TXT", "Val.lst"])
def test_a_list_under_another_name_is_not_left_unread(root, name):
    (root / "val.txt").rename(root / name)
    refused(root, root / name, "is not read", "call", "val.txt")


def test_a_name_that_is_not_found_comes_with_the_nearest(root):
    for part in ("images", "masks"):
        (root / part / "0.png").rename(root / part / "horse001.png")
    (root / "train.txt").write_text("horse01\n1\n2\n")
    refused(root, "train.txt lists horse01: not in images/", "nearest: horse001")


def test_a_name_that_is_no_utf8_is_a_name(root, tmp_path):
    unlist(root)
    for part in ("images", "masks"):
        os.rename(os.fsencode(root / part / "3.png"), os.fsencode(root / part) + b"/\xff3.png")
    weakseg(
        "fit", "--config", "tests/tiny.yaml", "--data", "Folder", "--data.root", root, "--run_dir", tmp_path / "run"
    )
    weakseg("test", "--run", tmp_path / "run")
    assert "10 images" in weakseg(
        "predict", "--run", tmp_path / "run", "--images", root / "images", "--output", tmp_path / "p"
    )
    assert os.path.exists(os.fsencode(tmp_path / "p") + b"/\xff3.png")
    for split in ("train", "val", "test"):
        weakseg("review", "--run", tmp_path / "run", "--split", split, "--output", tmp_path / split)


# Classes -----------------------------------------------------------------------------------------------------------


def test_lists_of_classes_of_other_tools(root):
    before = {name: Folder(str(root)).mask(name) for name in "0123456789"}
    (root / "classes.txt").rename(root / "labels.txt")
    (root / "labels.txt").write_text("__ignore__\n_background_\nred thing\nblue thing\n")
    data = Folder(str(root))
    assert data.class_names == ["_background_", "red thing", "blue thing"]
    assert data.background == 0
    assert all((data.mask(name) == mask).all() for name, mask in before.items())
    (root / "labels.txt").rename(root / "labelmap.txt")
    (root / "labelmap.txt").write_text("# label:color_rgb\nground:0,0,0::\nred thing:255,0,0::\nblue thing:0,0,255::\n")
    palette = np.zeros((256, 3), np.uint8)
    palette[[1, 2]] = (255, 0, 0), (0, 0, 255)
    for path in masks(root):
        rewrite(path, lambda mask: palette[np.where(mask == 255, 0, mask)])
    data = Folder(str(root))
    assert all((data.mask(name) == np.where(mask == 255, 0, mask)).all() for name, mask in before.items())


def test_a_void_first_never_shifts_ids(root):
    (root / "classes.txt").write_text("unlabeled\nground\nred thing\n")
    refused(root, "masks/0.png holds numbers", "classes.txt, line 1, 'unlabeled'", "data.mask_values")
    data = Folder(str(root), mask_values={0: "ignore", 1: "ground", 2: "red thing", 255: "void"})
    raw = np.asarray(Image.open(root / "masks" / "0.png"))
    assert (data.mask("0") == np.array([255, 0, 1, *[255] * 253])[raw]).all()


# Masks -------------------------------------------------------------------------------------------------------------


def test_black_and_white_masks_are_refused_until_somebody_says_what_white_is(root):
    (root / "classes.txt").write_text("background\nhorse\n")
    for path in masks(root):
        rewrite(path, lambda mask: np.where(mask > 0, 255, 0).astype(np.uint8))
    text = weakseg(*BASE, *on_folder(root), expect=1)
    assert "give data.mask_values: {0: background, 255: horse}" in text
    values = ["--data.init_args.mask_values", "{0: background, 255: horse}"]
    assert "horse" in weakseg(*BASE, *on_folder(root), *values)
    data = Folder(str(root), mask_values={0: "background", 255: "horse"})
    assert {*np.unique(data.mask("0")).tolist()} == {0, 1}
    refused(root, "data.mask_values gives 255", "'cow'", "background, horse", mask_values={0: "background", 255: "cow"})
    refused(root, "masks/0.png", "does not have", "pixels fit none", mask_values={0: "background"})


def test_scribbles_of_one_class_of_two_in_some_images_are_no_black_and_white_masks(root):
    (root / "classes.txt").write_text("background\nhorse\n")
    for number, path in enumerate(masks(root)):
        rewrite(path, lambda mask, one=number == 0: np.where(mask == 0, 0, 1 if one else 255).astype(np.uint8))
    Folder(str(root)).prepare_data()


def test_a_jpeg_is_no_mask(root):
    for path in masks(root):
        rewrite(path, lambda mask: mask * 0, path.with_suffix(".jpg"))
    refused(root, "masks/0.jpg", "JPEG", "save masks as PNG")


def test_other_readings_of_masks_are_other_annotations(root):
    plain, mapped = Folder(str(root)), Folder(str(root), mask_values={0: "ground", 1: "red thing", 2: "ignore"})
    assert plain.annotation_dir() != mapped.annotation_dir()


# Images ------------------------------------------------------------------------------------------------------------


def test_a_range_of_values_for_images_of_12_bits(root, tmp_path):
    for path in sorted((root / "images").iterdir()):
        rewrite(path, lambda image: image[..., 0].astype(np.uint16) * 16)
    refused(root, "images/0.png", "uint16", "data.value_range", "[0, 4095]")
    data = Folder(str(root), value_range=[0, 4095])
    assert (data.image("0") == read_image(root / "images" / "0.png", [0, 4095])).all()
    assert data.image("0").max() > 200
    for wrong in ([1, 1], [2, 1], [0]):
        refused(root, "data.value_range must be [low, high]", value_range=wrong)
    text = fit_tiny(tmp_path / "run", *on_folder(root), expect=1)
    assert "data.value_range" in text.splitlines()[-1]
    fit_tiny(
        tmp_path / "run", *on_folder(root), "--data.init_args.value_range", "[0, 4095]", "--trainer.max_steps", "2"
    )


@pytest.mark.parametrize("turn", [3, 6])
def test_masks_of_images_with_an_orientation(root, turn):
    upright = {name: Folder(str(root)).mask(name) for name in "02"}
    for name in "02":  # 31 x 44, and a square
        picture = Image.open(root / "images" / f"{name}.png")
        back = picture.rotate({3: 180, 6: 90}[turn], expand=True)
        exif = back.getexif()
        exif[0x0112] = turn
        back.save(root / "images" / f"{name}.png", exif=exif)
        assert (read_image(root / "images" / f"{name}.png") == np.asarray(picture)).all()
    if turn == 6:  # the mask of the first is of the stored size
        rewrite(root / "masks" / "0.png", lambda mask: np.rot90(mask))
    data = Folder(str(root))
    assert all((data.mask(name) == mask).all() for name, mask in upright.items())
    names = "0, 2" if turn == 3 else "2"
    with pytest.warns(UserWarning, match=f"^{names}: turned by .*EXIF orientation.*drawn on the upright images"):
        data.prepare_data()
