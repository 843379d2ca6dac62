"""The run directory: what lies in it, and when a run claims it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_warn

from common.training.files import write_text

RUN_FILES = ("config.yaml", "metrics.csv", "summary.json", "checkpoints", "pictures", "nonfinite_rank*.pt",
             "tensorboard", "wandb", "test_*_images.npz")  # fmt: skip


def is_used(folder: Path) -> bool:
    """Whether a run was started in the folder."""
    return (folder / "config.yaml").exists()


def remove_run(folder: Path) -> None:
    """Remove what runs write, and nothing else: the folder may hold other things."""
    for pattern in RUN_FILES:
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


class RunStart(Callback):
    """Claims the run directory when data, network and optimizer are ready (a wrong input so leaves nothing behind):
    removes what `--overwrite` replaces, writes `config.yaml`, starts the other loggers, puts
    the config into every checkpoint."""

    def __init__(
        self, folder: Path, method: str, config: str, overwrite: bool, loggers: Callable[[int], list[Logger]]
    ) -> None:
        self.folder, self.method, self.config, self.overwrite = folder, method, config, overwrite
        self.loggers = loggers

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._claim()
        trainer.loggers = [*trainer.loggers, *self.loggers(trainer.global_step)]

    def _claim(self) -> None:
        path = self.folder / "config.yaml"
        if self.overwrite and is_used(self.folder):
            remove_run(self.folder)
        if path.exists() and path.read_text() != self.config:
            rank_zero_warn(f"this config differs from {path}: the run continues, but not as the unbroken one would")
        write_text(path, self.config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["weakseg"] = {"method": self.method, "config": self.config}
