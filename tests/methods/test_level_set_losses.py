"""The level-set loss: T1 to T11 of its specification, hand values and slow formulas, and the illumination field."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.losses import partial_cross_entropy, total_variation
from methods.level_set.losses import (
    closed_form_field,
    head_field,
    reduce,
    region_tones,
    region_variance,
    region_variance_sum,
    roughness_sum,
    unit_mean,
)


def example(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random logits (2, 4, 5, 6), image (2, 3, 5, 6), a ragged valid plane and a positive field (2, 1, 5, 6)."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(2, 4, 5, 6, generator=g, dtype=torch.float64).to(dtype)
    x = torch.rand(2, 3, 5, 6, generator=g, dtype=torch.float64).to(dtype)
    valid = torch.rand(2, 5, 6, generator=g) < 0.8
    valid[0, :, -1] = False
    return z, x, valid, (torch.rand(2, 1, 5, 6, generator=g, dtype=torch.float64) + 0.5).to(dtype)


def all_valid(y: Tensor) -> Tensor:
    return torch.ones(y.shape[0], *y.shape[2:], dtype=torch.bool)


def line(values: list[float]) -> Tensor:
    """One row of grey values as an image (1, 1, 1, W)."""
    return torch.tensor(values, dtype=torch.float64)[None, None, None]


def direct_sum(
    y: Tensor, x: Tensor, valid: Tensor, b: Tensor | None = None, eps: float = 0, *, attached: bool
) -> Tensor:
    """The formula as it stands, with its (B, N, C, H, W) tensor."""
    v, y, x = valid[:, None, None].to(y.dtype), y[:, :, None], x[:, None]
    b = torch.ones_like(x[:, :, :1]) if b is None else b[:, None]
    c = (v * b * x * y).sum((3, 4), keepdim=True) / ((v * b * b * y).sum((3, 4), keepdim=True) + eps)
    return (v * (x - b * (c if attached else c.detach())) ** 2 * y).sum()


def gradients(f: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    return torch.autograd.grad(f(*inputs), inputs)


# ---------------------------------------------------------------------------------------------- the data term


@pytest.mark.parametrize(
    ("first", "energy", "tones"), [(0.0, 0.0, (1, 0)), (0.5, 0.5, (0.5, 0.5)), (0.75, 0.375, (0.25, 0.75))]
)
def test_t1_two_pixels(first: float, energy: float, tones: tuple[float, float]) -> None:
    x, y = line([0, 1]), torch.tensor([[first, 1 - first], [1 - first, first]], dtype=torch.float64)[None, :, None]
    assert float(region_variance_sum(y, x, all_valid(y))) == pytest.approx(energy, abs=1e-5)
    assert float(region_variance_sum(y, x, all_valid(y), eps=0)) == pytest.approx(energy, abs=1e-15)
    assert region_tones(y, x, all_valid(y), eps=0).flatten().tolist() == pytest.approx(tones)


def test_t2_hard_split_and_an_empty_region() -> None:
    x, y = line([0, 0.1, 0.9, 1]), torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.float64)[None, :, None]
    assert float(region_variance_sum(y, x, all_valid(y))) == pytest.approx(0.01, abs=1e-6)
    empty = torch.tensor([[1.0] * 4, [0.0] * 4], dtype=torch.float64)[None, :, None]
    assert float(region_variance_sum(empty, x, all_valid(y))) == pytest.approx(0.82, abs=1e-6)
    assert region_tones(empty, x, all_valid(y))[0, 1].item() == pytest.approx(0.5)  # that of the image
    assert math.isnan(float(region_variance_sum(empty, x, all_valid(y), eps=0)))
    (slope,) = gradients(lambda y: region_variance_sum(y, x, all_valid(y)), empty)
    assert slope[0, 1, 0].tolist() == pytest.approx([0.25, 0.16, 0.16, 0.25], abs=1e-6)  # it can grow again


def test_t3_variance_decomposition() -> None:
    z, x, _, _ = example()
    y, valid = z.softmax(1), all_valid(z)
    mu, c, area = x.mean((2, 3)), region_tones(y, x, valid, eps=0), y.sum((2, 3))
    total = (x - mu[..., None, None]).square().sum()
    between = (area[..., None] * (c - mu[:, None]).square()).sum()
    within = region_variance_sum(y, x, valid, eps=0)
    assert float(total) == pytest.approx(float(within + between), rel=1e-12)
    assert 0 < float(within) < float(total)
    uniform = torch.full_like(y, 0.25)
    assert float(region_variance_sum(uniform, x, valid, eps=0)) == pytest.approx(float(total), rel=1e-12)


def test_on_hard_regions_it_is_the_k_means_objective() -> None:
    _, x, valid, _ = example()
    labels = torch.randint(4, (2, 5, 6), generator=torch.Generator().manual_seed(1))
    expected = 0.0
    for b in range(2):
        for n in range(4):
            points = x[b].movedim(0, -1)[(labels[b] == n) & valid[b]]
            expected += float((points - points.mean(0)).square().sum()) if len(points) else 0
    value = region_variance_sum(F.one_hot(labels, 4).movedim(-1, 1).double(), x, valid)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_t4_invariances() -> None:
    z, x, valid, _ = example()
    y = z.softmax(1)

    def f(y: Tensor, x: Tensor, **how) -> float:
        return float(region_variance_sum(y, x, valid, **how))

    value = f(y, x)
    assert f(y, x + torch.tensor([5.0, 0, -1])[:, None, None]) == pytest.approx(value, rel=1e-11)
    assert f(y, 2 * x) == pytest.approx(4 * value, rel=1e-12)
    assert f(y.flip(1), x) == pytest.approx(value, rel=1e-12)
    grey = x[:, :1]
    assert f(y, grey.expand(-1, 3, -1, -1)) == pytest.approx(3 * f(y, grey), rel=1e-12)
    assert f(y, x, channel_reduce="mean") == pytest.approx(value / 3, rel=1e-12)
    assert f(y, grey.expand(-1, 3, -1, -1), channel_reduce="mean") == pytest.approx(f(y, grey), rel=1e-12)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("lit", [False, True])
def test_t5_t10_value_and_gradients_are_those_of_the_direct_form_with_tones_attached_or_not(
    seed: int, lit: bool
) -> None:
    z, x, valid, field = example(seed=seed)
    inputs = (z, field) if lit else (z,)

    def loss(z: Tensor, b: Tensor | None = None) -> Tensor:
        return region_variance_sum(z.softmax(1), x, valid, bias=b, eps=0)

    found = gradients(loss, *inputs)
    for attached in (False, True):

        def direct(z: Tensor, b: Tensor | None = None, attached: bool = attached) -> Tensor:
            return direct_sum(z.softmax(1), x, valid, b, attached=attached)

        assert float(loss(*inputs)) == pytest.approx(float(direct(*inputs)), rel=1e-12)
        for one, other in zip(found, gradients(direct, *inputs), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
            assert one.abs().max() > 0.01


def test_t5_the_gradient_is_the_squared_residual() -> None:
    z, x, valid, _ = example()
    y = z.softmax(1)
    c = region_tones(y, x, valid)
    (slope,) = gradients(lambda y: region_variance_sum(y, x, valid), y)
    expected = (x[:, None] - c[..., None, None]).square().sum(2) * valid[:, None]
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-12)


def test_t6_uniform_logits_are_a_saddle() -> None:
    z, x, valid, _ = example()
    (slope,) = gradients(lambda z: region_variance(z.softmax(1), x, valid), torch.zeros_like(z))
    assert slope.abs().max() < 1e-15


@pytest.mark.parametrize("lit", [False, True])
def test_gradcheck(lit: bool) -> None:
    # Finite differences move the tones too, and still agree: these are the minimisers.
    z, x, valid, field = example()
    inputs = [t.clone().requires_grad_() for t in ((z, field) if lit else (z,))]
    assert torch.autograd.gradcheck(
        lambda z, b=None: region_variance(z.softmax(1), x, valid, bias=b, eps=0), inputs, rtol=1e-5
    )


def test_t9_reductions_and_masked_pixels() -> None:
    z, x, valid, field = example()
    for b in (None, field):

        def f(z: Tensor, x: Tensor = x, b: Tensor | None = b, **how) -> Tensor:
            return region_variance(z.softmax(1), x, valid, bias=b, **how)

        count = int(valid.sum())
        assert 0 < count < valid.numel()
        assert float(f(z, reduction="sum")) == pytest.approx(count * float(f(z)), rel=1e-12)
        assert float(f(z, reduction="sum")) == float(region_variance_sum(z.softmax(1), x, valid, bias=b))
        inside = valid[:, None]
        other_z, other_x = z.where(inside, torch.tensor(9.0)), x.where(inside, torch.tensor(0.0))
        other_b = None if b is None else b.where(inside, torch.tensor(3.0))
        assert float(f(z)) == float(f(other_z, other_x, other_b))
        assert torch.equal(
            region_tones(z.softmax(1), x, valid, b), region_tones(other_z.softmax(1), other_x, valid, other_b)
        )
        (slope,) = gradients(f, z)
        assert (slope.movedim(1, -1)[~valid] == 0).all()
        assert (slope.movedim(1, -1)[valid] != 0).any()


def test_nothing_valid_is_zero_with_zero_gradient() -> None:
    z, x, valid, field = example(torch.float32)
    nothing = torch.zeros_like(valid)

    def f(z: Tensor, h: Tensor) -> Tensor:
        b = head_field(h, nothing)
        return region_variance(z.softmax(1), x, nothing, bias=b) + reduce(roughness_sum(b, nothing), nothing, "mean")

    assert float(f(z, field)) == 0
    for slope in gradients(f, z, field):
        assert torch.equal(slope, torch.zeros_like(slope))
    assert torch.isfinite(closed_form_field(z.softmax(1), x, nothing)).all()
    nobody = valid.clone()
    nobody[1] = False  # one image of two is all padding
    alone = region_variance(z[:1].softmax(1), x[:1], valid[:1])
    torch.testing.assert_close(region_variance(z.softmax(1), x, nobody), alone)


def test_t10_single_precision_at_a_low_contrast() -> None:
    for side in (64, 512):
        x = torch.full((1, 1, side, side), 0.5)
        x[..., side // 2 :] += 0.01
        z = torch.randn(1, 2, side, side, generator=torch.Generator().manual_seed(0))
        z[:, 1, :, side // 2 :] += 2
        y = z.softmax(1)
        for b in (None, torch.linspace(0.9, 1.1, side).expand(1, 1, side, side)):
            lit = x if b is None else x * b
            exact = direct_sum(
                y.double(), lit.double(), all_valid(y), None if b is None else b.double(), attached=False
            )
            assert float(region_variance_sum(y, lit, all_valid(y), bias=b)) == pytest.approx(float(exact), rel=1e-4)


@pytest.mark.parametrize(("mean", "lit"), [(0.0, False), (0.0, True), (1000.0, False)])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_single_precision_where_regions_are_nearly_even(mean: float, lit: bool, noise: float) -> None:
    """Their variance is a millionth of the image's, and a difference of sums of squares would be noise around 0."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (2, 64, 64), generator=g)
    x = mean + torch.rand(3, 3, generator=g)[labels].movedim(-1, 1)
    x = x + noise * torch.randn(2, 3, 64, 64, generator=g)
    y = F.one_hot(labels, 3).movedim(-1, 1).float()
    b = torch.linspace(0.99, 1.01, 64).expand(2, 1, 64, 64) if lit else torch.ones(2, 1, 64, 64)
    x = b * x
    exact = direct_sum(y.double(), x.double(), all_valid(y), b.double(), attached=False)
    found = float(region_variance_sum(y, x, all_valid(y), bias=b if lit else None))
    assert found >= 0
    assert found == pytest.approx(float(exact), rel=1e-3, abs=1e-11 * x.numel())
    (slope,) = gradients(lambda y: region_variance_sum(y, x, all_valid(y), bias=b), y)
    assert (slope >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_precision(dtype: torch.dtype, autocast: bool) -> None:
    z, x, valid, field = example(dtype)
    raised = torch.float64 if dtype == torch.float64 else torch.float32
    y, x, field = z.to(raised).softmax(1).to(dtype).requires_grad_(), x.to(raised), field.to(raised)
    for b in (None, field):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            value = region_variance(y, x, valid, bias=b)
            closed = closed_form_field(y, x, valid)
        (slope,) = torch.autograd.grad(value, y)
        assert value.dtype == closed.dtype == raised
        assert torch.isfinite(slope).all()
        torch.testing.assert_close(value, region_variance(y.to(raised), x, valid, bias=b), rtol=1e-6, atol=0)
        torch.testing.assert_close(closed, closed_form_field(y.to(raised), x, valid), rtol=1e-6, atol=0)


def test_memory_formats_and_no_mutation() -> None:
    z, x, valid, field = example()
    y = z.softmax(1)
    strided = y.contiguous(memory_format=torch.channels_last)
    copies = [t.clone() for t in (y, x, valid, field)]
    torch.testing.assert_close(
        region_variance(strided, x.contiguous(memory_format=torch.channels_last), valid, bias=field),
        region_variance(y, x, valid, bias=field),
    )
    closed_form_field(y, x, valid)
    roughness_sum(field, valid)
    assert all(torch.equal(one, other) for one, other in zip(copies, (y, x, valid, field), strict=True))


def test_no_gradient_into_the_image() -> None:
    z, x, valid, _ = example()
    x.requires_grad_()
    value = region_variance(z.requires_grad_().softmax(1), x, valid)
    assert torch.autograd.grad(value, [z, x], allow_unused=True)[1] is None


def test_pixels_are_counted_over_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    z, x, valid, _ = example()
    whole = {r: region_variance(z.softmax(1), x, valid, reduction=r) for r in ("mean", "sum")}
    monkeypatch.setattr("common.ops.distributed.world_size", lambda: 2)
    assert int(valid[0].sum()) != int(valid[1].sum())
    for reduction in ("mean", "sum"):
        parts = []
        for mine, other in ((0, 1), (1, 0)):
            elsewhere = valid[other].sum() if reduction == "mean" else 0
            monkeypatch.setattr("torch.distributed.all_reduce", lambda count, n=elsewhere: count.add_(n))
            one = slice(mine, mine + 1)
            parts.append(region_variance(z[one].softmax(1), x[one], valid[one], reduction=reduction))
        torch.testing.assert_close(sum(parts) / 2, whole[reduction])


def test_bad_arguments_are_refused() -> None:
    z, x, valid, field = example()
    for how in ({"channel_reduce": "max"}, {"reduction": "max"}):
        with pytest.raises(ValueError, match=next(iter(how))):
            region_variance(z, x, valid, **how)
    for planes in ((z, x, valid[:, None]), (z, x[..., 1:], valid), (z[..., 1:], x, valid)):
        with pytest.raises(ValueError, match="valid must be"):
            region_variance(*planes)
    for f in (head_field, roughness_sum):
        with pytest.raises(ValueError, match="valid must be"):
            f(field, valid[:, 1:])


# ---------------------------------------------------------------------------------------------- cross entropy


@pytest.mark.parametrize(("classes", "floor"), [(2, 0.3133), (4, 0.7437), (21, 2.1232)])
def test_t8_cross_entropy_wants_logits(classes: int, floor: float) -> None:
    truth = torch.randint(classes, (1, 6, 6), generator=torch.Generator().manual_seed(0))
    perfect = 100.0 * F.one_hot(truth, classes).movedim(-1, 1)
    assert float(partial_cross_entropy(perfect, truth)) == 0
    assert float(partial_cross_entropy(perfect.softmax(1), truth)) == pytest.approx(floor, abs=5e-5)
    assert floor == pytest.approx(-1 + math.log(math.e + classes - 1), abs=5e-5)


# ---------------------------------------------------------------------------------------------- the field


def ramp_example() -> tuple[Tensor, Tensor, Tensor]:
    """y, x and the true field of T7: tones .2 and .8 in the upper and the lower half, light rising over the columns."""
    b = torch.linspace(0.5, 1.5, 16, dtype=torch.float64).expand(1, 1, 16, 16)
    y = torch.zeros(1, 2, 16, 16, dtype=torch.float64)
    y[:, 0, :8], y[:, 1, 8:] = 1, 1
    return y, b * (0.2 * y[:, :1] + 0.8 * y[:, 1:]), b


def test_t7_a_lit_image() -> None:
    y, x, b = ramp_example()
    valid = all_valid(y)
    assert float(region_variance(y, x, valid)) == pytest.approx(0.0321111, abs=5e-8)
    assert float(region_variance(y, x, valid, bias=b, eps=0)) == pytest.approx(0, abs=1e-15)
    assert region_tones(y, x, valid, b, eps=0).flatten().tolist() == pytest.approx([0.2, 0.8], rel=1e-13)
    _, other, _, field = example()
    other = other[:1, :, :, :5].repeat(1, 1, 4, 4)[:, :, :16, :16]
    field = field[:1, :, :, :5].repeat(1, 1, 4, 4)[:, :, :16, :16]
    once, twice = (region_variance(y, other, valid, bias=s * field, eps=0) for s in (1, 2))
    assert float(once) == pytest.approx(float(twice), rel=1e-12)
    torch.testing.assert_close(
        region_tones(y, other, valid, field, eps=0), 2 * region_tones(y, other, valid, 2 * field, eps=0)
    )
    ones = torch.ones_like(b)
    assert float(region_variance(y, x, valid, bias=ones)) == pytest.approx(
        float(region_variance(y, x, valid)), rel=1e-12
    )


def test_t7_the_closed_form_without_blur_is_the_minimiser() -> None:
    z, x, valid, _ = example()
    y = z.softmax(1)
    for sweeps in (1, 2, 50):
        b = closed_form_field(y, x, valid, sweeps=sweeps, sigma=0)
        # The field belongs to the tones of the sweep before; after many sweeps both have settled.
        (slope,) = gradients(lambda b: region_variance_sum(y, x, valid, bias=b, eps=0), b)
        if sweeps == 50:
            assert slope.abs().max() < 1e-6
            assert gradients(lambda b: region_variance_sum(y, x, valid, bias=b, eps=0), b * b)[0].abs().max() > 0.01


def test_the_closed_form_matches_its_formula() -> None:
    z, x, valid, _ = example()
    y, sigma = z.softmax(1), 1.3
    radius = math.ceil(3 * sigma)
    b = torch.ones(2, 5, 6, dtype=torch.float64)
    for _ in range(2):
        c = region_tones(y, x, valid, b[:, None])
        new = torch.ones_like(b)
        for n in range(2):
            for i in range(5):
                for j in range(6):
                    above = below = 0.0
                    for u in range(max(0, i - radius), min(5, i + radius + 1)):
                        for w in range(max(0, j - radius), min(6, j + radius + 1)):
                            if valid[n, u, w]:
                                g = math.exp(-((u - i) ** 2 + (w - j) ** 2) / (2 * sigma**2))
                                above += g * float((c[n] * x[n, :, u, w] * y[n, :, u, w, None]).sum())
                                below += g * float((c[n].square() * y[n, :, u, w, None]).sum())
                    new[n, i, j] = above / below
        b = new
    expected = unit_mean(b[:, None], valid)
    torch.testing.assert_close(closed_form_field(y, x, valid, sigma=sigma), expected, rtol=1e-6, atol=0)


def test_fields_have_mean_one_over_valid_pixels() -> None:
    z, x, valid, _ = example()
    for field in (head_field(3 * z[:, :1], valid), closed_form_field(z.softmax(1), x, valid)):
        means = (field * valid[:, None]).sum((1, 2, 3)) / valid.sum((1, 2))
        assert means.tolist() == pytest.approx([1, 1], rel=1e-12)
        assert field.std() > 0.01
    assert float(head_field(1e3 * z[:, :1], valid).min()) >= 0.25
    assert float(head_field(1e3 * z[:, :1], valid).max()) <= 4
    torch.testing.assert_close(head_field(torch.full_like(z[:, :1], 0.7), valid), torch.ones_like(z[:, :1]))
    black = torch.zeros_like(x)
    torch.testing.assert_close(closed_form_field(z.softmax(1), black, valid), torch.ones_like(z[:, :1]))


def test_roughness_by_hand() -> None:
    field = torch.tensor([[1.0, 3.0], [2.0, 9.0]])[None, None]
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    assert float(roughness_sum(field, valid)) == 1 + 36 + 4 + 49
    valid[0, 1, 1] = False
    assert float(roughness_sum(field, valid)) == 1 + 4


# ---------------------------------------------------------------------------------------------- behaviour


def disc(side: int, radius: float, batch: int) -> Tensor:
    at = torch.arange(side) - (side - 1) / 2
    return (at[:, None].square() + at.square() <= radius**2).expand(batch, side, side)


def accuracy(labels: Tensor, truth: Tensor) -> Tensor:
    """Of two phases after matching, per image."""
    same = (labels == truth).double().mean((1, 2))
    return torch.maximum(same, 1 - same)


def split(x: Tensor, length_weight: float, steps: int, lit: str = "none") -> tuple[Tensor, Tensor]:
    """Labels of free logits after Adam, and the field."""
    z = torch.randn(len(x), 2, *x.shape[2:], generator=torch.Generator().manual_seed(0)).requires_grad_()
    h = torch.zeros(len(x), 1, 5, 5, requires_grad=True)  # a coarse grid, in place of a network's smooth output
    valid = all_valid(x)
    optimizer = torch.optim.Adam([z, h], lr=0.1)
    field = torch.ones_like(x)
    for _ in range(steps):
        y = z.softmax(1)
        loss = length_weight * total_variation(y, valid)
        if lit == "head":
            field = head_field(F.interpolate(h, x.shape[2:], mode="bilinear", align_corners=True), valid)
            loss = loss + reduce(roughness_sum(field, valid), valid, "mean")
        elif lit == "closed_form":
            field = closed_form_field(y.detach(), x, valid)
        loss = loss + region_variance(y, x, valid, bias=field)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return z.argmax(1), field.detach()


def test_t11_two_phases_of_a_noisy_disc() -> None:
    truth = disc(32, 9, 3)
    noise = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    x = (0.3 + 0.4 * truth[:, None] + 0.15 * noise).clamp(0, 1)
    found = {weight: accuracy(split(x, weight, 300)[0], truth) for weight in (0.0, 0.01)}
    assert (found[0.01] > 0.93).all()
    assert (found[0.01] - found[0.0] > 0.03).all()
    assert ((found[0.0] > 0.8) & (found[0.0] < 0.92)).all()


@pytest.fixture(scope="module")
def lit_disc() -> tuple[Tensor, Tensor, Tensor]:
    """Image, truth and field: the light changes as much over the image as the tones differ."""
    truth = disc(32, 9, 1)
    at = torch.linspace(-1, 1, 32)
    field = unit_mean((0.45 * at[:, None] + 0.3 * at).exp()[None, None], torch.ones(1, 32, 32, dtype=torch.bool))
    return field * (0.35 + 0.3 * truth[:, None]), truth, field


def test_the_closed_form_recovers_the_field_of_known_regions(lit_disc: tuple[Tensor, Tensor, Tensor]) -> None:
    x, truth, field = lit_disc
    y = torch.stack([~truth, truth], 1).float()
    found = closed_form_field(y, x, all_valid(y), sweeps=10, sigma=2)
    assert ((found / field - 1).abs()).mean() < 0.03
    assert ((1 / field - 1).abs()).mean() > 0.2
    assert float(region_variance(y, x, all_valid(y), bias=found)) < 0.02 * float(region_variance(y, x, all_valid(y)))


@pytest.mark.parametrize("lit", ["head", "closed_form"])
def test_with_a_field_free_logits_find_the_disc_and_the_light(
    lit: str, lit_disc: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, truth, field = lit_disc
    labels, found = split(x, 3e-3, 150, lit)
    assert float(accuracy(labels, truth)) > 0.92
    assert (found / field - 1).abs().mean() < 0.12
    assert (1 / field - 1).abs().mean() > 0.25
    assert float(accuracy(split(x, 3e-3, 150)[0], truth)) < 0.85  # without a field it parts bright from dark
