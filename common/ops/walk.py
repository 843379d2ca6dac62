"""Affinities between near pixels, and the random walk that spreads a map along them.

A pair is a pixel (y, x) and its partner (y + dy, x + dx), for the P offsets of half a disc: `half_disc`. What belongs
to pairs is (B, P, H, W), at the pixel that comes first; where the partner is outside the image it is 0 (False).

    affinity = bilateral_affinity(image, radius=5, sigma=0.1)
    spread = random_walk(affinity, cam, radius=5, beta=8)

An affinity can be learned from labels of which some are sure (AffinityNet):

    distance = feature_distance(features, radius=5)
    affinity_loss(distance, labels, radius=5).backward()
    spread = random_walk((-distance).exp(), cam, radius=5)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.batch import IGNORE
from common.ops.distributed import global_mean
from common.ops.tensors import at_least_fp32

Place = tuple[slice, slice]


def half_disc(radius: int) -> list[tuple[int, int]]:
    """Offsets (dy, dx) at a distance below `radius` pixels, one of each pair: 34 for radius 5."""
    across = range(1 - radius, radius)
    inside = [(dy, dx) for dy in range(radius) for dx in across if dy**2 + dx**2 < radius**2]
    return [(dy, dx) for dy, dx in inside if dy > 0 or dx > 0]


def places(offset: tuple[int, int], height: int, width: int) -> tuple[Place, Place] | None:
    """Where the first and the second pixels of an offset's pairs are; None if the image is too small for a pair."""
    dy, dx = offset
    if dy >= height or abs(dx) >= width:
        return None
    left, right = slice(max(-dx, 0), width - max(dx, 0)), slice(max(dx, 0), width + min(dx, 0))
    return (slice(0, height - dy), left), (slice(dy, height), right)


def affinity_labels(labels: Tensor, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which pairs are of one class, and which are not (PSA, IRN [code]).

    Args:
        labels: (B, H, W) int64, class id (0 the background) or 255 for not sure.
        radius: see `half_disc`.

    Returns:
        Pairs of background and background, of an object's class and the same, of two classes: each (B, P, H, W) bool.
        A pair with 255, or with a pixel outside the image, is in none of them.
    """
    offsets = half_disc(radius)
    background, same, other = torch.zeros(3, len(labels), len(offsets), *labels.shape[1:], dtype=torch.bool).to(
        labels.device
    )
    for number, offset in enumerate(offsets):
        if found := places(offset, *labels.shape[1:]):
            here, there = ((slice(None), *place) for place in found)
            one, two = labels[here], labels[there]
            sure = (one != IGNORE) & (two != IGNORE)
            pairs = (slice(None), number, *found[0])
            background[pairs] = sure & (one == two) & (one == 0)
            same[pairs] = sure & (one == two) & (one != 0)
            other[pairs] = sure & (one != two)
    return background, same, other


def path_pixels(offset: tuple[int, int]) -> list[tuple[int, int]]:
    """The pixels of the straight path from (0, 0) to `offset`: those in its box less than a pixel from the line (IRN
    [code])."""
    dy, dx = offset
    box = [(y, x) for y in range(dy + 1) for x in range(min(0, dx), max(0, dx) + 1)]
    return [(y, x) for y, x in box if (dy * x - dx * y) ** 2 < dy**2 + dx**2]


def path_affinity(edges: Tensor, radius: int) -> Tensor:
    """`1 - max of the edge map on the straight path from one pixel to the other`, both included (Ahn et al. 2019, arXiv
    1904.05044, IRN).

    Args:
        edges: (B, 1, H, W) in [0, 1]. Gradient flows into them.
        radius: see `half_disc`.

    Returns:
        (B, P, H, W).
    """
    (height, width), found = edges.shape[2:], []
    for offset in half_disc(radius):
        plane = torch.zeros_like(edges[:, 0])
        if pair := places(offset, height, width):
            (rows, columns), _ = pair
            steps = [
                edges[:, 0, rows.start + y : rows.stop + y, columns.start + x : columns.stop + x]
                for y, x in path_pixels(offset)
            ]
            plane[:, rows, columns] = 1 - torch.stack(steps).amax(0)
        found.append(plane)
    return torch.stack(found, 1)


def feature_distance(features: Tensor, radius: int) -> Tensor:
    """`mean_d |f_i - f_j|`, so that `exp(-distance)` is an affinity (Ahn & Kwak 2018, arXiv 1803.10464, eq. 3, which
    sums over d; the mean is of the code).

    Args:
        features: (B, D, H, W). Gradient flows into them.
        radius: see `half_disc`.

    Returns:
        (B, P, H, W), at least float32; infinite where the partner is outside the image.
    """
    features, found = at_least_fp32(features), []
    for offset in half_disc(radius):
        plane = torch.full_like(features[:, 0], torch.inf)
        if pair := places(offset, *features.shape[2:]):
            one, two = (features[(slice(None), slice(None), *place)] for place in pair)
            plane[(slice(None), *pair[0])] = (one - two).abs().mean(1)
        found.append(plane)
    return torch.stack(found, 1) + 0 * features.mean()  # of one cell, which has no pair, a gradient for DDP


def affinity_loss(distance: Tensor, labels: Tensor, radius: int) -> Tensor:
    """Pairs of one class come near, others part (Ahn & Kwak 2018, arXiv 1803.10464, eq. 4 to 7 [code]).

    `1/4 mean(-log a | background) + 1/4 mean(-log a | one object class) + 1/2 mean(-log(1 - a + 1e-5) | two classes)`
    with `a = exp(-distance)`, each mean over all processes; of no pair it is 0.

    Args:
        distance: (B, P, H, W), see `feature_distance`.
        labels: (B, H, W) int64, class id (0 the background) or 255 for not sure.
        radius: see `half_disc`.

    Returns:
        Scalar.
    """
    background, same, other = affinity_labels(labels, radius)
    apart = distance[other]
    sums = [distance[background].sum(), distance[same].sum(), -(1 - (-apart).exp() + 1e-5).log().sum()]
    counts = torch.stack([kind.sum() for kind in (background, same, other)])
    means = global_mean(torch.stack(sums), counts)
    return means[0] / 4 + means[1] / 4 + means[2] / 2


@torch.no_grad()
def bilateral_affinity(image: Tensor, radius: int = 5, sigma: float = 0.1) -> Tensor:
    """`exp(-|I_i - I_j|^2 / (2 sigma^2))`: nothing to train [ours].

    Args:
        image: (B, 3, H, W), RGB in [0, 1].
        radius: see `half_disc`.
        sigma: in the unit of the image.

    Returns:
        (B, P, H, W).
    """
    if not sigma > 0:
        raise ValueError(f"sigma of an affinity must be positive, got {sigma}")
    image, offsets = at_least_fp32(image), half_disc(radius)
    found = image.new_zeros(len(image), len(offsets), *image.shape[2:])
    for number, offset in enumerate(offsets):
        if pair := places(offset, *image.shape[2:]):
            one, two = (image[(slice(None), slice(None), *place)] for place in pair)
            found[(slice(None), number, *pair[0])] = (-(one - two).square().sum(1) / (2 * sigma**2)).exp()
    return found


@torch.no_grad()
def random_walk(affinity: Tensor, maps: Tensor, radius: int, beta: float = 8, steps: int = 256) -> Tensor:
    """`m T^steps`, with T the affinities to the power `beta`, its columns divided by their sums (PSA and IRN [code]:
    beta 8 and 10, 256 steps).

    A pixel's affinity to itself is 1. Every pixel takes a mean over its surroundings, so constants are kept, and the
    total of a map is not. T is never a matrix [ours], where the codes square one of all pairs eight times: on a CPU its
    2 P + 1 diagonals are multiplied one by one, which needs the least memory; on a GPU whole windows, which calls 4
    kernels a step in place of 2 P + 2 and holds (2 radius - 1)^2 times the maps.

    Args:
        affinity: (B, P, H, W) in [0, 1], see `bilateral_affinity`.
        maps: (B, C, H, W).
        radius: of the affinity, see `half_disc`.

    Returns:
        (B, C, H, W), at least float32.
    """
    pairs = len(half_disc(radius))
    if affinity.shape[1] != pairs or affinity.shape[2:] != maps.shape[2:]:
        raise ValueError(
            f"affinity must be (B, {pairs}, H, W) for radius {radius} and maps {tuple(maps.shape)}, got "
            f"{tuple(affinity.shape)}"
        )
    maps, weights = at_least_fp32(maps), at_least_fp32(affinity) ** beta
    spread = (spread_by_windows if maps.is_cuda else spread_by_diagonals)(weights, radius)
    columns = spread(torch.ones_like(maps[:, :1]))
    for _ in range(steps):
        maps = spread(maps) / columns
    return maps


def spread_by_diagonals(weights: Tensor, radius: int) -> Callable[[Tensor], Tensor]:
    """What adds to each pixel of maps (B, C, H, W) its neighbours' by their weights (B, P, H, W): pair by pair."""
    pairs = [(n, pair) for n, offset in enumerate(half_disc(radius)) if (pair := places(offset, *weights.shape[2:]))]

    def spread(values: Tensor) -> Tensor:
        found = values.clone()
        for number, (one, two) in pairs:
            here, there = (..., *one), (..., *two)
            weight = weights[(slice(None), slice(number, number + 1), *one)]
            found[here].addcmul_(weight, values[there])
            found[there].addcmul_(weight, values[here])
        return found

    return spread


def spread_by_windows(weights: Tensor, radius: int) -> Callable[[Tensor], Tensor]:
    """As `spread_by_diagonals`, of the window of (2 radius - 1)^2 pixels around each pixel at once; its corners, beyond
    the disc, weigh 0."""
    (batch, _, height, width), side = weights.shape, 2 * radius - 1
    windows = weights.new_zeros(batch, side, side, height, width)
    windows[:, radius - 1, radius - 1] = 1
    for number, (dy, dx) in enumerate(half_disc(radius)):
        if pair := places((dy, dx), height, width):
            for sign, place in zip((1, -1), pair, strict=True):
                at = (slice(None), radius - 1 + sign * dy, radius - 1 + sign * dx, *place)
                windows[at] = weights[(slice(None), number, *pair[0])]
    flat = windows.reshape(batch, 1, side**2, height * width)

    def spread(values: Tensor) -> Tensor:
        near = F.unfold(values, side, padding=radius - 1).unflatten(1, (values.shape[1], side**2))
        return near.mul_(flat).sum(2).unflatten(2, (height, width))

    return spread
