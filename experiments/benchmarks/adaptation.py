"""What a frozen encoder and low-rank updates save: peak memory and time of a training step, against training it all.

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.adaptation

Each row is a process of its own, since a peak cannot be taken back: `UniMatchDPT` (or `Linear`) on DINOv2-S with random
weights, square images, forward, backward and AdamW in float32 on the CPU. Peak memory is the highest resident size of
the process in the steps, less what it had before the network was built; a GPU's allocator will show other figures, in
much the same proportion.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch.nn import functional as F

from common.model.adapt import LoRAConfig
from common.model.networks import NetworkConfig, build_network
from experiments.compare.columns import markdown

ROWS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, activations computed twice": {"checkpoint_activations": True},
    "the first 7 of 13 layers frozen": {"freeze": 7},
    "LoRA, rank 8, attention": {"lora": True},
    "LoRA, rank 8, attention and MLP": {"lora": ["qkv", "proj", "fc1", "fc2"]},
    "frozen encoder": {"freeze": "encoder"},
    "frozen encoder, Linear": {"freeze": "encoder", "arch": "Linear"},
}


def peak() -> float:
    """Highest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(row: str, side: int, batch: int, steps: int) -> dict[str, float]:
    """Trained parameters in millions, peak memory in MiB and seconds a step."""
    settings = {"arch": "UniMatchDPT", **ROWS[row]}
    if layers := settings.pop("lora", None):
        settings["lora"] = LoRAConfig(layers=[] if layers is True else layers)
        import peft  # noqa: F401  (its memory is not the network's)
    before = peak()
    network = build_network(NetworkConfig(encoder="vit_small_patch14_dinov2", **settings), 21)
    trained = [one for one in network.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4)
    image, mask = torch.rand(batch, 3, side, side), torch.randint(0, 21, (batch, side, side))
    times = []
    for _ in range(steps):
        start = perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(network(image), mask).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        times.append(perf_counter() - start)
    return {"M": sum(one.numel() for one in trained) / 1e6, "MiB": peak() - before, "s": median(times[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--side", type=int, default=518)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--row", choices=ROWS, help="of a process that the command starts")
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options.row, options.side, options.batch, options.steps)))
        return
    cells = []
    for row in ROWS:
        words = [f"--{name}={getattr(options, name)}" for name in ("side", "batch", "steps")]
        command = [sys.executable, "-m", "experiments.benchmarks.adaptation", f"--row={row}", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
        found = json.loads(done.stdout.splitlines()[-1])
        cells.append([row, f"{found['M']:.2f}", f"{found['MiB']:.0f}", f"{found['s']:.2f}"])
    print(markdown(["trained", "parameters, M", "peak memory, MiB", "s a step"], cells))


if __name__ == "__main__":
    main()
