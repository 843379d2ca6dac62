"""Class activation maps: hand values, crossing points, seeds."""

import pytest
import torch

from common.ops.cam import background_score, cam_labels, irn_seeds, label_crf, normalise_cam, psa_seeds
from common.ops.crf import dense_crf


def row(*values):
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


@pytest.mark.parametrize(("kind", "values", "wanted"), [
    ("max", (0, 1, 2, 4), (0, 0.2499994, 0.4999988, 0.9999975)),
    ("minmax", (-1, 0, 1, 3), (0, 0, 0.333329, 0.999993)),
    ("minmax", (2, 2, 2, 2), (0, 0, 0, 0)),
    ("max8", (0, 1, 2, 3), (0, 85 / 255, 170 / 255, 1)),
])  # fmt: skip
def test_normalisations_have_their_hand_values(kind, values, wanted):
    assert normalise_cam(row(*values), kind).flatten().tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", ["max", "minmax", "max8"])
def test_a_map_that_is_nowhere_positive_is_zero_and_maps_stay_apart(kind):
    cam = torch.stack([-torch.rand(4, 5), torch.zeros(4, 5), torch.rand(4, 5)])[None]
    found = normalise_cam(cam, kind)
    assert (found[0, :2] == 0).all()
    torch.testing.assert_close(found[:, 2:], normalise_cam(1000 * cam[:, 2:], kind), rtol=1e-4, atol=1e-4)
    assert found.min() >= 0
    assert found.max() <= 1
    assert normalise_cam(cam.bfloat16(), kind).dtype == torch.float32


CROSSINGS = {1: 0.5, 4: 0.2755, 8: 0.1883, 16: 0.1228, 24: 0.0939, 32: 0.0770}


@pytest.mark.parametrize(("alpha", "crossing"), CROSSINGS.items())
def test_power_decides_as_a_constant_at_its_crossing_point(alpha, crossing):
    cam = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0)).double() ** 6  # many small ones
    cam[cam.sub(crossing).abs() < 1e-3] = 0
    power = cam_labels(cam, background_score(cam, alpha, "power"))
    assert torch.equal(power, cam_labels(cam, background_score(cam, crossing)))
    assert set(power.unique().tolist()) == {0, 1, 2, 3}
    assert background_score(row(0.5), alpha, "power").item() == pytest.approx(0.5**alpha)


def test_the_background_wins_a_tie_and_then_the_lower_class():
    cam = torch.tensor([[0.3, 0.5, 0.5, 0.1], [0.3, 0.5, 0.6, 0.0]]).view(1, 2, 1, 4)
    assert cam_labels(cam, background_score(cam, 0.3)).flatten().tolist() == [0, 1, 2, 0]


def test_an_image_without_tags_is_background():
    cam = normalise_cam(torch.zeros(1, 3, 1, 7))
    assert (cam == 0).all()
    assert (cam_labels(cam, background_score(cam, 0.0)) == 0).all()


def test_seeds_of_irn_follow_the_table():
    cautious, generous = torch.tensor([2, 2, 2, 0, 0]), torch.tensor([2, 0, 1, 1, 0])
    assert irn_seeds(cautious, generous).tolist() == [2, 2, 2, 255, 0]


def test_seeds_of_psa_are_sure_on_both_sides():
    cautious = torch.tensor([[0.6, 0.2, 0.6, 0.2], [0.4, 0.8, 0.4, 0.8]])[:, None]  # object at pixels 1 and 3
    generous = torch.tensor([[0.6, 0.1, 0.3, 0.7], [0.4, 0.9, 0.7, 0.3]])[:, None]  # background at 0 and 3
    assert psa_seeds(cautious, generous).flatten().tolist() == [0, 1, 255, 0]


def test_the_label_crf_is_the_dense_crf_of_its_unary_and_follows_an_edge():
    image = torch.zeros(3, 12, 16)
    image[:, :, 8:] = 1
    labels = torch.zeros(12, 16, dtype=torch.int64)
    labels[:, 10:] = 4  # the edge is at 8
    unary = torch.stack([torch.where(labels == k, 0.7, 0.3) for k in (0, 4)])
    exact = dense_crf(unary, image, weight=10, sigma_xy=50, sigma_rgb=5, smooth_weight=3, smooth_sigma=3, stride=1)
    found = label_crf(labels, image, stride=1)
    assert torch.equal(found, 4 * exact.argmax(0))
    assert (found[:, 8:] == 4).all()
    assert (found[:, :8] == 0).all()
    third = torch.full((3, 12, 16), 0.15).scatter(0, (labels // 4)[None], 0.7)  # a class of the image that wins nowhere
    exact = dense_crf(third, image, weight=10, sigma_xy=50, sigma_rgb=5, smooth_weight=3, smooth_sigma=3, stride=1)
    assert torch.equal(
        label_crf(labels, image, torch.tensor([0, 4, 7]), stride=1), torch.tensor([0, 4, 7])[exact.argmax(0)]
    )
    assert (label_crf(labels, image) == found).float().mean() > 0.95  # cells of 4 pixels
    assert torch.equal(label_crf(torch.full((5, 5), 3), image[:, :5, :5]), torch.full((5, 5), 3))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="max, minmax or max8, got 'mean'"):
        normalise_cam(row(1), "mean")
    with pytest.raises(ValueError, match="constant or power, got 'linear'"):
        background_score(row(1), 1, "linear")
