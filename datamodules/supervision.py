"""What is labelled: which images, and which of their pixels. Functions of a seed and the image's name alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.simulate import (
    Inside,
    draw_boxes,
    draw_clicks,
    draw_human_scribbles,
    draw_pixels,
    draw_points,
    draw_scribbles,
)
from datamodules.splits import first_few, in_hash_order, read_list
from datamodules.transforms import nearest_rows

# Which options each kind takes, apart from `seed`. `Supervision` says which of them it needs.
OPTIONS: dict[str, tuple[str, ...]] = {
    "dense": (),
    "image_subset": ("fraction", "number", "list_file", "by_sequence", "evenly"),
    "pixels": ("fraction", "dense_images"),
    "points": ("per_class", "real", "dense_images"),
    "scribbles": ("length", "width", "real", "dense_images"),
    "human_scribbles": ("width", "dense_images"),
    "boxes": ("inside", "real", "fraction", "number", "dense_images"),
    "tags": ("dense_images",),
    "none": (),
}
Kind = Literal["dense", "image_subset", "pixels", "points", "scribbles", "human_scribbles", "boxes", "tags", "none"]
TAGGED = ("boxes", "tags")  # kinds that say which classes occur in an image; elsewhere nobody gave that label
NEEDED = {"image_subset": ("fraction", "number", "list_file"), "pixels": ("fraction",)}  # exactly one of these


@dataclass(frozen=True)
class Supervision:
    """What is labelled, in one line of YAML: `supervision: {kind: pixels, fraction: 0.001}`.

    Args:
        kind: `dense`: every pixel that the masks label; `image_subset`: some images densely, the others not at all;
            `pixels`: a share of the pixels of every image; `points`: single pixels; `scribbles`: strokes, simulated in
            every component; `human_scribbles`: simulated as people draw them, which leaves most of the background open;
            `boxes`: what the bounding boxes say: background outside, what `inside` says in them; `tags`: no pixel at
            all; `none`: no image is labelled, for methods that learn without. With boxes and tags the batch has
            `tags`, the classes that occur in each image.
        fraction: of the images (`image_subset`, `boxes`) or of the pixels (`pixels`), above 0 and up to 1; without it
            every image has boxes.
        number: of labelled images (`image_subset`, `boxes`).
        list_file: file with the labelled images' ids, such as a published list (`image_subset`).
        by_sequence: the images are drawn sequence after sequence, frames in order, for video, whose neighbouring frames
            are near-duplicates (`image_subset` with `fraction` or `number`; CamVid, Cityscapes).
        evenly: the images are frames at even intervals of each video, as annotators choose them (`image_subset` with
            `fraction` or `number`; where `by_sequence` works).
        per_class: labelled pixels per class and image (`points`); None is one in every connected component.
        length: share of the longest path through a component that its simulated stroke covers (`scribbles`).
        width: of a simulated stroke in pixels: `scribbles`, 3 unless given; `human_scribbles`, then 0.65 % of the
            image's longer side.
        real: use the points, scribbles or boxes that people drew, which the data set must come with, instead of
            simulating.
        inside: of boxes, what labels the pixels in them: None: nothing; `filled`: the box's class, the simplest guess;
            `grabcut`: its class or background, by colour (needs the extra `boxes`).
        dense_images: so many images are labelled densely, the others as `kind` says.
        seed: of the draw; None is the run's seed.
    """

    kind: Kind = "dense"
    fraction: float | None = None
    number: int | None = None
    list_file: str | None = None
    by_sequence: bool = False
    evenly: bool = False
    per_class: int | None = None
    length: float | None = None
    width: int | None = None
    real: bool = False
    inside: Inside | None = None
    dense_images: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in OPTIONS:
            raise ValueError(f"supervision.kind '{self.kind}' is unknown: use one of {', '.join(OPTIONS)}")
        given = [field.name for field in fields(self)[1:-1] if getattr(self, field.name) not in (None, False, 0)]
        # 0 is a value that somebody gave, and is told below to be out of range.
        given += [name for name in ("fraction", "number", "per_class", "length", "width") if getattr(self, name) == 0]
        stray = [name for name in given if name not in OPTIONS[self.kind]]
        if self.real:
            stray += [name for name in given if name in ("per_class", "length", "width")]
        if stray:
            how = " from people's annotations" if self.real and stray[0] in OPTIONS[self.kind] else ""
            raise ValueError(
                f"supervision.{stray[0]}={getattr(self, stray[0])} is without effect for kind {self.kind}{how}: "
                "leave it out, or set it to null where a config gives it"
            )
        needed = NEEDED.get(self.kind, ())
        ways = [name for name in ("by_sequence", "evenly", "list_file") if getattr(self, name)]
        if len(ways) > 1:
            raise ValueError(f"supervision.{ways[0]} is without effect together with {ways[1]}: leave one of them out")
        if needed and len([name for name in given if name in needed]) != 1:
            raise ValueError(f"supervision kind {self.kind} needs one of {', '.join(needed)}, got {given or 'none'}")
        if self.kind == "boxes" and self.fraction and self.number:
            raise ValueError("supervision kind boxes takes fraction or number, not both: leave one of them out")
        for name in ("fraction", "length"):
            if (value := getattr(self, name)) is not None and not 0 < value <= 1:
                raise ValueError(f"supervision.{name} must be above 0 and at most 1 (1 is all), got {value}")
        for name in ("number", "per_class", "width"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"supervision.{name} must be at least 1, got {value}")
        if self.inside not in (None, "filled", "grabcut"):
            raise ValueError(f"supervision.inside is filled, grabcut or null, got {self.inside!r}")
        if self.dense_images < 0:
            raise ValueError(f"supervision.dense_images must be at least 1, or left out, got {self.dense_images}")

    def listed(self, known: Collection[str] = ()) -> list[str]:
        """The ids in `list_file`, none where it is not given; `known`: ids that there are. Raises what `read_list`
        does."""
        return read_list(Path(self.list_file), known) if self.list_file is not None else []


def split_images(
    names: Sequence[str], supervision: Supervision, seed: int, sequence: Callable[[str], str] = str
) -> tuple[list[str], list[str]]:
    """Labelled and unlabelled images, each sorted.

    The draw orders the names by a hash of seed and name and takes the first ones: it does not depend on the order of
    `names`, and with one seed a smaller share is contained in a larger one. A fraction is rounded to the nearest
    number of images (halves up), at least one. With `by_sequence` the sequences are so ordered, each with its frames in
    order of name; `evenly` takes frames at equal distances in that order, from a drawn one on. `sequence` names that of
    an image.
    """
    some = supervision.fraction or supervision.number
    if supervision.kind != "image_subset" and not (supervision.kind == "boxes" and some):
        return sorted(names), []
    if supervision.list_file is not None:
        chosen = supervision.listed({*names})
        unknown = {*chosen} - {*names}
        if unknown:
            raise ValueError(
                f"{supervision.list_file} lists {len(unknown)} ids that are not training images: "
                f"{first_few(unknown)}; is it a list for another data set or split?"
            )
    else:
        count = supervision.number or max(1, int((supervision.fraction or 0) * len(names) + 0.5))
        if count > len(names):
            raise ValueError(f"supervision.number asks for {count} of {len(names)} training images: ask for fewer")
        if supervision.by_sequence or supervision.evenly:
            place = {one: number for number, one in enumerate(in_hash_order({*map(sequence, names)}, f"{seed}/"))}
            frames = sorted(names, key=lambda name: (place[sequence(name)], name))
            chosen = frames[:count]
            if supervision.evenly:
                start = int(hashlib.sha256(f"{seed}/".encode()).hexdigest()[:8], 16) / 16**8
                chosen = [frames[int((number + start) * len(frames) / count)] for number in range(count)]
        else:
            chosen = in_hash_order(names, f"{seed}/")[:count]
    return sorted(chosen), sorted({*names} - {*chosen})


def draw_annotation(
    mask: Array,
    supervision: Supervision,
    seed: int,
    name: str,
    background: int | None = None,
    image: Array | None = None,
) -> Array:
    """The labels of one image that training may see, by simulation from its dense mask.

    Args:
        mask: uint8 (H, W), class id or 255, at the size at which it is used.
        seed: of the draw.
        name: the image's id: each image has its own stream of random numbers.
        background: class id of the background, if the data set has one; for boxes and `human_scribbles`.
        image: uint8 (H, W, C), for boxes whose inside goes by colour.

    Returns:
        uint8 (H, W): the mask's value at the drawn pixels, 255 elsewhere (for boxes: see `draw_boxes`).
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
    kind = supervision.kind
    if kind == "pixels":
        return draw_pixels(mask, supervision.fraction or 1.0, rng)
    if kind == "points":
        return draw_points(mask, supervision.per_class, rng) if supervision.per_class else draw_clicks(mask, rng)
    if kind == "scribbles":
        return draw_scribbles(mask, supervision.length or 0.5, supervision.width or 3, rng)
    if kind == "human_scribbles":
        return draw_human_scribbles(mask, background, supervision.width, rng)
    if kind == "boxes":
        if background is None:
            raise ValueError(
                "supervision kind boxes needs a class 'background', which this data set does not have: use another kind"
            )
        return draw_boxes(mask, background, supervision.inside, image)
    return np.full_like(mask, IGNORE) if kind == "tags" else mask.copy()


def dense_names(labeled: Sequence[str], supervision: Supervision, seed: int) -> set[str]:
    """The images that `dense_images` labels densely."""
    if supervision.dense_images > len(labeled):
        raise ValueError(f"supervision.dense_images={supervision.dense_images}, but there are {len(labeled)} images")
    return {*in_hash_order(labeled, f"{seed}/")[: supervision.dense_images]}


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


# sha256 of the sorted ids, joined by newlines. Names as in the papers' specifications: whose lists are equal.
PROTOCOLS = {
    "124b0aab2fcd1767": "the 92 labels of PASCAL VOC classic (PseudoSeg's list, as in CPS, U2PL, UniMatch)",
    "baa85754594fcd33": "the 662 labels (1/16) of PASCAL VOC blended (CPS's list, as in UniMatch)",
    "22b9724d43a23086": "the 186 labels (1/16) of Cityscapes (CPS's list, as in UniMatch)",
}


def known_protocol(labeled: Sequence[str]) -> str | None:
    """The published protocol whose labelled list this is, by its hash; None for any other list."""
    return PROTOCOLS.get(hashlib.sha256("\n".join(sorted(labeled)).encode(errors="surrogateescape")).hexdigest()[:16])
