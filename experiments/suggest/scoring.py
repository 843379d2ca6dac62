"""Scores of images by a trained model, which of them have labels, and the files that say what to label next."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from common.model.inference import WHOLE, as_float
from common.model.module import SegmentationModule
from common.ops.array import Array
from common.ops.uncertainty import disagreement, entropy, margin, spread_out
from common.training.pictures import colorize, every_few, overlay, picture_step, save_grid, shown_image, to_uint8
from common.training.predictions import Written
from datamodules.base import SegmentationDataModule
from datamodules.drawn import files_below, parts_of
from datamodules.files import find_images
from experiments.suggest.outlines import labelme

By = Literal["entropy", "margin", "disagreement"]
LIST, SHEET = "suggest.csv", "sheet.png"
HEIGHT = 160  # pixels of a picture in the sheet


class Scorer(LightningModule):
    """A trained model whose `predict_step` scores an image: the mean over its pixels of `common.ops.uncertainty`.

    Entropy and margin are those of the network whose score is `val/miou`. The members that may disagree are all
    networks that the method validates (student and teacher, two branches), each on the image and on its mirror image.

    Args:
        model: the trained model.
        by: what is measured.
        with_labels: give the labels and the map of the scores too.
    """

    def __init__(self, model: SegmentationModule, by: By) -> None:
        super().__init__()
        self.model, self.by, self.with_labels = model, by, False

    def on_predict_start(self) -> None:
        self.model.on_predict_start()

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Of the one image of a batch: `score`, `features` (D,) of unit length and, if asked, `map` (h, w), at the size
        that the network sees, and `labels` uint8 (H, W) at the original `size`; of a large image both of every few
        pixels (`common.training.pictures.picture_step`). Whatever its size, no more is held of an image than
        `predict_strips` does."""
        height, width = batch["image"].shape[-2:]
        step, top, total, parts = picture_step(height, width), 0, 0.0, []
        for found in self.scores(batch):
            total += float(found.sum(dtype=torch.float64))
            parts += [found[-top % step :: step, ::step].cpu()] if self.with_labels else []
            top += len(found)
        out = {"score": total / (height * width), "features": self.features(batch["image"])}
        if self.with_labels:
            size = batch["size"][0].tolist()
            step, top, rows = picture_step(*size), 0, []
            for labels, _ in self.model.predict_strips(self.model.scored_network, batch, refine=True):
                rows.append(every_few(labels[0], top, step))
                top += labels.shape[1]
            out |= {"map": torch.cat(parts), "labels": np.concatenate(rows), "size": size}
        return out

    def scores(self, batch: Mapping[str, Any]) -> Iterator[Tensor]:
        """(rows, w), in strips, at the size that the network sees."""
        image: Tensor = batch["image"]
        own = {**batch, "size": torch.tensor([image.shape[-2:]])}
        if self.by != "disagreement":
            for _, found in self.model.predict_strips(self.model.scored_network, own, refine=False):
                yield entropy(found[0]) if self.by == "entropy" else margin(found[0])
            return
        views = own, {**own, "image": image.flip(-1)}
        networks = self.model.eval_networks().values()
        strips = [self.model.predict_strips(network, view, refine=False) for network in networks for view in views]
        for members in zip(*strips, strict=True):  # whose heights are the same
            seen = [found[0].flip(-1) if number % 2 else found[0] for number, (_, found) in enumerate(members)]
            yield disagreement(torch.stack(seen))

    def features(self, image: Tensor) -> Tensor:
        """The mean of the encoder's last map over the image, of length 1. [ours] Of an image that the network predicts
        in windows, the encoder sees a smaller copy."""
        network = self.model.network
        step = math.ceil(math.sqrt(image.shape[-2] * image.shape[-1] / WHOLE))
        if step > 1:
            rows = range(0, image.shape[-2], 64 * step)
            parts = (as_float(image[..., top : top + 64 * step, :]) for top in rows)  # one at a time
            image = torch.cat([F.avg_pool2d(part, step, ceil_mode=True) for part in parts], -2)
        image = as_float(image)
        if network.only_size and max(image.shape[-2:]) > network.only_size:
            image = F.interpolate(image, scale_factor=network.only_size / max(image.shape[-2:]), mode="bilinear")
        return F.normalize(network.encode(image)[0][-1].float().mean((2, 3))[0], dim=0).cpu()


class Scores(Callback):
    """Keeps what a `Scorer` finds, by image, and what could not be read."""

    def __init__(self) -> None:
        self.scores: dict[str, float] = {}
        self.features: dict[str, Tensor] = {}
        self.failed: list[str] = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Mapping[str, Any], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if "error" in batch:
            self.failed += batch["error"]
            return
        name = batch["name"][0]
        self.scores[name], self.features[name] = outputs["score"], outputs["features"]

    def choose(self, count: int, labelled: Iterable[str]) -> list[str]:
        """The ids of what to label next, see `common.ops.uncertainty.spread_out`; those with labels are known."""
        known = [self.features[name] for name in sorted({*labelled} & self.features.keys())]
        names = sorted(self.scores.keys() - {*labelled})
        if not names:
            return []
        features = torch.stack([self.features[name] for name in names])
        weights = torch.tensor([self.scores[name] for name in names]).nan_to_num(0)
        chosen = spread_out(features, weights, count, torch.stack(known) if known else None)
        return [names[number] for number in chosen]


def labelled_images(images: Mapping[str, Path], masks: Path | None, data: SegmentationDataModule | None) -> set[str]:
    """Ids of the images that have labels: a mask or drawing in `masks` under the image's id, labelme's file beside the
    image, or a mask in the data set that has the same file as an image, or boxes there that training learned from.

    Raises:
        FileNotFoundError: there is no folder `masks`.
    """
    found = {
        name
        for name, path in images.items()
        if path.with_suffix(".json").is_file() or path.with_name(f"{path.name}.json").is_file()
    }
    if masks is not None:
        if not masks.is_dir():
            raise FileNotFoundError(f"{masks} is no folder: check --masks")
        paths = files_below(masks, ".json")
        drawn = ["/".join(parts_of(path.relative_to(masks).with_suffix("").as_posix())) for path in paths]
        found |= images.keys() & find_images(masks, nested=True, needed=False).keys()
        found |= images.keys() & {*drawn}
    if data is not None:
        boxed = [name for name in data.boxed or () if data.from_boxes(name)]
        theirs = {data.images[name].resolve() for name in (*data.masks, *boxed) if name in data.images}
        found |= {name for name, path in images.items() if path.resolve() in theirs}
    return found


class SuggestionWriter(Callback):
    """Writes labelme's file of each image that a `Scorer` with labels gives, and at the end the sheet and the list.

    Args:
        written: the folder.
        files: the images to label next, by id, the first one first.
        root: the folder of images, which the list's paths begin in.
        scores: of the images, by id.
        about: what the score is, a word for the sheet.
    """

    def __init__(
        self, written: Written, files: Mapping[str, Path], root: Path, scores: Mapping[str, float], about: str
    ) -> None:
        self.written, self.files, self.root, self.scores, self.about = written, files, root, scores, about
        self.rows: list[Sequence[Array]] = []

    def targets(self) -> list[str]:
        """The files that are written, relative to the folder."""
        return [LIST, SHEET, *(drawing_of(name) for name in self.files)]

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Mapping[str, Any], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        data = trainer.datamodule  # type: ignore[attr-defined]
        name = batch["name"][0]
        labels, (height, width) = outputs["labels"], outputs["size"]
        target = drawing_of(name)
        place = (self.written.folder / target).parent
        path = os.path.relpath(self.files[name].resolve(), place.resolve())
        content = labelme(labels, data.class_names, path, (height, width))
        with self.written.file(target) as scratch:
            scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        size = (HEIGHT, max(1, round(width * HEIGHT / height)))
        image = batch["image"][0, :3]
        image = shown_image(image, labels.shape, step) if (step := picture_step(*image.shape[-2:])) > 1 else image
        image = F.interpolate(as_float(image)[None], size, mode="bilinear", antialias=True)[0]
        small = np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
        where = F.interpolate(outputs["map"][None, None], size, mode="bilinear")[0, 0].clamp(0, 1).numpy()
        text = f"{len(self.rows) + 1}   {self.scores[name]:.3f}"
        pictures = to_uint8(image), overlay(image, colorize(small, data.colors)), colormaps["magma"](where)[..., :3]
        self.rows.append([captioned(pictures[0], text), pictures[1], (255 * pictures[2]).astype(np.uint8)])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self.written.file(SHEET) as scratch:
            save_grid(scratch, self.rows, ["image, its rank and score", "prediction", self.about], HEIGHT)
        with (
            self.written.file(LIST) as scratch,
            scratch.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["rank", "file", "score"])
            for rank, (name, path) in enumerate(self.files.items(), 1):
                place = path.relative_to(self.root) if path != self.root else Path(path.name)
                rows.writerow([rank, place.as_posix(), f"{self.scores[name]:.6f}"])


def drawing_of(name: str) -> str:
    """Where the drawing of an image is, relative to the folder."""
    return f"labelme/{name}.json"


def captioned(picture: Array, text: str) -> Array:
    """A picture (H, W, 3) with a line of text in its corner."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 6 * len(text) + 8, 15), fill="black")
    draw.text((4, 2), text, fill="white")
    return np.asarray(image)
