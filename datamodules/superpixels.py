"""Superpixels of training images by SLIC (Achanta et al., TPAMI 2012; scikit-image's), computed once and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from common.ops.array import Array
from common.training.files import written_whole

COMPACTNESS = 10.0  # scikit-image's default, and CPN's [code]


def segments(image: Array, count: int) -> Array:
    """uint16 (H, W): the superpixel of each pixel of uint8 (C, H, W), RGB first, from 1 on; about `count` of them, or
    fewer where colours are all alike."""
    from skimage.segmentation import slic  # which runs without superpixels need not wait for

    found = slic(np.moveaxis(image[:3], 0, -1), n_segments=count, compactness=COMPACTNESS, start_label=1)
    return found.astype(np.uint16)


class Superpixels:
    """The superpixels of images, by name.

    Args:
        count: asked for in an image.
        folder: where they are kept, a picture of 16 bits an image; it belongs to these images at this size. None: they
            are computed each time, of parts that differ.
    """

    def __init__(self, count: int, folder: Path | None) -> None:
        self.count, self.folder = count, folder

    def get(self, name: str, image: Array) -> Array:
        """uint16 (H, W) of uint8 (C, H, W), see `segments`."""
        if self.folder is None:
            return segments(image, self.count)
        path = self.folder / f"{name}.png"
        if path.exists():
            with Image.open(path) as file:
                found = np.asarray(file).astype(np.uint16)
            if found.shape == image.shape[1:]:
                return found
        found = segments(image, self.count)
        with written_whole(path) as scratch:
            Image.fromarray(found).save(scratch, "PNG")
        return found
