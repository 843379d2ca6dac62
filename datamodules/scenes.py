"""Synthetic scenes drawn from a seed: textured shapes (`Synthetic`), two textures of equal colours (`Textures`), and
slices of a heart among other organs (`Hearts`).

A scene of shapes is a two-part background, up to two ragged blobs of clutter (background too) and two to five objects
that hide each other, under uneven light, with shadows and noise. The class of an object is its shape; texture and
colour only lean towards the class, and background and clutter use the same textures and hues, so that no single cue is
enough.

The same (seed, index, size) gives the same bytes on every machine: whole numbers only (tables are written out), and
randomness only from `PCG64.random_raw`, the one stream whose values NumPy guarantees. The drawing is frozen, a test
holds its hash, because tables compare runs on it. Lengths are in 1/4096 of the image's side: a scene keeps its layout
at every size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import PCG64
from numpy.typing import NDArray

from common.ops.array import Array
from datamodules.splits import SPLITS

CLASSES: tuple[str, ...] = ("background", "disc", "box", "triangle", "ring", "cross")
TEXTURES: tuple[str, ...] = ("rows", "columns")
CHAMBERS: tuple[str, ...] = ("background", "right", "wall", "left")

_Ints = NDArray[np.int64]

_PLAIN, _MOTTLE, _STRIPES, _CHECKER, _DOTS, _GRID = range(6)
_TEXTURE = (_MOTTLE, _DOTS, _CHECKER, _STRIPES, _PLAIN, _GRID)  # the texture that each class leans towards
_HUE = (0, 0, 922, 307, 614, 1229)  # the same for the hue, in 1/1536 turns
# round(1024 * cos(2 pi k / 96)) for k = 0..24, written out: cos() may differ between machines
_COSINE = (
    1024, 1022, 1015, 1004, 989, 970, 946, 918, 887, 851, 812, 770,
    724, 675, 623, 569, 512, 453, 392, 329, 265, 200, 134, 67, 0,
)  # fmt: skip


class Scenes:
    """What the data sets of synthetic scenes share: a scene is drawn, by the seed and index that its name tells."""

    side: int
    draw: Callable[[int, int, int], tuple[Array, Array]]  # image and mask by seed, index and side

    def source(self) -> str:
        return f"{self.side}"

    def image(self, name: str) -> Array:
        return self.draw(*seed_and_index(name), self.side)[0]

    def mask(self, name: str) -> Array:
        return self.draw(*seed_and_index(name), self.side)[1]


def number_scenes(train: int, val: int, test: int) -> dict[str, list[str]]:
    """Names of the scenes of each split: its own name, then a number of five digits."""
    return {split: [f"{split}{i:05d}" for i in range(n)] for split, n in zip(SPLITS, (train, val, test), strict=True)}


def seed_and_index(name: str) -> tuple[int, int]:
    """The arguments of `draw_scene` for a scene of that name: the split's number is the seed."""
    return SPLITS.index(name[:-5]), int(name[-5:])


def draw_textures(seed: int, index: int, size: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (size, size, 3) and mask (size, size) with ids into `TEXTURES`; `seed` and `index` as in `draw_scene`."""
    bits = PCG64([seed, index])
    axis = ((2 * np.arange(size, dtype=np.int64) + 1) << 11) // size
    mask = _noise(bits, axis, axis, 3) > _pick(bits, -40, 40)
    frequency = (1 << 20) // _pick(bits, 300, 460)  # periods of 5 to 7 pixels at 64 x 64

    def stripes(angle: int) -> _Ints:
        cos, sin = _direction(angle + _pick(bits, -6, 7))  # up to 22 degrees either way
        phase = (axis * cos + axis[:, None] * sin >> 10) * frequency >> 10
        return _clip((np.abs((phase & 1023) - 512) - 256) * 4, -256, 256)

    pattern = np.where(mask, stripes(0), stripes(24))
    hue, saturation, value = _pick(bits, 0, 1536), _pick(bits, 20, 150), _pick(bits, 90, 200)
    one, two = (_rgb(hue, saturation, value + step) for step in (0, _pick(bits, 35, 55)))
    image = (one << 4) + ((two - one) * (pattern + 256) >> 5)
    return _noisy(bits, image, _pick(bits, 1, 8)), mask.astype(np.uint8)


def draw_heart(seed: int, index: int, size: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Grey image (size, size, 3) and mask (size, size) with ids into `CHAMBERS`; `seed` and `index` as in `draw_scene`.

    Two bright chambers, the left one in a dark wall; other organs of the same tones lie around, and are background.
    """
    bits = PCG64([seed, index])
    axis = ((2 * np.arange(size, dtype=np.int64) + 1) << 11) // size
    tone, mask = np.full((1, size, size), 31 << 4, np.int64), np.zeros((size, size), np.uint8)

    def oval(x: int, y: int, radius: int, squeeze: int) -> _Ints:
        return _disc(bits, radius, squeeze, axis - x, (axis - y)[:, None])

    def paint(depth: _Ints, value: int) -> None:
        tone[0] += ((value << 4) - tone[0]) * _soft_step(depth, axis) >> 8

    paint(oval(2048, 2048, _pick(bits, 1800, 2150), 1060), _pick(bits, 105, 125))  # the body
    (x, y), blood, muscle = (_pick(bits, 1475, 2621) for _ in range(2)), _pick(bits, 178, 218), _pick(bits, 52, 76)
    inner, right = _pick(bits, 246, 410), _pick(bits, 410, 614)
    outer = inner + _pick(bits, 143, 205)
    for _ in range(_pick(bits, 6, 12)):  # organs
        a, b, radius = _pick(bits, 200, 3896), _pick(bits, 200, 3896), _pick(bits, 150, 480)
        depth = oval(a, b, radius, _pick(bits, 1024, 1800))
        value = (blood, blood, muscle, 153, 31)[_pick(bits, 0, 5)]
        if (a - x) ** 2 + (b - y) ** 2 > (outer + right + radius) ** 2:
            paint(depth, value)
    cos, sin = _direction(_pick(bits, 0, 96))
    away = outer + right * _pick(bits, 20, 50) // 100
    places = (
        (x + (away * cos >> 10), y + (away * sin >> 10), right, blood),
        (x, y, outer, muscle),
        (x, y, inner, blood),
    )
    for label, (a, b, radius, value) in enumerate(places, 1):
        depth = oval(a, b, radius, _pick(bits, 1024, 1300 if label == 1 else 1090))
        paint(depth, value)
        mask[depth >= 0] = label
    image = _noisy(bits, tone * _light(bits, axis) >> 8, _pick(bits, 8, 14))
    return image.repeat(3, axis=2), mask


def draw_scene(seed: int, index: int, size: int = 96) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (size, size, 3) and mask (size, size) with ids into `CLASSES`; `seed` and `index` must not be negative."""
    bits = PCG64([seed, index])
    axis = ((2 * np.arange(size, dtype=np.int64) + 1) << 11) // size  # pixel centres, 0..4095
    color = _background(bits, axis)  # (3, size, size), in 1/16 grey levels
    mask = np.zeros((size, size), np.uint8)
    for _ in range(_pick(bits, 0, 3)):
        _add(bits, axis, color, mask, 0)
    for _ in range(_pick(bits, 2, 6)):
        _add(bits, axis, color, mask, _pick(bits, 1, len(CLASSES)))
    return _photograph(bits, axis, color), mask


def _background(bits: PCG64, axis: _Ints) -> _Ints:
    """Two surfaces on the sides of a wavy line."""
    cos, sin = _direction(_pick(bits, 0, 96))
    line = ((axis - 2048) * cos + (axis[:, None] - 2048) * sin >> 10) + _pick(bits, -1500, 1500)
    share = _soft_step(line + _noise(bits, axis, axis, 5), axis)
    here, there = _surface(bits, axis, axis, 0), _surface(bits, axis, axis, 0)
    return here + ((there - here) * share >> 8)


def _add(bits: PCG64, axis: _Ints, color: _Ints, mask: NDArray[np.uint8], label: int) -> None:
    """Paint one object (clutter where `label` is 0) over what is there."""
    radius, top, left = _pick(bits, 650, 1250), _pick(bits, 200, 3896), _pick(bits, 200, 3896)
    reach = radius * 5 // 4 + 256  # the triangle's corners, and the shadow
    edges = np.searchsorted(axis, np.array([[top - reach, top + reach], [left - reach, left + reach]]))
    here = slice(*edges[0]), slice(*edges[1])
    rows, cols = axis[here[0]], axis[here[1]]
    depth = _depth(bits, label, radius, cols - left, (rows - top)[:, None])
    # nobody draws a perfect outline; that of clutter is so ragged that it is no shape
    depth = depth + (
        _noise(bits, rows, cols, 20) * radius >> 13 if label else _noise(bits, rows, cols, 9) * radius >> 9
    )
    # a soft shadow around the object and a darker rim inside it, each a few pixels wide
    pixels = depth * len(axis) >> 8  # in 1/16 pixels
    behind = color[:, *here] * (256 - _clip(64 + pixels, 0, 64)) >> 8
    front = _surface(bits, rows, cols, label) * (206 + _clip(pixels, 0, 50)) >> 8
    color[:, *here] = behind + ((front - behind) * _soft_step(depth, axis) >> 8)
    mask[here][depth >= 0] = label


def _depth(bits: PCG64, label: int, radius: int, x: _Ints, y: _Ints) -> _Ints:
    """About the distance of x (w,), y (h, 1) to the outline, (h, w), positive inside."""
    cos, sin = _direction(_pick(bits, 0, 96))
    x, y = _turned(x, y, cos, sin, _pick(bits, 1024, 1500))
    far = x * x + y * y
    if CLASSES[label] == "box":
        return radius * 7 // 8 - np.maximum(np.abs(x), np.abs(y))
    if CLASSES[label] == "triangle":
        a, b = (x * c + y * s >> 10 for c, s in (_direction(32), _direction(64)))
        return radius * 5 // 8 - np.maximum(x, np.maximum(a, b))
    if CLASSES[label] == "ring":
        hole = radius * _pick(bits, 45, 60) // 100
        return np.minimum((radius * radius - far) // (2 * radius), (far - hole * hole) // (2 * hole))
    if CLASSES[label] == "cross":
        arm, across, along = radius * _pick(bits, 28, 40) // 100, np.abs(x), np.abs(y)
        return np.minimum(radius - np.maximum(across, along), arm - np.minimum(across, along))
    return (radius * radius - far) // (2 * radius)  # disc, and clutter


def _disc(bits: PCG64, radius: int, squeeze: int, x: _Ints, y: _Ints) -> _Ints:
    """As `_depth`, of a disc that is narrower by 1024 / squeeze in a drawn direction."""
    cos, sin = _direction(_pick(bits, 0, 96))
    x, y = _turned(x, y, cos, sin, squeeze)
    return (radius * radius - x * x - y * y) // (2 * radius)


def _turned(x: _Ints, y: _Ints, cos: int, sin: int, squeeze: int) -> tuple[_Ints, _Ints]:
    """Coordinates along the axes of a shape that is narrower by 1024 / squeeze along the second one."""
    return x * cos + y * sin >> 10, (y * cos - x * sin >> 10) * squeeze >> 10


def _surface(bits: PCG64, rows: _Ints, cols: _Ints, label: int) -> _Ints:
    """Colours (3, h, w), in 1/16 grey levels: a texture between two shades."""
    kind = _TEXTURE[label] if _pick(bits, 0, 100) < 90 else _pick(bits, 0, 6)
    hue = _HUE[label] + _pick(bits, -230, 230) if label and _pick(bits, 0, 100) < 85 else _pick(bits, 0, 1536)
    value, step = _pick(bits, 90, 230), _pick(bits, 45, 90) if label else _pick(bits, 10, 40)
    low, high = (70, 220) if label else (10, 130)
    one = _rgb(hue, _pick(bits, low, high), value)
    two = _rgb(hue + _pick(bits, -160, 160), _pick(bits, low, high), value + (step if value < 160 else -step))
    return (one << 4) + ((two - one) * (_texture(bits, kind, rows, cols) + 256) >> 5)


def _texture(bits: PCG64, kind: int, rows: _Ints, cols: _Ints) -> _Ints:
    """Pattern (h, w), values -256..256."""
    if kind == _PLAIN:
        return np.zeros((len(rows), len(cols)), np.int64)
    if kind == _MOTTLE:
        return _clip(_noise(bits, rows, cols, _pick(bits, 12, 20)) * 2, -256, 256)
    frequency = (1 << 20) // _pick(bits, 300, 520)  # periods of 7 to 12 pixels at 96 x 96
    cos, sin = _direction(_pick(bits, 0, 96))
    x, y = cols, rows[:, None]
    a = np.abs((((x * cos + y * sin >> 10) * frequency >> 10) & 1023) - 512)  # triangle waves, 0..512
    if kind == _STRIPES:
        return _clip((a - 256) * 3, -256, 256)
    b = np.abs((((y * cos - x * sin >> 10) * frequency >> 10) & 1023) - 512)
    if kind == _CHECKER:
        return _clip((a - 256) * (b - 256) >> 5, -256, 256)
    if kind == _GRID:
        return _clip(640 - 6 * np.minimum(a, b), -256, 256)
    return _clip(300 * 300 - a * a - b * b >> 7, -256, 256)  # dots


def _photograph(bits: PCG64, axis: _Ints, color: _Ints) -> NDArray[np.uint8]:
    """Uneven light, then noise: bytes, (size, size, 3)."""
    return _noisy(bits, color * _light(bits, axis) >> 8, _pick(bits, 1, 8))


def _light(bits: PCG64, axis: _Ints) -> _Ints:
    """Uneven light (size, size), 256 is full."""
    x, y = axis - 2048, axis[:, None] - 2048
    return 235 + (x * _pick(bits, -80, 80) + y * _pick(bits, -80, 80) >> 11) + (_noise(bits, axis, axis, 3) >> 3)


def _noisy(bits: PCG64, color: _Ints, strength: int) -> NDArray[np.uint8]:
    """Bytes (h, w, C) of colours (C, h, w) in 1/16 grey levels, with noise of the deviation `strength` in grey
    levels."""
    # one 64-bit number gives the noise of four values: the sum of two bytes is a triangle of deviation 104
    words = bits.random_raw((color.size + 3) // 4).astype("<u8").view("<u2")[: color.size].astype(np.int64)
    noise = ((words & 255) + (words >> 8) - 255).reshape(color.shape)
    image = color + (noise * (strength * 10) >> 6)
    return _clip(image + 8 >> 4, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


def _pick(bits: PCG64, low: int, high: int) -> int:
    """A whole number in low..high-1."""
    return low + ((int(bits.random_raw()) >> 32) * (high - low) >> 32)


def _direction(angle: int) -> tuple[int, int]:
    """1024 times the cosine and sine of an angle in 1/96 turns."""
    cos, sin = (min(k % 96, 96 - k % 96) for k in (angle, angle - 24))
    return _COSINE[cos] if cos <= 24 else -_COSINE[48 - cos], _COSINE[sin] if sin <= 24 else -_COSINE[48 - sin]


def _rgb(hue: int, saturation: int, value: int) -> _Ints:
    """Red, green, blue (3, 1, 1) in 0..255 of a hue in 1/1536 turns, saturation in 0..256 and value in 0..255."""
    full = [min(max(abs((hue + turn) % 1536 - 768) - 256, 0), 256) for turn in (0, -512, 512)]
    return np.array([[[value * (256 - (saturation * (256 - part) >> 8)) >> 8]] for part in full], np.int64)


def _clip(values: _Ints, low: int, high: int) -> _Ints:
    return np.minimum(np.maximum(values, low), high)  # several times faster than np.clip on small arrays


def _soft_step(depth: _Ints, axis: _Ints) -> _Ints:
    """0 outside to 256 inside, across one pixel: anti-aliasing."""
    return _clip((depth * len(axis) >> 4) + 128, 0, 256)


def _noise(bits: PCG64, rows: _Ints, cols: _Ints, cells: int) -> _Ints:
    """Smooth noise (h, w), -256..255: random values at the corners of cells x cells squares, interpolated."""
    corners = (bits.random_raw((cells + 1) ** 2) >> np.uint64(55)).astype(np.int64).reshape(cells + 1, -1) - 256

    def between(values: _Ints, axis: _Ints) -> _Ints:  # interpolates the first dimension at `axis`
        t = ((axis * cells & 4095) >> 4)[:, None]
        t, cell = t * t * (768 - 2 * t) >> 16, axis * cells >> 12  # smoothstep
        return (values[cell] << 8) + (values[cell + 1] - values[cell]) * t

    return between(between(corners, cols).T.copy(), rows) >> 16
