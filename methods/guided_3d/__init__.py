"""Proposals from boxes and depth, and a network that learns from them (after Sun et al. 2020, 2012.00242)."""
