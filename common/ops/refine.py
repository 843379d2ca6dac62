"""Pixel-adaptive refinement of maps: each pixel takes a mean of its neighbours, those of its own colour most.

Neighbours are the 8 directions at each dilation; the centre is none, and beyond the border its pixels are repeated. Cut
off padding first. Give the image as it is: normalised it changes next to nothing, with its colours changed (jitter) the
maps follow the change. No gradient.

    refined = pamr(image, cam)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.tensors import at_least_fp32

DILATIONS = (1, 2, 4, 8, 12, 24)


@torch.no_grad()
def pamr(image: Tensor, maps: Tensor, iterations: int = 10, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Pixel-adaptive mask refinement, `m_i <- sum_j w_ij m_j` (Araslanov & Roth 2020, arXiv 2005.08104) [code].

    `w_i = softmax_j k_ij`, `k_ij` the mean over RGB of `-|I_i - I_j| / (1e-8 + 0.1 sd_i)`, with `sd_i` the unbiased
    standard deviation of the neighbours and, once for each dilation, the centre.

    Args:
        image: (B, 3, H, W) RGB of any range; resized to the maps.
        maps: (B, C, h, w), any float type.

    Returns:
        (B, C, h, w), at least float32, in the range of the maps.
    """
    maps, image = prepared(image, maps)
    deviation = 1e-8 + 0.1 * spread(image, dilations, with_centre=True)
    logits = [-((near - image).abs() / deviation).mean(1) for near in neighbours(image, dilations)]
    return averaged(maps, torch.stack(logits, 1).softmax(1), iterations, dilations)


@torch.no_grad()
def par(
    image: Tensor,
    maps: Tensor,
    iterations: int = 10,
    dilations: Sequence[int] = DILATIONS,
    normalise: bool = True,
) -> Tensor:
    """Pixel-adaptive refinement of AFA (Ru et al. 2022, arXiv 2203.02664) and ToCo [code]: `pamr` with other weights.

    `w = softmax_j k + 0.01 softmax_j k'`: `k_ij` the mean over RGB of `-(|I_i - I_j| / (sd_i + 1e-8) / 0.3)^2` with
    `sd_i` over the neighbours alone, and `k'_j = -(d_j / (sd of all d + 1e-8) / 0.3)^2` with d_j their distance in
    pixels. So weights sum to 1.01.

    Args:
        image, maps: see `pamr`.
        normalise: divide the weights by 1.01 [ours]; without, ten iterations raise a constant map by 10 %.
    """
    maps, image = prepared(image, maps)
    deviation = 1e-8 + spread(image, dilations, with_centre=False)
    logits = [-((near - image) / deviation / 0.3).square().mean(1) for near in neighbours(image, dilations)]
    distance = torch.tensor([(dy**2 + dx**2) ** 0.5 for dy, dx in offsets(dilations)]).to(maps)
    near = -(distance / (distance.std() + 1e-8) / 0.3).square()
    weights = torch.stack(logits, 1).softmax(1) + 0.01 * near.softmax(0)[:, None, None]
    return averaged(maps, weights / 1.01 if normalise else weights, iterations, dilations)


def prepared(image: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps in at least float32, and the image like them at their size."""
    maps = at_least_fp32(maps)
    image = image.to(maps.dtype)
    if image.shape[2:] != maps.shape[2:]:
        image = F.interpolate(image, maps.shape[2:], mode="bilinear", align_corners=False)
    return maps, image


def offsets(dilations: Sequence[int]) -> list[tuple[int, int]]:
    """(dy, dx) of the neighbours, in pixels."""
    return [(d * y, d * x) for d in dilations for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]


def neighbours(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """The maps (B, C, H, W) as each neighbour has them, one after the other: views of one padded copy."""
    most, (height, width) = max(dilations), maps.shape[2:]
    padded = F.pad(maps, (most, most, most, most), mode="replicate")
    for dy, dx in offsets(dilations):
        yield padded[..., most + dy : most + dy + height, most + dx : most + dx + width]


def spread(image: Tensor, dilations: Sequence[int], with_centre: bool) -> Tensor:
    """Unbiased standard deviation over the neighbours (B, 3, H, W), in two passes: one would lose the digits of flat
    parts."""
    extra = len(dilations) if with_centre else 0
    count = 8 * len(dilations) + extra
    total = extra * image
    for near in neighbours(image, dilations):
        total += near
    mean = total / count
    square = extra * (image - mean).square()
    for near in neighbours(image, dilations):
        square += (near - mean).square_()
    return (square / (count - 1)).sqrt()


def averaged(maps: Tensor, weights: Tensor, iterations: int, dilations: Sequence[int]) -> Tensor:
    """The maps after `iterations` means with weights (B, N, H, W) of the N neighbours."""
    for _ in range(iterations):
        found = torch.zeros_like(maps)
        for number, near in enumerate(neighbours(maps, dilations)):
            found.addcmul_(weights[:, number : number + 1], near)
        maps = found
    return maps
