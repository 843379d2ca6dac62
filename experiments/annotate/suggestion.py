"""Which image to label next."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from common.ops.array import Array
from common.ops.uncertainty import entropy


def uncertainty(probabilities: Array) -> float:
    """Mean entropy of the pixels of a prediction, float (K, H, W), as a share of the highest possible: 0 to 1."""
    return float(entropy(torch.from_numpy(probabilities)).mean())


def next_image(scores: Mapping[str, float]) -> str | None:
    """The image to label next, given the `uncertainty` of those that could be; None if there is none."""
    return max(scores, key=lambda name: scores[name], default=None)
