"""Networks and what is done with one: teachers, optimizers, inference, scores, and the base classes of methods."""
