"""SegmentationDataModule: everything that data sets share. A data set adds its lists and how to read one file."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader, move_data_to_device
from torch.utils.data import DataLoader, default_collate

from common.model.options import given_options, plain_options
from common.ops.array import Array
from datamodules.annotation import STATISTICS, announce, class_counts, folder_name, object_tags, prepare
from datamodules.augmentation import STREAMS, augmented, whole, with_draws
from datamodules.cache import DiskCache, RamCache, Small, shrink, writing
from datamodules.files import read_image, read_mask
from datamodules.images import whole_image
from datamodules.loaders import split_loader, training_loader
from datamodules.names import Names
from datamodules.pseudo import PseudoMasks
from datamodules.samplers import group_counts
from datamodules.splits import Split
from datamodules.state import State, changes, digest_of_state, plain, state_of
from datamodules.supervision import TAGGED, Supervision, split_images
from datamodules.transforms import Box

MOST = 2**16  # images of a batch: a slip of the keys must not fill the memory of the machine


class SegmentationDataModule(LightningDataModule):
    """Labelled and unlabelled images, three splits, one way to load them.

    A data set subclasses this and sets `class_names`, `colors`, `root`, `splits`, `images` and `masks`. One whose masks
    are no pictures of class ids implements `mask`; one without files also `image` and `source`.

    Args:
        size: images are resized to fit inside [height, width] (one number: a square), keeping their proportions;
            `native`: they and their labels stay as they are, training sees crops and evaluation windows of them.
        crop: [height, width] of a training sample; default: `size`. `native` needs it.
        batch_size: labelled images per optimizer step, over all devices and accumulated batches.
        unlabeled_batch_size: unlabelled images per optimizer step, likewise; 0 leaves the unlabelled stream out. This
            and the next two options follow from the method unless given (`common.training.run.fill_streams`).
        unlabeled_pool: the unlabelled stream holds `rest`, the images without an annotation (as in CPS and UniMatch),
            or `all` training images, without their labels (as in CutMix-Seg; also for weak labels on every image).
        strong_views: strongly augmented views of each unlabelled image, see `datamodules.transforms.strong_view`.
        supervision: what is labelled, see `datamodules.supervision.Supervision`.
        scale: range of the random magnification, [1, 1] for none.
        flip: mirror half of the training samples.
        num_workers: loader processes per device; they only decode and resize.
        seed: of the annotation, the order and the augmentation; the run's seed unless given.
        cache_dir: where drawn annotations are kept; default: $WEAKSEG_CACHE or ~/.cache/weakseg.
        cache: keep decoded, resized training and validation images, so that each is read once: `ram`, until the run
            ends, shared by the loader processes of a device; `disk`, in `cache_dir`, for all runs and devices. Either
            takes up to 3 x height x width bytes an image; the results are the same bit for bit. Not `ram` for `native`.
        pseudo_masks: folder of `weakseg pseudo`: training images have its labels in place of their masks, if they have
            any; val and test keep theirs.
        class_sampling: draw labelled images by the classes in them, rare ones more often, at this temperature (0.01 in
            its paper), see `datamodules.samplers.class_chances`; default: each image equally often.
        superpixels: about so many superpixels of each labelled image come with it (SLIC); 0: none. This and the next
            option follow from the method unless given.
        group: each labelled image comes with others that share a tag with it, so many in all and next to each other
            (`datamodules.samplers.group_order`); `batch_size` then counts groups. 0: images come by themselves.
    """

    class_names: Sequence[str] = ()
    colors: Sequence[tuple[int, int, int]] = ()
    root: Path  # the data set's folder, where it has one
    splits: Mapping[str, Sequence[str]] = {}  # image ids of train, val and test, in any order
    images: Mapping[str, Path] = {}  # file of each image
    masks: Mapping[str, Path] = {}  # file of each mask; empty where masks do not come from files
    background: int | None = None  # class id of the background, where the data set has one
    tagged: Mapping[str, Collection[int]] | None = None  # classes that people tagged in images; None: masks tell them
    boxed: Mapping[str, Sequence[Sequence[float]]] | None = None  # boxes that people drew, see `boxes`
    own_splits = False  # nobody has published the splits: they may tear a video or a person apart
    channels = 3  # bands of an image, the first three of which are shown and looked at as RGB
    keep_strokes: bool = False  # thin labels survive shrinking: for masks that are annotations themselves

    def __init__(
        self,
        size: int | list[int] | Literal["native"] = 128,
        crop: list[int] | None = None,
        batch_size: int = 16,
        unlabeled_batch_size: int | None = None,
        supervision: Supervision = Supervision(),  # noqa: B008 (frozen)
        scale: list[float] = [0.75, 1.5],  # noqa: B006 (never written to)
        flip: bool = True,
        num_workers: int = 2,
        seed: int = 0,
        cache_dir: str | None = None,
        strong_views: int | None = None,
        unlabeled_pool: Literal["rest", "all"] | None = None,
        cache: Literal["none", "ram", "disk"] = "none",
        pseudo_masks: str | None = None,
        class_sampling: float | None = None,
        superpixels: int | None = None,
        group: int | None = None,
    ) -> None:
        super().__init__()
        self.given = given_options(inspect.currentframe())  # for `config.yaml` of runs made in Python
        self.size: Box = None
        if size != "native":
            self.size = (size, size) if isinstance(size, int) else tuple(size)  # type: ignore[assignment]
        elif cache == "ram":
            raise ValueError("data.cache=ram would hold every image at its own size (data.size=native): use disk")
        for option, sides in (("size", self.size), ("crop", crop)):
            if sides is not None and (len(sides) != 2 or min(sides) < 1):
                raise ValueError(f"data.{option} is [height, width] in pixels, at least 1, got {[*sides]}")
        sample = crop or self.size
        if sample is None:
            raise ValueError("data.size=native needs data.crop: [height, width] of a training sample")
        self.crop = (sample[0], sample[1])
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"data.scale must be [low, high] with 0 < low <= high, got {scale}")
        self.batch_size, self.unlabeled_batch_size = batch_size, unlabeled_batch_size or 0
        if not (1 <= self.batch_size <= MOST and 0 <= self.unlabeled_batch_size <= MOST):
            raise ValueError(f"batch sizes are from 1 to {MOST}, got {batch_size} and {unlabeled_batch_size}")
        self.supervision, self.unlabeled_pool = supervision, unlabeled_pool or "rest"
        self.scale, self.flip = (scale[0], scale[1]), flip
        self.num_workers, self.seed = num_workers, seed
        self.cache_dir = Path(cache_dir or os.environ.get("WEAKSEG_CACHE", "~/.cache/weakseg")).expanduser()
        self.strong_views, self.cache = strong_views or 0, cache
        if not 0 <= self.strong_views <= 64:
            raise ValueError(f"data.strong_views is a number of views, at most 64, got {strong_views}")
        self.pseudo_folder = None if pseudo_masks is None else Path(pseudo_masks).expanduser()
        if self.pseudo_folder and (supervision.kind in ("tags", "none") or supervision.real):
            what = "supervision.real" if supervision.real else f"supervision kind {supervision.kind}"
            raise ValueError(f"data.pseudo_masks is without effect for {what}: choose kind dense, or leave it out")
        if class_sampling is not None:
            if not 0 < class_sampling < math.inf:
                raise ValueError(f"data.class_sampling is a temperature above 0 (such as 0.01), got {class_sampling}")
            if supervision.kind in ("tags", "none"):
                raise ValueError(
                    "data.class_sampling goes by labelled pixels, and supervision kind "
                    f"{supervision.kind} has none: leave it out"
                )
        self.class_sampling = class_sampling
        self.superpixels, self.group = superpixels or 0, group or 0
        if not 0 <= self.superpixels < 2**16 or self.group < 0:
            raise ValueError(f"data.superpixels is from 0 to 65535 and data.group >= 0, got {superpixels} and {group}")
        if self.group > 1 and supervision.kind not in TAGGED:
            raise ValueError(
                f"data.group goes by tags of images, and supervision kind {supervision.kind} has none: choose "
                f"{' or '.join(TAGGED)}, or leave it out"
            )
        if self.group > 1 and class_sampling is not None:
            raise ValueError("data.group and data.class_sampling both say which images come: leave one of them out")
        self.kept: RamCache | DiskCache | None = None  # made with the first loader
        self.known_state: tuple[State, str] | None = None
        self.known_lists: dict[str, tuple[Names, Names]] = {}
        self.turned: set[str] = set()  # images whose masks might have to be turned too, as far as they were read
        # One forward and backward sees this part of a step's batch; the CLI sets it from the trainer.
        self.accumulation = 1

    def names(self, split: Split) -> Sequence[str]:
        """Image ids of a split, sorted."""
        names = self.splits[split]
        return names if isinstance(names, Names) else sorted(names)

    def image(self, name: str) -> Array:
        """uint8 (H, W, `channels`), RGB first."""
        return read_image(self.images[name])

    def mask(self, name: str) -> Array | None:
        """uint8 (H, W), class id or 255; None where the image has no mask."""
        return read_mask(self.masks[name], self.num_classes, None) if name in self.masks else None

    def image_file(self, name: str) -> Path | None:
        """The file that `image` reads; None where there is none."""
        return self.images.get(name)

    def spacing(self, name: str) -> tuple[float, float] | None:
        """Height and width of an image's pixel in mm; None where the data do not say."""
        return None

    def sequence(self, name: str) -> str:
        """The video that an image is a frame of."""
        raise ValueError(
            f"{type(self).__name__} does not say which images are of one video: leave by_sequence or evenly out"
        )

    def knows_sequences(self) -> bool:
        """Whether `sequence` tells which images belong together."""
        return False

    def scored_with(self, name: str) -> str:
        """The images that scores of groups count as one: those of a sequence, where there are such; else each."""
        return self.sequence(name) if self.knows_sequences() else name

    @cached_property
    def pseudo(self) -> PseudoMasks | None:
        """The labels that training images have in place of their masks."""
        return None if self.pseudo_folder is None else PseudoMasks(self.pseudo_folder, self.class_names)

    def training_mask(self, name: str, size: Sequence[int]) -> Array | None:
        """What an image of `size` (height, width) is trained on: its pseudo-mask, where there are such, or its mask."""
        return self.mask(name) if self.pseudo is None else self.pseudo.mask(name, size)

    def has_mask(self, name: str) -> bool:
        """Whether a training image has a mask; the others are unlabelled, whatever `supervision` says."""
        return not self.masks or name in self.masks

    def tags(self, name: str, mask: Array | None) -> Array:
        """bool (K,): the classes that occur in an image: those that people have tagged, else those of its mask, uint8
        (H, W) at any size. Background is nobody's tag."""
        given = (self.tagged or {}).get(name)
        occur = np.isin(np.arange(self.num_classes), list(given or ()) if given is not None or mask is None else mask)
        occur[[] if self.background is None else [self.background]] = False
        return occur

    def annotation(self, name: str, kind: Literal["points", "scribbles"]) -> Array | None:
        """What people annotated in an image, uint8 (H, W) with 255 elsewhere; None where there is nothing."""
        raise ValueError(f"{type(self).__name__} has no {kind} drawn by people: leave out supervision.real")

    def boxes(self, name: str) -> Sequence[Sequence[float]]:
        """The boxes that people drew in an image, [x0, y0, x1, y1, class] in its pixels, the last ones included."""
        return (self.boxed or {})[name]

    def learned_tags(self, name: str, mask: Array | None) -> Array:
        """The tags that training takes: the classes of the boxes that people drew, where it learns from these, else
        `tags`."""
        if self.from_boxes(name):
            return np.isin(np.arange(self.num_classes), [int(box[4]) for box in self.boxes(name)])
        return self.tags(name, mask)

    def from_boxes(self, name: str) -> bool:
        """Whether an image is learned from the boxes that people drew in it."""
        return self.supervision.real and self.supervision.kind == "boxes" and name in (self.boxed or ())

    def source(self) -> str:
        """What tells this set's files from another's (the folder): part of the annotation cache's key."""
        return str(self.root.resolve())

    def sources(self) -> dict[str, Mapping[str, Path]]:
        """The files that the data are read from, by part and id: an annotation is drawn anew when one is replaced."""
        return {"images": self.images, "masks": self.masks}

    def reading(self) -> dict[str, Any]:
        """The options of this set alone, which say how its files are read."""
        shared = inspect.signature(SegmentationDataModule.__init__).parameters
        return {name: value for name, value in plain_options(self.given).items() if name not in shared}

    def looked_at(self) -> tuple[State, str]:
        """What the data are, as they were first looked at, and its hash, see `datamodules.state.state_of`."""
        if self.known_state is None:
            state = state_of(self)
            self.known_state = state, digest_of_state(state)
        return self.known_state

    def state(self) -> State:
        """What the data are, as they were first looked at."""
        return plain(self.looked_at()[0])

    def digest(self) -> str:
        """A hash of `state`."""
        return self.looked_at()[1]

    def changes_since(self, file: Path) -> str:
        """What differs from the state that a run directory's `data.json` holds, in words."""
        try:
            return changes(json.loads(file.read_text()), self.state())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return "files, splits or classes are others"

    @property
    def num_classes(self) -> int:
        """Number of classes; 255 is none of them."""
        return len(self.class_names)

    def lists(self) -> tuple[Names, Names]:
        """Labelled images, and those of the unlabelled stream."""
        if self.unlabeled_pool not in self.known_lists:
            self.known_lists[self.unlabeled_pool] = self._make_lists()
        return self.known_lists[self.unlabeled_pool]

    def _make_lists(self) -> tuple[Names, Names]:
        names = self.names("train")
        if self.supervision.kind == "none":
            return Names(), Names(names)
        tagged = self.tagged if self.supervision.kind == "tags" else None
        with_mask = [name for name in names if self.pseudo or name in (tagged or ()) or self.has_mask(name)]
        if self.supervision.kind == "boxes" and self.supervision.real:
            if self.boxed is None:
                raise ValueError(f"{type(self).__name__} has no boxes drawn by people: leave out supervision.real")
            with_mask = [name for name in names if name in self.boxed]
            if not with_mask:
                raise ValueError(f"none of the {len(names)} training images has boxes: draw some")
        if not with_mask:
            raise ValueError(
                f"none of the {len(names)} training images has a mask: label some of them, or learn without labels "
                "(supervision.kind=none, and a method that can)"
                + ("; they have tags: learn from these (supervision.kind=tags)" if self.tagged else "")
                + ("; they have boxes: learn from these (supervision={kind: boxes, real: true})" if self.boxed else "")
            )
        labeled, rest = split_images(with_mask, self.supervision, self.annotation_seed, self.sequence)
        if self.unlabeled_pool == "all":
            return Names(labeled), Names(names)
        taken = {*with_mask} - {*rest}
        return Names(labeled), Names(name for name in names if name not in taken)

    @property
    def streams(self) -> tuple[str, ...]:
        """What a training batch holds."""
        wanted = {"labeled": self.supervision.kind != "none", "unlabeled": self.unlabeled_batch_size > 0}
        return tuple(stream for stream in STREAMS if wanted[stream])

    @property
    def annotation_seed(self) -> int:
        """What the labelled images and pixels are drawn from: the supervision's seed, or else the run's."""
        return self.seed if self.supervision.seed is None else self.supervision.seed

    def annotation_dir(self) -> Path:
        """Folder of the drawn annotation, see `datamodules.annotation`."""
        return self.cache_dir / folder_name(self)

    def prepare_data(self) -> None:
        """Draw the annotation of the labelled images once; afterwards training opens no dense mask. A trainer that only
        evaluates needs none."""
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        with writing(self.cache_dir):
            prepare(self, self.annotation_dir())
            if self.class_sampling is not None:
                class_counts(self.annotation_dir(), self.lists()[0], self.num_classes)

    def annotation_report(self) -> dict[str, Any]:
        """Number of labelled images and pixels, in all and per class (see `summary.json`)."""
        report = dict(json.loads((self.annotation_dir() / "annotation.json").read_text()))
        del report["bytes"]
        if self.group > 1:
            report["groups"] = group_counts(object_tags(self.annotation_dir(), self.lists()[0]))
        return report

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each band over the pixels of the training images, in units of [0, 1]; of a
        set whose images have more than three bands, once `prepare_data` has run."""
        mean, std = json.loads((self.annotation_dir() / STATISTICS).read_text())
        return mean, std

    def setup(self, stage: str) -> None:
        """Before training, say what is labelled."""
        if stage == "fit":
            announce(self)
            self.train_dataloader(), self.val_dataloader()  # raise what is wrong before the run begins

    def train_dataloader(self) -> CombinedLoader:
        """Batches of all streams, see `datamodules.loaders.training_loader`; iterating gives (batch, number, 0)."""
        return training_loader(self)

    def val_dataloader(self) -> DataLoader[Any]:
        """Whole images of the val split, one by one, with their masks."""
        return split_loader(self, "val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Whole images of the test split, one by one, with their masks."""
        return split_loader(self, "test")

    @property
    def told_size(self) -> list[int] | Literal["native"]:
        """`size` as files say it."""
        return "native" if self.size is None else [*self.size]

    def small_image(self, name: str) -> Small:
        """An image as loaders read it: at the training size."""
        return shrink(self.image(name), self.size)

    def __getstate__(self) -> dict[str, Any]:
        # What a spawned loader process gets; the trainer holds what cannot be sent.
        return {**self.__dict__, "trainer": None}

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """A training batch with the random numbers of its augmentation, drawn on the host."""
        return with_draws(batch, self.seed, self.strong_views)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """The batch of `common.ops.batch`: training streams augmented, evaluation images as they are."""
        if "image" in batch:
            return whole(batch)
        return {s: augmented(batch[s], self.crop, self.scale, self.flip) for s in STREAMS if s in batch}

    def ready(self, batch: dict[str, Any], device: torch.device | str = "cpu") -> dict[str, Any]:
        """A loader's batch as methods get it from a trainer: see `common.ops.batch`, on `device`."""
        batch = move_data_to_device(self.on_before_batch_transfer(batch, 0), torch.device(device))
        return self.on_after_batch_transfer(batch, 0)

    def evaluation_batch(
        self, image: Array, mask: Array | None = None, name: str = "image", device: torch.device | str = "cpu"
    ) -> dict[str, Any]:
        """One whole image as the batch that `validation_step`, `test_step` and `predict_step` get: an image uint8
        (H, W, C) of any size, and its mask uint8 (H, W), class id or 255 (None: 255 everywhere)."""
        return self.ready(default_collate([whole_image(name, shrink(image, self.size), mask)]), device)
