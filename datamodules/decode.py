"""Decoding picture files: what a file holds, upright and with nothing dropped, or an error that names the file."""

from __future__ import annotations

import logging
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from PIL import Image

from common.ops.array import Array

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # of the files that are read
# Pixels of a picture; more are refused before anything is decoded.
MOST_PIXELS = int(os.environ.get("WEAKSEG_MAX_PIXELS", 2**28))
BANDED = 2**24  # pixels of a picture that Pillow gives band by band
ORIENTATION = 0x0112  # the EXIF and TIFF tag
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")
PNG = b"\x89PNG\r\n\x1a\n"
# Bands that make a colour, by TIFF's photometric interpretation: grey (0, 1), RGB, palette, CMYK, YCbCr, Lab.
COLOR_BANDS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
DEFLATE, LZMA = (8, 32946), 34925  # TIFF's compressions
WHITE_IS_0 = "white-is-0 TIFF"  # of which pictures are inverted: fine to look at, but masks are numbers
NO_PAGE = 5  # bits of TIFF's NewSubfileType: a smaller copy of another page, or its transparency

# It logs what is wrong with a file; here that is an error, or does not matter.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


class Picture(NamedTuple):
    """What a picture file holds, upright.

    Attributes:
        pixels: (H, W), or (H, W, 3) in RGB, of the file's type; indices of an indexed picture.
        kind: a word for messages, such as `RGBA`.
        colors: uint8 (256, 3), the palette of an indexed picture.
        opacity: (H, W), the alpha channel.
        step: what the grey values of a file of 1, 2 or 4 bits were multiplied with, so that white is 255.
    """

    pixels: Array
    kind: str
    colors: Array | None = None
    opacity: Array | None = None
    step: int = 1


class Refused(ValueError):
    """An error whose message says all."""


def decode(path: Path) -> Picture:
    """Read a picture file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken or no picture, too large, or has pages or bands that a picture in colour does not have.
    """
    with naming(path):
        head = first_bytes(path)
        return _from_tiff(path) if head.startswith(TIFF) else _from_pillow(path, head)


def from_pillow(image: Image.Image) -> Picture:
    """A picture that Pillow has opened. Pillow gives 16 bits of grey as they are."""
    turn = _turn(image)
    mode, colors, opacity, step = image.mode, None, None, 1
    if mode in ("P", "PA"):
        table = np.zeros((256, 3), np.uint8)
        given = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        table[: len(given)] = given
        colors = table
    elif mode == "1":
        image, step = image.convert("L"), 255
    elif mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    elif mode not in ("L", "LA", "RGB", "RGBA", "F", "I") and not mode.startswith("I;16"):
        image = image.convert("RGB")
    pixels = _pixels(image)
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        pixels, opacity = pixels[..., :-1], turned(pixels[..., -1], turn)
        pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    return Picture(turned(pixels, turn), mode, colors, opacity, step)


def _pixels(image: Image.Image) -> Array:
    """The pixels of an image. Of a large one band by band: all at once, Pillow holds two further copies of them."""
    width, height = image.size
    if width * height <= BANDED or image.mode not in ("L", "P", "RGB", "RGBA"):
        return np.asarray(image)
    pixels = np.empty((height, width, *([] if len(image.mode) == 1 else [len(image.mode)])), np.uint8)
    step = max(1, BANDED // width)
    for top in range(0, height, step):
        bottom = min(height, top + step)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def turned(pixels: Array, turn: int) -> Array:
    """An array (H, W, ...) brought upright, as the orientation tag `turn` (1 to 8; other values: none) says."""
    match turn:
        case 2:
            return pixels[:, ::-1]
        case 3:
            return pixels[::-1, ::-1]
        case 4:
            return pixels[::-1]
        case 5:
            return pixels.swapaxes(0, 1)
        case 6:
            return np.rot90(pixels, -1)
        case 7:
            return pixels[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return np.rot90(pixels)
    return pixels


def stored_size(path: Path) -> tuple[tuple[int, int], int]:
    """Height and width of a picture as it is stored, and its orientation tag. Raises what `decode` does."""
    with naming(path):
        head = first_bytes(path)
        if head.startswith(TIFF):
            with tifffile.TiffFile(path) as tiff:
                page = shown_pages(tiff, 1)[0]
                return (page.imagelength, page.imagewidth), int(page.tags.valueof(ORIENTATION, 1))
        with Image.open(path) as image:
            # Pillow decodes a whole PNG to find the tag; most have none.
            marks = (b"eXIf", b"xmp", b"Raw profile")
            if head.startswith(PNG) and not any(mark in path.read_bytes() for mark in marks):
                return (image.height, image.width), 1
            return (image.height, image.width), _turn(image)


def _turn(image: Image.Image) -> int:
    turn = image.getexif().get(ORIENTATION, 1)
    if not isinstance(turn, int):
        raise ValueError(f"its EXIF orientation is {turn!r}")
    return turn


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside becomes an error that names the file. Pillow's limit gives way to ours, and EXIF data
    that it skips with a warning is an error, since the orientation may be in them."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            warnings.filterwarnings("error", "Corrupt EXIF data")
            warnings.filterwarnings("error", rf"Possibly corrupt EXIF data\..*tag {ORIENTATION}$")
            yield
    except Refused:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: put it back") from None
    except Exception as error:  # decoders raise many kinds
        if "imagecodecs" in str(error):
            raise ValueError(
                f"{path} has a compression that needs the package imagecodecs ({error}): pip install -e "
                "'.[images]', or save the file without compression"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as an image ({reason}): replace it, or remove it") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read_drawn(path: Path) -> Array:
    """A mask that was drawn for training, uint8 (H, W), as it is in the file."""
    with naming(path), Image.open(path) as image:
        return np.asarray(image)


def first_bytes(path: Path) -> bytes:
    """The first bytes: enough for a PNG's header."""
    with path.open("rb") as file:
        head = file.read(26)
    if not head:
        raise ValueError("the file is empty, 0 bytes")
    if head.startswith(POSTSCRIPT):  # a program, which Pillow would have Ghostscript run
        raise ValueError("it is PostScript, whatever its name says")
    return head


def check_pixels(path: Path, width: int, height: int, bands: int = 1) -> None:
    """Raise ValueError if there are too many pixels, or more values than so many pixels in four colours have."""
    if width * height > MOST_PIXELS or width * height * bands > 4 * MOST_PIXELS:
        raise Refused(
            f"{path} is {width} x {height} pixels; pictures of up to {MOST_PIXELS // 10**6} million are read: cut it "
            "into tiles, shrink it, or set WEAKSEG_MAX_PIXELS if there is the memory for it"
        )


def _from_pillow(path: Path, head: bytes) -> Picture:
    with Image.open(path) as image:
        check_pixels(path, *image.size)
        # The further pictures of an MPO file, a photo of a phone, are previews and gain maps of the first.
        if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
            raise Refused(f"{path} has {frames} frames, of which one can be used: save each as a file of its own")
        depth, kind = (head[24], head[25]) if head.startswith(PNG) else (8, None)
        if depth == 16 and kind != 0:  # Pillow would drop the lower half of the bits
            return _deep_png(path)
        image.load()
        if "exif" in image.info:
            Image.Exif().load(image.info["exif"])  # raises what Pillow may have passed over when it opened the file
        picture = from_pillow(image)
        return picture._replace(step=255 // (2**depth - 1)) if depth in (2, 4) and kind == 0 else picture


def _deep_png(path: Path) -> Picture:
    """A PNG with 16 bits a colour. Pillow reads eight of them; which ones, the order of the bytes says, so the other
    order gives the others."""
    halves = []
    for order in "BL":
        with Image.open(path) as image:
            if image.mode not in ("RGB", "RGBA"):
                raise Refused(f"{path} is a 16-bit grey PNG with transparency: save it without transparency")
            file: Any = image
            file.tile = [(*file.tile[0][:3], f"{image.mode};16{order}")]
            halves.append(from_pillow(image))
    high, low = halves
    pixels: Array = np.uint16(256) * high.pixels + low.pixels
    if high.opacity is None or low.opacity is None:
        return Picture(pixels, "16-bit RGB")
    return Picture(pixels, "16-bit RGBA", None, np.uint16(256) * high.opacity + low.opacity)


def _from_tiff(path: Path) -> Picture:
    with tifffile.TiffFile(path) as tiff:
        pages = shown_pages(tiff, 2)
        planes = (tiff.imagej_metadata or {}).get("images", 1) if tiff.is_imagej else 1
        if len(pages) > 1 or planes > 1:
            count = planes if planes > 1 else len(tiff.pages)
            raise Refused(f"{path} has {count} pages, of which one can be used: save each as a file of its own")
        page = pages[0]
        check_pixels(path, page.imagewidth, page.imagelength)
        if page.photometric not in COLOR_BANDS or page.axes not in ("YX", "YXS", "SYX"):
            color = getattr(page.photometric, "name", page.photometric)
            raise Refused(f"{path} is a TIFF with the axes {page.axes} and the colours {color}: save RGB or grey")
        bands, extra = COLOR_BANDS[page.photometric], page.samplesperpixel - COLOR_BANDS[page.photometric]
        alpha = extra == 1 and bool(page.extrasamples) and page.extrasamples[0] in (1, 2)
        if extra and not alpha:
            raise _too_many_bands(path, page.samplesperpixel, bands)
        picture = _tiff_page(path, page)
        if page.photometric == 0 and page.bitspersample > 1:
            picture = picture._replace(kind=WHITE_IS_0)
    if picture.opacity is not None:  # tools call any fourth band so; true transparency is there or not, at most pixels
        full = np.iinfo(picture.opacity.dtype).max if picture.opacity.dtype.kind == "u" else 1
        if ((picture.opacity != 0) & (picture.opacity != full)).mean() > 0.5:
            raise _too_many_bands(path, page.samplesperpixel, bands)
    return picture


def shown_pages(tiff: tifffile.TiffFile, most: int) -> list[Any]:
    """The first pages of a TIFF, at most so many; smaller copies do not count."""
    every: Any = tiff.pages
    return list(islice((page for page in every if not page.subfiletype & NO_PAGE), most)) or [every.first]


def _too_many_bands(path: Path, found: int, used: int) -> Refused:
    more = f", or read them all with data.channels={found}" if found > 3 else ""
    return Refused(
        f"{path} has {found} bands, of which only {used} can be used: save those that count as RGB or grey{more}"
    )


def check_inflated(path: Path, page: Any) -> None:
    """Raise if a part of a TIFF would take more memory than its size says: zlib and lzma themselves have no limit."""
    part = int(np.prod(page.chunks))
    if part > MOST_PIXELS * page.samplesperpixel or page.compression == LZMA:
        raise Refused(f"{path} is a TIFF with tiles of {part} values, or compressed with LZMA: save it in another way")
    if page.compression in DEFLATE:
        most = part * page.dtype.itemsize
        for content, _ in page.parent.filehandle.read_segments(page.dataoffsets, page.databytecounts):
            if content and len(zlib.decompressobj().decompress(content, most + 1)) > most:
                raise Refused(f"{path} holds more than its size says: save it again")


def _tiff_page(path: Path, page: Any) -> Picture:
    """The only page of a file. Pillow knows the colours and compressions of 8 bits, tifffile the other types."""
    bits, bands, grey = page.bitspersample, COLOR_BANDS[page.photometric], page.samplesperpixel == 1
    if page.dtype in (np.uint8, np.bool_) or (grey and page.dtype == np.uint16 and page.photometric == 1):
        try:
            with Image.open(path) as image:
                image.seek(page.index)
                image.load()
                picture = from_pillow(image)
            step = 255 // (2**bits - 1) if bits in (2, 4) and picture.colors is None else picture.step
            return picture._replace(step=step)
        except Exception:
            if page.photometric not in (1, 2):
                raise
    if page.photometric not in (1, 2) or page.dtype is None:
        raise Refused(f"{path} is a TIFF of {bits} bits with the colours {page.photometric.name}: save RGB or grey")
    check_inflated(path, page)
    pixels = page.asarray()
    pixels = np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels.reshape(*pixels.shape[:2], -1)
    pixels = turned(pixels, int(page.tags.valueof(ORIENTATION, 1)))
    opacity = pixels[..., -1] if pixels.shape[2] > bands else None
    return Picture(pixels[..., 0] if bands == 1 else pixels[..., :3], f"{page.dtype} TIFF", None, opacity)
