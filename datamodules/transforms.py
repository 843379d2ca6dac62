"""Geometry shared by image and mask: resizing on the host, random scale, crop and flip on the device. Strong views."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common.ops.array import Array
from common.ops.batch import IGNORE

Box = tuple[int, int] | None  # images are resized to fit inside this height and width; None: they stay as they are
DRAWS = 4  # uniform numbers per sample: scale, vertical and horizontal place of the crop, flip
STRONG_DRAWS = 8  # per view: jitter at all, brightness, contrast, saturation, hue, grey at all, blur at all, its sigma


def fit_size(size: tuple[int, int], box: Box) -> tuple[int, int]:
    """Largest (height, width) inside `box` with the proportions of `size`, at least one pixel each."""
    if box is None:
        return size
    scale = min(box[0] / size[0], box[1] / size[1])
    return max(1, min(box[0], round(size[0] * scale))), max(1, min(box[1], round(size[1] * scale)))


def resize_image(image: Array, size: tuple[int, int]) -> Array:
    """uint8 (H, W, C) to (h, w, C), bilinear with antialiasing."""
    if image.shape[:2] == size:
        return image
    if image.shape[2] != 3:  # of which Pillow knows no pictures
        return np.stack([_resized(image[..., band], size) for band in range(image.shape[2])], -1)
    return _resized(image, size)


def _resized(image: Array, size: tuple[int, int]) -> Array:
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def pad_to(array: Array, box: tuple[int, int], value: int) -> Array:
    """Pad (h, w, ...) at the bottom and right to `box`."""
    rows, columns = box[0] - array.shape[0], box[1] - array.shape[1]
    if not rows and not columns:
        return array
    return np.pad(array, [(0, rows), (0, columns)] + [(0, 0)] * (array.ndim - 2), constant_values=value)


def draw_uniform(seed: int, keys: Tensor) -> Tensor:
    """Uniform numbers (B, DRAWS) in [0, 1), each row a function of (seed, epoch, position) alone."""
    rows = [np.random.default_rng([seed, *key]).random(DRAWS) for key in keys.tolist()]
    return torch.tensor(np.stack(rows), dtype=torch.float32)


def draw_strong(seed: int, keys: Tensor, views: int) -> Array:
    """Uniform numbers (B, views, STRONG_DRAWS) in [0, 1), float32.

    Each view's are a function of (seed, epoch, position) and of its number alone, and none are those of `draw_uniform`.
    An array, not a tensor, so that it stays on the host when the batch moves: `strong_view` decides there.
    """
    # 1, not 0: NumPy takes a trailing zero for nothing, and the numbers would be those of `draw_uniform`
    rows = [np.random.default_rng([seed, *key, 1]).random((views, STRONG_DRAWS)) for key in keys.tolist()]
    return np.stack(rows).astype(np.float32)


def random_crop(
    image: Tensor,
    mask: Tensor,
    extent: Tensor,
    draws: Tensor,
    crop: tuple[int, int],
    scale: tuple[float, float],
    flip: bool,
    origin: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Randomly scaled, placed and mirrored crop, in one resampling.

    Args:
        image: (B, C, H, W) float.
        mask: (B, H, W) integer; or several such planes, (B, P, H, W).
        extent: (B, 2) height and width of the true image inside H x W; the rest is padding. With `origin`, of the image
            that `cut_span` took a part of.
        draws: (B, DRAWS) uniform numbers, see `draw_uniform`.
        crop: height and width of the result.
        scale: range of the magnification, drawn log-uniformly.
        flip: mirror half of the samples left-right.
        origin: (B, 2) row and column of the true image at which a part begins, of which all is given that is needed.

    Returns:
        image (B, C, h, w), bilinear, its border repeated outside the true image; mask (B, h, w) or (B, P, h, w) int64,
        nearest, IGNORE outside; valid (B, h, w) bool, False outside.
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
        if origin is not None:
            at = at - origin[:, axis, None]
        coordinates.append(at * (2 / image.shape[2 + axis]) - 1)
    y, x = coordinates
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    valid = inside[0][:, :, None] & inside[1][:, None, :]
    out = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    planes = (mask if mask.ndim == 4 else mask[:, None]).to(image.dtype)
    label = F.grid_sample(planes, grid, mode="nearest", padding_mode="border", align_corners=False)
    label = torch.where(valid[:, None], label.long(), IGNORE)
    return out, label if mask.ndim == 4 else label[:, 0], valid


def cut_span(draws: Tensor, size: tuple[int, int], crop: tuple[int, int], scale: tuple[float, float]) -> list[slice]:
    """The rows and the columns of an image of `size` that `random_crop` reads for one sample's `draws` (DRAWS,)."""
    low, high = scale
    zoom = low * (high / low) ** float(draws[0])
    spans = []
    for axis in (0, 1):
        reach = crop[axis] / zoom
        start = float(draws[1 + axis]) * (size[axis] - reach)
        # Two pixels more than the bilinear neighbours, as the device rounds to other floats.
        spans.append(slice(max(0, math.floor(start) - 2), min(size[axis], math.ceil(start + reach) + 2)))
    return spans


def cut_box(crop: tuple[int, int], scale: tuple[float, float]) -> tuple[int, int]:
    """Height and width that hold every part of `cut_span`."""
    return math.ceil(crop[0] / scale[0]) + 6, math.ceil(crop[1] / scale[0]) + 6


def strong_view(image: Tensor, draws: Array) -> Tensor:
    """Colour jitter (for 80 % of the samples), grey (20 %) and blur (50 %), in this order; the geometry stays.

    Kinds, chances and strengths are those of UniMatch's code (LiheYoung/UniMatch, dataset/transform.py): brightness,
    contrast and saturation times 0.5 to 1.5, hue turned by up to a quarter, blur of deviation 0.1 to 2 pixels. Ours:
    the four jitters come in this fixed order (torchvision draws it), values stay floats in between, and the blur is a
    true Gaussian cut at 6 pixels (Pillow's is three box blurs).

    `image` is (B, C, H, W) float in [0, 1], RGB and further bands, which stay as they are; on any device. `draws` come
    from `draw_strong`.
    """
    if image.shape[1] > 3:
        return torch.cat([strong_view(image[:, :3], draws), image[:, 3:]], 1)
    # On the CPU image by image: the temporaries of one stay in the processor's cache.
    share = 1 if image.device.type == "cpu" else len(image)
    starts = range(0, len(image), share)
    return torch.cat([_strong_view(image[i : i + share], draws[i : i + share]) for i in starts])


def _strong_view(image: Tensor, draws: Array) -> Tensor:
    from kornia import color, enhance, filters  # 0.3 s, which runs without strong views need not wait for

    jittered, grey, blurred = draws[:, 0] < 0.8, draws[:, 5] < 0.2, draws[:, 6] < 0.5
    factors = torch.from_numpy(0.5 + draws[:, 1:4])
    image = _where(jittered, image, enhance.adjust_brightness_accumulative, factors[:, 0])
    image = _where(jittered, image, enhance.adjust_contrast_with_mean_subtraction, factors[:, 1])
    image = _where(jittered, image, enhance.adjust_saturation_with_gray_subtraction, factors[:, 2])
    image = _where(jittered, image, turn_hue, torch.from_numpy(0.5 * draws[:, 4] - 0.25))
    image = _where(grey, image, lambda some: color.rgb_to_grayscale(some).expand_as(some))
    sigma = torch.from_numpy(0.1 + 1.9 * draws[:, 7:]).expand(-1, 2)
    image = _where(blurred, image, lambda some, sigma: filters.gaussian_blur2d(some, 13, sigma, "replicate"), sigma)
    return image.clamp(0, 1)


def _where(chosen: Array, image: Tensor, change: Callable[..., Tensor], *numbers: Tensor) -> Tensor:
    """`image` with `change(image, *numbers)` at the chosen samples, which are known on the host."""
    if chosen.all():
        return change(image, *numbers)
    if not chosen.any():
        return image
    rows = torch.from_numpy(chosen.nonzero()[0])
    changed = change(image[rows.to(image.device)], *[each[rows] for each in numbers])
    return image.index_copy(0, rows.to(image.device), changed)


def turn_hue(image: Tensor, turns: Tensor) -> Tensor:
    """RGB (B, 3, H, W) in [0, 1], its HSV hue turned by `turns` (B,), 1 being the full circle; equals
    `kornia.enhance.adjust_hue` in less than half of its time."""
    red, green, blue = image.unbind(1)
    value = image.amax(1)
    chroma = value - image.amin(1)
    # In sixths of the circle. A grey pixel has no hue, and whatever comes out below is multiplied by its chroma, 0.
    hue = torch.where(value == green, blue - red, red - green)
    hue = torch.where(value == red, green - blue, hue) / chroma.clamp(min=1e-8)
    hue += torch.where(value == red, 0, torch.where(value == green, 2, 4))
    hue += 6 * turns.to(image)[:, None, None]
    channels = []
    for sixths in (5, 3, 1):
        at = (hue + sixths).remainder_(6)
        channels.append(value - chroma * torch.minimum(at, 4 - at).clamp_(0, 1))
    return torch.stack(channels, 1)


def nearest_rows(length: int, wanted: int) -> Array:
    """For each of `wanted` cells the index of the pixel at its centre, of `length` pixels ('nearest-exact')."""
    return ((2 * np.arange(wanted) + 1) * length) // (2 * wanted)
