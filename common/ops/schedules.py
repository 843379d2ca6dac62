"""Weights that change over a run, as fractions of its steps, so that they survive a change of batch or length."""

from __future__ import annotations

import math


def linear_ramp(progress: float, start: float, length: float) -> float:
    """0 before `start`, 1 after `start + length`, linear between; all are fractions of the run in [0, 1].

    weight = linear_ramp(self.progress, self.start, self.ramp)
    """
    if progress < start:
        return 0.0
    return 1.0 if length <= 0 else min(1.0, (progress - start) / length)


def sigmoid_ramp(progress: float, length: float) -> float:
    """`exp(-5 (1 - t)^2)` with t from 0 to 1 over the first `length` of the run, 1 after (mean teacher, 1703.01780)."""
    return 1.0 if progress >= length else math.exp(-5 * (1 - progress / length) ** 2)
