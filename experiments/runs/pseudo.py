"""Pseudo-masks as files: `ID.png` (class ids and 255, indexed, at the image's original size) and `pseudo.json`, read by
`datamodules.pseudo`. The folder is written under another name and renamed whole, so that there is never half of one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from common.model.inference import as_float
from common.model.metrics import SegmentationMetrics
from common.model.module import SegmentationModule
from common.ops.array import Array
from common.ops.batch import IGNORE
from common.ops.distributed import gather
from common.training.files import clean, folder_written_whole
from common.training.png import RowPng
from datamodules.augmentation import whole
from datamodules.base import SegmentationDataModule
from datamodules.images import WholeImages
from datamodules.loaders import loader, reader, shared
from datamodules.pseudo import ABOUT, read_about
from datamodules.splits import Split

Refine = Literal["none", "pamr", "crf", "walk"]
PALE = (224, 224, 192)  # the colour of 255, as in VOC


class PseudoLabels(LightningModule):
    """Labels of training images by a trained model, as a module whose `predict_step` gives them.

    A method that learns from tags makes them itself, in `pseudo_labels(image, tags, size, refine, threshold, seeds,
    name)`. Of another one they are its predictions, with the run's own post-processing, and 255 where the probability
    of the label is below the threshold.

    Args:
        model: the trained model.
        refine: how maps become labels, of methods that learn from tags.
        threshold: of the probability, or for maps the score of the background; None: 0, or the model's own.
        seeds: of maps, label only what is sure, see `common.model.cam_module.CamModule.pseudo_labels`.

    Raises:
        ValueError: an option that this model has no use for, or out of range.
    """

    def __init__(
        self, model: SegmentationModule, refine: Refine = "none", threshold: float | None = None, seeds: bool = False
    ) -> None:
        super().__init__()
        self.model, self.refine, self.seeds = model, refine, seeds
        self.by_tags = hasattr(model, "pseudo_labels")
        if seeds and not self.by_tags:
            raise ValueError(
                f"--seeds is for maps of methods that learn from tags: {type(model).__name__} labels what is sure with "
                "--threshold"
            )
        if refine != "none" and not self.by_tags:
            raise ValueError(
                f"--refine is for maps of methods that learn from tags: leave it out for {type(model).__name__}, or "
                "give --model.postprocess.kind"
            )
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"--threshold is from 0 to 1, got {threshold:g}")
        own = float(getattr(model, "pseudo_threshold", 0.0))
        self.threshold = own if threshold is None else threshold

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        return whole(batch)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Iterator[Tensor]:
        """int64 labels (rows, W) of the image of a batch of `common.ops.batch`, at its original size, in strips from
        top to bottom; 255: not sure. Maps need all of the image, predictions are made as they are asked for."""
        if self.by_tags:
            size = (int(batch["size"][0, 0]), int(batch["size"][0, 1]))
            made: Any = self.model
            image, tags, name = (batch[key][0] for key in ("image", "tags", "name"))
            yield made.pseudo_labels(as_float(image), tags, size, self.refine, self.threshold, self.seeds, name)
            return
        for labels, probabilities in self.model.predict_strips(self.model.scored_network, batch, refine=True):
            sure = probabilities.gather(1, labels[:, None])[:, 0] >= self.threshold
            yield labels.masked_fill(~sure, IGNORE)[0]


class PseudoWriter(Callback):
    """Writes the labels of `PseudoLabels` into a folder, counts them, and compares them with masks where there are
    any.

    Args:
        folder: an empty one; of several processes that of the first counts.
        data: the images' data set.
    """

    def __init__(self, folder: Path, data: SegmentationDataModule) -> None:
        self.folder, self.data = folder, data
        self.palette = palette_of(data)
        self.counts = np.zeros(256, np.int64)
        self.images = self.compared = 0
        self.metric = SegmentationMetrics(data.num_classes)
        self.metric.sync_on_compute = False

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder = trainer.strategy.broadcast(self.folder)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = gather((self.counts, self.images, self.compared, self.metric.confusion))  # NCCL takes no CPU tensors
        parts = (sum(parts) for parts in zip(*found, strict=True))
        self.counts, self.images, self.compared, self.metric.confusion = parts

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Mapping[str, Any], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        height, width = batch["size"][0].tolist()
        path, top, known = self.folder / f"{batch['name'][0]}.png", 0, False
        path.parent.mkdir(parents=True, exist_ok=True)  # ids may have folders
        with path.open("wb") as file:
            picture = RowPng(file, height, width, self.palette)
            for strip in outputs:
                labels = strip.cpu()[None]
                rows = labels[0].byte().numpy()
                picture.write(rows)
                self.counts += np.bincount(rows.ravel(), minlength=256)
                truth = batch["mask"][:, top : top + len(rows)].cpu().long()
                if bool((truth != IGNORE).any()):
                    known = True
                    shown = truth.masked_fill(labels == IGNORE, IGNORE)
                    self.metric.update(labels.clamp(max=self.data.num_classes - 1), shown)
                top += len(rows)
        self.images += 1
        self.compared += known

    def report(self) -> dict[str, Any]:
        """Of `pseudo.json`: shares of pixels, those of classes among the labelled ones; `miou_train` in per cent, over
        the pixels with a label in both, where masks are there to compare."""
        found: dict[str, Any] = {"images": self.images, **shares(self.counts, self.data.class_names)}
        miou = float(self.metric.compute()["miou"]) if self.compared else float("nan")
        return found | ({"miou_train": round(miou, 4)} if np.isfinite(miou) else {})


def palette_of(data: SegmentationDataModule) -> Array:
    """Colours of the values of pseudo-masks, uint8 (256, 3)."""
    palette = np.full((256, 3), PALE, np.uint8)
    palette[: data.num_classes] = np.array([*data.colors], np.uint8)
    return palette


def shares(counts: NDArray[np.int64], class_names: Sequence[str]) -> dict[str, Any]:
    """Of `pseudo.json`, by the number of pixels of each value (256): the share of those without a label, and of each
    class among the others."""
    total, labeled = int(counts.sum()), int(counts[:IGNORE].sum())
    named = zip(class_names, counts, strict=False)
    return {
        "unlabeled": round(1 - labeled / max(1, total), 6),
        "per_class": {name: round(int(count) / max(1, labeled), 6) for name, count in named},
    }


@contextmanager
def pseudo_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """An empty folder to write pseudo-masks into, `pseudo.json` last. It becomes `folder` when the block ends.

    Raises:
        FileExistsError: see `check_output`; or another process was faster.
    """
    aside = folder.with_name(f".{folder.name}.before")
    if aside.exists() and not folder.exists():  # who was replacing it was killed
        aside.rename(folder)
    check_output(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    clean(folder.parent, folder.name)  # what commands that were killed have left

    def put_aside() -> None:
        if folder.exists():
            check_output(folder, overwrite)
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)

    with folder_written_whole(folder, put_aside) as scratch:
        yield scratch
        written = (scratch / ABOUT).stat().st_ino
    if (folder / ABOUT).stat().st_ino != written:
        raise FileExistsError(f"another process has written {folder} meanwhile: choose another --output")
    shutil.rmtree(aside, ignore_errors=True)


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise FileExistsError for a folder that is not free: never one that holds something else than pseudo-masks as
    they were written, and those only with `overwrite`."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise FileExistsError(f"--output {folder} is a file: choose a folder")
    try:
        count = read_about(folder)["images"]
        made = (folder / ABOUT).stat().st_mtime_ns
    except (OSError, ValueError, KeyError):
        raise FileExistsError(
            f"--output {folder} holds files that `weakseg pseudo` has not written: choose another folder"
        ) from None
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    pictures = [path for path in files if path.suffix == ".png"]
    others = [path for path in files if path.suffix != ".png" and path != folder / ABOUT]
    changed = [path for path in pictures if path.lstat().st_mtime_ns > made]
    if others or changed or len(pictures) != count:
        named = f"{(others or changed)[0]} was" if others or changed else f"its {len(pictures)} pictures were"
        raise FileExistsError(f"{named} not written by `weakseg pseudo`, or changed since: choose another --output")
    if not overwrite:
        raise FileExistsError(f"{folder} holds pseudo-masks: choose another --output, or replace them with --overwrite")


def write_about(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `pseudo.json`, which makes a folder one of pseudo-masks."""
    (folder / ABOUT).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def images_of(data: SegmentationDataModule, split: Split, by_tags: bool) -> DataLoader[Any]:
    """Whole images of a split, one by one, with their masks, if they have any, and their tags, if these are needed.

    Raises:
        ValueError: an image whose tags nobody knows.
    """
    names = data.names(split)
    known = {*(data.tagged or ()), *filter(data.from_boxes, names)}
    if by_tags and (bare := [n for n in names if n not in known and not data.has_mask(n)]):
        raise ValueError(f"{len(bare)} images of {split} have neither tags nor a mask ({bare[0]}): give data.tags")
    images = WholeImages(shared(data, names), reader(data), data.mask, data.learned_tags if by_tags else None)
    return loader(data, images, batch_size=1)
