"""What boxes say of classes that they do not name."""

from __future__ import annotations

import torch
from torch import Tensor

from common.ops.batch import IGNORE
from common.ops.distributed import global_mean
from common.ops.tensors import at_least_fp32, check_plane


def absent_loss(logits: Tensor, mask: Tensor, tags: Tensor) -> Tensor:
    """A pixel in a box is background or of a class that has a box in its image [ours]: the mean over the pixels in
    boxes of `-log (p_0 + sum_{k in tags} p_k)`. Zero where there are two classes.

        loss = absent_loss(logits, mask, tags)

    Args:
        logits: (B, K, H, W).
        mask: (B, H, W) int64, the class of the box that a pixel is in, 0 outside, 255 without a label and padding.
        tags: (B, K) bool, the classes that have a box in the image.

    Returns:
        Scalar in nats; without a pixel in a box zero with zero gradient.
    """
    check_plane("mask", mask, logits)
    log_p = at_least_fp32(logits).log_softmax(1)
    may_be = tags.clone()
    may_be[:, 0] = True
    allowed = log_p.masked_fill(~may_be[:, :, None, None], -torch.inf).logsumexp(1)
    inside = (mask != 0) & (mask != IGNORE)
    return global_mean(-torch.where(inside, allowed, 0).sum(), inside.sum())
