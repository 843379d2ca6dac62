"""Labels of maps by the rules of Group-WSSS's code, and the maps that it gathers while it trains."""

from __future__ import annotations

import fcntl
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.ops.array import Array
from common.ops.batch import IGNORE
from common.training.files import written_whole

SURE, STRONG, SALIENT, LEAST = 0.9, 0.8, 32, 0.01


def labels_by_rules(cam: Tensor, background: float, saliency: Tensor | None = None) -> Tensor:
    """The highest of background and maps, then: 255 where two or more score above 0.9; 255 where it is background but
    salient (32 of 255 or more) or a map is above 0.8; 255 everywhere if less than 1 % of the pixels show an object.

    Args:
        cam: (C, H, W) in [0, 1].
        background: its score, where there is no saliency [ours: saliency is strong knowledge from elsewhere].
        saliency: (H, W) in 0 .. 255: the background then scores `1 - saliency / 255` [code].

    Returns:
        (H, W) int64.
    """
    score = torch.full_like(cam[:1], background) if saliency is None else 1 - saliency[None] / 255
    scores = torch.cat([score, cam])
    labels = scores.argmax(0)  # of equal ones the first
    doubtful = (cam > STRONG).any(0)
    if saliency is not None:
        doubtful |= saliency >= SALIENT
    labels = labels.masked_fill(((scores > SURE).sum(0) >= 2) | ((labels == 0) & doubtful), IGNORE)
    objects = ((labels != 0) & (labels != IGNORE)).float().mean()
    return labels if objects >= LEAST else torch.full_like(labels, IGNORE)


class OnlineMaps:
    """The pixel-wise maximum of each image's maps over the epochs, in files that are named by the image: the maps of
    its tagged classes below each other, 8 bits; 0 everywhere is a map that is missing.

    A step that is repeated after a resume changes nothing, since a maximum does not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str, count: int) -> Array | None:
        """uint8 (count, h, w) of an image with so many tags; None where there is none yet.

        Raises:
            ValueError: the file holds something else.
        """
        path = self.folder / f"{name}.png"
        if not path.exists():
            return None
        with Image.open(path) as file:
            found = np.asarray(file)
        if found.ndim != 2 or found.dtype != np.uint8 or len(found) % count:
            raise ValueError(f"{path} does not hold {count} maps of '{name}', one for each of its tags: delete it")
        return found.reshape(count, -1, found.shape[1])

    def add(self, name: str, maps: Array, sure: Array, last: bool) -> None:
        """Add uint8 (count, h, w); of a class not `sure` (count,) only in the `last` epoch, if it is missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:  # another process may have the image in another group
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self.get(name, len(maps))
            if before is None or before.shape != maps.shape:
                before = np.zeros_like(maps)
            missing = ~before.reshape(len(maps), -1).any(1)
            chosen = sure | (last & missing)
            now = np.where(chosen[:, None, None], np.maximum(before, maps), before)
            if (now != before).any():
                with written_whole(self.folder / f"{name}.png") as scratch:
                    Image.fromarray(now.reshape(-1, now.shape[2])).save(scratch, "PNG")
