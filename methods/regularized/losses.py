"""Classical segmentation energies of the soft prediction, as losses that need no label.

Sources: *On Regularized Losses for Weakly-supervised CNN Segmentation* (Tang et al., ECCV 2018, arXiv 1803.09569), with
its code for the dense CRF; *Normalized Cut Loss* (Tang et al., CVPR 2018, arXiv 1804.01346); *Gated CRF Loss* (Obukhov
et al. 2019, arXiv 1906.04651), with its code. Reductions other than the code's are marked [ours].

Per image: S (N x K) the probabilities with columns S^k, W the kernel between pixels, `d = W 1` its degrees. A kernel
(`common.ops.affinity`) is symmetric, constant and zero at padding, so `valid` is in it: what is called W here is
`R W R`.
Shapes: B images of H x W = N pixels, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from common.ops.affinity import Kernel, potts, products
from common.ops.batch import IGNORE
from common.ops.distributed import global_mean
from common.ops.tensors import at_least_fp32, check_plane, one_hot

EPS = 1e-6  # in the denominator of a class's ratio, in units of summed kernel [ours]; the papers have 0/0


def crf(p: Tensor, kernel: Kernel, reduction: Literal["normalised", "raw"] = "normalised") -> Tensor:
    """Dense-CRF loss.

    Args:
        p: (B, K, H, W) probabilities.
        kernel: such as `common.ops.affinity.dense_kernel`, with padding excluded.
        reduction: `normalised`: `R_CRF / 1'W1` by image [ours]: the share of disagreement in [0, 1], `1 - 1/K` where
            the prediction is uniform, 0 where it is constant and hard, whatever the resolution and the bandwidths.
            `raw`: `-sum_k S^k' W S^k` by image, as the official code returns it [code]: negative, of the order of
            pixels times neighbours. Either is averaged over the images of the global batch that have a related pair.

    Returns:
        Scalar; zero with zero gradient without a valid pixel.

    Raises:
        ValueError: unknown `reduction`.
    """
    if reduction not in ("normalised", "raw"):
        raise ValueError(f"reduction must be normalised or raw, got {reduction!r}")
    cost, mass = potts(p, kernel)
    by_image = cost - mass if reduction == "raw" else cost / mass.clamp(min=EPS)
    return global_mean(by_image.sum(), (mass > 0).sum())


def clamp_seeds(p: Tensor, mask: Tensor) -> Tensor:
    """Probabilities with the labelled pixels set to their label, as inside the normalised cut (arXiv 1804.01346).

    Args:
        p: (B, K, H, W) probabilities.
        mask: (B, H, W) int64, class id or 255 = no label.

    Returns:
        (B, K, H, W), without gradient at labelled pixels.

    Raises:
        ValueError: `mask` does not have the shape of the plane of `p`.
    """
    check_plane("mask", mask, p)
    return torch.where((mask == IGNORE)[:, None], p, one_hot(mask, p.shape[1]).to(p.dtype))


def normalized_cut(p: Tensor, kernel: Kernel, mask: Tensor | None = None) -> Tensor:
    """Normalised-cut loss `sum_k S^k' W (1 - S^k) / (d' S^k)` (papers, eq. 5), by image, then the mean over images.

    The mean is over the images of the global batch that have a related pair [ours]. The value lies in [0, K - 1], and
    is K - 1 where the prediction is uniform. A class of no mass counts 0 [ours].

    Args:
        p: (B, K, H, W) probabilities.
        kernel: such as `common.ops.affinity.dense_kernel`, with padding excluded.
        mask: (B, H, W) int64, class id or 255 = no label: labelled pixels are clamped to their label; None: none is.

    Returns:
        Scalar with the gradient of eq. 12; zero with zero gradient without a valid pixel.

    Raises:
        ValueError: `mask` does not have the shape of the plane of `p`.
    """
    p = at_least_fp32(p)
    if mask is not None:
        p = clamp_seeds(p, mask)
    agreement, degrees = products(p, kernel)
    cut = (p * degrees - agreement).sum((2, 3))
    volume = (p * degrees).sum((2, 3))
    count = (degrees.sum((1, 2, 3)) > 0).sum()
    return global_mean((cut / (volume + EPS)).sum(), count)


def gated_crf(p: Tensor, kernel: Kernel, valid: Tensor) -> Tensor:
    """Gated-CRF loss `sum_i sum_{j != i} m_i m_j W_ij (1 - p_i . p_j) / sum_i m_i` [code], m = 1 on valid pixels.

    The official call masks the neighbour only; here both ends are [ours], so that padding gets no gradient.

    Args:
        p: (B, K, H, W) probabilities.
        kernel: `common.ops.affinity.window_kernel`, with padding excluded.
        valid: (B, H, W) bool: the divisor is their number in the global batch.

    Returns:
        Scalar, summed kernel per valid pixel; zero with zero gradient without one.

    Raises:
        ValueError: `valid` does not have the shape of the plane of `p`.
    """
    check_plane("valid", valid, p)
    return global_mean(potts(p, kernel)[0].sum(), valid.sum())
