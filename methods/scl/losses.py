"""Structured consistency, and boundary label relaxation.

SCL is Kim et al. 2020 (arXiv 2001.04647), of which the abstract is known; it stands on CutMix-Seg, whose loss by pixel
is `common.ops.losses.pixel_consistency`. Relaxation is Zhu et al., CVPR 2019 (arXiv 1812.01593).

Shapes: B images, K classes, C channels of a feature, n of its pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.batch import IGNORE
from common.ops.distributed import global_mean
from common.ops.mixing import key_uniform
from common.ops.tensors import at_least_fp32, check_plane, one_hot

Pairs = Literal["inside", "both_sides", "cross", "all"]


def structured_consistency(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor,
    inside: Tensor,
    pairs: Pairs = "inside",
    detach_norm: bool = False,
) -> Tensor:
    """Mean squared difference of the cosine similarities of pairs of pixels, over all pairs, in O(n C^2).

        loss = structured_consistency(p.flatten(2), teacher_p.flatten(2), valid.flatten(1), box.flatten(1))

    With unit columns z_i (student) and w_i (teacher): `mean over pairs i != j of (z_i.z_j - w_i.w_j)^2` per image, then
    the mean over images with a pair. Ours: the paper's similarity and rule of pairs are not known to us; the ancestor
    is pair-wise similarity distillation (Liu et al., CVPR 2019, irfanICMLL/structure_knowledge_distillation).

    No n x n matrix is made. With S = Z + W and D = Z - W, `z_i.z_j - w_i.w_j = (s_i.d_j + d_i.s_j) / 2`, so the sum
    over all pairs of a set is `(<SS', DD'> + <SD', (SD')'>) / 2`, and over pairs across two sets
    `(<SS'_A, DD'_B> + <DD'_A, SS'_B> + 2 <SD'_A, (SD'_B)'>) / 4`. Every term is of the order of |D|^2: unlike the
    expanded square `|ZZ'|^2 + |WW'|^2 - 2 |ZW'|^2` it does not cancel in float32. Autocast is off in here.

    Args:
        student: (B, C, n), any vectors; they are scaled to unit length (shorter ones than 1e-6 stay short).
        teacher: (B, C, n), at the same pixels; no gradient flows into them.
        valid: (B, n) bool, False = padding: in no pair.
        inside: (B, n) bool, which image of the mix a pixel comes from.
        pairs: `inside`: both pixels inside; `both_sides`: both inside, or both outside; `cross`: one inside and one
            outside; `all`.
        detach_norm: the student's lengths are constants (as in the ancestor's code).

    Returns:
        Scalar in [0, 4]: similarities lie in [-1, 1]. Zero with zero gradient where no image has a pair.
    """
    with torch.autocast(student.device.type, enabled=False):
        z, w = _unit(at_least_fp32(student), detach_norm), _unit(at_least_fp32(teacher.detach()), True)
        total, difference = z + w, z - w
        if pairs in ("inside", "all"):
            chosen = [valid & inside if pairs == "inside" else valid]
        else:
            chosen = [valid & inside, valid & ~inside]
        counts = [one.sum(1).to(z.dtype) for one in chosen]
        grams = [_grams(total, difference, one, n) for one, n in zip(chosen, counts, strict=True)]
        if pairs == "cross":
            (ss_a, dd_a, sd_a), (ss_b, dd_b, sd_b) = grams
            means = (ss_a * dd_b + dd_a * ss_b + 2 * sd_a * sd_b.mT).sum((1, 2)) / 4
            number = counts[0] * counts[1]
            sums = means * number
        else:
            means = torch.stack([(ss * dd + sd * sd.mT).sum((1, 2)) / 2 for ss, dd, sd in grams])
            number = torch.stack([n * (n - 1) for n in counts]).sum(0)
            sums = (means * torch.stack(counts).square()).sum(0)
        return global_mean((sums / number.clamp(min=1) * (number > 0)).sum(), (number > 0).sum())


def _unit(columns: Tensor, detach_norm: bool) -> Tensor:
    norm = torch.linalg.vector_norm(columns, dim=1, keepdim=True).clamp(min=1e-6)
    return columns / (norm.detach() if detach_norm else norm)


def _grams(total: Tensor, difference: Tensor, chosen: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SS'/n, DD'/n and SD'/n, each (B, C, C), of the chosen columns; divided so that products stay in range."""
    keep = chosen[:, None].to(total.dtype) / count.clamp(min=1).sqrt()[:, None, None]
    s, d = total * keep, difference * keep
    # chosen is 0 or 1, so keep^2 is chosen / n
    return s @ s.mT, d @ d.mT, s @ d.mT


def sample_pixels(key: Tensor, candidates: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` pixels of each image drawn from `candidates` without repetition; a function of (seed, key) alone.

        index, valid = sample_pixels(batch["key"], valid & box, count=512, seed=self.draw_seed(1))

    Args:
        key: (B, 2) int64, (epoch, position) of each sample.
        candidates: (B, n) bool.
        count: of pixels per image, at most.
        seed: draws of different seeds are independent.

    Returns:
        Indices (B, m) with m = min(count, n), and (B, m) bool: False where an image has fewer candidates.
    """
    priority = key_uniform(key, candidates.shape[1], seed).masked_fill(~candidates, -1)
    index = priority.topk(min(count, candidates.shape[1]), dim=1).indices
    return index, candidates.gather(1, index)


def relaxed_cross_entropy(logits: Tensor, mask: Tensor, valid: Tensor, radius: int = 1) -> Tensor:
    """Boundary label relaxation: `mean_i -log sum_{c in N_i} p_i(c)`, N_i = the labels within `radius` of pixel i.

        pce = relaxed_cross_entropy(logits, mask, valid, radius=1)

    Zhu et al., CVPR 2019 (arXiv 1812.01593, code NVIDIA/semantic-segmentation), without its class weights, strict
    classes and epochs. Ours: pixels without a label stay without loss; in the code one next to a label is trained.

    Args:
        logits: (B, K, H, W).
        mask: (B, H, W) int64, class id or 255.
        valid: (B, H, W) bool, False = padding: no loss there, and its labels count for no window.
        radius: of the square window in pixels; 0 is the cross entropy.

    Returns:
        Scalar in nats per labelled pixel of the global batch. Without one: zero with zero gradient.

    Raises:
        ValueError: `mask` or `valid` does not have the shape of the logits' plane.
    """
    check_plane("mask", mask, logits)
    check_plane("valid", valid, logits)
    labelled = (mask != IGNORE) & valid
    classes = one_hot(mask.masked_fill(~labelled, IGNORE), logits.shape[1])
    radius = min(radius, max(mask.shape[1:]))
    near = F.max_pool2d(classes, 2 * radius + 1, 1, radius) > 0
    logits = at_least_fp32(logits)
    # Elsewhere N_i may be empty, and log 0 would spoil the gradient: there the set is everything, the loss 0.
    near = near | ~labelled[:, None]
    loss = logits.logsumexp(1) - logits.masked_fill(~near, -torch.inf).logsumexp(1)
    return global_mean((loss * labelled).sum(), labelled.sum())
