"""Bounding boxes: projections and near pixels of like colour (after BoxInst, Tian et al. 2021, arXiv 2012.02310)."""
