"""Further metrics of `weakseg test`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from common.model.measures import (
    boundary_counts,
    calibration_counts,
    calibration_error,
    miou_absent_zero,
    monai_distances,
    overlap_scores,
    surface_distances,
)
from common.model.metrics import SegmentationMetrics
from common.ops.array import Array
from common.ops.distributed import gather
from common.training.files import write_csv, written_whole

# What `weakseg test --metrics` takes; the help of the command has a line each.
METRICS = {
    "dice": "Dice of each class, and its mean",
    "precision": "of each class, and its mean",
    "recall": "of each class, and its mean",
    "dice_groups": "Dice of each image, or of the images of a sequence, averaged",
    "boundary_iou": "of each class, and its mean (Cheng et al. 2021)",
    "ece": "expected calibration error of the probabilities",
    "hd95": "95 % Hausdorff distance in pixels (hd95_mm of volumes), averaged over images or sequences; needs MONAI",
    "assd": "average symmetric surface distance, likewise",
    "miou_unimatch": "mIoU with 0 for absent classes, as UniMatch's code reports it",
    "confusion": "the confusion matrix as a picture and as csv",
}
DISTANCES = ("hd95", "assd")


class TestMetrics(Callback):
    """Logs further metrics of the tested network as `test/NAME` and, of classes, `test/NAME/CLASS`.

    With `confusion` it writes `confusion_<test>.csv`, pixel counts with a row for each true class and a column for each
    predicted one, and `pictures/confusion_<test>.png`.

    Args:
        metrics: names of `METRICS`.
        folder: run directory; None: nothing is written.
        test_name: of the test, such as `best` or `best+mrf`.

    Raises:
        ModuleNotFoundError: MONAI is missing, and is needed.
        ValueError: the confusion matrix has no directory.
    """

    def __init__(self, metrics: Sequence[str], folder: Path | None = None, test_name: str = "") -> None:
        self.metrics, self.folder, self.test_name = tuple(dict.fromkeys(metrics)), folder, test_name
        if {*self.metrics} & {*DISTANCES}:
            monai_distances()
        if folder is None and "confusion" in self.metrics:
            raise ValueError(
                "the confusion matrix is written into the run directory: give --run DIR in place of --ckpt, and no "
                "limit of batches"
            )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if type(scored(pl_module)) is not SegmentationMetrics:
            raise ValueError(
                f"--metrics are those of a segmentation with named classes, which {type(pl_module).__name__} is not "
                "tested as here: leave them out"
            )
        self.counts: dict[str, Tensor] = {}  # summed over images
        self.images: dict[str, dict[str, Array]] = defaultdict(dict)  # of each image
        self.unit = ""  # of distances; the images of a data set have one
        self.total: Any = 0

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Mapping[str, Any], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        name = batch["name"][0]
        if outputs is None:
            raise ValueError(
                f"image '{name}' is too large for {', '.join(self.metrics)}, which need all of its labels at once: cut "
                "it into tiles, or leave them out"
            )
        labels, mask, classes = outputs["labels"][0], batch["mask"][0], pl_module.num_classes
        if "boundary_iou" in self.metrics:
            self.add("boundary_iou", boundary_counts(labels, mask, cast(int, classes)))
        if "ece" in self.metrics:
            self.add("ece", calibration_counts(outputs["probabilities"], batch["mask"]))
        if {*self.metrics} & {*DISTANCES}:
            spacing = trainer.datamodule.spacing(name)  # type: ignore[attr-defined]
            self.unit = "_mm" if spacing else ""
            distances = surface_distances(labels, mask, cast(int, classes), spacing or (1.0, 1.0)).numpy()
            self.images["hd95"][name], self.images["assd"][name] = distances
        if "dice_groups" in self.metrics:
            # Evaluation loaders give one image at a time: what the matrix has grown by is that image.
            total = scored(pl_module).confusion.cpu().numpy()
            self.images["dice_groups"][name], self.total = total - self.total, total.copy()

    def add(self, name: str, counts: Tensor) -> None:
        self.counts[name] = self.counts[name] + counts if name in self.counts else counts

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        confusion = scored(pl_module).compute()["confusion"].cpu()
        parts = gather(({name: one.cpu() for name, one in self.counts.items()}, dict(self.images)))
        counts = {name: torch.stack([part[name] for part, _ in parts]).sum(0) for name in self.counts}
        images = {name: {k: one for _, part in parts for k, one in part[name].items()} for name in self.images}

        def log(name: str, per_class: Tensor, skip: int | None = None) -> None:
            """Each class and the mean over those that occur; one that is skipped is in neither."""
            kept = {c: v for k, (c, v) in enumerate(zip(data.class_names, per_class, strict=True)) if k != skip}
            pl_module.log(f"test/{name}", torch.stack([*kept.values()]).nanmean())
            pl_module.log_dict({f"test/{name}/{c}": value for c, value in kept.items()})

        overlaps = overlap_scores(confusion)
        for name in self.metrics:
            if name in overlaps:
                log(name, overlaps[name])
            elif name == "dice_groups":
                groups = [sum(ones) for ones in grouped(data, images[name])]
                log(name, overlap_scores(torch.from_numpy(np.stack(groups)))["dice"].nanmean(0))
            elif name == "boundary_iou":
                both, either = counts[name].double()
                log(name, 100 * both / either)  # NaN for an absent class
            elif name in DISTANCES:
                means = [torch.from_numpy(np.stack(ones)).nanmean(0) for ones in grouped(data, images[name])]
                log(name + self.unit, torch.stack(means).nanmean(0), skip=data.background)
            elif name == "ece":
                pl_module.log("test/ece", calibration_error(counts[name]))
            elif name == "miou_unimatch":
                pl_module.log("test/miou_unimatch", miou_absent_zero(confusion))
        if "confusion" in self.metrics and self.folder and trainer.is_global_zero:
            write_confusion(self.folder, self.test_name, confusion.numpy(), data.class_names)


def scored(module: LightningModule) -> SegmentationMetrics:
    """The metric of the network that is `test/miou`."""
    return cast(SegmentationMetrics, next(iter(module.metrics.values())))  # type: ignore[operator]


def grouped(data: Any, found: Mapping[str, Array]) -> list[list[Array]]:
    """What was found in each image, a list for the images that the data count as one (`scored_with`)."""
    groups: dict[str, list[Array]] = defaultdict(list)
    for name in sorted(found):
        groups[data.scored_with(name)].append(found[name])
    return [*groups.values()]


def write_confusion(folder: Path, name: str, confusion: Array, classes: Sequence[str]) -> None:
    """`confusion_<name>.csv` and `pictures/confusion_<name>.png`: a confusion matrix (K, K), rows the truth."""
    rows = [
        {"true": true, **dict(zip(classes, row.tolist(), strict=True))}
        for true, row in zip(classes, confusion, strict=True)
    ]
    write_csv(folder / f"confusion_{name}.csv", rows, ["true", *classes])
    shares = 100 * confusion / confusion.sum(1, keepdims=True).clip(1)
    side = 2 + 0.42 * len(classes)
    figure = Figure((side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    for i, j in np.ndindex(*shares.shape):
        if shares[i, j] >= 0.5:
            axes.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", fontsize=7,
                      color="white" if shares[i, j] > 55 else "black")  # fmt: skip
    figure.colorbar(shown, label="per cent of the true class", shrink=0.7)
    with written_whole(folder / "pictures" / f"confusion_{name}.png") as scratch, scratch.open("wb") as file:
        figure.savefig(file, format="png", dpi=150)
