"""SegmentationDataModule: everything that data sets share. A data set adds its lists and how to read one file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from lightning_utilities.core.rank_zero import rank_zero_only
from torch.utils.data import DataLoader, Dataset

from common.ops.batch import IGNORE
from datamodules.annotation import announce, folder_name, write_annotation, written_whole
from datamodules.cache import DiskCache, RamCache, Small, shrink
from datamodules.files import find_images, read_image, read_mask
from datamodules.images import TrainingImages, WholeImages, check_sizes, one_thread
from datamodules.samplers import EpochSampler
from datamodules.splits import Split
from datamodules.supervision import (
    Supervision,
    dense_names,
    draw_annotation,
    known_protocol,
    shrink_mask,
    split_images,
)
from datamodules.transforms import draw_strong, draw_uniform, fit_size, random_crop, strong_view

Array = np.ndarray[Any, Any]
STREAMS = ("labeled", "unlabeled")


class SegmentationDataModule(LightningDataModule):
    """Labelled and unlabelled images, three splits, one way to load them.

    A data set subclasses this and sets `class_names`, `colors`, `root`, `splits`, `images` and `masks`. One whose masks
    are no pictures of class ids implements `mask`; one without files also `image` and `source`.

    Args:
        size: images are resized to fit inside [height, width] (one number: a square), keeping their proportions.
        crop: [height, width] of a training sample; default: `size`.
        batch_size: labelled images per optimizer step, over all devices and accumulated batches.
        unlabeled_batch_size: unlabelled images per optimizer step, likewise; 0 leaves the unlabelled stream out.
        unlabeled_pool: the unlabelled stream holds `rest`, the images without an annotation (as in CPS and UniMatch),
            or `all` training images, without their labels (as in CutMix-Seg; also for weak labels on every image).
        supervision: what is labelled, see `datamodules.supervision.Supervision`.
        scale: range of the random magnification, [1, 1] for none.
        flip: mirror half of the training samples.
        num_workers: loader processes per device; they only decode and resize.
        seed: of the annotation, the order and the augmentation; the run's seed unless given.
        cache_dir: where drawn annotations are kept; default: $WEAKSEG_CACHE or ~/.cache/weakseg.
        strong_views: strongly augmented views of each unlabelled image, see `datamodules.transforms.strong_view`.
        cache: keep decoded, resized training and validation images, so that each is read once: `ram`, until the run
            ends, shared by the loader processes of a device; `disk`, in `cache_dir`, for all runs and devices. Either
            takes up to 3 x height x width bytes an image; the results are the same bit for bit.

    Raises:
        ValueError: an option out of range, or without effect beside the others.
    """

    class_names: Sequence[str] = ()
    colors: Sequence[tuple[int, int, int]] = ()
    root: Path  # the data set's folder, where it has one
    splits: Mapping[str, Sequence[str]] = {}  # image ids of train, val and test, in any order
    images: Mapping[str, Path] = {}  # file of each image
    masks: Mapping[str, Path] = {}  # file of each mask; empty where masks do not come from files
    background: int | None = None  # class id of the background, where the data set has one
    keep_strokes: bool = False  # thin labels survive shrinking: for masks that are annotations themselves

    def __init__(
        self,
        size: int | list[int] = 128,
        crop: list[int] | None = None,
        batch_size: int = 16,
        unlabeled_batch_size: int = 0,
        supervision: Supervision = Supervision(),  # noqa: B008 (frozen)
        scale: list[float] = [0.75, 1.5],  # noqa: B006 (never written to)
        flip: bool = True,
        num_workers: int = 2,
        seed: int = 0,
        cache_dir: str | None = None,
        strong_views: int = 0,
        unlabeled_pool: Literal["rest", "all"] = "rest",
        cache: Literal["none", "ram", "disk"] = "none",
    ) -> None:
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.crop = (crop[0], crop[1]) if crop else self.size
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"data.scale must be [low, high] with 0 < low <= high, got {scale}")
        if batch_size < 1 or unlabeled_batch_size < 0:
            raise ValueError(f"batch sizes must be positive, got {batch_size} and {unlabeled_batch_size}")
        self.batch_size, self.unlabeled_batch_size = batch_size, unlabeled_batch_size
        self.supervision, self.unlabeled_pool = supervision, unlabeled_pool
        self.scale, self.flip = (scale[0], scale[1]), flip
        self.num_workers, self.seed = num_workers, seed
        self.cache_dir = Path(cache_dir or os.environ.get("WEAKSEG_CACHE", "~/.cache/weakseg")).expanduser()
        if strong_views < 0 or (strong_views and not unlabeled_batch_size):
            raise ValueError(
                f"data.strong_views is the number of views of an unlabelled image, got {strong_views} with "
                f"data.unlabeled_batch_size {unlabeled_batch_size}: set both, or neither"
            )
        self.strong_views, self.cache = strong_views, cache
        self._cache: RamCache | DiskCache | None = None  # made with the first loader
        self.predict_folder: Path | None = None  # set by `weakseg predict --images`
        # One forward and backward sees this part of a step's batch; the CLI sets it from the trainer.
        self.accumulation = 1
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may have no validation image

    # What a data set provides --------------------------------------------------------------------------------------

    def names(self, split: Split) -> list[str]:
        """Image ids of a split, sorted."""
        return sorted(self.splits[split])

    def image(self, name: str) -> Array:
        """uint8 (H, W, 3) RGB."""
        return read_image(self.images[name])

    def mask(self, name: str) -> Array | None:
        """uint8 (H, W), class id or 255; None where the image has no mask."""
        return read_mask(self.masks[name], self.num_classes, None) if name in self.masks else None

    def image_file(self, name: str) -> Path | None:
        """The file that `image` reads; None where there is none."""
        return self.images.get(name)

    def sequence(self, name: str) -> str:
        """The video that an image is a frame of."""
        raise ValueError(f"{type(self).__name__} does not say which images are of one video: leave by_sequence out")

    def has_mask(self, name: str) -> bool:
        """Whether a training image has a mask; the others are unlabelled, whatever `supervision` says."""
        return not self.masks or name in self.masks

    def annotation(self, name: str, kind: Literal["points", "scribbles"]) -> Array | None:
        """What people annotated in an image, uint8 (H, W) with 255 elsewhere; None where there is nothing."""
        raise ValueError(f"{type(self).__name__} has no {kind} drawn by people: leave out supervision.real")

    def source(self) -> str:
        """What tells this set's files from another's (the folder): part of the annotation cache's key."""
        return str(self.root.resolve())

    # Shared --------------------------------------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """Number of classes; 255 is none of them."""
        return len(self.class_names)

    def lists(self) -> tuple[list[str], list[str]]:
        """Labelled images, and those of the unlabelled stream."""
        names = self.names("train")
        if self.supervision.kind == "none":
            return [], sorted(names)
        with_mask = [name for name in names if self.has_mask(name)]
        if not with_mask:
            raise ValueError(
                f"none of the {len(names)} training images has a mask: label some of them, or learn without labels "
                "(supervision.kind=none, and a method that can)"
            )
        labeled, rest = split_images(with_mask, self.supervision, self.annotation_seed, self.sequence)
        unlabeled = {*names} - {*with_mask} | {*rest}
        return labeled, sorted(names if self.unlabeled_pool == "all" else unlabeled)

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
        data, labeled = type(self).__name__, self.lists()[0]
        return self.cache_dir / folder_name(
            data, self.source(), self.size, self.supervision, self.annotation_seed, labeled
        )

    def prepare_data(self) -> None:
        """Draw the annotation of the labelled images once; afterwards training opens no dense mask.

        All that training and validation read is read here too, so that a bad file is named before the run begins.
        """
        folder = self.annotation_dir()
        if (folder / "annotation.json").exists():
            return
        labeled, unlabeled = self.lists()
        dense = dense_names(labeled, self.supervision, self.annotation_seed)
        with written_whole(folder) as scratch:
            masks = ((name, *self._annotate(name, name in dense)) for name in labeled)
            write_annotation(scratch, masks, self.class_names, self.supervision.kind)
            for name in unlabeled:
                self.image(name)
            for name in self.names("val"):
                check_sizes(name, self.image(name).shape, self.mask(name))

    def _annotate(self, name: str, dense: bool) -> tuple[Array, Array]:
        """The dense mask of a labelled image at the stored size, and what of it training may see."""
        mask = self.mask(name)
        assert mask is not None  # `lists` takes labelled images from those that have one
        check_sizes(name, self.image(name).shape, mask)
        size = fit_size(mask.shape, self.size)
        small = shrink_mask(mask, size, keep_strokes=self.keep_strokes)
        if dense:
            return small, small
        if self.supervision.real:
            real = self.annotation(name, cast(Literal["points", "scribbles"], self.supervision.kind))
            strokes = np.full(mask.shape, IGNORE, np.uint8) if real is None else real
            return small, shrink_mask(strokes, size, keep_strokes=True)
        return small, draw_annotation(small, self.supervision, self.annotation_seed, name, self.background)

    def annotation_report(self) -> dict[str, Any]:
        """Number of labelled images and pixels, in all and per class (see `summary.json`)."""
        return dict(json.loads((self.annotation_dir() / "annotation.json").read_text()))

    def setup(self, stage: str) -> None:
        """Before training, say what is labelled and make the loaders once.

        Raises:
            ValueError: a stream without images, or a batch that devices and accumulation cannot share evenly.
        """
        if stage != "fit":
            return
        announce(self.annotation_dir(), self.annotation_report(), self.supervision.kind)
        if protocol := known_protocol(self.lists()[0]):
            rank_zero_only(print)(f"the labelled list is {protocol}")
        if self.unlabeled_batch_size and not self.lists()[1]:
            raise ValueError(
                "data.unlabeled_batch_size asks for unlabelled images, but every training image is labelled: "
                "set it to 0, use supervision.kind=image_subset, or data.unlabeled_pool=all"
            )
        if not self.unlabeled_batch_size and self.supervision.kind == "none":
            raise ValueError("supervision kind none labels no image: set data.unlabeled_batch_size above 0")
        self.train_dataloader(), self.val_dataloader()  # raise what is wrong before the run begins

    def _micro_batch(self, batch: int) -> int:
        if batch % self.accumulation:
            raise ValueError(
                f"a batch of {batch} cannot be split into {self.accumulation} accumulated parts: change "
                "data.batch_size, data.unlabeled_batch_size or trainer.accumulate_grad_batches"
            )
        return batch // self.accumulation

    def _stream_lengths(self) -> dict[str, tuple[list[str], int]]:
        """Per stream: its list and its images per forward pass over all devices."""
        labeled, unlabeled = self.lists()
        both = {"labeled": (labeled, self.batch_size), "unlabeled": (unlabeled, self.unlabeled_batch_size)}
        return {stream: (both[stream][0], self._micro_batch(both[stream][1])) for stream in self.streams}

    def train_dataloader(self) -> CombinedLoader:
        """Batches of all streams, as long as the longest list; a shorter one is repeated."""
        streams = self._stream_lengths()
        steps = max(max(1, len(names) // batch) for names, batch in streams.values())
        annotations = self.annotation_dir()
        loaders = {
            stream: self._loader(
                TrainingImages(names, self._reader(), self.size, annotations if stream == "labeled" else None),
                batch_sampler=EpochSampler(len(names), batch, steps, self.seed, self.trainer),
            )
            for stream, (names, batch) in streams.items()
        }
        return CombinedLoader(loaders, "min_size")

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The images of `predict_folder`, whose masks are 255 everywhere."""
        if self.predict_folder is None:
            raise ValueError("which images? give `weakseg predict ... --images FOLDER`")
        files = find_images(self.predict_folder)
        return self._evaluation_loader(list(files), partial(_read_file, files, self.size), _no_mask)

    def _evaluation_loader(
        self,
        split: Split | list[str],
        image: Callable[[str], Small] | None = None,
        mask: Callable[[str], Array | None] | None = None,
    ) -> DataLoader[Any]:
        names = split if isinstance(split, list) else self.names(split)
        if not names:
            raise ValueError(f"the {split} split of {type(self).__name__} has no image: give it some")
        # One image a time, unpadded, and no image twice: the same numbers on any number of processes.
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        images = WholeImages(names[rank::ranks], image or self._reader(), mask or self.mask)
        return self._loader(images, batch_size=1)

    def _read(self, name: str) -> Small:
        return shrink(self.image(name), self.size)

    def _reader(self) -> Callable[[str], Small]:
        """How loaders get an image. Called before their processes start, so that these share what is kept."""
        if self.cache == "none":
            return self._read
        if self._cache is None and self.cache == "ram":
            self._cache = RamCache([*self.names("train"), *self.names("val")], self.size, self._read)
        elif self._cache is None:
            self._cache = DiskCache(self.cache_dir / "images", self.size, self._read, self.image_file)
            self._cache.path(self.names("train")[0])  # raises what is wrong before the run begins
        return self._cache.get

    def __getstate__(self) -> dict[str, Any]:
        # What a spawned loader process gets; the trainer holds what cannot be sent.
        return {**self.__dict__, "trainer": None}

    def _loader(self, dataset: Dataset[Any], **how: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=one_thread,
            **how,
        )

    # On the device -------------------------------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Add the random numbers of each training sample's augmentation."""
        # Drawn on the host, where the keys are: asking the device for them would make it wait.
        for number, stream in enumerate(STREAMS):
            if stream in batch:
                seed = self.seed * len(STREAMS) + number
                batch[stream]["draws"] = draw_uniform(seed, batch[stream]["key"])
                if stream == "unlabeled" and self.strong_views:
                    batch[stream]["strong_draws"] = draw_strong(seed, batch[stream]["key"], self.strong_views)
        return batch

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """The batch of `common.ops.batch`: training streams augmented, evaluation images as they are."""
        if "image" not in batch:
            return {stream: self._training_stream(batch[stream]) for stream in STREAMS if stream in batch}
        mask = batch["mask"].long()
        valid = torch.ones(mask.shape, dtype=torch.bool, device=mask.device)
        return {**batch, "image": batch["image"].float().div_(255), "mask": mask, "valid": valid}

    def _training_stream(self, stream: dict[str, Any]) -> dict[str, Any]:
        image = stream["image"].float().div_(255)
        extent, draws, strong = stream.pop("extent"), stream.pop("draws"), stream.pop("strong_draws", None)
        image, mask, valid = random_crop(image, stream["mask"], extent, draws, self.crop, self.scale, self.flip)
        if strong is not None:
            views = [strong_view(image, strong[:, view]) for view in range(strong.shape[1])]
            stream["strong"] = torch.stack(views, 1)
        return {**stream, "image": image, "mask": mask, "valid": valid}


def _read_file(files: Mapping[str, Path], box: tuple[int, int], name: str) -> Small:
    return shrink(read_image(files[name]), box)


def _no_mask(name: str) -> None:
    """For images to predict."""
