"""Class activation maps of a classifier that learns from image tags (Zhou et al. 2016, arXiv 1512.04150)."""
