"""What the project costs over a bare PyTorch loop. What a method costs over the supervised one: `steps`.

    python -m experiments.benchmarks.overhead > experiments/results/overhead.md

Both loops train the same network on the same batches with the same loss, optimizer and augmentation; they alternate,
and the figure is the median of the ratios of their step times.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from lightning import Callback

from common.model.module import SegmentationModule
from common.ops.losses import partial_cross_entropy
from common.training.memory import keep_freed
from datamodules.sets.synthetic import Synthetic
from experiments.benchmarks.measure import alternate, machine, options, ratio
from experiments.cli.configs import expand_configs
from experiments.cli.fit import Fit
from experiments.compare.columns import markdown

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
    model, data = cast(SegmentationModule, cli.model), cast(Synthetic, cli.datamodule)
    data.prepare_data()
    data.trainer = None
    network = model.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    ends: list[float] = []
    epochs = (batches for _ in itertools.count() for batches, _, _ in data.train_dataloader())
    for batches in itertools.islice(epochs, steps):
        ready = data.ready(batches)["labeled"]
        optimizer.zero_grad()
        partial_cross_entropy(network(ready["image"]), ready["mask"], ready["valid"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        ends.append(time.perf_counter())
    return step_time(ends)


def main() -> None:
    args = options(__doc__, side=256, batch=8, steps=12, rounds=9)
    keep_freed()  # as `weakseg fit` does
    sizes = (args.steps, args.side, args.batch)
    loops = {"bare PyTorch loop": lambda: bare_loop(*sizes), "weakseg fit": lambda: project_loop(*sizes)}
    with contextlib.redirect_stdout(sys.stderr):  # what a run prints is not part of the table
        times = alternate(loops, args.rounds)
    bare, ours = times.values()
    print(f"""# Cost of the project

Unet mobilenet_v2, {args.side} px, batch {args.batch}, {machine()}. Medians of {args.rounds} alternating
rounds of {args.steps} steps; made by `python -m experiments.benchmarks.overhead`.
""")
    rows = [["bare PyTorch loop", f"{median(bare):.3f}", "1", ""]]
    rows += [["weakseg fit", f"{median(ours):.3f}", *ratio(ours, bare, 3)]]
    print(markdown(["", "s/step", "ratio", "lowest and highest ratio"], rows))


if __name__ == "__main__":
    main()
