"""The baseline: cross entropy on the labelled pixels."""
