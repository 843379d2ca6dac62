"""A finished run: its directory, loading it, W&B."""
