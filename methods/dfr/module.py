"""Dynamic feature regularised loss (Zhang, Xiao & Zhao 2021, arXiv 2108.01296), in this project's reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from common.model.module import SegmentationModule, StepOutput
from common.ops.affinity import Kernel
from common.ops.batch import IGNORE, Batch, all_images
from common.ops.tensors import at_least_fp32, valid_cells
from methods.dfr.head import FeatureConsistencyHead
from methods.dfr.losses import (
    KernelName,
    cell_labels,
    draw_cells,
    dynamic_kernel,
    feature_regularizer,
    pair_consistency,
)


class DFR(SegmentationModule):
    """Dynamic feature regularised loss: pCE, a kernel of learned features (Zhang et al. 2021, 2108.01296).

    The abstract is all that we know of the paper; formulas and values are ours, see README.md of this folder. The
    kernel relates cells of `stride` x `stride` pixels by position, colour and the head's embedding; it is
    recomputed in each step and takes no gradient. The head learns from pairs of labelled (and confident) cells.

    Args:
        dfr_weight: of the regularised loss.
        fch_weight: of the pair loss; 0 leaves the head at its random start, frozen.
        kernel: `product` of shallow and deep kernel, their `sum` (halves), `shallow` (position and colour) or `deep`
            (position and embedding).
        stride: probabilities and colours are averaged over cells of stride x stride pixels.
        radius: of the kernel's window, in cells.
        sigma_xy: bandwidth of position in pixels of the batch's images.
        sigma_rgb: bandwidth of colour in grey levels, of RGB in 0..255.
        sigma_f: bandwidth of the embedding's distance, in [0, 2].
        fch_pixels: cells drawn per image for the pair loss, classes in turn.
        confidence: probability above which a cell without a label counts as its argmax.
        confident_start: fraction of the run after which it does.
        start: fraction of the run before the regularised loss begins.
        kwargs: see `common.model.module.SegmentationModule`.

    Raises:
        ValueError: options that contradict each other.
    """

    def __init__(
        self,
        num_classes: int,
        dfr_weight: float = 0.1,
        fch_weight: float = 0.1,
        kernel: KernelName = "product",
        stride: int = 4,
        radius: int = 5,
        sigma_xy: float = 24.0,
        sigma_rgb: float = 15.0,
        sigma_f: float = 0.5,
        fch_pixels: int = 512,
        confidence: float = 0.9,
        confident_start: float = 0.1,
        start: float = 0.005,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if min(dfr_weight, fch_weight) < 0 or dfr_weight + fch_weight == 0:
            raise ValueError("dfr_weight and fch_weight must be >= 0 and not both 0: method Supervised is pCE alone")
        if min(sigma_xy, sigma_rgb, sigma_f) <= 0:
            raise ValueError("sigma_xy, sigma_rgb and sigma_f must be positive")
        if min(stride, radius) < 1 or fch_pixels < 2 or self.network.stride % stride:
            raise ValueError(
                f"stride must divide the network's {self.network.stride} and radius be >= 1, fch_pixels >= 2; "
                f"got {stride}, {radius} and {fch_pixels}"
            )
        if not all(0 <= share <= 1 for share in (confidence, confident_start, start)):
            raise ValueError("confidence, confident_start and start lie in [0, 1]")
        self.dfr_weight, self.fch_weight, self.kernel = dfr_weight, fch_weight, kernel
        self.stride, self.radius, self.fch_pixels = stride, radius, fch_pixels
        self.sigma_xy, self.sigma_rgb, self.sigma_f = sigma_xy, sigma_rgb, sigma_f
        self.confidence, self.confident_start, self.start = confidence, confident_start, start
        self.head: FeatureConsistencyHead | None = None
        if fch_weight or kernel != "shallow":
            self.head = FeatureConsistencyHead(self.network.decoder_channels).requires_grad_(fch_weight > 0)
        self.confident_share, self.confident_precision = MeanMetric(), MeanMetric()

    def compute_loss(self, batch: Batch) -> StepOutput:
        image, mask, valid = all_images(batch["labeled"], batch.get("unlabeled"))
        _, decoded = self.network.features(image)
        logits = self.network.classify(decoded, *image.shape[-2:])
        pce = self.labeled_loss(logits, mask, valid)
        loss, logs = pce, {"pce": pce}

        cells = valid_cells(valid, self.stride)
        p = F.avg_pool2d(at_least_fp32(logits).softmax(1), self.stride)
        embedding = None if self.head is None else self.embed(self.head, decoded, image)
        if self.fch_weight and embedding is not None:
            keys = torch.cat([batch[name]["key"] for name in ("labeled", "unlabeled") if name in batch])
            labels = cell_labels(mask, cells, self.stride)
            consistency, more = self.consistency(embedding, p.detach(), labels, cells, keys)
            loss, logs = loss + self.fch_weight * consistency, {**logs, "fch": consistency, **more}
        if self.dfr_weight and self.progress >= self.start:
            regularizer, mass = feature_regularizer(p, self.kernel_of(image, embedding, cells), cells)
            loss, logs = loss + self.dfr_weight * regularizer, {**logs, "dfr": regularizer, "mass": mass}
        return StepOutput(loss, logs)

    def embed(self, head: FeatureConsistencyHead, decoded: Tensor, image: Tensor) -> Tensor:
        """Unit vectors (B, D, h, w) of the cells, from the decoder's output, which covers the padded image."""
        height, width = image.shape[-2:]
        padded = self.network.padded_size(height, width)
        embedding: Tensor = head(decoded, (padded[0] // self.stride, padded[1] // self.stride))
        return embedding[..., : height // self.stride, : width // self.stride]

    def consistency(
        self, embedding: Tensor, p: Tensor, labels: Tensor, cells: Tensor, key: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The pair loss of drawn cells, and what to log of it; p, labels and cells are those of the cells."""
        candidates, logs = labels, {}
        if self.progress >= self.confident_start:
            highest, guess = p.max(1)
            sure = (highest > self.confidence) & (labels == IGNORE) & cells
            candidates = torch.where(sure, guess, labels)
            logs["confident"] = sure.sum() / cells.sum().clamp(min=1)
        index, drawn = draw_cells(
            key, candidates.flatten(1), (labels != IGNORE).flatten(1), self.fch_pixels, self.draw_seed()
        )
        vectors = embedding.flatten(2).gather(2, index[:, None].expand(-1, embedding.shape[1], -1))
        loss, cosines = pair_consistency(vectors, drawn)
        return loss, {**logs, **cosines}

    def kernel_of(self, image: Tensor, embedding: Tensor | None, cells: Tensor) -> Kernel:
        """The dynamic kernel of the images' cells."""
        return dynamic_kernel(
            F.avg_pool2d(255 * image[:, :3], self.stride),
            embedding,
            cells,
            kind=self.kernel,
            sigma_xy=self.sigma_xy / self.stride,
            sigma_rgb=self.sigma_rgb,
            sigma_f=self.sigma_f,
            radius=self.radius,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if self.fch_weight and self.head is not None:
            groups[-1]["params"] += list(self.head.parameters())
        return groups

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """As the base's; and how many pixels are confident, and how many of them right, in per cent: where truth is
        known, which training does not see."""
        labels, p = self.predict_labels(self.network, batch, refine=False)
        self._metric("network").update(labels, batch["mask"])
        known = batch["mask"] != IGNORE
        sure = (p.amax(1) > self.confidence) & known
        self.confident_share.update(100 * sure.float(), known.float())
        self.confident_precision.update(100 * (labels == batch["mask"]).float(), sure.float())
        self.log("val/confident", self.confident_share)
        self.log("val/confident_precision", self.confident_precision)
