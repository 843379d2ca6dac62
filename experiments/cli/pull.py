"""`weakseg pull`: a run from the Hugging Face hub; what it needs is imported once the command line is right."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> None:
    """`weakseg pull`. Raises what `experiments.runs.hub.pull` does."""
    parser = argparse.ArgumentParser(
        prog="weakseg pull",
        allow_abbrev=False,
        description="A run that `weakseg push` has uploaded to the Hugging Face hub.",
    )
    parser.add_argument("repository", help="USER/NAME")
    parser.add_argument("--output", type=Path, required=True, help="run directory, which is made")
    parser.add_argument("--revision", help="branch, tag or commit (the newest)")
    options = parser.parse_args(arguments)
    from experiments.runs.hub import pull

    names = pull(options.repository, options.output, options.revision)
    print(f"{options.repository} is in {options.output}: {', '.join(names)}")
