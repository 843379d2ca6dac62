"""Reading images, masks and class files, with errors that name the file, the value and the way out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from common.ops.array import Array
from common.ops.batch import IGNORE

Color = tuple[int, int, int]
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VOID_NAMES = ("void", "ignore", "unlabelled", "unlabeled")


class ClassInfo(NamedTuple):
    """A class: its name, and the colour of masks and pictures."""

    name: str
    color: Color


def find_images(folder: str | Path) -> dict[str, Path]:
    """Image files of a folder by stem, sorted.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no image in it, or two with one stem.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist: check the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES:
            continue
        if path.stem in found:
            raise ValueError(f"{folder} holds both {found[path.stem].name} and {path.name}: an id must be unique")
        found[path.stem] = path
    if not found:
        raise ValueError(f"folder {folder} has no image ({', '.join(SUFFIXES)})")
    return found


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: put it back") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): replace it, or remove it") from error
    return image


def read_image(path: Path) -> Array:
    """uint8 (H, W, 3) RGB, upright (EXIF orientation applied). Grey and palette images are converted, transparency is
    dropped; 16-bit grey is divided by 257.

    Raises:
        ValueError: the file is truncated or no image.
    """
    return to_rgb(_open(path))


def to_rgb(image: Image.Image) -> Array:
    """A PIL image as `read_image` gives it."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        return np.repeat((np.asarray(image).astype(np.int64) // 257).clip(0, 255).astype(np.uint8)[..., None], 3, -1)
    return np.asarray(image.convert("RGB"))


def read_mask(path: Path, num_classes: int, palette: Mapping[Color, int] | None) -> Array:
    """uint8 (H, W) of class ids and 255.

    Args:
        path: indexed (the index counts, not the colour), grey, or RGB picture.
        num_classes: ids run from 0 to num_classes - 1.
        palette: class id of each colour, for RGB masks.

    Raises:
        ValueError: an RGB mask without `palette`, an unknown colour, or a value that is no class.
    """
    image = _open(path)
    if image.mode in ("RGB", "RGBA"):
        if not palette:
            raise ValueError(
                f"{path} is an RGB mask: give its colours in classes.txt (`name r g b`), or save class ids"
            )
        return _from_colors(path, np.asarray(image.convert("RGB")), palette)
    if image.mode == "1":
        image = image.convert("L").point(lambda value: value // 255)
    if image.mode not in ("P", "L") and not image.mode.startswith("I"):
        raise ValueError(f"{path} is a {image.mode} image: save the mask as an indexed or grey PNG of class ids")
    values = np.asarray(image)
    wrong = (values >= num_classes) & (values != IGNORE) | (values < 0)
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        raise ValueError(
            f"{path} holds {values[y, x]} at row {y}, column {x}, but there are {num_classes} classes "
            f"(0..{num_classes - 1}, {IGNORE} = no label): correct the mask or the list of classes"
        )
    return values.astype(np.uint8)


def _from_colors(path: Path, picture: Array, palette: Mapping[Color, int]) -> Array:
    codes = picture.astype(np.int64) @ np.array([65536, 256, 1])
    known = {r * 65536 + g * 256 + b: label for (r, g, b), label in palette.items()}
    values, inverse = np.unique(codes, return_inverse=True)
    for value in values.tolist():
        if value not in known:
            y, x = np.argwhere(codes == value)[0]
            color = (value >> 16, value >> 8 & 255, value & 255)
            raise ValueError(
                f"{path} holds the colour {color} at row {y}, column {x}, which classes.txt does not have: add it, "
                "or save the mask without smoothing and JPEG compression"
            )
    table = np.array([known[value] for value in values.tolist()], np.uint8)
    return table[inverse].reshape(codes.shape)


def read_classes(path: Path) -> tuple[list[ClassInfo], dict[Color, int]]:
    """A class file: one class a line, `name`, `name r g b` or `name #rrggbb`; the first line is class 0.

    A class without a colour gets one. A line named void, ignore or unlabelled with a colour stands for 255 and is no
    class. Blank lines and lines that begin with `#` are left out. Also returned: the class id of each given colour.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: fewer than two classes, a line that cannot be read, or a name or colour given twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: write one class name a line, the first is class 0")
    classes: list[ClassInfo] = []
    palette: dict[Color, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*(.+?)(?:[\s,]+(?:#([0-9a-fA-F]{6})|(\d+)[\s,]+(\d+)[\s,]+(\d+)))?\s*", line)
        assert match is not None  # the name takes anything
        name, code, *rgb = match.groups()
        if "#" in name:
            raise ValueError(f"{path}, line {number}: '{line.strip()}' is not `name`, `name r g b` or `name #rrggbb`")
        color = None
        if code or rgb[0]:
            r, g, b = (int(code[i : i + 2], 16) for i in (0, 2, 4)) if code else map(int, rgb)
            color = (r, g, b)
        if color and max(color) > 255:
            raise ValueError(f"{path}, line {number}: colour values go from 0 to 255, got {color}")
        void = name.lower() in VOID_NAMES
        if color in palette or name in (known.name for known in classes):
            raise ValueError(f"{path}, line {number}: '{line.strip()}' repeats a name or a colour")
        if color:
            palette[color] = IGNORE if void else len(classes)
        if not void:
            classes.append(ClassInfo(name, color or default_color(len(classes))))
    if len(classes) < 2:
        raise ValueError(f"{path} names {len(classes)} classes, at least 2 are needed (background is one of them)")
    return classes, palette


def default_color(number: int) -> Color:
    """A colour for class `number`: the bits of the number spread over the channels, as in PASCAL VOC's colour map."""
    color = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            color[channel] |= (number >> 3 * bit + channel & 1) << 7 - bit
    return color[0], color[1], color[2]
