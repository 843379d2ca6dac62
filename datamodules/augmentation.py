"""From a loader's batch to the one that methods get (`common.ops.batch`): random numbers, then the device's part."""

from __future__ import annotations

from typing import Any

import torch

from datamodules.transforms import draw_strong, draw_uniform, random_crop, strong_view

LARGE = 2**24  # pixels of an evaluation image, or mask, that stays in bytes
STREAMS = ("labeled", "unlabeled")  # in this order: their augmentation is seeded by it


def stream_seed(seed: int, stream: str) -> int:
    """What the augmentation of a stream is drawn from, with each sample's key."""
    return seed * len(STREAMS) + STREAMS.index(stream)


def with_draws(batch: dict[str, Any], seed: int, strong_views: int) -> dict[str, Any]:
    """A training batch with the random numbers of each sample's augmentation; an evaluation batch as it is.

    They are drawn on the host, where the keys are: asking the device for them would make it wait.
    """
    ready = dict(batch)
    for stream in STREAMS:
        if stream in batch:
            own, key = stream_seed(seed, stream), batch[stream]["key"]
            ready[stream] = {**batch[stream], "draws": draw_uniform(own, key)}
            if stream == "unlabeled" and strong_views:
                ready[stream]["strong_draws"] = draw_strong(own, key, strong_views)
    return ready


def augmented(stream: dict[str, Any], crop: tuple[int, int], scale: tuple[float, float], flip: bool) -> dict[str, Any]:
    """One stream of `with_draws` as a `SegBatch`, on the device: cropped by `random_crop`, with its strong views if it
    has numbers for them; `superpixels` are cut as the mask is, 0 at padding."""
    stream = dict(stream)
    extent, draws, strong = stream.pop("extent"), stream.pop("draws"), stream.pop("strong_draws", None)
    origin = stream.pop("origin", None)
    image = stream["image"].float().div_(255)
    planes, segments = stream["mask"], stream.get("superpixels")
    if segments is not None:
        planes = torch.stack([planes.to(segments.dtype), segments], 1)
    image, mask, valid = random_crop(image, planes, extent, draws, crop, scale, flip, origin)
    if segments is not None:
        mask, segments = mask.unbind(1)
        stream["superpixels"] = segments.masked_fill(~valid, 0)
    if strong is not None:
        stream["strong"] = torch.stack([strong_view(image, strong[:, view]) for view in range(strong.shape[1])], 1)
    return {**stream, "image": image, "mask": mask, "valid": valid}


def whole(batch: dict[str, Any]) -> dict[str, Any]:
    """An evaluation batch as a `SegBatch`: the image at the training size, the mask at the original one.

    An image or a mask of more than LARGE pixels stays uint8, for `common.model.inference.as_float` and
    `common.model.metrics`, which take it part by part.
    """
    image, mask = batch["image"], batch["mask"]
    if image.shape[-2] * image.shape[-1] <= LARGE:
        image = image.float().div_(255)
    if mask.shape[-2] * mask.shape[-1] <= LARGE:
        mask = mask.long()
        valid = torch.ones(mask.shape, dtype=torch.bool, device=mask.device)
    else:
        valid = torch.ones((), dtype=torch.bool, device=mask.device).expand(mask.shape)
    return {**batch, "image": image, "mask": mask, "valid": valid}
