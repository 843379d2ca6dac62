"""What is wrong with a data set: each finding on a small set that has the fault, and none on a sound one."""

import numpy as np
import pytest
from PIL import Image

from conftest import draw_folder
from datamodules import Folder
from datamodules.supervision import Supervision
from datamodules.survey import THUMB, Survey, look, name_groups, near_duplicates


@pytest.fixture
def root(tmp_path):
    """Pictures large enough to tell apart, in three splits."""
    root = draw_folder(tmp_path / "data")
    rng = np.random.default_rng(3)
    for path in (root / "images").iterdir():
        size = Image.open(path).size
        noise = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(size).save(path)
    return root


def survey(root, **options):
    data = Folder(str(root), **{"size": 32} | options)
    found = Survey(data)
    for split in ("train", "val", "test"):
        for name in data.names(split):
            found.add(split, name, look(data, name, data.image(name), data.mask(name)))
    return [(one.level, one.text) for one in found.findings()]


def masks(root, change, names="0123456789"):
    for name in names:
        path = root / "masks" / f"{name}.png"
        Image.fromarray(change(np.asarray(Image.open(path)), int(name)).astype(np.uint8)).save(path)


def images(root, change):
    for path in (root / "images").iterdir():
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def copy(root, source, target, kinds=("images", "masks")):
    for kind in kinds:
        (root / kind / f"{target}.png").write_bytes((root / kind / f"{source}.png").read_bytes())


def two_classes(root):
    (root / "classes.txt").write_text("ground\nthing\n")


def nearly(root):
    """An image of val is one of train, a little brighter and saved again."""
    image = np.asarray(Image.open(root / "images" / "0.png")).astype(int) + 2
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / "6.png")
    size = Image.open(root / "images" / "6.png").size
    Image.open(root / "masks" / "6.png").resize(size, Image.Resampling.NEAREST).save(root / "masks" / "6.png")


def same_mask(root):
    copy(root, "1", "7", ("masks",))
    size = Image.open(root / "masks" / "7.png").size
    Image.open(root / "images" / "7.png").resize(size).save(root / "images" / "7.png")


FAULTS = {
    "val without a label": (
        lambda root: masks(root, lambda mask, _: mask * 0 + 255, "67"),
        ("stop", "no pixel of val has a label: check its 2 masks"),
    ),
    "test without a label": (
        lambda root: masks(root, lambda mask, _: mask * 0 + 255, "89"),
        ("stop", "no pixel of test has a label"),
    ),
    "one class in train": (
        lambda root: masks(root, lambda mask, _: mask * 0, "012345"),
        ("stop", "every labelled pixel of train is ground: nothing can be learned from one class"),
    ),
    "0 and 255": (
        lambda root: (two_classes(root), masks(root, lambda mask, _: np.where(mask == 0, 0, 255))),
        ("stop", "give data.mask_values: {0: ground, 255: thing}"),
    ),
    "0 and 255 in val": (
        lambda root: (
            two_classes(root),
            masks(root, lambda mask, _: np.minimum(mask, 1), "01234589"),
            masks(root, lambda mask, _: np.where(mask == 0, 0, 255), "67"),
        ),
        ("stop", "the masks of val hold 0 and 255 alone"),
    ),
    "a class without a pixel in train": (
        lambda root: masks(root, lambda mask, _: np.where(mask == 2, 0, mask), "012345"),
        ("warning", "no pixel of train is blue thing"),
    ),
    "a class without a pixel in val": (
        lambda root: masks(root, lambda mask, _: np.where(mask == 2, 0, mask), "67"),
        ("warning", "no pixel of val is blue thing"),
    ),
    "val nearly unlabelled": (
        lambda root: masks(
            root, lambda mask, _: np.where(np.arange(mask.size).reshape(mask.shape) % 50, 255, mask), "67"
        ),
        ("warning", "of the pixels of val have no label"),
    ),
    "a rare class": (
        lambda root: masks(
            root,
            lambda mask, number: np.where((mask == 2) & (np.arange(mask.size).reshape(mask.shape) % 40 > 0), 0, mask),
        ),
        ("warning", "pixels of ground for each of blue thing"),
    ),
    "grey images": (
        lambda root: images(root, lambda image: np.repeat(image[..., :1], 3, -1)),
        ("warning", "all images are grey"),
    ),
    "the same picture": (
        lambda root: copy(root, "0", "8"),
        ("error", "the same picture is in two splits: train/0 and test/8; remove one of them"),
    ),
    "the same mask": (same_mask, ("error", "have the same mask: train/1 and val/7")),
    "nearly the same picture": (nearly, ("warning", "1 images of val are nearly those of train (train/0 and val/6)")),
}


def test_names_may_hold_any_words(root):
    for kind in ("images", "masks"):
        (root / kind / "6.png").rename(root / kind / "cat and dog.png")
    (root / "val.txt").write_text("cat and dog\n7\n")
    copy(root, "0", "cat and dog")
    same_mask(root)
    texts = [text for _, text in survey(root)]
    assert "the same picture is in two splits: train/0 and val/cat and dog; remove one of them" in texts
    assert any("train/1 and val/7" in text for text in texts)


@pytest.mark.parametrize("row", FAULTS)
def test_a_fault_is_found(row, root):
    break_it, (level, words) = FAULTS[row]
    break_it(root)
    found = survey(root)
    assert any(one == level and words in text for one, text in found), found
    assert [one for one, _ in found] == sorted((one for one, _ in found), key=("stop", "error", "warning").index)


def test_a_sound_set_has_no_finding(root):
    assert survey(root) == []


def test_large_images_are_told_of(root):
    assert survey(root, size=4)[-1][1].startswith("images of 25 x 61 pixels are shrunk 15 times to fit 4 x 4")


def test_what_has_no_label_for_a_reason_is_no_fault(root):
    masks(root, lambda mask, _: mask * 0 + 255, "012345")
    assert not [text for level, text in survey(root, supervision=Supervision("none")) if level == "stop"]


# Names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["p1_01", "p1_02", "p2_01", "p2_02", "p3_01", "p3_02"], {"p1", "p2", "p3"}),
        (["a/1", "a/2", "b/1", "b/2", "c/1", "c/2"], {"a", "b", "c"}),
        (["scan7-a", "scan7-b", "scan8-a", "scan8-b", "scan9-a", "scan9-b"], {"scan7", "scan8", "scan9"}),
        ([f"IMG_{number:04}" for number in range(20)], set()),
        ([str(number) for number in range(20)], set()),
        (["p1_01", "p1_02", "p2_01", "p2_02", "p3_01", "p3_02", "cat"], set()),
    ],
)
def test_names_that_share_a_beginning(names, groups):
    assert {*name_groups(names).values()} == groups


def people(root):
    """The images of ten, renamed as frames of people, without lists."""
    for kind in ("images", "masks"):
        for number, path in enumerate(sorted((root / kind).iterdir())):
            path.rename(root / kind / f"p{number // 2}_{number % 2}.png")
    for split in ("train", "val", "test"):
        (root / f"{split}.txt").unlink()


def test_people_in_several_splits_are_told_of_until_a_pattern_keeps_them_together(root):
    people(root)
    assert any("set data.sequences" in text for _, text in survey(root))
    data = Folder(str(root), sequences="^[^_]+", size=32)
    assert not any("data.sequences" in text for _, text in survey(root, sequences="^[^_]+"))
    homes = {split: {data.sequence(name) for name in data.names(split)} for split in ("train", "val", "test")}
    assert all(homes.values())
    assert not homes["train"] & homes["val"]
    assert not homes["train"] & homes["test"]
    assert not homes["val"] & homes["test"]
    assert sum(len(data.names(split)) for split in homes) == 10


def test_unlabelled_frames_of_a_sequence_that_is_held_out_are_left_out(root):
    people(root)
    whole = Folder(str(root), sequences="(p.)_")
    name = whole.names("val")[0]
    (root / "masks" / f"{name}.png").unlink()
    with pytest.warns(UserWarning, match="1 images are of sequences of other splits, and are left out"):
        data = Folder(str(root), sequences="(p.)_")
    assert not any(name in data.names(split) for split in ("train", "val", "test"))


@pytest.mark.parametrize("listed", ["train", "val"])
def test_a_list_keeps_its_people_out_of_the_splits_that_are_made(listed, root):
    people(root)
    (root / f"{listed}.txt").write_text("p0_0\np1_0\n")
    with pytest.warns(UserWarning, match="2 images are of sequences of other splits, and are left out"):
        data = Folder(str(root), sequences="^[^_]+", size=32)
    homes = {split: {data.sequence(name) for name in data.names(split)} for split in ("train", "val", "test")}
    assert homes[listed] == {"p0", "p1"}
    assert sum(map(len, homes.values())) == len(set().union(*homes.values())) == 5


def test_lists_that_tear_a_person_apart_are_told_of(root):
    people(root)
    (root / "train.txt").write_text("p0_0\np1_0\n")
    (root / "val.txt").write_text("p0_1\n")
    (root / "test.txt").write_text("p2_1\n")
    found = survey(root, sequences="^[^_]+")
    assert ("error", "images of p0 are in several splits: give each sequence to one list") in found


@pytest.mark.parametrize(("pattern", "words"), [("(", "no regular expression"), ("^q", "finds nothing in 'p")])
def test_a_wrong_pattern_is_told(pattern, words, root):
    people(root)
    with pytest.raises(ValueError, match=words):
        Folder(str(root), sequences=pattern)


# Near-duplicates, against the slow way -----------------------------------------------------------------------------


def test_near_duplicates_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    one = {str(n): rng.integers(0, 256, (THUMB, THUMB)).astype(np.uint8) for n in range(20)}
    two = {name: (thumb.astype(int) + rng.integers(-6, 7, thumb.shape)).clip(0, 255).astype(np.uint8)
           for name, thumb in one.items() if int(name) % 3 == 0}  # fmt: skip
    two["other"] = rng.integers(0, 256, (THUMB, THUMB)).astype(np.uint8)
    slow = [(a, b) for a in one for b in two if np.abs(one[a].astype(int) - two[b]).mean() < 4]
    assert near_duplicates(one, two) == slow
    assert len(slow) == 7
    flat = {"flat": np.full((THUMB, THUMB), 90, np.uint8)}
    assert near_duplicates(flat, flat) == []  # every fog looks like another
