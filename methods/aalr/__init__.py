"""AA&LR-style: one stage from image tags, with an adaptive affinity loss and label reassignment (arXiv 2108.01344)."""
