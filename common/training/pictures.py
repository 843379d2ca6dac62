"""Label maps as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from common.ops.array import Array
from common.ops.batch import IGNORE
from common.training.files import written_whole

Color = tuple[int, int, int]

LARGE = 2**24  # pixels of an image of which pictures are shrunk
SIDE = 2048  # to fit a square of this side


def to_uint8(image: Tensor) -> Array:
    """(C, H, W), float in [0, 1] or uint8, RGB first, to (H, W, 3) uint8."""
    if image.dtype == torch.uint8:
        return image[:3].detach().cpu().permute(1, 2, 0).numpy()
    return (image[:3].detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def picture_step(height: int, width: int) -> int:
    """Every how many pixels of an image are shown: 1, or more so that pictures of a large image stay small."""
    return 1 if height * width <= LARGE else -(-max(height, width) // SIDE)


def shown_image(image: Tensor, size: tuple[int, int], step: int) -> Tensor:
    """An image (C, h, w), float in [0, 1] or uint8, as uint8 (3, *size), bilinear; with a `step` above 1 of every few
    of its pixels, without a float copy of all of them. By Pillow: what torch rounds depends on the number of threads,
    and processes that share the images are to write the same bytes."""
    if step > 1:
        rows, columns = (max(1, have // want) for have, want in zip(image.shape[-2:], size, strict=True))
        image = image[..., ::rows, ::columns]
    resized = Image.fromarray(to_uint8(image)).resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def every_few(labels: Tensor, top: int, step: int) -> Array:
    """Of a strip of labels (rows, W) that begins in row `top` of an image, the pixels that pictures show, uint8."""
    return labels[-top % step :: step, ::step].byte().cpu().numpy()


def colorize(labels: Array, colors: Sequence[Color]) -> Array:
    """Label map (H, W) to (H, W, 3) uint8; IGNORE is white."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(colors)] = colors
    table[IGNORE] = 255
    return table[labels]


def overlay(image: Tensor, colored: Array, strength: float = 0.55) -> Array:
    """Image (C, H, W) in [0, 1] with a coloured label map (H, W, 3) laid over it."""
    mixed = (1 - strength) * to_uint8(image).astype(np.float32) + strength * colored
    return mixed.round().astype(np.uint8)


def mark_pixels(image: Tensor, labels: Array, colors: Sequence[Color]) -> Array:
    """The image in pale grey, with each labelled pixel as a dot in its class colour (so that a single one is seen)."""
    grey = to_uint8(image).mean(-1, keepdims=True)
    picture = np.repeat((170 + grey / 3).astype(np.uint8), 3, -1)
    dense = (labels != IGNORE).mean() > 0.05
    radius = 0 if dense else max(1, min(labels.shape) // 64)
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    for y, x in np.argwhere(labels != IGNORE):
        box = (int(x) - radius, int(y) - radius, int(x) + radius, int(y) + radius)
        draw.rectangle(box, fill=tuple(int(c) for c in colors[labels[y, x]]))
    return np.asarray(canvas)


def picture_row(image: Tensor, labels: Sequence[Tensor], colors: Sequence[Color]) -> list[Array]:
    """The image (C, h, w) and each label map (H, W), coloured, at the size of the label maps."""
    height, width = labels[0].shape
    shown = np.asarray(Image.fromarray(to_uint8(image)).resize((width, height), Image.Resampling.BILINEAR))
    return [shown, *(colorize(label.cpu().numpy(), colors) for label in labels)]


def save_grid(
    path: Path, rows: Sequence[Sequence[Array]], titles: Sequence[str], height: int = 160, colors: int | None = None
) -> None:
    """Write rows of pictures of any size as one PNG with a title over each column; every row is `height` high. With so
    many `colors`, at most 256, it is an indexed one, a third as large."""
    gap, top = 4, 18
    widths = [max(1, *(round(row[i].shape[1] * height / row[i].shape[0]) for row in rows)) for i in range(len(titles))]
    sheet = Image.new("RGB", (sum(widths) + gap * (len(widths) + 1), top + (height + gap) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    left = gap
    for column, (width, title) in enumerate(zip(widths, titles, strict=True)):
        draw.text((left + 2, 3), title, fill="black")
        for number, row in enumerate(rows):
            own = max(1, round(row[column].shape[1] * height / row[column].shape[0]))
            tile = Image.fromarray(row[column]).resize((own, height), Image.Resampling.NEAREST)
            sheet.paste(tile, (left, top + number * (height + gap)))
        left += width + gap
    with written_whole(path) as scratch:
        indexed = sheet if colors is None else sheet.quantize(colors, dither=Image.Dither.NONE)
        indexed.save(scratch, "PNG", optimize=colors is not None)
