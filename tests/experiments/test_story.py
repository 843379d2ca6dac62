"""The strokes of docs/story.md: through the click, within the class, along the longest way."""

import numpy as np
import pytest

from experiments.benchmarks.story import stroke


@pytest.mark.parametrize("turned", [False, True])
def test_a_stroke_goes_through_the_click_along_the_longest_way_within_the_class(turned):
    mask = np.zeros((40, 60), np.uint8)
    mask[10:16, 5:55] = 3
    click = (20, 13)
    if turned:
        mask, click = mask.T, click[::-1]
    ends = np.array(stroke(mask, *click, 3))
    assert len(ends) == 2
    for x, y in np.round(np.linspace(*ends, 50)).astype(int):
        assert mask[y, x] == 3
    along = 1 if turned else 0
    assert sorted(ends[:, along]) == [20 - 12, 20 + 27]  # 0.8 of 15 and of 34 free pixels
    assert {*ends[:, 1 - along]} == {13}


def test_a_click_on_another_class_or_in_a_speck_stays_a_point():
    mask = np.zeros((40, 60), np.uint8)
    mask[5:7, 5:7] = 2
    assert stroke(mask, 30, 20, 2) == [[30, 20]]
    assert stroke(mask, 5, 5, 2) == [[5, 5]]
