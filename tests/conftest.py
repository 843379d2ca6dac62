"""Running the real command on tiny data."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "tiny.yaml"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Drawn annotations of tests stay out of the user's cache."""
    monkeypatch.setenv("WEAKSEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def weakseg(*arguments, expect: int = 0) -> str:
    """Run a command in this process (starting Python and torch anew costs seconds); returns all it printed."""
    from experiments.cli import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
    assert status == expect, f"exit status {status}, expected {expect}:\n{output.getvalue()}"
    return output.getvalue()


def weakseg_process(*arguments, **environment) -> subprocess.Popen:
    """Start a command in a process of its own (to kill it, or to run several)."""
    command = [sys.executable, "-m", "experiments.cli", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def fit_tiny(run_dir, *arguments, expect: int = 0) -> str:
    return weakseg("fit", "--config", TINY, "--run_dir", run_dir, *arguments, expect=expect)
