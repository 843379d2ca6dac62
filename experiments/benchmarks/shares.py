"""Where the time of training goes, method by method: network, loss, optimizer, data, and all the rest.

    OMP_NUM_THREADS=2 python -m experiments.benchmarks.shares docs/shares.png

Short runs of the real `fit` on the CPU, on synthetic scenes. Lightning's profiler knows the data, the step and its
backward pass; hooks on the networks split these. In a backward pass the loss comes first: it ends where the first
gradient reaches a network's output. The first steps are not counted, validation is off, and a row is logged every
tenth step as in any run. Discriminators, heads and the mixing of images count as loss.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import SimpleProfiler
from matplotlib.figure import Figure
from torch import Tensor

import methods
from common.model.networks import SegmentationNetwork
from common.training.memory import keep_freed
from experiments.benchmarks.measure import options
from experiments.benchmarks.overhead import build
from experiments.benchmarks.steps import OPTIONS
from experiments.compare.columns import markdown

WARM_UP = 3  # steps not counted: threads, memory and data workers are being set up
KINDS = ("network", "loss", "optimizer", "data", "rest")
COLORS = ("#4477aa", "#ee6677", "#ccbb44", "#228833", "#bbbbbb")


class NetworkTime(Callback):
    """Seconds of each step in the forward passes of networks, and from the start of the backward pass to the first
    gradient of a network's output."""

    def __init__(self) -> None:
        self.forward = self.loss_backward = self.total = 0.0  # seconds of the steps that count
        self.began = self.started = self.counted_from = 0.0
        self.steps, self.reached = 0, False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for network in pl_module.modules():
            if isinstance(network, SegmentationNetwork):
                # Its parts: methods call them apart, to see features or to perturb them.
                for part in (network.model.encoder, network.model.decoder, network.model.segmentation_head):
                    part.register_forward_pre_hook(self.enter)
                    part.register_forward_hook(self.leave)
                network.model.segmentation_head.register_forward_hook(self.watch)

    def enter(self, *args: Any) -> None:
        self.began = time.perf_counter()

    def leave(self, *args: Any) -> None:
        self.forward += time.perf_counter() - self.began

    def watch(self, module: Any, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(self.reach)  # type: ignore[no-untyped-call]

    def reach(self, gradient: Tensor) -> None:
        if not self.reached:
            self.loss_backward += time.perf_counter() - self.started
            self.reached = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.reached = False

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps += 1
        if self.steps == WARM_UP:
            self.counted_from, self.forward, self.loss_backward = time.perf_counter(), 0.0, 0.0
        self.total = time.perf_counter() - self.counted_from

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.started = time.perf_counter()


class Durations(SimpleProfiler):
    """Lightning's profiler, without its table."""

    def describe(self) -> None:
        pass

    def seconds(self, action: str) -> float:
        """Of what is called so, or ends in `.action`, in the steps that count."""
        durations = self.recorded_durations.items()
        return sum(sum(times[WARM_UP:]) for name, times in durations if name.endswith(action))


def measure(name: str, steps: int, side: int, batch: int) -> dict[str, float]:
    """Seconds a step of a method, by kind."""
    method, options = OPTIONS[name]
    found = getattr(methods, method)
    config: dict[str, Any] = {"model": {"init_args": options}}
    if "unlabeled" in found.streams:
        unlabeled = {"unlabeled_batch_size": batch, "unlabeled_pool": "all", "strong_views": found.strong_views}
        config["data"] = {"init_args": unlabeled}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        more = Path(folder) / "more.yaml"
        more.write_text(yaml.safe_dump(config))
        cli = build(method, steps, side, batch, Path(folder), ["--config", str(more)])
        clock, profiler = NetworkTime(), Durations()
        cli.trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        cli.trainer.profiler = profiler  # type: ignore[attr-defined]
        cli.trainer.fit(cli.model, cli.datamodule)
    step, backward = profiler.seconds(".training_step"), profiler.seconds("Strategy.backward")
    checks = profiler.seconds(".on_before_optimizer_step")
    spent = {
        "network": clock.forward + backward - clock.loss_backward,
        "loss": step - clock.forward + clock.loss_backward,
        "optimizer": profiler.seconds(".optimizer_step") - step - backward - checks,
        "data": profiler.seconds(".train_dataloader_next") + profiler.seconds(".batch_to_device"),
    }
    spent["rest"] = clock.total - sum(spent.values())
    return {kind: seconds / (steps - WARM_UP) for kind, seconds in spent.items()}


def draw(found: dict[str, dict[str, float]], path: str) -> None:
    """A bar of each method, in per cent."""
    figure = Figure(figsize=(8, 0.38 * len(found) + 1), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(found)
    for kind, color in zip(KINDS, COLORS, strict=True):
        width = [100 * one[kind] / sum(one.values()) for one in found.values()]
        axes.barh([*found], width, left=left, color=color, label=kind)
        left = [a + b for a, b in zip(left, width, strict=True)]
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="time of a training step, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(KINDS), frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    args = options(__doc__, "picture", side=128, batch=8, steps=23)
    keep_freed()  # as `weakseg fit` does
    found = {name: measure(name, args.steps, args.side, args.batch) for name in OPTIONS}
    rows = []
    for name, one in found.items():
        images, total = args.batch * len(getattr(methods, OPTIONS[name][0]).streams), sum(one.values())
        parts = [f"{100 * one[kind] / total:.1f}" for kind in KINDS]
        rows.append([name, f"{images / total:.1f}", f"{total:.3f}", *parts])
    print(markdown(["method", "images/s", "s/step", *(f"{kind}, %" for kind in KINDS)], rows))
    draw(found, args.picture)


if __name__ == "__main__":
    main()
