"""A dense CRF with Gaussian kernels, solved by mean field."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.affinity import gaussian_sum, position_kernel, positions, stack_modalities
from common.ops.mrf import FLOOR, check_shapes
from common.ops.tensors import at_least_fp32


@torch.no_grad()
def dense_crf(
    probabilities: Tensor,
    image: Tensor,
    *,
    weight: float = 5.0,
    sigma_xy: float = 80.0,
    sigma_rgb: float = 13.0,
    smooth_weight: float = 3.0,
    smooth_sigma: float = 3.0,
    iterations: int = 10,
    normalise: bool = True,
    stride: int = 4,
) -> Tensor:
    """Mean field of a dense CRF with Potts costs: `Q <- softmax(log p + w1 (W1 Q - Q) + w2 (W2 Q - Q))`, from Q = p.

    W1 is a Gaussian kernel over position and colour, W2 one over position; a pixel sends itself nothing. The iteration
    is the standard one; its parameters are [ours], to be tuned on held-out images: the papers that use it as
    post-processing take those of another, unknown to us. Time grows with the square of the number of pixels.

    Args:
        probabilities: (K, H, W), any float type; values below 1e-6 count as 1e-6. float64 is exact and slow.
        image: (3, H, W), RGB in [0, 1].
        weight, smooth_weight: w1 and w2 in nats. Without `normalise` they weigh sums over thousands of pixels and must
            be as much smaller.
        sigma_xy, sigma_rgb: of W1, in pixels of this image and in grey levels, of RGB in 0..255.
        smooth_sigma: of W2, in pixels.
        iterations: of the mean field; 0 returns p.
        normalise: each kernel is `D^-1/2 W D^-1/2` with D its row sums, so that weights do not depend on bandwidths.
        stride: W1 sums over cells of stride x stride pixels, at their mean position and colour, stride^2 times faster;
            1 is exact.

    Returns:
        Q (K, H, W), probabilities in at least float32.
    """
    check_shapes(probabilities, image)
    check_parameters((weight, smooth_weight), (sigma_xy, sigma_rgb, smooth_sigma), iterations, stride)
    p = at_least_fp32(probabilities)[None]
    unary = p.clamp(min=FLOOR).log()
    colors = 255 * image[None].to(p.dtype)
    features = stack_modalities([(positions(colors), sigma_xy), (colors, sigma_rgb)])
    cells = F.avg_pool2d(features, stride, ceil_mode=True, count_include_pad=False)

    def from_cells(values: Tensor, at: Tensor = features) -> Tensor:
        summed = F.avg_pool2d(values, stride, ceil_mode=True, divisor_override=1)
        f, c, v = (maps.flatten(2).mT for maps in (at, cells, summed))
        return gaussian_sum(f, c, v).mT.unflatten(2, at.shape[2:])

    def at_pixels(maps: Tensor) -> Tensor:
        return maps.repeat_interleave(stride, 2).repeat_interleave(stride, 3)[..., : p.shape[2], : p.shape[3]]

    def factor(sums: Tensor) -> Tensor:
        return sums.clamp(min=1).rsqrt() if normalise else torch.ones_like(sums)

    one, q = torch.ones_like(p[:, :1]), p
    # What a pixel sends itself through its cell; 1 at stride 1, where cells are pixels.
    itself = (-0.5 * (features - at_pixels(cells)).square().sum(1, keepdim=True)).exp()
    # A sender's factor is its cell's: a pixel unlike its cell has a small sum, and its own factor would weigh far too
    # much in what the cell sends. A receiver's is its own.
    smooth = position_kernel(smooth_sigma)
    used: list[tuple[float, Callable[[Tensor], Tensor], Tensor, Tensor, Tensor]] = []
    if weight > 0:
        used.append((weight, from_cells, itself, factor(from_cells(one)), at_pixels(factor(from_cells(one, cells)))))
    if smooth_weight > 0:
        used.append((smooth_weight, smooth, one, factor(smooth(one)), factor(smooth(one))))
    for _ in range(iterations):
        messages = [w * row * (kernel(col * q) - own * col * q) for w, kernel, own, row, col in used]
        q = torch.stack([unary, *messages]).sum(0).softmax(1)
    return q[0]


def check_parameters(weights: tuple[float, ...], sigmas: tuple[float, ...], iterations: int, stride: int) -> None:
    if not all(math.isfinite(value) for value in (*weights, *sigmas)) or min(weights) < 0 or min(sigmas) <= 0:
        raise ValueError(f"dense_crf: weights must be >= 0 and sigmas > 0, all finite, got {weights} and {sigmas}")
    if iterations < 0 or stride < 1:
        raise ValueError(f"dense_crf: iterations must be >= 0 and stride >= 1, got {iterations} and {stride}")
