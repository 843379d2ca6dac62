"""Predictions as files: pictures while a run trains, labels of `weakseg predict`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from common.model.module import SegmentationModule
from common.training.pictures import colorize, overlay, picture_row, save_grid
from common.training.tracking import Sample, log_pictures


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
