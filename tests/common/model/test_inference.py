"""Whole-image and sliding-window inference."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from common.model import inference
from common.model.inference import InferenceConfig, predict_probabilities, predict_rows, ramp


def pointwise(classes: int = 5) -> nn.Module:
    """A network whose logits at a pixel depend on that pixel alone."""
    torch.manual_seed(0)
    return nn.Conv2d(3, classes, 1)


class Position(nn.Module):
    """Logits that depend on the place in the window: the column (class 1) against 0; records the windows it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, image):
        self.seen.append(image)
        column = torch.arange(image.shape[-1], dtype=torch.float32).expand(image.shape[0], 1, *image.shape[-2:])
        return torch.cat([torch.zeros_like(column), column], 1)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (7, 50), (16, 24), (33, 47), (32, 48)])
@pytest.mark.parametrize(
    ("window", "stride"), [([16, 24], None), ([16, 24], [16, 24]), ([5, 9], [1, 8]), ([64, 64], None), ([1, 1], None)]
)
def test_windows_equal_the_whole_image_for_a_pointwise_network(window, stride, size, flip):
    network = pointwise()
    image = torch.rand(2, 3, *size)
    result = predict_probabilities(network, image, InferenceConfig(window, stride, flip))
    with torch.no_grad():
        torch.testing.assert_close(result, network(image).softmax(1))


@pytest.mark.parametrize("size", [(10, 10), (11, 13), (23, 9), (30, 31)])
def test_windows_lie_inside_cover_every_pixel_and_end_at_the_border(size):
    height, width = size
    network = Position()
    index = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width).expand(1, 3, -1, -1)
    predict_probabilities(network, index, InferenceConfig([10, 9], [6, 4]))
    assert {tuple(window.shape) for window in network.seen} == {(1, 3, 10, 9)}
    corners = {(int(w[0, 0, 0, 0]) // width, int(w[0, 0, 0, 0]) % width) for w in network.seen}
    assert len(corners) == len(network.seen)  # no window twice
    assert torch.cat([w[0, 0].flatten() for w in network.seen]).unique().numel() == height * width
    assert max(y for y, _ in corners) == height - 10
    assert max(x for _, x in corners) == width - 9
    ys, xs = sorted({y for y, _ in corners}), sorted({x for _, x in corners})
    assert all(b - a <= 6 for a, b in pairwise(ys))
    assert all(b - a <= 4 for a, b in pairwise(xs))


def test_overlapping_windows_are_averaged_with_equal_weight():
    # Width 6, windows of 4 at 0 and 2: columns 2 and 3 are columns 2, 3 of the first and 0, 1 of the second.
    result = predict_probabilities(Position(), torch.zeros(1, 3, 1, 6), InferenceConfig([1, 4], [1, 2]))
    p = torch.arange(4.0).sigmoid()
    expected = torch.stack([p[0], p[1], (p[2] + p[0]) / 2, (p[3] + p[1]) / 2, p[2], p[3]])
    torch.testing.assert_close(result[0, 1, 0], expected)
    torch.testing.assert_close(result.sum(1), torch.ones(1, 1, 6))


def test_an_image_smaller_than_the_window_is_one_window_of_its_own_size():
    network = Position()
    predict_probabilities(network, torch.zeros(1, 3, 5, 40), InferenceConfig([16, 16]))
    assert {tuple(window.shape[-2:]) for window in network.seen} == {(5, 16)}
    assert len(network.seen) == 4  # stride 10: 0, 10, 20 and 24 at the border


@pytest.mark.parametrize("window", [None, [8, 8]])
def test_flip_averages_probabilities_and_makes_the_result_equivariant(window):
    torch.manual_seed(0)
    network = nn.Conv2d(3, 4, 3, padding=1)
    image = torch.rand(1, 3, 20, 17)
    plain = InferenceConfig(window)
    both = InferenceConfig(window, flip=True)
    mirrored = predict_probabilities(network, image.flip(-1), plain).flip(-1)
    straight = predict_probabilities(network, image, plain)
    assert not torch.allclose(mirrored, straight)
    result = predict_probabilities(network, image, both)
    torch.testing.assert_close(result, (mirrored + straight) / 2)
    torch.testing.assert_close(predict_probabilities(network, image.flip(-1), both), result.flip(-1))


def test_the_result_has_the_asked_size_and_resizes_logits_of_whole_images():
    network = pointwise()
    image = torch.rand(1, 3, 12, 16)
    with torch.no_grad():
        logits = network(image)
    result = predict_probabilities(network, image, InferenceConfig(), (31, 20))
    expected = nn.functional.interpolate(logits, (31, 20), mode="bilinear", align_corners=False).softmax(1)
    torch.testing.assert_close(result, expected)
    windows = predict_probabilities(network, image, InferenceConfig([8, 8]), (31, 20))
    expected = nn.functional.interpolate(logits.softmax(1), (31, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(windows, expected)
    torch.testing.assert_close(windows.sum(1), torch.ones(1, 31, 20))


@pytest.mark.parametrize("window", [None, [8, 8]])
def test_half_precision_logits_are_raised_and_no_gradient_is_kept(window):
    network = pointwise()
    result = predict_probabilities(lambda x: network(x).bfloat16(), torch.rand(1, 3, 12, 12), InferenceConfig(window))
    assert result.dtype == torch.float32
    assert not result.requires_grad
    torch.testing.assert_close(result.sum(1), torch.ones(1, 12, 12))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": [0, 8]}, r"window must be \[height, width\]"),
        ({"window": [8]}, r"window must be \[height, width\]"),
        ({"window": [8, 8], "stride": [4, 4, 4]}, r"stride must be \[height, width\]"),
        ({"stride": [4, 4]}, "set window too"),
        ({"window": [8, 8], "stride": [4, 9]}, "leaves gaps"),
        ({"smooth": True}, "smooth is without effect"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        InferenceConfig(**settings)


# Smooth windows, and strips ---------------------------------------------------------------------------------------


def convolutions(cells: int = 1) -> nn.Module:
    """A small network with a stride of 4; its pixels see up to 4 x cells + 5 pixels to each side."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Conv2d(6, 6, 3, padding=cells, dilation=cells),
        nn.ReLU(), nn.Upsample(scale_factor=4), nn.Conv2d(6, 5, 3, padding=1),
    )  # fmt: skip


def test_weights_of_two_windows_add_up_to_one_and_vanish_at_the_border():
    one, two = ramp(64, 32, False, True), ramp(64, 32, True, False)
    together = torch.zeros(96)
    together[:64] += one
    together[32:] += two
    torch.testing.assert_close(together, torch.ones(96))
    assert (one[-8:] == 0).all()
    assert (one[:40] == 1).all()
    slow = [3 * x**2 - 2 * x**3 for x in ((63.5 - at - 8) / 16 for at in range(40, 56))]
    torch.testing.assert_close(one[40:56], torch.tensor(slow))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(200, 300), (64, 64), (40, 236), (132, 100)])
def test_smooth_windows_equal_the_whole_image_everywhere_if_the_network_sees_no_farther_than_their_margin(size, flip):
    network = convolutions()
    image = torch.rand(2, 3, *size)
    config = InferenceConfig([96, 96], [48, 32], flip, smooth=True)  # overlaps of 64: margins of 16
    whole = predict_probabilities(network, image, InferenceConfig(flip=flip))
    torch.testing.assert_close(predict_probabilities(network, image, config), whole)
    if min(size) > 96:  # and windows of equal weight do not
        equal = predict_probabilities(network, image, InferenceConfig([96, 96], [48, 32], flip))
        assert (equal - whole).abs().max() > 1e-3


def test_without_a_margin_smooth_windows_equal_the_whole_image_away_from_their_borders():
    network = convolutions(4)
    image = torch.rand(1, 3, 160, 64)
    found = predict_probabilities(network, image, InferenceConfig([96, 64], [64, 64], smooth=True))  # a margin of 8
    wrong = (found - predict_probabilities(network, image, InferenceConfig())).abs().amax((0, 1, 3)) > 1e-5
    rows = torch.arange(160)[wrong]
    assert len(rows) > 0
    assert ((rows >= 64) & (rows < 96)).all()  # of the overlap


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("target", [None, (95, 260), (31, 40), (130, 70)])
@pytest.mark.parametrize(
    "windows", [{}, {"window": [20, 24]}, {"window": [20, 24], "stride": [5, 24]}, {"window": [40, 48], "smooth": True}]
)
def test_strips_put_together_are_the_probabilities(windows, target, flip, monkeypatch):
    monkeypatch.setattr(inference, "STRIP", 3000)
    network = convolutions() if windows.get("smooth") else nn.Conv2d(3, 5, 3, padding=1)
    image = torch.rand(1, 3, 92, 68)
    config = InferenceConfig(**windows, flip=flip)
    strips = [*predict_rows(network, image, config, target)]
    assert len(strips) > 2
    assert all(strip.numel() <= 3000 for strip in strips)
    torch.testing.assert_close(torch.cat(strips, -2), predict_probabilities(network, image, config, target))


def test_bytes_are_made_floats_window_by_window():
    image = torch.randint(0, 256, (1, 3, 50, 40), dtype=torch.uint8)
    network = Position()
    for config in (InferenceConfig(), InferenceConfig([16, 16], smooth=True)):
        found = predict_probabilities(network, image, config)
        assert torch.equal(found, predict_probabilities(network, image / 255, config))
    assert {window.dtype for window in network.seen} == {torch.float32}


def test_an_image_that_is_too_large_for_one_piece_is_cut_into_smooth_windows(monkeypatch):
    monkeypatch.setattr(inference, "WHOLE", 96 * 64)
    monkeypatch.setattr(inference, "TILE", [64, 64])
    monkeypatch.setattr(inference, "STEP", [32, 32])
    network = Position()
    predict_probabilities(network, torch.zeros(1, 3, 96, 64), InferenceConfig())
    assert [tuple(one.shape[-2:]) for one in network.seen] == [(96, 64)]
    image = torch.rand(1, 3, 97, 64)
    found = predict_probabilities(network, image, InferenceConfig())
    assert torch.equal(found, predict_probabilities(network, image, InferenceConfig([64, 64], [32, 32], smooth=True)))
    assert {tuple(one.shape[-2:]) for one in network.seen[1:]} == {(64, 64), (33, 64)}
