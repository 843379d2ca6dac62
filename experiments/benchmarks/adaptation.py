"""What a frozen encoder and low-rank updates save: peak memory of training steps, against training the whole network.

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.adaptation

DINOv2-S with random weights, square images, forward, backward and AdamW in float32 on the CPU. Peak memory is the
highest resident size in building and training a network, less the size before. Linux only, whose kernel can begin the
peak anew; a GPU's allocator will show other figures.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from common.model.adapt import LoRAConfig
from common.model.networks import NetworkConfig, build_network
from experiments.compare.columns import markdown

LINEAR, DPT = {"arch": "Linear"}, {"arch": "UniMatchDPT"}
ROWS: dict[str, dict[str, Any]] = {
    "`freeze: encoder`, Linear": {**LINEAR, "freeze": "encoder"},
    "`freeze: encoder`": {**DPT, "freeze": "encoder"},
    "`lora: {rank: 8}`": {**DPT, "lora": LoRAConfig()},
    "whole network": DPT,
    "`freeze: 7` of 13 layers": {**DPT, "freeze": 7},
    "`lora: {rank: 8, layers: [qkv, proj, fc1, fc2]}`": {
        **DPT,
        "lora": LoRAConfig(layers=["qkv", "proj", "fc1", "fc2"]),
    },
    "`checkpoint_activations: true`": {**DPT, "checkpoint_activations": True},
}


def mebibytes(name: str) -> float:
    """`VmRSS`, the resident size of this process, or `VmHWM`, its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


def measure(settings: dict[str, Any], side: int, batch: int, steps: int) -> tuple[float, float]:
    """Trained parameters in millions, and peak memory in MiB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = mebibytes("VmRSS")
    network = build_network(NetworkConfig(encoder="vit_small_patch14_dinov2", **settings), 21)
    trained = [one for one in network.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4)
    image, mask = torch.rand(batch, 3, side, side), torch.randint(0, 21, (batch, side, side))
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(image), mask).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return sum(one.numel() for one in trained) / 1e6, mebibytes("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--side", type=int, default=518)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    if find_spec("peft") is not None:
        import peft  # noqa: F401  (its memory is not a network's)
    cells = []
    for row, settings in ROWS.items():
        millions, peak = measure(settings, options.side, options.batch, options.steps)
        cells.append([row, f"{millions:.2f}", f"{peak:.0f}"])
    print(markdown(["", "learns, million parameters", "peak memory, MiB"], cells))


if __name__ == "__main__":
    main()
