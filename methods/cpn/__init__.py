"""Complementary patch network: maps of an image and of two complementary parts of it (Zhang et al. 2021)."""
