"""Matching of phases, and the scores of partitions against slow ones that go over segments and pixel pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from common.model.metrics import MatchedMetrics, SegmentationMetrics, scores
from common.ops.batch import IGNORE
from common.ops.partition import (
    best_person_iou,
    contingency,
    covering,
    match_phases,
    probabilistic_rand_index,
    variation_of_information,
)


def drawn(seed, people=3, size=(5, 6)):
    """A segmentation and those of people, with numbers that are not 0, 1, 2, ... and unequal counts."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, size) * 7 - 2, [rng.integers(0, 2 + person, size) * 5 + 1 for person in range(people)]


def sets(labels):
    return [{*zip(*np.nonzero(labels == number), strict=True)} for number in np.unique(labels)]


# Matching ----------------------------------------------------------------------------------------------------------


def iou_sum(confusion, classes_of_phases):
    total = 0.0
    for phase, number in enumerate(classes_of_phases):
        if number >= 0:
            right = confusion[number, phase]
            total += right / max(1e-9, confusion[number].sum() + confusion[:, phase].sum() - right)
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("classes", "phases"), [(3, 3), (2, 4), (4, 2)])
def test_phases_are_matched_as_the_best_of_all_assignments(seed, classes, phases):
    confusion = np.random.default_rng(seed).integers(0, 50, (classes, phases))
    found = match_phases(confusion)
    assert found.shape == (phases,)
    assert (found >= 0).sum() == min(classes, phases)
    assert len({*found[found >= 0].tolist()}) == min(classes, phases)
    short = [-1] * max(0, phases - classes)
    every = {tuple(order) for order in itertools.permutations([*range(classes), *short], phases)}
    assert iou_sum(confusion, found) == pytest.approx(max(iou_sum(confusion, order) for order in every))


def test_matching_by_hand_and_of_nothing():
    assert match_phases(np.array([[1, 9], [7, 2]])).tolist() == [1, 0]
    assert match_phases(np.array([[0, 9, 1], [7, 0, 1]])).tolist() == [1, 0, -1]
    # By pixels phase 0 is class 0 (60 of 100), by IoU it is class 1.
    assert match_phases(np.array([[60, 940], [40, 0]])).tolist() == [1, 0]
    assert match_phases(np.zeros((3, 3))).tolist() == [0, 1, 2]


def test_renamed_phases_score_as_the_classes_do():
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 4, (3, 8, 9), generator=generator)
    prediction = torch.where(torch.rand(mask.shape, generator=generator) < 0.7, mask, 0)
    mask[:, 0] = IGNORE
    valid = torch.rand(mask.shape, generator=generator) < 0.9
    named = SegmentationMetrics(4)
    named.update(prediction, mask, valid)
    phases = torch.tensor([2, 0, 3, 1])[prediction]
    for match in ("dataset", "image"):
        metric = MatchedMetrics(4, match)
        for one in range(3):
            metric.update(phases[one : one + 1], mask[one : one + 1], valid[one : one + 1])
        for name, value in named.compute().items():
            torch.testing.assert_close(metric.compute()[name], value)
        metric.reset()
        assert int(metric.confusion.sum()) == 0
    plain = SegmentationMetrics(4)
    plain.update(phases, mask, valid)
    assert plain.compute()["miou"] < named.compute()["miou"]


def test_one_assignment_for_the_data_set_or_one_for_each_image():
    mask = torch.zeros(2, 4, 4, dtype=torch.int64)
    mask[:, 2:] = 1
    prediction = torch.stack([mask[0], 1 - mask[1]])  # the phases change places between the images
    prediction[1, 0, 0] = 0
    found = {}
    for match in ("dataset", "image"):
        metric = MatchedMetrics(2, match)
        metric.update(prediction, mask)
        found[match] = metric.compute()
    assert found["image"]["confusion"].tolist() == [[15, 1], [0, 16]]
    torch.testing.assert_close(found["image"]["miou"], scores(torch.tensor([[15, 1], [0, 16]]))["miou"])
    assert found["dataset"]["confusion"].tolist() == [[9, 7], [8, 8]]


def test_without_any_mask_nothing_is_measured_and_nothing_fails():
    for match in ("dataset", "image"):
        metric = MatchedMetrics(2, match)
        metric.update(torch.zeros(1, 3, 3, dtype=torch.int64), torch.full((1, 3, 3), IGNORE))
        result = metric.compute()
        assert math.isnan(float(result["miou"]))
        assert int(result["confusion"].sum()) == 0


# Partitions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_covering_matches_its_formula(seed):
    machine, people = drawn(seed)
    expected = 0.0
    for truth in people:
        for segment in sets(truth):
            best = max(len(segment & region) / len(segment | region) for region in sets(machine))
            expected += len(segment) / truth.size * best / len(people)
    assert covering(machine, people) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_rand_index_matches_its_formula_over_pixel_pairs(seed):
    machine, people = drawn(seed)
    total, pairs = 0.0, 0
    for i, j in itertools.combinations(range(machine.size), 2):
        together = machine.flat[i] == machine.flat[j]
        p = sum(truth.flat[i] == truth.flat[j] for truth in people) / len(people)
        total += p if together else 1 - p
        pairs += 1
    assert probabilistic_rand_index(machine, people) == pytest.approx(total / pairs, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_variation_of_information_matches_its_formula(seed):
    machine, people = drawn(seed)
    expected = 0.0
    for truth in people:
        for region, segment in itertools.product(sets(machine), sets(truth)):
            joint = len(region & segment) / machine.size
            if joint:
                conditional = joint**2 / (len(region) * len(segment) / machine.size**2)
                expected -= joint * math.log2(conditional) / len(people)
    assert variation_of_information(machine, people) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_best_person_iou_matches_its_formula(seed):
    machine, people = drawn(seed)
    values = []
    for truth in people:
        regions, segments = sets(machine), sets(truth)
        partners = [*segments, *[set()] * len(regions)]
        values.append(
            max(
                sum(len(r & s) / len(r | s) for r, s in zip(regions, order, strict=True)) / len(regions)
                for order in itertools.permutations(partners, len(regions))
            )
        )
    assert best_person_iou(machine, people) == pytest.approx(max(values), rel=1e-12)


def test_scores_by_hand():
    halves = np.repeat([[0, 0, 1, 1]], 4, 0)
    one = np.zeros_like(halves)
    assert covering(halves, [halves, 3 - halves]) == 1
    assert covering(one, [halves]) == 0.5
    assert covering(halves, [one]) == 0.5
    assert covering(halves, [halves, one]) == 0.75
    assert probabilistic_rand_index(halves, [halves]) == 1
    assert probabilistic_rand_index(one, [halves]) == pytest.approx(56 / 120)  # 2 x (8 choose 2) of 16 choose 2
    assert variation_of_information(halves, [3 - halves]) == 0
    assert variation_of_information(one, [halves]) == 1  # one bit
    assert variation_of_information(halves.T, [halves]) == 2
    assert best_person_iou(halves, [one, halves]) == 1
    assert best_person_iou(halves, [one]) == 0.25  # one half takes the whole, the other has no partner


def test_covering_goes_over_the_human_segments_not_the_machines():
    machine, people = np.arange(4)[None], [np.array([[0, 0, 0, 1]])]
    assert covering(machine, people) == pytest.approx((3 * (1 / 3) + 1) / 4)
    assert covering(people[0], [machine]) == pytest.approx((3 * (1 / 3) + 1) / 4 + 0)
    machine, people = np.array([[0, 0, 1, 1]]), [np.array([[0, 0, 0, 1]])]
    assert covering(machine, people) == pytest.approx((3 * (2 / 3) + 1 * (1 / 2)) / 4)
    assert covering(people[0], machine[None]) == pytest.approx((2 * (2 / 3) + 2 * (1 / 2)) / 4)


def test_small_integer_types_do_not_overflow_and_shapes_are_checked():
    rng = np.random.default_rng(0)
    machine, truth = rng.integers(0, 2, (700, 600), np.uint8), rng.integers(0, 30, (700, 600), np.uint16)
    assert contingency(machine, truth).shape == (2, 30)
    assert contingency(machine, truth).sum() == 420_000
    assert 0.4 < probabilistic_rand_index(machine, [truth]) < 0.6
    for score in (covering, probabilistic_rand_index, variation_of_information, best_person_iou):
        with pytest.raises(ValueError, match="differ in shape"):
            score(machine, [truth.T])
