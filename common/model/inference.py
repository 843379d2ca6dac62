"""Class probabilities of whole images: in one piece or by a sliding window, with or without a mirrored copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class InferenceConfig:
    """How an image is predicted.

    Args:
        window: None (the whole image at once), or [height, width] of a sliding window in pixels.
        stride: [height, width] between windows, at most the window; None is two thirds of it.
        flip: average the probabilities with those of the image mirrored left to right.
    """

    window: list[int] | None = None
    stride: list[int] | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        for name, value in (("window", self.window), ("stride", self.stride)):
            if value is not None and (len(value) != 2 or min(value) < 1):
                raise ValueError(f"{name} must be [height, width] in pixels, got {value}")
        if self.stride is not None:
            if self.window is None:
                raise ValueError(f"stride {self.stride} is without effect: set window too")
            if any(s > w for s, w in zip(self.stride, self.window, strict=True)):
                raise ValueError(f"stride {self.stride} leaves gaps between windows of {self.window}")


@torch.no_grad()
def predict_probabilities(
    network: Callable[[Tensor], Tensor], image: Tensor, config: InferenceConfig, size: tuple[int, int] | None = None
) -> Tensor:
    """Class probabilities of a batch at its original size.

    In one piece, the logits are resized to `size` and then softmaxed. With windows, probabilities are averaged at the
    image's own size, each window with equal weight, and the average is resized. With `flip`, probabilities are
    averaged last. Resizing is bilinear, `align_corners=False`.

    Args:
        network: (B, 3, h, w) -> (B, K, h, w) logits. It is used in the mode it is in: call `eval()` before.
        image: (B, 3, H, W).
        size: (height, width) of the result; None is the image's own.

    Returns:
        (B, K, *size) float32, which sums to 1 over K.
    """
    height, width = size or image.shape[-2:]
    result = _predict(network, image, config, (height, width))
    if config.flip:
        result = (result + _predict(network, image.flip(-1), config, (height, width)).flip(-1)) / 2
    return result


def _predict(
    network: Callable[[Tensor], Tensor], image: Tensor, config: InferenceConfig, size: tuple[int, int]
) -> Tensor:
    if config.window is None:
        return _resize(network(image).float(), size).softmax(1)
    stride = config.stride or [max(1, 2 * side // 3) for side in config.window]
    height, width = (min(side, full) for side, full in zip(config.window, image.shape[-2:], strict=True))
    total, count = None, image.new_zeros(image.shape[-2:], dtype=torch.float32)
    for y in _starts(image.shape[-2], height, stride[0]):
        for x in _starts(image.shape[-1], width, stride[1]):
            place = (..., slice(y, y + height), slice(x, x + width))
            probabilities = network(image[place]).float().softmax(1)
            if total is None:
                total = probabilities.new_zeros(*probabilities.shape[:2], *image.shape[-2:])
            total[place] += probabilities
            count[place] += 1
    assert total is not None  # there is at least one window
    return _resize(total / count, size)


def _starts(full: int, window: int, stride: int) -> list[int]:
    """Offsets of windows that cover `full` pixels; the last one ends at the border."""
    return [*range(0, full - window, stride), full - window]


def _resize(values: Tensor, size: tuple[int, int]) -> Tensor:
    return values if values.shape[-2:] == size else F.interpolate(values, size, mode="bilinear", align_corners=False)
