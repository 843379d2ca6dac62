"""What only the total-variation paper has (Javanmardi et al. 2016, arXiv 1605.01368).

The paper's own loss, the L1 norm of the gradient of the probabilities, is `common.ops.losses.total_variation`. Here are two
proposals of this project [ours] for questions that the paper's abstract leaves open.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.ops.batch import IGNORE
from common.ops.distributed import global_mean
from common.ops.losses import neighbour_pairs
from common.ops.tensors import at_least_fp32, check_plane


def labelled_pair_weights(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pair weights of `where: unlabelled`: a pair counts unless both its ends are labelled.

    [ours]: the paper (arXiv 1605.01368) does not say on which pixels the penalty acts.

    Args:
        mask: (B, H, W) int64, class id or 255 = no label.

    Returns:
        float32 (w_y, w_x) in {0, 1}, (B, 1, H-1, W) and (B, 1, H, W-1), for `total_variation(pair_weights=...)`.
    """
    both_y, both_x = neighbour_pairs(mask != IGNORE)
    return 1 - both_y, 1 - both_x


def directional_variation_sum(p: Tensor, valid: Tensor, *, softmin_temperature: float | None = None) -> Tensor:
    """The sum that `directional_variation` divides by the number of valid pixels; same arguments and errors."""
    check_plane("valid", valid, p)
    if softmin_temperature is not None and softmin_temperature <= 0:
        raise ValueError(f"softmin_temperature must be positive (None = hard minimum), got {softmin_temperature}")
    p = at_least_fp32(p)
    inside = valid[:, None]
    # A pair of neighbours is two views of one plane and the two paddings (left, right, top, bottom) that bring its
    # differences back to the plane, once at the pair's first pixel and once at its second.
    first, last, whole = slice(None, -1), slice(1, None), slice(None)
    directions = (
        ((whole, first), (whole, last), (0, 1, 0, 0), (1, 0, 0, 0)),  # a = (0, 1)
        ((first, whole), (last, whole), (0, 0, 0, 1), (0, 0, 1, 0)),  # a = (1, 0)
        ((first, first), (last, last), (0, 1, 0, 1), (1, 0, 1, 0)),  # a = (1, 1)
        ((first, last), (last, first), (1, 0, 0, 1), (0, 1, 1, 0)),  # a = (1, -1)
    )
    costs: list[Tensor] = []
    for one, other, at_one, at_other in directions:
        pair = inside[(..., *one)] & inside[(..., *other)]
        difference = (p[(..., *other)] - p[(..., *one)]).abs() * pair
        costs.append((F.pad(difference, at_one) + F.pad(difference, at_other)) / 2)
    stacked = torch.stack(costs)
    if softmin_temperature is not None:
        return (F.softmin(stacked / softmin_temperature, 0) * stacked).sum()
    # Not amin: that would share the gradient between equal directions; min takes the first.
    return stacked.min(0).values.sum()


def directional_variation(p: Tensor, valid: Tensor, *, softmin_temperature: float | None = None) -> Tensor:
    """Variation along the best of four directions: charges the ends of a thin structure, not its length.

    `D_a f(q) = (|f(q+a) - f(q)| + |f(q) - f(q-a)|) / 2` for a in (0,1), (1,0), (1,1), (1,-1);
    `R_dir = sum_{k,q} v(q) min_a D_a f_k(q) / sum v`. A line of any length costs 1 per class, a line with a gap 2.

    [ours]: the paper (arXiv 1605.01368) only says that curvilinear structures can be learnt by modifying its loss; its
    formula is not known. A difference whose other end lies outside the image, or is not valid, is 0, as if q itself
    were repeated there; so padding an image changes nothing. (A pixel in the image's very corner has no neighbours
    along one diagonal, and so costs nothing.)

    Args:
        p: (B, C, H, W) floating, probabilities.
        valid: (B, H, W) bool, False = padding: no cost there, and no cost from differences with it.
        softmin_temperature: None = minimum, whose gradient goes to one of the lowest directions; a positive number T
            (in units of probability; 0.05 is a good start) = the average of the four, weighted by `softmin(D_a / T)`.

    Returns:
        Scalar, probability per valid pixel of the global batch. Without a valid pixel: zero with zero gradient.

    Raises:
        ValueError: `softmin_temperature` is not positive; `valid` does not have the shape of the plane of `p`.
    """
    total = directional_variation_sum(p, valid, softmin_temperature=softmin_temperature)
    return global_mean(total, valid.sum())
