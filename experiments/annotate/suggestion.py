"""Which image to label next."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from common.ops.array import Array


def uncertainty(probabilities: Array) -> float:
    """Mean entropy of the pixels of a prediction, float (K, H, W), as a share of the highest possible: 0 to 1."""
    terms = -probabilities * np.log(np.clip(probabilities, 1e-12, 1))
    return float(terms.sum(0).mean() / np.log(len(probabilities)))


def next_image(scores: Mapping[str, float]) -> str | None:
    """The image to label next, given the `uncertainty` of those that could be; None if there is none."""
    return max(scores, key=lambda name: scores[name], default=None)
