"""Losses per region: what the abstract of RRN (Chen et al. 2023, arXiv 2304.11539) names and does not write down.

The equations marked [ours] are this project's proposal; feature matching and the discriminators' loss are those of the
authors' code, per region instead of per image.

Shapes: B images of H x W pixels in G x G' regions. Regions are squares of `cell` pixels, G = H // cell; the last row
and column take the rest, so that each pixel lies in one region. Only valid pixels count, and regions without any are
left out of every mean.

The arguments `rule`, `kind` and `norm` take values that the method does not offer: other readings of the abstract.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.distributed import all_sum, global_mean, world_size
from common.ops.tensors import at_least_fp32

Score = Literal["mean", "own", "cross", "max"]
Diversity = Literal["js", "agree", "kl", "none"]
Norm = Literal["count", "sum_w"]

FLOOR = 1e-6  # smallest probability in a logarithm: a class that one network excludes costs 13.8 nats, not infinity

# Regions --------------------------------------------------------------------------------------------------------------


def cell_lengths(side: int, cell: int) -> list[int]:
    """Pixels of the regions along a side: 512 at 160 gives 160, 160, 192."""
    count = max(1, side // cell)
    return [cell] * (count - 1) + [side - cell * (count - 1)]


def region_sums(plane: Tensor, cell: int) -> Tensor:
    """(B, H, W) summed over each region, (B, G, G')."""
    rows = torch.stack([part.sum(1) for part in plane.split(cell_lengths(plane.shape[1], cell), 1)], 1)
    return torch.stack([part.sum(2) for part in rows.split(cell_lengths(plane.shape[2], cell), 2)], 2)


def region_means(plane: Tensor, counted: Tensor, cell: int) -> tuple[Tensor, Tensor]:
    """Mean of (B, H, W) over the counted pixels of each region (0 without one), and their number, each (B, G, G')."""
    count = region_sums(counted, cell)
    return region_sums(plane.masked_fill(~counted, 0), cell) / count.clamp(min=1), count


def at_pixels(regions: Tensor, size: tuple[int, int], cell: int) -> Tensor:
    """(B, G, G') at the pixels of each region, (B, H, W)."""
    row, column = (
        (torch.arange(side, device=regions.device) // cell).clamp(max=count - 1)
        for side, count in zip(size, regions.shape[1:], strict=True)
    )
    return regions[:, row[:, None], column]


# Filtering ------------------------------------------------------------------------------------------------------------


def region_scores(judged: Tensor, rule: Score) -> Tensor:
    """S_k(r) of both networks' pseudo-labels from both discriminators' verdicts.

    Args:
        judged: (2, 2, B, G, G') in (0, 1): discriminator, network.
        rule: `mean` of the two discriminators, `own`, `cross` (the other network's) or `max`.

    Returns:
        (2, B, G, G'), by network.
    """
    if rule == "own":
        return torch.stack([judged[0, 0], judged[1, 1]])
    if rule == "cross":
        return torch.stack([judged[1, 0], judged[0, 1]])
    return judged.mean(0) if rule == "mean" else judged.amax(0)


def local_selection_loss(error: Tensor, valid: Tensor, kept: Tensor, cell: int) -> Tensor:
    """Cross entropy in the regions that are kept [ours].

    `L_sel = sum_r kappa(r) sum_{px in r} CE / max(1, sum_r kappa(r) |r|)`.

    Args:
        error: (B, H, W), cross entropy against the pseudo-label.
        valid: (B, H, W) bool, False = padding.
        kept: (B, G, G') bool, kappa.

    Returns:
        Scalar, the mean over the valid pixels of the kept regions of the global batch; zero with zero gradient without
        one.
    """
    counted = at_pixels(kept, (error.shape[1], error.shape[2]), cell) & valid
    return global_mean((error * counted).sum(), counted.sum())


# Dynamic region loss --------------------------------------------------------------------------------------------------


@torch.no_grad()
def region_reliability(q: Tensor, valid: Tensor, cell: int, kind: Diversity) -> Tensor:
    """w(r) in [0, 1], from how much the two networks' distributions differ in a region [ours].

    `js`: 1 - mean JS(Q_1, Q_2) / ln 2; `agree`: the share of pixels with equal pseudo-labels; `kl`: exp(-mean KL) in
    nats, KL averaged over its two directions, with probabilities of at least 1e-6 in its logarithms; `none`: 1.

    Args:
        q: (2, B, K, H, W) probabilities.
        valid: (B, H, W) bool.

    Returns:
        (B, G, G'), a constant; what it says of a region without valid pixels is meaningless.
    """
    q1, q2 = at_least_fp32(q)
    if kind == "js":
        entropy = torch.special.entr
        divergence = entropy((q1 + q2) / 2).sum(1) - (entropy(q1) + entropy(q2)).sum(1) / 2
        return 1 - (region_means(divergence, valid, cell)[0] / torch.log(q1.new_tensor(2.0))).clamp(0, 1)
    if kind == "agree":
        return region_means((q1.argmax(1) == q2.argmax(1)).to(q1.dtype), valid, cell)[0]
    if kind == "kl":
        log1, log2 = q1.clamp(min=FLOOR).log(), q2.clamp(min=FLOOR).log()
        divergence = ((q1 - q2) * (log1 - log2)).sum(1) / 2
        return (-region_means(divergence, valid, cell)[0]).exp()
    return torch.ones_like(region_sums(valid.to(q1.dtype), cell))


def dynamic_region_loss(error: Tensor, valid: Tensor, weight: Tensor, cell: int, norm: Norm = "count") -> Tensor:
    """`L_drl = 1/#regions sum_r w(r) mean_{px in r} CE`, per image, averaged over images [ours].

    Args:
        error: (B, H, W), cross entropy against the pseudo-label.
        valid: (B, H, W) bool, False = padding.
        weight: (B, G, G'), w.
        norm: `count` divides by the number of regions with a valid pixel, `sum_w` by the sum of their weights.

    Returns:
        Scalar, in nats per pixel with `sum_w`; images without a valid pixel (or weight) are left out.
    """
    means, count = region_means(error, valid, cell)
    weight = weight * (count > 0)
    total = weight if norm == "sum_w" else (count > 0).to(means.dtype)
    total = total.sum((1, 2))
    found = total > 0
    image = (weight * means).sum((1, 2)) / total.masked_fill(~found, 1)
    return global_mean(image.sum(), found.sum())


# Discriminators -------------------------------------------------------------------------------------------------------


def discriminator_loss(fake: Tensor, real: Tensor, fake_found: Tensor, real_found: Tensor) -> Tensor:
    """`L_D = 1/2 [mean_r BCE(fake, 0) + mean_r BCE(real, 1)]`; 0.693147 = the discriminator knows nothing.

    Args:
        fake, real: (B, G, G') logits.
        fake_found, real_found: (B, G, G') bool, regions with a valid and with a labelled pixel; others do not count.
    """
    fooled = global_mean((F.softplus(at_least_fp32(fake)) * fake_found).sum(), fake_found.sum())
    missed = global_mean((F.softplus(-at_least_fp32(real)) * real_found).sum(), real_found.sum())
    return (fooled + missed) / 2


def feature_matching_loss(fake: Tensor, real: Tensor, fake_found: Tensor, real_found: Tensor) -> Tensor:
    """`L_fm = mean | mean_b phi(real) - mean_b phi(fake) |` over channels and regions, phi per region (the code: of the
    image). A region's mean is over the images that have it, and regions that no image has are left out [ours].

    Args:
        fake, real: (B, C, G, G') features; no gradient flows into `real`.
        fake_found, real_found: as for `discriminator_loss`.

    Returns:
        Scalar, of the global batch.
    """
    gap = (_batch_mean(real.detach(), real_found) - _batch_mean(fake, fake_found)).abs()
    found = (all_sum(real_found.sum(0)) > 0) & (all_sum(fake_found.sum(0)) > 0)
    return (gap * found).sum() / (len(gap) * found.sum().clamp(min=1))


def _batch_mean(features: Tensor, found: Tensor) -> Tensor:
    """Mean over the images of the global batch that have a region, (C, G, G'). The value is that of all ranks, because
    a modulus follows; the gradient is that of `global_mean`."""
    own = global_mean((at_least_fp32(features) * found[:, None]).sum(0), found.sum(0))
    return all_sum(own) / world_size() + (own - own.detach())
