"""Dense CRF, normalised cut, Gated CRF: T1 to T11 of their specification, hand values, slow formulas, invariances."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.affinity import Kernel, dense_kernel, positions, stack_modalities, window_kernel
from common.ops.batch import IGNORE
from common.ops.losses import partial_cross_entropy, total_variation_sum
from methods.regularized.losses import (
    clamp_seeds,
    crf,
    gated_crf,
    normalized_cut,
    potts,
    products,
)

HALF = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)


def matrix_kernel(matrix: Tensor) -> Kernel:
    """The kernel of a symmetric matrix (N, N) or (B, N, N)."""
    return lambda v: (v.flatten(2) @ matrix.to(v.dtype)).view_as(v)


def dense_matrix(features: Tensor, valid: Tensor) -> Tensor:
    """R W R (B, N, N), from the formula."""
    f, r = features.flatten(2).mT, valid.flatten(1).to(features.dtype)
    w = (-0.5 * (f[:, :, None] - f[:, None]).square().sum(3)).exp()
    return r[:, :, None] * w * r[:, None]


def example(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (2, 3, 4, 5), features (2, 5, 4, 5), a mask with few labels and a ragged valid plane."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(2, 3, 4, 5, generator=g, dtype=torch.float64).to(dtype)
    image = torch.rand(2, 3, 4, 5, generator=g, dtype=torch.float64).to(dtype)
    mask = torch.randint(0, 3, (2, 4, 5), generator=g)
    mask[torch.rand(mask.shape, generator=g) < 0.8] = IGNORE
    mask[0, 0, :3] = torch.arange(3)
    mask[1, mask[1] == 2] = 1  # a class that has no label
    valid = torch.rand(2, 4, 5, generator=g) < 0.85
    valid[0, :, -1], valid[0, 0, :3] = False, True
    return z, stack_modalities([(positions(image), 3.0), (255 * image, 100.0)]), mask, valid


def pair(first: list[float], second: list[float]) -> Tensor:
    """Two pixels of two classes, (1, 2, 1, 2)."""
    return torch.tensor([first, second], dtype=torch.float64).T[None, :, None]


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


def all_losses(features: Tensor, mask: Tensor, valid: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """The losses of logits, over the kernels that they are used with."""
    dense, window = dense_kernel(features, valid), window_kernel(features, valid, radius=2)
    return {
        "crf": lambda z: crf(z.softmax(1), dense),
        "crf window": lambda z: crf(z.softmax(1), window),
        "raw": lambda z: crf(z.softmax(1), dense, "raw"),
        "cut": lambda z: normalized_cut(z.softmax(1), dense),
        "clamped": lambda z: normalized_cut(z.softmax(1), dense, mask),
        "cut window": lambda z: normalized_cut(z.softmax(1), window, mask),
        "gated": lambda z: gated_crf(z.softmax(1), window, valid),
    }


LOSSES = sorted(all_losses(*example()[1:]))
every_loss = pytest.mark.parametrize("name", LOSSES)


def plain_crf(p: Tensor, w: Tensor) -> Tensor:
    """R_CRF by image as it stands, differentiable; W (B, N, N)."""
    s = p.flatten(2)
    return torch.einsum("bkn,bnm,bkm->b", s, w, 1 - s)


def plain_cut(p: Tensor, w: Tensor) -> Tensor:
    s = p.flatten(2)
    return (torch.einsum("bkn,bnm,bkm->bk", s, w, 1 - s) / torch.einsum("bnm,bkn->bk", w, s)).sum(1)


# ---------------------------------------------------------------------------------------------- hand values


@pytest.mark.parametrize(
    ("first", "second", "cost", "cut"),
    [([1.0, 0.0], [0.0, 1.0], 1.0, 2 / 3), ([1.0, 0.0], [1.0, 0.0], 0.0, 0.0), ([0.5, 0.5], [0.5, 0.5], 1.5, 1.0)],
)
def test_t1_two_pixels(first: list[float], second: list[float], cost: float, cut: float) -> None:
    p, kernel = pair(first, second), matrix_kernel(HALF)
    assert float(potts(p, kernel)[0]) == pytest.approx(cost, abs=1e-12)
    assert float(potts(p, kernel)[1]) == 3
    assert float(crf(p, kernel)) == pytest.approx(cost / 3, abs=1e-12)
    assert float(crf(p, kernel, "raw")) == pytest.approx(cost - 3, abs=1e-12)
    assert float(normalized_cut(p, kernel)) == pytest.approx(cut, abs=1e-5)


def test_t2_two_pixels_by_hand() -> None:
    z, kernel = pair([0.9, 0.1], [0.5, 0.5]).log(), matrix_kernel(HALF)
    assert float(potts(z.softmax(1), kernel)[0]) == pytest.approx(1.18, abs=1e-12)
    slope = gradient(lambda z: potts(z.softmax(1), kernel)[0].sum(), z)[0, :, 0]
    expected = torch.tensor([[-0.144, -0.2], [0.144, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-12)
    # In the window form the diagonal is left out.
    window, valid = matrix_kernel(HALF - torch.eye(2)), torch.ones(1, 1, 2, dtype=torch.bool)
    assert float(gated_crf(z.softmax(1), window, valid)) == pytest.approx(0.25, abs=1e-12)
    slope = gradient(lambda z: gated_crf(z.softmax(1), window, valid), z)[0, :, 0]
    expected = torch.tensor([[0.0, -0.1], [0.0, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-12)


def test_t6_uniform_and_constant_predictions() -> None:
    _, features, _, valid = example()
    for kernel in (dense_kernel(features, valid), window_kernel(features, valid, radius=2)):
        for classes in (2, 3, 21):
            uniform = torch.full((2, classes, 4, 5), 1 / classes, dtype=torch.float64)
            assert float(crf(uniform, kernel)) == pytest.approx(1 - 1 / classes, rel=1e-12)
            assert float(normalized_cut(uniform, kernel)) == pytest.approx(classes - 1, rel=1e-5)
        constant = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
        constant[:, 1] = 1
        assert float(crf(constant, kernel)) == pytest.approx(0, abs=1e-14)
        assert float(normalized_cut(constant, kernel)) == pytest.approx(0, abs=1e-14)


def test_t7_gated_loss_of_a_uniform_prediction() -> None:
    """Position window, r = 5 and sigma 6: 92.0086 (1 - 1/21) = 87.6273 inside, by pixel."""
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    uniform = torch.full((1, 21, 16, 16), 1 / 21, dtype=torch.float64)
    kernel = window_kernel(positions(uniform) / 6.0, valid, radius=5)
    agreement, degrees = products(uniform, kernel)
    by_pixel = (degrees - agreement.sum(1, keepdim=True))[0, 0]
    assert float(by_pixel[8, 8]) == pytest.approx(87.6273, abs=5e-5)
    assert float(by_pixel[0, 0]) == pytest.approx(27.3242 * 20 / 21, abs=5e-5)
    assert float(gated_crf(uniform, kernel, valid)) == pytest.approx(float(by_pixel.mean()), rel=1e-12)


def test_t8_a_constant_map_costs_nothing_to_the_border() -> None:
    """The official call without a mask adds 2.27 here."""
    for dtype in (torch.float32, torch.float64):
        constant = torch.zeros(1, 2, 32, 32, dtype=dtype)
        constant[:, 0] = 1
        valid = torch.ones(1, 32, 32, dtype=torch.bool)
        kernel = window_kernel(positions(constant) / 6.0, valid, radius=5)
        assert float(gated_crf(constant, kernel, valid)) == 0
    zero_padding = window_kernel(positions(torch.zeros(1, 1, 42, 42)) / 6.0, radius=5)(torch.ones(1, 1, 42, 42))
    lost = zero_padding[..., 5:-5, 5:-5] - kernel(torch.ones(1, 1, 32, 32))
    assert float(lost.mean()) > 2  # what a border of zeros would have cost


# ---------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("seed", range(2))
def test_losses_match_loops_written_from_the_formulas(seed: int) -> None:
    z, features, mask, valid = example(seed=seed)
    p = z.softmax(1)
    normal, raw, cut, gated, pixels = 0.0, 0.0, 0.0, 0.0, int(valid.sum())
    places = [(i, j) for i in range(4) for j in range(5)]
    for n in range(2):
        inside = [a for a in places if valid[n][a]]
        s = {a: [float(p[(n, k, *a)]) for k in range(3)] for a in inside}
        c = {a: [float(mask[n][a] == k) for k in range(3)] if mask[n][a] != 255 else s[a] for a in inside}
        w = {}
        for a in inside:
            for b in inside:
                square = sum(float(features[(n, d, *a)] - features[(n, d, *b)]) ** 2 for d in range(5))
                w[a, b] = math.exp(-square / 2)
        energy = sum(w[a, b] * s[a][k] * (1 - s[b][k]) for a, b in w for k in range(3))
        normal += energy / sum(w.values()) / 2
        raw -= sum(w[a, b] * s[a][k] * s[b][k] for a, b in w for k in range(3)) / 2
        for k in range(3):
            across = sum(w[a, b] * c[a][k] * (1 - c[b][k]) for a, b in w)
            volume = sum(w[a, b] * c[b][k] for a, b in w)
            cut += across / volume / 2
        for a, b in w:
            if a != b and max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= 2:
                gated += w[a, b] * (1 - sum(x * y for x, y in zip(s[a], s[b], strict=True))) / pixels
    losses = all_losses(features, mask, valid)
    expected = {"crf": normal, "raw": raw, "clamped": cut, "gated": gated}
    for name, value in expected.items():
        assert float(losses[name](z)) == pytest.approx(value, rel=1e-6 if name == "clamped" else 1e-11), name
    assert 0 < normal < 1
    assert raw < 0


def test_t3_the_constant_may_be_dropped() -> None:
    z, features, _, valid = example()
    for plane in (valid, torch.ones_like(valid)):
        w = dense_matrix(features, plane)
        kernel = dense_kernel(features, plane)
        whole = gradient(lambda z, w=w: plain_crf(z.softmax(1), w).sum(), z)
        for f in (
            lambda z, w=w: -torch.einsum("bkn,bnm,bkm->", z.softmax(1).flatten(2), w, z.softmax(1).flatten(2)),
            lambda z, k=kernel: potts(z.softmax(1), k)[0].sum(),
            lambda z, k=kernel: 2 * crf(z.softmax(1), k, "raw"),
        ):
            torch.testing.assert_close(gradient(f, z), whole, rtol=0, atol=1e-12)
        cost, mass = potts(z.softmax(1), kernel)
        torch.testing.assert_close(cost, plain_crf(z.softmax(1), w))
        torch.testing.assert_close(mass, w.sum((1, 2)))
        raw = crf(z.softmax(1), kernel, "raw")
        torch.testing.assert_close(cost.mean() - raw, w.sum((1, 2)).mean())


def test_t4_gradients_in_the_probabilities() -> None:
    z, features, _, valid = example()
    p, w = z.softmax(1), dense_matrix(features, valid)
    kernel = dense_kernel(features, valid)
    s, d = p.flatten(2), w.sum(2)
    a = s @ w
    crf_slope = gradient(lambda p: potts(p, kernel)[0].sum(), p).flatten(2)
    torch.testing.assert_close(crf_slope, -2 * a, rtol=1e-12, atol=1e-12)
    # eq. 12; the loss is the mean over two images
    assoc, volume = (s * a).sum(2, keepdim=True), (s * d[:, None]).sum(2, keepdim=True)
    expected = assoc / volume**2 * d[:, None] - 2 * a / volume
    slope = 2 * gradient(lambda p: normalized_cut(p, kernel), p).flatten(2)
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-8)  # eps of the denominator
    simplex = gradient(lambda z: plain_cut(z.softmax(1), w).mean(), z)
    torch.testing.assert_close(
        gradient(lambda z: normalized_cut(z.softmax(1), kernel), z), simplex, rtol=1e-5, atol=1e-8
    )
    association = (assoc / volume).sum() / 2
    assert float(normalized_cut(p, kernel) + association) == pytest.approx(3, abs=1e-5)


def test_t4_without_eps_to_twelve_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.regularized.losses.EPS", 0.0)
    z, features, _, valid = example()
    p, w, kernel = z.softmax(1), dense_matrix(features, valid), dense_kernel(features, valid)
    s, d = p.flatten(2), w.sum(2)[:, None]
    a, volume = s @ w, (s * d).sum(2, keepdim=True)
    expected = (s * a).sum(2, keepdim=True) / volume**2 * d - 2 * a / volume
    slope = 2 * gradient(lambda p: normalized_cut(p, kernel), p).flatten(2)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-12)
    association = ((s * a).sum(2, keepdim=True) / volume).sum() / 2
    assert float(normalized_cut(p, kernel) + association) == pytest.approx(3, abs=1e-12)


def test_t5_relaxations_of_potts_on_hard_labels() -> None:
    _, features, _, valid = example()
    labels = torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(2))
    p = F.one_hot(labels, 3).movedim(-1, 1).double()
    w, flat = dense_matrix(features, valid), labels.flatten(1)
    different = (w * (flat[:, :, None] != flat[:, None])).sum((1, 2))
    torch.testing.assert_close(potts(p, dense_kernel(features, valid))[0], different)
    s = p.flatten(2)
    gap = s[:, :, :, None] - s[:, :, None]
    for relaxed in (gap.square(), gap.abs()):
        torch.testing.assert_close((w[:, None] * relaxed).sum((1, 2, 3)), 2 * different)
    # Total variation counts each pair once, this energy in both orders: on a 4-neighbour kernel they are the same.
    plane = torch.ones(2, 4, 5, dtype=torch.bool)
    steps = (positions(p)[:, :, :, :, None, None] - positions(p)[:, :, None, None]).abs().sum(1)
    neighbours = (steps == 1).double().view(2, 20, 20)
    torch.testing.assert_close(potts(p, matrix_kernel(neighbours))[0].sum(), total_variation_sum(p, plane))


def test_t11_the_surrogate_has_the_value_and_the_gradient_of_the_form() -> None:
    z, features, _, valid = example()
    p, w, kernel = z.softmax(1), dense_matrix(features, valid), dense_kernel(features, valid)

    def form(p: Tensor) -> Tensor:
        return products(p, kernel)[0].sum((2, 3))

    s = p.flatten(2)
    torch.testing.assert_close(form(p), torch.einsum("bkn,bnm,bkm->bk", s, w, s))
    torch.testing.assert_close(gradient(lambda p: form(p).sum(), p).flatten(2), 2 * s @ w)
    calls = []
    crf(p.requires_grad_(), lambda v: calls.append(v) or kernel(v)).backward()
    assert len(calls) == 1  # one application for value and gradient


def test_seeds_are_clamped_to_their_labels_and_pass_no_gradient() -> None:
    z, features, mask, valid = example()
    p, kernel = z.softmax(1), dense_kernel(features, valid)
    clamped = clamp_seeds(p, mask)
    for n, i, j in (mask != IGNORE).nonzero().tolist():
        assert clamped[n, :, i, j].tolist() == [float(mask[n, i, j] == k) for k in range(3)]
    free = (mask == IGNORE)[:, None].expand_as(p)
    assert torch.equal(clamped[free], p[free])
    torch.testing.assert_close(normalized_cut(p, kernel, mask), normalized_cut(clamped, kernel))
    slope = gradient(lambda p: normalized_cut(p, kernel, mask), p)
    assert (slope[~free] == 0).all()
    assert (slope[free & valid[:, None]] != 0).all()
    none = torch.full_like(mask, IGNORE)
    torch.testing.assert_close(normalized_cut(p, kernel, none), normalized_cut(p, kernel))


# ---------------------------------------------------------------------------------------------- resolution, weights


@pytest.mark.parametrize(("mode", "sigma", "low", "high"), [("bilinear", 100.0, 16, 17.2), ("nearest", 4.0, 15.8, 16)])
def test_t10_the_raw_sum_grows_like_the_fourth_power_and_the_share_does_not(
    mode: str, sigma: float, low: float, high: float
) -> None:
    """Twice the size and twice sigma_xy: 16 times the sum, but for what interpolation and the pixel grid change."""
    g = torch.Generator().manual_seed(0)
    image, z = torch.rand(1, 3, 3, 3, generator=g), torch.randn(1, 3, 3, 3, generator=g)
    image, p = (F.interpolate(x.double(), (16, 16), mode="bilinear") for x in (image, z))
    p = p.softmax(1)
    raw, share = [], []
    for factor in (1, 2):
        i, q = (F.interpolate(x, scale_factor=factor, mode=mode) for x in (image, p))
        kernel = dense_kernel(stack_modalities([(positions(i), factor * sigma), (255 * i, 15.0)]))
        raw.append(float(potts(q, kernel)[0]))
        share.append(float(crf(q, kernel)))
    assert low < raw[1] / raw[0] < high
    assert share[1] == pytest.approx(share[0], rel=0.03)


def test_a_raw_weight_becomes_a_normalised_one() -> None:
    """weight = raw weight * 1'W1 * divisor of the cross entropy, as the method's page says."""
    z, features, _, valid = example()
    z, kernel = z[:1], dense_kernel(features[:1], valid[:1])
    mass, raw_weight, divisor = float(potts(z.softmax(1), kernel)[1]), 2e-3, 12
    raw = gradient(lambda z: divisor * raw_weight * crf(z.softmax(1), kernel, "raw"), z)
    ours = gradient(lambda z: raw_weight * mass * divisor * crf(z.softmax(1), kernel), z)
    torch.testing.assert_close(raw, ours)


# ---------------------------------------------------------------------------------------------- labels and padding


def test_t9_unlabelled_pixels_are_in_the_energy_and_padding_in_nothing() -> None:
    z, features, mask, valid = example()
    losses = all_losses(features, mask, valid)
    pce = partial_cross_entropy(z, mask, valid)
    free = (mask == IGNORE) & valid
    moved = torch.where(free[:, None], z.flip(1), z)
    assert torch.equal(partial_cross_entropy(moved, mask, valid), pce)
    for name, loss in losses.items():
        assert float(loss(moved)) != float(loss(z)), name
    spoiled = torch.where(valid[:, None], z, 7 * z.flip(1))
    other = all_losses(torch.where(valid[:, None], features, 5 * features), mask, valid)
    for name, loss in losses.items():
        torch.testing.assert_close(loss(spoiled), loss(z), rtol=1e-12, atol=0)
        torch.testing.assert_close(other[name](z), loss(z), rtol=1e-12, atol=0)
        slope = gradient(loss, z).movedim(1, -1)
        assert (slope[~valid] == 0).all(), name
        assert (slope[valid] != 0).any(), name


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_valid_is_zero_with_zero_gradient(name: str, dtype: torch.dtype) -> None:
    z, features, mask, valid = example(dtype)
    loss = all_losses(features, mask, torch.zeros_like(valid))[name]
    assert float(loss(z)) == 0
    assert torch.equal(gradient(loss, z), torch.zeros_like(z))


@every_loss
def test_an_image_of_padding_does_not_count(name: str) -> None:
    z, features, mask, valid = example()
    valid[1] = False
    both, alone = (all_losses(features[:n], mask[:n], valid[:n])[name](z[:n]) for n in (2, 1))
    torch.testing.assert_close(both, alone, rtol=1e-12, atol=0)


def test_absent_classes_and_no_label_at_all_are_finite() -> None:
    z, features, mask, valid = example(torch.float32)
    kernel = dense_kernel(features, valid)
    hard = 200 * F.one_hot(z.argmax(1), 3).movedim(-1, 1).float()
    hard[:, 2] = -200  # a class without any mass
    for z_ in (hard, torch.zeros_like(z)):
        for labels in (mask, torch.full_like(mask, IGNORE), torch.zeros_like(mask), None):
            for value in (normalized_cut(z_.softmax(1), kernel, labels), crf(z_.softmax(1), kernel)):
                assert torch.isfinite(value)
            slope = gradient(lambda z, y=labels: normalized_cut(z.softmax(1), kernel, y), z_)
            assert torch.isfinite(slope).all()
    everywhere = torch.zeros_like(mask)
    assert float(normalized_cut(z.softmax(1), kernel, everywhere)) == pytest.approx(0, abs=1e-5)


# ---------------------------------------------------------------------------------------------- gradients, precision


@every_loss
def test_gradcheck(name: str) -> None:
    z, features, mask, valid = example()
    loss = all_losses(features[..., :3], mask[..., :3], valid[..., :3])[name]
    assert torch.autograd.gradcheck(loss, (z[..., :3].clone().requires_grad_(),))


@every_loss
def test_permuting_classes_and_mirroring_change_nothing(name: str) -> None:
    z, features, mask, valid = example()
    value = all_losses(features, mask, valid)[name](z)
    mirrored = all_losses(features.flip(3), mask.flip(2), valid.flip(2))[name](z.flip(3))
    torch.testing.assert_close(mirrored, value)
    turned = torch.where(mask == IGNORE, mask, 2 - mask)
    torch.testing.assert_close(all_losses(features, turned, valid)[name](z.flip(1)), value)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_precision(name: str, dtype: torch.dtype) -> None:
    z, features, mask, valid = example(dtype)
    loss = all_losses(features, mask, valid)[name]
    z.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(z)
    (slope,) = torch.autograd.grad(value, z)
    exact = all_losses(features.double(), mask, valid)[name](z.detach().double())
    assert value.dtype == torch.float32
    assert torch.isfinite(slope).all()
    assert float(value.detach()) == pytest.approx(float(exact), rel=1e-5 if dtype == torch.float32 else 0.02)


@every_loss
def test_arguments_are_not_written_to_and_the_kernel_gets_no_gradient(name: str) -> None:
    z, features, mask, valid = example()
    features.requires_grad_()
    copies = [x.detach().clone() for x in (z, features, mask, valid)]
    z.requires_grad_()
    value = all_losses(features, mask, valid)[name](z)
    assert torch.autograd.grad(value, [z, features], allow_unused=True)[1] is None
    assert all(torch.equal(one, other) for one, other in zip(copies, (z, features, mask, valid), strict=True))


@every_loss
def test_two_ranks_average_to_the_loss_and_gradient_of_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    z, features, mask, valid = example()

    def parts(count: Callable[[int], Tensor]) -> Tensor:
        monkeypatch.setattr("common.ops.distributed.world_size", lambda: 2)
        found = []
        for mine, other in ((0, 1), (1, 0)):
            monkeypatch.setattr("torch.distributed.all_reduce", lambda n, o=other: n.add_(count(o)))
            one = slice(mine, mine + 1)
            loss = all_losses(features[one], mask[one], valid[one])[name]
            found.append(torch.cat([loss(z[one]).reshape(1), gradient(loss, z[one]).flatten()]))
        monkeypatch.undo()
        return torch.stack([(found[0][0] + found[1][0]) / 2, *(torch.cat([found[0][1:], found[1][1:]]) / 2)])

    for rank_without_pixels in (False, True):
        if rank_without_pixels:
            valid[1] = False
        loss = all_losses(features, mask, valid)[name]
        expected = torch.cat([loss(z).reshape(1), gradient(loss, z).flatten()])
        count = (lambda n: valid[n].sum()) if name == "gated" else (lambda n: valid[n].any())
        torch.testing.assert_close(parts(count), expected, rtol=1e-11, atol=1e-13)


def test_bad_arguments_are_refused() -> None:
    z, features, mask, valid = example()
    kernel = dense_kernel(features, valid)
    with pytest.raises(ValueError, match="reduction must be"):
        crf(z.softmax(1), kernel, "sum")
    with pytest.raises(ValueError, match="mask must be"):
        normalized_cut(z, kernel, mask[:, None])
    with pytest.raises(ValueError, match="valid must be"):
        gated_crf(z, kernel, valid[:, None])


# ---------------------------------------------------------------------------------------------- behaviour


@pytest.mark.parametrize("name", ["crf", "cut", "gated"])
def test_the_energy_spreads_strokes_over_regions_of_even_colour(name: str) -> None:
    """Free logits, two noisy regions, a stroke in each; cross entropy first, then the energy beside it."""
    g = torch.Generator().manual_seed(0)
    truth = (torch.arange(12) * 2 // 12).expand(1, 12, 12)
    image = 0.3 + 0.3 * truth[:, None].expand(1, 3, 12, 12) + 0.03 * torch.randn(1, 3, 12, 12, generator=g)
    mask = torch.full((1, 12, 12), IGNORE)
    mask[0, 3:6, 2], mask[0, 7:10, 9] = 0, 1
    valid = torch.ones(1, 12, 12, dtype=torch.bool)
    features = stack_modalities([(positions(image), 8.0), (255 * image, 25.0)])
    dense, window = dense_kernel(features, valid), window_kernel(features, valid, radius=5)
    energies: dict[str, Callable[[Tensor], Tensor]] = {
        "crf": lambda p: 4 * crf(p, dense),
        "cut": lambda p: 1.6 * normalized_cut(p, dense, mask),
        "gated": lambda p: 0.1 * gated_crf(p, window, valid),
    }
    start = 0.5 * torch.randn(1, 2, 12, 12, generator=g)
    accuracy = []
    for weight in (0.0, 1.0):
        z = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([z], lr=0.2)
        for step in range(60):
            loss = partial_cross_entropy(z, mask, valid)
            if weight and step >= 10:
                loss = loss + energies[name](z.softmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracy.append(float((z.argmax(1) == truth).double().mean()))
    assert accuracy[0] < 0.7
    assert accuracy[1] > 0.95
