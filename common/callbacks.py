"""What a run tells while and after it trains: speed, pictures, summary, written predictions."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from PIL import Image

from common.distributed import gather
from common.memory import resident_gb
from common.metrics import SegmentationMetrics
from common.module import SegmentationModule
from common.pictures import colorize, overlay, picture_row, save_grid
from common.tracking import Sample, finish, log_checkpoints, log_pictures, log_summary

PACKAGES = ("torch", "lightning", "torchmetrics", "segmentation-models-pytorch", "timm", "kornia")


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
    """Logs `perf/images_per_s`, `perf/data_wait` (share of training time spent waiting for the loader, in the progress
    bar too) and `perf/peak_memory_gb` at the logging interval. Validation time is not counted."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)
        self.total_images, self.total_seconds, self._paused = 0, 0.0, 0.0

    def _begin(self, trainer: Trainer) -> None:
        self._since, self._images, self._paused = time.perf_counter(), 0, 0.0
        self._waited = self._wait(trainer)

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
        if (batch_idx + 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        seconds = max(1e-9, time.perf_counter() - self._since - self._paused)
        self.total_images, self.total_seconds = self.total_images + self._images, self.total_seconds + seconds
        waited = self._wait(trainer) - self._waited
        pl_module.log("perf/images_per_s", self._images / seconds)
        pl_module.log("perf/data_wait", waited / seconds, prog_bar=True)
        pl_module.log("perf/peak_memory_gb", peak_memory_gb())
        self._begin(trainer)


def peak_memory_gb() -> float:
    """Highest memory so far: of the GPU's allocator where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resident_gb("VmHWM")


class PredictionPictures(Callback):
    """After each validation writes `pictures/last.png`: a row of image, truth and prediction (of the network that
    `val/miou` scores) for each image; loggers get it too.

    Args:
        folder: run directory.
        count: number of validation images, the first ones of the split.
    """

    def __init__(self, folder: Path, count: int = 4) -> None:
        self.path, self.count = folder / "pictures" / "last.png", count
        self.samples: list[Sample] = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Mapping[str, Any], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if not trainer.is_global_zero or batch_idx >= self.count or trainer.sanity_checking:
            return
        assert isinstance(pl_module, SegmentationModule)
        labels, _ = pl_module.predict_labels(pl_module.scored_network, batch, refine=False)
        truth, found = (values[0].cpu().numpy().astype(np.uint8) for values in (batch["mask"], labels))
        image = picture_row(batch["image"][0], [batch["mask"][0]], trainer.datamodule.colors)[0]  # type: ignore[attr-defined]
        self.samples.append(Sample(batch["name"][0], image, truth, found))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.samples:
            return
        data, step = trainer.datamodule, trainer.global_step  # type: ignore[attr-defined]
        rows = [[s.image, colorize(s.truth, data.colors), colorize(s.labels, data.colors)] for s in self.samples]
        save_grid(self.path, rows, ["image", "truth", f"step {step}"])
        # Lightning has logged this validation at the number of the step before it.
        sheet = np.asarray(Image.open(self.path))
        log_pictures(trainer.loggers, self.samples, sheet, data.class_names, max(0, step - 1))
        self.samples = []


class PredictionWriter(Callback):
    """Writes what `predict` finds at each image's original size: `<name>.png` (class ids), `overlays/<name>.png` and,
    if asked, `probabilities/<name>.npy` (K, H, W) float16."""

    def __init__(self, folder: Path, probabilities: bool) -> None:
        self.folder, self.probabilities = folder, probabilities

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Mapping[str, Any], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        colors = trainer.datamodule.colors  # type: ignore[attr-defined]
        name = outputs["name"][0]
        labels = outputs["labels"][0].cpu().numpy().astype(np.uint8)
        (self.folder / "overlays").mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(self.folder / f"{name}.png")
        image = torch.nn.functional.interpolate(batch["image"], labels.shape, mode="bilinear", align_corners=False)
        Image.fromarray(overlay(image[0], colorize(labels, colors))).save(self.folder / "overlays" / f"{name}.png")
        if self.probabilities:
            (self.folder / "probabilities").mkdir(exist_ok=True)
            np.save(self.folder / "probabilities" / f"{name}.npy", outputs["probabilities"][0].half().cpu().numpy())


class RunSummary(Callback):
    """Writes `summary.json`: what was trained, on what, how long, and the final metrics. `test` adds to it.

    Keys: `method`, `data`, `seed`, `steps`, `annotation` (labelled images and pixels), `last`, `best` (validation
    metrics), `test` (one entry per checkpoint tested), `seconds`, `images_per_s`, `peak_memory_gb`, `parameters`,
    `commit`, `versions`, `devices`.
    """

    def __init__(self, folder: Path, seed: int, test_name: str | None = None) -> None:
        self.path, self.seed, self.test_name = folder / "summary.json", seed, test_name
        self.seconds_before = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds_before + time.perf_counter() - self._since}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds_before = state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        seconds = self.seconds_before + time.perf_counter() - self._since
        speed = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
        best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        data = trainer.datamodule  # type: ignore[attr-defined]
        summary = {
            "method": type(pl_module).__name__,
            "data": type(data).__name__,
            "seed": self.seed,
            "steps": trainer.global_step,
            "annotation": data.annotation_report(),
            "last": read_metrics(trainer, "val"),
            "best": {"val/miou": float(best.best_model_score)} if best and best.best_model_score is not None else {},
            "seconds": round(seconds, 1),
            "images_per_s": round(speed.total_images / speed.total_seconds, 2)
            if speed and speed.total_seconds
            else None,
            "peak_memory_gb": round(peak_memory_gb(), 3),
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "commit": git_commit(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "devices": f"{trainer.world_size} x {trainer.strategy.root_device.type}",
        }
        write_json(self.path, summary)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self.test_name is None or not self.path.exists():
            return
        summary = json.loads(self.path.read_text())
        summary.setdefault("test", {})[self.test_name] = read_metrics(trainer, "test")
        write_json(self.path, summary)


class TestImages(Callback):
    """Writes `test_<name>_images.npz`, what `weakseg compare` draws test images from: `names` (N,), `confusion`
    (N, K, K) int32, each image's pixel counts (rows truth, columns prediction) of the network whose score is
    `test/miou`, `confusion_NAME` of each other one (`test/miou_NAME`), and `evaluation`, how it was predicted, in JSON.
    The matrices add up to that of the score. Nothing is written where phases are matched to classes first.
    """

    def __init__(self, folder: Path, test_name: str) -> None:
        self.path = folder / f"test_{test_name}_images.npz"
        self.found: dict[str, list[np.ndarray[Any, Any]]] = {}  # by image: of each network
        self.total: Any = 0

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Mapping[str, Any], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        metrics = list(pl_module.metrics.values())  # type: ignore[operator]
        if type(metrics[0]) is SegmentationMetrics:
            # Evaluation loaders give one image at a time: what the matrices have grown by is that image.
            total = np.stack([metric.confusion.cpu().numpy() for metric in metrics])
            self.found[batch["name"][0]] = list((total - self.total).astype(np.int32))
            self.total = total

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = {name: matrix for part in gather(self.found) for name, matrix in part.items()}
        if found and trainer.is_global_zero:
            names = sorted(found)
            scratch = self.path.with_name(f".{self.path.name}")
            assert isinstance(pl_module, SegmentationModule)
            how = {"inference": asdict(pl_module.inference), "postprocess": asdict(pl_module.postprocess)}
            how |= {"size": trainer.datamodule.size}  # type: ignore[attr-defined]
            matrices: dict[str, Any] = {}
            for number, network in enumerate(pl_module.eval_networks()):
                key = f"confusion_{network}" if number else "confusion"
                matrices[key] = np.stack([found[name][number] for name in names])
            np.savez_compressed(scratch, names=np.array(names), evaluation=json.dumps(how), **matrices)
            os.replace(scratch, self.path)


class Tracking(Callback):
    """At the end sends what the run directory holds to W&B and TensorBoard, and ends the W&B run. The last callback.

    Args:
        folder: run directory.
        checkpoints: send best.ckpt and last.ckpt too, as a W&B artifact.
        trackers: makes the loggers of `test`, which has none of its own; with `fit` they are the trainer's.
    """

    def __init__(
        self, folder: Path, checkpoints: bool = False, trackers: Callable[[], list[Logger]] | None = None
    ) -> None:
        self.folder, self.checkpoints, self.trackers = folder, checkpoints, trackers

    def _summary(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "summary.json").read_text()))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            log_summary(trainer.loggers, self._summary())
            if self.checkpoints:
                log_checkpoints(trainer.loggers, self.folder)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.trackers and (self.folder / "summary.json").exists():
            trackers = self.trackers()
            log_summary(trackers, self._summary(), sorted(self.folder.glob("test_*_images.npz")))
            finish(trackers)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        finish(trainer.loggers, failed=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        finish(trainer.loggers)


def read_metrics(trainer: Trainer, stage: str) -> dict[str, float | None]:
    """The trainer's current `<stage>/...` values; None for a class that does not occur."""
    values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(f"{stage}/")}
    return {name: None if np.isnan(value) else round(value, 4) for name, value in values.items()}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(scratch, path)


def git_commit() -> str | None:
    """The checkout's commit, with `+` behind it when files differ from it; None outside a git checkout."""
    here = Path(__file__).parent

    def git(arguments: Sequence[str]) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git(["rev-parse", "--short=12", "HEAD"]) + ("+" if git(["status", "--porcelain", "-uno"]) else "")
    except (OSError, subprocess.CalledProcessError):
        return None
