"""The progress bar on a terminal of 80 columns, and the lines in a file."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from conftest import ROOT, TINY, fit_tiny, weakseg

LONG = ["--trainer.max_steps", "8", "--trainer.val_check_interval", "2", "--trainer.enable_progress_bar", "true"]


def on_terminal(*arguments, columns=80):
    """What a command writes to a terminal, which it takes its stdout and stderr for."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-W", "ignore", "-m", "experiments.cli", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 65536):
            seen += piece
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0, seen.decode()
    return seen.decode()


def bars(text, name):
    """What a bar showed, in order."""
    shown = [re.sub(r"\x1b\[[A-Z]", "", piece).rstrip() for piece in re.split(r"[\r\n]+", text)]
    return [piece for piece in shown if piece.startswith(f"{name}: ")]


def test_the_bar_counts_the_steps_of_the_run_fits_and_goes_on_where_the_run_stopped(tmp_path):
    run = ["fit", "--config", TINY, "--run_dir", tmp_path / "run", *LONG]
    text = on_terminal(*run, "--trainer.max_steps", "5")
    text += on_terminal(*run, "--resume", "auto")
    seen = bars(text, "train")
    assert max(map(len, seen)) <= 80
    counts = [tuple(map(int, re.search(r" (\d+)/(\d+) \[", piece).groups())) for piece in seen]
    assert counts == sorted(counts, key=lambda count: (count[1], count[0]))  # an epoch has three steps
    assert (counts[0], counts[-1]) == ((0, 5), (8, 8))
    assert min(step for step, total in counts if total == 8) == 5
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, loss=\d\.\d+, val=\d+\.\d\d\]$", seen[-1])
    assert all("DataLoader" not in piece and len(piece) <= 80 for piece in bars(text, "val"))
    assert bars(text, "val")


def test_an_evaluation_has_a_bar(tmp_path):
    fit_tiny(tmp_path / "run", "--trainer.max_steps", "1")
    assert re.search(r" 3/3 \[", bars(on_terminal("test", "--run", tmp_path / "run", *LONG[-2:]), "test")[-1])


def test_a_file_gets_a_line_at_each_validation_and_no_bar(tmp_path):
    text = fit_tiny(tmp_path / "run", *LONG)
    lines = re.findall(r"^step (\d+) of 8, loss \d\.\d+, val \d+\.\d\d, \d\d:\d\d left$", text, re.MULTILINE)
    assert lines == ["2", "4", "6", "8"]
    assert "\r" not in text
    assert "%|" not in weakseg("validate", "--run", tmp_path / "run", *LONG[-2:])


@pytest.mark.parametrize("accumulated", [1, 2])
def test_steps_are_those_of_the_optimizer(accumulated, tmp_path):
    text = fit_tiny(tmp_path / "run", *LONG, "--trainer.accumulate_grad_batches", accumulated)
    assert "step 8 of 8, " in text
