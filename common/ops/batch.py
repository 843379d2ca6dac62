"""The batch contract between data modules and methods (the only place where they meet)."""

from __future__ import annotations

from typing import Any, Required, TypedDict

import torch
from torch import Tensor

IGNORE = 255
"""Mask value of a pixel without a label: unlabelled, or void in the data set. Padding is not a value but `valid`."""


PIXELS = ("dense", "image_subset", "pixels", "points", "scribbles", "human_scribbles", "boxes")
"""Kinds of supervision that label pixels."""


class SegBatch(TypedDict, total=False):
    """One stream of images. Shapes: B images of H x W pixels, K classes, V strong views."""

    image: Required[Tensor]  # (B, C, H, W) float32 in [0, 1], never normalised: RGB, and further bands if C > 3
    mask: Required[Tensor]  # (B, H, W) int64, class id or IGNORE
    valid: Required[Tensor]  # (B, H, W) bool, False = padding: in no loss and in no metric
    key: Tensor  # (B, 2) int64, (epoch, position): the seed of the sample's augmentation
    name: list[str]
    size: Tensor  # (B, 2) int64, height and width of the original image
    strong: Tensor  # (B, V, C, H, W), strongly augmented views of the same geometry
    weight: Tensor  # (B, H, W) float, per-pixel confidence
    tags: Tensor  # (B, K) bool, image-level labels; background is nobody's tag
    superpixels: Tensor  # (B, H, W) int64, segments from 1 on, 0 at padding


class Batch(TypedDict, total=False):
    """What `training_step` receives: the streams that the data is set to give (a method says which it needs)."""

    labeled: SegBatch
    unlabeled: SegBatch


def check_batch(stream: SegBatch, num_classes: int) -> None:
    """Raise ValueError naming the first entry of `stream` that breaks the contract (for `weakseg doctor` and tests)."""

    def require(good: bool, text: str) -> None:
        if not good:
            raise ValueError(f"batch contract: {text}")

    image, mask, valid = stream["image"], stream["mask"], stream["valid"]
    require(image.ndim == 4 and image.shape[1] >= 3, f"image must be (B, C, H, W), C >= 3, got {tuple(image.shape)}")
    require(image.dtype == torch.float32, f"image must be float32, got {image.dtype}")
    low, high = float(image.min()), float(image.max())
    require(low >= -1e-3 and high <= 1 + 1e-3, f"image must lie in [0, 1], got [{low:.3f}, {high:.3f}]")
    plane = (image.shape[0], *image.shape[2:])
    checks: list[tuple[str, Any, torch.dtype]] = [("mask", mask, torch.int64), ("valid", valid, torch.bool)]
    for name, value, dtype in checks:
        require(tuple(value.shape) == plane, f"{name} must be {plane}, got {tuple(value.shape)}")
        require(value.dtype == dtype, f"{name} must be {dtype}, got {value.dtype}")
    strange = mask[(mask != IGNORE) & ((mask < 0) | (mask >= num_classes))]
    require(strange.numel() == 0, f"mask holds {strange[:1].tolist()} outside 0..{num_classes - 1} and {IGNORE}")


def all_images(*streams: SegBatch | None) -> tuple[Tensor, Tensor, Tensor]:
    """Image, mask and valid of the given streams together (None: the batch has none of it), for one forward pass."""
    given = [stream for stream in streams if stream is not None]
    image, mask, valid = (torch.cat([s[key] for s in given]) for key in ("image", "mask", "valid"))
    return image, mask, valid


def check_tags(data: Any) -> None:
    """Raise ValueError unless a data module's image tags can be learned from: its first class is the background, which
    no tag names and which is what is left where no tagged object is."""
    if data.background != 0:
        name, classes = type(data).__name__, ", ".join(data.class_names)
        why = "has none" if data.background is None else "has it in another place"
        raise ValueError(
            "image tags name objects, and what is left is background: they need 'background' as the first class, but "
            f"{name} {why} (its classes are {classes}); choose another supervision.kind, or, of data of your own, "
            "another list of classes"
        )


def check_streams(method: Any, data: Any) -> None:
    """Raise ValueError unless a data module gives the labels, streams and strong views that a method learns from."""
    name, kind = type(method).__name__, data.supervision.kind
    # A few dense masks beside tags are labels of pixels too.
    if kind not in (*method.supervision, "none") and not (
        data.supervision.dense_images and method.supervision == PIXELS
    ):
        raise ValueError(
            f"{name} does not learn from supervision.kind {kind}: choose one of {', '.join(method.supervision)}, or "
            + ("the method CAM" if kind == "tags" else "another method")
        )
    if "unlabeled" in method.streams and "unlabeled" not in data.streams:
        raise ValueError(
            f"{name} learns from unlabelled images: leave data.unlabeled_batch_size out (as many as labelled), or set "
            "it above 0"
        )
    if "labeled" in method.streams and "labeled" not in data.streams:
        raise ValueError(f"{name} learns from labels: choose another supervision.kind than none")
    if method.strong_views > data.strong_views:
        raise ValueError(f"{name} learns from strong views: set data.strong_views to {method.strong_views}")
    if method.superpixels not in (0, data.superpixels):
        raise ValueError(
            f"{name} learns from {method.superpixels} superpixels of an image, and data.superpixels is "
            f"{data.superpixels}: leave it out"
        )
    if method.group != data.group and (method.group > 1 or data.group > 1):
        raise ValueError(f"{name} learns from groups of {method.group or 1} images: set data.group to {method.group}")
