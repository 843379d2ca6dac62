"""Total-variation loss on the class-probability image (Javanmardi et al. 2016, arXiv 1605.01368)."""
