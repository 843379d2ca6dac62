"""Wrong pixels by where they lie, against a loop over all pairs of pixels."""

import math

import numpy as np
import pytest

from experiments.benchmarks.errors import BORDER, FAR, KINDS, count_errors


def slow(labels, mask, background):
    height, width = mask.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    known = [place for place in places if mask[place] != 255]
    objects = [place for place in known if background is not None and mask[place] != background]
    counts = dict.fromkeys(KINDS, 0)
    for place in known:
        if labels[place] == mask[place]:
            continue
        others = (math.dist(place, one) for one in known if mask[one] != mask[place])
        if min(others, default=math.inf) - 1 < BORDER * math.hypot(height, width):
            kind = "border"
        elif mask[place] == background:
            far = min((math.dist(place, one) for one in objects), default=math.inf) > FAR * math.hypot(height, width)
            kind = "far" if far else "near"
        elif labels[place] == background:
            kind = "missed"
        else:
            kind = "class"
        counts[kind] += 1
    return [*counts.values(), len(known)]


@pytest.mark.parametrize("background", [0, 2, None])
def test_each_wrong_pixel_is_counted_once_where_it_lies(background):
    draw = np.random.default_rng(3)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:25, 5:25], mask[12:20, 20:32], mask[30:36, 50:] = 1, 2, 255
    labels = np.where(draw.random(mask.shape) < 0.3, draw.integers(0, 3, mask.shape), mask % 3).astype(np.uint8)
    found = count_errors(labels, mask, background)
    assert [*found] == slow(labels, mask, background)
    assert found[:-1].sum() == ((labels != mask) & (mask != 255)).sum()
    if background == 0:
        assert (found > 0).all()


def test_a_seam_of_pixels_without_a_label_hides_no_border():
    mask = np.zeros((60, 80), np.uint8)
    mask[:, 40:] = 1
    mask[:, 39] = 255  # as VOC has around its objects
    assert count_errors(1 - mask, mask, None).tolist()[0] == 60 * 2


def test_an_image_of_one_class_has_no_border_and_all_is_far():
    mask = np.zeros((8, 8), np.uint8)
    assert [*count_errors(mask + 1, mask, 0)] == [0, 64, 0, 0, 0, 64]
    assert [*count_errors(mask + 1, mask, None)] == [0, 0, 0, 0, 64, 64]
