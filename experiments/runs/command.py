"""`weakseg` as a process of its own."""

from __future__ import annotations

import os
import sys

PROGRAM = (sys.executable, "-m", "experiments.cli")


def environment() -> dict[str, str]:
    """This process's environment, for a child that finds no modules in the working directory: `python -m` would look
    there first, and take a user's `common.py` for ours. What the child starts for further GPUs inherits it."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}
