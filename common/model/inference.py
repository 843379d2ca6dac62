"""Class probabilities of whole images: in one piece or by a sliding window, with or without a mirrored copy; all at
once, or strip by strip in memory that does not grow with the image's height."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

Network = Callable[[Tensor], Tensor]

WHOLE = 2**21  # pixels of the largest image that the network sees at once (1024 x 2048)
TILE, STEP = [512, 512], [384, 384]  # windows of a larger one, and the stride between them
GRID = 32  # smooth windows start at multiples of this, the stride of most encoders
STRIP = 2**22  # probabilities of a strip of `predict_rows`


@dataclass
class InferenceConfig:
    """How an image is predicted.

    Args:
        window: None (the whole image at once; above 2^21 pixels in smooth windows of 512 x 512), or [height, width] of
            a sliding window in pixels.
        stride: [height, width] between windows, at most the window; None is two thirds of it.
        flip: average the probabilities with those of the image mirrored left to right.
        smooth: a window counts less and less towards its border, see `ramp`, and starts on the grid of the encoder's
            cells [ours]. Otherwise all of it counts the same.
    """

    window: list[int] | None = None
    stride: list[int] | None = None
    flip: bool = False
    smooth: bool = False

    def __post_init__(self) -> None:
        for name, value in (("window", self.window), ("stride", self.stride)):
            if value is not None and (len(value) != 2 or min(value) < 1):
                raise ValueError(f"{name} must be [height, width] in pixels, got {value}")
        if self.smooth and self.window is None:
            raise ValueError("smooth is without effect: set window too")
        if self.stride is not None:
            if self.window is None:
                raise ValueError(f"stride {self.stride} is without effect: set window too")
            if any(s > w for s, w in zip(self.stride, self.window, strict=True)):
                raise ValueError(f"stride {self.stride} leaves gaps between windows of {self.window}")


@torch.no_grad()
def predict_probabilities(
    network: Network, image: Tensor, config: InferenceConfig, size: tuple[int, int] | None = None
) -> Tensor:
    """Class probabilities of a batch at its original size.

    In one piece, the logits are resized to `size` and then softmaxed. With windows, probabilities are averaged at the
    image's own size, weighted by `ramp` or each window equally, and the average is resized. With `flip`, probabilities
    are averaged last. Resizing is bilinear, `align_corners=False`.

    Args:
        network: (B, C, h, w) -> (B, K, h, w) logits. It is used in the mode it is in: call `eval()` before.
        image: (B, C, H, W) in [0, 1], or uint8, of which no float copy is made but of one window.
        size: (height, width) of the result; None is the image's own.

    Returns:
        (B, K, *size) float32, which sums to 1 over K.
    """
    height, width = size or image.shape[-2:]
    result = _predict(network, image, config, (height, width), False)
    return (result + _predict(network, image, config, (height, width), True)) / 2 if config.flip else result


@torch.no_grad()
def predict_rows(
    network: Network, image: Tensor, config: InferenceConfig, size: tuple[int, int] | None = None
) -> Iterator[Tensor]:
    """`predict_probabilities` in strips (B, K, rows, width) from top to bottom.

    Held at a time are the image, the probabilities of one row of windows (`flip`: of two), or in one piece the
    network's logits, and a strip. With windows and another `size` than the image's they are held at the image's size.
    """
    height, width = size or image.shape[-2:]
    plain = _rows(network, image, config, (height, width), False)
    if not config.flip:
        yield from plain
        return
    for one, other in zip(plain, _rows(network, image, config, (height, width), True), strict=True):
        yield (one + other) / 2


def as_float(image: Tensor) -> Tensor:
    """An image, or a part of one, in [0, 1]."""
    return image.float().div_(255) if image.dtype == torch.uint8 else image


def ramp(length: int, overlap: int, before: bool, after: bool, device: torch.device | None = None) -> Tensor:
    """Weights (length,) of a smooth window along one axis.

    1 inside; towards a side with a neighbour 0 in the outer quarter of the overlap, and a smoothstep over its middle
    half, so that the weights of two windows add up to 1. A network whose receptive field reaches no farther than this
    quarter so predicts what it would of the whole image.
    """
    weight = torch.ones(length, device=device)
    depth = torch.arange(length, device=device) + 0.5
    for beside, away in ((before, depth), (after, length - depth)):
        if beside:
            rise = ((away - overlap / 4) / (overlap / 2)).clamp(0, 1) if overlap else 1.0
            weight = weight * rise * rise * (3 - 2 * rise)
    return weight


def _predict(network: Network, image: Tensor, config: InferenceConfig, size: tuple[int, int], mirror: bool) -> Tensor:
    config = _tiled(config, image)
    if config.window is None:
        found = _resize(network(as_float(image.flip(-1) if mirror else image)).float(), size).softmax(1)
        return found.flip(-1) if mirror else found
    return _resize(torch.cat([*_window_rows(network, image, config, mirror)], -2), size)


def _rows(
    network: Network, image: Tensor, config: InferenceConfig, size: tuple[int, int], mirror: bool
) -> Iterator[Tensor]:
    config = _tiled(config, image)
    if config.window is not None and image.shape[-2:] == size:
        yield from _window_rows(network, image, config, mirror)
        return
    if config.window is None:
        values = network(as_float(image.flip(-1) if mirror else image)).float()
    else:
        values = torch.cat([*_window_rows(network, image, config, mirror)], -2)
    step = _strip(values, size[1])
    for top in range(0, size[0], step):
        rows = _resized_rows(values, size, top, min(size[0], top + step))
        if config.window is None:
            rows = rows.softmax(1)
            rows = rows.flip(-1) if mirror else rows
        yield rows


def _tiled(config: InferenceConfig, image: Tensor) -> InferenceConfig:
    """The windows of an image that is too large for the network to see at once."""
    if config.window is None and image.shape[-2] * image.shape[-1] > WHOLE:
        return replace(config, window=TILE, stride=STEP, smooth=True)
    return config


def _window_rows(network: Network, image: Tensor, config: InferenceConfig, mirror: bool) -> Iterator[Tensor]:
    """Averaged probabilities of the windows of an image, or of its mirror image, in strips."""
    assert config.window is not None
    stride, full = config.stride or [max(1, 2 * side // 3) for side in config.window], image.shape[-2:]
    if config.smooth:
        stride = [side // GRID * GRID or side for side in stride]
    spans, weights = [], []
    for axis in (0, 1):
        side = min(config.window[axis], full[axis])
        spans.append(_spans(full[axis], side, stride[axis], config.smooth))
        overlap = config.window[axis] - stride[axis]
        sides = [(start > 0 and config.smooth, end < full[axis] and config.smooth) for start, end in spans[axis]]
        lengths = [end - start for start, end in spans[axis]]
        weights.append([ramp(one, overlap, *beside, image.device) for one, beside in zip(lengths, sides, strict=True)])
    total, count = None, image.new_zeros(spans[0][0][1], full[1], dtype=torch.float32)
    for number, (top, bottom) in enumerate(spans[0]):
        for (left, right), across in zip(spans[1], weights[1], strict=True):
            if mirror:
                tile = image[..., top:bottom, full[1] - right : full[1] - left].flip(-1)
            else:
                tile = image[..., top:bottom, left:right]
            found = network(as_float(tile)).float().softmax(1)
            weight = weights[0][number][:, None] * across
            if total is None:
                total = found.new_zeros(*found.shape[:2], *count.shape)
            place = (..., slice(0, bottom - top), slice(left, right))
            total[place] += found * weight if config.smooth else found
            count[place] += weight
        assert total is not None
        done = (spans[0][number + 1][0] if number + 1 < len(spans[0]) else bottom) - top  # rows that get no more
        step = _strip(total, full[1])
        for at in range(0, done, step):
            rows = slice(at, min(done, at + step))
            strip = total[..., rows, :] / count[rows]
            yield strip.flip(-1) if mirror else strip
        for values in (total, count):
            rest = values.shape[-2] - done
            for at in range(0, rest, done):  # in parts that do not overlap, without a copy of all
                to = min(at + done, rest)
                values[..., at:to, :] = values[..., at + done : to + done, :]
            values[..., rest:, :] = 0


def _strip(values: Tensor, width: int) -> int:
    """Rows of a strip of `width`."""
    return max(1, STRIP // (values.shape[0] * values.shape[1] * width))


def _spans(full: int, window: int, stride: int, smooth: bool) -> list[tuple[int, int]]:
    """Starts and ends of windows that cover `full` pixels; the last one ends at the border.

    A smooth one then starts at a multiple of GRID and is smaller by up to GRID - 1 pixels, so that a network with a
    stride sees all windows in the phase in which it sees the whole image.
    """
    last = full - window
    if smooth and stride % GRID == 0:
        last = -(-last // GRID) * GRID
    return [(start, min(start + window, full)) for start in [*range(0, last, stride), last]]


def _resize(values: Tensor, size: tuple[int, int]) -> Tensor:
    return values if values.shape[-2:] == size else F.interpolate(values, size, mode="bilinear", align_corners=False)


def _resized_rows(values: Tensor, size: tuple[int, int], top: int, bottom: int) -> Tensor:
    """Rows `top` to `bottom` of what `_resize` gives, up to rounding."""
    height = values.shape[-2]
    at = (torch.arange(top, bottom, device=values.device, dtype=torch.float64) + 0.5) * (height / size[0]) - 0.5
    at = at.clamp(0, height - 1)
    above = at.long()
    below = (above + 1).clamp(max=height - 1)
    first, last = int(above[0]), int(below[-1])
    wide = _resize(values[..., first : last + 1, :], (last + 1 - first, size[1]))
    share = (at - above).to(values.dtype)[:, None]
    return torch.lerp(wide[..., above - first, :], wide[..., below - first, :], share)
