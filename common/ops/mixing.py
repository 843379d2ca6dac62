"""Mixing two images by a mask, and three kinds of mask: boxes, classes, blotches.

A mask is (B, H, W) bool: True = the sample's own pixel, False = its partner's. The partner of image 2i is 2i+1 and the
reverse. Every random number is a function of (seed, epoch, position) of the sample alone, so masks depend neither on
the batch nor on the rank, and are made on the device that holds `key`, without waiting for it.

    mask = box_masks(stream["key"], (height, width))
    mixed = mix({"image": image, "valid": valid, "probabilities": p}, mask, partners(...))

Sources: boxes as in CutMix-Seg (French et al., BMVC 2020, arXiv 1906.01916, code Britefury/cutmix-semisup-seg);
classes as in ClassMix (Olsson et al., WACV 2021, arXiv 2007.07936, code WilhelmT/ClassMix); blotches as in CowMask
(French et al., arXiv 2003.12022, code google-research/milking_cowmask). What is ours is said at each function. Ours in
all: pairs inside the batch as partners (the codes draw a second shuffle of the list), and drawing per sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15


def mix(stream: Mapping[str, object], mask: Tensor, partner: Mapping[str, object]) -> dict[str, Tensor]:
    """Per-pixel entries of `stream` where `mask` is True and of `partner` elsewhere.

    Args:
        stream: any of image (B, 3, H, W), mask, valid, weight (B, H, W), probabilities (B, K, H, W), strong
            (B, V, 3, H, W), ...: a tensor of 3 or more dimensions is per pixel. The rest (names, sizes, keys, tags) is
            left out, because a mixed image has none.
        mask: (B, H, W) bool.
        partner: the same per-pixel entries of the other images, see `partners`.
    """
    own, other = _planes(stream), _planes(partner)
    if mask.dtype != torch.bool or mask.ndim != 3:
        raise ValueError(f"the mask to mix by must be (B, H, W) bool, got {tuple(mask.shape)} {mask.dtype}")
    if own.keys() != other.keys():
        raise ValueError(f"mixing needs the same entries on both sides, got {sorted(own)} and {sorted(other)}")
    mixed = {}
    for name, value in own.items():
        batch, height, width = mask.shape
        if value.shape != other[name].shape or (value.shape[0], *value.shape[-2:]) != (batch, height, width):
            raise ValueError(
                f"'{name}' {tuple(value.shape)} and its partner {tuple(other[name].shape)} do not fit the mask "
                f"{tuple(mask.shape)}"
            )
        where = mask.view(batch, *[1] * (value.ndim - 3), height, width)
        mixed[name] = torch.where(where, value, other[name])
    return mixed


def partners(stream: Mapping[str, object]) -> dict[str, Tensor]:
    """Per-pixel entries of `stream` with images 2i and 2i+1 exchanged (an odd batch: see `swap_pairs`)."""
    return {name: swap_pairs(value) for name, value in _planes(stream).items()}


def swap_pairs(values: Tensor) -> Tensor:
    """(B, ...) with rows 2i and 2i+1 exchanged."""
    if len(values) % 2:
        raise ValueError(
            f"mixing pairs image 2i with 2i+1, but a device sees {len(values)} images at once: make the batch divided "
            "by devices and accumulated parts even"
        )
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _planes(stream: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: value for name, value in stream.items() if isinstance(value, Tensor) and value.ndim >= 3}


def box_masks(
    key: Tensor,
    size: tuple[int, int],
    *,
    area: tuple[float, float] = (0.5, 0.5),
    aspect: tuple[float, float] | None = None,
    boxes: int = 1,
    probability: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """True inside boxes (CutMix).

    As in CutMix-Seg's code: a box of area fraction a (drawn evenly from `area`) has height a^u and width a / a^u, u
    even in [0, 1], times sqrt(1 / boxes), and lies inside the image at an even place; sides and place are rounded to
    pixels; several boxes are combined by exclusive or. Its default is one box of area 0.5.

    UniMatch's code draws `area=(0.02, 0.4), aspect=(0.3, 1 / 0.3), probability=0.5` and pastes the partner's box, so
    mix by `~box_masks(...)`: an image without a box then stays itself. Ours: its aspect is drawn evenly in the
    logarithm and limited to what fits, where the code draws evenly and again until the box fits.

    Args:
        key: (B, 2) int64, (epoch, position) of each sample.
        size: H and W.
        area: range of a box's share of the image, 0 < low <= high <= 1.
        aspect: range of height / width, in units of H / W; None: all that fit.
        boxes: boxes per image.
        probability: share of the images that get boxes; the others are False everywhere.
        seed: draws of different seeds are independent (run, view, ...).
    """
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"area must be (low, high) with 0 < low <= high <= 1, got {area}")
    if aspect is not None and not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"aspect must be (low, high) with 0 < low <= high, got {aspect}")
    u = key_uniform(key, 1 + 4 * boxes, seed)
    applied, u = u[:, 0] < probability, u[:, 1:].unflatten(1, (boxes, 4))
    share = area[0] + (area[1] - area[0]) * u[..., 0]
    most = -share.log()  # beyond it a side is longer than the image's
    low, high = -most, most
    if aspect is not None:
        low, high = (torch.full_like(most, math.log(limit)).clamp(-most, most) for limit in aspect)
    ratio = (low + (high - low) * u[..., 1]).exp()
    mask = torch.ones(len(key), boxes, *size, dtype=torch.bool, device=key.device)
    for axis, side in enumerate(((share * ratio).sqrt(), (share / ratio).sqrt())):
        pixels = (side * boxes**-0.5 * size[axis]).round()
        start = ((size[axis] - pixels) * u[..., 2 + axis]).round()
        at = torch.arange(size[axis], device=key.device)
        inside = (at >= start[..., None]) & (at < (start + pixels)[..., None])
        mask &= inside[..., None] if axis == 0 else inside[..., None, :]
    return (mask.sum(1) % 2 == 1) & applied[:, None, None]


def class_masks(labels: Tensor, key: Tensor, num_classes: int, *, seed: int = 0) -> Tensor:
    """True at the pixels of half of the classes that occur in an image, rounded down (ClassMix, as in its code).

    Args:
        labels: (B, H, W) integer, the teacher's classes; num_classes and above (255, say at padding) counts as no
            class and is never chosen.
        key: (B, 2) int64, (epoch, position) of each sample.
        num_classes: K.
        seed: draws of different seeds are independent.
    """
    cell = labels.long().clamp(max=num_classes).flatten(1)
    none = torch.zeros(len(labels), num_classes + 1, dtype=torch.bool, device=labels.device)
    present = none.scatter(1, cell, True)[:, :num_classes]
    # absent classes rank last
    rank = key_uniform(key, num_classes, seed).masked_fill(~present, 2).argsort(dim=1, stable=True).argsort(1)
    chosen = none.clone()
    chosen[:, :num_classes] = rank < present.sum(1, keepdim=True) // 2
    return chosen.gather(1, cell).view(labels.shape)


def cow_masks(
    key: Tensor,
    size: tuple[int, int],
    *,
    share: tuple[float, float] = (0.5, 0.5),
    sigma: tuple[float, float] = (8.0, 32.0),
    seed: int = 0,
) -> Tensor:
    """True in irregular blotches: noise, blurred and cut at a level (CowMask).

    As in the code: the deviation of the blur is drawn evenly in the logarithm, the share of True evenly, and the level
    is the one at which a normal distribution of the blurred noise's mean and deviation would have that share (so it is
    met within some hundredths). The default ranges are those of ClassMix's code, for crops of 321 to 512 pixels. Ours:
    the noise is even instead of normal (all the same once blurred), and the blur goes around the image's edges (one
    Fourier product, whatever the deviation).

    Args:
        key: (B, 2) int64, (epoch, position) of each sample.
        size: H and W.
        share: range of the share of True; 0 is empty, 1 full.
        sigma: range of the blur's deviation in pixels.
        seed: draws of different seeds are independent.
    """
    height, width = size
    u = key_uniform(key, 2 + height * width, seed)
    deviation = sigma[0] * (sigma[1] / sigma[0]) ** u[:, 0, None, None]
    fy, fx = torch.fft.fftfreq(height, device=key.device), torch.fft.rfftfreq(width, device=key.device)
    gain = (-2 * (math.pi * deviation) ** 2 * (fy[:, None] ** 2 + fx**2)).exp()
    noise = (u[:, 2:] - 0.5).unflatten(1, size)
    smooth = torch.fft.irfft2(torch.fft.rfft2(noise) * gain, s=size)
    wanted = share[0] + (share[1] - share[0]) * u[:, 1, None, None]
    level = smooth.std((1, 2), keepdim=True) * math.sqrt(2) * (2 * wanted - 1).erfinv()
    return smooth <= smooth.mean((1, 2), keepdim=True) + level


def key_uniform(key: Tensor, count: int, seed: int = 0) -> Tensor:
    """Uniform numbers in [0, 1), each row a function of (seed, epoch, position) alone.

    A generator of torch would depend on what the batch drew before, and one per sample would need the keys on the
    host. So this hashes whole numbers (SplitMix64, Steele et al., OOPSLA 2014): the same bits on every device.

    Args:
        key: (B, 2) int64.
        count: numbers per row; the first n of a longer row are those of a row of n.
        seed: any whole number.

    Returns:
        (B, count) float32 on `key`'s device, multiples of 2^-24.
    """
    state = torch.full_like(key[:, 0], _signed(seed))
    for column in key.unbind(1):
        state = _scramble(state + _signed(_GOLDEN)) + column
    steps = torch.arange(1, count + 1, device=key.device) * _signed(_GOLDEN)  # int64 arithmetic wraps around
    return _shift(_scramble(_scramble(state)[:, None] + steps), 40).float() / 2**24


def _scramble(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right, filling with zeros (int64's own shift repeats the sign)."""
    return (z >> bits) & ((1 << 64 - bits) - 1)


def _signed(number: int) -> int:
    """The int64 with the low 64 bits of `number`."""
    number %= 1 << 64
    return number - (1 << 64) if number >> 63 else number
