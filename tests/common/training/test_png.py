"""PNG files that are written row by row."""

import io

import numpy as np
import pytest
from PIL import Image

from common.training.png import RowPng


@pytest.mark.parametrize("parts", [[7], [1, 1, 5], [3, 0, 4]])
def test_rows_in_any_parts_are_the_picture(parts):
    labels = np.random.default_rng(0).integers(0, 256, (7, 90), np.uint8)
    file = io.BytesIO()
    picture = RowPng(file, 7, 90)
    for rows in np.split(labels, np.cumsum(parts)[:-1]):
        picture.write(rows)
    file.seek(0)
    image = Image.open(file)
    assert image.mode == "L"
    assert (np.asarray(image) == labels).all()
    file.seek(0)
    Image.open(file).verify()  # the checksums


def test_an_indexed_picture_has_its_colours():
    rng = np.random.default_rng(1)
    labels, palette = rng.integers(0, 256, (5, 8), np.uint8), rng.integers(0, 256, (256, 3), np.uint8)
    file = io.BytesIO()
    RowPng(file, 5, 8, palette).write(labels)
    file.seek(0)
    image = Image.open(file)
    assert image.mode == "P"
    assert (np.asarray(image) == labels).all()
    assert (np.asarray(image.convert("RGB")) == palette[labels]).all()


@pytest.mark.parametrize("rows", [np.zeros((3, 4), np.uint8), np.zeros((2, 5), np.uint8), np.zeros((2, 4), np.int64)])
def test_rows_that_do_not_fit_are_refused(rows):
    with pytest.raises(ValueError, match="expected up to 2 rows of 4 bytes"):
        RowPng(io.BytesIO(), 2, 4).write(rows)
