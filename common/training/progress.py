"""How far a run is: a bar on a terminal, lines in a file."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

LOSS = {"train/loss": ("loss", ".4g")}


def progress(told: Mapping[str, Any]) -> list[Callback]:
    """The callback that shows progress, unless the trainer's arguments say `enable_progress_bar: False`."""
    return [] if told.get("enable_progress_bar") is False else [RunProgress()]


class Bar(Tqdm):
    """A bar without Lightning's number of the only loader, and short enough for 80 columns."""

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        super().set_description((desc or "").removesuffix(" DataLoader 0"), refresh)


class RunProgress(TQDMProgressBar):
    """Optimizer steps of the whole run, with the loss, the last score (the method's, mostly val/miou) and the time left
    (validations included). A continued run goes on where it stopped. Where stdout is no terminal there is a line at
    each validation instead."""

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(self) -> None:
        super().__init__()
        self.lines = not sys.stdout.isatty()
        if self.lines:
            self.disable()

    def _bar(self, name: str, below: bool = False, **counts: Any) -> Bar:
        return Bar(desc=name, position=int(below), disable=self.is_disabled, leave=not below, dynamic_ncols=True,
                   file=sys.stdout, smoothing=0, bar_format=self.BAR_FORMAT, **counts)  # fmt: skip

    def init_train_tqdm(self) -> Bar:
        return self._bar("train", total=self.total, initial=self.first)

    def init_validation_tqdm(self) -> Bar:
        return self._bar("val", below=self.trainer.state.fn != "validate")

    def init_test_tqdm(self) -> Bar:
        return self._bar("test")

    def init_predict_tqdm(self) -> Bar:
        return self._bar("predict")

    @property
    def validation_description(self) -> str:
        return "val"

    @property
    def test_description(self) -> str:
        return "test"

    @property
    def predict_description(self) -> str:
        return "predict"

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        known = trainer.callback_metrics
        shown = {**LOSS, str(pl_module.score): ("val", ".2f")}
        return {name: f"{float(known[key]):{how}}" for key, (name, how) in shown.items() if key in known}

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        steps = trainer.estimated_stepping_batches
        self.total = None if math.isinf(steps) else int(steps)
        self.first, self.since = trainer.global_step, time.monotonic()
        super().on_train_start(trainer, *_)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        pass  # epochs are no matter of a run's length here

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        bar = self.train_progress_bar
        if bar.n != trainer.global_step and not bar.disable:  # a step may have several batches
            bar.n = trainer.global_step
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.lines and trainer.is_global_zero and trainer.state.fn == "fit" and not trainer.sanity_checking:
            print(self.line(trainer, pl_module), flush=True)

    def line(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """For a file: step, loss, score and the time left."""
        step, metrics = trainer.global_step, self.get_metrics(trainer, pl_module)
        parts = [f"step {step}" + (f" of {self.total}" if self.total else "")]
        parts += [f"{name} {value}" for name, value in metrics.items()]
        if self.total and step > self.first:
            left = (time.monotonic() - self.since) / (step - self.first) * (self.total - step)
            parts.append(f"{Bar.format_interval(left)} left")
        return ", ".join(parts)
