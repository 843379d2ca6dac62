"""What only the total-variation paper has, and its behaviour; T12 and T14 of its specification (T1 ... T13 of the loss
itself are in tests/common/test_losses.py)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common.ops.losses import partial_cross_entropy, total_variation, total_variation_sum
from methods.tv.losses import directional_variation, directional_variation_sum, labelled_pair_weights

DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
either_minimum = pytest.mark.parametrize("temperature", [None, 0.05, 0.5])


def example(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random probabilities (2, 3, 5, 6) and a ragged valid plane."""
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(2, 3, 5, 6, generator=g, dtype=torch.float64).softmax(1).to(dtype)
    valid = torch.rand(2, 5, 6, generator=g) < 0.85
    valid[0, :, -1] = False
    return p, valid


def all_valid(p: Tensor) -> Tensor:
    return torch.ones(p.shape[0], *p.shape[2:], dtype=torch.bool)


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


def drawn(pixels: list[tuple[int, int]], size: int = 24) -> Tensor:
    """One channel, 1 at the pixels and 0 elsewhere."""
    p = torch.zeros(1, 1, size, size, dtype=torch.float64)
    for i, j in pixels:
        p[0, 0, i, j] = 1
    return p


def directional(p: Tensor) -> float:
    return float(directional_variation_sum(p, all_valid(p)))


def reference_directional_sum(p: Tensor, valid: Tensor, temperature: float | None) -> float:
    b, c, h, w = p.shape
    total = 0.0
    for n in range(b):
        for k in range(c):
            for i in range(h):
                for j in range(w):
                    if not valid[n, i, j]:
                        continue
                    costs = []
                    for di, dj in DIRECTIONS:
                        cost = 0.0
                        for u, v in ((i + di, j + dj), (i - di, j - dj)):
                            if 0 <= u < h and 0 <= v < w and valid[n, u, v]:
                                cost += abs(float(p[n, k, u, v] - p[n, k, i, j])) / 2
                        costs.append(cost)
                    if temperature is None:
                        total += min(costs)
                    else:
                        weights = [math.exp(-cost / temperature) for cost in costs]
                        total += sum(a * cost for a, cost in zip(weights, costs, strict=True)) / sum(weights)
    return total


# ---------------------------------------------------------------------------------------------- which pairs count


def test_labelled_pair_weights_match_the_formula() -> None:
    mask = torch.randint(3, (2, 5, 6), generator=torch.Generator().manual_seed(0))
    mask[torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.4] = 255
    before = mask.clone()
    w_y, w_x = labelled_pair_weights(mask)
    assert w_y.shape == (2, 1, 4, 6)
    assert w_x.shape == (2, 1, 5, 5)
    labelled = mask != 255
    for n in range(2):
        for i in range(5):
            for j in range(6):
                if i < 4:
                    assert bool(w_y[n, 0, i, j]) == (not (labelled[n, i, j] and labelled[n, i + 1, j]))
                if j < 5:
                    assert bool(w_x[n, 0, i, j]) == (not (labelled[n, i, j] and labelled[n, i, j + 1]))
    assert set(torch.cat([w_y.flatten(), w_x.flatten()]).tolist()) == {0.0, 1.0}
    assert torch.equal(mask, before)


def test_labelled_pair_weights_at_both_ends_of_the_annotation() -> None:
    p, valid = example()
    dense, empty = torch.zeros(2, 5, 6).long(), torch.full((2, 5, 6), 255)
    assert float(total_variation(p, valid, pair_weights=labelled_pair_weights(dense))) == 0
    unweighted = total_variation(p, valid)
    assert torch.equal(total_variation(p, valid, pair_weights=labelled_pair_weights(empty)), unweighted)
    # One labelled pixel takes part in no pair of two labelled ends.
    single = empty.clone()
    single[0, 2, 2] = 1
    assert torch.equal(total_variation(p, valid, pair_weights=labelled_pair_weights(single)), unweighted)


# ---------------------------------------------------------------------------------------------- directional variation


@either_minimum
@pytest.mark.parametrize("seed", range(2))
def test_directional_variation_matches_the_formula(temperature: float | None, seed: int) -> None:
    p, valid = example(seed=seed)
    expected = reference_directional_sum(p, valid, temperature)
    assert expected > 1
    value = float(directional_variation_sum(p, valid, softmin_temperature=temperature))
    assert value == pytest.approx(expected, rel=1e-10)
    mean = float(directional_variation(p, valid, softmin_temperature=temperature))
    assert mean == pytest.approx(expected / int(valid.sum()), rel=1e-10)


@pytest.mark.parametrize("shape", [(1, 2, 1, 5), (1, 2, 5, 1), (1, 2, 1, 1)])
@either_minimum
def test_directional_variation_of_one_row_or_column(shape: tuple[int, ...], temperature: float | None) -> None:
    p = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = reference_directional_sum(p, all_valid(p), temperature)
    value = float(directional_variation_sum(p, all_valid(p), softmin_temperature=temperature))
    assert value == pytest.approx(expected, rel=1e-10, abs=1e-15)


def test_t12_isolated_pixel() -> None:
    assert directional(drawn([(9, 9)])) == 1


@pytest.mark.parametrize("step", DIRECTIONS)
@pytest.mark.parametrize("length", [2, 3, 10])
def test_t12_straight_lines_cost_one_whatever_their_length(step: tuple[int, int], length: int) -> None:
    line = drawn([(5 + t * step[0], 12 + t * step[1]) for t in range(length)])
    assert directional(line) == 1
    if step in ((0, 1), (1, 0)):
        assert float(total_variation_sum(line, all_valid(line))) == 2 * length + 2


@pytest.mark.parametrize("step", DIRECTIONS)
def test_t12_a_gap_costs_one_more(step: tuple[int, int]) -> None:
    assert directional(drawn([(5 + t * step[0], 12 + t * step[1]) for t in range(9) if t != 4])) == 2


@pytest.mark.parametrize("side", [2, 3, 7])
def test_t12_filled_square(side: int) -> None:
    square = drawn([(6 + i, 6 + j) for i in range(side) for j in range(side)])
    assert directional(square) == 2
    assert float(total_variation_sum(square, all_valid(square))) == 4 * side


def test_t12_staircase_pays_at_each_step() -> None:
    assert directional(drawn([(6 + t // 2, 6 + t) for t in range(10)])) == 5


@either_minimum
def test_t12_invariance_to_flips_and_turns(temperature: float | None) -> None:
    p, valid = example()
    value = directional_variation(p, valid, softmin_temperature=temperature)
    for turns in (1, 2, 3):
        turned, plane = p.rot90(turns, (2, 3)), valid.rot90(turns, (1, 2))
        torch.testing.assert_close(directional_variation(turned, plane, softmin_temperature=temperature), value)
    flipped = directional_variation(p.flip(3), valid.flip(2), softmin_temperature=temperature)
    torch.testing.assert_close(flipped, value)


@either_minimum
def test_t12_constant_map_is_zero_with_zero_gradient(temperature: float | None) -> None:
    constant = torch.full((1, 2, 4, 5), 0.5)

    def f(p: Tensor) -> Tensor:
        return directional_variation_sum(p, all_valid(p), softmin_temperature=temperature)

    assert float(f(constant)) == 0
    assert torch.equal(gradient(f, constant), torch.zeros_like(constant))


def test_the_minimum_passes_gradient_to_one_direction_only() -> None:
    peak = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    peak[0, 0, 2, 2] = 0.5  # all four directions cost the same
    slope = gradient(lambda p: directional_variation_sum(p, all_valid(p)), peak)[0, 0]
    assert float(slope[2, 2]) == 1
    ends = [(i, j) for i, j in slope.nonzero().tolist() if (i, j) != (2, 2)]
    assert len(ends) == 2
    assert ends[0][0] + ends[1][0] == ends[0][1] + ends[1][1] == 4  # opposite neighbours
    assert all(float(slope[i, j]) == -0.5 for i, j in ends)


def test_softmin_lies_between_minimum_and_mean_and_tends_to_the_minimum() -> None:
    p, valid = example()
    hard = directional_variation(p, valid)
    values = [directional_variation(p, valid, softmin_temperature=t) for t in (1e-6, 0.05, 0.5, 1e6)]
    torch.testing.assert_close(values[0], hard)
    assert hard < values[1] < values[2] < values[3]


def test_directional_variation_refuses_bad_arguments() -> None:
    p, valid = example()
    for temperature in (0.0, -0.05):
        with pytest.raises(ValueError, match="softmin_temperature"):
            directional_variation(p, valid, softmin_temperature=temperature)
    with pytest.raises(ValueError, match="valid"):
        directional_variation(p, valid[:, None])


@either_minimum
def test_directional_invalid_pixels_and_padding_change_nothing(temperature: float | None) -> None:
    p, valid = example()

    def f(x: Tensor) -> Tensor:
        return directional_variation(x, valid, softmin_temperature=temperature)

    other = torch.where(valid[:, None], p, torch.rand_like(p))
    assert torch.equal(f(p), f(other))
    slope = gradient(f, p)
    assert torch.equal(slope, gradient(f, other))
    assert (slope.movedim(1, -1)[~valid] == 0).all()
    assert (slope.movedim(1, -1)[valid] != 0).any()
    padded, plane = torch.rand(2, 3, 9, 9, dtype=torch.float64), torch.zeros(2, 9, 9, dtype=torch.bool)
    padded[:, :, 2:7, 1:7], plane[:, 2:7, 1:7] = p, valid
    torch.testing.assert_close(directional_variation(padded, plane, softmin_temperature=temperature), f(p))


@either_minimum
def test_directional_nothing_valid_is_zero_with_zero_gradient(temperature: float | None) -> None:
    p, valid = example(torch.float32)
    nothing = torch.zeros_like(valid)
    assert float(directional_variation(p, nothing, softmin_temperature=temperature)) == 0
    slope = gradient(lambda x: directional_variation(x, nothing, softmin_temperature=temperature), p)
    assert torch.equal(slope, torch.zeros_like(slope))


@either_minimum
def test_directional_gradcheck(temperature: float | None) -> None:
    p, valid = example(seed=2)
    p, valid = p[:, :, :4, :4], valid[:, :4, :4]

    def f(x: Tensor) -> Tensor:
        return directional_variation(x, valid, softmin_temperature=temperature)

    assert torch.autograd.gradcheck(f, (p.clone().requires_grad_(),))


@either_minimum
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_directional_precision(temperature: float | None, dtype: torch.dtype, autocast: bool) -> None:
    p, valid = example(dtype)
    p.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = directional_variation(p, valid, softmin_temperature=temperature)
    (slope,) = torch.autograd.grad(value, p)
    raised = torch.float64 if dtype == torch.float64 else torch.float32
    assert value.dtype == raised
    assert torch.isfinite(slope).all()
    exact = directional_variation(p.to(raised), valid, softmin_temperature=temperature)
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=0)


def test_directional_non_contiguous_arguments_and_no_mutation() -> None:
    p, valid = example()
    strided, plane = p.mT.contiguous().mT, valid.mT.contiguous().mT
    copies = strided.clone(), plane.clone()
    expected = gradient(lambda x: directional_variation(x, valid), p)
    strided.requires_grad_()
    value = directional_variation(strided, plane)
    torch.testing.assert_close(value, directional_variation(p, valid))
    torch.testing.assert_close(torch.autograd.grad(value, strided)[0], expected)
    assert torch.equal(strided, copies[0])
    assert torch.equal(plane, copies[1])


def test_directional_counts_pixels_over_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    p, valid = example()
    whole = directional_variation(p, valid)
    parts = []
    monkeypatch.setattr("common.ops.distributed.world_size", lambda: 2)
    for mine, other in ((0, 1), (1, 0)):
        elsewhere = valid[other].sum()
        monkeypatch.setattr("torch.distributed.all_reduce", lambda count, n=elsewhere: count.add_(n))
        parts.append(directional_variation(p[mine : mine + 1], valid[mine : mine + 1]))
    assert int(valid[0].sum()) != int(valid[1].sum())
    torch.testing.assert_close(sum(parts) / 2, whole)


# ---------------------------------------------------------------------------------------------- behaviour


def trained_accuracy(weight: float) -> Tensor:
    """Pixel accuracy of free logits, one value per seed: three vertical regions, one stroke of six pixels in each."""
    seeds, classes = 3, 3
    truth = (torch.arange(32) * classes // 32).expand(seeds, 32, 32)
    mask = torch.full((seeds, 32, 32), 255)
    logits = []
    for seed in range(seeds):
        g = torch.Generator().manual_seed(seed)
        for k in range(classes):
            row = int(torch.randint(3, 23, (), generator=g))
            column = 11 * k + int(torch.randint(2, 8, (), generator=g))
            mask[seed, row : row + 6, column] = k
        logits.append(torch.randn(classes, 32, 32, generator=g))
    assert (mask[mask != 255] == truth[mask != 255]).all()
    z = torch.stack(logits).requires_grad_()
    valid = torch.ones(seeds, 32, 32, dtype=torch.bool)
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(600):
        loss = partial_cross_entropy(z, mask, valid) + weight * total_variation(z.softmax(1), valid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (z.argmax(1) == truth).double().mean((1, 2))


def test_t14_total_variation_spreads_strokes_over_regions() -> None:
    with_tv, without = trained_accuracy(0.5), trained_accuracy(0.0)
    assert ((without > 0.25) & (without < 0.45)).all()  # chance, and the strokes
    assert (with_tv - without > 0.05).all()
    assert (with_tv - without).mean() > 0.1
