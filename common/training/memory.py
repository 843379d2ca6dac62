"""Memory of this process, as Linux counts it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Literal


def resident_gb(entry: Literal["VmRSS", "VmHWM"]) -> float:
    """What is resident now (`VmRSS`), or the most that was (`VmHWM`), in units of 2^30 bytes.

    Not `getrusage`: its peak begins with that of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(entry))) / 2**20


def reset_peak() -> None:
    """Let `VmHWM` start again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def keep_freed() -> None:
    """Have the C library keep the memory of freed tensors for the next step, instead of returning it to the system and
    asking for it again page by page: 3 to 6 % of a step's time on the CPU (measured). glibc only."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**25)  # the largest there is


def release_freed() -> None:
    """Undo `keep_freed`, so that what is resident is what is in use: where a decoded image takes hundreds of megabytes
    once, and nothing of its size is asked for again. glibc only."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(trim_threshold, 2**17)
        libc.mallopt(mmap_threshold, 2**20)
