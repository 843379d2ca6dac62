"""Structured consistency with CutMix on a mean teacher (Kim et al. 2020, arXiv 2001.04647)."""
