"""Pseudo-label loss and feature perturbations of UniMatch (arXiv 2208.09910, 2410.10777; code LiheYoung/UniMatch,
UniMatch-V2). Shapes: B images, K classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.distributed import global_mean
from common.ops.mixing import key_uniform
from common.ops.tensors import at_least_fp32, check_plane


def pseudo_label_loss(logits: Tensor, labels: Tensor, confidence: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Cross entropy against pseudo-labels: summed over confident pixels, divided by the number of all valid ones.

    Args:
        logits: (B, K, H, W), the student's.
        labels: (B, H, W) int64 pseudo-labels, 0..K-1 at every pixel.
        confidence: (B, H, W), their probability; a pixel counts from `threshold` on.
        valid: (B, H, W) bool, False = padding.

    Returns:
        Scalar in nats per valid pixel of the global batch; zero with zero gradient where no pixel counts.

    Raises:
        ValueError: a plane does not have the shape of the logits'.
    """
    for name, plane in (("labels", labels), ("confidence", confidence), ("valid", valid)):
        check_plane(name, plane, logits)
    kept = (confidence >= threshold) & valid
    error = F.cross_entropy(at_least_fp32(logits), labels, reduction="none")
    return global_mean((error * kept).sum(), valid.sum())


def dropped_channels(key: Tensor, channels: int, share: float, seed: int) -> Tensor:
    """V1's feature perturbation: (B, channels, 1, 1), 0 for a dropped channel and 1 / (1 - share) for a kept one.

    Ours: drawn from the sample's key, (B, 2) int64, where the code takes `nn.Dropout2d`.
    """
    return (key_uniform(key, channels, seed) >= share)[..., None, None] / (1 - share)


def complementary_channels(key: Tensor, channels: int, seed: int) -> tuple[Tensor, Tensor]:
    """V2's: masks (B, channels, 1, 1) of {0, 2} for the first view and 2 minus them for the second; ones for samples
    that are left alone, half of them.

    Ours: each sample is left alone with probability 1/2 by its key; the code leaves alone half of each batch.
    """
    u = key_uniform(key, 1 + channels, seed)
    first = torch.where(u[:, :1] < 0.5, 1.0, 2 * (u[:, 1:] < 0.5).float())[..., None, None]
    return first, 2 - first
