"""Memory of a process: what the C library does with freed tensors."""

import subprocess
import sys

import pytest

HELD = """
import sys
import torch
from common.training.memory import keep_freed, release_freed, resident_gb
if sys.argv[1] != "return":
    keep_freed()
if sys.argv[1] == "release":
    release_freed()
before = resident_gb("VmRSS")
tensors = [torch.ones(2**22) for _ in range(16)]  # 16 MiB each
del tensors
print(resident_gb("VmRSS") - before)
"""


@pytest.mark.parametrize(("how", "held"), [("keep", 0.25), ("return", 0), ("release", 0)])
def test_memory_of_freed_tensors_is_kept_for_the_next_ones(how, held):
    done = subprocess.run([sys.executable, "-c", HELD, how], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(held, abs=0.05)  # GiB
