"""Losses that two or more papers use. Tensors in, a scalar out; no state, and no argument is written to.

Shapes: B images of H x W pixels, K (or C) classes. Every loss is normalised by `common.ops.distributed.global_mean`, so
its gradient is the same on one process and on many. Half types are raised to float32 and float64 stays. No operation
here is one that autocast lowers, so that is enough under autocast too.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.ops.batch import IGNORE
from common.ops.distributed import all_sum, global_mean, joined
from common.ops.tensors import at_least_fp32, check_plane

Confidence = Literal["batch", "pixel", "none"]
Variation = Literal["aniso", "iso", "vector"]


def partial_cross_entropy(
    logits: Tensor, mask: Tensor, valid: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Cross entropy over the labelled pixels: `sum -log p_y / max(1, number of labelled pixels)`, natural logarithm.

    With class weights the mean is weighted, as torch's is: `sum -w_y log p_y / sum w_y`.

        pce = partial_cross_entropy(self.network(labeled["image"]), labeled["mask"], labeled["valid"])

    Args:
        logits: (B, K, H, W) floating; the probabilities are `softmax(logits, 1)`.
        mask: (B, H, W) int64, class id or 255 = no label.
        valid: (B, H, W) bool, False = padding, left out whatever its label; None = all valid.
        weight: (K,) of the classes, not negative, one at least positive; only their ratios count. None: all equal.

    Returns:
        Scalar in nats per labelled pixel of the global batch. Without a labelled pixel (of a class with a weight): zero
        with zero gradient.
    """
    check_plane("mask", mask, logits)
    if valid is not None:
        check_plane("valid", valid, logits)
        mask = mask.masked_fill(~valid, IGNORE)
    logits, counted = at_least_fp32(logits), mask != IGNORE
    if weight is None:
        total = F.cross_entropy(logits, mask, ignore_index=IGNORE, reduction="sum")
        return global_mean(total, counted.sum())
    weight = weight.to(logits)
    weight = weight / weight.masked_fill(weight <= 0, torch.inf).min()  # so that one pixel's weight is 1 or more
    total = F.cross_entropy(logits, mask, weight, ignore_index=IGNORE, reduction="sum")
    return global_mean(total, (weight[mask.masked_fill(~counted, 0)] * counted).sum())


def tag_loss(logits: Tensor, tags: Tensor, weight: Tensor | None = None) -> Tensor:
    """Multilabel soft margin: binary cross entropy of `sigmoid(logits)` and the tags, the mean over images and classes.

        loss = tag_loss(image_logits(activations), labeled["tags"][:, 1:])

    Args:
        logits: (B, C) of the objects.
        tags: (B, C) bool; an image without any is a negative of all classes.
        weight: (B,) 1 or 0, which images count; None: all.

    Returns:
        Scalar in nats; without an image that counts zero with zero gradient.
    """
    logits = at_least_fp32(logits)
    losses = F.binary_cross_entropy_with_logits(logits, tags.to(logits.dtype), reduction="none").mean(1)
    weight = torch.ones_like(losses) if weight is None else weight.to(losses)
    return global_mean((losses * weight).sum(), weight.sum())


@torch.no_grad()
def hard_pixels(logits: Tensor, mask: Tensor, threshold: float, kept: int) -> Tensor:
    """Online hard example mining: the mask without the labels of pixels that are right with confidence.

        pce = partial_cross_entropy(logits, hard_pixels(logits, mask, threshold=0.7, kept=200_000))

    The `ProbOhemCrossEntropy2d` of the codes of CPS (arXiv 2106.01226) and UniMatch (2208.09910): of the labelled
    pixels those stay whose probability of the label is at most t, with t = max(threshold, the `kept`-th lowest of these
    probabilities); all stay where there are fewer than `kept`. Ours: the `kept`-th lowest is that of the global batch,
    where those codes take that of a device's part.

    Args:
        logits: (B, K, H, W) floating.
        mask: (B, H, W) int64, class id or 255; padding must have 255.
        threshold: probability of the label, above which a pixel is easy.
        kept: labelled pixels of the global batch that stay at least.

    Returns:
        (B, H, W) int64, the mask with 255 at easy pixels.
    """
    check_plane("mask", mask, logits)
    labelled = mask != IGNORE
    right = at_least_fp32(logits).softmax(1).gather(1, mask.masked_fill(~labelled, 0)[:, None])[:, 0]
    known = right[labelled]
    lowest = known.topk(min(kept, len(known)), largest=False, sorted=False).values
    lowest = joined(F.pad(lowest, (0, kept - len(lowest)), value=torch.inf))  # infinite: fewer than `kept`
    limit = lowest.kthvalue(kept).values.clamp(min=threshold)
    return mask.masked_fill(right > limit, IGNORE)


def pixel_consistency(
    logits: Tensor,
    target: Tensor,
    valid: Tensor,
    confidence: Confidence = "batch",
    threshold: float = 0.97,
    seen: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Squared error of a student's probabilities, summed over classes, averaged over pixels.

        consistency, share = pixel_consistency(self.network(mixed), target, valid)

    The loss of CutMix-Seg (French et al., BMVC 2020, arXiv 1906.01916, code Britefury/cutmix-semisup-seg):
    `L = c * sum_px v s sum_k (softmax(logits) - target)^2 / sum_px v`, with v = 1 on valid pixels and s = 1 where the
    student saw the image. A pixel is confident if the target's highest probability reaches `threshold`: `batch` takes
    c = the share of confident pixels (the code's default), `pixel` counts the error of confident pixels only, with
    c = 1, `none` all with c = 1. Ours: shares and means are over the *valid* pixels; the code multiplies the error by
    its padding mask and takes the mean over all.

    Args:
        logits: (B, K, H, W), the student's.
        target: (B, K, H, W), the teacher's probabilities; no gradient flows into them.
        valid: (B, H, W) bool, False = padding.
        confidence: see above.
        threshold: probability, see above.
        seen: (B, H, W) bool, for cutout: the error counts where the student was shown the image. Share and mean are
            over all valid pixels, seen or not, as in the code: a small box weighs little. None: it saw everything.

    Returns:
        The loss in [0, 2] (zero without a valid pixel), and the share of confident pixels; both of the global batch.

    Raises:
        ValueError: `valid` or `seen` does not have the shape of the logits' plane.
    """
    check_plane("valid", valid, logits)
    target = at_least_fp32(target.detach())
    sure = (target.amax(1) >= threshold) & valid
    counted = sure if confidence == "pixel" else valid
    if seen is not None:
        check_plane("seen", seen, logits)
        counted = counted & seen
    error = (at_least_fp32(logits).softmax(1) - target).square().sum(1)
    share = all_sum(sure.sum()) / all_sum(valid.sum()).clamp(min=1)
    mean = global_mean((error * counted).sum(), valid.sum())
    return (share * mean if confidence == "batch" else mean), share


def neighbour_pairs(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs of 4-neighbours lie inside the image: the product of `valid` (B, H, W) at both ends, as float32
    (m_y, m_x): (B, 1, H-1, W) for pairs (i, j), (i+1, j); (B, 1, H, W-1) for (i, j), (i, j+1)."""
    m_y = valid[:, 1:] & valid[:, :-1]
    m_x = valid[:, :, 1:] & valid[:, :, :-1]
    return m_y[:, None].float(), m_x[:, None].float()


@torch.no_grad()
def contrast_weights(image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of neighbour pairs that are small across image edges: `exp(-|dI|^2 / s^2)`, `s^2 = 2 mean |dI|^2`.

    `|dI|^2` is summed over channels; the mean is per image, over the valid pairs of both directions, so the weights do
    not depend on the image's scale or contrast. The formula is the contrast-sensitive Potts weight of graph cuts.

    Args:
        image: (B, C, H, W) floating, true colours (not normalised, not jittered), any unit.
        valid: (B, H, W) bool.

    Returns:
        Constant (w_y, w_x) in (0, 1], shaped as `neighbour_pairs`. Ones in a constant image and at pairs that are not
        valid.
    """
    check_plane("valid", valid, image)
    image = at_least_fp32(image)
    m_y, m_x = neighbour_pairs(valid)
    d_y = (image[:, :, 1:] - image[:, :, :-1]).square().sum(1, keepdim=True) * m_y
    d_x = (image[..., 1:] - image[..., :-1]).square().sum(1, keepdim=True) * m_x
    plane = (1, 2, 3)
    pairs = m_y.sum(plane, keepdim=True) + m_x.sum(plane, keepdim=True)
    s2 = 2 * (d_y.sum(plane, keepdim=True) + d_x.sum(plane, keepdim=True)) / pairs.clamp(min=1)
    s2 = s2.clamp(min=torch.finfo(s2.dtype).tiny)  # a constant image: exp(-0 / tiny) = 1
    return (-d_y / s2).exp(), (-d_x / s2).exp()


def _differences(p: Tensor) -> tuple[Tensor, Tensor]:
    """Forward differences (B, C, H-1, W) and (B, C, H, W-1)."""
    return p[:, :, 1:] - p[:, :, :-1], p[..., 1:] - p[..., :-1]


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Classes are summed before masking: the masks are the same for all of them."""
    return (values.sum(1, keepdim=True) * mask).sum()


class _L1OfGradient(torch.autograd.Function):
    """`sum m_y |D_y p| + m_x |D_x p|`. Autograd's own backward pass fills and adds a plane for each of the four views
    of p, and takes twice the time."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, m_y: Tensor, m_x: Tensor) -> Tensor:
        d_y, d_x = _differences(p)
        ctx.save_for_backward(d_y, d_x, m_y, m_x)
        return _masked_sum(d_y.abs(), m_y) + _masked_sum(d_x.abs(), m_x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        d_y, d_x, m_y, m_x = ctx.saved_tensors
        s_y, s_x = d_y.sign().mul_(outer * m_y), d_x.sign().mul_(outer * m_x)
        gradient = F.pad(s_x, (1, 0))
        gradient[..., :-1] -= s_x
        gradient[:, :, 1:] += s_y
        gradient[:, :, :-1] -= s_y
        return gradient, None, None


def total_variation_sum(
    p: Tensor,
    valid: Tensor,
    *,
    variant: Variation = "aniso",
    eps: float = 0.0,
    pair_weights: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The sum that `total_variation` divides by the number of valid pixels; same arguments and errors."""
    check_plane("valid", valid, p)
    if variant not in ("aniso", "iso", "vector"):
        raise ValueError(f"variant must be aniso, iso or vector, got {variant!r}")
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    if variant != "aniso" and eps == 0:
        raise ValueError(
            f"variant {variant} needs eps > 0 (try 1e-3): its square root has no gradient at 0; or use aniso"
        )
    if eps > 0 and eps**2 < torch.finfo(torch.float32).tiny:
        raise ValueError(f"eps {eps} squared is 0 in float32, where the square root has no gradient: try 1e-3")
    p = at_least_fp32(p)
    m_y, m_x = neighbour_pairs(valid)
    if pair_weights is not None:
        m_y, m_x = m_y * pair_weights[0], m_x * pair_weights[1]
    if variant == "aniso" and eps == 0:
        return cast(Tensor, _L1OfGradient.apply(p, m_y, m_x))
    d_y, d_x = _differences(p)

    def charbonnier(squared: Tensor) -> Tensor:
        return (squared + eps**2).sqrt() - eps

    if variant == "aniso":
        return _masked_sum(charbonnier(d_y.square()), m_y) + _masked_sum(charbonnier(d_x.square()), m_x)
    s_y, s_x = d_y.square(), d_x.square()
    if variant == "vector":
        s_y, s_x = s_y.sum(1, keepdim=True), s_x.sum(1, keepdim=True)
    s_y, s_x = s_y * m_y, s_x * m_x
    # The last row has no D_y and the last column no D_x: three regions instead of two padded copies. The corner pixel
    # has neither and would add sqrt(eps^2) - eps = 0.
    inner = charbonnier(s_y[..., :-1] + s_x[:, :, :-1])
    return inner.sum() + charbonnier(s_y[..., -1:]).sum() + charbonnier(s_x[:, :, -1:]).sum()


def total_variation(
    p: Tensor,
    valid: Tensor,
    *,
    variant: Variation = "aniso",
    eps: float = 0.0,
    pair_weights: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Total variation of the probability image: sum over classes, mean over the valid pixels of the global batch.

    With forward differences D_y, D_x, pair masks m_y, m_x and `phi(d) = sqrt(d^2 + eps^2) - eps` (`|d|` for eps = 0):

    - `aniso`: `sum_{b,k,i,j} m_y phi(D_y p) + m_x phi(D_x p)`, the L1 norm of the gradient;
    - `iso`: `sum_{b,k,i,j} sqrt(m_y D_y^2 + m_x D_x^2 + eps^2) - eps`;
    - `vector`: `sum_{b,i,j} sqrt(sum_k (m_y D_y^2 + m_x D_x^2) + eps^2) - eps`.

    Javanmardi et al. 2016 (arXiv 1605.01368) penalise "the L1 norm of the gradient" of the probabilities, read here as
    `aniso`; the other two, `eps` and `pair_weights` are this project's.

    Args:
        p: (B, C, H, W) floating, probabilities (not logits: those are unbounded).
        valid: (B, H, W) bool, False = padding: a pair with an invalid end counts for nothing.
        variant: see above. The gradient of `|d|` at 0 is 0.
        eps: rounding of the kink, in units of probability.
        pair_weights: (w_y, w_x), multiplied into m_y, m_x and shaped like them: (B, 1, H-1, W) and (B, 1, H, W-1).

    Returns:
        Scalar, probability per pixel; `aniso` lies in [0, 4]. Without a valid pixel: zero with zero gradient.
    """
    total = total_variation_sum(p, valid, variant=variant, eps=eps, pair_weights=pair_weights)
    return global_mean(total, valid.sum())
