"""Annotations drawn with labelme and COCO tools, read by `Folder`."""

import itertools
import json
import os
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from common.ops.batch import IGNORE
from conftest import fit_tiny
from datamodules.labelme_coco import decompressed, read_coco, read_labelme
from datamodules.sets.folder import Folder

CLASSES = ("background", "dog", "cat")


def labelme(path, *shapes, size=(40, 30)):
    content = {"imageWidth": size[0], "imageHeight": size[1], "imagePath": "a.jpg", "shapes": []}
    for label, kind, points in shapes:
        content["shapes"].append({"label": label, "shape_type": kind, "points": points})
    path.write_text(json.dumps(content))
    return path


def coco(path, annotations, categories=CLASSES, images=("a",), size=(40, 30)):
    content = {
        "images": [
            {"id": i, "file_name": f"x/{name}.jpg", "width": size[0], "height": size[1]}
            for i, name in enumerate(images)
        ],
        "categories": [{"id": 10 + i, "name": name} for i, name in enumerate(categories)],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    return path


def test_labelme_shapes(tmp_path):
    path = labelme(
        tmp_path / "a.json",
        ("background", "polygon", [[0, 0], [19, 0], [19, 29], [0, 29]]),
        ("dog", "rectangle", [[30, 20], [25, 10]]),
        ("cat", "linestrip", [[22, 5], [38, 5]]),
        ("cat", "point", [[39.6, 29.7]]),
        ("dog", "circle", [[10, 15], [13, 15]]),
    )
    mask = read_labelme(path, CLASSES)
    assert mask.shape == (30, 40)
    assert mask[2, 2] == 0
    assert (mask[10:21, 25:31] == 1).all()
    assert (mask[4:7, 24:37] == 2).all()
    assert mask[3, 30] == mask[8, 30] == IGNORE
    assert mask[29, 39] == 2
    assert mask[15, 10] == mask[15, 12] == 1  # the circle, over the polygon
    assert mask[15, 16] == 0
    assert mask[25, 35] == IGNORE


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (("dgo", "polygon", [[0, 0], [5, 0], [5, 5]]), ["dgo", "did you mean 'dog'"]),
        (("tractor", "point", [[1, 1]]), ["tractor", "background, dog, cat"]),
        (("dog", "point", [[100, 100]]), ["outside the image of 40 x 30"]),
        (("dog", "polygon", [[1, 1], [2, 2]]), ["polygon with 2 points", "redraw"]),
        (("dog", "mask", [[1, 1], [2, 2]]), ["a mask with 2 points", "redraw"]),
    ],
)
def test_bad_labelme_shapes_are_named_with_their_file(tmp_path, shape, words):
    with pytest.raises(ValueError, match=r"a\.json") as caught:
        read_labelme(labelme(tmp_path / "a.json", shape), CLASSES)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("content", ["{", "[]", '{"shapes": []}', '{"imageWidth": "x", "shapes": []}'])
@pytest.mark.parametrize("read", [read_labelme, read_coco])
def test_files_of_other_tools_are_refused(tmp_path, content, read):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        read(tmp_path / "a.json", CLASSES)


def test_coco_polygons_and_run_lengths_small_over_large(tmp_path):
    runs = {"size": [30, 40], "counts": [30 * 20, 30 * 5, 30 * 15]}  # columns 20..24
    path = coco(
        tmp_path / "c.json",
        [
            {"image_id": 0, "category_id": 12, "area": 9, "segmentation": [[5, 5, 8, 5, 8, 8, 5, 8]]},
            {"image_id": 0, "category_id": 11, "area": 400, "segmentation": [[0, 0, 15, 0, 15, 29, 0, 29]]},
            {
                "image_id": 0,
                "category_id": 11,
                "area": 150,
                "segmentation": runs,
            },
        ],
        images=("a", "unlabelled"),
    )
    found = read_coco(path, CLASSES)
    assert list(found) == ["a"]
    mask = found["a"]()
    assert mask[6, 6] == 2
    assert mask[20, 10] == 1
    assert (mask[:, 20:25] == 1).all()
    assert (mask[:, 26:] == IGNORE).all()


@pytest.mark.parametrize("size", [(10**6, 10**6), (0, 30), (-40, 30)])
def test_sizes_that_no_image_has_are_refused(tmp_path, size):
    shape = {"image_id": 0, "category_id": 11, "segmentation": [[5, 5, 8, 5, 8, 8]]}
    with pytest.raises(ValueError, match=r"c\.json says that its image is .* pixels: correct it"):
        read_coco(coco(tmp_path / "c.json", [shape], size=size), CLASSES)["a"]()
    with pytest.raises(ValueError, match=r"a\.json says that its image is .* pixels: correct it"):
        read_labelme(labelme(tmp_path / "a.json", size=size), CLASSES)


def test_coco_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="label 'cow'"):
        read_coco(coco(tmp_path / "c.json", [], categories=("dog", "cow")), CLASSES)


def run_lengths(path, counts, size=(40, 30)):
    shape = {"image_id": 0, "category_id": 11, "segmentation": {"size": [size[1], size[0]], "counts": counts}}
    return read_coco(coco(path, [shape], size=size), CLASSES)["a"]()


def compressed(mask):
    """Run lengths of a mask (H, W) of bool, as a list and as text, written from COCO's description."""
    pixels = mask.T.ravel().tolist()
    edges = [0, *(i for i in range(len(pixels)) if pixels[i] != (i > 0 and pixels[i - 1])), len(pixels)]
    counts = [after - before for before, after in itertools.pairwise(edges)]
    text = ""
    for place, count in enumerate(counts):
        number = count - (counts[place - 2] if place > 2 else 0)
        while True:
            bits, number = number & 31, number >> 5
            done = number == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if done else 32))
            if done:
                break
    return counts, text


def test_compressed_run_lengths_of_pycocotools(tmp_path):
    """Texts that pycocotools 2.0.11 gave for these masks."""
    one, two = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    one[5:9, 3:7] = one[20:, 10:] = one[3, 30] = True
    two[0, 0] = two[10:20, ::2] = True
    for mask, text in (
        (one, "o24j000000Y36aL0000000000000000000000000000000000000_OG=9400000000000000000"),
        (two, "0199Y10000000000000000000000000000000000000F"),
    ):
        assert compressed(mask)[1] == text
        assert ((run_lengths(tmp_path / "c.json", text) == 1) == mask).all()


@pytest.mark.parametrize("seed", range(6))
def test_run_lengths_both_ways(tmp_path, seed):
    rng = np.random.default_rng(seed)
    width, height = rng.integers(1, 200, 2).tolist()
    mask = rng.random((height, width)) < rng.choice([0.0, 0.01, 0.5, 0.99])
    counts, text = compressed(mask)
    assert decompressed(text) == counts
    for written in (counts, text):
        found = run_lengths(tmp_path / "c.json", written, size=(width, height))
        assert (found == np.where(mask, 1, IGNORE)).all()


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([5, 5], "10 pixels in an image of 40 x 30"),
        ([600, 600, 10**12], "pixels in an image of 40 x 30"),
        ("5", "5 pixels in an image of 40 x 30"),
        ([1205, -5], "cannot be read"),
        ([1199.5, 0.5], "cannot be read"),
        ([True, 1199], "cannot be read"),
        (["1200"], "cannot be read"),
        (None, "cannot be read"),
        ("hb0f4R", "cannot be read"),  # cut: the last number goes on
        ("hb0\x7f4R>", "cannot be read"),
        ("o" * 10**6, "cannot be read"),
        ("F", "cannot be read"),  # a negative count
    ],
)
def test_bad_run_lengths_are_named(tmp_path, counts, words):
    with pytest.raises(ValueError, match=words) as caught:
        run_lengths(tmp_path / "c.json", counts)
    assert "c.json" in str(caught.value)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    rng = np.random.default_rng(0)
    for name in "abcdefghij":
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(root / "images" / f"{name}.jpg")
    return root


def test_scribbles_of_labelme_train_through_the_command(folder, tmp_path):
    (folder / "masks").mkdir()
    for name in "abcdefgh":  # i and j stay unlabelled
        shapes = (("background", "linestrip", [[2, 2], [30, 4]]), ("dog", "linestrip", [[5, 20], [30, 22]]))
        labelme(folder / "masks" / f"{name}.json", *shapes)
    data = Folder(str(folder))
    assert {"i", "j"} <= set(data.lists()[1])
    assert (data.mask("a") == IGNORE).mean() > 0.8
    assert not (Folder(str(folder), fill="background").mask("a") == IGNORE).any()
    fit_tiny(tmp_path / "run", "--data", "Folder", "--data.init_args.root", folder, "--trainer.max_steps", "2")


def test_masks_that_changed_after_the_draw_are_told_of(folder):
    (folder / "masks").mkdir()
    for name in "abcdefgh":
        labelme(folder / "masks" / f"{name}.json", ("dog", "linestrip", [[5, 20], [30, 22]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Folder(str(folder)).prepare_data()
        Folder(str(folder)).prepare_data()
    later = time.time() + 5
    os.utime(folder / "masks" / "c.json", (later, later))
    with pytest.warns(UserWarning, match=r"newer than the annotation.*: c\.json; delete"):
        Folder(str(folder)).prepare_data()
    os.utime(folder / "classes.txt", (later, later))
    with pytest.warns(UserWarning, match=r"newer than the annotation.*: c\.json, classes\.txt; delete"):
        Folder(str(folder)).prepare_data()


def test_coco_in_a_folder_and_contradictions(folder):
    square = [[5, 5, 20, 5, 20, 20, 5, 20]]
    shapes = [{"image_id": i, "category_id": 11, "area": 225, "segmentation": square} for i in range(10)]
    coco(folder / "coco.json", shapes, images="abcdefghij")
    assert (Folder(str(folder), fill="background").mask("a")[:3] == 0).all()
    with pytest.raises(ValueError, match=r"data\.fill is 'grass'"):
        Folder(str(folder), fill="grass")
    (folder / "masks").mkdir()
    with pytest.raises(ValueError, match=r"both coco\.json and masks/"):
        Folder(str(folder))
    (folder / "coco.json").unlink()
    labelme(folder / "masks" / "a.json", ("dog", "point", [[1, 1]]))
    Image.new("L", (40, 30)).save(folder / "masks" / "a.png")
    with pytest.raises(ValueError, match="a picture and a JSON file for a"):
        Folder(str(folder))
