"""Losses of common/ops/losses.py against hand values and against slow references written from the formulas.

T1 ... T13 are properties listed in the specification of the total-variation loss (T12 is of a loss that was dropped);
T14 is in tests/methods/test_tv_module.py.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.ops.distributed import all_sum
from common.ops.losses import (
    contrast_weights,
    neighbour_pairs,
    partial_cross_entropy,
    tag_loss,
    total_variation,
    total_variation_sum,
)
from common.ops.tensors import one_hot, valid_cells

ROOT = Path(__file__).resolve().parents[3]
VARIANTS = {"aniso": 0.0, "iso": 1e-3, "vector": 1e-3}  # with the smallest eps that is sensible

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
# Every loss of the file as a function of (logits, mask, valid), for the properties that all of them share.
LOSSES: dict[str, Loss] = {
    "partial_cross_entropy": partial_cross_entropy,
    "aniso": lambda z, y, v: total_variation(z.softmax(1), v),
    "aniso_rounded": lambda z, y, v: total_variation(z.softmax(1), v, eps=0.1),
    "iso": lambda z, y, v: total_variation(z.softmax(1), v, variant="iso", eps=1e-3),
    "vector": lambda z, y, v: total_variation(z.softmax(1), v, variant="vector", eps=1e-3),
    "weighted": lambda z, y, v: total_variation(z.softmax(1), v, pair_weights=fixed_weights(v)),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def example(
    b: int = 2, k: int = 3, h: int = 5, w: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Random logits, a mask that is labelled in about half of its pixels, a valid plane with ragged padding."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(b, k, h, w, generator=g, dtype=torch.float64).to(dtype)
    mask = torch.randint(k, (b, h, w), generator=g)
    mask[torch.rand(b, h, w, generator=g) < 0.5] = 255
    valid = torch.rand(b, h, w, generator=g) < 0.8
    valid[0, :, -1] = False
    return logits, mask, valid


def all_valid(p: Tensor) -> Tensor:
    return torch.ones(p.shape[0], *p.shape[2:], dtype=torch.bool)


def fixed_weights(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Some pair weights between 0.2 and 1, different at each pair."""
    m_y, m_x = neighbour_pairs(valid)
    w_y, w_x = (torch.linspace(0.2, 1, m.numel()).reshape(m.shape) for m in (m_y, m_x))
    return w_y, w_x.flip(0)


def certain(labels: Tensor, k: int = 2) -> Tensor:
    """(H, W) class ids to (1, K, H, W) probabilities in float64."""
    return torch.nn.functional.one_hot(labels, k).permute(2, 0, 1)[None].double()


def channel(rows: list[list[float]]) -> Tensor:
    """One channel of one image, in float64."""
    return torch.tensor(rows, dtype=torch.float64)[None, None]


def tv(p: Tensor, **options: Any) -> float:
    return float(total_variation_sum(p, all_valid(p), **options))


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


# ---------------------------------------------------------------------------------------------- slow references


def reference_cross_entropy(logits: Tensor, mask: Tensor, valid: Tensor) -> float:
    total, count = 0.0, 0
    b, k, h, w = logits.shape
    for n in range(b):
        for i in range(h):
            for j in range(w):
                y = int(mask[n, i, j])
                if y == 255 or not valid[n, i, j]:
                    continue
                exps = [math.exp(float(logits[n, c, i, j])) for c in range(k)]
                total -= math.log(exps[y] / sum(exps))
                count += 1
    return total / max(1, count)


def reference_tv_sum(
    p: Tensor, valid: Tensor, variant: str, eps: float, weights: tuple[Tensor, Tensor] | None = None
) -> float:
    b, c, h, w = p.shape
    total = 0.0
    for n in range(b):
        for i in range(h):
            for j in range(w):
                m_y = i + 1 < h and bool(valid[n, i, j] and valid[n, i + 1, j])
                m_x = j + 1 < w and bool(valid[n, i, j] and valid[n, i, j + 1])
                a_y = float(weights[0][n, 0, i, j]) if m_y and weights else float(m_y)
                a_x = float(weights[1][n, 0, i, j]) if m_x and weights else float(m_x)
                squares = 0.0
                for k in range(c):
                    d_y = float(p[n, k, i + 1, j] - p[n, k, i, j]) if m_y else 0.0
                    d_x = float(p[n, k, i, j + 1] - p[n, k, i, j]) if m_x else 0.0
                    if variant == "aniso":
                        total += a_y * (math.sqrt(d_y**2 + eps**2) - eps) + a_x * (math.sqrt(d_x**2 + eps**2) - eps)
                    elif variant == "iso":
                        total += math.sqrt(a_y * d_y**2 + a_x * d_x**2 + eps**2) - eps
                    squares += a_y * d_y**2 + a_x * d_x**2
                if variant == "vector":
                    total += math.sqrt(squares + eps**2) - eps
    return total


def reference_contrast(image: Tensor, valid: Tensor) -> tuple[dict[Any, float], dict[Any, float]]:
    """Weights of the valid pairs, by (image, row, column) of the pair's first pixel: downwards and to the right."""
    b, c, h, w = image.shape
    down, right = {}, {}
    for n in range(b):
        squares: dict[Any, float] = {}
        for i in range(h):
            for j in range(w):
                for di, dj in ((1, 0), (0, 1)):
                    if i + di < h and j + dj < w and valid[n, i, j] and valid[n, i + di, j + dj]:
                        steps = [float(image[n, k, i + di, j + dj] - image[n, k, i, j]) for k in range(c)]
                        squares[di, i, j] = sum(s**2 for s in steps)
        s2 = 2 * sum(squares.values()) / max(1, len(squares))
        for (di, i, j), d2 in squares.items():
            (down if di else right)[n, i, j] = math.exp(-d2 / s2) if s2 > 0 else 1.0
    return down, right


# ---------------------------------------------------------------------------------------------- planes and cells


def test_planes_of_no_label_are_zero() -> None:
    labels = torch.tensor([[[0, 2], [255, 1]]])
    expected = torch.tensor([[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 1], [0, 0]]]).float()
    assert torch.equal(one_hot(labels, 3)[0], expected)
    assert one_hot(labels, 3).dtype == torch.float32


def test_a_cell_with_padding_is_padding() -> None:
    valid = torch.ones(1, 5, 9, dtype=torch.bool)
    valid[0, 3, 4] = valid[0, 4] = False
    assert valid_cells(valid, 2).tolist() == [[[True] * 4, [True, True, False, True]]]
    assert torch.equal(valid_cells(valid, 1), valid)


# ---------------------------------------------------------------------------------------------- partial cross entropy


@pytest.mark.parametrize("seed", range(3))
def test_partial_cross_entropy_matches_the_formula(seed: int) -> None:
    logits, mask, valid = example(seed=seed)
    expected = reference_cross_entropy(logits, mask, valid)
    assert expected > 0.1
    assert float(partial_cross_entropy(logits, mask, valid)) == pytest.approx(expected, rel=1e-12)
    everywhere = torch.ones_like(valid)
    assert float(partial_cross_entropy(logits, mask)) == pytest.approx(
        reference_cross_entropy(logits, mask, everywhere), rel=1e-12
    )


def test_partial_cross_entropy_hand_values() -> None:
    # Probabilities (0.25, 0.75) labelled 1, (0.5, 0.5) labelled 0, and a pixel without a label.
    logits = torch.tensor([[0.25, 0.5, 0.9], [0.75, 0.5, 0.1]]).double().log().reshape(1, 2, 1, 3)
    mask = torch.tensor([[[1, 0, 255]]])
    assert float(partial_cross_entropy(logits, mask)) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-12)
    # d(-log p_y)/dz = p - onehot, divided by the two labelled pixels; nothing at the third.
    expected = torch.tensor([[0.25, 0.5 - 1, 0], [0.75 - 1, 0.5, 0]]).double().reshape(1, 2, 1, 3) / 2
    torch.testing.assert_close(gradient(lambda z: partial_cross_entropy(z, mask), logits), expected)


def test_partial_cross_entropy_invariances() -> None:
    logits, mask, valid = example()
    value = partial_cross_entropy(logits, mask, valid)
    shifted = logits + torch.randn(2, 1, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(partial_cross_entropy(shifted, mask, valid), value)
    order = torch.tensor([2, 0, 1])  # class c becomes the position of c in `order`
    renamed = torch.where(mask == 255, 255, order.argsort()[mask.clamp(max=2)])
    torch.testing.assert_close(partial_cross_entropy(logits[:, order], renamed, valid), value)
    twice = partial_cross_entropy(logits.repeat(2, 1, 1, 1), mask.repeat(2, 1, 1), valid.repeat(2, 1, 1))
    torch.testing.assert_close(twice, value)


@pytest.mark.parametrize("huge", [1e4, 1e30, 3e38])
def test_partial_cross_entropy_ignores_huge_logits_without_label(huge: float) -> None:
    logits, mask, valid = example(dtype=torch.float32)
    ignored = (mask == 255) | ~valid
    wild = torch.where(ignored[:, None], huge * torch.tensor([1.0, -1.0, 0.5])[None, :, None, None], logits)
    assert torch.equal(partial_cross_entropy(wild, mask, valid), partial_cross_entropy(logits, mask, valid))
    slope = gradient(lambda z: partial_cross_entropy(z, mask, valid), wild)
    assert torch.equal(slope, gradient(lambda z: partial_cross_entropy(z, mask, valid), logits))
    assert (slope.movedim(1, -1)[ignored] == 0).all()
    nothing = torch.full_like(mask, 255)
    assert float(partial_cross_entropy(wild, nothing)) == 0
    assert (gradient(lambda z: partial_cross_entropy(z, nothing), wild) == 0).all()


def test_partial_cross_entropy_leaves_out_labels_in_the_padding() -> None:
    logits, mask, valid = example()
    mask = torch.where(valid, mask, 0)
    assert (~valid).any()
    hidden = partial_cross_entropy(logits, torch.where(valid, mask, 255))
    assert torch.equal(partial_cross_entropy(logits, mask, valid), hidden)
    assert not torch.isclose(partial_cross_entropy(logits, mask), hidden)


# ---------------------------------------------------------------------------------------------- pairs and weights


def test_neighbour_pairs_are_products_of_both_ends() -> None:
    _, _, valid = example()
    m_y, m_x = neighbour_pairs(valid)
    assert m_y.shape == (2, 1, 4, 6)
    assert m_x.shape == (2, 1, 5, 5)
    assert m_y.dtype == m_x.dtype == torch.float32
    for n in range(2):
        for i in range(4):
            for j in range(6):
                assert float(m_y[n, 0, i, j]) == float(valid[n, i, j]) * float(valid[n, i + 1, j])
        for i in range(5):
            for j in range(5):
                assert float(m_x[n, 0, i, j]) == float(valid[n, i, j]) * float(valid[n, i, j + 1])


def test_contrast_weights_match_the_formula() -> None:
    image, _, valid = example(seed=3)
    image[1] *= 7  # s is per image
    w_y, w_x = contrast_weights(image, valid)
    down, right = reference_contrast(image, valid)
    assert len(down) > 10
    assert len(right) > 10
    for (n, i, j), value in down.items():
        assert float(w_y[n, 0, i, j]) == pytest.approx(value, rel=1e-12)
    for (n, i, j), value in right.items():
        assert float(w_x[n, 0, i, j]) == pytest.approx(value, rel=1e-12)
    m_y, m_x = neighbour_pairs(valid)
    assert (w_y[m_y == 0] == 1).all()
    assert (w_x[m_x == 0] == 1).all()


def test_contrast_weights_hand_values() -> None:
    # Differences 1, 0, 0 to the right: mean 1/3, s^2 = 2/3, weights exp(-1.5), 1, 1.
    w_y, w_x = contrast_weights(channel([[0, 1, 1, 1]]), torch.ones(1, 1, 4, dtype=torch.bool))
    assert w_y.shape == (1, 1, 0, 4)
    assert w_x.flatten().tolist() == pytest.approx([math.exp(-1.5), 1, 1])


def test_contrast_weights_invariances() -> None:
    image, _, valid = example(seed=4)
    weights = contrast_weights(image, valid)
    for other in (255 * image, image + 3, torch.where(valid[:, None], image, 1e6)):
        for a, b in zip(contrast_weights(other, valid), weights, strict=True):
            torch.testing.assert_close(a, b)
    alone = contrast_weights(image[1:], valid[1:])
    assert torch.equal(alone[0], weights[0][1:])


def test_contrast_weights_of_constant_and_empty_images_are_one() -> None:
    constant = torch.full((1, 3, 4, 5), 0.3)
    some = torch.ones(1, 4, 5, dtype=torch.bool)
    some[..., 3:] = False
    busy_padding = torch.where(some[:, None], constant, torch.rand(1, 3, 4, 5))
    noise = torch.rand(1, 3, 4, 5)
    for image, valid in [(constant, some), (busy_padding, some), (noise, torch.zeros_like(some))]:
        for w in contrast_weights(image, valid):
            assert (w == 1).all()


def test_contrast_weights_are_constants_in_at_least_fp32() -> None:
    image, _, valid = example(dtype=torch.bfloat16)
    image.requires_grad_()
    for w, expected in zip(contrast_weights(image, valid), contrast_weights(image.float(), valid), strict=True):
        assert not w.requires_grad
        assert w.dtype == torch.float32
        assert torch.equal(w, expected)


# ---------------------------------------------------------------------------------------------- total variation


@pytest.mark.parametrize(
    ("variant", "eps"),
    [("aniso", 0.0), ("aniso", 1e-3), ("aniso", 0.2), ("iso", 1e-3), ("iso", 0.2), ("vector", 1e-3), ("vector", 0.2)],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_total_variation_matches_the_formula(variant: Any, eps: float, weighted: bool) -> None:
    logits, _, valid = example()
    p = logits.softmax(1)
    weights = fixed_weights(valid) if weighted else None
    expected = reference_tv_sum(p, valid, variant, eps, weights)
    options = {"variant": variant, "eps": eps, "pair_weights": weights}
    assert expected > 0.5
    assert float(total_variation_sum(p, valid, **options)) == pytest.approx(expected, rel=1e-10)
    assert float(total_variation(p, valid, **options)) == pytest.approx(expected / int(valid.sum()), rel=1e-10)


@every_variant
@pytest.mark.parametrize("shape", [(1, 2, 1, 5), (1, 2, 5, 1), (1, 2, 1, 1)])
def test_total_variation_of_one_row_or_column(variant: Any, shape: tuple[int, ...]) -> None:
    p = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(1)
    expected = reference_tv_sum(p, all_valid(p), variant, VARIANTS[variant])
    assert tv(p, variant=variant, eps=VARIANTS[variant]) == pytest.approx(expected, rel=1e-10, abs=1e-15)


def test_total_variation_refuses_bad_options() -> None:
    p = torch.full((1, 2, 3, 4), 0.5)
    valid = all_valid(p)
    for variant in ("iso", "vector"):
        for eps in (0.0, -1.0):
            with pytest.raises(ValueError, match="eps"):
                total_variation(p, valid, variant=variant, eps=eps)  # type: ignore[arg-type]
    for variant in VARIANTS:
        with pytest.raises(ValueError, match="eps 1e-25 squared is 0 in float32"):
            total_variation(p, valid, variant=variant, eps=1e-25)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eps"):
        total_variation(p, valid, eps=-1e-3)
    with pytest.raises(ValueError, match="isotropic"):
        total_variation(p, valid, variant="isotropic", eps=1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 1, 3, 4), (3, 4), (1, 1, 4), (2, 3, 4)])
def test_a_plane_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    p, valid, mask = torch.full((1, 2, 3, 4), 0.5), torch.ones(shape).bool(), torch.zeros(shape).long()
    with pytest.raises(ValueError, match="valid"):
        total_variation(p, valid)
    with pytest.raises(ValueError, match="valid"):
        contrast_weights(p, valid)
    with pytest.raises(ValueError, match="valid"):
        partial_cross_entropy(p, torch.zeros(1, 3, 4).long(), valid)
    with pytest.raises(ValueError, match="mask"):
        partial_cross_entropy(p, mask)


@every_variant
def test_t1_constant_map_is_zero_and_uniform_logits_have_no_gradient(variant: Any) -> None:
    eps = VARIANTS[variant]
    constant = torch.tensor([0.2, 0.5, 0.3]).double()[None, :, None, None].expand(2, 3, 4, 5)
    assert tv(constant, variant=variant, eps=eps) == pytest.approx(0, abs=1e-12)
    uniform = torch.zeros(2, 3, 4, 5)
    assert tv(uniform.softmax(1), variant=variant, eps=eps) == pytest.approx(0, abs=1e-6)
    slope = gradient(lambda z: total_variation_sum(z.softmax(1), all_valid(z), variant=variant, eps=eps), uniform)
    assert torch.equal(slope, torch.zeros_like(slope))


def test_t2_two_halves() -> None:
    labels = torch.zeros(6, 8, dtype=torch.long)
    labels[:, 4:] = 1
    p = certain(labels)
    assert tv(p) == 12
    assert tv(p, variant="iso", eps=1e-9) == pytest.approx(12, abs=1e-6)
    assert float(total_variation(p, all_valid(p))) == 0.25
    narrow = certain(labels[:, 2:6])
    assert float(total_variation(narrow, all_valid(narrow))) == 0.5


def test_t3_square() -> None:
    labels = torch.zeros(8, 8, dtype=torch.long)
    labels[2:6, 2:6] = 1
    assert tv(certain(labels)) == 32
    assert tv(certain(labels), variant="iso", eps=1e-9) == pytest.approx(2 * (14 + math.sqrt(2)), abs=1e-6)


def test_t4_checkerboard() -> None:
    p = certain(torch.arange(4)[:, None].add(torch.arange(4)) % 2)
    assert tv(p) == 48
    assert float(total_variation(p, all_valid(p))) == 3


def test_t5_two_classes_are_twice_the_foreground() -> None:
    p = example(k=2)[0].softmax(1)
    assert tv(p) == pytest.approx(2 * tv(p[:, :1]), rel=1e-12)
    assert tv(p, variant="vector", eps=1e-12) == pytest.approx(
        2**0.5 * tv(p[:, :1], variant="iso", eps=1e-12), abs=1e-9
    )


@pytest.mark.parametrize("columns", [2, 4, 8])
def test_t6_sharp_and_soft_edges_cost_the_same(columns: int) -> None:
    ramp = torch.linspace(0, 1, columns, dtype=torch.float64).expand(1, 1, 3, columns)
    assert tv(ramp) == pytest.approx(3, rel=1e-12)


def test_t7_hand_gradients() -> None:
    peak = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    peak[0, 0, 2, 2] = 0.5
    expected = torch.zeros_like(peak)
    expected[0, 0, 2, 2] = 4
    for i, j in ((1, 2), (3, 2), (2, 1), (2, 3)):
        expected[0, 0, i, j] = -1
    assert torch.equal(gradient(lambda p: total_variation_sum(p, all_valid(p)), peak), expected)
    ramp = torch.linspace(0, 1, 6, dtype=torch.float64).reshape(1, 1, 1, 6)
    slope = gradient(lambda p: total_variation_sum(p, all_valid(p)), ramp)
    assert slope.flatten().tolist() == [-1, 0, 0, 0, 0, 1]


def test_t8_hand_gradients_through_softmax() -> None:
    logits = torch.tensor([[0.9, 0.5], [0.1, 0.5]]).double().log().reshape(1, 2, 1, 2)
    assert tv(logits.softmax(1)) == pytest.approx(0.8)
    slope = gradient(lambda z: total_variation_sum(z.softmax(1), all_valid(z)), logits)[0, :, 0]
    assert slope[:, 1].tolist() == pytest.approx([-0.5, 0.5])
    assert slope[:, 0].tolist() == pytest.approx([0.18, -0.18])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_t9_rounding(dtype: torch.dtype) -> None:
    constant = torch.full((1, 2, 4, 4), 0.5, dtype=dtype)
    for variant in VARIANTS:
        options: Any = {"variant": variant, "eps": 1e-3}
        assert tv(constant, **options) == pytest.approx(0, abs=1e-6)
        slope = gradient(lambda p, o=options: total_variation_sum(p, all_valid(p), **o), constant)
        assert torch.equal(slope, torch.zeros_like(slope))
    eps = 0.01
    for d in (0.0, 1e-4, eps, 0.3, 1.0):
        rounded = tv(channel([[0, d]]).to(dtype), eps=eps)
        assert -1e-7 <= d - rounded <= eps + 1e-7
    assert tv(channel([[0, eps]]).to(dtype), eps=eps) == pytest.approx(0.414214 * eps, rel=1e-4)


def test_t10_invariance_to_flips_and_turns() -> None:
    p = example()[0].softmax(1)
    for turned in (p.flip(2), p.flip(3), p.rot90(1, (2, 3)), p.rot90(2, (2, 3)), p.rot90(3, (2, 3))):
        assert tv(turned) == pytest.approx(tv(p), rel=1e-12)
    triangle = torch.ones(3, 3, dtype=torch.float64).tril()[None, None]
    for picture, iso in ((triangle, 4.0), (triangle.flip(3), 8**0.5), (triangle.flip(2), 2 + 2**0.5)):
        assert tv(picture) == 4
        assert tv(picture, variant="iso", eps=1e-9) == pytest.approx(iso, abs=1e-6)


@every_variant
def test_t11_invalid_pixels_change_nothing(variant: Any) -> None:
    logits, _, valid = example()
    p = logits.softmax(1)
    other = torch.where(valid[:, None], p, torch.rand_like(p))
    assert not torch.equal(p, other)

    def f(x: Tensor) -> Tensor:
        return total_variation(x, valid, variant=variant, eps=VARIANTS[variant])

    assert torch.equal(f(p), f(other))
    slope = gradient(f, p)
    assert torch.equal(slope, gradient(f, other))
    assert (slope.movedim(1, -1)[~valid] == 0).all()
    assert (slope.movedim(1, -1)[valid] != 0).any()


@every_variant
def test_t11_padding_an_image_changes_nothing(variant: Any) -> None:
    p = example()[0].softmax(1)
    padded = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    valid = torch.zeros(2, 9, 9, dtype=torch.bool)
    padded[:, :, 2:7, 1:7], valid[:, 2:7, 1:7] = p, True
    options: Any = {"variant": variant, "eps": VARIANTS[variant]}
    expected = total_variation(p, all_valid(p), **options)
    torch.testing.assert_close(total_variation(padded, valid, **options), expected)


def test_t13_pairs_of_hard_and_of_uniform_pixels() -> None:
    hard = certain(torch.tensor([[0, 2]]), k=3)
    uniform = torch.full((1, 3, 1, 2), 1 / 3, dtype=torch.float64)
    for p, absolute, squared in ((hard, 2, 2), (uniform, 0, 0)):
        assert tv(p) == pytest.approx(absolute, abs=1e-15)
        # The squared relaxation through `vector`: (R + eps)^2 - eps^2 = sum_k (a - b)^2.
        assert (tv(p, variant="vector", eps=0.5) + 0.5) ** 2 - 0.25 == pytest.approx(squared, abs=1e-12)


def test_hard_segmentations_count_unequal_pairs() -> None:
    _, _, valid = example()
    labels = torch.randint(3, (2, 5, 6), generator=torch.Generator().manual_seed(1))
    p = torch.cat([certain(y, 3) for y in labels])
    unequal = 0
    for n in range(2):
        for i in range(5):
            for j in range(6):
                for u, v in ((i + 1, j), (i, j + 1)):
                    if u < 5 and v < 6 and valid[n, i, j] and valid[n, u, v]:
                        unequal += int(labels[n, i, j] != labels[n, u, v])
    assert float(total_variation(p, valid)) == pytest.approx(2 * unequal / int(valid.sum()), rel=1e-12)


def test_pair_weights_multiply_the_pair_masks() -> None:
    p = example()[0].softmax(1)
    _, _, valid = example(seed=5)
    everywhere = torch.ones_like(valid)
    for variant, eps in VARIANTS.items():
        options: Any = {"variant": variant, "eps": eps}
        by_weight = total_variation_sum(p, everywhere, pair_weights=neighbour_pairs(valid), **options)
        torch.testing.assert_close(by_weight, total_variation_sum(p, valid, **options))
    tripled = total_variation(p, valid, pair_weights=(torch.tensor(3.0), torch.tensor(3.0)))
    torch.testing.assert_close(tripled, 3 * total_variation(p, valid))


# ---------------------------------------------------------------------------------------------- what all losses share


@every_loss
def test_gradcheck(loss: Loss) -> None:
    logits, mask, valid = example(b=2, h=3, w=4, seed=7)
    p = logits.softmax(1)
    steps = torch.cat([p.diff(dim=2).flatten(), p.diff(dim=3).flatten()]).abs()
    assert float(steps.min()) > 1e-4  # away from the kinks
    assert torch.autograd.gradcheck(lambda z: loss(z, mask, valid), (logits.clone().requires_grad_(),))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_labelled_nothing_valid_is_zero_with_zero_gradient(loss: Loss, dtype: torch.dtype) -> None:
    logits, mask, valid = example(dtype=dtype)
    nothing, unlabelled = torch.zeros_like(valid), torch.full_like(mask, 255)
    for y, v in ((mask, nothing), (unlabelled, nothing)):
        assert float(loss(logits, y, v)) == pytest.approx(0, abs=1e-6)
        slope = gradient(lambda z, y=y, v=v: loss(z, y, v), logits)
        assert torch.equal(slope, torch.zeros_like(slope))


def test_unlabelled_pixels_are_in_the_regulariser_and_not_in_the_cross_entropy() -> None:
    logits, mask, valid = example()
    unlabelled = torch.full_like(mask, 255)
    for name, loss in LOSSES.items():
        slope = gradient(lambda z, f=loss: f(z, unlabelled, valid), logits)
        assert bool((slope != 0).any()) == (name != "partial_cross_entropy")


@every_loss
def test_no_gradient_at_invalid_pixels(loss: Loss) -> None:
    logits, mask, valid = example()
    slope = gradient(lambda z: loss(z, mask, valid), logits).movedim(1, -1)
    assert (slope[~valid] == 0).all()
    assert (slope[valid] != 0).any()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_types_are_raised(loss: Loss, dtype: torch.dtype, autocast: bool) -> None:
    logits, mask, valid = example(b=4, h=40, w=40, dtype=dtype)
    logits = (20 * logits).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = loss(logits, mask, valid)
    (slope,) = torch.autograd.grad(value, logits)
    assert value.dtype == torch.float32
    assert slope.dtype == dtype
    assert torch.isfinite(value)
    assert torch.isfinite(slope).all()
    # Only the rounding of the probabilities to the half type may be seen, not sums in half precision.
    torch.testing.assert_close(value, loss(logits.double(), mask, valid).float(), rtol=5e-3, atol=0)


@every_loss
@pytest.mark.parametrize("autocast", [False, True])
def test_float64_stays(loss: Loss, autocast: bool) -> None:
    logits, mask, valid = example()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = loss(logits, mask, valid)
    assert value.dtype == torch.float64
    assert torch.equal(value, loss(logits, mask, valid))


@every_loss
def test_non_contiguous_arguments(loss: Loss) -> None:
    logits, mask, valid = example()
    strided = torch.stack([logits, logits + 1], -1)[..., 0]
    channels_last = logits.contiguous(memory_format=torch.channels_last)
    mask_t, valid_t = mask.mT.contiguous().mT, valid.mT.contiguous().mT
    expected = gradient(lambda z: loss(z, mask, valid), logits)
    for z in (strided, channels_last):
        assert not z.is_contiguous()
        assert not mask_t.is_contiguous()
        torch.testing.assert_close(loss(z, mask_t, valid_t), loss(logits, mask, valid))
        z = z.detach().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(loss(z, mask_t, valid_t), z)[0], expected)


@every_loss
def test_arguments_are_not_written_to(loss: Loss) -> None:
    arguments = example()
    copies = [x.clone() for x in arguments]
    logits, mask, valid = arguments
    logits.requires_grad_()
    loss(logits, mask, valid).backward()
    for x, copy in zip(arguments, copies, strict=True):
        assert torch.equal(x, copy)


def test_pair_weights_are_not_written_to() -> None:
    logits, _, valid = example()
    weights = contrast_weights(logits, valid)
    copies = [w.clone() for w in weights]
    total_variation(logits.softmax(1), valid, variant="iso", eps=1e-3, pair_weights=weights)
    assert all(torch.equal(w, c) for w, c in zip(weights, copies, strict=True))


def test_losses_compile_without_graph_breaks() -> None:
    logits, mask, valid = example()

    def f(z: Tensor) -> Tensor:
        weights = contrast_weights(z, valid)
        smooth = total_variation(z.softmax(1), valid, variant="iso", eps=1e-3, pair_weights=weights)
        return partial_cross_entropy(z, mask, valid) + smooth + total_variation(z.softmax(1), valid)

    compiled: Callable[[Tensor], Tensor] = torch.compile(f, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradient(compiled, logits), gradient(f, logits))


def test_all_sum_of_one_process_is_the_value_without_gradient() -> None:
    for value in (torch.tensor(7), torch.tensor([0.25, 1], dtype=torch.float64, requires_grad=True)):
        total = all_sum(value)
        assert torch.equal(total, value.detach())
        assert total.dtype == value.dtype
        assert not total.requires_grad


# ---------------------------------------------------------------------------------------------- two processes

TWO_RANKS = """
import sys
import torch
import torch.distributed as dist
from common.ops.distributed import all_sum
from common.ops.losses import partial_cross_entropy, total_variation

store, rank, data, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
for value in (torch.tensor(3 - rank), torch.tensor([0.5, rank], dtype=torch.float64, requires_grad=True)):
    copy = value.detach().clone()
    total = all_sum(value)
    assert total.tolist() == ([1.0, 1.0] if value.is_floating_point() else 5), total
    assert total.dtype == value.dtype
    assert not total.requires_grad
    assert torch.equal(value, copy)
results = []
for features, weight, mask, valid in torch.load(data):
    part = slice(2 * rank, 2 * rank + 2)
    mask, valid = mask[part], valid[part]
    for loss in (
        lambda z: partial_cross_entropy(z, mask, valid),
        lambda z: total_variation(z.softmax(1), valid),
        lambda z: total_variation(z.softmax(1), valid, variant="iso", eps=1e-3),
    ):
        w = weight.clone().requires_grad_()
        value = loss(torch.einsum("kc,bchw->bkhw", w, features[part]))
        value.backward()
        mean = torch.cat([value.detach().reshape(1), w.grad.flatten()])
        dist.all_reduce(mean)
        results.append(mean / 2)
if rank == 0:
    torch.save(results, out)
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_average_to_the_gradient_of_one(tmp_path: Path) -> None:
    cases = []
    for seed in range(3):
        features, mask, valid = example(b=4, k=3, h=6, w=7, seed=seed)
        weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        mask[:2, :, 1:] = 255  # rank 0 has few labels and little inside its images
        valid[:2, 4:] = False
        if seed == 1:
            mask[:2] = 255  # rank 0 has no label at all
        if seed == 2:
            mask[:], valid[2:] = 255, False  # no label anywhere, rank 1 holds padding only
        cases.append((features, weight, mask, valid))
    torch.save(cases, tmp_path / "data.pt")
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                TWO_RANKS,
                str(tmp_path / "store"),
                str(rank),
                *(str(tmp_path / n) for n in ("data.pt", "out.pt")),
            ],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        assert [rank.wait(timeout=100) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    averaged = iter(torch.load(tmp_path / "out.pt"))
    for features, weight, mask, valid in cases:
        losses: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda z, y=mask, v=valid: partial_cross_entropy(z, y, v),
            lambda z, v=valid: total_variation(z.softmax(1), v),
            lambda z, v=valid: total_variation(z.softmax(1), v, variant="iso", eps=1e-3),
        )
        for loss in losses:
            w = weight.clone().requires_grad_()
            value = loss(torch.einsum("kc,bchw->bkhw", w, features))
            value.backward()
            assert w.grad is not None
            expected = torch.cat([value.detach().reshape(1), w.grad.flatten()])
            torch.testing.assert_close(next(averaged), expected, rtol=1e-12, atol=1e-12)


# Tags --------------------------------------------------------------------------------------------------------------


def test_the_tag_loss_has_its_hand_values_and_leaves_images_out():
    logits, tags = torch.tensor([[0.0, 0.0], [2.0, -1.0], [9.0, 9.0]]), torch.tensor([[1, 0], [1, 0], [0, 0]]).bool()
    one, two = (tag_loss(logits[k : k + 1], tags[k : k + 1]).item() for k in (0, 1))
    assert (one, two) == pytest.approx((0.693147, 0.220095), abs=1e-6)
    assert tag_loss(logits, tags, torch.tensor([1, 1, 0])).item() == pytest.approx((one + two) / 2)
    logits.requires_grad_()
    loss = tag_loss(logits, tags, torch.zeros(3))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()
