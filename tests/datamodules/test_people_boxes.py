"""Boxes that people drew in images of their own: COCO's and VOC's files, and what is wrong with them."""

import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from common.ops.batch import IGNORE
from conftest import weakseg
from datamodules.boxes import placed
from datamodules.sets.folder import Folder
from datamodules.supervision import Supervision
from experiments.cli import own_data

NAMES = "abcdefghij"
CORNERS = ("xmin", "ymin", "xmax", "ymax")
BOXES = Supervision("boxes", real=True, inside="filled")
BOX = [4, 6, 10, 8]  # x, y, width, height; so columns 4 to 13 and rows 6 to 13


def coco(**more):
    """A file in which each image but the last shows a dog, the first with more said of it."""
    square = {"category_id": 1, "bbox": BOX, "iscrowd": 0}
    return {
        "images": [{"id": i, "file_name": f"x/{name}.jpg", "width": 40, "height": 30} for i, name in enumerate(NAMES)],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "ignore"}, {"id": 3, "name": "wolf"}],
        "annotations": [
            {"id": i + 100, "image_id": i, **square, **(more if i == 0 else {})} for i in range(len(NAMES) - 1)
        ],
    }


def voc(name="dog", box=(5, 7, 14, 14), size="<size><width>40</width><height>30</height></size>", inner=""):
    """One object, by the corners that VOC counts from 1: columns 4 to 13 and rows 6 to 13 too."""
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in zip(CORNERS, box, strict=False))
    thing = f"<object><name>{name}</name><difficult>1</difficult>{inner or f'<bndbox>{corners}</bndbox>'}</object>"
    return f"<annotation><filename>other.jpg</filename>{size}{thing if name else ''}</annotation>"


@pytest.fixture
def root(tmp_path):
    """Ten images, and lists of 6, 2 and 2."""
    root, rng = tmp_path / "data", np.random.default_rng(5)
    (root / "images").mkdir(parents=True)
    (root / "classes.txt").write_text("background\ndog\n")
    for name in NAMES:
        image = rng.integers(0, 90, (30, 40, 3))
        image[6:14, 4:14] += 150
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{name}.png")
    for split, names in (("train", NAMES[:6]), ("val", NAMES[6:8]), ("test", NAMES[8:])):
        (root / f"{split}.txt").write_text("\n".join(names))
    return root


def write_voc(root, **first):
    (root / "boxes").mkdir()
    for name in NAMES:
        text = voc(**first) if name == "a" and first else voc(name="" if name == "j" else "dog")
        (root / "boxes" / f"{name}.xml").write_text(text)


def write_coco(root, content=None, **first):
    (root / "boxes.json").write_text(json.dumps(content or coco(**first)))


def opened(root, **options):
    return Folder(
        str(root), size=[30, 40], **{"supervision": BOXES, "cache_dir": str(root.parent / "cache"), **options}
    )


@pytest.mark.parametrize("write", [write_coco, write_voc])
def test_both_formats_say_the_same_pixels(write, root):
    write(root)
    data = opened(root)
    assert data.boxes("a") == [[4, 6, 13, 13, 1]]
    assert data.boxes("j") == []  # no object
    assert data.lists() == ([*NAMES[:6]], [])
    data.prepare_data()
    drawn = np.asarray(Image.open(data.annotation_dir() / "a.png"))
    wanted = np.zeros((30, 40), np.uint8)
    wanted[6:14, 4:14] = 1
    np.testing.assert_array_equal(drawn, wanted)
    np.testing.assert_array_equal(data.mask("g"), wanted)  # of val, where there is no mask at all
    assert data.mask("a") is None  # of train: boxes are no masks
    assert not data.mask("j").any()
    assert data.annotation_report()["images_per_tag"] == {"dog": 6}


@pytest.mark.parametrize("write", [write_coco, write_voc])
def test_an_image_without_an_entry_is_not_labelled(write, root):
    write(root)
    if write is write_voc:
        (root / "boxes" / "b.xml").unlink()
    else:
        content = coco()
        for key in ("images", "annotations"):
            content[key] = [one for one in content[key] if one.get("image_id", one["id"]) != 1]
        write_coco(root, content)
    assert opened(root).lists() == ([*"acdef"], ["b"])


def test_a_box_without_a_label_and_smaller_boxes_on_top(root):
    content = coco(category_id=2, bbox=[0, 0, 40, 30])
    content["annotations"].append({"id": 7, "image_id": 0, "category_id": 1, "bbox": [2, 2, 3, 3]})
    write_coco(root, content)
    data = opened(root)
    data.prepare_data()
    wanted = np.full((30, 40), IGNORE, np.uint8)
    wanted[2:5, 2:5] = 1
    np.testing.assert_array_equal(np.asarray(Image.open(data.annotation_dir() / "a.png")), wanted)


def test_boxes_of_another_size_cover_every_pixel_that_they_touch():
    for box, rows, columns in (
        ([4, 6, 13, 13, 1], (3, 7), (2, 7)), ([5, 7, 5, 7, 1], (3, 4), (2, 3)), ([-1, -1, 40, 30, 1], (0, 15), (0, 20))
    ):  # fmt: skip
        [(label, place)] = placed([box], (30, 40), (15, 20))
        assert (label, place) == (1, (slice(*rows), slice(*columns)))


def test_masks_are_what_val_is_compared_with_where_there_are_some(root):
    write_coco(root)
    (root / "masks").mkdir()
    for name in "ghij":
        Image.fromarray(np.eye(30, 40).astype(np.uint8)).save(root / "masks" / f"{name}.png")
    data = opened(root)
    np.testing.assert_array_equal(data.mask("g"), np.eye(30, 40))
    assert data.lists()[0] == [*NAMES[:6]]
    (root / "masks" / "j.png").unlink()
    with pytest.raises(ValueError, match="test images need a mask, these have none: j"):
        opened(root)


def test_boxes_that_change_are_drawn_anew(root):
    write_coco(root)
    before = opened(root).annotation_dir()
    write_coco(root, bbox=[4, 6, 10, 9])
    assert opened(root).annotation_dir() != before


def renamed(content):
    content["images"][0]["file_name"] = "elsewhere/z.jpg"
    return content


def without(content, key):
    del content["annotations"][0][key]
    return content


COCO = {
    "outside": (coco(bbox=[30, 6, 14, 8]), "boxes.json, image a: the box from pixel 30, 6, 43, 13 .* 40 x 30.*correct"),
    "corners": (coco(bbox=[20, 6, 30, 8]), "corners where a width and a height should be"),
    "empty": (coco(bbox=[3, 3, 0, 4]), r"annotation 100: its box \[3, 3, 0, 4\] is empty"),
    "three numbers": (coco(bbox=[3, 3, 4]), "annotation 100: 'bbox' is"),
    "no box": (without(coco(), "bbox"), "annotation 100: 'bbox' is missing"),
    "NaN": (json.dumps(coco()).replace("[4, 6, 10, 8]", "[NaN, 6, 10, 8]", 1), "it holds NaN"),
    "words": (coco(bbox=["a", 3, 4, 4]), "annotation 100: .*are no points"),
    "very far": (coco(bbox=[1e300, 3, 4, 4]), "annotation 100: .*coordinates that no image has"),
    "unknown class": (coco(category_id=3), "annotation 100: the label 'wolf' is no class: the classes are"),
    "unlisted category": (coco(category_id=9), "annotation 100: it is of the category 9, which is not listed"),
    "crowd": (coco(iscrowd=1), "annotation 100: it is a crowd.*take it out, or give it the category 'ignore'"),
    "missing image": (renamed(coco()), r"1 of the images that it lists are not in images/ \(elsewhere/z.jpg\): add"),
    "unlisted image": (coco(image_id=77), "annotation 100: it is of image 77, which is not listed"),
    "another size": (
        json.dumps(coco()).replace('"width": 40', '"width": 80', 1), "a: its image is said to have 80 x 30 pixels"
    ),
    "one image twice": (
        json.dumps(coco()).replace("x/b.jpg", "y/a.png"), "it lists the image 'y/a.png' twice"
    ),
    "of RGBD": ({"boxes": {}, "intrinsics": {}}, "a folder with depth, see data set RGBD"),
    "a list": ([], "boxes.json: "),
    "cut": (json.dumps(coco())[:-9], "boxes.json: it cannot be read as JSON"),
    "deep": ("[" * 50_000, "boxes.json: "),
}  # fmt: skip
BOMB = "<!DOCTYPE a [" + "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "ha"}">' for i in range(12)) + "]>"
VOC = {
    "outside": (voc(box=(5, 7, 42, 14)), "a.xml, image a: the box from pixel 4, 6, 41, 13"),
    "empty": (voc(box=(14, 7, 5, 14)), "a.xml: object 0: its box .* is empty"),
    "words": (voc(box=("x", 7, 5, 14)), "a.xml: object 0: .*are no points"),
    "no corner": (voc(inner="<bndbox><xmin>3</xmin></bndbox>"), "a.xml: object 0: .*are no points"),
    "turned": (voc(inner="<robndbox><cx>3</cx></robndbox>"), "a.xml: object 0: it has no <bndbox>"),
    "unknown class": (voc(name="dgo"), "a.xml: object 0: the label 'dgo' is no class: did you mean 'dog'"),
    "no name": (voc(name=" "), "a.xml: object 0: the label '' is no class"),
    "another size": (voc(size="<size><width>30</width><height>40</height></size>"), "said to have 30 x 40 pixels"),
    "a size of words": (voc(size="<size><width>a</width><height>40</height></size>"), "a.xml: it says that its image"),
    "DOCTYPE": (BOMB + voc(name="&e11;"), "a.xml: it has a DOCTYPE, which no such file needs: remove"),
    "another root": ("<annotations/>", "a.xml: it is not of VOC's format"),
    "cut": (voc()[:-5], "a.xml: it cannot be read as XML"),
    "latin": (voc(name="é").encode("latin-1"), "a.xml: it is no text in UTF-8"),
    "deep": ("<annotation>" + "<a>" * 100_000, "a.xml: it cannot be read as XML"),
    "large": (voc() + " " * 2**22, r"a.xml: it has 4.0 MiB, at most 4 are read"),
}  # fmt: skip


def all_of(data):
    for name in data.boxed:
        data.boxes(name)


@pytest.mark.parametrize("case", COCO)
def test_a_bad_file_of_coco_is_one_line(case, root):
    content, told = COCO[case]
    (root / "boxes.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=told) as error:
        all_of(opened(root))
    assert str(error.value).startswith(str(root / "boxes.json"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("case", VOC)
def test_a_bad_file_of_voc_is_one_line(case, root):
    write_voc(root)
    content, told = VOC[case]
    (root / "boxes" / "a.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=told) as error:
        all_of(opened(root))
    assert str(error.value).startswith(str(root / "boxes" / "a.xml"))
    assert "\n" not in str(error.value)


def test_folders_that_contradict_themselves_are_refused(root):
    write_voc(root)
    (root / "boxes" / "a.png.xml").write_text(voc())
    with pytest.raises(ValueError, match=r"a.png.xml: |a.xml: .*is of the same image"):
        opened(root)
    (root / "boxes" / "a.png.xml").rename(root / "boxes" / "z.xml")
    with pytest.raises(ValueError, match=r"z.xml: its image is not in images/: add it, or remove the file"):
        opened(root)
    write_coco(root)
    with pytest.raises(ValueError, match=r"has both boxes\.json and boxes/"):
        opened(root)
    (root / "boxes.json").unlink()
    for path in (root / "boxes").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"boxes holds no NAME.xml"):
        opened(root)
    (root / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match="no class of that name: add it"):
        opened(root)


def test_doctor_names_each_fault_and_what_boxes_are_for(root):
    write_coco(root)
    words = ["doctor", "--data", "Folder", "--data.root", root, "--data.cache_dir", root.parent / "cache"]
    said = weakseg(*words, expect=1)
    assert "they have boxes: learn from these (supervision={kind: boxes, real: true})" in said
    boxes = ["--data.supervision", "{kind: boxes, real: true}", "--sheet", root.parent / "sheet.png"]
    with pytest.warns(UserWarning, match="4 images of val and test are compared with their filled boxes"):
        said = weakseg(*words, *boxes)
    assert "train: 6 images (0 with a mask, 6 with boxes), 30 x 40 pixels" in said
    assert (root.parent / "sheet.png").exists()
    content = coco(bbox=[30, 6, 14, 8])
    content["annotations"][1]["bbox"] = [1, 20, 5, 15]
    write_coco(root, content)
    said = weakseg(*words, *boxes, expect=1)
    assert len(re.findall("problem: .*boxes.json, image [ab]: the box from pixel", said)) == 2


@pytest.mark.parametrize("opencv", [True, False])
def test_fit_takes_a_folder_of_boxes_alone(root, monkeypatch, opencv):
    if opencv:
        pytest.importorskip("cv2")
    else:
        monkeypatch.setattr(own_data, "find_spec", lambda name: None)
    write_voc(root)
    monkeypatch.chdir(root.parent)
    tiny = ["--model.network.encoder", "tu-test_resnet", "--trainer.max_steps", "2", "--data.num_workers", "0",
            "--trainer.enable_progress_bar", "false"]  # fmt: skip
    said = weakseg("fit", "--data", root, *tiny)
    assert "boxes; 6 training images (0 with a mask, 6 with boxes), 2 for val, 2 for test; 2 classes" in said
    method = yaml.safe_load(own_data.TABLE.read_text())["boxes"]["from scratch" if opencv else "without OpenCV"]
    assert f"chosen: {method}" in said
    config = yaml.safe_load((root.parent / "runs" / "data" / method / "seed0" / "config.yaml").read_text())
    chosen = config["data"]["init_args"]["supervision"]
    assert (chosen["kind"], chosen["real"]) == ("boxes", True)
    assert chosen["inside"] == ("grabcut" if opencv else "filled")
    data = Folder(str(root), supervision=Supervision("dense"))
    assert own_data.kind_of(data) == "boxes"
