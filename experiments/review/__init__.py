"""Where a model and the masks differ."""
