"""`pixel_consistency` of common/ops/losses.py against hand values and a slow reference (two processes: see
tests/methods/test_scl_losses.py)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from common.ops.losses import pixel_consistency


def planes(seed: int = 0, k: int = 3, h: int = 5, w: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, a teacher's probabilities, and valid pixels; two images."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, k, h, w, generator=g, dtype=torch.float64)
    target = (3 * torch.randn(2, k, h, w, generator=g, dtype=torch.float64)).softmax(1)
    return logits, target, torch.rand(2, h, w, generator=g) < 0.8


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


def reference_consistency(
    logits: Tensor, target: Tensor, valid: Tensor, confidence: str, threshold: float, seen: Tensor | None = None
) -> tuple[float, float]:
    total, sure, count = 0.0, 0, 0
    for n, i, j in itertools.product(*map(range, valid.shape)):
        if not valid[n, i, j]:
            continue
        z, p = logits[n, :, i, j].tolist(), target[n, :, i, j].tolist()
        q = [math.exp(one) / sum(map(math.exp, z)) for one in z]
        confident = max(p) >= threshold
        count, sure = count + 1, sure + confident
        if (confident or confidence != "pixel") and (seen is None or seen[n, i, j]):
            total += sum((a - b) ** 2 for a, b in zip(q, p, strict=True))
    share = sure / max(1, count)
    return (share if confidence == "batch" else 1) * total / max(1, count), share


@pytest.mark.parametrize("confidence", ["batch", "pixel", "none"])
@pytest.mark.parametrize("threshold", [0.0, 0.8, 1.0])
def test_consistency_matches_the_formula(confidence: Any, threshold: float) -> None:
    logits, target, valid = planes()
    expected, share = reference_consistency(logits, target, valid, confidence, threshold)
    value, found = pixel_consistency(logits, target, valid, confidence, threshold)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    assert float(found) == pytest.approx(share, rel=1e-6)
    if threshold == 0.8:
        assert 0.2 < share < 0.8
        assert expected > 0.05


@pytest.mark.parametrize("confidence", ["batch", "pixel", "none"])
def test_cutout_averages_over_all_pixels_those_that_the_student_did_not_see_too(confidence: Any) -> None:
    """Without padding, the code's `(error * box * confident).mean()`."""
    logits, target, valid = planes()
    seen = torch.zeros_like(valid)
    seen[0, 1:4, 2:5] = True
    seen[1, :2] = True
    expected, share = reference_consistency(logits, target, valid, confidence, 0.8, seen)
    value, found = pixel_consistency(logits, target, valid, confidence, 0.8, seen)
    assert [float(value), float(found)] == pytest.approx([expected, share], rel=1e-6)
    slope = gradient(lambda z: pixel_consistency(z, target, valid, confidence, 0.8, seen)[0], logits).movedim(1, -1)
    assert (slope[~(seen & valid)] == 0).all()
    assert (slope[seen & valid] != 0).any()

    everywhere = torch.ones_like(valid)
    error = (logits.softmax(1) - target).square().sum(1, keepdim=True)
    sure = (target.amax(1, keepdim=True) >= 0.8).double()
    factor = {"batch": sure.mean(), "pixel": sure, "none": 1.0}[confidence]
    code = (error * (seen[:, None] * factor)).mean()
    assert float(pixel_consistency(logits, target, everywhere, confidence, 0.8, seen)[0]) == pytest.approx(float(code))
    with pytest.raises(ValueError, match="seen must be"):
        pixel_consistency(logits, target, valid, confidence, 0.8, seen[:, None])


def test_consistency_by_hand() -> None:
    """Squared error summed over classes: 2 where the student is sure of a wrong class, whatever their number."""
    for classes in (2, 5):
        target = torch.zeros(1, classes, 1, 4)
        target[:, 0] = 1
        logits = torch.zeros(1, classes, 1, 4)
        logits[:, 1, :, :2], logits[:, 0, :, 2:] = 100, 100  # wrong in two of four pixels
        valid = torch.ones(1, 1, 4, dtype=torch.bool)
        assert [float(one) for one in pixel_consistency(logits, target, valid)] == pytest.approx([1, 1])
        valid[..., 3] = False
        assert float(pixel_consistency(logits, target, valid)[0]) == pytest.approx(4 / 3)
    # exactly the threshold is enough, and the share of confident pixels scales or the doubtful ones are left out
    target = torch.tensor([0.75, 0.25])[None, :, None, None].expand(1, 2, 1, 2).clone()
    target[..., 1] = 0.5
    logits, valid = torch.zeros(1, 2, 1, 2), torch.ones(1, 1, 2, dtype=torch.bool)
    errors = [2 * 0.25**2, 0.0]
    for confidence, expected in (("none", sum(errors) / 2), ("batch", sum(errors) / 4), ("pixel", errors[0] / 2)):
        value, share = pixel_consistency(logits, target, valid, confidence, 0.75)
        assert [float(value), float(share)] == pytest.approx([expected, 0.5])


@pytest.mark.parametrize("confidence", ["batch", "pixel", "none"])
def test_consistency_gradients(confidence: Any) -> None:
    logits, target, valid = planes(1, h=3, w=3)
    target.requires_grad_()

    def f(z: Tensor) -> Tensor:
        return pixel_consistency(z, target, valid, confidence, 0.8)[0]

    assert torch.autograd.gradcheck(f, (logits.clone().requires_grad_(),))
    z = logits.clone().requires_grad_()
    value, share = pixel_consistency(z, target, valid, confidence, 0.8)
    value.backward()
    assert target.grad is None
    assert not share.requires_grad
    slope = z.grad.movedim(1, -1)
    assert (slope[~valid] == 0).all()
    assert (slope[valid] != 0).any()
    if confidence == "pixel":
        assert (slope[target.amax(1) < 0.8] == 0).all()
    nothing = torch.zeros_like(valid)
    assert [float(one) for one in pixel_consistency(logits, target, nothing, confidence)] == [0, 0]
    empty = gradient(lambda x: pixel_consistency(x, target, nothing, confidence)[0], logits)
    assert torch.equal(empty, torch.zeros_like(empty))


def test_consistency_refuses_another_plane() -> None:
    logits, target, valid = planes()
    with pytest.raises(ValueError, match="valid"):
        pixel_consistency(logits, target, valid[:, None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_types_are_raised(dtype: torch.dtype, autocast: bool) -> None:
    logits, target, valid = planes(5, h=40, w=40)
    z, p = (10 * logits).to(dtype).requires_grad_(), target.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value, _ = pixel_consistency(z, p, valid, "pixel")
    exact, _ = pixel_consistency(z.detach().double(), p.double(), valid, "pixel")
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.detach(), exact.float(), rtol=1e-5, atol=0)
    (slope,) = torch.autograd.grad(value, z)
    assert torch.isfinite(slope).all()
    assert slope.abs().max() > 0
