"""`weakseg datamodules`: the data sets there are."""

from __future__ import annotations

from collections.abc import Sequence

import datamodules
from experiments.cli.methods import listing


def main(arguments: Sequence[str]) -> None:
    print(listing(datamodules.CLASSES))
