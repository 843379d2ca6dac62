"""Checkpoints: written whole or not at all, one for the best value, one for the last step or the moment of a stop."""

from __future__ import annotations

import math
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor

from common.ops.distributed import all_sum, world_size
from common.training.files import written_whole
from common.training.loggers import CSVLogger
from common.training.signals import AGAIN, Stopped, stop_request


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes each checkpoint whole or not at all: a kill or a full disk while writing keeps the previous file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        # Not Lightning's writing, which fills memory with a second copy, and then the folder for temporary files.
        try:
            with written_whole(Path(path)) as scratch:
                torch.save(checkpoint, scratch)
        except (OSError, RuntimeError) as error:  # torch's writer does not tell why
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                raise
            free = shutil.disk_usage(Path(path).parent).free / 2**20
            why = error.strerror if isinstance(error, OSError) else "it was cut off"
            raise OSError(
                f"cannot write {path} ({why}, {free:.0f} MiB free): the previous checkpoint is kept; free some space"
            ) from error


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, the highest score so far (the method's `score`, `val/miou` for most), also in a run directory
    that was moved."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor="val/miou",
            mode="max",
            save_top_k=1,
            enable_version_counter=False,  # one file, replaced
            save_on_train_epoch_end=False,  # saved after validation, when the value exists
        )
        self.key = super().state_key.replace(type(self).__name__, ModelCheckpoint.__name__)  # as in older checkpoints

    @property
    def state_key(self) -> str:
        return self.key  # not with the monitored metric, which follows the method

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.monitor = str(pl_module.score)
        super().on_validation_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        # Where no validation gives a value, since nobody has a mask of val, the latest one is the best.
        best = self.best_k_models.get(self.kth_best_model_path)
        if current is not None and bool(current.isnan()) and best is not None and float(best) == -math.inf:
            return True
        return super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        file = Path(str(self.dirpath), "best.ckpt")
        score = state_dict["best_model_score"]
        if score is None or not file.exists():  # continued elsewhere: the next validation is the best one there
            return
        self.best_model_score = self.kth_value = self.current_score = score
        self.best_model_path = self.kth_best_model_path = str(file)
        self.best_k_models = {str(file): score}


class Patience(EarlyStopping):
    """Ends the run after a validation that is the `patience`-th one without a higher score (the method's). A run that
    has ended so stays ended when it is resumed, unless with more patience."""

    state_key = "Patience"  # not with the monitored metric, which follows the method

    def __init__(self, patience: int) -> None:
        if patience < 1:
            raise ValueError(f"--patience is a number of validations, at least 1, got {patience}")
        super().__init__("val/miou", patience=patience, mode="max", check_finite=False, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = self.wait_count >= self.patience

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor != pl_module.score:  # another one: what was before says nothing of it
            self.wait_count, self.best_score = 0, torch.tensor(-torch.inf)
        self.monitor = str(pl_module.score)
        super().on_validation_end(trainer, pl_module)
        if self.wait_count >= self.patience:
            rank_zero_only(print)(
                f"stopped at step {trainer.global_step}: no higher {self.monitor} in {self.wait_count} validations"
            )


class LastCheckpoint(Callback):
    """Keeps `last.ckpt`: every `every` optimizer steps, at the end, and when a signal asks the run to stop.

    It is written at the start of the next batch, when validation and logging of the step are through, so that a
    resumed run repeats or loses nothing: Lightning's own callback saves before the step is logged and, resumed, leaves
    out a validation that was due. `ModelCheckpoint(save_last=True)` writes only when the monitored value improves, and
    Lightning's handlers of signals save in the middle of a step (SLURM) or not at all.

    Raises:
        Stopped: on all ranks, as soon as one of them has a signal and the step at hand (and its validation) is through.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path, self.every = folder / "last.ckpt", every
        self.saved = -1
        self.listening = ExitStack()

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self.saved:
            self.saved = trainer.global_step
            for logger in trainer.loggers:
                if isinstance(logger, CSVLogger):
                    logger.sync()
            trainer.save_checkpoint(self.path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning's handler of SIGTERM calls a collective in the middle of whatever the other ranks are doing.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.drop_from(trainer.global_step)
        self.listening.enter_context(stop_request.listening())  # the command listens already
        stop_request.training = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.listening.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.listening.close()

    def _stop_asked(self, trainer: Trainer) -> bool:
        """Whether any rank was asked: all must leave at the same step."""
        asked = stop_request.signal is not None
        if world_size() == 1:
            return asked
        return bool(all_sum(torch.tensor(float(asked), device=trainer.strategy.root_device)))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        loop = trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = trainer.global_step  # Lightning may count one more after a resume
        if batch_idx % trainer.accumulate_grad_batches:
            return  # gradients of a step that is not made yet are in no checkpoint
        stop = self._stop_asked(trainer)
        if trainer.global_step and (stop or trainer.global_step % self.every == 0):
            # This batch has not begun as far as the checkpoint is concerned. Lightning counts batches that began and
            # did not end twice, and would validate at other steps from then on; and if this batch is the epoch's last
            # and the step before was validated, it would leave this one out.
            progress = loop.batch_progress
            counts, is_last = (progress.total, progress.current), progress.is_last_batch
            progress.is_last_batch = False
            for count in counts:
                count.ready -= 1
            self._save(trainer)
            for count in counts:
                count.ready += 1
            progress.is_last_batch = is_last
        if stop:
            raise Stopped(f"stopped at step {trainer.global_step}, {AGAIN}")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step >= trainer.estimated_stepping_batches:
            trainer.should_stop = True  # Lightning then validates, whatever `val_check_interval` is

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)
