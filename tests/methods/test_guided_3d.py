"""Votes of boxes and predictions: hand values, a slow loop, what is refused; the network's loss."""

import math

import numpy as np
import pytest
import torch

import methods
from common.ops.geometry import Intrinsics, exact_tolerance
from methods.guided_3d.votes import (
    Tally,
    Voter,
    alone,
    box_planes,
    keep_boxes_filled,
    labels,
    objectness,
    probabilities,
    tally,
    with_own_boxes,
)

CAMERA = Intrinsics(16, 12, 20.0, 20.0, 7.5, 5.5)
HERE = torch.eye(4, dtype=torch.float64)


def counted(inside, seen, against=False):
    return Tally(*(torch.tensor([[value]]).double() for value in (inside, seen)), torch.tensor([[against]]))


@pytest.mark.parametrize(("inside", "seen", "wanted"), [
    (1, 1, 0.75), (0, 1, 0.25), (0, 0, 0.5), (2, 2, 0.8333), (3, 3, 0.875), (2, 3, 0.625), (0, 3, 0.125),
])  # fmt: skip
def test_objectness_by_hand(inside, seen, wanted):
    assert objectness(counted(inside, seen)).item() == pytest.approx(wanted, abs=1e-4)
    assert 1 - objectness(counted(seen - inside, seen)).item() == pytest.approx(wanted, abs=1e-4)


def test_one_vote_against_is_a_veto():
    assert objectness(counted(3, 4, True), "veto").item() == 0
    assert objectness(counted(3, 4, True)).item() == pytest.approx(0.7)
    assert objectness(counted(3, 3), "veto").item() == 0.875


def shifted(x):
    pose = HERE.clone()
    pose[0, 3] = x
    return pose


def voters(count, chance):
    for number in range(count):
        depth = 1 + torch.rand(12, 16, generator=chance).double()
        depth[torch.rand(12, 16, generator=chance) < 0.1] = 0
        knows = torch.tensor([1.0, float(number != 1)])
        planes = torch.rand(2, 6, 8, generator=chance).double()
        yield Voter(depth, CAMERA, shifted(0.05 * number), planes, knows, 1.0 + number)


@pytest.mark.parametrize("hidden", [True, False])
def test_votes_are_those_of_a_loop_over_points_and_views(hidden):
    chance = torch.Generator().manual_seed(3)
    views = [*voters(3, chance)]
    points = torch.rand(80, 3, generator=chance).double() * torch.tensor([0.9, 0.7, 1.2]) - torch.tensor(
        [0.5, 0.4, -0.9]
    )
    inside, seen, against = (np.zeros((80, 2)) for _ in range(3))
    for number, (x, y, z) in enumerate(points.tolist()):
        for view in views:
            u = math.floor(20 * (x + view.pose[0, 3].item()) / z + 7.5 + 0.5)
            w = math.floor(20 * y / z + 5.5 + 0.5)
            if not (0 <= u < 16 and 0 <= w < 12):
                continue
            measured = view.depth[w, u].item()
            if hidden and not (measured > 0 and abs(measured - z) < max(0.02, 0.01 * z)):
                continue
            for one in range(2):
                weight, said = view.knows[one].item() * view.weight, view.planes[one, w // 2, u // 2].item()
                inside[number, one] += weight * said
                seen[number, one] += weight
                against[number, one] += weight * (said < 0.5)
    found = tally(points, views, exact_tolerance, hidden)
    np.testing.assert_allclose(found.inside.numpy(), inside, atol=1e-12)
    np.testing.assert_allclose(found.seen.numpy(), seen)
    np.testing.assert_array_equal(found.against.numpy(), against > 0)
    assert seen.any()
    order = torch.randperm(80, generator=chance)
    again = tally(points[order], views[::-1], exact_tolerance, hidden)
    torch.testing.assert_close(again.inside, found.inside[order])


def test_soft_votes_by_hand():
    def said(*values):
        return sum(weight * value for weight, value in values), sum(weight for weight, _ in values)

    assert objectness(counted(*said((2, 0.9), (1, 0.6), (1, 0.6)))).item() == pytest.approx(0.7)
    assert objectness(counted(*said(*[(1, 0.25)] * 3))).item() == pytest.approx(0.3125)


def test_outside_of_its_own_boxes_a_view_has_no_object():
    planes = box_planes([[2, 3, 6, 7, 1]], CAMERA, 2)
    assert planes[0].sum() == 7 * 7  # a pixel around the box belongs to it
    votes = Tally(*(torch.full((192, 2), 3.0).double() for _ in range(2)), torch.zeros(192, 2, dtype=torch.bool))
    votes = with_own_boxes(votes, planes, torch.ones(2))
    s = objectness(votes)
    p = probabilities(s, votes.seen, (12, 16), planes)
    assert (p[1][planes[0] == 0] == 0).all()
    assert (p[2] == 0).all()
    torch.testing.assert_close(p.sum(0), torch.ones(12, 16).double())
    found = labels(p, s.T.reshape(2, 12, 16) * planes)
    assert torch.equal(found == 1, planes[0] > 0)
    assert {*found.unique().tolist()} == {0, 1}


def test_what_nobody_saw_or_is_not_sure_is_255():
    s, seen = torch.tensor([[0.9], [0.5], [0.55], [0.9], [0.1]]).double(), torch.tensor([[1.0]] * 3 + [[0.0], [1.0]])
    p = probabilities(s, seen, (1, 5))
    assert labels(p, s.T.reshape(1, 1, 5)).tolist() == [[1, 255, 255, 255, 0]]


def test_a_box_that_its_class_hardly_fills_says_nothing():
    found = torch.zeros(12, 16, dtype=torch.int64)
    found[3:5, 2:7] = 1
    kept = keep_boxes_filled(found, [[2, 3, 6, 7, 1], [10, 3, 14, 7, 2]], CAMERA)
    assert torch.equal(kept[:, :9], found[:, :9])
    assert (kept[3:8, 10:15] == 255).all()


def test_a_view_alone_finds_what_stands_before_a_plane():
    depth = torch.full((12, 16), 2.0)
    depth[4:8, 5:10] = 1.5
    s = alone(depth, CAMERA, [[3, 3, 12, 9, 2]], 3)
    assert (s[1, 5:8, 6:10] == 0.75).all()
    assert s[1, 3, 3:13].max() == 0.25
    assert s[1, 0].max() == 0
    assert s[0].max() == s[2].max() == 0
    assert alone(torch.zeros(12, 16), CAMERA, [[3, 3, 12, 9, 2]], 3)[1, 4, 6] == 0.5


def test_the_crf_term_is_one_more_and_needs_no_label():
    model = methods.Guided3D(3, crf_weight=2.0)
    image = torch.rand(2, 3, 32, 32)
    mask = torch.full((2, 32, 32), 255)
    batch = {"labeled": {"image": image, "mask": mask, "valid": torch.ones_like(mask, dtype=torch.bool)}}
    out = model.compute_loss(batch)
    assert out.logs["pce"] == 0
    assert out.loss.item() == pytest.approx(2 * float(out.logs["crf"]))
    assert out.loss > 0
    with pytest.raises(ValueError, match="crf_weight"):
        methods.Guided3D(3, crf_weight=-1)
