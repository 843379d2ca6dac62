"""Volumes in NIfTI files, as axial slices. nibabel says what a header means; of a file no more is read than the header
and, within a limit, the voxels: extensions are not looked at, and no size is believed before it is checked."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.ops.array import Array
from datamodules.decode import Refused, check_pixels, naming
from datamodules.files import ValueRange, to_bytes, visible_paths
from datamodules.splits import first_few
from datamodules.text import normal

SUFFIXES = (".nii", ".nii.gz")
MOST_BYTES = 2**29  # of a volume's voxels, unpacked
FURTHEST = 2**24  # bytes before the voxels: the header and extensions
HEADER = 348  # bytes
METRES = {1: 1000.0, 2: 1.0, 3: 0.001, 0: 1.0}  # a unit of length by its code, in mm; unknown: mm, as everybody has it
SPACING = (1e-4, 1e4)  # mm


class Volume(NamedTuple):
    """What a header says, checked.

    Attributes:
        shape: of the array in the file, three numbers.
        dtype: of its values, with their byte order.
        start: byte of the first one.
        scale: factor and summand of the values.
        order: for each of left, posterior and superior the axis of the array, and whether it runs that way.
        spacing: in mm, of left, posterior and superior.
        matrix: 3 x 3, mm of a step along each of them.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    start: int
    scale: tuple[float, float]
    order: tuple[tuple[int, bool], ...]
    spacing: tuple[float, float, float]
    matrix: Array

    @property
    def size(self) -> tuple[int, int, int]:
        """Height and width of a slice, and how many there are."""
        across, down, up = (self.shape[axis] for axis, _ in self.order)
        return down, across, up


class Volumes:
    """The volumes of a folder, and those below, as slices. A volume's id is its path without the suffix, a slice's that
    with its number from the feet up, `case1/007`.

    Args:
        folder: it need not exist; or the file of a volume.

    Raises:
        ModuleNotFoundError: there is a volume, and nibabel is not installed.
        ValueError: a file is broken, too large or has no such header, or two have one id.
    """

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Path] = {}
        self.slices: dict[str, tuple[str, int]] = {}  # volume and number
        for name, path in _found(folder):
            if name in self.files:
                raise ValueError(f"{folder} holds both {self.files[name].name} and {path.name}: an id must be unique")
            self.files[name] = path
        self.about = {name: read_header(path) for name, path in self.files.items()}
        for name, volume in self.about.items():
            digits = max(3, len(str(volume.size[2] - 1)))
            for number in range(volume.size[2]):
                self.slices[f"{name}/{number:0{digits}d}"] = name, number

    def images(self) -> dict[str, Path]:
        """The file of each slice, in order."""
        return {name: self.files[volume] for name, (volume, _) in sorted(self.slices.items())}

    def slice(self, name: str) -> Array:
        """The values (H, W) of a slice, seen from the feet: rows run to the back, columns to the patient's left, as
        radiologists look at it. Of the file's type, or scaled as the header says.

        Raises:
            ValueError: the file is cut or broken, or was replaced by another one.
        """
        volume, number = self.slices[name]
        path, about = self.files[volume], self.about[volume]
        with naming(path):
            state = path.stat()
            voxels = _voxels(path, about.dtype.str, about.shape, about.start, state.st_mtime_ns, state.st_size)
            for at, (axis, forward) in enumerate(about.order):
                if not forward:
                    voxels = np.flip(voxels, axis)
                if at == 2:
                    voxels = np.take(voxels, [number], axis)
            values = voxels.transpose([axis for axis, _ in about.order])[..., 0].T
            values = np.ascontiguousarray(values).astype(about.dtype.newbyteorder("="), copy=False)
        factor, summand = about.scale
        return values if about.scale == (1, 0) else values * np.float64(factor) + summand

    def image(self, name: str, value_range: ValueRange | None = None) -> Array:
        """A slice as a grey image, uint8 (H, W, 3), see `datamodules.files.to_bytes`.

        Raises:
            ValueError: values of more than 8 bits without `value_range`: of one slice it cannot be told what is white.
        """
        values = self.slice(name)
        if values.dtype != np.uint8 and value_range is None:
            raise ValueError(
                f"{self.files[self.slices[name][0]]} holds {values.dtype} values, in slice {self.slices[name][1]} from "
                f"{values.min():.6g} to {values.max():.6g}: which are black and white? give data.value_range, such as "
                "[-160, 240] for soft tissue in CT"
            )
        grey = to_bytes(values, f"{self.files[self.slices[name][0]]}, slice {self.slices[name][1]},", value_range)
        return np.repeat(grey[..., None], 3, -1)

    def whole(self, name: str) -> Array:
        """A slice of a mask: its values as integers.

        Raises:
            ValueError: there are other values.
        """
        values = self.slice(name)
        if values.dtype.kind != "f":
            return values
        numbers: Array = values.astype(np.int64)
        if not (numbers == values).all():
            raise ValueError(
                f"{self.files[self.slices[name][0]]} holds values that are no class ids, such as "
                f"{values[numbers != values][0]:.6g} in slice {self.slices[name][1]}: save integers"
            )
        return numbers

    def spacing(self, name: str) -> tuple[float, float]:
        """Height and width of a slice's pixel in mm."""
        across, down, _ = self.about[self.slices[name][0]].spacing
        return down, across

    def listed(self) -> dict[str, list[str]]:
        """What a line of a list may name beside a slice: a volume, by its id or its file, with its slices."""
        found: dict[str, list[str]] = {}
        for name, (volume, _) in sorted(self.slices.items()):
            suffix = self.files[volume].name[len(volume.rsplit("/", 1)[-1]) :]
            for key in (volume, volume + suffix):
                found.setdefault(key, []).append(name)
        return found

    def check_masks(self, masks: Volumes) -> None:
        """Raise ValueError for a volume of `masks` that lies otherwise than the one that it belongs to."""
        for name in self.about.keys() & masks.about.keys():
            image, mask = self.about[name], masks.about[name]
            if image.size != mask.size:
                raise ValueError(
                    f"{self.files[name]} has {image.size[2]} slices of {image.size[0]} x {image.size[1]} voxels but "
                    f"its mask {mask.size[2]} of {mask.size[0]} x {mask.size[1]}: replace one of them"
                )
            if np.abs(image.matrix - mask.matrix).max() > 0.02 * max(image.spacing):
                raise ValueError(
                    f"{self.files[name]} and its mask have other spacings or directions in their headers "
                    f"({_told(image.spacing)} and {_told(mask.spacing)} mm): save the mask in the space of the image"
                )


def _told(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{side:.4g}" for side in spacing)


def _found(place: Path) -> Iterator[tuple[str, Path]]:
    folder = place.parent if place.is_file() else place
    inside = visible_paths(place, True) if place.is_dir() else [place.name] if place.is_file() else ()
    suffixes = tuple(sorted(SUFFIXES, key=len)[::-1])
    for path in inside:
        if path.lower().endswith(suffixes):
            suffix = next(one for one in suffixes if path.lower().endswith(one))
            yield normal(path[: -len(suffix)]), folder / path


def read_header(path: Path) -> Volume:
    """What the header of a NIfTI file (version 1, one file) says.

    Raises:
        ModuleNotFoundError: nibabel is not installed.
        ValueError: it is none, or says what cannot be used.
    """
    try:
        import nibabel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path} needs nibabel ({error}): pip install -e '.[medical]'") from error
    with naming(path):
        with _opened(path) as file:
            block = file.read(HEADER)
        if len(block) < HEADER or block[344:347] != b"n+1":
            raise Refused(f"{path} is no NIfTI-1 file in one piece (magic n+1): save it as .nii or .nii.gz")
        # Only what is named is read from it: its own checks would log, or mend what is broken.
        header = nibabel.Nifti1Header(block, check=False)
        shape = [int(side) for side in header.get_data_shape()]
        if len(shape) < 3 or min(shape) < 1 or any(side != 1 for side in shape[3:]):
            raise Refused(f"{path} is an array {tuple(shape)}: volumes have three axes; save each frame as a file")
        dtype = header.get_data_dtype()
        if dtype.kind not in "uif" or dtype.itemsize > 8:
            raise Refused(f"{path} holds values of the type {dtype}: save integers or floats of one channel")
        size = math.prod(shape) * dtype.itemsize
        if size > MOST_BYTES:
            raise Refused(
                f"{path} has {' x '.join(map(str, shape))} voxels, {size >> 20} MiB; volumes of up to "
                f"{MOST_BYTES >> 20} MiB are read: cut it, or save it in a smaller type"
            )
        start = float(header["vox_offset"])
        if not HEADER <= start <= FURTHEST or start % 1:
            raise Refused(f"{path} says that its voxels begin at byte {start:g}: save it again")
        factor, summand = float(header["scl_slope"]), float(header["scl_inter"])
        if not math.isfinite(factor) or factor == 0:  # the standard: no scaling
            factor, summand = 1.0, 0.0
        affine = np.asarray(header.get_best_affine(), float)[:3, :3] * METRES.get(int(header["xyzt_units"]) & 7, 1.0)
        spacing = np.sqrt((affine**2).sum(0))
        if not np.isfinite(affine).all() or not ((spacing > SPACING[0]) & (spacing < SPACING[1])).all():
            raise Refused(f"{path} has voxels of {_told((*spacing,))} mm in its header: correct it")
        turns = nibabel.io_orientation(np.vstack([np.c_[affine, np.zeros(3)], [0, 0, 0, 1]]))
        if not np.isfinite(turns).all():
            raise Refused(f"{path} has axes in its header that point the same way: correct it")
        order, towards = [0] * 3, (-1, -1, 1)  # left, posterior and superior, of right, anterior and superior
        for axis, (direction, _) in enumerate(turns):
            order[int(direction)] = axis
        ways = [bool(turns[axis, 1] == way) for axis, way in zip(order, towards, strict=True)]
        check_pixels(path, shape[order[0]], shape[order[1]])
    signs = np.where(ways, 1, -1)
    left, back, up = (float(spacing[axis]) for axis in order)
    matrix = affine[:, order] * signs
    placed = tuple(zip(order, ways, strict=True))
    return Volume((*shape[:3],), dtype, int(start), (factor, summand), placed, (left, back, up), matrix)  # type: ignore[arg-type]


def _opened(path: Path) -> Any:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


@lru_cache(maxsize=2)
def _voxels(path: Path, dtype: str, shape: tuple[int, int, int], start: int, changed: int, size: int) -> Array:
    """All voxels: mapped from the disk, or of a packed file unpacked, the last ones kept (an image and its mask). When
    the file changes (`changed`, `size`) they are read again."""
    if not path.name.lower().endswith(".gz"):
        if start + math.prod(shape) * np.dtype(dtype).itemsize > size:
            raise Refused(f"{path} is cut off: {size} bytes are less than its header says")
        return np.memmap(path, dtype, "r", start, shape, "F")
    with gzip.open(path) as file:
        file.seek(start)
        content = file.read(math.prod(shape) * np.dtype(dtype).itemsize)
    if len(content) < math.prod(shape) * np.dtype(dtype).itemsize:
        raise Refused(f"{path} is cut off: its voxels are fewer than its header says")
    return np.frombuffer(content, dtype).reshape(shape, order="F")


def check_alone(volumes: Volumes, pictures: Mapping[str, Path], folder: Path) -> None:
    """Raise ValueError for volumes beside pictures."""
    if volumes.files and pictures:
        raise ValueError(
            f"{folder} holds volumes and pictures ({first_few(path.name for path in pictures.values())}): keep one kind"
        )
