"""Confusion matrices of single test images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from common.model.metrics import SegmentationMetrics
from common.model.module import SegmentationModule
from common.ops.array import Array
from common.ops.distributed import gather
from common.training.files import written_whole


class TestImages(Callback):
    """Writes `test_<name>_images.npz`, what `weakseg compare` draws test images from: `names` (N,), `confusion`
    (N, K, K) int32, each image's pixel counts (rows truth, columns prediction) of the network whose score is
    `test/miou`, `confusion_NAME` of each other one (`test/miou_NAME`), and `evaluation`, how it was predicted, in JSON.
    The matrices add up to that of the score. Nothing is written where phases are matched to classes first.
    """

    def __init__(self, folder: Path, test_name: str) -> None:
        self.path = folder / f"test_{test_name}_images.npz"
        self.found: dict[str, list[Array]] = {}  # by image: of each network
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
            assert isinstance(pl_module, SegmentationModule)
            how = {"inference": asdict(pl_module.inference), "postprocess": asdict(pl_module.postprocess)}
            how |= {"size": trainer.datamodule.told_size}  # type: ignore[attr-defined]
            matrices: dict[str, Any] = {}
            for number, network in enumerate(pl_module.eval_networks()):
                key = f"confusion_{network}" if number else "confusion"
                matrices[key] = np.stack([found[name][number] for name in names])
            with written_whole(self.path) as scratch, scratch.open("wb") as file:
                np.savez_compressed(file, names=np.array(names), evaluation=json.dumps(how), **matrices)
