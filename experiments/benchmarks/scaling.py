"""What data parallelism costs: measured on two CPU processes, predicted for GPUs from bytes and operations.

    OMP_NUM_THREADS=1 python -m experiments.benchmarks.scaling

Measured: seconds of a training step (forward, backward, SGD) with the same images per process on one process, on two
that do not talk, and on two under the strategy of `common.ops.distributed`; so what two processes take from each other
(memory bandwidth, caches) is told apart from the all-reduce. The three alternate; ratios are medians of the rounds'.

Predicted: a ring all-reduce of n GPUs moves 2 (n - 1) / n times the gradient through each of them, during the backward
pass (two thirds of the operations) except for the last bucket of 25 MB. Operations are counted by torch on the real
network; speeds of GPU and network are assumptions, printed with the result.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from common.model.networks import NetworkConfig, build_network
from experiments.benchmarks.measure import alternate, options, ratio, seconds
from experiments.compare.columns import markdown

SMALL = NetworkConfig("Unet", "resnet18")
LARGE = {
    "DeepLabV3Plus, ResNet-50": NetworkConfig("DeepLabV3Plus", "resnet50"),
    "UPerNet, Swin-B": NetworkConfig("UPerNet", "tu-swin_base_patch4_window7_224"),
}
IMAGES, SIDE = 8, 512  # per GPU
FLOPS = 200e12  # of a GPU in bf16 on such networks, about a fifth of an H100's peak
NVLINK, ETHERNET = 300e9, 25e9  # bytes/s through a GPU within a node, and its share of the network between nodes
BUCKET = 25 * 2**20  # DDP's


def worker(rank: int, world: int, folder: str, talk: bool, side: int, batch: int, steps: int) -> None:
    """Median seconds of a step, written into the folder by rank 0."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(0)
    network: Any = build_network(SMALL, 21)
    if talk:  # as common.training.run.house_arguments
        network = DistributedDataParallel(network, gradient_as_bucket_view=True, broadcast_buffers=False)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    image, mask = torch.rand(batch, 3, side, side), torch.randint(0, 21, (batch, side, side))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(image), mask).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    times = []
    for _ in range(steps + 2):
        dist.barrier()
        times.append(seconds(step))
    if rank == 0:
        Path(folder, "seconds").write_text(str(median(times[2:])))
    dist.destroy_process_group()


def measure(world: int, talk: bool, side: int, batch: int, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        spawn(worker, (world, folder, talk, side, batch, steps), world)  # type: ignore[no-untyped-call]
        return float(Path(folder, "seconds").read_text())


def gradient_bytes(config: NetworkConfig) -> int:
    return sum(4 * p.numel() for p in build_network(config, 21).parameters() if p.requires_grad)


def operations(config: NetworkConfig) -> int:
    """Of forward and backward for `IMAGES` images of `SIDE`."""
    with torch.device("meta"):
        image = torch.rand(IMAGES, 3, SIDE, SIDE)
    network = build_network(config, 21).to("meta")
    with FlopCounterMode(display=False) as counter:
        network(image)
    return 3 * int(counter.get_total_flops())


def predicted(size: int, compute: float, gpus: int) -> float:
    """Efficiency: the step without communication over the step with it."""
    bandwidth = NVLINK if gpus <= 8 else ETHERNET
    ring = 2 * (gpus - 1) / gpus / bandwidth
    shown = max(0.0, (size - BUCKET) * ring - 2 / 3 * compute) + min(size, BUCKET) * ring
    return compute / (compute + shown)


def main() -> None:
    args = options(__doc__, side=128, batch=8, steps=10, rounds=5)
    print(f"U-Net with ResNet-18, {args.batch} images of {args.side} pixels per process, one thread each, torch")
    print(f"{torch.__version__}; gradients {gradient_bytes(SMALL) / 2**20:.1f} MiB a step.\n")
    sizes = (args.side, args.batch, args.steps)
    forms = {"one process": (1, False), "two that do not talk": (2, False), "two under DDP": (2, True)}
    times = alternate({name: partial(measure, *form, *sizes) for name, form in forms.items()}, args.rounds)
    rows = [[name, f"{median(found):.3f}", *ratio(found, times["one process"])] for name, found in times.items()]
    print(markdown(["", "s/step", "to one process", "lowest and highest"], rows))
    print(f"\nPredicted for {IMAGES} images of {SIDE} pixels a GPU, assuming {FLOPS / 1e12:.0f} TFLOP/s a GPU,")
    print(f"{NVLINK / 1e9:.0f} GB/s within a node of 8 and {ETHERNET / 1e9:.0f} GB/s a GPU between nodes:\n")
    rows = []
    for name, config in LARGE.items():
        size, work = gradient_bytes(config), operations(config)
        cells = [name, f"{size / 2**20:.0f}", f"{work / 1e12:.1f}", f"{work / FLOPS:.3f}"]
        rows.append([*cells, *(f"{predicted(size, work / FLOPS, gpus):.3f}" for gpus in (8, 64))])
    head = ["network", "gradients, MiB", "operations, TFLOP", "s/step", "efficiency at 8 GPUs", "at 64"]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
