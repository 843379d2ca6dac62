"""Images, masks and class files of every kind, and errors that name the bad ones."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.files import default_color, find_images, read_image, read_mask, unread_images

SHARED = Path(__file__).parents[2] / ".." / "shared"


def save(path, array, mode=None):
    Image.fromarray(np.asarray(array), mode).save(path) if mode else Image.fromarray(np.asarray(array)).save(path)
    return path


def refused(kind, words, call, *arguments):
    """`call` raises `kind` with a message that holds every word."""
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert all(str(word) in str(caught.value) for word in words), str(caught.value)


# Folders -----------------------------------------------------------------------------------------------------------


def test_images_are_found_by_stem_whatever_the_suffix(tmp_path):
    for name in ("b.JPG", "a.png", "c.webp", "d.jpeg", "e.bmp", "f.tif", "g.TIFF", "notes.txt", "h.b.png"):
        (tmp_path / name).touch()
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "z.png").touch()
    found = find_images(tmp_path)
    assert list(found) == ["a", "b", "c", "d", "e", "f", "g", "h.b"]
    assert found["b"] == tmp_path / "b.JPG"
    assert find_images(str(tmp_path)) == found


def test_bad_folders(tmp_path):
    refused(FileNotFoundError, [tmp_path / "none", "does not exist", "check the path"], find_images, tmp_path / "none")
    refused(ValueError, [tmp_path, "no image", ".webp"], find_images, tmp_path)
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).touch()
    refused(ValueError, [tmp_path, "a.png", "a.jpg", "unique"], find_images, tmp_path)


def test_folders_below_are_searched_where_that_is_asked_for(tmp_path):
    for name in ("a.png", "day1/a.jpg", "day1/am/b.PNG", "day2/a.png", ".ipynb_checkpoints/a.png", "__MACOSX/._a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "day2" / "back").symlink_to(tmp_path)
    found = find_images(tmp_path, nested=True)
    assert list(found) == ["a", "day1/a", "day1/am/b", "day2/a"]
    assert found["day1/am/b"] == tmp_path / "day1" / "am" / "b.PNG"
    (tmp_path / "a.png").unlink()
    refused(ValueError, [tmp_path, "no image", "folders in it are not read: day1, day2"], find_images, tmp_path)
    (tmp_path / "day1" / "a.png").touch()
    words = [tmp_path, "day1/a.jpg", "day1/a.png", "unique"]
    refused(ValueError, words, lambda: find_images(tmp_path, nested=True))


def test_hidden_files_are_passed_over(tmp_path):
    for name in ("a.png", "._a.png", ".a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    assert list(find_images(tmp_path)) == ["a"]


def test_a_name_has_one_normal_form(tmp_path):
    (tmp_path / "gebu\u0308sch.png").touch()
    assert list(find_images(tmp_path)) == ["geb\u00fcsch"]
    (tmp_path / "geb\u00fcsch.jpg").touch()
    refused(ValueError, ["geb\u00fcsch.jpg", "unique"], find_images, tmp_path)


def test_pictures_of_other_formats_are_told_of(tmp_path):
    for name in ("a.HEIC", "b.gif", "c.dng"):
        (tmp_path / name).touch()
    words = [tmp_path, "no image", "a.HEIC, b.gif, c.dng", "convert them to PNG"]
    refused(ValueError, words, find_images, tmp_path)
    (tmp_path / "d.png").touch()
    with pytest.warns(UserWarning, match=r"3 pictures in .* are not read: a.HEIC, b.gif, c.dng; convert"):
        assert list(find_images(tmp_path)) == ["d"]
    assert unread_images(tmp_path)["b"] == tmp_path / "b.gif"
    assert unread_images(tmp_path / "none") == {}


# Images ------------------------------------------------------------------------------------------------------------


def test_images_of_every_kind_become_rgb(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert (read_image(save(tmp_path / "rgb.png", rgb)) == rgb).all()
    grey = read_image(save(tmp_path / "grey.png", rgb[..., 0]))
    assert (grey == rgb[..., :1]).all()
    assert grey.shape == rgb.shape
    alpha = np.dstack([rgb, np.full((5, 7), 9, np.uint8)])
    assert (read_image(save(tmp_path / "rgba.png", alpha)) == rgb).all()
    indexed = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    indexed.save(tmp_path / "indexed.png")
    assert read_image(tmp_path / "indexed.png").tolist() == [[[10, 20, 30], [40, 50, 60]]]
    deep = read_image(save(tmp_path / "deep.png", np.array([[0, 257 * 7, 65535]], np.uint16)))
    assert deep[0, :, 0].tolist() == [0, 7, 255]
    assert deep.dtype == np.uint8


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6  # a quarter turn
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (6, 4, 3)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.webp", "text.png", "empty.png"])
def test_broken_images_are_named(tmp_path, name):
    whole = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    path = save(tmp_path / name, whole)
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "text": b"hello", "empty": b""}[path.stem])
    refused(ValueError, [path, "cannot be read as an image", "replace it, or remove it"], read_image, path)
    refused(ValueError, [path, "cannot be read as an image", "replace it, or remove it"], read_mask, path, 2, None)


def test_missing_image(tmp_path):
    refused(FileNotFoundError, [tmp_path / "a.png", "does not exist"], read_image, tmp_path / "a.png")


# Masks -------------------------------------------------------------------------------------------------------------


def test_masks_of_every_kind_give_ids(tmp_path):
    ids = np.array([[0, 1, 2], [255, 2, 1]], np.uint8)
    assert (read_mask(save(tmp_path / "grey.png", ids), 3, None) == ids).all()
    indexed = Image.fromarray(ids, "P")
    indexed.putpalette([number % 256 for number in range(7, 7 + 768)])  # the colours do not count
    indexed.save(tmp_path / "indexed.png")
    assert (read_mask(tmp_path / "indexed.png", 3, None) == ids).all()
    assert (read_mask(save(tmp_path / "deep.png", ids.astype(np.uint16)), 3, None) == ids).all()
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert read_mask(tmp_path / "bits.png", 2, None).tolist() == [[1, 0]]
    assert read_mask(tmp_path / "bits.png", 2, None).dtype == np.uint8


def test_colour_masks_go_through_the_palette(tmp_path):
    palette = {(0, 0, 0): 0, (128, 0, 0): 1, (224, 224, 192): 255}
    picture = np.array([[(0, 0, 0), (128, 0, 0), (224, 224, 192)]], np.uint8)
    assert read_mask(save(tmp_path / "rgb.png", picture), 2, palette).tolist() == [[0, 1, 255]]
    alpha = np.dstack([picture, np.full((1, 3), 255, np.uint8)])
    assert read_mask(save(tmp_path / "rgba.png", alpha), 2, palette).tolist() == [[0, 1, 255]]
    refused(ValueError, [tmp_path / "rgb.png", "classes.txt", "r g b"], read_mask, tmp_path / "rgb.png", 2, None)
    picture[0, 2] = (1, 2, 3)
    path = save(tmp_path / "odd.png", picture)
    refused(ValueError, [path, "(1, 2, 3)", "row 0, column 2", "classes.txt"], read_mask, path, 2, palette)


@pytest.mark.parametrize(("value", "kind"), [(3, np.uint8), (254, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_values_that_are_no_class(tmp_path, value, kind):
    mask = np.zeros((4, 5), kind)
    mask[2, 3:] = value
    path = save(tmp_path / "mask.png", mask)
    words = [path, value, "row 2, column 3", "3 classes", "0..2", "255", "correct the mask"]
    refused(ValueError, words, read_mask, path, 3, None)


def test_masks_of_other_kinds(tmp_path):
    path = save(tmp_path / "grey_alpha.png", np.zeros((3, 3, 2), np.uint8))
    refused(ValueError, [path, "LA", "indexed or grey PNG"], read_mask, path, 2, None)
    refused(FileNotFoundError, [tmp_path / "a.png", "does not exist"], read_mask, tmp_path / "a.png", 2, None)


def test_pixels_that_fit_no_class_are_counted(tmp_path):
    blurred = np.zeros((4, 5), np.uint8)
    blurred[2, 3:], blurred[3] = (7, 9), 8
    refused(ValueError, [7, "row 2, column 3", "7 of 20 pixels"], read_mask, save(tmp_path / "a.png", blurred), 2, None)
    picture = np.zeros((20, 20, 3), np.uint8)
    picture[5:15, 5:15] = (255, 0, 0)
    palette = {(0, 0, 0): 0, (255, 0, 0): 1}
    path = save(tmp_path / "b.jpg", picture)
    count = sum(tuple(color) not in palette for color in np.asarray(Image.open(path)).reshape(-1, 3).tolist())
    assert count > 50
    refused(ValueError, [path, f"{count} of 400 pixels", "classes.txt", "JPEG"], read_mask, path, 2, palette)
    resized = np.asarray(Image.fromarray(picture).resize((33, 33)))
    refused(ValueError, ["pixels fit no class", "resizing"], read_mask, save(tmp_path / "c.png", resized), 2, palette)


def test_a_transparent_mask_is_refused(tmp_path):
    picture = np.zeros((4, 5, 4), np.uint8)
    picture[..., 3] = 255
    picture[1, 2:, 3] = (0, 254, 255)
    words = ["transparent at 2 of 20 pixels", "which class", "without transparency"]
    refused(ValueError, words, read_mask, save(tmp_path / "a.png", picture), 2, {(0, 0, 0): 0})


def indexed(path, ids, *colors):
    picture = Image.fromarray(np.array(ids, np.uint8), "P")
    picture.putpalette([value for color in colors for value in color])
    picture.save(path)
    return path


def test_colours_of_an_indexed_mask_count_if_all_are_those_of_classes(tmp_path):
    black, red, white = (0, 0, 0), (255, 0, 0), (255, 255, 255)
    palette = {black: 0, red: 1, white: 255}
    ids = [[0, 1, 1]]
    assert read_mask(indexed(tmp_path / "same.png", ids, black, red), 2, palette).tolist() == ids
    assert read_mask(indexed(tmp_path / "other.png", ids, red, black), 2, palette).tolist() == [[1, 0, 0]]
    assert read_mask(indexed(tmp_path / "void.png", ids, white, red), 2, palette).tolist() == [[255, 1, 1]]
    assert read_mask(indexed(tmp_path / "grey.png", ids, (9, 9, 9), (8, 8, 8)), 2, palette).tolist() == ids
    assert read_mask(indexed(tmp_path / "none.png", ids, black, black), 2, palette).tolist() == ids
    assert read_mask(indexed(tmp_path / "far.png", [[1, 255]], red, *[black] * 255), 2, palette).tolist() == [[0, 255]]
    for name, colors in {"half.png": (red, (9, 9, 9)), "twice.png": (black, red, red)}.items():
        path = indexed(tmp_path / name, [[0, 1, len(colors) - 1]], *colors)
        refused(ValueError, [path, "colour (255, 0, 0)", "another class"], read_mask, path, 2, palette)
    assert read_mask(indexed(tmp_path / "free.png", ids, red, black), 2, None).tolist() == ids


def test_values_of_ones_own_are_mapped(tmp_path):
    ids = np.array([[0, 255, 255, 0]], np.uint8)
    values = {0: 0, 255: 1}
    expected = [[0, 1, 1, 0]]
    assert read_mask(save(tmp_path / "grey.png", ids), 2, None, values).tolist() == expected
    assert read_mask(save(tmp_path / "rgb.png", np.dstack([ids] * 3)), 2, None, values).tolist() == expected
    assert read_mask(save(tmp_path / "bits.png", ids > 0), 2, None, values).tolist() == expected
    assert read_mask(save(tmp_path / "bits.png", ids > 0), 2, None, {0: 1, 1: 0}).tolist() == [[1, 0, 0, 1]]
    deep = save(tmp_path / "deep.png", ids.astype(np.uint16) * 100)
    assert read_mask(deep, 2, None, {0: 255, 25500: 1}).tolist() == [[255, 1, 1, 255]]
    ids[0, 1] = 254
    path = save(tmp_path / "off.png", ids)
    refused(
        ValueError, [path, 254, "row 0, column 1", "1 of 4 pixels", "mask_values"], read_mask, path, 2, None, values
    )
    path = save(tmp_path / "colours.png", np.dstack([ids, ids, ids * 0]))
    refused(ValueError, [path, "RGB mask", "mask_values"], read_mask, path, 2, {}, values)


def test_numbers_are_refused_where_they_may_not_be_ids(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    refused(ValueError, [path, "nobody knows: ask"], lambda: read_mask(path, 2, {}, no_ids="nobody knows: ask"))
    picture = save(tmp_path / "b.png", np.zeros((2, 2, 3), np.uint8))
    assert read_mask(picture, 2, {(0, 0, 0): 1}, no_ids="nobody knows").tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("mask", "classes", "values"),
    [
        ("weizmann_horse_db/figure_ground/horse001.png", 2, [0, 1]),
        ("VOC2012_val/VOCdevkit/VOC2012/SegmentationClassAug/2007_000033.png", 21, None),
    ],
)
def test_masks_of_real_data_sets(mask, classes, values):
    path = SHARED / "data" / mask
    if not path.exists():
        pytest.skip(f"no {path}")
    found = np.unique(read_mask(path, classes, None)).tolist()
    assert values is None or found == values
    assert len(found) > 1


# Colours ---------------------------------------------------------------------------------------------------------


def test_default_colours_are_those_of_voc():
    assert [default_color(number) for number in (0, 1, 2, 3, 15)] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (192, 128, 128),
    ]
    assert len({default_color(number) for number in range(256)}) == 256
