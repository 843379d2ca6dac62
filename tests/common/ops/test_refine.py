"""PAMR and PAR: hand values, and the formula written pixel by pixel."""

import pytest
import torch

from common.ops.refine import pamr, par


def slow(image, maps, kind, iterations, dilations):
    """Pixel by pixel, neighbour by neighbour, in Python."""
    _, height, width = image.shape
    offsets = [(d * y, d * x) for d in dilations for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    lengths = torch.tensor([(y**2 + x**2) ** 0.5 for y, x in offsets]).double()
    for _ in range(iterations):
        found = torch.zeros_like(maps)
        for i in range(height):
            for j in range(width):
                spots = [(min(max(i + y, 0), height - 1), min(max(j + x, 0), width - 1)) for y, x in offsets]
                near = torch.stack([image[:, y, x] for y, x in spots], 1)  # (3, N)
                here = image[:, i, j, None]
                if kind == "pamr":
                    sd = torch.cat([near, here.repeat(1, len(dilations))], 1).std(1, keepdim=True)
                    weights = (-((near - here).abs() / (1e-8 + 0.1 * sd)).mean(0)).softmax(0)
                else:
                    sd = near.std(1, keepdim=True)
                    weights = (-(((near - here).abs() / (sd + 1e-8) / 0.3) ** 2).mean(0)).softmax(0)
                    weights = weights + 0.01 * (-((lengths / (lengths.std() + 1e-8) / 0.3) ** 2)).softmax(0)
                found[:, i, j] = sum(w * maps[:, y, x] for w, (y, x) in zip(weights, spots, strict=True))
        maps = found
    return maps


def drawn(channels=2, height=7, width=9):
    torch.manual_seed(0)
    return torch.rand(3, height, width).double(), torch.rand(channels, height, width).double()


@pytest.mark.parametrize("kind", ["pamr", "par"])
def test_it_is_the_formula(kind):
    image, maps = drawn()
    wanted = slow(image, maps, kind, 2, (1, 3))
    if kind == "pamr":
        found = pamr(image[None], maps[None], 2, (1, 3))
    else:
        found = par(image[None], maps[None], 2, (1, 3), normalise=False)
    torch.testing.assert_close(found[0], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("edge", "wanted"), [
    (4, (1, 1, 1, 1, 0.4, 0.375, 0, 0)),
    (None, (1, 1, 1, 1, 0.625, 0.375, 0, 0)),
])  # fmt: skip
def test_one_iteration_at_an_edge_has_its_hand_value(edge, wanted):
    image = torch.zeros(1, 3, 8, 8)
    if edge:
        image[..., edge:] = 1
    maps = torch.zeros(1, 1, 8, 8)
    maps[..., :5] = 1
    found = pamr(image, maps, 1, [1])[0, 0, 4]
    assert found.tolist() == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("refine", [pamr, par])
def test_constants_and_range_are_kept_and_classes_are_treated_alike(refine):
    image, maps = drawn(3, 30, 26)
    image, maps = image[None], maps[None]
    found = refine(image, maps)
    assert found.min() >= maps.min()
    assert found.max() <= maps.max()
    torch.testing.assert_close(refine(image, maps[:, [2, 0, 1]]), found[:, [2, 0, 1]])
    torch.testing.assert_close(refine(image, torch.full_like(maps, 0.3)), torch.full_like(maps, 0.3))


def test_the_weights_of_par_sum_to_1_01_unless_normalised():
    image, maps = drawn(1)
    found = par(image[None], torch.ones_like(maps)[None], normalise=False)
    torch.testing.assert_close(found, torch.full_like(found, 1.104622), rtol=1e-6, atol=0)


def test_the_image_comes_at_the_maps_size_and_halves_are_raised():
    image, maps = drawn(2, 16, 20)
    small = torch.nn.functional.interpolate(image[None], (8, 10), mode="bilinear", align_corners=False)
    torch.testing.assert_close(pamr(image[None], maps[None, :, :8, :10]), pamr(small, maps[None, :, :8, :10]))
    assert pamr(image[None].float(), maps[None].bfloat16()).dtype == torch.float32


def test_an_image_of_one_row_works():
    image, maps = drawn(2, 1, 9)
    assert torch.isfinite(pamr(image[None], maps[None])).all()
