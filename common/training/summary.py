"""`summary.json`: what was trained, and what came of it."""

from __future__ import annotations

import math
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_warn

from common.training.files import read_summary, write_json
from common.training.run_dir import locked
from common.training.throughput import Throughput, peak_memory_gb

PACKAGES = ("torch", "lightning", "torchmetrics", "segmentation-models-pytorch", "timm", "kornia")


class RunSummary(Callback):
    """Writes `summary.json`: what was trained, on what, how long, and the final metrics. `test` adds to it.

    `annotation` counts labelled images and pixels; `last` and `best` are validation metrics, `test` has an entry for
    each checkpoint tested.
    """

    def __init__(self, folder: Path, seed: int, test_name: str | None = None) -> None:
        self.path, self.seed, self.test_name = folder / "summary.json", seed, test_name
        self.seconds_before = 0.0
        self.last: dict[str, float | None] = {}
        self.trained = False

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds_before + time.perf_counter() - self._since, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds_before, self.last = state_dict["seconds"], state_dict.get("last", {})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trained = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last = read_metrics(trainer, "val")
        if self.last.get("val/miou", 0) is None:
            rank_zero_warn(
                "no pixel of the images validated has a label, so that there is no val/miou, and best.ckpt is that of "
                "the latest validation: label some of them"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # After last.ckpt: who sees a summary sees a finished run. A run that was killed between the two gets it when it
        # is resumed, without another step.
        if not trainer.is_global_zero or (self.path.exists() and not self.trained):
            return
        seconds = self.seconds_before + time.perf_counter() - self._since
        timer = next(c for c in trainer.callbacks if isinstance(c, Throughput))  # type: ignore[attr-defined]
        speed = round(timer.total_images / timer.total_seconds, 2) if timer.total_seconds else None
        best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        found = None if best is None else best.best_model_score
        score = math.nan if found is None else float(found)  # -inf: no validation gave a value
        data = trainer.datamodule  # type: ignore[attr-defined]
        summary = {
            "method": type(pl_module).__name__,
            "data": type(data).__name__,
            "seed": self.seed,
            "steps": trainer.global_step,
            "annotation": data.annotation_report(),
            "last": self.last,
            "score": pl_module.score,
            "best": {str(pl_module.score): score} if math.isfinite(score) else {},
            "seconds": round(seconds, 1),
            "images_per_s": speed,
            "peak_memory_gb": round(peak_memory_gb(), 3),
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "commit": git_commit(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "devices": f"{trainer.world_size} x {trainer.strategy.root_device.type}",
        }
        write_json(self.path, summary)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.test_name is not None and self.path.exists():
            read_summary(self.path.parent)  # one that is broken would lose what is measured now

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self.test_name is None or not self.path.exists():
            return
        with locked(self.path.parent, wait=True):  # best and last may be tested side by side
            summary = read_summary(self.path.parent)
            summary.setdefault("test", {})[self.test_name] = read_metrics(trainer, "test")
            write_json(self.path, summary)


def read_metrics(trainer: Trainer, stage: str) -> dict[str, float | None]:
    """The trainer's current `<stage>/...` values; None for a class that does not occur, or if none does."""
    values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(f"{stage}/")}
    return {name: round(value, 4) if math.isfinite(value) else None for name, value in values.items()}


def git_commit() -> str | None:
    """The checkout's commit, with `+` behind it when files differ from it; None outside a git checkout."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():  # installed: a repository around it is somebody else's
        return None

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
