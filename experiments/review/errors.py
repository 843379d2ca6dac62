"""Errors of a model, and errors of masks that it finds: per image, per pair of classes, per region."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage import measure

from common.model.metrics import scores
from common.model.module import SegmentationModule
from common.ops.array import Array
from common.ops.batch import IGNORE
from common.training.pictures import colorize, picture_step, shown_image, to_uint8
from datamodules.augmentation import whole
from experiments.compare.figures import show_errors

SHOWN = 60  # pictures on the page, of images and of regions each
Item = TypeVar("Item")


@dataclass(frozen=True)
class Region:
    """A connected region whose mask says one class and the model, everywhere, another one.

    `area` is in pixels; `confidence` the mean probability of the predicted class; `weight` the sum over the region of
    that probability minus the mask's class's, as a share of the image's pixels: regions are ranked by it. `box` is
    (top, left, bottom, right), the last two exclusive.
    """

    name: str
    mask: int
    prediction: int
    area: int
    confidence: float
    weight: float
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Seen:
    """What a model says of an image with a mask, at every `step`-th pixel: `mask` and `labels`, uint8 (h, w), and the
    probabilities (h, w) of the predicted class, `sure`, and of the mask's, `given`."""

    mask: Array
    labels: Array
    sure: Array
    given: Array
    step: int = 1


def seen(mask: Array, labels: Array, probabilities: Array) -> Seen:
    """Of a mask and labels, uint8 (H, W), and probabilities (K, H, W)."""
    sure = np.take_along_axis(probabilities, labels[None].astype(np.int64), 0)[0]
    known = np.where(mask == IGNORE, 0, mask).astype(np.int64)
    return Seen(mask, labels, sure, np.take_along_axis(probabilities, known[None], 0)[0])


def disagreements(name: str, image: Seen, confidence: float, share: float) -> list[Region]:
    """Where a model disagrees confidently with a mask: candidates for errors of the mask, the heaviest first.

    [ours] Confident learning (Northcutt et al., JAIR 2021) asks of each example if the model is surer of another label
    than of the given one; here the examples are connected regions (8 neighbours) of one given and one predicted class.

    Args:
        confidence: least mean probability of the predicted class.
        share: least area of a region, as a share of the pixels with a label; a single click counts where there are few.
    """
    mask, labels, step = image.mask, image.labels, image.step
    wrong = (mask != IGNORE) & (labels != mask)
    if not wrong.any():
        return []
    pairs = np.where(wrong, mask.astype(np.int32) * 256 + labels + 1, 0)
    regions: Array = measure.label(pairs, background=0, connectivity=2)  # type: ignore[no-untyped-call]
    flat = regions.ravel()
    areas = np.bincount(flat)
    confidences = np.bincount(flat, image.sure.ravel()) / areas.clip(1)
    weights = np.bincount(flat, (image.sure - image.given).ravel()) / mask.size
    least = max(1, math.ceil(share * int((mask != IGNORE).sum())))
    found = []
    for number, place in enumerate(ndimage.find_objects(regions), 1):
        if areas[number] < least or confidences[number] < confidence:
            continue
        rows, columns = place
        row, column = np.argwhere(regions[place] == number)[0] + (rows.start, columns.start)
        pair = int(mask[row, column]), int(labels[row, column])
        confident, weight = float(confidences[number]), float(weights[number])
        box = (rows.start * step, columns.start * step, rows.stop * step, columns.stop * step)
        found.append(Region(name, *pair, int(areas[number]) * step**2, confident, weight, box))
    return sorted(found, key=lambda one: -one.weight)


@dataclass(frozen=True)
class ImageErrors:
    """An image's mIoU (in per cent), share of wrong ones among the labelled pixels, and its confusion matrix (K, K)."""

    name: str
    miou: float
    wrong: float
    confusion: Array


class Best(Generic[Item]):
    """The `most` items of the highest weight; what shows one is made, and kept, only if it is among them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: list[tuple[float, Item, Any]] = []

    def add(self, weight: float, item: Item, show: Callable[[], Any]) -> None:
        if len(self.kept) == self.most and weight <= self.kept[-1][0]:
            return
        self.kept.append((weight, item, show()))
        self.kept.sort(key=lambda one: -one[0])
        del self.kept[self.most :]

    @property
    def items(self) -> list[tuple[Item, Any]]:
        return [(item, shown) for _, item, shown in self.kept]


class Reviewed(LightningModule):
    """A trained model whose `predict_step` gives what it says of an image, `Seen`, and the confusion matrix (K, K) of
    all its pixels, at the original size, with the run's own post-processing. Of a large image no more is held than
    `predict_strips` does, and `Seen` has every few pixels (`common.training.pictures.picture_step`)."""

    def __init__(self, model: SegmentationModule) -> None:
        super().__init__()
        self.model = model

    def on_predict_start(self) -> None:
        self.model.on_predict_start()

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        return whole(batch)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> tuple[Seen, Array]:
        mask, classes = batch["mask"][0], self.model.num_classes
        confusion = torch.zeros(classes**2, dtype=torch.int64, device=mask.device)
        step, top, parts = picture_step(*mask.shape), 0, []
        for labels, probabilities in self.model.predict_strips(self.model.scored_network, batch, refine=True):
            truth = mask[top : top + labels.shape[1]].long()
            counted = truth != IGNORE
            confusion += torch.bincount(truth[counted] * classes + labels[0][counted], minlength=classes**2)
            few = (..., slice(-top % step, None, step), slice(None, None, step))
            found = seen(
                truth[few].byte().cpu().numpy(), labels[0][few].byte().cpu().numpy(),
                probabilities[0][few].float().cpu().numpy(),
            )  # fmt: skip
            parts.append((found.mask, found.labels, found.sure, found.given))
            top += labels.shape[1]
        kept = [np.concatenate(one) for one in zip(*parts, strict=True)]
        return Seen(kept[0], kept[1], kept[2], kept[3], step), confusion.view(classes, classes).cpu().numpy()


Pictures = tuple[Array, Array, Array, Array]  # image, mask, prediction, errors; each (H, W, 3)


class Review(Callback):
    """Collects the errors of all images that are predicted, and the pictures of the worst.

    Args:
        colors: of the classes.
        confidence, share: see `disagreements`.
    """

    def __init__(self, colors: Sequence[tuple[int, int, int]], confidence: float, share: float) -> None:
        self.colors, self.confidence, self.share = colors, confidence, share
        self.images: list[ImageErrors] = []
        self.regions: list[Region] = []
        self.bare = 0  # images without a label
        self.worst: Best[ImageErrors] = Best(SHOWN)
        self.heaviest: Best[Region] = Best(SHOWN)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Mapping[str, Any], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        found, confusion = outputs
        image = batch["image"][0]
        image = shown_image(image, found.mask.shape, found.step) if found.step > 1 else image
        self.look_at(batch["name"][0], to_uint8(image), found, confusion)

    def look_at(self, name: str, image: Array, seen: Seen, confusion: Array) -> None:
        """Take in an image, uint8 (h, w, 3) at any size, what the model says of it, and its confusion matrix (K, K)."""
        if not confusion.any():
            self.bare += 1
            return
        found = scores(torch.from_numpy(confusion))
        one = ImageErrors(name, float(found["miou"]), 1 - float(found["accuracy"]) / 100, confusion)
        self.images.append(one)

        def pictures(box: tuple[int, ...] | None = None) -> Pictures:
            place = None if box is None else tuple(side // seen.step for side in box)
            return drawn(image, seen.mask, seen.labels, self.colors, place)  # type: ignore[arg-type]

        if one.wrong:
            self.worst.add(-one.miou, one, pictures)
        for region in disagreements(name, seen, self.confidence, self.share):
            self.regions.append(region)
            self.heaviest.add(region.weight, region, lambda box=region.box: pictures(box))  # type: ignore[misc]

    def finish(self) -> None:
        """Put the worst first."""
        self.images.sort(key=lambda one: (one.miou, one.name))
        self.regions.sort(key=lambda one: -one.weight)


def drawn(
    image: Array, mask: Array, labels: Array, colors: Sequence[tuple[int, int, int]],
    box: tuple[int, int, int, int] | None, most: int = 320,
) -> Pictures:  # fmt: skip
    """The four pictures of an image, or of the part about a box, which is framed; at most `most` pixels a side."""
    height, width = mask.shape
    upright = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    top, left, bottom, right = (0, 0, height, width) if box is None else surroundings(box, height, width)
    place = slice(top, bottom), slice(left, right)
    shown = [upright, colorize(mask, colors), colorize(labels, colors), show_errors(upright, mask, labels)]
    parts = []
    for picture in shown:
        tile = Image.fromarray(np.ascontiguousarray(picture[place]))
        scale = most / max(tile.size)
        if scale < 1 or max(tile.size) < most // 2:  # small ones are enlarged, so that a frame can be thin
            scale = scale if scale < 1 else math.floor(scale)
            size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
            tile = tile.resize(size, Image.Resampling.BILINEAR if scale < 1 else Image.Resampling.NEAREST)
        else:
            scale = 1
        parts.append(np.asarray(tile if box is None else framed(tile, box, (top, left), scale)))
    return parts[0], parts[1], parts[2], parts[3]


def surroundings(box: tuple[int, int, int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """The part of an image to show of a box: three times as large, and at least half a side."""

    def side(low: int, high: int, full: int) -> tuple[int, int]:
        length = min(full, max(3 * (high - low), full // 2))
        start = min(max(0, (low + high - length) // 2), full - length)
        return start, start + length

    (top, bottom), (left, right) = side(box[0], box[2], height), side(box[1], box[3], width)
    return top, left, bottom, right


def framed(tile: Image.Image, box: tuple[int, int, int, int], corner: tuple[int, int], scale: float) -> Image.Image:
    """A picture with a frame about a box of the image, white in black, so that it is seen on any colour."""
    top, bottom = ((edge - corner[0]) * scale for edge in (box[0], box[2]))
    left, right = ((edge - corner[1]) * scale for edge in (box[1], box[3]))
    draw = ImageDraw.Draw(tile)
    for grow, color in ((4, "black"), (3, "white"), (2, "white"), (1, "black")):
        corners = (max(0, left - grow), max(0, top - grow), min(tile.width - 1, right - 1 + grow),
                   min(tile.height - 1, bottom - 1 + grow))  # fmt: skip
        draw.rectangle(corners, outline=color)
    return tile
