"""Geometry shared by image and mask: resizing on the host, random scale, crop and flip on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common.batch import IGNORE

DRAWS = 4  # uniform numbers per sample: scale, vertical and horizontal place of the crop, flip


def fit_size(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """Largest (height, width) inside `box` with the proportions of `size`, at least one pixel each."""
    scale = min(box[0] / size[0], box[1] / size[1])
    return max(1, min(box[0], round(size[0] * scale))), max(1, min(box[1], round(size[1] * scale)))


def resize_image(image: np.ndarray[Any, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """uint8 (H, W, 3) to (h, w, 3), bilinear with antialiasing."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def pad_to(array: np.ndarray[Any, Any], box: tuple[int, int], value: int) -> np.ndarray[Any, Any]:
    """Pad (h, w, ...) at the bottom and right to `box`."""
    rows, columns = box[0] - array.shape[0], box[1] - array.shape[1]
    if not rows and not columns:
        return array
    return np.pad(array, [(0, rows), (0, columns)] + [(0, 0)] * (array.ndim - 2), constant_values=value)


def draw_uniform(seed: int, keys: Tensor) -> Tensor:
    """Uniform numbers (B, DRAWS) in [0, 1), each row a function of (seed, epoch, position) alone."""
    rows = [np.random.default_rng([seed, *key]).random(DRAWS) for key in keys.tolist()]
    return torch.tensor(np.stack(rows), dtype=torch.float32)


def random_crop(
    image: Tensor,
    mask: Tensor,
    extent: Tensor,
    draws: Tensor,
    crop: tuple[int, int],
    scale: tuple[float, float],
    flip: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Randomly scaled, placed and mirrored crop, in one resampling.

    Args:
        image: (B, 3, H, W) float.
        mask: (B, H, W) integer.
        extent: (B, 2) height and width of the true image inside H x W; the rest is padding.
        draws: (B, DRAWS) uniform numbers, see `draw_uniform`.
        crop: height and width of the result.
        scale: range of the magnification, drawn log-uniformly.
        flip: mirror half of the samples left-right.

    Returns:
        image (B, 3, h, w), bilinear, its border repeated outside the true image; mask (B, h, w) int64, nearest, IGNORE
        outside; valid (B, h, w) bool, False outside.
    """
    low, high = scale
    zoom = low * (high / low) ** draws[:, 0]
    # An axis of the crop runs over [start, start + crop / zoom) of the image; a scaled image that is smaller than the
    # crop is placed anywhere inside it (start is then negative).
    coordinates, inside = [], []
    for axis in (0, 1):
        length = extent[:, axis].to(zoom.dtype)
        start = draws[:, 1 + axis] * (length - crop[axis] / zoom)
        at = start[:, None] + (torch.arange(crop[axis], device=image.device) + 0.5) / zoom[:, None]
        if axis == 1 and flip:
            at = torch.where(draws[:, 3, None] < 0.5, at.flip(1), at)
        inside.append((at >= 0) & (at < length[:, None]))
        # Clamp to pixel centres: the border is repeated, and padding never bleeds into the image.
        at = torch.minimum(at.clamp(min=0.5), length[:, None] - 0.5)
        coordinates.append(at * (2 / image.shape[2 + axis]) - 1)
    y, x = coordinates
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    valid = inside[0][:, :, None] & inside[1][:, None, :]
    out = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    label = F.grid_sample(
        mask[:, None].to(image.dtype), grid, mode="nearest", padding_mode="border", align_corners=False
    )
    return out, torch.where(valid, label[:, 0].long(), IGNORE), valid


def nearest_rows(length: int, wanted: int) -> np.ndarray[Any, Any]:
    """For each of `wanted` cells the index of the pixel at its centre, of `length` pixels ('nearest-exact')."""
    return ((2 * np.arange(wanted) + 1) * length) // (2 * wanted)
