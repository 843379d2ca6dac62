"""Reading images and masks, with errors that name the file, the value and the way out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.decode import SUFFIXES, WHITE_IS_0, Picture, decode, from_pillow, stored_size, turned
from datamodules.names import Files
from datamodules.splits import first_few
from datamodules.text import normal

Color = tuple[int, int, int]
# [low, high] of all bands, or of each; or what lies between each image's own 1st and 99th percentile, of each band
ValueRange = Sequence[float] | Sequence[Sequence[float]] | Literal["percentiles"]
VOID_NAMES = ("void", "ignore", "unlabelled", "unlabeled")


class ClassInfo(NamedTuple):
    """A class: its name, and the colour of masks and pictures."""

    name: str
    color: Color


# Pictures that are not read. A folder that holds some says so.
OTHER_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".gif", ".jfif", ".jpe", ".jp2", ".j2k", ".jxl", ".apng", ".psd", ".xcf", ".svg"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw", ".pgm", ".ppm", ".pnm", ".tga", ".exr"),
    *(".hdr", ".dds", ".ico", ".img", ".npy", ".npz", ".mat", ".nii", ".dcm", ".pdf"),
)
TOOLS_FOLDERS = ("__MACOSX", "@eaDir")  # copies that macOS and Synology make
DARK = 2**14  # a 16-bit file whose largest value is below uses fewer bits, or somebody must say that it is dark


def find_images(
    folder: str | Path, nested: bool = False, needed: bool = True, suffixes: Sequence[str] = SUFFIXES
) -> Files:
    """Image files of a folder by id, sorted. The id is the file's name without its suffix, in Unicode's form C; with
    `nested` folders below are searched too, and the id is the path in the folder, such as `day1/a`.

    Hidden files, such as the `._a.png` of macOS, are passed over. Pictures of other formats are told of in a warning.

    Raises:
        FileNotFoundError: there is no such folder, and one is `needed`.
        ValueError: no image in it, and one is `needed`; or two with one id.
    """
    folder = Path(folder)
    if not folder.is_dir():
        if not needed:
            return Files(folder, {})
        raise FileNotFoundError(f"folder {folder} does not exist: check the path")
    found: dict[str, str] = {}
    others = []
    for path in visible_paths(folder, nested):
        start, suffix = os.path.splitext(path)
        if suffix.lower() not in suffixes:
            others += [os.path.basename(path)] if suffix.lower() in OTHER_SUFFIXES else []
            continue
        name = normal(start)
        if name in found:
            raise ValueError(f"{folder} holds both {found[name]} and {path}: an id must be unique")
        found[name] = path
    if needed and not found:
        inside = [path.name for path in folder.iterdir() if not nested and path.is_dir() and _is_shown(path.name)]
        reasons = [
            f"; it has {first_few(others)}, which cannot be read: convert them to PNG" if others else "",
            f"; folders in it are not read: {first_few(inside)}" if inside else "",
        ]
        raise ValueError(f"folder {folder} has no image ({', '.join(SUFFIXES)})" + "".join(reasons))
    if others:
        rank_zero_warn(f"{len(others)} pictures in {folder} are not read: {first_few(others)}; convert them to PNG")
    return Files(folder, found)


def unread_images(folder: Path, nested: bool = False) -> dict[str, Path]:
    """Pictures of a folder in formats that are not read, by id as in `find_images`; none if there is no such folder."""
    parts = ((*os.path.splitext(path), path) for path in (visible_paths(folder, nested) if folder.is_dir() else ()))
    return {normal(start): folder / path for start, suffix, path in parts if suffix.lower() in OTHER_SUFFIXES}


def image_id(path: Path) -> str:
    """The id of an image file whose path in its folder is given."""
    return normal(path.with_suffix("").as_posix())


def visible_paths(folder: str | Path, nested: bool, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths in a folder of its files, hidden ones left out, in order: text, since there may be a million. Not by
    `Path.rglob`, which passes over linked folders."""
    above = above | {os.path.realpath(folder)}
    with os.scandir(folder) as entries:
        is_folder = {entry.name: entry.is_dir() for entry in entries if _is_shown(entry.name)}
    for name in sorted(is_folder):
        if not is_folder[name]:
            yield name
        elif nested and os.path.realpath(below := os.path.join(folder, name)) not in above:  # a link may lead back
            yield from (f"{name}/{path}" for path in visible_paths(below, nested, above))


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name not in TOOLS_FOLDERS


def near(root: Path, given: str) -> Path:
    """Where a path leads: from here, or else from a data set's root."""
    path = Path(given).expanduser()
    return path if path.exists() else root / path


def read_image(path: Path, value_range: ValueRange | None = None) -> Array:
    """uint8 (H, W, 3) RGB, upright (EXIF orientation applied). Grey and palette images are converted, transparency is
    dropped; 16 bits are divided by 257 where they use the range.

    Args:
        value_range: [low, high] of files of other than 8 bits: their values are mapped linearly from it to 0..255, what
            lies outside becomes 0 or 255; `percentiles`: from the image's own 1st and 99th percentile.

    Raises:
        ValueError: the file is truncated, no image, or holds values that need `value_range`.
    """
    return _to_rgb(decode(path), str(path), value_range)


def to_rgb(image: Image.Image) -> Array:
    """A PIL image as `read_image` gives it."""
    return _to_rgb(from_pillow(image), "the image", None)


def _to_rgb(picture: Picture, name: str, value_range: ValueRange | None) -> Array:
    if picture.colors is not None:
        return picture.colors[picture.pixels]
    values = to_bytes(picture.pixels, name, value_range)
    return values if values.ndim == 3 else np.repeat(values[..., None], 3, -1)


def to_bytes(values: Array, name: str, value_range: ValueRange | None) -> Array:
    """Pixels of any type as uint8, or an error that says what they are; a range a band is for (H, W, bands)."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.kind not in "uif":
        raise ValueError(f"{name} holds values of the type {values.dtype}: save 8-bit RGB or grey")
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        raise ValueError(f"{name} holds {(~finite).sum()} values that are no numbers: fill these pixels")
    low, high = values.min().item(), values.max().item()
    if value_range is not None:
        exact: Array = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
        if value_range == "percentiles":
            exact = exact.astype(np.float64)
            bottom, top = np.percentile(exact, (1, 99), axis=(0, 1))
            top = np.maximum(top, bottom + 1e-6)
        else:
            bottom, top = np.asarray(value_range, exact.dtype).T
        return np.asarray((exact - bottom) * (255 / (top - bottom))).round().clip(0, 255).astype(np.uint8)
    if values.dtype == np.uint16 and (high >= DARK or high == 0):
        return (values // 257).astype(np.uint8)
    raise ValueError(
        f"{name} holds {values.dtype} values from {low:.6g} to {high:.6g}: which are black and white? give "
        f"data.value_range, such as [{', '.join(map(str, _suggested(low, high)))}], or save 8-bit pictures"
    )


def _suggested(low: float, high: float) -> tuple[float, float]:
    """The usual range that holds the values."""
    for top in (1, 255, 1023, 4095, DARK - 1, 65535):
        if low >= 0 and high <= top:
            return 0, top
    return float(np.floor(low)), float(np.ceil(high))


def read_mask(
    path: Path,
    num_classes: int,
    palette: Mapping[Color, int] | None,
    values: Mapping[int, int] | None = None,
    no_ids: str | None = None,
) -> Array:
    """uint8 (H, W) of class ids and 255, upright by the mask's own EXIF orientation.

    Args:
        path: indexed, grey, or RGB picture. In an indexed one the index counts, not the colour; but the colours do if
            all that occur are in `palette`.
        num_classes: ids run from 0 to num_classes - 1.
        palette: class id of each colour, for RGB masks.
        values: class id, or 255, of each value of the mask, where values are not class ids.
        no_ids: why numbers are no class ids, and the way out, where that is so.

    Raises:
        ValueError: an RGB mask without `palette`, an unknown colour, a value that is no class, transparency, or an
            indexed mask whose colours contradict `palette`.
    """
    return class_ids(path, decode(path), num_classes, palette, values, no_ids)


def class_ids(
    path: Path,
    picture: Picture,
    num_classes: int,
    palette: Mapping[Color, int] | None = None,
    values: Mapping[int, int] | None = None,
    no_ids: str | None = None,
) -> Array:
    """`read_mask` of what a file holds."""
    if picture.opacity is not None and (picture.pixels.ndim == 2 or picture.kind != "RGBA"):
        raise ValueError(f"{path} is a {picture.kind} image: save the mask as an indexed or grey PNG of class ids")
    if picture.opacity is not None and (clear := (picture.opacity != 255).sum()):
        raise ValueError(
            f"{path} is transparent at {clear} of {picture.opacity.size} pixels: which class are they? save the mask "
            "without transparency (RGB, indexed or grey)"
        )
    pixels = picture.pixels
    deep = pixels.ndim == 3 and pixels.dtype != np.uint8
    if pixels.dtype.kind not in "ui" or deep or picture.kind == WHITE_IS_0:
        raise ValueError(f"{path} is a {picture.kind} image: save the mask as an indexed or grey PNG of class ids")
    if values is not None:
        return _from_values(path, picture, values)
    if pixels.ndim == 3:
        if not palette:
            raise ValueError(
                f"{path} is an RGB mask: give its colours in classes.txt (`name r g b`), save class ids, or give "
                "data.mask_values if it is grey"
            )
        return _from_colors(path, pixels, palette)
    if picture.colors is not None and palette and (table := _index_table(path, picture, palette)) is not None:
        return table[pixels]
    if no_ids:
        raise ValueError(f"{path} holds numbers, and {no_ids}")
    ids = pixels // picture.step
    wrong = (ids >= num_classes) & (ids != IGNORE) | (ids < 0)
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        raise ValueError(
            f"{path} holds {ids[y, x]} at row {y}, column {x}, but there are {num_classes} classes "
            f"(0..{num_classes - 1}, {IGNORE} = no label), and {_share(wrong)} pixels fit none: correct the mask or "
            f"the list of classes{_lossy(path)}, or give data.mask_values"
        )
    return ids.astype(np.uint8)


def _share(wrong: Array) -> str:
    return f"{wrong.sum()} of {wrong.size}"


def _lossy(path: Path) -> str:
    """Part of an error."""
    return ", save PNG (JPEG changes values)" if path.suffix.lower() in (".jpg", ".jpeg") else ""


def _from_values(path: Path, picture: Picture, values: Mapping[int, int]) -> Array:
    pixels = picture.pixels
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():  # grey, saved as RGB
        pixels = pixels[..., 0]
    if pixels.ndim == 3:
        raise ValueError(f"{path} is an RGB mask, data.mask_values is for masks of numbers: leave it out")
    found, inverse = np.unique(pixels, return_inverse=True)
    if picture.step > 1 and not {*found.tolist()} <= values.keys():  # 255 of 1 bit may be meant by 1 or 255
        found = found // picture.step
    wrong = ~np.isin(found, list(values))[inverse].reshape(pixels.shape)
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        raise ValueError(
            f"{path} holds {found[inverse].reshape(pixels.shape)[y, x]} at row {y}, column {x}, which data.mask_values "
            f"does not have, and {_share(wrong)} pixels fit none: correct the mask{_lossy(path)}, or add the value"
        )
    table = np.array([values[value] for value in found.tolist()], np.uint8)
    return table[inverse].reshape(pixels.shape)


def _index_table(path: Path, picture: Picture, palette: Mapping[Color, int]) -> Array | None:
    """Class id of each index by its colour; None: the index itself is the id."""
    assert picture.colors is not None
    used = np.unique(picture.pixels).tolist()
    colors: dict[int, Color] = {index: tuple(picture.colors[index].tolist()) for index in used}
    if colors.get(IGNORE) == (0, 0, 0):  # as palettes end that are shorter
        del colors[IGNORE]
    labels = {index: palette.get(color) for index, color in colors.items() if index != IGNORE or color in palette}
    if len({*colors.values()}) == 1 < len(colors):
        return None  # no palette to speak of
    other = [index for index, label in labels.items() if label not in (None, index)]
    if not other:
        return None
    if None in labels.values() or len({*colors.values()}) < len(colors):
        index = other[0]
        raise ValueError(
            f"{path} has index {index} in the colour {colors[index]}, which classes.txt gives another class, and other "
            "colours that it does not have: correct the colours, or leave them out of classes.txt if the index counts"
        )
    table = np.full(256, IGNORE, np.uint8)
    table[[*labels]] = [label for label in labels.values() if label is not None]
    return table


def _from_colors(path: Path, picture: Array, palette: Mapping[Color, int]) -> Array:
    codes = picture.astype(np.int64) @ np.array([65536, 256, 1])
    known = {r * 65536 + g * 256 + b: label for (r, g, b), label in palette.items()}
    values, inverse = np.unique(codes, return_inverse=True)
    wrong = ~np.isin(values, list(known))[inverse].reshape(codes.shape)
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        color = tuple(picture[y, x].tolist())
        raise ValueError(
            f"{path} holds the colour {color} at row {y}, column {x}, which classes.txt does not have, and "
            f"{_share(wrong)} pixels fit no class: add it, or save the mask as PNG without smoothing, resizing and "
            "JPEG compression"
        )
    table = np.array([known[value] for value in values.tolist()], np.uint8)
    return table[inverse].reshape(codes.shape)


def upright_mask(mask: Array, image: Path) -> tuple[Array, bool]:
    """A mask (H, W) turned as the image's EXIF orientation says, if it has the size of the image as stored; and whether
    the sizes leave open if it needs that (half turns, mirrored and square images): then it stays as it is, as tools
    draw on upright images.

    Raises:
        ValueError: the image cannot be read.
    """
    (height, width), turn = stored_size(image)
    quarter = turn in (5, 6, 7, 8)
    if quarter and height != width and mask.shape == (height, width):
        return np.ascontiguousarray(turned(mask, turn)), False
    return mask, 1 < turn < 9 and (not quarter or height == width)


def default_color(number: int) -> Color:
    """A colour for class `number`: the bits of the number spread over the channels, as in PASCAL VOC's colour map."""
    color = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            color[channel] |= (number >> 3 * bit + channel & 1) << 7 - bit
    return color[0], color[1], color[2]
