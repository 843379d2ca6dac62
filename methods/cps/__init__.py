"""Cross pseudo-supervision with CutMix (Chen et al., CVPR 2021, arXiv 2106.01226)."""
