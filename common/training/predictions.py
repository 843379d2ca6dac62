"""Predictions as files: pictures while a run trains, labels of `weakseg predict`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from numpy.lib.format import write_array_header_1_0
from PIL import Image

from common.model.module import SegmentationModule
from common.ops.array import Array
from common.ops.distributed import gather
from common.training.files import written_whole
from common.training.geotiff import GeoTiff
from common.training.pictures import colorize, every_few, overlay, picture_row, picture_step, save_grid, shown_image
from common.training.png import RowPng
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
        step, top, parts = picture_step(*batch["mask"].shape[-2:]), 0, []
        for labels, _ in pl_module.predict_strips(pl_module.scored_network, batch, refine=False):
            parts.append(every_few(labels[0], top, step))
            top += labels.shape[1]
        found, mask = np.concatenate(parts), batch["mask"][0, ::step, ::step]
        truth = mask.cpu().numpy().astype(np.uint8)
        image = batch["image"][0] if step == 1 else shown_image(batch["image"][0], truth.shape, step)
        image = picture_row(image, [mask], trainer.datamodule.colors)[0]  # type: ignore[attr-defined]
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


MAKER = "."  # no file's name


class Written:
    """What a verb, such as `predict`, has written into a folder: `.weakseg-predictions.jsonl`, a line for each file
    before it is written (`[path, null]`, as it may be cut off) and one after (`[path, [size, time of change in ns]]`);
    `[".", maker]` where another maker goes on.
    Several processes may write into one folder, each its own files.

    Args:
        folder: it need not exist.
        verb: who writes.
    """

    def __init__(self, folder: Path, verb: str = "predict") -> None:
        self.folder, self.list, self.verb = folder, folder / ".weakseg-predictions.jsonl", verb
        self.maker: str | None = None

    def check(self, targets: Iterable[str], overwrite: bool) -> None:
        """Raise FileExistsError if a file would be replaced that was not written here, or that was changed since, or,
        without `overwrite`, any."""
        known = dict(self.noted())
        for target in targets:
            path = self.folder / target
            if not path.exists():
                continue
            found = path.stat()
            if target not in known or known[target] not in (None, [found.st_size, found.st_mtime_ns]):
                raise FileExistsError(
                    f"{path} was not written by {self.verb}, or was changed since: choose another --output, or move it "
                    "away"
                )
            if not overwrite:
                raise FileExistsError(f"{path} exists: choose another --output, or replace it with --overwrite")

    def noted(self) -> Iterator[tuple[str, Any]]:
        """The lines of the list: file and state."""
        for line in self.list.read_text().splitlines() if self.list.exists() else ():
            try:
                name, state = json.loads(line)
                yield name, state
            except (ValueError, TypeError):  # blank, or cut off
                continue

    def begin(self, maker: str, add: bool) -> set[str]:
        """Say who writes from now on; the files that this maker, the last one here, has written and nobody has changed.

        Raises:
            FileExistsError: files are to be added to those of another maker.
        """
        last, made = None, dict[str, Any]()
        for name, state in self.noted():
            if name == MAKER and state != last:
                last, made = state, {}
            made[name] = state
        if add and last not in (None, maker):
            raise FileExistsError(
                f"{self.folder} holds what another checkpoint, or other options, have made: choose another --output"
            )
        self.maker = maker  # noted with the first file
        files = {name: self.folder / name for name in made} if last == maker else {}
        there = {name: path.stat() for name, path in files.items() if path.is_file()}
        return {name for name, found in there.items() if made[name] == [found.st_size, found.st_mtime_ns]}

    @contextmanager
    def file(self, target: str) -> Iterator[Path]:
        """A path to write a file at, see `common.training.files.written_whole`."""
        path = self.folder / target
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.list.open("a") as lines:
            if self.maker:
                lines.write("\n" + json.dumps([MAKER, self.maker]))
                self.maker = None
            lines.write("\n" + json.dumps([target, None]) + "\n")  # the line before may be cut off
            lines.flush()
            with written_whole(path) as scratch:
                yield scratch
            found = path.stat()
            lines.write(json.dumps([target, [found.st_size, found.st_mtime_ns]]) + "\n")


class HalfArray:
    """A `.npy` of float16 (K, H, W) that is written in strips of rows.

    Args:
        file: open for writing, and empty.
        shape: K, H, W.
    """

    def __init__(self, file: BinaryIO, shape: tuple[int, int, int]) -> None:
        self.file, self.shape = file, shape
        write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        self.start = file.tell()

    def write(self, values: torch.Tensor, top: int) -> None:
        """The rows from `top` on, (K, rows, W)."""
        for number, plane in enumerate(values.half().cpu().numpy().astype("<f2")):
            self.file.seek(self.start + 2 * (number * self.shape[1] + top) * self.shape[2])
            self.file.write(plane.tobytes())


class PredictionWriter(Callback):
    """Writes what `predict` finds at each image's original size: `<id>.png` (class ids), `overlays/<id>.png` and, if
    asked, `probabilities/<id>.npy` (K, H, W) float16 and `<id>.tif`, the labels in the place of a GeoTIFF; the overlays
    of images of more than 2^24 pixels are shrunk to fit 2048 x 2048. Counts the pixels of each class, over all
    processes at the end, and keeps what could not be read."""

    def __init__(self, written: Written, probabilities: bool, geotiff: bool = False) -> None:
        self.written, self.probabilities, self.geotiff = written, probabilities, geotiff
        self.counts: Array = np.zeros(0, np.int64)
        self.failed: list[str] = []

    def targets(self, names: Iterable[str]) -> Iterator[str]:
        """The files of these images, relative to the folder.

        Raises:
            ValueError: one of them would be that of two images.
        """
        seen: set[str] = set()
        for name in names:
            further = {f"probabilities/{name}.npy": self.probabilities, f"{name}.tif": self.geotiff}
            for target in (f"{name}.png", f"overlays/{name}.png", *further):
                if target in seen:
                    raise ValueError(f"{target} would be written for two images: rename {name}")
                seen.add(target)
                if further.get(target, True):
                    yield target

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.counts = np.zeros(trainer.datamodule.num_classes, np.int64)  # type: ignore[attr-defined]

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Mapping[str, Any], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if "error" in batch:
            self.failed += batch["error"]
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        name = outputs["name"][0]
        height, width = batch["size"][0].tolist()
        step, top, parts = picture_step(height, width), 0, []
        with ExitStack() as files:
            picture = RowPng(self._open(files, f"{name}.png"), height, width)
            if self.probabilities:
                array = HalfArray(self._open(files, f"probabilities/{name}.npy"), (data.num_classes, height, width))
            if self.geotiff:
                scratch = files.enter_context(self.written.file(f"{name}.tif"))
                raster = GeoTiff(files, scratch, data.images[name], (height, width), data.colors)
            strips = outputs["strips"] if "strips" in outputs else [(outputs["labels"], outputs["probabilities"])]
            for labels, probabilities in strips:
                rows = labels[0].byte().cpu().numpy()
                self.counts += np.bincount(rows.ravel(), minlength=data.num_classes)
                picture.write(rows)
                parts.append(every_few(labels[0], top, step))
                if self.probabilities:
                    array.write(probabilities[0], top)
                if self.geotiff:
                    raster.write(rows, top)
                top += len(rows)
        shown = np.concatenate(parts)
        image = shown_image(batch["image"][0], shown.shape, step)
        with self.written.file(f"overlays/{name}.png") as scratch:
            Image.fromarray(overlay(image, colorize(shown, data.colors))).save(scratch, "PNG")

    def _open(self, files: ExitStack, target: str) -> BinaryIO:
        return files.enter_context(files.enter_context(self.written.file(target)).open("wb"))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.counts = np.sum(gather(self.counts), 0)
        self.failed = [line for part in gather(self.failed) for line in part]
