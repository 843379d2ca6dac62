"""Region relevance network: region discriminators on cross pseudo-supervision (Chen et al. 2023, arXiv 2304.11539)."""
