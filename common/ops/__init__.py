"""Tensors in, tensors out: usable without Lightning and without a network."""
