"""Gaussian kernels between pixels over position, colour and other features, and sums with them, without the matrix.

A kernel here is the symmetric map `v -> R W R v` with `W_ij = exp(-|f_i - f_j|^2 / 2)` and R = 1 on valid pixels, 0 on
padding. The features f are any maps, each divided by its sigma and concatenated (`stack_modalities`). Three forms:

| form | pairs | time | memory |
|---|---|---|---|
| `dense_kernel` | all, a pixel with itself included | N^2 | N |
| `window_kernel` | those in a window, a pixel with itself excluded | N (2 radius + 1)^2 | N |
| `position_kernel` | all, itself included, by position only: two small products | N (H + W) | N |

A kernel is constant: gradient flows through the values it is applied to, never into features. Half types are raised to
float32 and float64 stays, with autocast off. Shapes: B images of H x W = N pixels, C channels of values, D of features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.ops.tensors import at_least_fp32, check_plane

Kernel = Callable[[Tensor], Tensor]
"""(B, C, H, W) values -> (B, C, H, W), the sum of the values over all pixels, weighted by the kernel."""

CHUNK = 2**22  # entries of the matrix that `chunked_sum` holds at a time


def positions(like: Tensor) -> Tensor:
    """Pixel coordinates (y, x) of maps (B, C, H, W): (B, 2, H, W), in pixels."""
    batch, _, height, width = like.shape
    y, x = (torch.arange(n, dtype=at_least_fp32(like).dtype, device=like.device) for n in (height, width))
    return torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(batch, -1, -1, -1)


def stack_modalities(modalities: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Features of a kernel: each map divided by its sigma, concatenated.

    Args:
        modalities: (map, sigma) pairs: maps (B, D_m, H, W) of one size, sigma in the unit of its map. So
            `positions(image)` takes a sigma in pixels, an image in [0, 1] one in [0, 1], `255 * image` grey levels.

    Returns:
        (B, sum D_m, H, W) constant, float32 or float64; the maps are not written to.
    """
    if not modalities or not all(math.isfinite(sigma) and sigma > 0 for _, sigma in modalities):
        raise ValueError(f"a kernel needs modalities with positive sigmas, got {[sigma for _, sigma in modalities]}")
    return torch.cat([at_least_fp32(values.detach()) / sigma for values, sigma in modalities], 1)


@torch.no_grad()
def gaussian_sum(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`out_i = sum_j exp(-|q_i - k_j|^2 / 2) v_j`, not normalised, without gradient.

    float32 on CPU and CUDA is one call of attention [ours], elsewhere and for float64 `chunked_sum`. Its error relative
    to float64 is about 1e-7 (10 + max |f|^2), f being the features less their mean: 3e-6 for usual sigmas, and too much
    for a sigma of a few pixels in a large image (`position_kernel` has no such limit).

    Shapes: queries (B, N, D), keys (B, M, D), values (B, M, C) and the result (B, N, C).
    """
    centre = keys.mean(1, keepdim=True)
    queries, keys = queries - centre, keys - centre
    exact = values.dtype == torch.float64 or values.device.type not in ("cpu", "cuda")
    with torch.autocast(values.device.type, enabled=False):
        return chunked_sum(queries, keys, values) if exact else attention_sum(queries, keys, values)


def attention_sum(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`gaussian_sum` of centred features as softmax attention, whose kernels never hold the matrix.

    With logits `q.k - |k|^2/2` the softmax is the Gaussian kernel over its row sum. One more key, the sink, has the
    logit `|q|^2/2` and a value of 1 in a channel of its own: that channel is `exp(|q|^2/2)` over the same row sum, so
    dividing by it undoes the normalisation.
    """
    half_q, half_k = (0.5 * f.square().sum(2, keepdim=True) for f in (queries, keys))
    query = torch.cat([queries, torch.ones_like(half_q), half_q], 2)
    key = torch.cat([keys, -half_k, torch.zeros_like(half_k)], 2)
    value = torch.cat([values, torch.zeros_like(values[..., :1])], 2)
    # Of one width, a multiple of 8: otherwise PyTorch falls back to the form that holds the matrix.
    width = -(-max(query.shape[2], value.shape[2]) // 8) * 8
    sink = torch.zeros(2, len(keys), 1, width, dtype=values.dtype, device=values.device)
    sink[0, :, :, query.shape[2] - 1] = 1
    sink[1, :, :, value.shape[2] - 1] = 1
    query, key, value = (F.pad(one, (0, width - one.shape[2])) for one in (query, key, value))
    key, value = torch.cat([key, sink[0]], 1), torch.cat([value, sink[1]], 1)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        out = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0)[:, 0]
    channels = values.shape[2]
    return out[..., :channels] / out[..., channels : channels + 1]


def chunked_sum(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`gaussian_sum` by rows of the matrix, a few at a time."""
    rows = max(1, CHUNK // (len(keys) * keys.shape[1]))
    mode = "donot_use_mm_for_euclid_dist"
    parts = [torch.cdist(q, keys, compute_mode=mode).square().mul(-0.5).exp() @ values for q in queries.split(rows, 1)]
    return torch.cat(parts, 1)


class _Symmetric(torch.autograd.Function):
    """A symmetric linear map, given without gradient: its backward is itself."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kernel: Kernel) -> Tensor:
        ctx.kernel = kernel
        with torch.autocast(values.device.type, enabled=False):
            return kernel(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Symmetric.apply(gradients[0], ctx.kernel), None


def _between_valid(plain: Kernel, valid: Tensor | None) -> Kernel:
    """`R W R` from W, for values of any float type, with its gradient."""

    def inside(values: Tensor) -> Tensor:
        if valid is None:
            return plain(values)
        check_plane("valid", valid, values)
        padding = ~valid[:, None]
        return plain(values.masked_fill(padding, 0)).masked_fill(padding, 0)

    return lambda values: cast(Tensor, _Symmetric.apply(at_least_fp32(values), inside))


def _without_padding(features: Tensor, valid: Tensor | None) -> Tensor:
    """Features whose padding holds the mean of what is valid, so that nothing there can matter."""
    if valid is None:
        return features
    check_plane("valid", valid, features)
    padding = ~valid[:, None]
    count = valid[:, None].sum((2, 3), keepdim=True).clamp(min=1)
    return torch.where(padding, features.masked_fill(padding, 0).sum((2, 3), keepdim=True) / count, features)


def dense_kernel(features: Tensor, valid: Tensor | None = None) -> Kernel:
    """The kernel over all pairs of pixels, each with itself included, by `gaussian_sum` (which states its error).

    The values of `R W R` are those of the dense-CRF loss code of Tang et al. 2018: not row-normalised, the region of
    interest applied to the values and to the result [code].

    Args:
        features: (B, D, H, W), see `stack_modalities`.
        valid: (B, H, W) bool, False = padding; None = all valid.
    """
    features = _without_padding(features, valid)

    def plain(values: Tensor) -> Tensor:
        f = features.to(values.dtype).flatten(2).mT
        return gaussian_sum(f, f, values.flatten(2).mT).mT.unflatten(2, values.shape[2:])

    return _between_valid(plain, valid)


def window_offsets(radius: int) -> list[tuple[int, int]]:
    """Offsets (dy, dx) in pixels of one half of a window of (2 radius + 1)^2 positions, its centre left out."""
    return [(dy, dx) for dy in range(radius + 1) for dx in range(-radius, radius + 1) if dy > 0 or dx > 0]


def _pairs_of_views(height: int, width: int, radius: int) -> Iterator[tuple[Any, Any]]:
    """Per offset, the two overlapping views of a map: every pair of pixels that far apart, once."""
    for dy, dx in window_offsets(min(radius, max(height, width) - 1)):
        if dy < height and abs(dx) < width:
            right, left = slice(max(dx, 0), width + min(dx, 0)), slice(max(-dx, 0), width - max(dx, 0))
            yield (..., slice(0, height - dy), left), (..., slice(dy, height), right)


def window_kernel(features: Tensor, valid: Tensor | None = None, *, radius: int = 5) -> Kernel:
    """The kernel over the pairs at most `radius` pixels apart in y and in x, centre excluded.

    The window of the Gated CRF loss (Obukhov et al. 2019, arXiv 1906.04651, radius 5) [code], visited offset by offset
    [ours]: half of them, since the kernel is symmetric, and no unfolded copy.

    Args:
        features: (B, D, H, W), see `stack_modalities`.
        valid: (B, H, W) bool, False = padding; None = all valid. Pixels beyond the border do not exist.
        radius: of the window in pixels, at least 1.
    """
    if radius < 1:
        raise ValueError(f"the radius of a window must be at least 1, got {radius}")
    features = _without_padding(features, valid)

    def plain(values: Tensor) -> Tensor:
        f, out = features.to(values.dtype), torch.zeros_like(values)
        for one, other in _pairs_of_views(values.shape[2], values.shape[3], radius):
            # In place: a plane of all features for each offset would be allocated again, which takes longer than this.
            weight = (f[one] - f[other]).square_().sum(1, keepdim=True).mul_(-0.5).exp_()
            out[one].addcmul_(weight, values[other])
            out[other].addcmul_(weight, values[one])
        return out

    return _between_valid(plain, valid)


def position_kernel(sigma: float, valid: Tensor | None = None) -> Kernel:
    """The kernel over all pairs by position alone, which is separable: no limit on the image's size or on `sigma`.

    `sigma` is in pixels; `valid` (B, H, W) bool, False = padding; None = all valid.
    """
    if not sigma > 0:
        raise ValueError(f"sigma of a kernel must be positive, got {sigma}")

    def along(length: int, values: Tensor) -> Tensor:
        x = torch.arange(length, dtype=values.dtype, device=values.device) / sigma
        return (-0.5 * (x[:, None] - x).square()).exp()

    def plain(values: Tensor) -> Tensor:
        return along(values.shape[2], values) @ values @ along(values.shape[3], values)

    return _between_valid(plain, valid)


def products(p: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """`sum_k S^k W S^k` by pixel and class, and the degrees, from one application of the kernel.

    `S sg[A] * 2 - sg[S A]` with `A = W S` and `sg` the stopped gradient has the value `S A` and, summed, the gradient
    `2 A` of the quadratic form (W is symmetric); the kernel is not applied again in the backward pass [ours].

    Args:
        p: (B, K, H, W) probabilities S, at least float32.
        kernel: W.

    Returns:
        (B, K, H, W) with that gradient, whose sum over pixels is `S^k' W S^k`; degrees (B, 1, H, W), constant.
    """
    with torch.no_grad():
        filtered = kernel(torch.cat([p, torch.ones_like(p[:, :1])], 1))
        a, degrees = filtered[:, :-1], filtered[:, -1:]
        value = p * a
    return 2 * p * a - value, degrees


def potts(p: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Disagreement of related pixels, the relaxed Potts cost: `R_CRF = sum_k S^k' W (1 - S^k)`
    (Tang et al. 2018, arXiv 1803.09569, eq. 4).

    Args:
        p: (B, K, H, W) probabilities.
        kernel: W.

    Returns:
        `R_CRF` (B,), with the gradient `-2 W S^k` (eq. 11), which leaves out `d`: that is the same for all classes, and
        vanishes in the gradient of logits. And the mass of the kernel `1' W 1` (B,), constant.
    """
    p = at_least_fp32(p)
    agreement, degrees = products(p, kernel)
    # By pixel, where degree and agreement nearly cancel; the sums would lose digits. Its gradient at d is stopped.
    ties = (p.detach() * degrees).sum(1) - agreement.sum(1)
    return ties.sum((1, 2)), degrees.sum((1, 2, 3))
