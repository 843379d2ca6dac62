"""Group-wise semantic mining: maps from groups of images that share tags (Li et al. 2021)."""
