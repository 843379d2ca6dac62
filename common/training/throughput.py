"""How fast a run trains, and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler

from common.training.memory import resident_gb


class FetchTimer(PassThroughProfiler):
    """Adds up the seconds that the training loop waits for its loader (the default profiler; replaces none)."""

    def __init__(self) -> None:
        super().__init__()
        self.waited, self._since = 0.0, 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.waited += time.perf_counter() - self._since


class Throughput(Callback):
    """Logs `perf/images_per_s`, `perf/data_wait` (share of training time spent waiting for the loader) and
    `perf/peak_memory_gb` at the logging interval. Validation time is not counted."""

    def __init__(self) -> None:
        self.total_images, self.total_seconds = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        self._since, self._images, self._paused = time.perf_counter(), 0, 0.0
        self._waited, self._step = self._wait(trainer), trainer.global_step

    def _wait(self, trainer: Trainer) -> float:
        return float(getattr(trainer.profiler, "waited", 0.0))  # type: ignore[attr-defined]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_since = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused = getattr(self, "_paused", 0.0) + time.perf_counter() - self._validation_since

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Mapping[str, Any], batch_idx: int
    ) -> None:
        self._images += sum(len(stream["name"]) for stream in batch.values()) * trainer.world_size
        # Steps of the run, as Lightning's own logging counts: of batches an epoch may have fewer than the interval.
        step = trainer.global_step
        if step == self._step or step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        seconds = max(1e-9, time.perf_counter() - self._since - self._paused)
        self.total_images, self.total_seconds = self.total_images + self._images, self.total_seconds + seconds
        waited = self._wait(trainer) - self._waited
        pl_module.log("perf/images_per_s", self._images / seconds)
        pl_module.log("perf/data_wait", waited / seconds)
        pl_module.log("perf/peak_memory_gb", peak_memory_gb())
        self._begin(trainer)


def peak_memory_gb() -> float:
    """Highest memory so far: of the GPU's allocator where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resident_gb("VmHWM")
