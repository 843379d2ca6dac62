"""What surrounds a run: checkpoints, loggers, callbacks, pictures."""
