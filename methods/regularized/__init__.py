"""Regularised losses for weak supervision: dense CRF, normalised cut, kernel cut, Gated CRF (arXiv 1803.09569)."""
