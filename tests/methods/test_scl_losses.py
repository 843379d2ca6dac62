"""Losses of methods/scl/losses.py against hand values and against slow references written from the formulas.

T1 ... T9 are the properties listed in the specification; T9's mixing is in tests/common/ops/test_mixing.py, its moving
average in tests/common/model/test_ema.py, the loss by pixel in tests/common/ops/test_pixel_consistency.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.ops.losses import partial_cross_entropy
from conftest import two_processes
from methods.scl.losses import relaxed_cross_entropy, sample_pixels, structured_consistency

PAIRS = ("inside", "both_sides", "cross", "all")
every_pairs = pytest.mark.parametrize("pairs", PAIRS)


def vectors(seed: int = 0, batch: int = 2, channels: int = 3, n: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student and teacher (B, C, n), valid and inside (B, n)."""
    g = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(batch, channels, n, generator=g, dtype=torch.float64) for _ in range(2))
    valid, inside = (torch.rand(batch, n, generator=g) < share for share in (0.8, 0.5))
    return student, teacher, valid, inside


def everywhere(columns: Tensor) -> Tensor:
    return torch.ones(columns.shape[0], columns.shape[2], dtype=torch.bool)


def whole(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    """The loss over all pairs of all pixels."""
    at = everywhere(student)
    return structured_consistency(student, teacher, at, at, "all", **options)


def planes(seed: int = 0, k: int = 3, h: int = 5, w: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, a teacher's probabilities, a half labelled mask and valid pixels; two images."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, k, h, w, generator=g, dtype=torch.float64)
    target = (3 * torch.randn(2, k, h, w, generator=g, dtype=torch.float64)).softmax(1)
    mask = torch.randint(k, (2, h, w), generator=g)
    mask[torch.rand(mask.shape, generator=g) < 0.4] = 255
    return logits, target, mask, torch.rand(2, h, w, generator=g) < 0.8


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


def unit(columns: Tensor) -> Tensor:
    return columns / columns.norm(dim=-2, keepdim=True)


# Structured consistency -----------------------------------------------------------------------------------------------


def reference_structured(student: Tensor, teacher: Tensor, valid: Tensor, inside: Tensor, pairs: str) -> float:
    """Every ordered pair of two pixels, one after the other."""

    def cosine(a: list[float], b: list[float]) -> float:
        lengths = [max(math.sqrt(sum(x * x for x in one)), 1e-6) for one in (a, b)]
        return sum(x * y for x, y in zip(a, b, strict=True)) / (lengths[0] * lengths[1])

    means = []
    for z, w, v, m in zip(student.mT.tolist(), teacher.mT.tolist(), valid.tolist(), inside.tolist(), strict=True):
        errors = []
        for i, j in itertools.permutations([i for i in range(len(z)) if v[i]], 2):
            counted = {"inside": m[i] and m[j], "both_sides": m[i] == m[j], "cross": m[i] != m[j], "all": True}
            if counted[pairs]:
                errors.append((cosine(z[i], z[j]) - cosine(w[i], w[j])) ** 2)
        if errors:
            means.append(sum(errors) / len(errors))
    return sum(means) / max(1, len(means))


@every_pairs
@pytest.mark.parametrize("seed", range(3))
def test_every_pairs_mode_matches_the_pairs_one_by_one(pairs: Any, seed: int) -> None:
    student, teacher, valid, inside = vectors(seed)
    expected = reference_structured(student, teacher, valid, inside, pairs)
    assert expected > 0.05
    for detach in (False, True):
        value = structured_consistency(student, teacher, valid, inside, pairs, detach)
        assert float(value) == pytest.approx(expected, rel=1e-12)


def test_t1_two_pixels() -> None:
    student = torch.tensor([[[1.0, 1], [0, 0]]])
    teacher = torch.tensor([[[1.0, 0], [0, 1]]])
    at = torch.ones(1, 2, dtype=torch.bool)
    for pairs in ("inside", "both_sides", "all"):
        assert float(structured_consistency(student, teacher, at, at, pairs)) == pytest.approx(1)
    one = torch.tensor([[True, False]])
    assert float(structured_consistency(student, teacher, at, one, "cross")) == pytest.approx(1)
    opposite = torch.tensor([[[1.0, -1], [0, 0]]])
    assert float(whole(opposite, student)) == pytest.approx(4)  # similarities -1 and 1: the most there can be


def test_t2_naive_three_gram_and_safe_form_agree() -> None:
    student, teacher, valid, inside = vectors(1, batch=1, channels=5, n=40)
    z, w = unit(student[0]), unit(teacher[0])
    naive = (z.mT @ z - w.mT @ w).square()
    grams = (z @ z.mT).square().sum() + (w @ w.mT).square().sum() - 2 * (z @ w.mT).square().sum()
    assert float(grams) == pytest.approx(float(naive.sum()), rel=1e-12)
    assert float(whole(student, teacher)) == pytest.approx(float(naive.sum()) / (40 * 39), rel=1e-12)
    # on the kept pixels only, as if the others were not there
    keep, side = valid[0], inside[0] & valid[0]
    kept = whole(student[..., keep], teacher[..., keep])
    torch.testing.assert_close(structured_consistency(student, teacher, valid, inside, "all"), kept)
    block = naive[side][:, keep & ~side]
    cross = structured_consistency(student, teacher, valid, inside, "cross")
    assert float(cross) == pytest.approx(float(block.mean()), rel=1e-12)


def test_t2_all_pairs_are_the_two_sides_and_twice_the_cross_ones() -> None:
    student, teacher, valid, inside = vectors(2, batch=1, n=30)
    values = {pairs: float(structured_consistency(student, teacher, valid, inside, pairs)) for pairs in PAIRS}
    outside = float(structured_consistency(student, teacher, valid, ~inside, "inside"))
    a, b = int((valid & inside).sum()), int((valid & ~inside).sum())
    within = a * (a - 1) * values["inside"] + b * (b - 1) * outside
    assert values["both_sides"] == pytest.approx(within / (a * (a - 1) + b * (b - 1)), rel=1e-12)
    n = a + b
    assert values["all"] == pytest.approx((within + 2 * a * b * values["cross"]) / (n * (n - 1)), rel=1e-12)


def test_t3_the_form_does_not_cancel_in_float32() -> None:
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, 19, 2048, generator=g)
    teacher = (logits + 1e-3 * torch.randn(logits.shape, generator=g)).softmax(1)
    student = logits.softmax(1)
    z, w = unit(student.double()[0]), unit(teacher.double()[0])
    exact = float((z.mT @ z - w.mT @ w).square().sum()) / (2048 * 2047)
    assert exact < 1e-5
    assert float(whole(student, teacher)) == pytest.approx(exact, rel=1e-4)
    u, v = unit(student[0]), unit(teacher[0])
    three = (u @ u.mT).square().sum() + (v @ v.mT).square().sum() - 2 * (u @ v.mT).square().sum()
    assert float(three) / (2048 * 2047) != pytest.approx(exact, rel=1e-3)  # why it is not used


def test_t4_permuted_classes_and_turned_spaces_cost_nothing() -> None:
    student, _, valid, inside = vectors(3, channels=6, n=50)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    permuted = student[:, torch.tensor([1, 0, 2, 5, 4, 3])]
    for teacher in (permuted, turn @ student, 7 * student):
        for pairs in PAIRS:
            assert abs(float(structured_consistency(student, teacher, valid, inside, pairs))) < 1e-12


def test_t5_gradient_formula() -> None:
    student, teacher = (unit(one) for one in vectors(4, batch=1, n=9)[:2])
    z, w = student[0], teacher[0]
    formula = 4 / (9 * 8) * (z @ z.mT @ z - z @ w.mT @ w)
    constant = gradient(lambda x: whole(x, teacher, detach_norm=True), student)[0]
    torch.testing.assert_close(constant, formula, rtol=1e-12, atol=1e-14)
    # through the length, only what turns the vector is left
    through = formula - z * (z * formula).sum(0)
    torch.testing.assert_close(gradient(lambda x: whole(x, teacher), student)[0], through, rtol=1e-12, atol=1e-14)
    assert (constant - through).abs().max() > 1e-3

    def naive(x: Tensor) -> Tensor:
        u = unit(x[0])
        return (u.mT @ u - w.mT @ w).square().sum() / (9 * 8)

    long = 3 * student
    torch.testing.assert_close(gradient(lambda x: whole(x, teacher), long), gradient(naive, long))


@every_pairs
def test_t5_equal_student_and_teacher_have_no_gradient(pairs: Any) -> None:
    student, _, valid, inside = vectors(5)
    slope = gradient(lambda x: structured_consistency(x, student, valid, inside, pairs), student)
    assert slope.abs().max() == 0


@every_pairs
def test_t5_no_gradient_reaches_the_teacher(pairs: Any) -> None:
    student, teacher, valid, inside = vectors(6)
    student.requires_grad_(), teacher.requires_grad_()
    structured_consistency(student, teacher, valid, inside, pairs).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


@every_pairs
@pytest.mark.parametrize("tiny", [0.0, 1e-30])
def test_t5_zero_vectors_have_finite_gradients(pairs: Any, tiny: float) -> None:
    student, teacher, valid, inside = (one.float() if one.is_floating_point() else one for one in vectors(7))
    valid[:] = True
    student[0, :, 2], teacher[0, :, 3], student[1], teacher[1, :, 0] = tiny, tiny, tiny, tiny
    for detach in (False, True):
        value = structured_consistency(student, teacher, valid, inside, pairs, detach)
        assert 0 < float(value) <= 4
        slope = gradient(lambda x, d=detach: structured_consistency(x, teacher, valid, inside, pairs, d), student)
        assert torch.isfinite(slope).all()
    assert float(whole(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4))) == 0


def test_t6_known_cosines() -> None:
    """Against a teacher of right angles the loss of two pixels is their squared cosine."""
    half = torch.tensor([[[0.5, 1], [0.5, 0], [0, 0]]])
    assert math.sqrt(float(whole(half, torch.eye(3)[None, :, :2]))) == pytest.approx(0.707107, abs=1e-6)
    uniform = torch.full((1, 19, 2), 1 / 19)
    uniform[0, :, 1] = torch.eye(19)[0]
    assert math.sqrt(float(whole(uniform, torch.eye(19)[None, :, :2]))) == pytest.approx(0.229416, abs=1e-6)


@every_pairs
def test_structured_gradcheck(pairs: Any) -> None:
    student, teacher, valid, inside = vectors(8, n=6)
    valid[:, :4] = True
    inside[:, 0], inside[:, 1] = True, False

    def f(x: Tensor) -> Tensor:
        return structured_consistency(x, teacher, valid, inside, pairs)

    assert torch.autograd.gradcheck(f, (student.clone().requires_grad_(),))


@every_pairs
def test_padding_and_what_it_holds_change_nothing(pairs: Any) -> None:
    student, teacher, valid, inside = vectors(9, n=20)

    def f(x: Tensor) -> Tensor:
        return structured_consistency(x, teacher, valid, inside, pairs)

    strange = torch.where(valid[:, None], student, 1e3 * torch.randn_like(student))
    assert torch.equal(f(student), f(strange))
    slope = gradient(f, student).mT
    assert (slope[~valid] == 0).all()
    used = valid & inside if pairs == "inside" else valid
    assert (slope[used].abs().sum(1) > 0).all()
    assert (slope[~used] == 0).all()


@every_pairs
def test_no_pair_is_exactly_nothing(pairs: Any) -> None:
    student, teacher, _, _ = vectors(10, batch=1)
    nothing, one, all_ = torch.zeros(1, 8, dtype=torch.bool), torch.zeros(1, 8, dtype=torch.bool), everywhere(student)
    one[0, 3] = True
    cases = [(nothing, all_), (nothing, nothing), (one, one), (one, nothing), (one, all_)]
    cases += {"inside": [(all_, nothing), (all_, one)], "cross": [(all_, all_), (all_, nothing)]}.get(pairs, [])
    for valid, inside in cases:
        for columns in (student, student.float(), torch.zeros_like(student)):
            value = structured_consistency(columns, teacher.to(columns.dtype), valid, inside, pairs)
            assert float(value) == 0
            slope = gradient(
                lambda x, v=valid, m=inside: structured_consistency(x, teacher.to(x.dtype), v, m, pairs), columns
            )
            assert torch.equal(slope, torch.zeros_like(slope))


def test_images_without_a_pair_are_left_out_of_the_mean() -> None:
    student, teacher, valid, inside = vectors(11)
    alone = structured_consistency(student[:1], teacher[:1], valid[:1], inside[:1])
    inside[1] = False
    inside[1, 0] = True  # a single pixel, in no pair
    torch.testing.assert_close(structured_consistency(student, teacher, valid, inside), alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_structured_half_types_and_autocast(dtype: torch.dtype) -> None:
    student, teacher, valid, inside = vectors(12, n=400)
    student, teacher = student.to(dtype), (student + 0.05 * teacher).to(dtype)
    exact = structured_consistency(student.double(), teacher.double(), valid, inside)
    assert 0 < float(exact) < 0.05
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = structured_consistency(student, teacher, valid, inside)
        same = structured_consistency(student.float(), teacher.float(), valid, inside)
    assert value.dtype == torch.float32
    assert torch.equal(value, same)
    assert float(value.detach()) == pytest.approx(float(exact), rel=1e-4)  # products in bf16 would be 1e-2 off
    (slope,) = torch.autograd.grad(value, student)
    assert torch.isfinite(slope).all()
    assert slope.abs().max() > 0


def test_many_pixels_stay_in_range() -> None:
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 4, 200_000, generator=g) for _ in range(2))
    value = whole(student, teacher)
    assert float(value) == pytest.approx(float(whole(student.double(), teacher.double())), rel=1e-4)


# Sampled pixels -------------------------------------------------------------------------------------------------------


def keys(count: int, epoch: int = 0) -> Tensor:
    return torch.tensor([[epoch, position] for position in range(count)])


def test_t7_the_sampled_mean_is_unbiased() -> None:
    g = torch.Generator().manual_seed(0)
    student, teacher = ((2 * torch.randn(1, 5, 200, generator=g)).softmax(1) for _ in range(2))
    exact = float(whole(student, teacher))
    index, kept = sample_pixels(keys(4000), torch.ones(4000, 200, dtype=torch.bool), 32, seed=3)
    assert kept.all()
    draws = []
    for some in index.split(500):
        at = some[:, None].expand(-1, 5, -1)
        one, two = (columns.expand(len(some), -1, -1).gather(2, at) for columns in (student, teacher))
        z, w = unit(one), unit(two)
        draws.append((z.mT @ z - w.mT @ w).square().sum((1, 2)) / (32 * 31))
        torch.testing.assert_close(whole(one, two), draws[-1].mean())
    values = torch.cat(draws)
    error = float(values.std()) / math.sqrt(len(values))
    assert error < 0.005 * exact
    assert abs(float(values.mean()) - exact) < 4 * error


def test_samples_are_candidates_and_drawn_once_each_as_often_as_the_others() -> None:
    candidates = torch.rand(3000, 30, generator=torch.Generator().manual_seed(0)) < 0.6
    candidates[:, 7] = True
    index, kept = sample_pixels(keys(3000), candidates, 5, seed=0)
    assert index.shape == kept.shape == (3000, 5)
    assert kept.all()
    assert candidates.gather(1, index).all()
    assert (index.sort(1).values.diff(dim=1) > 0).all()
    whole_plane = torch.ones(3000, 30, dtype=torch.bool)
    counts = torch.bincount(sample_pixels(keys(3000), whole_plane, 5, seed=0)[0].flatten(), minlength=30)
    assert (counts - 500).abs().max() < 5 * math.sqrt(500 * 25 / 30)


def test_fewer_candidates_than_samples() -> None:
    candidates = torch.zeros(4, 10, dtype=torch.bool)
    candidates[1, 4], candidates[2, 2:5], candidates[3] = True, True, True
    index, kept = sample_pixels(keys(4), candidates, 6, seed=0)
    assert kept.sum(1).tolist() == [0, 1, 3, 6]
    assert [sorted(i[k].tolist()) for i, k in zip(index[:3], kept[:3], strict=True)] == [[], [4], [2, 3, 4]]
    index, kept = sample_pixels(keys(4), candidates, 600, seed=0)
    assert index.shape == (4, 10)
    assert torch.equal(torch.zeros_like(candidates).scatter(1, index, kept), candidates)


def test_samples_depend_on_the_key_and_the_seed_alone() -> None:
    candidates = torch.rand(8, 50, generator=torch.Generator().manual_seed(1)) < 0.7
    index, _ = sample_pixels(keys(8), candidates, 9, seed=0)
    assert torch.equal(sample_pixels(keys(8)[2:4], candidates[2:4], 9, seed=0)[0], index[2:4])
    assert not torch.equal(sample_pixels(keys(8), candidates, 9, seed=1)[0], index)
    assert not torch.equal(sample_pixels(keys(8, epoch=1), candidates, 9, seed=0)[0], index)


# Boundary label relaxation --------------------------------------------------------------------------------------------


def reference_relaxed(logits: Tensor, mask: Tensor, valid: Tensor, radius: int) -> float:
    total, count = 0.0, 0
    batch, height, width = mask.shape
    for n, i, j in itertools.product(range(batch), range(height), range(width)):
        if mask[n, i, j] == 255 or not valid[n, i, j]:
            continue
        near = set()
        for u, v in itertools.product(range(height), range(width)):
            if max(abs(u - i), abs(v - j)) <= radius and valid[n, u, v] and mask[n, u, v] != 255:
                near.add(int(mask[n, u, v]))
        p = [math.exp(one) for one in logits[n, :, i, j].tolist()]
        total -= math.log(sum(p[c] for c in near) / sum(p))
        count += 1
    return total / max(1, count)


@pytest.mark.parametrize("radius", [0, 1, 2, 7, 10**11])
@pytest.mark.parametrize("seed", range(2))
def test_relaxation_matches_the_formula(radius: int, seed: int) -> None:
    logits, _, mask, valid = planes(seed, k=8)
    expected = reference_relaxed(logits, mask, valid, radius)
    assert expected > 0.05
    assert float(relaxed_cross_entropy(logits, mask, valid, radius)) == pytest.approx(expected, rel=1e-12)


def test_t8_by_hand() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()[None, :, None, None].expand(1, 3, 1, 3)
    valid = torch.ones(1, 1, 3, dtype=torch.bool)
    ignore = torch.tensor([[[255, 255, 255]]])

    def at(labels: list[int], radius: int = 1) -> tuple[float, list[float]]:
        """Loss and gradient of the first pixel; the others are as much as it, or without a label."""
        mask = ignore.clone()
        mask[0, 0, : len(labels)] = torch.tensor(labels)
        value = relaxed_cross_entropy(logits, mask, valid, radius)
        slope = gradient(lambda z: relaxed_cross_entropy(z, mask, valid, radius), logits)
        return float(value), (len(labels) * slope[0, :, 0, 0]).tolist()

    value, slope = at([0, 1])
    assert value == pytest.approx(0.223144, abs=1e-6)
    assert slope == pytest.approx([-0.125, -0.075, 0.2], abs=1e-6)
    value, slope = at([0])
    assert value == pytest.approx(0.693147, abs=1e-6)
    assert slope == pytest.approx([-0.5, 0.3, 0.2], abs=1e-6)
    value, slope = at([0, 1, 2], radius=2)
    assert value == pytest.approx(0, abs=1e-6)
    assert slope == pytest.approx([0, 0, 0], abs=1e-6)


def test_t8_radius_0_is_cross_entropy() -> None:
    logits, _, mask, valid = planes(3)
    expected = partial_cross_entropy(logits, mask, valid)
    torch.testing.assert_close(relaxed_cross_entropy(logits, mask, valid, 0), expected)


def test_t8_only_the_two_columns_at_a_border_have_two_labels() -> None:
    mask = torch.zeros(1, 5, 8, dtype=torch.int64)
    mask[..., 4:] = 1
    valid = torch.ones_like(mask, dtype=torch.bool)
    slope = gradient(lambda z: 40 * relaxed_cross_entropy(z, mask, valid), torch.zeros(1, 4, 5, 8))
    inside = torch.full((5, 8), 0.25 - 1)  # of the pixel's own class: p - p / sum_N p
    inside[:, 3:5] = 0.25 - 0.5
    torch.testing.assert_close(slope[0].gather(0, mask)[0], inside)


def test_pixels_without_a_label_are_not_trained_and_padding_gives_no_label() -> None:
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask, valid = torch.zeros(1, 4, 4, dtype=torch.int64), torch.ones(1, 4, 4, dtype=torch.bool)
    mask[..., 1] = 255
    mask[..., 3], valid[..., 3] = 1, False

    def f(z: Tensor) -> Tensor:
        return relaxed_cross_entropy(z, mask, valid)

    slope = gradient(f, logits)
    assert (slope[..., 1] == 0).all()
    assert (slope[..., 3] == 0).all()
    torch.testing.assert_close(f(logits), partial_cross_entropy(logits, mask, valid))  # class 1 is in padding only
    for other in (mask.masked_fill(~valid, 2), mask.masked_fill(~valid, 255)):
        assert torch.equal(relaxed_cross_entropy(logits, other, valid), f(logits))
    for y, v in ((torch.full_like(mask, 255), valid), (mask, torch.zeros_like(valid))):
        assert float(relaxed_cross_entropy(logits, y, v)) == 0
        nothing = gradient(lambda z, y=y, v=v: relaxed_cross_entropy(z, y, v), logits)
        assert torch.equal(nothing, torch.zeros_like(nothing))


def test_relaxation_gradcheck_and_refusals() -> None:
    logits, _, mask, valid = planes(4, h=3, w=4)
    copies = [one.clone() for one in (logits, mask, valid)]
    assert torch.autograd.gradcheck(lambda z: relaxed_cross_entropy(z, mask, valid), (logits.clone().requires_grad_(),))
    assert all(torch.equal(a, b) for a, b in zip((logits, mask, valid), copies, strict=True))
    for planes_ in ((mask[:, None], valid), (mask, valid[:, None])):
        with pytest.raises(ValueError, match=r"\(B, H, W\)"):
            relaxed_cross_entropy(logits, *planes_)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_types_are_raised(dtype: torch.dtype, autocast: bool) -> None:
    logits, _, mask, valid = planes(5, h=40, w=40)
    z = (10 * logits).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = relaxed_cross_entropy(z, mask, valid)
    exact = relaxed_cross_entropy(z.detach().double(), mask, valid)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.detach(), exact.float(), rtol=1e-5, atol=0)
    (slope,) = torch.autograd.grad(value, z)
    assert torch.isfinite(slope).all()
    assert slope.abs().max() > 0


# Two processes --------------------------------------------------------------------------------------------------------

LOSSES = """
from common.ops.losses import pixel_consistency
from methods.scl.losses import relaxed_cross_entropy, structured_consistency


def losses(features, target, mask, valid, inside):
    def structured(z, pairs):
        return structured_consistency(z.flatten(2), target.flatten(2), valid.flatten(1), inside.flatten(1), pairs)

    return {
        "batch": lambda z: pixel_consistency(z, target, valid, "batch", 0.8)[0],
        "pixel": lambda z: pixel_consistency(z, target, valid, "pixel", 0.8)[0],
        "relaxed": lambda z: relaxed_cross_entropy(z, mask, valid),
        **{pairs: (lambda z, pairs=pairs: structured(z, pairs)) for pairs in ("inside", "both_sides", "cross", "all")},
    }


def gradients(weight, features, *planes):
    results = {}
    for name, loss in losses(features, *planes).items():
        w = weight.clone().requires_grad_()
        value = loss(torch.einsum("kc,bchw->bkhw", w, features))
        value.backward()
        results[name] = torch.cat([value.detach().reshape(1), w.grad.flatten()])
    return results
"""

TWO_RANKS = """
averaged = []
for weight, *planes in torch.load(f"{folder}/data.pt"):
    results = gradients(weight, *(plane[2 * rank : 2 * rank + 2] for plane in planes))
    for result in results.values():
        dist.all_reduce(result)
        result /= 2
    averaged.append(results)
if rank == 0:
    torch.save(averaged, f"{folder}/out.pt")
"""


def test_two_processes_average_to_the_gradient_of_one(tmp_path: Path) -> None:
    cases = []
    for seed in range(3):
        (features, target, mask, valid), (more, other, mask2, valid2) = planes(seed), planes(seed + 10)
        features, target = torch.cat([features, more]), torch.cat([target, other])
        mask, valid = torch.cat([mask, mask2]), torch.cat([valid, valid2])
        g = torch.Generator().manual_seed(seed)
        inside = torch.rand(valid.shape, generator=g) < 0.5
        mask[:2, :, 1:], valid[:2, 3:] = 255, False  # rank 0 has few labels and little inside its images
        target[:2] = target[:2] ** 3 / (target[:2] ** 3).sum(1, keepdim=True)  # and is more confident
        if seed == 1:
            valid[1], inside[0] = False, False  # an image of rank 0 has no valid pixel, the other none inside
        if seed == 2:
            valid[:2] = False  # rank 0 has nothing
        cases.append((torch.randn(3, 3, generator=g, dtype=torch.float64), features, target, mask, valid, inside))
    torch.save(cases, tmp_path / "data.pt")
    two_processes(LOSSES + TWO_RANKS, tmp_path)
    scope: dict[str, Any] = {"torch": torch}
    exec(LOSSES, scope)
    for averaged, (weight, *whole_batch) in zip(torch.load(tmp_path / "out.pt"), cases, strict=True):
        expected = scope["gradients"](weight, *whole_batch)
        assert averaged.keys() == expected.keys()
        for name, value in expected.items():
            assert value[0] > 0.01, name
            torch.testing.assert_close(averaged[name], value, rtol=1e-10, atol=1e-12)
