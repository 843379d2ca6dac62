"""What a training step of each method costs against the supervised one: time, and peak memory.

    OMP_NUM_THREADS=2 python -m experiments.benchmarks.steps

A step is `compute_loss` and its backward pass on the CPU, all terms active, with the same network and the same labelled
images; methods that learn from unlabelled images have as many of them too. The methods alternate, and the figure is
the median of the ratios of their times, because a machine's speed drifts; memory is the peak of three steps of a
process of its own, above what imports and inputs take.

`to its passes` compares a method with the least that its definition asks of the networks: each learns from the labelled
images and as many mixed ones, after a pass without gradient that labels these; cross entropy, and nothing else.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

import methods
from common.model.module import SegmentationModule
from common.model.networks import NetworkConfig, build_network
from common.ops.losses import partial_cross_entropy
from common.training.memory import keep_freed, reset_peak, resident_gb

CLASSES = 21
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "Supervised": ("Supervised", {}),
    "TV": ("TV", {"start": 0}),
    "LevelSet": ("LevelSet", {"start": 0}),
    "Regularized, Gated CRF": ("Regularized", {"term": "gated_crf", "start": 0}),
    "Regularized, dense CRF at stride 2": ("Regularized", {"term": "crf", "start": 0}),
    "DFR": ("DFR", {"start": 0, "confident_start": 0}),
    "CutMix-Seg": ("CutMixSeg", {}),
    "SCL": ("SCL", {}),
    "UniMatch": ("UniMatch", {}),
    "CPS": ("CPS", {}),
    "RRN": ("RRN", {"region_conv": 2}),
}
LEARNERS = {"CutMix-Seg": 1, "SCL": 1, "CPS": 2}  # networks


def build(name: str, side: int, batch: int) -> tuple[SegmentationModule, Any]:
    """The method in training, at the end of its schedules, and a batch of what it needs."""
    torch.manual_seed(0)
    method, options = OPTIONS[name]
    found = getattr(methods, method)
    model = found(CLASSES, network=NetworkConfig("Unet", "mobilenet_v2"), **options).train()
    type(model).progress = property(lambda self: 1.0)
    plane = torch.ones(batch, side, side, dtype=torch.bool)
    key = torch.stack([torch.zeros(batch, dtype=torch.int64), torch.arange(batch)], 1)
    stream = {"image": torch.rand(batch, 3, side, side), "valid": plane, "key": key}
    mask = torch.randint(0, CLASSES, (batch, side, side)).where(torch.rand(batch, side, side) < 0.03, 255)
    streams: dict[str, Any] = {"labeled": {**stream, "mask": mask}}
    if "unlabeled" in found.streams:
        strong = torch.rand(batch, max(1, found.strong_views), 3, side, side)
        streams["unlabeled"] = {**stream, "mask": torch.full_like(mask, 255)}
        if found.strong_views:
            streams["unlabeled"]["strong"] = strong
    return model, streams


def step(model: SegmentationModule, batch: Any) -> float:
    """Seconds of forward and backward."""
    model.zero_grad()
    since = time.perf_counter()
    model.compute_loss(batch).loss.backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - since


def passes_alone(count: int, side: int, batch: int) -> Callable[[], float]:
    """A step of what semi-supervised learning with so many networks cannot do without; it returns its seconds."""
    torch.manual_seed(0)
    networks = [build_network(NetworkConfig("Unet", "mobilenet_v2"), CLASSES).train() for _ in range(count)]
    image, mask = torch.rand(2 * batch, 3, side, side), torch.randint(0, CLASSES, (2 * batch, side, side))

    def run() -> float:
        since = time.perf_counter()
        for network in networks:
            network.zero_grad()
            network.eval()
            with torch.no_grad():
                network(image[batch:])
            network.train()
            partial_cross_entropy(network(image), mask).backward()  # type: ignore[no-untyped-call]
        return time.perf_counter() - since

    return run


def own_peak(name: str, side: int, batch: int) -> float:
    """Peak GB of three steps in this process."""
    model, streams = build(name, side, batch)
    before = resident_gb("VmRSS")
    reset_peak()
    for _ in range(3):
        step(model, streams)
    return resident_gb("VmHWM") - before


def peak_memory(name: str, side: int, batch: int) -> float:
    """The same in a process of its own."""
    code = f"from experiments.benchmarks.steps import own_peak; print(own_peak({name!r}, {side}, {batch}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8, help="labelled images, and as many unlabelled ones")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    keep_freed()  # as `weakseg fit` does
    print(f"U-Net with MobileNetV2, {args.batch} labelled images of {args.side} pixels, {CLASSES} classes,")
    print(f"{torch.get_num_threads()} CPU threads, torch {torch.__version__}, {args.rounds} rounds.\n")
    built = {name: build(name, args.side, args.batch) for name in OPTIONS}
    for one in built.values():
        step(*one)
    alone = {count: passes_alone(count, args.side, args.batch) for count in set(LEARNERS.values())}
    for run in alone.values():
        run()
    rounds: list[dict[str | int, float]] = []
    for _ in range(args.rounds):
        rounds.append({name: step(*one) for name, one in built.items()})
        rounds[-1] |= {count: run() for count, run in alone.items()}
    base = peak_memory("Supervised", args.side, args.batch)
    print("| method | s/step | to supervised | lowest and highest | to its passes | peak GB | to supervised |")
    print("|---" * 7 + "|")
    for name in OPTIONS:
        ratios = sorted(one[name] / one["Supervised"] for one in rounds)
        memory = peak_memory(name, args.side, args.batch)
        cells = [name, f"{median(one[name] for one in rounds):.3f}", f"{median(ratios):.2f}"]
        least = f"{median(one[name] / one[LEARNERS[name]] for one in rounds):.2f}" if name in LEARNERS else ""
        cells += [f"{ratios[0]:.2f}, {ratios[-1]:.2f}", least, f"{memory:.2f}", f"{memory / base:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
