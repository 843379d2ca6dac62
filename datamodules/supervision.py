"""What is labelled: which images, and which of their pixels. Functions of a seed and the image's name alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.batch import IGNORE
from datamodules.files import read_list
from datamodules.transforms import nearest_rows

Array = np.ndarray[Any, Any]

# Which options each kind takes: one of them must be given, except that `points` has a default.
OPTIONS: dict[str, tuple[str, ...]] = {
    "dense": (),
    "image_subset": ("fraction", "number", "list_file"),
    "pixels": ("fraction",),
    "points": ("per_class",),
}


@dataclass(frozen=True)
class Supervision:
    """What is labelled, in one line of YAML: `supervision: {kind: pixels, fraction: 0.001}`.

    Args:
        kind: `dense`: every pixel that the masks label; `image_subset`: some images densely, the others not at all;
            `pixels`: a share of the pixels of every image; `points`: single pixels of each class in every image.
        fraction: of the images (`image_subset`) or of the pixels (`pixels`), above 0 and up to 1.
        number: of labelled images (`image_subset`).
        list_file: file with the labelled images' ids (`image_subset`).
        per_class: labelled pixels per class and image (`points`), 1 unless given.
        seed: of the draw; None is the run's seed.

    Raises:
        ValueError: an option that is missing, out of range, or without effect for this kind.
    """

    kind: Literal["dense", "image_subset", "pixels", "points"] = "dense"
    fraction: float | None = None
    number: int | None = None
    list_file: str | None = None
    per_class: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in OPTIONS:
            raise ValueError(f"supervision.kind '{self.kind}' is unknown: use one of {', '.join(OPTIONS)}")
        takes = OPTIONS[self.kind]
        given = [name for name in ("fraction", "number", "list_file", "per_class") if getattr(self, name) is not None]
        stray = [name for name in given if name not in takes]
        if stray:
            raise ValueError(
                f"supervision.{stray[0]}={getattr(self, stray[0])} is without effect for kind {self.kind}: leave it out"
            )
        if takes and len(given) != 1 and self.kind != "points":
            raise ValueError(f"supervision kind {self.kind} needs one of {', '.join(takes)}, got {given or 'none'}")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"supervision.fraction must be above 0 and at most 1 (1 is all), got {self.fraction}")
        for name in ("number", "per_class"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"supervision.{name} must be at least 1, got {getattr(self, name)}")


def split_images(names: Sequence[str], supervision: Supervision, seed: int) -> tuple[list[str], list[str]]:
    """Labelled and unlabelled images, each sorted.

    The draw orders the names by a hash of seed and name and takes the first ones: it does not depend on the order of
    `names`, and with one seed a smaller share is contained in a larger one. A fraction is rounded to the nearest
    number of images (halves up), at least one.

    Raises:
        ValueError: more images asked for than there are, or a list file with unknown ids.
    """
    if supervision.kind != "image_subset":
        return sorted(names), []
    if supervision.list_file is not None:
        chosen = read_list(Path(supervision.list_file))
        unknown = sorted({*chosen} - {*names})
        if unknown:
            raise ValueError(
                f"{supervision.list_file} lists {len(unknown)} ids that are not training images: "
                f"{', '.join(unknown[:5])}; is it a list for another data set or split?"
            )
    else:
        count = supervision.number or max(1, int((supervision.fraction or 0) * len(names) + 0.5))
        if count > len(names):
            raise ValueError(f"supervision.number asks for {count} of {len(names)} training images: ask for fewer")
        chosen = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())[:count]
    return sorted(chosen), sorted({*names} - {*chosen})


def draw_annotation(mask: Array, supervision: Supervision, seed: int, name: str) -> Array:
    """The labels of one image that training may see.

    `pixels`: one pixel of each class present, then pixels drawn uniformly from the rest until the share of the
    labelled ones is reached (more only if the classes alone exceed it). `points`: `per_class` pixels of each class
    present, uniform inside the class, fewer where it is smaller.

    Args:
        mask: uint8 (H, W), class id or 255, at the size at which it is used.
        seed: of the draw.
        name: the image's id: each image has its own stream of random numbers.

    Returns:
        uint8 (H, W): the mask's value at the drawn pixels, 255 elsewhere. Empty only if the mask is.
    """
    if supervision.kind in ("dense", "image_subset"):
        return mask.copy()
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
    flat = mask.reshape(-1)
    labelled = np.flatnonzero(flat != IGNORE)
    order = labelled[rng.permutation(labelled.size)]
    # Position within its class, in the drawn order: the first `per_class` of each class come first.
    per_class = supervision.per_class or 1
    first = np.concatenate([order[flat[order] == c][:per_class] for c in np.unique(flat[order])] or [order])
    keep = first
    if supervision.kind == "pixels":
        count = round((supervision.fraction or 0) * labelled.size)
        rest = order[~np.isin(order, first)]
        keep = np.concatenate([first, rest[: max(0, count - first.size)]])
    drawn = np.full_like(flat, IGNORE)
    drawn[keep] = flat[keep]
    return drawn.reshape(mask.shape)


def shrink_mask(mask: Array, size: tuple[int, int], keep_strokes: bool) -> Array:
    """Resize a mask (H, W) to `size` by nearest neighbours (pixel centres).

    Args:
        keep_strokes: where the nearest pixel has no label but another one in the cell has, take the cell's most
            frequent label (the lowest id on a tie): thin scribbles survive. For masks that are annotations; in a dense
            mask it would fill the void along the objects.
    """
    if mask.shape == size:
        return mask.copy()
    small = mask[nearest_rows(mask.shape[0], size[0])[:, None], nearest_rows(mask.shape[1], size[1])]
    if not keep_strokes:
        return small
    rows, columns = np.nonzero(mask != IGNORE)
    labels = mask[rows, columns].astype(np.int64)
    # A pixel belongs to the cell that holds its centre: then the nearest pixel is in its cell, also when enlarging.
    rows, columns = (
        (2 * at + 1) * new // (2 * old) for at, new, old in zip((rows, columns), size, mask.shape, strict=True)
    )
    cells = rows * size[1] + columns
    pairs, counts = np.unique(np.stack([cells, labels]), axis=1, return_counts=True)
    best = np.lexsort((pairs[1], -counts, pairs[0]))  # by cell, most frequent first, lowest id first
    cells, labels = pairs[:, best]
    cells, position = np.unique(cells, return_index=True)
    flat = small.reshape(-1)
    empty = flat[cells] == IGNORE
    flat[cells[empty]] = labels[position][empty].astype(np.uint8)
    return small
