"""The run directory: what lies in it, who writes to it, and when a run claims it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn

from common.training.files import clean, scratch_of, write_json, write_text

BEAT = 15.0  # seconds between signs of life of a run
MARK = ".weakseg"  # in every run directory: ours, and locked by the process that writes there
# The summary first: without it a run is not finished. The config is replaced last.
RESULTS = ("summary.json", "test_*_images.npz", "confusion_*.csv", "postprocess_val.json")  # of a finished run
RUN_FILES = (*RESULTS, "checkpoints", "metrics.csv", "pictures", "nonfinite_rank*.pt", "tensorboard", "wandb",
             "data.json", "online_maps", "cam_curve.json")  # fmt: skip


def is_used(folder: Path) -> bool:
    """Whether a run was started in the folder."""
    return (folder / "config.yaml").exists()


def file_state(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced; None where there is none."""
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Be the only process that writes into a run directory, which is made if it is missing. The kernel releases the
    lock when the process ends, however it ends; children do not have it. Where a shared file system keeps locks to one
    machine, signs of life in the mark tell whether a process of another one still writes.

    Raises:
        FileExistsError: another process writes there, and `wait` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / MARK
    if not wait and (holder := elsewhere(mark)) and is_alive(mark, holder):
        raise FileExistsError(
            f"{folder} is in use by {holder}, which gives signs of life: wait for its end, or choose another --run_dir"
        )
    with mark.open("a+") as file, contextlib.ExitStack() as at_the_end:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):  # POSIX allows either
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise FileExistsError(
                f"{folder} is in use by {holder}: wait for its end, or choose another --run_dir or --name"
            ) from None
        except OSError as error:
            rank_zero_warn(f"{folder} cannot be locked ({error}): start no other run in it")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        ended = Event()
        at_the_end.callback(file.truncate, 0)
        at_the_end.callback(ended.set)
        Thread(target=beat, args=(mark, ended), daemon=True).start()
        yield


def beat(mark: Path, ended: Event) -> None:
    """Give signs of life until the run ends: the time of change of its mark."""
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):  # of a file system that is away for a while
            os.utime(mark)


def elsewhere(mark: Path) -> str:
    """The process of another machine that a mark names; empty if it names none."""
    try:
        holder = mark.read_text(errors="replace").strip()
    except OSError:
        return ""
    return "" if holder.endswith(f" on {socket.gethostname()}") else holder


def is_alive(mark: Path, holder: str) -> bool:
    """Whether the process of another machine gives a sign of life. Clocks of machines differ: it is waited for."""
    rank_zero_only(print)(f"{mark.parent} was left by {holder}: waiting {2 * BEAT:.0f} s for a sign of life")
    before, until = time_of(mark), time.monotonic() + 2 * BEAT
    while time.monotonic() < until:
        time.sleep(min(1.0, BEAT / 4))
        if time_of(mark) != before:
            return True
    return False


def time_of(mark: Path) -> int:
    """Time of change, as a network file system tells it to who opens the file."""
    try:
        with mark.open() as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return 0


def set_aside(folder: Path) -> Path:
    """Move what a run wrote into a new folder inside; nothing is deleted before the next run has taken its place."""
    aside = scratch_of(folder / "replaced")  # `clean` removes what a kill leaves
    aside.mkdir()
    for pattern in RUN_FILES:
        for path in folder.glob(pattern):
            path.rename(aside / path.name)
    return aside


class RunStart(Callback):
    """Claims the run directory when data, network and optimizer are ready (a wrong input so leaves nothing behind):
    locks it for the life of the run, sets aside what `overwrite` replaces, writes `config.yaml`, starts the other
    loggers, puts into every checkpoint what is needed to use it without the data.

    Args:
        folder: run directory.
        method: class name of the method.
        config: resolved config of the run, YAML.
        overwrite: replace the run that is in the directory.
        loggers: makes the loggers other than `metrics.csv`, given the step.
        expected: of a run that continues, the state of the checkpoint that it continues (`file_state`; None: of a run
            that was stopped before its first checkpoint). False: the run is new.
        accept_changed_data: continue although files or classes of the data have changed.
    """

    def __init__(
        self,
        folder: Path,
        method: str,
        config: str,
        loggers: Callable[[int], list[Logger]],
        overwrite: bool = False,
        expected: tuple[int, int, int] | bool | None = False,
        accept_changed_data: bool = False,
    ) -> None:
        self.folder, self.method, self.config, self.loggers = folder, method, config, loggers
        self.overwrite, self.expected, self.accept_changed_data = overwrite, expected, accept_changed_data
        self.held = contextlib.ExitStack()
        self.loaded: dict[str, Any] = {}  # of the checkpoint that is continued

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.loaded = checkpoint.get("weakseg", {})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        problem: Exception | None = None
        if trainer.is_global_zero:
            try:
                self._check_same(trainer)
                self._claim(trainer)
            except (OSError, ValueError) as error:
                problem = error
        # All ranks leave together: the others would wait for the first one.
        if trainer.strategy.broadcast(problem is not None):
            raise problem or SystemExit(1)

    def _claim(self, trainer: Trainer) -> None:
        folder, new = self.folder, self.expected is False
        foreign = [path.name for pattern in ("config.yaml", *RUN_FILES) for path in folder.glob(pattern)]
        last = folder / "checkpoints" / "last.ckpt"
        ours = (folder / MARK).exists() or (not new and last.exists())  # runs of earlier versions have no mark
        if foreign and not ours:
            raise FileExistsError(
                f"{folder} holds {', '.join(foreign[:3])}, but no run of this version: choose another --run_dir, or "
                "remove them"
            )
        fresh = not folder.exists()
        self.held.enter_context(locked(folder))
        try:
            if new and is_used(folder) and not self.overwrite and not trainer.ckpt_path:
                raise FileExistsError(used(folder))
            if not new and file_state(last) != self.expected:
                raise FileExistsError(f"another process has continued {folder} meanwhile: start again")
        except FileExistsError:
            self.held.close()
            if fresh:  # another run came and went
                shutil.rmtree(folder, ignore_errors=True)
            raise
        for place in (folder, folder / "checkpoints", folder / "pictures"):
            clean(place)
        aside = set_aside(folder) if self.overwrite else None
        path = folder / "config.yaml"
        before = path.read_text(errors="replace") if path.exists() else None
        if before != self.config:
            if before and not self.overwrite:
                rank_zero_warn(f"this config differs from {path}: the run continues, but not as the unbroken one would")
            write_text(path, self.config)
        if self.loaded.get("data") != trainer.datamodule.digest():  # type: ignore[attr-defined]
            write_json(folder / "data.json", trainer.datamodule.state())  # type: ignore[attr-defined]
        if aside:
            shutil.rmtree(aside)

    def _check_same(self, trainer: Trainer) -> None:
        """Whether the run that continues is the one that was stopped."""
        if not self.loaded:
            return
        optimizer, threads = type(trainer.optimizers[0]).__name__, torch.get_num_threads()
        if (before := self.loaded.get("optimizer", optimizer)) != optimizer:
            raise ValueError(
                f"the run was trained by {before}, not by {optimizer}: continue with {before}, or start a new run from "
                "its weights with --init_from"
            )
        if (before := self.loaded.get("threads", threads)) != threads:
            rank_zero_warn(
                f"the run used {before} CPU threads, now there are {threads}: sums are added in another order, so that "
                f"it continues, but not bit for bit (OMP_NUM_THREADS={before})"
            )
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.loaded.get("data", data.digest()) == data.digest():
            return
        changes = data.changes_since(self.folder / "data.json")
        if not self.accept_changed_data:
            raise ValueError(
                f"the data have changed since the run was stopped ({changes}): bring them back, start a new run, or "
                "continue on the new ones with --changed_data accept"
            )
        rank_zero_warn(f"the run continues on changed data: {changes}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:  # a finished run goes on: its results are of other weights from now on
            for path in (path for pattern in RESULTS for path in sorted(self.folder.glob(pattern))):
                path.unlink()
        trainer.loggers = [*trainer.loggers, *self.loggers(trainer.global_step)]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["weakseg"] = {
            "method": self.method,
            "config": self.config,
            "classes": [*data.class_names],
            "colors": [[*color] for color in data.colors],
            "size": data.told_size,
            "data": data.digest(),
            "optimizer": type(trainer.optimizers[0]).__name__,
            "threads": torch.get_num_threads(),
        }

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.held.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.held.close()


def used(folder: Path) -> str:
    """What is told of a directory that holds a run."""
    return (
        f"{folder} holds a run already: continue it with --resume auto, replace it with --overwrite, or choose another "
        "--run_dir or --name"
    )
