"""Memory of a process: what the C library does with freed tensors."""

import subprocess
import sys

FAULTS = """
import random, resource, sys
import torch
from common.memory import keep_freed
if sys.argv[1] == "keep":
    keep_freed()
random.seed(0)
sizes = [random.randrange(2**16, 2**22) for _ in range(40)]  # to 16 MiB: with one size memory is reused anyway
def step():
    held = []
    for size in sizes:
        held.append(torch.ones(size))
        if len(held) > 8:
            held.pop(random.randrange(8))
for _ in range(8):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_of_freed_tensors_is_kept_for_the_next_ones():
    returned = faults("return")
    assert returned > 10_000
    assert faults("keep") < returned / 4
