"""Affinities of pairs and the random walk: hand values, and the matrix written out."""

import pytest
import torch

from common.ops.walk import (
    affinity_labels,
    affinity_loss,
    bilateral_affinity,
    feature_distance,
    half_disc,
    path_affinity,
    random_walk,
    spread_by_diagonals,
    spread_by_windows,
)


@pytest.mark.parametrize(("radius", "count"), [(2, 4), (3, 12), (4, 22), (5, 34), (8, 96), (10, 152)])
def test_half_a_disc_has_one_offset_of_each_pair(radius, count):
    offsets = half_disc(radius)
    assert len(offsets) == len(set(offsets)) == count
    assert not {(-dy, -dx) for dy, dx in offsets} & {*offsets, (0, 0)}


def pairs(plane, offsets):
    """(first pixel, second pixel) of the pairs of a one-row image."""
    return {
        (x, x + dx) for number, (dy, dx) in enumerate(offsets) for x in range(plane.shape[-1])
        if dy == 0 and plane[0, number, 0, x]
    }  # fmt: skip


def test_affinity_labels_of_a_row():
    background, same, other = affinity_labels(torch.tensor([[[1, 1, 255, 0, 0, 2]]]), 4)
    offsets = half_disc(4)
    assert pairs(background, offsets) == {(3, 4)}
    assert pairs(same, offsets) == {(0, 1)}
    assert pairs(other, offsets) == {(0, 3), (1, 3), (1, 4), (3, 5), (4, 5)}
    assert int(background.sum() + same.sum() + other.sum()) == 7  # nothing below the row


def test_affinity_labels_are_those_of_a_double_loop():
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (2, 6, 5))]
    background, same, other = affinity_labels(labels, 3)
    for b in range(2):
        for number, (dy, dx) in enumerate(half_disc(3)):
            for y in range(6):
                for x in range(5):
                    inside = y + dy < 6 and 0 <= x + dx < 5
                    one, two = int(labels[b, y, x]), int(labels[b, y + dy, x + dx]) if inside else 255
                    sure = one != 255 and two != 255
                    assert background[b, number, y, x] == (sure and one == two == 0)
                    assert same[b, number, y, x] == (sure and one == two != 0)
                    assert other[b, number, y, x] == (sure and one != two)


def test_path_affinity_of_a_row():
    edges = torch.tensor([0, 0.1, 0.8, 0.2, 0]).double().view(1, 1, 1, 5)
    found, offsets = path_affinity(edges, 5), half_disc(5)
    assert found[0, offsets.index((0, 4)), 0, 0].item() == pytest.approx(0.2)
    assert found[0, offsets.index((0, 1)), 0, 0].item() == pytest.approx(0.9)
    assert found[0, offsets.index((0, 4)), 0, 0].item() ** 10 == pytest.approx(1.024e-7)
    assert found[0, offsets.index((0, 1)), 0, 0].item() ** 10 == pytest.approx(0.348678, abs=1e-6)
    assert found[0, offsets.index((0, 4)), 0, 1].item() == 0  # its partner is outside
    assert found[0, offsets.index((1, 0))].sum() == 0


def test_a_wall_of_edges_is_crossed_by_no_path():
    edges = torch.zeros(1, 1, 9, 9)
    edges[..., 4] = 1
    found = path_affinity(edges, 5)
    for number, (dy, dx) in enumerate(half_disc(5)):
        for y in range(9 - dy):
            for x in range(max(0, -dx), min(9, 9 - dx)):
                crosses = min(x, x + dx) <= 4 <= max(x, x + dx)
                assert found[0, number, y, x].item() == (0 if crosses else 1), (dy, dx, y, x)
    (gradient,) = torch.autograd.grad(path_affinity(edges.requires_grad_(), 3).sum(), edges)
    assert gradient.abs().sum() > 0


def matrix(affinity, radius, height, width, beta):
    """T of one image, written pair by pair."""
    a = torch.eye(height * width).double()
    for number, (dy, dx) in enumerate(half_disc(radius)):
        for y in range(height):
            for x in range(width):
                if y + dy < height and 0 <= x + dx < width:
                    one, two = y * width + x, (y + dy) * width + x + dx
                    a[one, two] = a[two, one] = affinity[number, y, x] ** beta
    return a / a.sum(0)


def test_the_walk_is_that_of_the_matrix_whose_columns_sum_to_one():
    torch.manual_seed(0)
    image, maps = torch.rand(2, 3, 5, 6).double(), torch.rand(2, 3, 5, 6).double()
    affinity = bilateral_affinity(image, 3, 0.3)
    found = random_walk(affinity, maps, 3, beta=2, steps=5)
    for b in range(2):
        t = matrix(affinity[b], 3, 5, 6, 2)
        torch.testing.assert_close(t.sum(0), torch.ones(30).double())
        wanted = maps[b].flatten(1) @ torch.linalg.matrix_power(t, 5)
        torch.testing.assert_close(found[b].flatten(1), wanted)
    constant = torch.full_like(maps, 0.7)
    torch.testing.assert_close(random_walk(affinity, constant, 3, beta=2), constant)


@pytest.mark.parametrize("size", [(5, 6), (2, 9), (1, 1)])
def test_a_gpu_s_form_of_a_step_is_that_of_a_cpu(size):
    torch.manual_seed(0)
    weights, maps = bilateral_affinity(torch.rand(2, 3, *size).double(), 4, 0.3), torch.rand(2, 3, *size).double()
    found, wanted = (form(weights, 4)(maps) for form in (spread_by_windows, spread_by_diagonals))
    torch.testing.assert_close(found, wanted)


def test_a_weak_link_holds():
    affinity = torch.zeros(1, len(half_disc(2)), 1, 4).double()
    affinity[0, half_disc(2).index((0, 1)), 0] = torch.tensor([0.9, 0.1, 0.9, 0])
    start = torch.tensor([1.0, 0, 0, 0]).double().view(1, 1, 1, 4)
    one, many = (random_walk(affinity, start, 2, beta=10, steps=steps) for steps in (1, 256))
    assert one.flatten().tolist() == pytest.approx([0.7415, 0.2585, 0, 0], abs=1e-4)
    assert many.flatten().tolist() == pytest.approx([0.5, 0.5, 0, 0], abs=1e-4)


def test_bilateral_affinity_is_the_formula():
    image = torch.tensor([0, 0.1, 0.4]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    found = bilateral_affinity(image, 3, 0.2)
    for dx, x, difference in ((1, 0, 0.1), (1, 1, 0.3), (2, 0, 0.4)):
        wanted = torch.tensor(-3 * difference**2 / (2 * 0.04)).exp().item()
        assert found[0, half_disc(3).index((0, dx)), 0, x].item() == pytest.approx(wanted)
    with pytest.raises(ValueError, match="sigma of an affinity must be positive"):
        bilateral_affinity(image, 3, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_walk_is_the_same_on_a_gpu():
    torch.manual_seed(0)
    image, maps = torch.rand(1, 3, 20, 30), torch.rand(1, 2, 20, 30)
    affinity = bilateral_affinity(image, 5)
    found = random_walk(affinity.cuda(), maps.cuda(), 5)
    torch.testing.assert_close(found.cpu(), random_walk(affinity, maps, 5), atol=1e-3, rtol=0)


def test_affinity_of_another_radius_is_refused():
    maps = torch.rand(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"must be \(B, 34, H, W\) for radius 5"):
        random_walk(bilateral_affinity(maps.expand(1, 3, 4, 4), 3), maps, 5)


def test_the_affinity_loss_is_that_of_a_loop_over_pairs():
    torch.manual_seed(0)
    features = torch.rand(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (2, 5, 6))]
    parts = {"background": [], "same": [], "other": []}
    for b in range(2):
        for dy, dx in half_disc(3):
            for y in range(5 - dy):
                for x in range(max(0, -dx), min(6, 6 - dx)):
                    one, two = int(labels[b, y, x]), int(labels[b, y + dy, x + dx])
                    if 255 in (one, two):
                        continue
                    a = (-(features[b, :, y, x] - features[b, :, y + dy, x + dx]).abs().mean()).exp()
                    kind = "other" if one != two else "same" if one else "background"
                    parts[kind].append(-(1 - a + 1e-5).log() if one != two else -a.log())
    means = [torch.stack(part).mean() for part in parts.values()]
    wanted = means[0] / 4 + means[1] / 4 + means[2] / 2
    found = affinity_loss(feature_distance(features, 3), labels, 3)
    torch.testing.assert_close(found, wanted)
    slow, fast = (torch.autograd.grad(loss, features, retain_graph=True)[0] for loss in (wanted, found))
    torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("labels", [torch.full((1, 5, 6), 255), torch.zeros(1, 5, 6, dtype=torch.int64)])
def test_the_affinity_loss_without_pairs_of_a_kind_and_of_equal_features_is_finite(labels):
    features = torch.ones(1, 4, 5, 6, requires_grad=True)
    loss = affinity_loss(feature_distance(features, 5), labels, 5)
    loss.backward()
    assert loss == 0
    assert torch.isfinite(features.grad).all()
    labels[:, :, :3], labels[:, :, 3:] = 0, 1
    worst = affinity_loss(feature_distance(features, 5), labels, 5)
    assert torch.isfinite(worst)
    assert worst > 5  # two classes of equal features: -log 1e-5 by a half
