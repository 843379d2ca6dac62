"""The loaders of a data module. They need no trainer: without one they are those of a single process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset

from datamodules.annotation import class_counts, object_tags
from datamodules.augmentation import stream_seed
from datamodules.cache import DiskCache, RamCache, Small
from datamodules.images import Cut, TrainingImages, WholeImages
from datamodules.parallel import Loader, init_worker
from datamodules.samplers import EpochSampler, Order, class_order, group_order
from datamodules.splits import Split
from datamodules.superpixels import Superpixels
from datamodules.supervision import TAGGED

if TYPE_CHECKING:
    from datamodules.base import SegmentationDataModule


def training_loader(data: SegmentationDataModule) -> CombinedLoader:
    """Batches of all streams, as long as the longest list; a shorter one is repeated."""
    labeled, unlabeled = data.lists()
    if data.unlabeled_batch_size and not unlabeled:
        raise ValueError(
            "every training image is labelled, so that there is none for the unlabelled stream: set "
            "data.unlabeled_pool=all to learn from them without their labels too"
        )
    if data.strong_views and not data.unlabeled_batch_size:
        raise ValueError(
            f"data.strong_views={data.strong_views} is the number of views of an unlabelled image, and there is none: "
            "set data.unlabeled_batch_size above 0"
        )
    if not data.streams:
        raise ValueError("supervision kind none labels no image: set data.unlabeled_batch_size above 0")
    both = {"labeled": (labeled, data.batch_size), "unlabeled": (unlabeled, data.unlabeled_batch_size)}
    streams = {stream: (both[stream][0], _part(both[stream][1], data.accumulation)) for stream in data.streams}
    # Whole steps of the optimizer, as many as without accumulation: the epoch's last one would lack images.
    steps = data.accumulation * max(max(1, len(both[stream][0]) // both[stream][1]) for stream in streams)
    read, annotations = reader(data), data.annotation_dir()
    orders: dict[str, Order] = {}
    tags = object_tags(annotations, labeled) if data.supervision.kind in TAGGED else None
    if data.class_sampling is not None:
        counts = class_counts(annotations, labeled, data.num_classes)
        orders["labeled"] = partial(class_order, counts, data.class_sampling)
    if data.group > 1:
        if tags is None or not tags.any():
            raise ValueError("no training image has a tag: there is nothing to make groups of, and nothing to learn")
        orders["labeled"] = partial(group_order, tags, data.group)
    superpixels = None
    if data.superpixels:
        kept = annotations / f"superpixels-{data.superpixels}"
        superpixels = Superpixels(data.superpixels, None if data.size is None else kept)
    cuts = {s: None if data.size else Cut(stream_seed(data.seed, s), data.crop, data.scale) for s in streams}
    loaders = {
        stream: loader(
            data,
            TrainingImages(
                names,
                read,
                data.size,
                *((annotations, cuts[stream], superpixels, tags) if stream == "labeled" else (None, cuts[stream])),
            ),
            batch_sampler=EpochSampler(len(names), batch, steps, data.seed, data.trainer, orders.get(stream)),
        )
        for stream, (names, batch) in streams.items()
    }
    return CombinedLoader(loaders, "min_size")


def _part(batch: int, accumulation: int) -> int:
    """Images that one forward pass over all devices sees, of a step's batch."""
    if batch % accumulation:
        raise ValueError(
            f"a batch of {batch} cannot be split into {accumulation} accumulated parts: change "
            "data.batch_size, data.unlabeled_batch_size or trainer.accumulate_grad_batches"
        )
    return batch // accumulation


def split_loader(data: SegmentationDataModule, split: Split) -> DataLoader[Any]:
    """Whole images of a split, one by one, with their masks and, where these are the label, their tags."""
    if not data.names(split):
        raise ValueError(f"the {split} split of {type(data).__name__} has no image: give it some")
    tags = data.tags if data.supervision.kind in TAGGED else None
    images = WholeImages(shared(data, data.names(split)), reader(data), data.mask, tags)
    return loader(data, images, batch_size=1)


def shared(data: SegmentationDataModule, names: Sequence[str]) -> Sequence[str]:
    """This process's part of the images to evaluate. They are evaluated one by one, unpadded, none twice, so that the
    numbers are the same on any number of processes.

    Raises:
        ValueError: on all processes, if there is none for one of them, for which the others would wait.
    """
    rank, ranks = (data.trainer.global_rank, data.trainer.world_size) if data.trainer else (0, 1)
    if len(names) < ranks:
        raise ValueError(f"{len(names)} images to evaluate cannot be shared by {ranks} devices: use {len(names)}")
    return names[rank::ranks]


def reader(data: SegmentationDataModule) -> Callable[[str], Small]:
    """How loaders get an image. Called before their processes start, so that these share what is kept."""
    if data.cache == "none":
        return data.small_image
    if data.kept is None and data.cache == "ram" and data.size is not None:  # None is refused
        data.kept = RamCache([*data.names("train"), *data.names("val")], data.size, data.small_image, data.channels)
    elif data.kept is None:
        data.kept = DiskCache(
            data.cache_dir / "images", data.size, data.small_image, data.image_file, repr(data.reading()), data.channels
        )
        data.kept.path(data.names("train")[0])  # raises what is wrong before the run begins
    return data.kept.get


def loader(data: SegmentationDataModule, dataset: Dataset[Any], **how: Any) -> DataLoader[Any]:
    """A loader with the processes that the data module asks for; `how` says what forms a batch."""
    workers = how.pop("num_workers", data.num_workers)
    return Loader(
        dataset,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=init_worker,
        **how,
    )
