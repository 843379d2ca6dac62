"""What several losses do to tensors first: precision, shapes, planes of classes, cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.ops.batch import IGNORE


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in float32 where it is a half type; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_plane(name: str, plane: Tensor, like: Tensor) -> None:
    """Raise ValueError unless `plane` is (B, H, W) for `like` (B, C, H, W); broadcasting would hide the mistake."""
    if like.ndim != 4 or plane.shape != (like.shape[0], *like.shape[2:]):
        raise ValueError(f"{name} must be (B, H, W) for (B, C, H, W), got {tuple(plane.shape)} for {tuple(like.shape)}")


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """A plane per class (B, K, H, W) float32, channels last in memory: 1 where it is the label, 0 elsewhere, also where
    there is no label."""
    none = labels == IGNORE
    planes = torch.zeros(*labels.shape, num_classes + 1, device=labels.device)
    return planes.scatter_(3, labels.masked_fill(none, num_classes)[..., None], 1)[..., :-1].movedim(3, 1)


def valid_cells(valid: Tensor, stride: int) -> Tensor:
    """Which cells of stride x stride pixels hold no padding, (B, H // stride, W // stride) bool: for losses on maps
    that are averaged over such cells."""
    return -F.max_pool2d(-valid[:, None].float(), stride)[:, 0] > 0
