"""Checkpoints: written whole or not at all, one for the best value and one for the last step."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from common.loggers import CSVLogger


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file in the same folder, syncs, renames: a kill while writing keeps the previous file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        os.close(handle)
        try:
            super().save_checkpoint(checkpoint, scratch, storage_options)
            with open(scratch, "rb") as file:
                os.fsync(file.fileno())
            os.replace(scratch, path)
        except OSError as error:
            raise OSError(f"cannot write {path} ({error}): the previous checkpoint is kept; free some space") from error
        finally:
            Path(scratch).unlink(missing_ok=True)


def best_checkpoint(folder: Path) -> ModelCheckpoint:
    """Keeps `best.ckpt`, the highest `val/miou` so far."""
    return ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor="val/miou",
        mode="max",
        save_top_k=1,
        enable_version_counter=False,  # one file, replaced
        save_on_train_epoch_end=False,  # saved after validation, when the value exists
    )


class LastCheckpoint(Callback):
    """Keeps `last.ckpt`: every `every` optimizer steps, at the end, and when the run is stopped from outside.

    It is written at the start of the next batch, when validation and logging of the step are through, so that a
    resumed run repeats or loses nothing: Lightning's own callback saves before the step is logged and, resumed, leaves
    out a validation that was due. `ModelCheckpoint(save_last=True)` writes only when the monitored value improves.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path, self.every = folder / "last.ckpt", every
        self.saved = -1

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self.saved:
            self.saved = trainer.global_step
            trainer.save_checkpoint(self.path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.drop_from(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        loop = trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = trainer.global_step  # Lightning may count one more after a resume
        if trainer.global_step and trainer.global_step % self.every == 0:
            # This batch has not begun as far as the checkpoint is concerned. Lightning counts batches that began and
            # did not end twice, and would validate at other steps from then on.
            counts = (loop.batch_progress.total, loop.batch_progress.current)
            for count in counts:
                count.ready -= 1
            self._save(trainer)
            for count in counts:
                count.ready += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)
