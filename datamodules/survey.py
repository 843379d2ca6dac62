"""What is wrong with a data set, as far as its pictures and masks show: masks that say something else than they should,
splits that share images, images that will not be seen as they are.

`fit` surveys what it reads while the annotation is drawn, `doctor` all splits. Findings are sentences with a level:
`stop`, nothing can come of it, so training does not begin; `error`, numbers will mislead; `warning`, worth a look.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from PIL import Image

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.splits import Split, first_few

if TYPE_CHECKING:
    from datamodules.base import SegmentationDataModule

IMBALANCE = 50  # times as many pixels of one class as of another
SHRUNK = 8  # times smaller than the photo: what is left of a small object
UNLABELED = 0.95  # of the pixels of val or test: scores are of the few others
THUMB = 32  # pixels, of the small grey picture that near-duplicates are told by
NEAR = 4.0  # grey levels of 255, mean difference of two such pictures


class Finding(NamedTuple):
    level: Literal["stop", "error", "warning"]
    text: str


@dataclass
class Seen:
    """What was seen of a split."""

    images: int = 0
    masks: int = 0
    grey: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: Array = field(default_factory=lambda: np.zeros(256, np.int64))  # of each value of the masks
    bilevel: int = 0  # masks of 0 and 255 alone
    pictures: dict[bytes, str] = field(default_factory=dict)  # name of the first image with these pixels
    labels: dict[bytes, str] = field(default_factory=dict)  # name of the first mask with these labels
    thumbs: dict[str, Array] = field(default_factory=dict)
    tagged: int = 0  # images whose tags are known, and how many each class tags
    tags: Array = field(default_factory=lambda: np.zeros(256, np.int64))

    @property
    def labeled(self) -> int:
        """Pixels with a label."""
        return int(self.pixels[:IGNORE].sum())


class Look(NamedTuple):
    """What is kept of an image and its mask: little more than a kilobyte."""

    size: tuple[int, int]
    grey: bool
    picture: bytes  # a hash of the pixels
    thumb: Array
    moments: Array | None  # of an image with more bands than RGB: ones, and the mean of each band and of its square
    tags: Array | None  # bool (K,), where they are known
    pixels: Array | None  # of each value of the mask
    labels: bytes | None  # a hash of the mask, where it has two values or more: others are alike by nature
    turned: bool  # see `SegmentationDataModule.turned`


def look(data: SegmentationDataModule, name: str, image: Array, mask: Array | None) -> Look:
    """Look at an image, uint8 (H, W, C), and its mask, uint8 (H, W), if it has one."""
    moments = None
    if image.shape[2] > 3:
        levels = image.reshape(-1, image.shape[2]).astype(np.float64) / 255
        moments = np.stack([np.ones(levels.shape[1]), levels.mean(0), (levels**2).mean(0)])
    colors = image[..., :3]
    tagged = mask is not None or name in (data.tagged or ()) or data.from_boxes(name)
    counts = None if mask is None else np.bincount(mask.reshape(-1), minlength=256)
    labels = None
    filled = name in (data.boxed or ()) and name not in data.masks
    if mask is not None and counts is not None and (counts > 0).sum() > 1 and not filled:
        labels = hashlib.sha256(mask.tobytes() + str(mask.shape).encode()).digest()
    return Look(
        size=(image.shape[0], image.shape[1]),
        grey=bool((colors[..., 0] == colors[..., 1]).all() and (colors[..., 0] == colors[..., 2]).all()),
        picture=hashlib.sha256(image.tobytes()).digest(),
        thumb=np.asarray(Image.fromarray(colors).convert("L").resize((THUMB, THUMB), Image.Resampling.BOX)),
        moments=moments,
        tags=data.learned_tags(name, mask) if tagged else None,
        pixels=counts,
        labels=labels,
        turned=name in data.turned,
    )


class Survey:
    """Collects what findings are made of, one image after the other."""

    def __init__(self, data: SegmentationDataModule) -> None:
        self.data = data
        self.seen: dict[Split, Seen] = {}
        self.faults: list[Finding] = []  # of single files
        self.moments: Array = np.zeros((3, 1))  # of training images with more bands than RGB, summed over images

    def add(self, split: Split, name: str, one: Look) -> None:
        """What was seen of an image."""
        if split == "train" and one.moments is not None:
            self.moments = self.moments + one.moments
        if one.turned:  # the data module of another process knows it
            self.data.turned.add(name)
        seen = self.seen.setdefault(split, Seen())
        seen.images += 1
        seen.sizes[one.size] += 1
        seen.grey += one.grey
        seen.pictures.setdefault(one.picture, name)
        seen.thumbs[name] = one.thumb
        if one.tags is not None:
            seen.tagged += 1
            seen.tags[: self.data.num_classes] += one.tags
        if one.pixels is not None:
            seen.masks += 1
            seen.pixels += one.pixels
            seen.bilevel += np.flatnonzero(one.pixels).tolist() == [0, IGNORE]
        if one.labels is not None:
            seen.labels.setdefault(one.labels, name)

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each band of the training images, which count alike, in units of [0, 1]."""
        count, first, second = self.moments
        mean = first / count
        # A band that is the same everywhere says nothing, whatever it is divided by.
        return mean.tolist(), np.sqrt((second / count - mean**2).clip(1e-6)).tolist()

    def findings(self) -> list[Finding]:
        """All of them, the worst first."""
        found = [*self.faults, *self._labels(), *self._tags(), *self._balance(), *self._images(), *self._shared()]
        found += [] if any(a.pictures.keys() & b.pictures.keys() for (_, a), (_, b) in self._pairs()) else self._near()
        found += self._sequences()
        return sorted(found, key=lambda one: ("stop", "error", "warning").index(one.level))

    def _labels(self) -> Iterator[Finding]:
        names, unlabeled = self.data.class_names, self.data.supervision.kind == "none"
        for split, seen in self.seen.items():
            if not seen.masks or (unlabeled and split == "train"):
                continue
            present = [name for number, name in enumerate(names) if seen.pixels[number]]
            if not present:
                yield Finding("stop", f"no pixel of {split} has a label: check its {seen.masks} masks")
            elif len(present) == 1 and len(names) == 2 and seen.bilevel > seen.masks / 2 and self._is_white(split):
                yield Finding(
                    "stop",
                    f"the masks of {split} hold 0 and {IGNORE} alone, and {IGNORE} is no label: where it stands for "
                    f"{names[1]}, give data.mask_values: {{0: {names[0]}, {IGNORE}: {names[1]}}}",
                )
            elif len(present) == 1 and split == "train":
                yield Finding(
                    "stop", f"every labelled pixel of train is {present[0]}: nothing can be learned from one class"
                )
            elif len(present) < len(names):
                absent = [name for name in names if name not in present]
                yield Finding("warning", f"no pixel of {split} is {', '.join(absent)}")
            share = 1 - seen.labeled / max(1, int(seen.pixels.sum()))
            if present and split != "train" and share > UNLABELED:
                yield Finding(
                    "warning", f"{share:.1%} of the pixels of {split} have no label: its scores are those of the others"
                )

    def _tags(self) -> Iterator[Finding]:
        """Of the tags of the training images, where these are what is learned from."""
        seen = self.seen.get("train", Seen())
        kind = self.data.supervision.kind
        if kind not in ("tags", "boxes") or not seen.tagged:
            return
        objects = {n: name for n, name in enumerate(self.data.class_names) if n != self.data.background}
        if not seen.tags.any():
            yield Finding(
                "stop",
                f"none of the {seen.tagged} training images has the {'tag' if kind == 'tags' else 'box'} of an object: "
                "nothing is learned",
            )
        if kind == "boxes" or not seen.tags.any():
            return
        if absent := [name for number, name in objects.items() if not seen.tags[number]]:
            yield Finding("warning", f"no image of train is tagged {', '.join(absent)}: it cannot be learned")
        if every := [name for number, name in objects.items() if seen.tags[number] == seen.tagged]:
            yield Finding(
                "warning",
                f"every image of train shows {', '.join(every)}: without images that do not, a classifier need not "
                "look at it; add some",
            )

    def _is_white(self, split: Split) -> bool:
        """Whether 255 in masks of two classes stands for the second class: no mask has that, or those of train are
        labelled everywhere. In scribbles of which some lack the second class it does not."""
        train = self.seen.get("train", self.seen[split])
        unlabeled = train.pixels[IGNORE] / max(1, train.pixels.sum())
        return not train.pixels[1] or bool(unlabeled < 1 - UNLABELED)

    def _balance(self) -> Iterator[Finding]:
        seen = self.seen.get("train", Seen())
        counts = {name: int(seen.pixels[number]) for number, name in enumerate(self.data.class_names)}
        counts = {name: count for name, count in counts.items() if count}
        if len(counts) > 1 and max(counts.values()) > IMBALANCE * min(counts.values()):
            rare, common = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
            ratio = counts[common] / counts[rare]
            yield Finding(
                "warning", f"train has {ratio:.0f} pixels of {common} for each of {rare}: look at its own IoU"
            )

    def _images(self) -> Iterator[Finding]:
        images, grey = (sum(getattr(seen, what) for seen in self.seen.values()) for what in ("images", "grey"))
        if images and grey == images:
            yield Finding(
                "warning", "all images are grey: kernels over colour (sigma_rgb and the like) see brightness alone"
            )
        box = self.data.size
        if box is None:
            return
        every = [(max(h / box[0], w / box[1]), h, w) for seen in self.seen.values() for h, w in seen.sizes]
        ratio, height, width = max(every, default=(0, 0, 0))
        if ratio > SHRUNK:
            yield Finding(
                "warning",
                f"images of {height} x {width} pixels are shrunk {ratio:.0f} times to fit {box[0]} x {box[1]}: what is "
                f"smaller than {ratio:.0f} pixels is lost; raise data.size",
            )

    def _shared(self) -> Iterator[Finding]:
        for (split, seen), (other, before) in self._pairs():
            for kind, text in (
                ("pictures", "the same picture is in two splits: {}; remove one of them"),
                ("labels", "two images of different splits have the same mask: {}; is one of them in the wrong place?"),
            ):
                here, there = getattr(seen, kind), getattr(before, kind)
                both = sorted(here.keys() & there.keys(), key=here.__getitem__)
                pairs = [(there[one], here[one]) for one in both]
                if kind == "labels":  # masks of pictures that are the same are no news
                    pairs = [(a, b) for a, b in pairs if (before.thumbs[a] != seen.thumbs[b]).any()]
                if pairs:
                    more = f" and {len(pairs) - 1} more" if len(pairs) > 1 else ""
                    yield Finding("error", text.format(f"{other}/{pairs[0][0]} and {split}/{pairs[0][1]}{more}"))

    def _near(self) -> Iterator[Finding]:
        for (split, seen), (other, before) in self._pairs():
            found = [f"{other}/{two} and {split}/{one}" for one, two in near_duplicates(seen.thumbs, before.thumbs)]
            if found:
                yield Finding(
                    "warning",
                    f"{len(found)} images of {split} are nearly those of {other} ({first_few(found)}): scores tell how "
                    "well they are remembered",
                )

    def _pairs(self) -> Iterator[tuple[tuple[Split, Seen], tuple[Split, Seen]]]:
        splits = [*self.seen.items()]
        for number, one in enumerate(splits):
            for before in splits[:number]:
                yield one, before

    def _sequences(self) -> Iterator[Finding]:
        """Of sets whose splits nobody has published."""
        if not self.data.own_splits:
            return
        known = self.data.knows_sequences()
        names = {split: [*seen.thumbs] for split, seen in self.seen.items()}
        groups = {} if known else name_groups([name for some in names.values() for name in some])
        places: dict[str, set[str]] = defaultdict(set)
        for split, some in names.items():
            for name in some:
                places[self.data.sequence(name) if known else groups.get(name, name)].add(split)
        torn = sorted(group for group, splits in places.items() if len(splits) > 1)
        if torn and known:
            yield Finding("error", f"images of {first_few(torn)} are in several splits: give each sequence to one list")
        elif torn:
            yield Finding(
                "warning",
                f"images whose names begin with {first_few(torn)} are in several splits: if these are of one person or "
                "video, set data.sequences to a pattern of what they share, such as '^[^_]+', or list the splits",
            )


def near_duplicates(one: dict[str, Array], two: dict[str, Array]) -> list[tuple[str, str]]:
    """Pairs of names whose small grey pictures differ by less than `NEAR` levels in the mean; flat ones are none."""
    kept = [{name: thumb for name, thumb in thumbs.items() if thumb.std() > 2 * NEAR} for thumbs in (one, two)]
    if not all(kept):
        return []
    # Coarse pictures first: their difference is never larger than that of the fine ones.
    coarse = [np.stack([_coarse(thumb) for thumb in thumbs.values()]) for thumbs in kept]
    names = [[*thumbs] for thumbs in kept]
    found = []
    for number, small in enumerate(coarse[0]):
        for other in np.flatnonzero(np.abs(coarse[1] - small).mean(1) < NEAR):
            pair = names[0][number], names[1][int(other)]
            if np.abs(one[pair[0]].astype(int) - two[pair[1]]).mean() < NEAR:
                found.append(pair)
    return found


def _coarse(thumb: Array) -> Array:
    return thumb.reshape(4, THUMB // 4, 4, THUMB // 4).mean((1, 3), dtype=np.float32).reshape(-1)


def name_groups(names: Sequence[str]) -> dict[str, str]:
    """What names share before their first separator (`patient007` of `patient007_frame12`) or folder, where that tells
    several groups of several images; empty where it does not, as for IMG_0001."""
    first = {name: match[0] for name in names if (match := re.match(r"[^_\-/. ]+(?=[_\-/. ])", name))}
    counts = Counter(first.values())
    several = [group for group, count in counts.items() if count > 1]
    return first if len(first) == len(names) and len(several) >= max(3, len(counts) / 2) else {}
