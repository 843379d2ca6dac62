"""Images of more than three bands: TIFF, PNG with four bands, and NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.lib import format as npy

from common.ops.array import Array
from datamodules.decode import (
    ORIENTATION,
    SUFFIXES,
    TIFF,
    Refused,
    check_inflated,
    check_pixels,
    decode,
    first_bytes,
    naming,
    shown_pages,
    turned,
)
from datamodules.files import ValueRange, read_image, to_bytes

STACK = ".npy"  # suffix of arrays, which are images where `channels` says so
MOST = 256  # bands


def check_bands(channels: int, rgb: Sequence[int] | None) -> tuple[int, ...]:
    """Order in which bands are read, counted from 0: the triple `rgb`, then the others.

    Raises:
        ValueError: the options are out of range or contradict each other.
    """
    if not 3 <= channels <= MOST:
        raise ValueError(f"data.channels is a number of bands from 3 (RGB, also grey pictures) to {MOST}: {channels}")
    first = [1, 2, 3] if rgb is None else [*rgb]
    if len({*first}) != 3 or not all(1 <= band <= channels for band in first):
        raise ValueError(f"data.rgb is three of the bands 1 to {channels}, got {first}")
    if channels == 3 and first != [1, 2, 3]:
        raise ValueError("data.rgb is for images of more than three bands (data.channels)")
    return (*(band - 1 for band in first), *(band for band in range(channels) if band + 1 not in first))


def image_suffixes(channels: int) -> tuple[str, ...]:
    """Suffixes of the files that are images."""
    return SUFFIXES if channels == 3 else (*SUFFIXES, STACK)


def image_reader(channels: int, rgb: Sequence[int] | None, value_range: ValueRange | None) -> Callable[[Path], Array]:
    """What reads an image file of a data set: `datamodules.files.read_image`, or of more than three bands `read_bands`.

    Args:
        channels, rgb: see `check_bands`.
        value_range: [low, high], or one pair a band in the order of the file, or `percentiles`; None: values need none.

    Raises:
        ValueError: the options are out of range or contradict each other.
    """
    order = check_bands(channels, rgb)
    if value_range is not None and value_range != "percentiles":
        pairs: list[Any] = [*value_range] if isinstance(value_range[0], Sequence) else [value_range]
        good = [len(pair) == 2 and np.isfinite(pair).all() and pair[0] < pair[1] for pair in pairs]
        if not all(good) or len(pairs) not in ((1,) if channels == 3 else (1, channels)):
            each = f", or one such pair for each of the {channels} channels" if channels > 3 else ""
            raise ValueError(f"data.value_range must be [low, high] with low < high{each}, got {value_range}")
        value_range = pairs[0] if len(pairs) == 1 else [pairs[band] for band in order]
    if channels == 3:
        return partial(read_image, value_range=value_range)
    return partial(read_bands, order=order, value_range=value_range)


def read_bands(path: Path, order: Sequence[int], value_range: ValueRange | None = None) -> Array:
    """uint8 (H, W, C), upright: the bands of a TIFF (in one page or one a page), of an RGBA or CMYK picture, or of an
    array (H, W, C) or (C, H, W).

    Args:
        order: the C bands as they are wanted, see `check_bands`.
        value_range: as for `datamodules.files.read_image`.

    Raises:
        FileNotFoundError, ValueError: as `read_image`; also for another number of bands.
    """
    with naming(path):
        if path.suffix.lower() == STACK:
            pixels = _array(path, len(order))
        elif first_bytes(path).startswith(TIFF):
            pixels = _tiff(path)
        else:
            picture = decode(path)
            alpha = [] if picture.opacity is None else [picture.opacity[..., None]]
            pixels = np.concatenate([np.atleast_3d(picture.pixels), *alpha], -1)
        if pixels.shape[2] != len(order):
            raise Refused(f"{path} has {pixels.shape[2]} bands, data.channels says {len(order)}: correct one of them")
    return to_bytes(np.ascontiguousarray(pixels[..., list(order)]), str(path), value_range)


def _tiff(path: Path) -> Array:
    """All bands of a file, (H, W, C)."""
    with tifffile.TiffFile(path) as tiff:
        pages = shown_pages(tiff, MOST + 1)
        if len(pages) > MOST:
            raise Refused(f"{path} has more than {MOST} pages")
        planes = []
        for page in pages:
            check_pixels(path, page.imagewidth, page.imagelength, page.samplesperpixel * len(pages))
            if page.axes not in ("YX", "YXS", "SYX") or page.dtype is None or page.shape != pages[0].shape:
                raise Refused(f"{path} has a page with the axes {page.axes} {page.shape}: bands are planes of one size")
            check_inflated(path, page)
            plane = page.asarray()
            plane = np.moveaxis(plane, 0, -1) if page.axes == "SYX" else np.atleast_3d(plane)
            planes.append(turned(plane, int(page.tags.valueof(ORIENTATION, 1))))
        stacked = (tiff.imagej_metadata or {}).get("images", 1) if tiff.is_imagej else 1
        if len(pages) == 1 and stacked > 1:  # large ImageJ stacks have a page for the first image alone
            series = tiff.series[0]
            check_pixels(path, pages[0].imagewidth, pages[0].imagelength, stacked)
            return np.moveaxis(series.asarray().reshape(-1, *series.shape[-2:]), 0, -1)
    return np.concatenate(planes, -1)


def _array(path: Path, channels: int) -> Array:
    """An array (H, W, C) or (C, H, W) as (H, W, C). Its header is read first: what it says costs memory."""
    with path.open("rb") as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
    if len(shape) != 3 or channels not in (shape[0], shape[2]):
        raise Refused(f"{path} holds an array {shape}: {channels} bands are (height, width, {channels}) or before both")
    last = shape[2] == channels
    if last and shape[0] == channels:
        raise Refused(f"{path} holds an array {shape}: are the bands first or last? save it with another height")
    height, width = shape[:2] if last else shape[1:]
    check_pixels(path, width, height, channels)
    if dtype.hasobject:
        raise Refused(f"{path} holds Python objects, which are not read: save numbers")
    pixels = np.load(path, allow_pickle=False)
    return pixels if last else np.moveaxis(pixels, 0, -1)
