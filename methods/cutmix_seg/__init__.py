"""CutMix-Seg: consistency under mixed images on a mean teacher (French et al., BMVC 2020, arXiv 1906.01916)."""
