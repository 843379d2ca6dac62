"""`weakseg` as a process of its own."""

from __future__ import annotations

import os
import sys

PROGRAM = (sys.executable, "-m", "experiments.cli")


def environment() -> dict[str, str]:
    """This process's, without the working directory on the module path: `python -m` would put it first, and a user's
    `common.py` there would be taken for ours. The processes that such a one starts for further GPUs inherit it."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}
