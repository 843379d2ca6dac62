"""The multiphase level-set (Mumford-Shah) loss of Kim & Ye 2019 (arXiv 1904.02872), in the form of its official code.

The softmax y of a network plays the characteristic functions of the regions: region n explains the image x by one tone
c_n, and its boundary should be short. The boundary's length is `common.ops.losses.total_variation` (aniso); here are
the data term, and a smooth illumination field b for images whose tones drift [ours].

Shapes: B images of H x W pixels, N regions, C channels (3 of an RGB image in [0, 1], or any others).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from common.ops.distributed import global_mean
from common.ops.losses import neighbour_pairs
from common.ops.tensors import at_least_fp32, check_plane

EPS = 1e-6  # in the denominator of a tone, in pixels [ours]; the official code has none, and NaN for an empty region


def reduce(total: Tensor, valid: Tensor, reduction: Literal["mean", "sum"]) -> Tensor:
    """A sum over pixels -> its mean over the valid pixels of the global batch [ours], or the plain sum [code].

    Raises:
        ValueError: unknown `reduction`.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be mean or sum, got {reduction!r}")
    count = valid.sum()
    # A count of zero divides by nothing: the sum over the batches of all processes.
    return global_mean(total, count if reduction == "mean" else torch.zeros_like(count))


def _centred(y: Tensor, image: Tensor, valid: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """`x' = x - b m` (B, C, H, W) and b (B, 1, H, W), both zero at padding, as is all that is made of them; and the
    image's own tones `m = sum v b x / sum v b^2` (B, C, 1, 1), a constant.

    Shifting x by b m shifts a tone by m and changes no residual; the digits of x' are those of the contrast.
    """
    check_plane("valid", valid, y)
    check_plane("valid", valid, image)
    v = valid[:, None].to(y.dtype)
    x = image.detach().to(y.dtype)
    b = v if bias is None else bias.to(y.dtype) * v
    plane, weight = (2, 3), b.detach()
    mean = (weight * x).sum(plane, keepdim=True) / weight.square().sum(plane, keepdim=True).clamp(min=EPS)
    return x * v - b * mean, b, mean


@torch.no_grad()
def _shifted_tones(y: Tensor, x: Tensor, b: Tensor, eps: float) -> Tensor:
    """Tones (B, C, N) of the centred image."""
    with torch.autocast(y.device.type, enabled=False):  # it would take the products in half precision
        sums = torch.cat([b.square(), b * x], 1).flatten(2) @ y.flatten(2).mT
    return sums[:, 1:] / (sums[:, :1] + eps)


@torch.no_grad()
def region_tones(y: Tensor, image: Tensor, valid: Tensor, bias: Tensor | None = None, eps: float = EPS) -> Tensor:
    """Mean of each region: `c = sum v b x y / sum v b^2 y`, the minimiser of the data term; constant, (B, N, C).

    Arguments as for `region_variance_sum`. A region without a pixel has the tones of the whole image.
    """
    y = at_least_fp32(y)
    x, b, mean = _centred(y, image, valid, bias)
    return (mean.flatten(2) + _shifted_tones(y, x, b, eps)).mT


def region_variance_sum(
    y: Tensor,
    image: Tensor,
    valid: Tensor,
    *,
    bias: Tensor | None = None,
    channel_reduce: Literal["sum", "mean"] = "sum",
    eps: float = EPS,
) -> Tensor:
    """The sum that `region_variance` divides by the number of valid pixels; same arguments and errors."""
    if channel_reduce not in ("sum", "mean"):
        raise ValueError(f"channel_reduce must be sum or mean, got {channel_reduce!r}")
    y = at_least_fp32(y)
    x, b, _ = _centred(y, image, valid, bias)
    # Residuals, not `|c|^2 A - 2 c S + Q` from three sums: those cancel where regions are even, and fall below 0. One
    # channel after the other, without a (B, N, C, H, W) tensor.
    squared = torch.zeros_like(y)
    for channel, tones in zip(x.split(1, 1), _shifted_tones(y, x, b, eps).unbind(1), strict=True):
        squared = squared + (channel - b * tones[..., None, None]).square()
    total = (squared * y).sum()
    return total / image.shape[1] if channel_reduce == "mean" else total


def region_variance(
    y: Tensor,
    image: Tensor,
    valid: Tensor,
    *,
    bias: Tensor | None = None,
    channel_reduce: Literal["sum", "mean"] = "sum",
    reduction: Literal["mean", "sum"] = "mean",
    eps: float = EPS,
) -> Tensor:
    """Data term: `sum_{b,n,i,r} v (x_i - b c_{n,i})^2 y_n`, by default over the number of valid pixels.

    The sum is the official code's; its mean over pixels and the field b are [ours]. The tones c are the minimisers
    (`region_tones`) and are constants: the gradient is the same as through them.

    Args:
        y: (B, N, H, W) floating, probabilities.
        image: (B, C, H, W) floating, any unit; colours in [0, 1] give the paper's constants. No gradient flows there.
        valid: (B, H, W) bool, False = padding, which is in no tone and in no sum.
        bias: (B, 1, H, W) positive field b that multiplies the tones; None: 1 everywhere. It gets a gradient.
        channel_reduce: `sum` over the channels [code], or their `mean` [ours]: independent of their number.
        reduction: see `reduce`.
        eps: in pixels, added to a region's area.

    Returns:
        Scalar, squared unit of the image. It lies between 0 and the variance of the images. Without a valid pixel:
        zero with zero gradient.

    Raises:
        ValueError: unknown `channel_reduce` or `reduction`; `valid` does not have the shape of the planes of `y` and
            `image`.
    """
    return reduce(
        region_variance_sum(y, image, valid, bias=bias, channel_reduce=channel_reduce, eps=eps), valid, reduction
    )


def unit_mean(field: Tensor, valid: Tensor) -> Tensor:
    """A positive field (B, 1, H, W) over its mean over each image's pixels that are valid (B, H, W): the scale is free,
    since `(s b, c / s)` explains an image as `(b, c)` does."""
    v = valid[:, None].to(field.dtype)
    plane = (2, 3)
    mean = (field * v).sum(plane, keepdim=True) / v.sum(plane, keepdim=True).clamp(min=1)
    return field / mean.clamp(min=EPS)


def head_field(h: Tensor, valid: Tensor) -> Tensor:
    """What a network's channel h says of the illumination: `b = exp(log 2 tanh h)` over its mean [ours].

    Args:
        h: (B, 1, H, W) floating, unbounded.
        valid: (B, H, W) bool, False = padding.

    Returns:
        (B, 1, H, W), from 1/4 to 4 and 1 on the average of an image's valid pixels; 1 everywhere for a constant h.
    """
    check_plane("valid", valid, h)
    return unit_mean((math.log(2) * at_least_fp32(h).tanh()).exp(), valid)


@torch.no_grad()
def closed_form_field(
    y: Tensor, image: Tensor, valid: Tensor, *, sweeps: int = 2, sigma: float | None = None
) -> Tensor:
    """Illumination that explains the image by the regions' tones, smoothed; no network, no gradient [ours].

    Alternates the tones c (`region_tones`) and `b = G * (sum_{n,i} c_{n,i} x_i y_n) / G * (sum_{n,i} c_{n,i}^2 y_n)`,
    from b = 1; G is a Gaussian blur. Without it, b is each pixel's minimiser of the data term.

    Args:
        y: (B, N, H, W) floating, probabilities.
        image: (B, C, H, W) floating, not negative.
        valid: (B, H, W) bool, False = padding, which tells its neighbours nothing.
        sweeps: how often.
        sigma: of the blur, in pixels; 0: none; None: an eighth of the shorter side.

    Returns:
        Constant (B, 1, H, W), 1 on the average of an image's valid pixels, and 1 where nothing is known (all black).

    Raises:
        ValueError: `valid` does not have the shape of the planes of `y` and `image`.
    """
    y = at_least_fp32(y)
    x, v = image.to(y.dtype), valid[:, None].to(y.dtype)
    sigma = min(y.shape[-2:]) / 8 if sigma is None else sigma
    width = 2 * math.ceil(3 * sigma) + 1
    field = torch.ones_like(v)
    with torch.autocast(y.device.type, enabled=False):
        for _ in range(sweeps):
            c = region_tones(y, x, valid, field)
            explained = torch.einsum("bnc,bnhw->bchw", c, y)
            squared = torch.einsum("bn,bnhw->bhw", c.square().sum(-1), y)[:, None]
            ratio = torch.cat([(explained * x).sum(1, keepdim=True), squared], 1) * v
            if sigma > 0:  # zeros beyond the border are blurred into both, and so into neither
                ratio = gaussian_blur2d(ratio, (width, width), (sigma, sigma), "constant")
            above, below = ratio.split(1, 1)
            field = torch.where(below > EPS, above / below.clamp(min=EPS), torch.ones_like(below))
    return unit_mean(field, valid)


def roughness_sum(field: Tensor, valid: Tensor) -> Tensor:
    """`sum (D_y b)^2 + (D_x b)^2` over the pairs of neighbours that are valid [ours].

    Args:
        field: (B, 1, H, W) floating.
        valid: (B, H, W) bool.
    """
    check_plane("valid", valid, field)
    m_y, m_x = neighbour_pairs(valid)
    d_y, d_x = field[:, :, 1:] - field[:, :, :-1], field[..., 1:] - field[..., :-1]
    return (d_y.square() * m_y).sum() + (d_x.square() * m_x).sum()
