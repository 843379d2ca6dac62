"""Drawings of annotation tools, in files as the tools write them, read by `Folder`."""

import base64
import io
import itertools
import json
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.ops.batch import IGNORE
from conftest import fit_tiny
from datamodules.drawn import Drawn, check_classes, find, paint
from datamodules.drawn.coco import decompressed
from datamodules.drawn.content import naming
from datamodules.drawn.label_studio import unpacked
from datamodules.sets.folder import Folder

CLASSES = ("background", "dog", "cat")
SIZE = (40, 30)  # width and height of the images
SQUARE = [[5, 5], [20, 5], [20, 20], [5, 20]]


def image(path, size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 99, 200)).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """A data folder with ten images and no masks."""
    for name in "abcdefghij":
        image(tmp_path / "data" / "images" / f"{name}.jpg")
    (tmp_path / "data" / "classes.txt").write_text("\n".join(CLASSES))
    return tmp_path / "data"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def found(root, fill=None):
    """Drawings by image id, as `Folder` looks for them."""
    suffixes = (".jpg", ".png", ".tif")
    images = {
        path.relative_to(root / "images").with_suffix("").as_posix(): path
        for path in sorted((root / "images").rglob("*"))
        if path.suffix in suffixes
    }
    return find(root, images, CLASSES, fill)


def masks(root, fill=None):
    return {name: one.mask() for name, one in found(root, fill).items()}


def labelme(*shapes, size=SIZE, **more):
    """A labelme file of (label, kind, points) or of whole shapes."""
    keys = ("label", "shape_type", "points")
    content = {"version": "5.4.1", "flags": {}, "imagePath": "a.jpg", "imageData": None, **more}
    content["shapes"] = [one if isinstance(one, dict) else dict(zip(keys, one, strict=True)) for one in shapes]
    return content | ({"imageHeight": size[1], "imageWidth": size[0]} if size else {})


def coco(*annotations, categories=CLASSES, images=("a.jpg",), size=SIZE):
    """A COCO file; categories have the ids 10, 11, ..., images and annotations 0, 1, ..."""
    return {
        "images": [{"id": i, "file_name": name, "width": size[0], "height": size[1]} for i, name in enumerate(images)],
        "categories": [{"id": 10 + i, "name": name} for i, name in enumerate(categories)],
        "annotations": [
            {"id": i, "image_id": 0, "category_id": 11, "iscrowd": 0} | one for i, one in enumerate(annotations)
        ],
    }


def flat(points):
    return [value for point in points for value in point]


def where(mask, value):
    """The bounding box of a value: first and last column, first and last row."""
    rows, columns = np.nonzero(mask == value)
    return columns.min(), columns.max(), rows.min(), rows.max()


# labelme and X-AnyLabeling --------------------------------------------------------------------------------------------


def drawn(root, *shapes, fill=None, **more):
    write(root / "masks" / "a.json", labelme(*shapes, **more))
    return masks(root, fill)["a"]


def test_labelme_shapes(root):
    mask = drawn(
        root,
        ("background", "polygon", [[0, 0], [19, 0], [19, 29], [0, 29]]),
        ("dog", "rectangle", [[30, 20], [25, 10]]),
        ("cat", "linestrip", [[22, 5], [38, 5]]),
        ("cat", "point", [[39.6, 29.7]]),
        ("dog", "points", [[36, 25], [38, 27]]),
        ("dog", "circle", [[10, 15], [13, 15]]),
    )
    assert mask.shape == (30, 40)
    assert mask[2, 2] == 0
    assert (mask[10:21, 25:31] == 1).all()
    assert (mask[4:7, 24:37] == 2).all()
    assert mask[3, 30] == mask[8, 30] == IGNORE
    assert mask[29, 39] == 2
    assert mask[25, 36] == mask[27, 38] == 1
    assert mask[15, 10] == mask[15, 12] == 1  # the circle, over the polygon
    assert mask[15, 16] == 0
    assert mask[25, 35] == IGNORE


@pytest.mark.parametrize("kind", ["rectangle", "rotation", "quadrilateral", "oriented_rectangle"])
def test_four_corners_of_x_anylabeling_are_turned_already(root, kind):
    diamond = [[20, 5], [30, 15], [20, 25], [10, 15]]
    more = {"score": None, "difficult": False, "attributes": {}, "direction": 0.78, "flags": None, "group_id": None}
    mask = drawn(root, {"label": "dog", "shape_type": kind, "points": diamond, **more}, version="2.4.4")
    assert where(mask, 1) == (10, 30, 5, 25)
    assert mask[7, 12] == IGNORE


def png(inside, mode="1"):
    stream = io.BytesIO()
    Image.fromarray(inside).convert(mode).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


@pytest.mark.parametrize("mode", ["1", "L"])
def test_masks_of_labelme_fill_their_bounding_box(root, mode):
    inside = np.random.default_rng(0).random((7, 9)) < 0.5
    shape = {"label": "dog", "shape_type": "mask", "points": [[3.0, 4.0], [11.0, 10.0]], "mask": png(inside, mode)}
    mask = drawn(root, shape)
    assert ((mask == 1)[4:11, 3:12] == inside).all()
    assert (mask == 1).sum() == inside.sum()


def test_version_3_has_no_size_and_no_kinds_of_shapes(root):
    shapes = [{"label": "dog", "line_color": None, "fill_color": None, "points": SQUARE}]
    content = {"shapes": shapes, "imagePath": "..\\x\\a.jpg", "imageData": "/9j/4AAQ", "lineColor": [0, 255, 0, 128]}
    write(root / "masks" / "a.json", content)
    assert where(masks(root)["a"], 1) == (5, 20, 5, 20)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_json(root, encoding):
    (root / "images" / "a.json").write_text(json.dumps(labelme(("dog", "polygon", SQUARE))), encoding=encoding)
    assert masks(root)["a"][9, 9] == 1


def test_void_erases_what_lies_below_it_under_fill_too(root):
    for void in ("__ignore__", "ignore", "void", "unlabelled", "Void"):
        shapes = (("dog", "rectangle", [[5, 5], [20, 20]]), (void, "rectangle", [[10, 10], [30, 12]]))
        mask = drawn(root, *shapes, ("cat", "point", [[11, 11]]), fill=0)
        assert mask[11, 25] == mask[10, 10] == IGNORE
        assert mask[11, 11] == 2
        assert mask[7, 7] == 1
        assert mask[1, 1] == 0


def test_labelmes_name_of_the_background(root):
    assert drawn(root, ("_background_", "point", [[3, 3]]))[3, 3] == 0


def test_shapes_are_clipped_and_may_surround_the_image(root):
    assert (drawn(root, ("dog", "polygon", [[-9, -9], [99, -9], [99, 99], [-9, 99]])) == 1).all()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (("dgo", "polygon", SQUARE), ["dgo", "did you mean 'dog'"]),
        (("Dog", "polygon", SQUARE), ["Dog", "did you mean 'dog'"]),
        (("tractor", "point", [[1, 1]]), ["tractor", "background, dog, cat"]),
        ((7, "point", [[1, 1]]), ["'label' is 7"]),
        (("dog", "point", [[100, 100]]), ["a point of 'dog' lies outside the image of 40 x 30", "redraw"]),
        (("dog", "polygon", [[-5, 3], [-1, 5], [-2, 9]]), ["a polygon of 'dog' lies outside"]),
        (("dog", "circle", [[-5, 3], [-4, 3]]), ["a circle of 'dog' lies outside"]),
        (("dog", "polygon", [[1, 1], [2, 2]]), ["polygon of 'dog' with 2 points", "redraw"]),
        (("dog", "rectangle", SQUARE[:3]), ["rectangle of 'dog' with 3 points"]),
        (("dog", "mask", [[1, 1], [2, 2]]), ["mask of 'dog' with 2 points"]),
        (("dog", "cuboid", SQUARE), ["cuboid of 'dog'"]),
        (("dog", "polygon", [[1, 1], [2, float("1e30")], [3, 4]]), ["coordinates that no image has"]),
        (("dog", "polygon", [[1, 1], [2, 10**400], [3, 4]]), ["are no points"]),
        (("dog", "polygon", [[1, 1], [2, None], [3, 4]]), ["coordinates that no image has"]),
        (("dog", "polygon", [[1, 1], [2], [3, 4]]), ["are no points"]),
        (("dog", "polygon", [[1, 1, 1], [2, 2, 2], [3, 4, 4]]), ["are no points"]),
    ],
)
def test_bad_labelme_shapes_are_named_with_their_file(root, shape, words):
    with pytest.raises(ValueError, match=r"a\.json: ") as caught:
        drawn(root, shape)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("points", "picture"),
    [
        ([[3, 4], [11, 10]], png(np.ones((7, 8), bool))),  # another size than the box
        ([[3, 4], [200, 10]], png(np.ones((7, 198), bool))),  # wider than the image
        ([[3, 4], [2, 2]], png(np.ones((7, 9), bool))),
        ([[3, 4], [11, 10]], "no base 64"),
        ([[3, 4], [11, 10]], base64.b64encode(b"no picture").decode()),
        ([[3, 4], [11, 10]], png(np.ones((7, 9), bool))[:60] + "===="),
        ([[3, 4], [11, 10]], png(np.ones((7, 9), bool), "RGB")),
    ],
)
def test_bad_mask_pictures_are_named(root, points, picture):
    shape = {"label": "dog", "shape_type": "mask", "points": points, "mask": picture}
    with pytest.raises(ValueError, match=r"a\.json: a mask of 'dog' holds a picture"):
        drawn(root, shape)


def test_sizes_are_those_of_the_upright_image(root):
    with pytest.raises(ValueError, match=r"a\.json: its image is said to have 30 x 40 pixels, a\.jpg has 40 x 30"):
        drawn(root, size=(30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "png"):
        (root / "images" / "a.jpg").unlink(missing_ok=True)
        image(root / "images" / f"a.{suffix}", size=(30, 40), exif=exif)
        assert drawn(root, ("dog", "point", [[39, 29]]))[29, 39] == 1
    with pytest.raises(ValueError, match="upright, as EXIF says"):
        drawn(root, size=(30, 40))


@pytest.mark.parametrize("size", [(10**6, 10**6), (0, 30), (-40, 30), (10**300, 3), (40.5, 30), ("40", 30), (True, 30)])
def test_sizes_that_no_image_has_are_refused(root, size):
    with pytest.raises(ValueError, match=r"a\.json: .*image is said to have|a\.json: it says that its image"):
        drawn(root, size=size)
    (root / "masks" / "a.json").unlink()
    (root / "masks").rmdir()
    write(root / "coco.json", coco({"segmentation": [flat(SQUARE)]}, size=size))
    with pytest.raises(
        ValueError, match=r"coco\.json, image a: its image is said to have|coco\.json: it says that its image"
    ):
        masks(root)


# Where the files lie --------------------------------------------------------------------------------------------------


def test_labelme_files_lie_beside_the_images_or_in_masks_not_both(root):
    image(root / "images" / "day1" / "x.y.png")
    write(root / "images" / "a.json", labelme(("dog", "polygon", SQUARE)))
    write(root / "images" / "b.jpg.json", labelme(("dog", "polygon", SQUARE)))
    write(root / "images" / "day1" / "x.y.json", labelme(("cat", "polygon", SQUARE)))
    write(root / "masks" / "c.json", labelme(("cat", "polygon", SQUARE)))
    write(root / "images" / "._a.json", "\0")
    write(root / "images" / ".cache" / "a.json", "\0")
    write(root / "masks" / "__MACOSX" / "a.json", "\0")
    assert {name: mask[9, 9] for name, mask in masks(root).items()} == {"a": 1, "b": 1, "day1/x.y": 2, "c": 2}
    write(root / "masks" / "a.json", labelme())
    with pytest.raises(ValueError, match=r"images/a\.json and .*masks/a\.json are of one image, a: keep one"):
        found(root)


@pytest.mark.parametrize(
    "name", ["result.json", "_annotations.coco.json", "annotations.json", "instances_default.json"]
)
@pytest.mark.parametrize("place", ["", "annotations", "images"])
def test_coco_files_under_the_names_of_the_tools(root, place, name):
    write(root / place / name, coco({"segmentation": [flat(SQUARE)]}))
    assert list(found(root)) == ["a"]


def test_roboflow_writes_a_file_into_each_folder_of_images(root):
    for folder in ("train", "valid"):
        image(root / "images" / folder / "x.jpg")
    write(
        root / "images" / "train" / "_annotations.coco.json", coco({"segmentation": [flat(SQUARE)]}, images=["x.jpg"])
    )
    write(
        root / "images" / "valid" / "_annotations.coco.json", coco({"segmentation": [flat(SQUARE)]}, images=["x.jpg"])
    )
    assert sorted(found(root)) == ["train/x", "valid/x"]
    assert masks(root)["valid/x"][9, 9] == 1
    write(root / "images" / "valid" / "result.json", coco())
    with pytest.raises(ValueError, match=r"both images/train/.*images/valid/_anno.*, images/valid/result\.json"):
        found(root)
    (root / "images" / "valid" / "result.json").unlink()
    write(root / "coco.json", coco())
    with pytest.raises(ValueError, match=r"both coco\.json and images/train/_anno.*, images/valid/_anno"):
        found(root)


def test_a_coco_file_of_any_name_if_it_is_the_only_one(root):
    write(root / "train_2024.json", coco({"segmentation": [flat(SQUARE)]}))
    assert list(found(root)) == ["a"]
    write(root / "masks" / "b.json", labelme(("dog", "polygon", SQUARE)))
    assert list(found(root)) == ["b"]


def test_a_folder_without_masks_says_what_is_read(root):
    with pytest.raises(FileNotFoundError, match=r"neither masks/ nor files of annotation tools.*labelme.*YOLO"):
        Folder(str(root))
    write(root / "masks" / "coco.json", coco())
    with pytest.raises(ValueError, match=r"masks/coco\.json is called like a file of all images: put it into"):
        Folder(str(root))


@pytest.mark.parametrize("name", ["v1.2", "scan.tif", "a.b.c", "x y", "é"])
def test_names_with_dots(root, name):
    image(root / "images" / f"{name}.png")
    write(root / "images" / f"{name}.json", labelme(("dog", "polygon", SQUARE)))
    assert list(found(root)) == [name]
    (root / "images" / f"{name}.json").unlink()
    write(root / "coco.json", coco({"segmentation": [flat(SQUARE)]}, images=(f"{name}.png",)))
    assert list(found(root)) == [name]
    (root / "coco.json").unlink()
    write(root / "labels" / f"{name}.txt", "1 0.1 0.1 0.9 0.1 0.9 0.9")
    assert list(found(root)) == [name]


def test_an_image_may_be_called_as_a_coco_file(root):
    image(root / "images" / "result.jpg")
    write(root / "images" / "result.json", labelme(("dog", "polygon", SQUARE)))
    assert list(found(root)) == ["result"]


@pytest.mark.parametrize(
    "others",
    [
        ["result.json"],
        ["images/_annotations.coco.json"],
        ["masks/a.json"],
        ["images/a.json"],
        ["labels/a.txt"],
        ["annotations.xml"],
        ["masks/.DS_Store"],
    ],
)
def test_two_places_are_refused_by_name(root, others):
    write(root / "coco.json", coco())
    for name in others:
        write(root / name, labelme())
    with pytest.raises(ValueError, match=r"both coco\.json and .*: which one holds\? remove the other") as caught:
        found(root)
    assert all(name.split("/")[0] in str(caught.value) for name in others)


def test_masks_and_labels_are_two_places(root):
    write(root / "masks" / "a.json", labelme())
    write(root / "labels" / "b.txt", "")
    with pytest.raises(ValueError, match=r"both labels/\*\.txt and masks/\*\.json"):
        found(root)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"_via_settings": {}, "_via_img_metadata": {}}, ["VGG Image Annotator", "export it as COCO"]),
        (
            {"a.jpg123": {"filename": "a.jpg", "size": 123, "regions": [{"shape_attributes": {"name": "polygon"}}]}},
            ["VGG Image Annotator", "COCO"],
        ),
        (
            {"description": "", "tags": [], "size": {"height": 3}, "objects": [{"classTitle": "dog"}]},
            ["Supervisely", "COCO"],
        ),
        ({"classes": [], "tags": [], "projectType": "images"}, ["Supervisely", "COCO"]),
        ([{"image": "/data/upload/a.jpg", "id": 1, "annotator": 1, "annotation_id": 1}], ["JSON-MIN", "export JSON"]),
        (
            {"images": [], "categories": [], "annotations": [{"segments_info": [], "file_name": "a.png"}]},
            ["panoptic", "masks"],
        ),
        ({"who": "knows"}, ["format is unknown", "labelme", "COCO", "Label Studio", "CVAT", "YOLO"]),
        ([], ["format is unknown"]),
        (None, ["format is unknown"]),
        (7, ["format is unknown"]),
    ],
)
@pytest.mark.parametrize("place", ["coco.json", "export.json", "masks/a.json"])
def test_other_formats_are_refused_with_the_way_out(root, content, words, place):
    write(root / place, content)
    with pytest.raises(ValueError, match=rf"{place}: ") as caught:
        masks(root)
    assert all(word in str(caught.value) for word in words)


def test_files_in_the_wrong_place_say_where_they_belong(root):
    write(root / "images" / "a.json", coco())
    with pytest.raises(ValueError, match=r"a\.json: this is a coco file: it belongs in the data folder, as coco\.json"):
        masks(root)
    (root / "images" / "a.json").unlink()
    write(root / "coco.json", labelme())
    with pytest.raises(ValueError, match=r"this is a labelme file: it belongs beside its image"):
        masks(root)


# COCO -----------------------------------------------------------------------------------------------------------------


def coco_masks(root, *annotations, fill=None, **more):
    write(root / "coco.json", coco(*annotations, **more))
    return masks(root, fill)


def test_coco_polygons_and_run_lengths_small_over_large(root):
    runs = {"size": [30, 40], "counts": [30 * 20, 30 * 5, 30 * 15]}  # columns 20..24
    mask = coco_masks(
        root,
        {"category_id": 12, "segmentation": [[5, 5, 8, 5, 8, 8, 5, 8]], "area": float("1e9")},  # areas may be wrong
        {"segmentation": [[0, 0, 15, 0, 15, 29, 0, 29]], "area": 0},
        {"segmentation": runs, "iscrowd": 1},
        {"category_id": 12, "segmentation": [22, 2, 23, 2, 23, 4]},  # flat, as some tools write it
        {"category_id": 12, "segmentation": [[33, 2], [34, 2], [34, 4]]},  # pairs
        {"category_id": 12, "segmentation": [[[36, 2], [37, 2], [37, 4]]]},
        images=("x/a.jpg", "b.jpg"),
    )
    assert list(mask) == ["a"]
    mask = mask["a"]
    assert mask[6, 6] == mask[3, 23] == mask[3, 34] == mask[3, 37] == 2
    assert mask[20, 10] == 1
    assert (mask[10:, 20:25] == 1).all()
    assert (mask[6:, 26:] == IGNORE).all()


def test_images_that_a_coco_file_lists_without_an_object_are_background_under_fill(root):
    square = {"segmentation": [flat(SQUARE)]}
    images = ("a.jpg", "b.jpg", "not_there.jpg")
    assert list(coco_masks(root, square, images=images)) == ["a"]
    found = coco_masks(root, square, images=images, fill=0)
    assert list(found) == ["a", "b"]
    assert (found["b"] == 0).all()


@pytest.mark.parametrize(
    "name",
    [
        "images/a.jpg",
        "C:\\x\\a.jpg",
        "images\\a.jpg",
        "/home/x/images/a.png",
        "./a.jpg",
        "a.JPG",
        "a",
        "0a1b2c3d-a.jpg",
    ],
)
def test_paths_of_other_machines(root, name):
    assert list(coco_masks(root, {"segmentation": [flat(SQUARE)]}, images=(name,))) == ["a"]


def test_one_file_name_in_several_folders(root):
    for name in ("day1/k.jpg", "day2/k.jpg", "day2/v1.2.jpg", "e\u0301.jpg"):
        image(root / "images" / name)
    shapes = [{"image_id": i, "segmentation": [flat(SQUARE)]} for i in range(4)]
    images = ("images\\day1\\k.jpg", "day2/k.jpg", "v1.2", "\u00e9.jpg")
    assert list(coco_masks(root, *shapes, images=images)) == ["day1/k", "day2/k", "day2/v1.2", "e\u0301"]
    with pytest.raises(ValueError, match="'k' may be day1/k and day2/k"):
        coco_masks(root, shapes[0], images=("k.jpg",))
    write(root / "coco.json", coco(shapes[0], images=("day3/k.jpg",)))
    assert list(found(root)) == ["day3/k"]
    with pytest.raises(ValueError, match=r"coco\.json, image day3/k: this image is missing"):
        masks(root)


def test_ids_are_numbers_or_text(root):
    content = coco({"segmentation": [flat(SQUARE)]})
    content["images"][0]["id"], content["annotations"][0]["image_id"] = "a0", "a0"
    content["categories"][1]["id"], content["annotations"][0]["category_id"] = 11, "11"
    write(root / "coco.json", content)
    assert masks(root)["a"][9, 9] == 1


def test_categories_without_annotations_need_not_be_classes(root):
    found = coco_masks(root, {"category_id": 12, "segmentation": [flat(SQUARE)]}, categories=("animals", "cow", "dog"))
    assert found["a"][9, 9] == 1
    with pytest.raises(ValueError, match=r"coco\.json: the label 'cow' is no class"):
        coco_masks(root, {"segmentation": [flat(SQUARE)]}, categories=("animals", "cow"))


def test_what_is_left_out_of_a_coco_file_is_told(root):
    square, thin = {"segmentation": [flat(SQUARE)]}, {"segmentation": [flat(SQUARE), [1, 1, 2, 2], []]}
    with pytest.warns(UserWarning, match=r"coco\.json: left out, 2 rings of fewer than three points: annotations 1"):
        assert where(coco_masks(root, square, thin)["a"], 1) == (5, 20, 5, 20)
    with pytest.warns(UserWarning, match=r"left out, .*not list their images: annotation 1 of image 77"):
        coco_masks(root, square, square | {"image_id": 77})


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        (
            [{"bbox": [1, 2, 3, 4]}, {"segmentation": [], "bbox": [1, 2, 3, 4]}, {}],
            ["3 of 4 objects", "annotations 1, 2, 3"],
        ),
        ([{"segmentation": None}], ["1 of 2 objects have no outline"]),
        ([{"category_id": 77, "segmentation": [flat(SQUARE)]}], ["annotation 1 is of the category 77"]),
        ([{"image_id": None}], ["'image_id' is None"]),
        ([{"segmentation": [[SQUARE]]}], ["annotation 1: 'segmentation' is", "no rings of numbers"]),
        ([{"segmentation": [[], []]}, {"segmentation": {}}], ["2 of 3 objects have no outline"]),
        ([{"segmentation": "x"}], ["annotation 1: 'segmentation' is 'x'"]),
        ([{"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}], ["annotation 1", "no points"]),
        ([{"segmentation": [[1, 2, 3, 4, 5, {}]]}], ["annotation 1", "no points"]),
        (
            [{"segmentation": [[50, 2, 60, 4, 55, 6]]}],
            ["a polygon (annotation 1) of 'dog' lies outside"],
        ),
        (
            [{"segmentation": {"counts": [1200], "size": [40, 30]}}],
            ["run lengths of size [40, 30], the image is 30 x 40"],
        ),
        ([7], ["7 stands where something with 'image_id' should"]),
    ],
)
def test_bad_annotations_of_a_coco_file_are_named(root, annotations, words):
    content = coco({"segmentation": [flat(SQUARE)]}, *(one for one in annotations if isinstance(one, dict)))
    content["annotations"] += [one for one in annotations if not isinstance(one, dict)]
    write(root / "coco.json", content)
    with pytest.raises(ValueError, match=r"coco\.json(, image a)?: ") as caught:
        masks(root)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("part", "more", "words"),
    [
        ("images", {"id": 0, "file_name": "b.jpg"}, "'a.jpg' and 'b.jpg' have one id"),
        ("images", {"id": 5, "file_name": "a.jpg"}, "lists the image 'a.jpg' twice"),
        ("images", {"id": 5, "file_name": "y/a.jpg"}, "'a.jpg' and 'y/a.jpg' are one file: keep one"),
        ("images", {"id": 5}, "'file_name' is missing"),
        ("categories", {"id": 11, "name": "cow"}, "'dog' and 'cow' have one id"),
        ("categories", {"id": 5}, "'name' is missing"),
    ],
)
def test_contradictions_in_a_coco_file_are_named(root, part, more, words):
    content = coco({"segmentation": [flat(SQUARE)]})
    content[part].append(more)
    write(root / "coco.json", content)
    with pytest.raises(ValueError, match=words):
        found(root, fill=0)


def compressed(mask):
    """Run lengths of a mask (H, W) of bool, as a list and as text, written from COCO's description."""
    counts, text = runs(mask.T.ravel().tolist()), ""
    for place, count in enumerate(counts):
        number = count - (counts[place - 2] if place > 2 else 0)
        while True:
            bits, number = number & 31, number >> 5
            done = number == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if done else 32))
            if done:
                break
    return counts, text


def runs(pixels):
    """Lengths of runs, the first of them of False."""
    edges = [0, *(i for i in range(len(pixels)) if pixels[i] != (i > 0 and pixels[i - 1])), len(pixels)]
    return [after - before for before, after in itertools.pairwise(edges)]


def test_compressed_run_lengths_of_pycocotools(root):
    """Texts that pycocotools 2.0.11 gave for these masks."""
    one, two = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    one[5:9, 3:7] = one[20:, 10:] = one[3, 30] = True
    two[0, 0] = two[10:20, ::2] = True
    for mask, text in (
        (one, "o24j000000Y36aL0000000000000000000000000000000000000_OG=9400000000000000000"),
        (two, "0199Y10000000000000000000000000000000000000F"),
    ):
        assert compressed(mask)[1] == text
        found = coco_masks(root, {"segmentation": {"size": [30, 40], "counts": text}})["a"]
        assert ((found == 1) == mask).all()


@pytest.mark.parametrize("seed", range(6))
def test_run_lengths_both_ways(root, seed):
    rng = np.random.default_rng(seed)
    width, height = rng.integers(1, 200, 2).tolist()
    image(root / "images" / "a.jpg", size=(width, height))
    mask = rng.random((height, width)) < rng.choice([0.0, 0.01, 0.5, 0.99])
    counts, text = compressed(mask)
    assert decompressed(text) == counts
    for written in (counts, text):
        found = coco_masks(root, {"segmentation": {"size": [height, width], "counts": written}}, size=(width, height))
        assert (found["a"] == np.where(mask, 1, IGNORE)).all()


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([5, 5], "dog' has run lengths of 10 pixels where there are 1200"),
        ([600, 600, 10**12], "run lengths of .* pixels where there are 1200"),
        ("5", "5 pixels where there are 1200"),
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
def test_bad_run_lengths_are_named(root, counts, words):
    with pytest.raises(ValueError, match=words) as caught:
        coco_masks(root, {"segmentation": {"size": [30, 40], "counts": counts}})
    assert "coco.json" in str(caught.value)


# Label Studio ---------------------------------------------------------------------------------------------------------


def result(kind, value, **more):
    return {
        "id": "r1", "type": kind, "value": value, "origin": "manual", "to_name": "image", "from_name": "label",
        "image_rotation": 0, "original_width": SIZE[0], "original_height": SIZE[1], **more,
    }  # fmt: skip


def tasks(*results, name="/data/upload/1/0a1b2c3d-a.jpg", **more):
    """A project's export with one task."""
    annotation = {"id": 7, "completed_by": 1, "result": list(results), "was_cancelled": False, "ground_truth": False}
    return [
        {
            "id": 3,
            "annotations": [annotation | more],
            "file_upload": "0a1b2c3d-a.jpg",
            "data": {"image": name},
            "predictions": [],
        }
    ]


def region(kind, **value):
    """A task with one dog."""
    return tasks(result(kind, {**value, kind: ["dog"]}))


def packed(alpha):
    """Label Studio's run lengths of a mask (H, W) uint8, written from the format: all four channels of each pixel."""
    text, widths = f"{4 * alpha.size:032b}{7:05b}", (3, 4, 8, 16)
    text += "".join(f"{width - 1:04b}" for width in widths)
    for value, group in itertools.groupby(np.repeat(alpha.ravel(), 4).tolist()):
        left = len(list(group))
        while left:
            length = min(left, 2**16)
            kind = next(i for i, width in enumerate(widths) if length <= 2**width)
            repeated = length > 2
            text += f"{int(repeated)}{kind:02b}{length - 1:0{widths[kind]}b}"
            text += f"{value:08b}" * (1 if repeated else length)
            left -= length
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


@pytest.mark.parametrize("seed", range(4))
def test_brushes_of_label_studio(root, seed):
    rng = np.random.default_rng(seed)
    inside = rng.random((30, 40)) < rng.choice([0.0, 0.02, 0.5, 1.0])
    value = {"format": "rle", "rle": packed(np.where(inside, 255, 0)), "brushlabels": ["dog"]}
    write(root / "project-1-at-2024-05-06-07-08-0a1b2c3d.json", tasks(result("brushlabels", value)))
    assert (masks(root)["a"] == np.where(inside, 1, IGNORE)).all()


def test_run_lengths_that_label_studios_converter_wrote():
    """What `encode_rle` of label-studio-converter 0.0.59 gave for eight pixels of four channels."""
    written = bytes([0, 0, 0, 32, 57, 27, 253, 176, 11, 127, 243, 128, 0])
    assert (unpacked(written, 32) == np.repeat([0, 0, 0, 255, 255, 255, 0, 0], 4)).all()


def test_shapes_of_label_studio_are_in_per_cent(root):
    polygon = [[100 * x / 40, 100 * y / 30] for x, y in SQUARE]
    box = {"x": 50, "y": 50, "width": 25, "height": 20, "rotation": 0, "rectanglelabels": ["cat"]}
    round_ = {"x": 75, "y": 20, "radiusX": 10, "radiusY": 10, "rotation": 0, "ellipselabels": ["cat"]}
    content = tasks(
        result("polygonlabels", {"points": polygon, "closed": True, "polygonlabels": ["dog"]}),
        result("rectanglelabels", box),
        result("choices", {"choices": ["good"]}),
    )
    write(root / "result.json", content)
    mask = masks(root)["a"]
    assert where(mask, 1) == (5, 20, 5, 20)
    assert where(mask, 2) == (20, 30, 15, 21)
    write(root / "result.json", tasks(result("ellipselabels", round_)))
    assert where(masks(root)["a"], 2) == (26, 34, 3, 9)
    turned = {**box, "x": 50, "y": 10, "width": 20, "height": 10, "rotation": 90}  # about its first corner, clockwise
    write(root / "result.json", tasks(result("rectanglelabels", turned)))
    assert where(masks(root)["a"], 2) == (17, 20, 3, 11)


def test_a_label_may_be_a_result_of_its_own(root):
    points = {"points": [[10, 10], [50, 10], [50, 50]], "closed": True}
    content = tasks(result("polygon", points), result("labels", {**points, "labels": ["dog"]}))
    write(root / "result.json", content)
    assert masks(root)["a"][5, 15] == 1


def test_tasks_without_annotation_are_unlabelled_and_empty_ones_background_under_fill(root):
    content = tasks() + tasks(name="/data/local-files/?d=x%2Fb.jpg", was_cancelled=True)
    content += [{"id": 9, "annotations": [], "data": {"image": "s3://bucket/c.jpg"}}]
    write(root / "result.json", content)
    with pytest.raises(ValueError, match=r"result\.json: none of its images has a shape"):
        found(root)
    assert [(name, mask.max()) for name, mask in masks(root, fill=0).items()] == [("a", 0)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (region("keypointlabels", x=1, y=1, width=1), "keypointlabels' is no area"),
        (tasks(result("polygonlabels", {"points": SQUARE, "polygonlabels": ["dgo"]})), "task 3: the label 'dgo'"),
        (tasks(result("polygonlabels", {"points": SQUARE})), "task 3: a polygonlabels has 0 labels"),
        (tasks(result("polygonlabels", {"polygonlabels": ["dog"]}, image_rotation=90)), "turned image"),
        (tasks(result("polygonlabels", {"polygonlabels": ["dog"]}, original_width=None)), "pixels: correct it"),
        (region("polygonlabels", points=SQUARE, closed=False), "not closed"),
        (region("polygonlabels", points="x"), "a list of points should"),
        (region("brushlabels", rle=[1, 2]), "not those of 40 x 30"),
        (region("brushlabels", rle=[1, 256]), "not those of 40 x 30"),
        (region("brushlabels", rle="x"), "'rle' is 'x'"),
        (region("brushlabels", rle=packed(np.ones((30, 41), int))), "not those of 40 x 30"),
        (region("brushlabels", rle=packed(np.ones((30, 40), int))[:-3]), "not those of 40 x 30"),
        (tasks() + tasks(), "has a task already"),
        ([{**tasks()[0], "annotations": tasks()[0]["annotations"] * 2}], "it has 2 annotations: keep one"),
        (tasks(name="a.txt"), "have 0 images"),
        ([{"data": None, "annotations": [{"result": []}]}], "task 0: 'data' is None"),
        ([{"data": {}, "annotations": [7]}], "task 0: 7 stands where something with 'result'"),
        ([*tasks(), 7], "task 1: 7 stands"),
    ],
)  # fmt: skip
def test_bad_files_of_label_studio_are_named(root, content, words):
    write(root / "label_studio.json", content)
    with pytest.raises(ValueError, match=rf"label_studio\.json(, image a)?: .*{words}"):
        masks(root, fill=0)


# CVAT -----------------------------------------------------------------------------------------------------------------


MASK = '<mask label="dog" rle="{0}" left="{1}" top="1" width="{2}" height="{2}"/>'


def cvat(*shapes, name="a.jpg", size=SIZE):
    body = "".join(shapes)
    more = f'<image id="0" name="{name}" width="{size[0]}" height="{size[1]}">{body}</image>'
    empty = '<image id="1" name="b.jpg" width="40" height="30"></image>'
    meta = "<version>1.1</version><meta><job><id>1</id></job></meta>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{meta}{more}{empty}</annotations>'


def test_shapes_of_cvat(root):
    inside = np.random.default_rng(0).random((7, 9)) < 0.5
    rle = ", ".join(map(str, runs(inside.ravel().tolist())))
    write(
        root / "annotations.xml",
        cvat(
            '<polygon label="dog" source="manual" occluded="0" points="5.00,5.00;20.00,5.00;20.00,20.00;5.00,20.00" '
            'z_order="1"><attribute name="x">y</attribute></polygon>',
            '<box label="cat" xtl="0" ytl="0" xbr="10" ybr="10" z_order="0"></box>',
            f'<mask label="cat" rle="{rle}" left="25" top="4" width="9" height="7" z_order="0"></mask>',
            '<polyline label="cat" points="2,25;18,25" z_order="0"></polyline>',
            '<points label="dog" points="38,28;36,27" z_order="0"></points>',
            '<ellipse label="cat" cx="30" cy="20" rx="5" ry="2" rotation="90" z_order="0"></ellipse>',
            '<tag label="nice" source="manual"></tag>',
        ),
    )
    mask = masks(root)["a"]
    assert where(mask, 1)[0] == 5
    assert mask[6, 6] == 1  # above the box, since its z_order is higher
    assert mask[2, 2] == mask[25, 10] == 2
    assert ((mask == 2)[4:11, 25:34] == inside).all()
    assert mask[28, 38] == mask[27, 36] == 1
    assert mask[24, 30] == 2  # the ellipse, turned
    assert mask[20, 34] == IGNORE
    assert list(found(root)) == ["a"]
    assert (masks(root, fill=0)["b"] == 0).all()


def test_boxes_of_cvat_turn_about_their_middle(root):
    write(root / "annotations.xml", cvat('<box label="dog" xtl="10" ytl="13" xbr="30" ybr="17" rotation="90.0"/>'))
    assert where(masks(root)["a"], 1) == (18, 22, 5, 25)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cannot be read as XML"),
        ("<annotations>", "cannot be read as XML"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><annotations>&a;</annotations>', "it has a DOCTYPE"),
        ("<annotation><filename>a.jpg</filename></annotation>", "not of the format 'CVAT for images 1.1'"),
        ('<annotations><track id="0"></track></annotations>', "not of the format 'CVAT for images 1.1'"),
        (cvat('<box label="dgo" xtl="1" ytl="1" xbr="3" ybr="3"/>'), "image 'a.jpg': the label 'dgo' is no class"),
        (cvat('<box label="dog" xtl="1" ytl="1" xbr="3"/>'), "are no points"),
        (cvat('<box label="dog" xtl="nan" ytl="1" xbr="3" ybr="3"/>'), "coordinates that no image has"),
        (cvat('<box label="dog" xtl="91" ytl="1" xbr="93" ybr="3"/>'), "a box of 'dog' lies outside"),
        (cvat('<polygon label="dog" points=""/>'), "are no points"),
        (cvat('<polygon label="dog" points="1,1;2,2"/>'), "a polygon of 'dog' has 2 points"),
        (cvat('<cuboid label="dog" xtl1="1"/>'), "a cuboid cannot be used"),
        (cvat('<skeleton label="dog"/>'), "a skeleton cannot be used"),
        (cvat(MASK.format("1, 2", 1, 3)), "run lengths of 3 pixels where there are 9"),
        (cvat(MASK.format("1, x", 1, 3)), "run lengths of 0 pixels"),
        (cvat(MASK.format("1, -1", 1, 3)), "run lengths that cannot be read"),
        (cvat(MASK.format(1, 1, 999999999)), "has a box of 999999999"),
        (cvat(MASK.format(9, -99999, 3)), "lies outside"),
        (cvat(MASK.format(9, "", 3)), "the left of a mask is ''"),
        (cvat(size=("40", "x")), "the height of a image is 'x'"),
        (cvat(name="b.jpg"), "image 'b.jpg': it occurs twice"),
    ],
)  # fmt: skip
def test_bad_files_of_cvat_are_named(root, content, words):
    write(root / "annotations.xml", content)
    with pytest.raises(ValueError, match=rf"annotations\.xml(, image a)?: .*{words}"):
        masks(root, fill=0)


# YOLO -----------------------------------------------------------------------------------------------------------------


def test_polygons_of_yolo_are_shares_of_the_image(root):
    square = " ".join(f"{x / 40:.6f} {y / 30:.6f}" for x, y in SQUARE)
    write(root / "labels" / "a.txt", f"1 {square}\n2 0.9 0.9 1 0.9 1 1\n")
    write(root / "labels" / "b.txt", "\n")
    write(root / "labels" / "c.txt", f"0 {square}\n")
    assert masks(root)["c"][9, 9] == 0
    with pytest.raises(ValueError, match=r"c\.txt: the class 0 is 'background', which data\.fill gives .* data\.yaml"):
        masks(root, fill=0)
    (root / "labels" / "c.txt").unlink()
    found = masks(root, fill=0)
    assert where(found["a"], 1) == (5, 20, 5, 20)
    assert found["a"][28, 38] == 2
    assert (found["b"] == 0).all()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.yaml", "names: [cat, dog]\nnc: 2\ntrain: images\n"),
        ("data.yaml", "names:\n  1: dog\n  0: cat\n"),
        ("labels/classes.txt", "cat\ndog\n"),
    ],
)
def test_yolos_own_list_of_classes_counts(root, name, content):
    write(root / name, content)
    write(root / "labels" / "a.txt", "0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    assert masks(root)["a"][5, 20] == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.9 0.1 0.9 0.9\n", "1 of 2 objects are boxes, which are no masks"),
        ("1 0.5 0.5 0.2 0.2 0.99\n", "1 of 1 objects are boxes"),
        ("1 0.5 0.5 0.2 0.2 0.9 0.9 0.1", "is not `class x1 y1"),
        ("1 0.5", "is not `class x1 y1"),
        ("3 0.1 0.1 0.9 0.1 0.9 0.9", "the class '3' is none of the numbers 0 to 2"),
        ("-1 0.1 0.1 0.9 0.1 0.9 0.9", "the class '-1'"),
        (f"{'9' * 5000} 0.1 0.1 0.9 0.1 0.9 0.9", "the class '999"),
        ("1 10 10 90 10 90 90", "no shares of the image"),
        ("1 nan 0.1 0.9 0.1 0.9 0.9", "coordinates that no image has"),
        ("1 a b c d e f", "are no points"),
        ('{"shapes": []}', "is not `class x1 y1"),
    ],
)
def test_bad_files_of_yolo_are_named(root, content, words):
    write(root / "labels" / "a.txt", content)
    with pytest.raises(ValueError, match=rf"a\.txt: .*{words}"):
        masks(root)


@pytest.mark.parametrize(
    "content", ["names: [dgo]", "names: 7", "names: {0: dog, 2: cat}", "{", "- a", "names: [[dog]]", "", "[" * 10000]
)
def test_a_bad_data_yaml_is_named(root, content):
    write(root / "data.yaml", content)
    write(root / "labels" / "a.txt", "")
    with pytest.raises(ValueError, match=r"data\.yaml: "):
        found(root)


# The whole set --------------------------------------------------------------------------------------------------------


def test_scribbles_of_labelme_train_through_the_command(root, tmp_path):
    for name in "abcdefgh":  # i and j stay unlabelled
        shapes = (("background", "linestrip", [[2, 2], [30, 4]]), ("dog", "linestrip", [[5, 20], [30, 22]]))
        write(root / "images" / f"{name}.json", labelme(*shapes))
    data = Folder(str(root))
    assert {"i", "j"} <= set(data.lists()[1])
    assert (data.mask("a") == IGNORE).mean() > 0.8
    assert not (Folder(str(root), fill="background").mask("a") == IGNORE).any()
    fit_tiny(tmp_path / "run", "--data", "Folder", "--data.init_args.root", root, "--trainer.max_steps", "2")


@pytest.mark.parametrize("file", ["masks/c.json", "classes.txt"])
@pytest.mark.parametrize("years", [-10, 10])
def test_a_drawing_that_is_replaced_by_an_older_or_newer_one_is_another_annotation(file, years, root):
    for name in "abcdefgh":
        shapes = (("background", "point", [[2, 2]]), ("dog", "linestrip", [[5, 20], [30, 22]]))
        write(root / "masks" / f"{name}.json", labelme(*shapes))
    before = Folder(str(root)).annotation_dir()
    assert Folder(str(root)).annotation_dir() == before
    other = time.time() + years * 3e7
    os.utime(root / file, (other, other))
    assert Folder(str(root)).annotation_dir() != before


@pytest.mark.parametrize("name", ["data.yaml", "labels/classes.txt"])
def test_other_names_of_yolos_numbers_are_another_annotation(name, root):
    write(root / name, "names: [dog, cat]\n" if name == "data.yaml" else "dog\ncat\n")
    for image in "abcdefgh":
        write(root / "labels" / f"{image}.txt", "0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    data = Folder(str(root), fill="background")
    before, mask = data.annotation_dir(), data.mask("a")
    write(root / name, "names: [cat, dog]\n" if name == "data.yaml" else "cat\ndog\n")
    data = Folder(str(root), fill="background")
    assert (data.mask("a") != mask).any()
    assert data.annotation_dir() != before


@pytest.mark.parametrize("kind", ["labels", "masks", "boxes"])
def test_linked_folders_of_drawings_are_read_as_those_of_images_are(kind, root, tmp_path):
    suffix, content = {
        "labels": (".txt", "1 0.1 0.1 0.9 0.1 0.9 0.9\n"),
        "masks": (".json", labelme(("dog", "polygon", SQUARE))),
        "boxes": (".xml", "<annotation></annotation>"),
    }[kind]
    (root / "images").rename(tmp_path / "far")
    for name in "abcdefghij":
        write(tmp_path / "drawn" / f"{name}{suffix}", content)
    for place, to in (("images", "far"), (kind, "drawn")):
        (root / place).mkdir()
        (root / place / "day1").symlink_to(tmp_path / to)
    data = Folder(str(root), fill="background")
    assert sorted(data.boxed if kind == "boxes" else data.masks) == [f"day1/{name}" for name in "abcdefghij"]


def test_pictures_and_json_files_may_be_mixed_but_not_for_one_image(root):
    for name in "abcdef":
        write(root / "masks" / f"{name}.json", labelme(("dog", "polygon", SQUARE)))
    Image.new("L", SIZE).save(root / "masks" / "g.png")  # the only background
    write(root / "masks" / ".DS_Store", "\0")
    data = Folder(str(root))
    assert data.mask("a")[9, 9] == 1
    assert data.mask("g")[9, 9] == 0
    Image.new("L", SIZE).save(root / "masks" / "a.png")
    with pytest.raises(ValueError, match="a picture and a JSON file for a"):
        Folder(str(root))


def test_drawings_without_their_image_are_told_of(root):
    shapes = [{"image_id": i, "segmentation": [flat(SQUARE)]} for i in range(7)]
    write(root / "coco.json", coco(*shapes, images=[f"{name}.jpg" for name in "abcdefz"]))
    with pytest.raises(ValueError, match="masks without an image: z"):
        Folder(str(root), fill="background")


def test_what_a_folder_reads_can_be_sent_to_loader_processes(root):
    shapes = [{"image_id": i, "segmentation": [flat(SQUARE)]} for i in range(10)]
    write(root / "coco.json", coco(*shapes, images=[f"{name}.jpg" for name in "abcdefghij"]))
    data = Folder(str(root), fill="background")
    sent = pickle.loads(pickle.dumps(data.mask))
    assert (sent("a") == data.mask("a")).all()


def check(shapes, fill=None, pictures=()):
    """`check_classes` on drawings whose shapes have these labels; None is a file that cannot be read."""

    def read(values):
        with naming("x.json"):
            if values is None:
                raise ValueError("broken")
        return paint.Drawing(None, [paint.Shape(CLASSES[v] if v < 3 else "void", "p", v, print) for v in values])

    drawings = [Drawn(Path("x.json"), lambda values=values: read(values), None) for values in shapes]
    check_classes(drawings, CLASSES, fill, (np.array(values, np.uint8) for values in pictures))


@pytest.mark.parametrize(
    ("shapes", "fill", "pictures"),
    [
        ([[0, 1]], None, []),
        ([[1], [2], [0]], None, []),
        ([[1]], 0, []),
        ([[1], None], None, []),  # the file that cannot be read is named elsewhere
        ([[1]], None, [[1, 255], [0]]),
        ([[1], [0]], None, [None]),  # pictures are not looked at
    ],
)
def test_sets_with_something_to_tell_apart_are_taken(shapes, fill, pictures):
    check(shapes, fill, pictures)


@pytest.mark.parametrize(
    ("shapes", "fill", "pictures", "words"),
    [
        ([[1], [1, 255]], None, [], ["labelled is dog", "data.init_args.fill=background", "mark some background"]),
        ([[1], [2]], None, [], ["labelled is dog, cat", "data.init_args.fill=background"]),
        ([[0], [0]], None, [], ["labelled is background", "another class"]),
        ([[], [255]], None, [], ["labelled is nothing", "data.init_args.fill=background"]),
        ([[], [0]], 0, [], ["labelled is background", "another class"]),
        ([[1]], None, [[1, 255], [2]], ["labelled is dog, cat"]),
    ],
)
def test_sets_that_teach_one_class_only_are_refused(shapes, fill, pictures, words):
    with pytest.raises(ValueError, match="nothing to tell apart") as caught:
        check(shapes, fill, pictures)
    assert all(word in str(caught.value) for word in words)


def test_objects_alone_are_refused_with_both_ways_out(root):
    shapes = [{"image_id": i, "segmentation": [flat(SQUARE)]} for i in range(10)]
    write(root / "coco.json", coco(*shapes, images=[f"{name}.jpg" for name in "abcdefghij"]))
    with pytest.raises(ValueError, match=r"coco\.json: all .* is dog.*fill=background.*or mark some background"):
        Folder(str(root))
    assert (Folder(str(root), fill="background").mask("a")[:3] == 0).all()
    with pytest.raises(ValueError, match=r"data\.fill is 'grass'"):
        Folder(str(root), fill="grass")
