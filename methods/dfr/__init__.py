"""Dynamic feature regularised loss with a feature consistency head (arXiv 2108.01296), in this project's reading."""
