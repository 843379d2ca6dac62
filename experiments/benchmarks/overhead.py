"""What the project costs over a bare PyTorch loop, and what a method's loss costs over the supervised one.

    python -m experiments.benchmarks.overhead > experiments/results/overhead.md

Both loops train the same network on the same batches with the same loss, optimizer and augmentation; they alternate,
and the figure is the median of the ratios of their step times, because a machine's speed drifts. Losses are compared
likewise; memory is the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning import Callback

import methods
from common.model.module import SegmentationModule
from common.ops.losses import partial_cross_entropy
from common.training.memory import keep_freed
from datamodules.sets.synthetic import Synthetic
from experiments.cli.configs import expand_configs
from experiments.cli.fit import Fit

CONFIG = """
compose: [{configs}/base.yaml]
trainer: {{max_steps: {steps}, val_check_interval: {steps}, limit_val_batches: 0, enable_progress_bar: false}}
data:
  class_path: Synthetic
  init_args:
    {{side: {side}, size: {side}, batch_size: {batch}, num_workers: 1, supervision: {{kind: pixels, fraction: 0.001}}}}
model:
  class_path: {method}
  init_args: {{network: {{arch: Unet, encoder: mobilenet_v2}}}}
checkpoint_every: 1000
"""
CONFIGS = Path(__file__).parents[1] / "configs"


class StepTimes(Callback):
    """Seconds between the ends of successive steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.ends.append(time.perf_counter())


def step_time(ends: list[float]) -> float:
    """Mean seconds a step, without the first two (threads and memory are being set up)."""
    return (ends[-1] - ends[2]) / (len(ends) - 3)


def build(method: str, steps: int, side: int, batch: int, folder: Path, more: Sequence[str] = ()) -> Fit:
    """Model, data and trainer as `weakseg fit` makes them from these and `more` words, without running it."""
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(configs=CONFIGS, steps=steps, side=side, batch=batch, method=method))

    class Built(Fit):
        def _run_subcommand(self, subcommand: str) -> None:
            pass

    words = [*expand_configs(["--config", str(config)]), *more]
    return Built([*words, "--run_dir", str(folder / "run"), "--overwrite=true"], words)


def project_loop(steps: int, side: int, batch: int) -> float:
    """Seconds a step of `weakseg fit`."""
    with tempfile.TemporaryDirectory() as folder:
        cli = build("Supervised", steps, side, batch, Path(folder))
        times = StepTimes()
        cli.trainer.callbacks.append(times)  # type: ignore[attr-defined]
        cli.trainer.fit(cli.model, cli.datamodule)
        return step_time(times.ends)


def bare_loop(steps: int, side: int, batch: int) -> float:
    """Seconds a step of the loop that one would write by hand, on the same data."""
    with tempfile.TemporaryDirectory() as folder:
        cli = build("Supervised", steps, side, batch, Path(folder))
        model, data = cli.model, cli.datamodule
    assert isinstance(model, SegmentationModule)
    assert isinstance(data, Synthetic)
    data.prepare_data()
    data.trainer = None
    network = model.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    ends: list[float] = []
    while len(ends) < steps:
        for batches, _, _ in iter(data.train_dataloader()):
            ready = data.ready(batches)["labeled"]
            optimizer.zero_grad()
            loss = partial_cross_entropy(network(ready["image"]), ready["mask"], ready["valid"])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            ends.append(time.perf_counter())
            if len(ends) == steps:
                break
    return step_time(ends)


def loss_step(method: str, steps: int, side: int, batch: int) -> float:
    """Seconds of forward, loss and backward of a method on one fixed batch."""
    torch.manual_seed(0)
    model = getattr(methods, method)(num_classes=6)
    type(model).progress = property(lambda self: 1.0)  # no trainer: every term at full weight
    image = torch.rand(batch, 3, side, side)
    mask = torch.where(torch.rand(batch, side, side) < 0.001, torch.randint(0, 6, (batch, side, side)), 255)
    labeled = {"image": image, "mask": mask, "valid": torch.ones_like(mask, dtype=torch.bool)}
    ends = []
    for _ in range(steps):
        model.compute_loss({"labeled": labeled}).loss.backward()
        model.zero_grad()
        ends.append(time.perf_counter())
    return step_time(ends)


def peak_memory(method: str, side: int, batch: int) -> float:
    """Peak GB of a process that does three steps of a method."""
    code = (
        "from common.training.memory import resident_gb; from experiments.benchmarks.overhead import loss_step; "
        f"loss_step('{method}', 6, {side}, {batch}); "
        "print(resident_gb('VmHWM'))"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    keep_freed()  # as `weakseg fit` does
    sizes = (args.steps, args.side, args.batch)
    with contextlib.redirect_stdout(sys.stderr):  # what a run prints is not part of the table
        loops = [(bare_loop(*sizes), project_loop(*sizes)) for _ in range(args.rounds)]
    losses = [(loss_step("Supervised", *sizes), loss_step("TV", *sizes)) for _ in range(args.rounds)]
    memory = [peak_memory(method, args.side, args.batch) for method in ("Supervised", "TV")]
    ratios = sorted(b / a for a, b in loops)
    print("# Cost of the project and of the losses\n")
    print(
        f"Unet mobilenet_v2, {args.side} px, batch {args.batch}, {torch.get_num_threads()} CPU threads, torch", end=" "
    )
    print(f"{torch.__version__}, Python {platform.python_version()}. Medians of {args.rounds} alternating rounds of")
    print(f"{args.steps} steps; made by `python -m experiments.benchmarks.overhead`.\n")
    print("| | s/step | ratio | lowest and highest ratio |\n|---|---|---|---|")
    print(f"| bare PyTorch loop | {median(a for a, _ in loops):.3f} | 1 | |")
    span = f"{ratios[0]:.3f}, {ratios[-1]:.3f}"
    print(f"| weakseg fit | {median(b for _, b in loops):.3f} | {median(ratios):.3f} | {span} |")
    ratios = sorted(b / a for a, b in losses)
    print("\n| forward, loss, backward | s/step | ratio | lowest and highest ratio | peak GB |\n|---|---|---|---|---|")
    print(f"| supervised | {median(a for a, _ in losses):.3f} | 1 | | {memory[0]:.2f} |")
    span = f"{ratios[0]:.3f}, {ratios[-1]:.3f}"
    print(f"| TV | {median(b for _, b in losses):.3f} | {median(ratios):.3f} | {span} | {memory[1]:.2f} |")


if __name__ == "__main__":
    main()
