"""Complementary patch network (Zhang et al., ICCV 2021, arXiv 2108.03852)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from common.model.adapt import batch_norms
from common.model.cam import CamNetwork
from common.model.cam_module import CamModule
from common.model.module import StepOutput
from common.model.networks import NetworkConfig, SegmentationNetwork
from common.ops.batch import Batch, SegBatch
from common.ops.cam import Normalisation
from common.ops.distributed import global_mean
from common.ops.losses import tag_loss
from common.ops.tensors import at_least_fp32
from methods.cpn.correlation import Correlation
from methods.cpn.losses import (
    complementary,
    hidden_cells,
    hidden_pixels,
    looked_at,
    minimum_pool,
    normalised,
    region_loss,
    resized_mean,
    triplet_loss,
)


class CPN(CamModule):
    """Complementary patches: maps of an image and of two parts of it, hidden from each other (Zhang et al. 2021).

    L = L_cls + tcp_weight * L_tcp + cpcr_weight * L_cpcr, on one network that sees the image and both parts; maps are
    refined by pixel and region correlation. From tags, as CAM; its other options are those of
    `common.model.cam_module.CamModule`.

    Args:
        segments: superpixels of an image, a part of which is hidden.
        cell: hide squares of so many pixels instead, at most half of the crop; null: superpixels.
        tcp_weight: of the difference between the image's maps and the sum of the parts'.
        cpcr_weight: of the difference between what a part lacks and the other part's maps.
        prcm: refine by the regions of the classes too, not by pixels alone.
        normalisation: of maps to [0, 1], see `common.ops.cam.normalise_cam`.
        kwargs: see `common.model.cam_module.CamModule`.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        num_classes: int,
        segments: int = 300,
        cell: int | None = None,
        tcp_weight: float = 1.0,
        cpcr_weight: float = 1.0,
        prcm: bool = True,
        normalisation: Normalisation = "minmax",
        **kwargs: Any,
    ) -> None:
        self.prcm = prcm
        super().__init__(num_classes, normalisation=normalisation, **kwargs)
        if not 2 <= segments <= 65535 or (cell is not None and cell < 1) or min(tcp_weight, cpcr_weight) < 0:
            raise ValueError(
                f"segments must be 2 to 65535, cell at least 1 and weights >= 0, got {segments}, {cell}, {tcp_weight} "
                f"and {cpcr_weight}"
            )
        self.cell, self.superpixels = cell, 0 if cell else segments
        self.tcp_weight, self.cpcr_weight = tcp_weight, cpcr_weight

    def make_network(self, config: NetworkConfig) -> CamNetwork:
        network = super().make_network(config)
        network.refine = Correlation([config.channels, *network.model.encoder.out_channels[-2:]], self.prcm)
        torch.nn.init.xavier_uniform_(network.model.segmentation_head[0].weight)
        return network

    def setup(self, stage: str) -> None:
        super().setup(stage)
        crop = cast(Any, self.trainer).datamodule.crop if stage == "fit" else None
        if crop and self.cell and self.cell > min(crop) / 2:
            raise ValueError(
                f"cells of {self.cell} pixels hide all or nothing of a crop of {crop[0]} x {crop[1]} too often: set "
                f"model.cell to at most {min(crop) // 2}"
            )

    def compute_loss(self, batch: Batch) -> StepOutput:
        labeled = batch["labeled"]
        image, valid, tags = labeled["image"], labeled["valid"], labeled["tags"][:, 1:]
        first, second, share = complementary(image, self.hidden(labeled), valid, self.network.mean)
        pair, (objects, t) = (share < 1).float(), looked_at(tags)
        views = [self.seen(image, valid, objects)]
        with kept_statistics(self.network):
            views += [self.seen(part, valid, objects) for part in (first, second)]
        scores, activations, refined = zip(*views, strict=True)

        counts, logits = torch.cat([torch.ones_like(pair), pair, pair]), torch.cat(scores)
        tag = tag_loss(logits, tags.repeat(3, 1), counts)
        pooled = torch.cat([minimum_pool(r, t, valid) for r in refined])
        least = global_mean((pooled * counts).sum(), counts.sum())

        weights = [torch.ones_like(share), share, 1 - share]
        a, r = (
            [normalised(one, valid) * (w[:, None] * t)[:, :, None, None] for one, w in zip(maps, weights, strict=True)]
            for maps in (activations, refined)
        )
        tcp, cpcr = (loss(a, r, valid, pair, tags.shape[1]) for loss in (triplet_loss, region_loss))
        loss = tag + least + self.tcp_weight * tcp + self.cpcr_weight * cpcr
        right = ((scores[0].detach() > 0) == tags).float().mean()
        shown = global_mean((share * pair).sum(), pair.sum())
        logs = {"tag": tag, "least": least, "tcp": tcp, "cpcr": cpcr, "right": right, "shown": shown}
        return StepOutput(loss, logs)

    def hidden(self, labeled: SegBatch) -> Tensor:
        """The pixels (B, H, W) bool that the first part hides."""
        if self.cell is None:
            return hidden_pixels(labeled["superpixels"], labeled["key"], self.draw_seed())
        height, width = labeled["image"].shape[-2:]
        return hidden_cells((height, width), self.cell, labeled["key"], self.draw_seed())

    def seen(self, image: Tensor, valid: Tensor, objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (B, C) of all objects, and activations and refined maps (B, T, H, W) of `objects` (B, T) at the
        image's size: of VOC's twenty an image has one or two, and the others' maps would be most of a step."""
        height, width = image.shape[-2:]
        size = self.network.padded_size(height, width)
        maps = [at_least_fp32(one) for one in self.classifier.both(image, self.cell_cover(image, valid))]
        some = (torch.take_along_dim(one, objects[:, :, None, None], 1) for one in maps)
        a, r = (F.interpolate(one, size, mode="bilinear", align_corners=True)[..., :height, :width] for one in some)
        return resized_mean(maps[0], valid, size), a, r


@contextmanager
def kept_statistics(network: SegmentationNetwork) -> Iterator[None]:
    """BatchNorm normalises as in training and leaves its running statistics as they are: parts of images are not what
    the network is evaluated on."""
    norms: list[Any] = batch_norms(network)
    before = [(norm, norm.momentum) for norm in norms]
    for norm, _ in before:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in before:
            norm.momentum = momentum
