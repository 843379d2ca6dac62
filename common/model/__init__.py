"""Networks and what is done with one: teachers, optimizers, inference, scores, and the only base class."""
