"""Image tags: from masks, from files of people who have no mask, and what is refused."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from common.ops.batch import IGNORE, check_tags
from conftest import draw_folder, draw_tagged, weakseg
from datamodules.sets.folder import Folder
from datamodules.sets.synthetic import Synthetic
from datamodules.sets.textures import Textures
from datamodules.supervision import Supervision
from datamodules.tags import read_tags

TAGS = Supervision(kind="tags")


def synthetic(cache, **options):
    data = Synthetic(
        train=7, val=2, test=2, side=40, size=32, batch_size=2, num_workers=0, cache_dir=str(cache), **options
    )
    data.prepare_data()
    return data


def objects(mask, count):
    """Which classes but background occur in a mask."""
    return [number > 0 and bool((mask == number).any()) for number in range(count)]


# From masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense_images", [0, 3])
def test_tags_are_the_objects_of_the_masks_and_background_is_nobodys(dense_images, tmp_path):
    data = synthetic(tmp_path, supervision=Supervision(kind="tags", dense_images=dense_images))
    dense = set()
    for batch, _, _ in data.train_dataloader():
        labeled = data.ready(batch)["labeled"]
        for name, tags, mask in zip(labeled["name"], labeled["tags"], labeled["mask"], strict=True):
            assert tags.tolist() == objects(data.mask(name), 6)
            dense |= {name} if (mask != IGNORE).any() else set()
    assert len(dense) <= dense_images
    assert bool(dense) == bool(dense_images)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            ready = data.ready(batch)
            assert ready["tags"].tolist() == [objects(ready["mask"].numpy(), 6)]
    report = data.annotation_report()
    counts = np.sum([objects(data.mask(name), 6) for name in data.names("train")], 0)
    assert report["images_per_tag"] == {c: n for c, n in zip(data.class_names, counts, strict=True) if n}


def test_an_object_that_is_lost_when_a_mask_shrinks_is_tagged(tmp_path):
    root = draw_folder(tmp_path / "data")
    mask = np.zeros((31, 44), np.uint8)
    mask[30, 43] = 2
    Image.fromarray(mask).save(root / "masks" / "0.png")
    (root / "classes.txt").write_text("background\nred thing\nblue thing\n")
    data = Folder(str(root), size=4, num_workers=0, cache_dir=str(tmp_path / "cache"), supervision=TAGS)
    data.keep_strokes = False
    data.prepare_data()
    assert json.loads((data.annotation_dir() / "tags.json").read_text())["0"] == [False, False, True]
    assert not (np.asarray(Image.open(data.annotation_dir() / "0.png")) == 2).any()


def test_without_background_first_tags_are_refused_with_the_reason(tmp_path):
    check_tags(synthetic(tmp_path, supervision=TAGS))
    with pytest.raises(ValueError, match=r"Textures has none \(its classes are rows, columns\)"):
        check_tags(Textures(supervision=TAGS))
    root = draw_folder(tmp_path / "data")
    with pytest.raises(ValueError, match="Folder has none"):
        check_tags(Folder(str(root), supervision=TAGS))
    (root / "classes.txt").write_text("red thing\nbackground\nblue thing\n")
    with pytest.raises(ValueError, match="Folder has it in another place"):
        check_tags(Folder(str(root), supervision=TAGS))


# Of people who have no mask ----------------------------------------------------------------------------------------

CLASSES = ["background", "dog", "cat", "red thing"]
IMAGES = ["a", "b", "c", "my photo", "day1/d", "#5"]
FILES = {
    "spaces": "a.jpg dog cat\nb\n\n# a comment\nmy photo red thing cat\nday1/d.png dog\n#5 cat\nc background\n",
    "a header": "image tags\na dog cat\nb\nmy photo.jpg red thing cat\nimages/day1/d dog\n#5 cat\nc\n",
    "CSV columns": "name,classes\na.jpg,dog,cat\nb,\nmy photo,red thing,cat\nday1/d,dog,,\n#5,cat\nc,,\n",
    "CSV of lists": 'image,label\r\na,dog;cat\r\nb,\r\nmy photo,"red thing, cat"\r\n"day1/d",dog\r\n#5,cat\r\nc,\r\n',
    "semicolons": "\ufeffa;dog;cat\nb;\nmy photo;red thing;cat\nC:\\x\\day1\\d.jpg;dog\n#5;cat\nc;background\n",
    "tabs": "a\tdog\tcat\nb\nmy photo\tred thing\tcat\nday1/d\tdog\n#5\tcat\nc\n",
    "0 and 1": "file,cat,dog,red thing\na,1,1,0\nb,0,0,0\nmy photo,1,0,1\nday1/d,0,1,0\n#5,1,0,0\nc,,,\n",
}
MEANT = {"a": {1, 2}, "b": set(), "c": set(), "my photo": {2, 3}, "day1/d": {1}, "#5": {2}}


@pytest.mark.parametrize("row", FILES)
def test_files_of_tags_are_read(row, tmp_path):
    file = tmp_path / "tags.txt"
    file.write_bytes(FILES[row].encode())
    assert {name: {*tags} - {0} for name, tags in read_tags(file, IMAGES, CLASSES).items()} == MEANT


REFUSED = {
    "an unknown class": ("a dog\nb dgo", "line 2: 'dgo' is none of the classes, background, dog, .*; nearest: dog"),
    "an unknown image": ("my foto dog", "line 1: there is no image 'my' in images/"),
    "an image nearly named": ("a dog\nmy phot,dog", "line 2: there is no image 'my phot' in .*; nearest: my photo"),
    "an image twice": (
        "a dog\n\na.png cat",
        "line 3: image 'a' stands in line 1 already: write all its classes in one",
    ),
    "a class twice": ("a dog cat dog", "line 1: names 'dog' twice"),
    "a number for a name": ("a 1", "line 1: '1' is none of the classes"),
    "a column too few": ("file,cat,dog\na,1", "line 2: 1 values behind the name, but the header names 2"),
    "nothing": ("# nothing\n", "is empty: write a line for each image"),
    "Windows-1252": (b"a dog\nb h\xf6rse", "line 2: the byte 0xf6 is not UTF-8"),
    "UTF-16": ("a dog".encode("utf-16"), "is UTF-16 or no text"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_what_is_wrong_in_a_file_of_tags_is_named_with_its_line(row, tmp_path):
    content, words = REFUSED[row]
    file = tmp_path / "tags.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words) as error:
        read_tags(file, IMAGES, CLASSES)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("how", ["tags.txt", "folders"])
def test_a_folder_without_a_mask_trains_and_evaluates_on_its_tags(how, tmp_path):
    root = draw_tagged(tmp_path / "data", how == "folders")
    data = Folder(str(root), tags=how, size=32, batch_size=2, num_workers=0, supervision=TAGS, cache_dir=str(tmp_path))
    assert {split: len(data.names(split)) for split in ("train", "val", "test")} == {"train": 6, "val": 3, "test": 3}
    data.prepare_data()
    check_tags(data)

    def meant(name):
        number = int(name.split("/")[-1])
        dog = number % 2 == 0
        return [False, dog, number % 3 == 0 and not (how == "folders" and dog)]

    seen = set()
    for _ in range(4):
        for batch, _, _ in data.train_dataloader():
            labeled = data.ready(batch)["labeled"]
            seen |= {*labeled["name"]}
            assert labeled["tags"].tolist() == [meant(name) for name in labeled["name"]]
            assert (labeled["mask"] == IGNORE).all()
    assert seen == {*data.names("train")}
    for batch in [*data.val_dataloader(), *data.test_dataloader()]:
        ready = data.ready(batch)
        assert ready["tags"].tolist() == [meant(ready["name"][0])]
        assert ready["mask"].shape[1:] == tuple(ready["size"][0].tolist())
        assert (ready["mask"] == IGNORE).all()
    before = data.annotation_dir()
    (root / "tags.txt").write_text((root / "tags.txt").read_text() + "\n")
    again = Folder(str(root), tags=how, size=32, num_workers=0, supervision=TAGS, cache_dir=str(tmp_path))
    assert (again.annotation_dir() == before) == (how == "folders")


def test_masks_of_val_and_of_a_few_images_may_be_there_too(tmp_path):
    root = draw_tagged(tmp_path / "data")
    (root / "masks").mkdir()
    for number in (0, 1, 10, 11):
        Image.fromarray(np.full((30 + number, 40), number % 2, np.uint8)).save(root / "masks" / f"{number}.png")
    (root / "val.txt").write_text("10\n11\n")
    (root / "test.txt").write_text("8\n9\n")
    what = Supervision(kind="tags", dense_images=2)
    data = Folder(str(root), tags="tags.txt", size=32, num_workers=0, supervision=what, cache_dir=str(tmp_path))
    data.prepare_data()
    report = data.annotation_report()
    assert (report["images"], report["images_per_tag"]) == (8, {"dog": 4, "cat": 3})
    drawn = {int(n): np.asarray(Image.open(data.annotation_dir() / f"{n}.png")) for n in data.names("train")}
    assert {number for number, mask in drawn.items() if (mask != IGNORE).any()} == {0, 1}
    truth = {batch["name"][0]: batch for batch in data.val_dataloader()}
    assert (truth["10"]["mask"] == 0).all()
    assert truth["10"]["tags"].tolist() == [[False, True, False]]  # people's word, not the mask's


PEOPLE = {
    "an image without a line": (
        lambda root: (root / "tags.txt").write_text("0.png dog\n1.png\n2.png cat\n3.png\n4.png dog\n"),
        "tags.txt has no line of the training images 10, 11, 5, 6, 7",
    ),
    "val without mask and line": (
        lambda root: [(root / "val.txt").write_text("0\n"), (root / "tags.txt").write_text("1 dog\n2\n3\n4\n5\n6\n")],
        "val images need a mask, these have none: 0; draw them, tag them in data.tags",
    ),
    "too few": (
        lambda root: (root / "tags.txt").write_text("0 dog\n1 cat\n"),
        "has 2 tagged images; 5 are needed",
    ),
}


@pytest.mark.parametrize("row", PEOPLE)
def test_images_that_nobody_tagged_are_named(row, tmp_path):
    root = draw_tagged(tmp_path / "data")
    change, words = PEOPLE[row]
    change(root)
    with pytest.raises(ValueError, match=words):
        Folder(str(root), tags="tags.txt", supervision=TAGS)


def test_folders_that_no_class_is_named_by_and_images_in_none_are_refused(tmp_path):
    root = draw_tagged(tmp_path / "data", folders=True)
    (root / "images" / "dog").rename(root / "images" / "dgo")
    with pytest.raises(ValueError, match=r"images/dgo: 'dgo' is none of the classes, .*; nearest: dog"):
        Folder(str(root), tags="folders")
    with pytest.raises(ValueError, match=r"0, 1, 10, 11, 2 \(12 in all\) lie in .* itself"):
        Folder(str(draw_tagged(tmp_path / "flat")), tags="folders")
    with pytest.raises(FileNotFoundError, match=r"tags file .*tgas\.txt does not exist"):
        Folder(str(tmp_path / "flat"), tags="tgas.txt")


def test_doctor_reports_tags_and_calls_no_mask_an_error(tmp_path):
    root = draw_tagged(tmp_path / "data")
    options = ["--config", "base", "--data", "Folder", "--data.root", root, "--data.init_args.tags", "tags.txt"]
    options += ["--data.init_args.supervision", "{kind: tags}"]
    text = weakseg("doctor", *options, "--sheet", tmp_path / "sheet.png", "--regimes", tmp_path / "regimes.png")
    assert "train: 6 images (0 with a mask)" in text
    assert re.search(r"images per tag: dog \d, cat \d\n", text)
    assert "no problem found" in text
    assert (tmp_path / "sheet.png").exists()
    (root / "classes.txt").write_text("background\ndog\ncat\ncow\n")
    (root / "tags.txt").write_text("".join(f"{number} dog{' cat' * (number % 2)}\n" for number in range(12)))
    text = weakseg("doctor", *options)
    assert "warning: no image of train is tagged cow: it cannot be learned" in text
    assert "warning: every image of train shows dog: without images that do not" in text
    (root / "tags.txt").write_text("".join(f"{number}\n" for number in range(12)))
    text = weakseg("doctor", *options, expect=1)
    assert "problem: none of the 6 training images has the tag of an object" in text
    (root / "classes.txt").write_text("dog\ncat\ncow\n")
    assert "problem: image tags name objects" in weakseg("doctor", *options, expect=1)
