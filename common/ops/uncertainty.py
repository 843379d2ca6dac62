"""How sure a prediction is, pixel by pixel, and which of many images to look at: what `suggest` and `annotate` share.

    score = entropy(probabilities).mean()
    order = spread_out(features, scores, 20, known)

All maps lie in [0, 1], whatever the number of classes K, so that images and runs can be compared.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy of each pixel of (..., K, H, W), as a share of the highest possible, ln K: (..., H, W)."""
    return -torch.xlogy(probabilities, probabilities).sum(-3) / math.log(probabilities.shape[-3])


def margin(probabilities: Tensor) -> Tensor:
    """How near the second class comes to the first: 1 - (p1 - p2) of each pixel of (..., K, H, W): (..., H, W)."""
    first, second = probabilities.topk(2, -3).values.unbind(-3)
    return 1 - (first - second)


def disagreement(members: Tensor) -> Tensor:
    """How far M predictions of an image differ: (M, K, H, W) -> (H, W).

    The generalised Jensen-Shannon divergence, H(mean of the members) - mean of H(members), of query by committee
    (McCallum & Nigam, ICML 1998, the mean KL divergence to the mean), as a share of the highest possible,
    ln min(M, K). Members that are unsure alike agree: 0.
    """
    count, classes = members.shape[:2]
    most = math.log(min(count, classes)) / math.log(classes)
    return ((entropy(members.mean(0)) - entropy(members).mean(0)) / most).clamp(0, 1)


def spread_out(features: Tensor, weights: Tensor, count: int, known: Tensor | None = None) -> list[int]:
    """Indices of `count` items, the most useful first, that are unlike each other and unlike what is known.

    Greedy k-center (Sener & Savarese, ICLR 2018, arXiv 1708.00489, Algorithm 1): the next item is the one whose nearest
    center, chosen or known, is farthest. [ours] The distance is multiplied by the item's weight (its uncertainty), and
    where nothing is known the first item is the one of the highest weight; with equal weights it is the paper's.

    Args:
        features: (N, D), compared by their Euclidean distance.
        weights: (N,), not negative.
        known: (M, D), the features of what has labels.

    Returns:
        min(count, N) different indices.
    """
    nearest = torch.ones_like(weights)
    if known is not None and len(known):
        nearest = torch.cdist(features, known).amin(1)
    chosen: list[int] = []
    left = torch.ones_like(weights, dtype=torch.bool)
    while len(chosen) < min(count, len(features)):
        number = int((weights * nearest).masked_fill(~left, -1).argmax())
        away = torch.cdist(features, features[number : number + 1])[:, 0]
        nearest = away if not chosen and (known is None or not len(known)) else torch.minimum(nearest, away)
        chosen.append(number)
        left[number] = False
    return chosen
