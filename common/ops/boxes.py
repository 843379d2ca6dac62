"""Losses of bounding boxes: what a mask shows from the side, and one class for near pixels of like colour.

Both are the terms of BoxInst (Tian et al., CVPR 2021, arXiv 2012.02310; code aim-uofa/AdelaiDet) for semantic
segmentation [ours]: in place of an instance stands a class in an image, and its mask is the class's probability. The
boxes of a class are then one plane, their union, which boxes with `supervision.inside: filled` are.

    planes, p = class_boxes(mask, logits.softmax(1))
    loss = projection_loss(p, planes) + pairwise_loss(logits, image, mask > 0, valid)
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.ops.distributed import global_mean
from common.ops.refine import offsets
from common.ops.tensors import at_least_fp32, check_plane, one_hot

EPS = 1e-5  # of the Dice loss [code]
THETA = 2.0  # of the similarity, in units of Lab [paper, code]
WHITE = (0.95047, 1.0, 1.08883)  # D65, of XYZ
RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))


def class_boxes(mask: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes of each object's class in each image that has one, and its probabilities: (N, H, W) both.

    Args:
        mask: (B, H, W) int64, the class of the box that a pixel is in, 0 outside, 255 where nobody knows and padding.
        p: (B, K, H, W) probabilities. Those of pixels with 255 come out as 0.
    """
    check_plane("mask", mask, p)
    planes = one_hot(mask, p.shape[1])[:, 1:].bool()
    there = planes.flatten(2).any(2)
    known = (mask != 255)[:, None]
    return planes[there], (at_least_fp32(p)[:, 1:] * known)[there]


def projection_loss(p: Tensor, boxes: Tensor) -> Tensor:
    """A mask has the projections of its box onto both axes (BoxInst's projection term): for each mask

    `L_proj = D(max_y p, max_y b) + D(max_x p, max_x b)`, `D(u, v) = 1 - 2 sum u v / (sum u^2 + sum v^2 + 1e-5)` (Dice)

    so in each column and each row of a box some pixel is the object's, and none is in the others. The mean over masks
    of the global batch. A box that the crop cuts asks for more than is true.

    Args:
        p: (N, H, W) in [0, 1].
        boxes: (N, H, W) bool, True inside.

    Returns:
        Scalar in [0, 2]; without a mask zero with zero gradient.
    """
    if p.shape != boxes.shape or p.ndim != 3:
        raise ValueError(f"p and boxes must be (N, H, W), got {tuple(p.shape)} and {tuple(boxes.shape)}")
    p, b = at_least_fp32(p), boxes.to(at_least_fp32(p).dtype)
    losses = p.sum() * 0
    for axis in (1, 2):
        u, v = p.amax(axis), b.amax(axis)
        dice = 1 - 2 * (u * v).sum(1) / (u.square().sum(1) + v.square().sum(1) + EPS)
        losses = losses + dice.sum()
    return global_mean(losses, torch.tensor(len(p), device=p.device))


def pairwise_loss(
    logits: Tensor, image: Tensor, inside: Tensor, valid: Tensor, threshold: float = 0.3, dilation: int = 2
) -> Tensor:
    """Near pixels of like colour have one class: `-1/N sum_e 1{S_e >= threshold} log P(y_e = 1)` (BoxInst).

    A pair e is a pixel inside a box and one of its 8 neighbours at `dilation`, N the number of pairs that are alike,
    `S_e = exp(-|c_i - c_j| / 2)` with colours in Lab, and `P(y_e = 1) = sum_k p_ik p_jk`, for two classes the paper's
    `p_i p_j + (1 - p_i)(1 - p_j)`. BoxInst takes it at a stride of 4 pixels, and raises its weight over the first
    ninth of the run [code].

    Args:
        logits: (B, K, H, W).
        image: (B, 3, H, W), RGB in [0, 1]; no gradient flows into it.
        inside: (B, H, W) bool, inside a box.
        valid: (B, H, W) bool, False = padding: a pair with an invalid end does not count.
        threshold: of the similarity, in [0, 1].
        dilation: in pixels.

    Returns:
        Scalar in nats per pair; without a pair zero with zero gradient.
    """
    for name, plane in (("inside", inside), ("valid", valid)):
        check_plane(name, plane, logits)
    log_p, lab = at_least_fp32(logits).log_softmax(1), rgb_to_lab(image)
    total, count = log_p.sum() * 0, torch.zeros((), device=logits.device)
    height, width = logits.shape[2:]
    for dy, dx in offsets((dilation,)):
        if abs(dy) >= height or abs(dx) >= width:
            continue
        here = (..., slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx)))
        there = (..., slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx)))
        similarity = (-(lab[here] - lab[there]).square().sum(1).sqrt() / THETA).exp()
        alike = (similarity >= threshold) & inside[here] & valid[here] & valid[there]
        total = total - ((log_p[here] + log_p[there]).logsumexp(1) * alike).sum()
        count = count + alike.sum()
    return global_mean(total, count)


@torch.no_grad()
def rgb_to_lab(image: Tensor) -> Tensor:
    """CIE Lab (D65) of sRGB in [0, 1], (B, 3, H, W): L in [0, 100]."""
    rgb = at_least_fp32(image)[:, :3]
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    white = torch.tensor(WHITE).to(linear)[:, None]
    xyz = (torch.tensor(RGB_TO_XYZ).to(linear) / white)[None, :, :, None, None]
    t = (xyz * linear[:, None]).sum(2)
    f = torch.where(t > 0.008856, t.clamp(min=1e-8) ** (1 / 3), 7.787 * t + 16 / 116)
    return torch.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
