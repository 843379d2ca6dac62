"""`weakseg methods`: the papers and baselines there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import methods
from common.training.discovery import Found


def main(arguments: Sequence[str]) -> None:
    print(listing(methods.CLASSES))


def listing(classes: Mapping[str, Found]) -> str:
    """Names and first docstring lines, without importing the classes."""
    width = max(map(len, classes), default=0)
    return "\n".join(f"{name:{width}}  {found.line}" for name, found in sorted(classes.items()))
