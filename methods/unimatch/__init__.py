"""UniMatch (Yang et al., CVPR 2023, arXiv 2208.09910) and its second version (2024, arXiv 2410.10777)."""
