"""PNG files that are written row by row."""

import io

import numpy as np
import pytest
from PIL import Image

from common.training.png import GreyPng


@pytest.mark.parametrize("parts", [[7], [1, 1, 5], [3, 0, 4]])
def test_rows_in_any_parts_are_the_picture(parts):
    labels = np.random.default_rng(0).integers(0, 256, (7, 90), np.uint8)
    file = io.BytesIO()
    picture = GreyPng(file, 7, 90)
    for rows in np.split(labels, np.cumsum(parts)[:-1]):
        picture.write(rows)
    file.seek(0)
    image = Image.open(file)
    assert image.mode == "L"
    assert (np.asarray(image) == labels).all()
    file.seek(0)
    Image.open(file).verify()  # the checksums


@pytest.mark.parametrize("rows", [np.zeros((3, 4), np.uint8), np.zeros((2, 5), np.uint8), np.zeros((2, 4), np.int64)])
def test_rows_that_do_not_fit_are_refused(rows):
    with pytest.raises(ValueError, match="expected up to 2 rows of 4 bytes"):
        GreyPng(io.BytesIO(), 2, 4).write(rows)
