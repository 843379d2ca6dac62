"""`weakseg push`: a run to the Hugging Face hub; what it needs is imported once the command line is right."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> None:
    """`weakseg push`. Raises what `experiments.runs.hub.push` does."""
    parser = argparse.ArgumentParser(
        prog="weakseg push",
        allow_abbrev=False,
        description="A run to the Hugging Face hub: checkpoint, config, summary, metrics, and a page made of them.",
    )
    parser.add_argument("repository", help="USER/NAME; it is made if it is not there")
    parser.add_argument("--run", type=Path, required=True, help="run directory")
    parser.add_argument("--which", choices=["best", "last"], default="best", help="checkpoint of the run (best)")
    parser.add_argument("--public", action="store_true", help="a new repository is for all to see (private)")
    options = parser.parse_args(arguments)
    from experiments.runs.hub import push

    print(f"{options.run} is at {push(options.run, options.repository, options.which, options.public)}")
