"""Weights that change over a run, as fractions of its steps, so that they survive a change of batch or length."""

from __future__ import annotations


def ramp(progress: float, start: float, length: float) -> float:
    """0 before `start`, 1 after `start + length`, linear between; all are fractions of the run in [0, 1]."""
    if progress < start:
        return 0.0
    return 1.0 if length <= 0 else min(1.0, (progress - start) / length)
