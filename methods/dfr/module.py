"""Dynamic feature regularised loss (Zhang, Xiao & Zhao 2021, arXiv 2108.01296), in this project's reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from common.model.ema import EMATeacher
from common.model.module import SegmentationModule, StepOutput
from common.model.networks import SegmentationNetwork
from common.ops.batch import IGNORE, Batch, all_images
from common.ops.losses import partial_cross_entropy
from common.ops.tensors import at_least_fp32, valid_cells
from methods.dfr.head import FeatureConsistencyHead
from methods.dfr.losses import (
    KernelName,
    cell_labels,
    draw_cells,
    dynamic_kernel,
    feature_regularizer,
    gated_kernel,
    pair_consistency,
)


class DFR(SegmentationModule):
    """Dynamic feature regularised loss: pCE, a kernel of learned features (Zhang et al. 2021, 2108.01296).

    The abstract is all that we know of the paper; formulas and values are ours, see README.md of this folder. The
    kernel relates cells of `stride` x `stride` pixels by position, colour and the head's embedding; it is computed anew
    in each step and takes no gradient. The head learns from pairs of labelled (and confident) cells.

    Args:
        dfr_weight: of the regularised loss.
        fch_weight: of the pair loss; 0 leaves the head at its random start, frozen.
        kernel: `product` of shallow and deep kernel, their `sum`, `shallow` (position and colour) or `deep` (position
            and embedding).
        deep_source: the embedding of the network itself (`online`), or of a moving average of network and head (`ema`).
        decay: of that average per step.
        stride: probabilities and colours are averaged over cells of stride x stride pixels.
        radius: of the kernel's window, in cells.
        sigma_xy: bandwidth of position in pixels of the batch's images.
        sigma_rgb: bandwidth of colour in grey levels, of RGB in 0..255.
        sigma_f: bandwidth of the embedding's distance, in [0, 2].
        eta: share of the deep kernel with `kernel: sum`.
        norm: divide the regularised loss by the number of cells (`pixels`) or by the kernel's mass (`mass`).
        gate: weigh labelled cells by one minus their highest probability (`labelled`), or not (`none`).
        fch_input: the head sees the `decoder`'s output, or `multi`: the encoder's stages.
        fch_detach_input: the pair loss trains the head alone.
        fch_targets: pairs of labelled cells (`scribble`), and of confident ones too (`scribble+confident`).
        fch_pixels: cells drawn per image, classes in turn.
        margin: cosine at which a pair counts as even.
        tau: temperature of the pair score, in units of cosine.
        confidence: probability above which a cell without a label counts as its argmax.
        confident_start: fraction of the run after which it does.
        start: fraction of the run before the regularised loss begins.
        layer_decay: each layer of the encoder learns this times as fast as the next one; 1: all alike.
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
        deep_source: Literal["online", "ema"] = "online",
        decay: float = 0.99,
        stride: int = 4,
        radius: int = 5,
        sigma_xy: float = 24.0,
        sigma_rgb: float = 15.0,
        sigma_f: float = 0.5,
        eta: float = 0.5,
        norm: Literal["pixels", "mass"] = "pixels",
        gate: Literal["none", "labelled"] = "none",
        fch_input: Literal["decoder", "multi"] = "decoder",
        fch_detach_input: bool = False,
        fch_targets: Literal["scribble", "scribble+confident"] = "scribble+confident",
        fch_pixels: int = 512,
        margin: float = 0.5,
        tau: float = 0.1,
        confidence: float = 0.9,
        confident_start: float = 0.1,
        start: float = 0.005,
        layer_decay: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if min(dfr_weight, fch_weight) < 0 or dfr_weight + fch_weight == 0:
            raise ValueError("dfr_weight and fch_weight must be >= 0 and not both 0: method Supervised is pCE alone")
        if min(sigma_xy, sigma_rgb, sigma_f, tau) <= 0 or not -1 <= margin <= 1:
            raise ValueError("sigma_xy, sigma_rgb, sigma_f and tau must be positive, margin a cosine in [-1, 1]")
        if min(stride, radius) < 1 or fch_pixels < 2 or self.network.stride % stride:
            raise ValueError(
                f"stride must divide the network's {self.network.stride} and radius be >= 1, fch_pixels >= 2; "
                f"got {stride}, {radius} and {fch_pixels}"
            )
        if not all(0 <= share <= 1 for share in (eta, confidence, confident_start, start)) or not 0 < layer_decay <= 1:
            raise ValueError("eta, confidence, confident_start and start lie in [0, 1], layer_decay in (0, 1]")
        if deep_source == "ema" and (kernel == "shallow" or dfr_weight == 0):
            raise ValueError("deep_source ema is that of a deep kernel: set kernel, or deep_source to online")
        self.dfr_weight, self.fch_weight, self.kernel, self.stride, self.radius = (
            dfr_weight, fch_weight, kernel, stride, radius
        )  # fmt: skip
        self.sigma_xy, self.sigma_rgb, self.sigma_f, self.eta = sigma_xy, sigma_rgb, sigma_f, eta
        self.norm, self.gate, self.fch_input, self.fch_detach_input = norm, gate, fch_input, fch_detach_input
        self.fch_targets, self.fch_pixels, self.margin, self.tau = fch_targets, fch_pixels, margin, tau
        self.confidence, self.confident_start, self.start = confidence, confident_start, start
        self.layer_decay = layer_decay
        self.head: FeatureConsistencyHead | None = None
        if fch_weight or (dfr_weight and kernel != "shallow"):
            self.head = FeatureConsistencyHead(self.input_channels()).requires_grad_(fch_weight > 0)
        self.teacher: EMATeacher[SegmentationNetwork] | None = None
        if deep_source == "ema" and self.head is not None:
            self.teacher = EMATeacher(self.network, decay, warmup=True)
            self.head_teacher = EMATeacher(self.head, decay, warmup=True)
        self.confident_share, self.confident_precision = MeanMetric(), MeanMetric()

    def compute_loss(self, batch: Batch) -> StepOutput:
        image, mask, valid = all_images(batch["labeled"], batch.get("unlabeled"))
        maps, decoded = self.network.features(image)
        logits = self.network.classify(decoded, *image.shape[-2:])
        pce = partial_cross_entropy(logits, mask, valid)
        loss, logs = pce, {"pce": pce}

        cells = valid_cells(valid, self.stride)
        labels = cell_labels(mask, cells, self.stride)
        p = F.avg_pool2d(at_least_fp32(logits).softmax(1), self.stride)
        embedding = None if self.head is None else self.embed(self.head, maps, decoded, image)
        if self.fch_weight and embedding is not None:
            keys = torch.cat([batch[name]["key"] for name in ("labeled", "unlabeled") if name in batch])
            consistency, more = self.consistency(embedding, p.detach(), labels, cells, keys)
            loss, logs = loss + self.fch_weight * consistency, {**logs, "fch": consistency, **more}
        if self.dfr_weight and self.progress >= self.start:
            if self.teacher is not None:
                with torch.no_grad():
                    embedding = self.embed(self.head_teacher.network, *self.teacher.network.features(image), image)
            regularizer, mass = self.regularizer(p, image, embedding, labels, cells)
            loss, logs = loss + self.dfr_weight * regularizer, {**logs, "dfr": regularizer, "mass": mass}
        return StepOutput(loss, logs)

    def input_channels(self) -> list[int]:
        """Channels of the maps that the head sees."""
        if self.fch_input == "multi":  # smp's first map may be the image and its second be empty
            return [channels for channels in self.network.model.encoder.out_channels if channels > 3]
        return [self.network.decoder_channels]

    def embed(self, head: FeatureConsistencyHead, maps: list[Tensor], decoded: Tensor, image: Tensor) -> Tensor:
        """Unit vectors (B, D, h, w) of the cells, from what the network's `features` gave of the image."""
        seen = [one for one in maps if one.shape[1] > 3] if self.fch_input == "multi" else [decoded]
        if self.fch_detach_input:
            seen = [one.detach() for one in seen]
        height, width = image.shape[-2:]
        padded = self.network.padded_size(height, width)
        embedding = head(seen, (padded[0] // self.stride, padded[1] // self.stride))
        return embedding[..., : height // self.stride, : width // self.stride]

    def consistency(
        self, embedding: Tensor, p: Tensor, labels: Tensor, cells: Tensor, key: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The pair loss of drawn cells, and what to log of it; p, labels and cells are those of the cells."""
        candidates, logs = labels, {}
        if self.fch_targets == "scribble+confident" and self.progress >= self.confident_start:
            highest, guess = p.max(1)
            sure = (highest > self.confidence) & (labels == IGNORE) & cells
            candidates = torch.where(sure, guess, labels)
            logs["confident"] = sure.sum() / cells.sum().clamp(min=1)
        index, drawn = draw_cells(
            key, candidates.flatten(1), (labels != IGNORE).flatten(1), self.fch_pixels, self.draw_seed()
        )
        vectors = embedding.flatten(2).gather(2, index[:, None].expand(-1, embedding.shape[1], -1))
        loss, cosines = pair_consistency(vectors, drawn, self.margin, self.tau)
        return loss, {**logs, **cosines}

    def regularizer(
        self, p: Tensor, image: Tensor, embedding: Tensor | None, labels: Tensor, cells: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss over the dynamic kernel, and the kernel's mass per cell."""
        kernel = dynamic_kernel(
            F.avg_pool2d(255 * image, self.stride),
            embedding,
            cells,
            kind=self.kernel,
            sigma_xy=self.sigma_xy / self.stride,
            sigma_rgb=self.sigma_rgb,
            sigma_f=self.sigma_f,
            eta=self.eta,
            radius=self.radius,
        )
        if self.gate == "labelled":
            kernel = gated_kernel(kernel, torch.where(labels != IGNORE, 1 - p.amax(1), 1.0))
        return feature_regularizer(p, kernel, cells, self.norm)

    def after_step(self) -> None:
        if self.teacher is not None and self.head is not None:
            self.teacher.update(self.network)
            self.head_teacher.update(self.head)

    def parameter_groups(self) -> list[dict[str, Any]]:
        encoder, decoder = super().parameter_groups()
        head = [] if self.head is None else [p for p in self.head.parameters() if p.requires_grad]
        decoder["params"] += head
        if self.layer_decay == 1:
            return [encoder, decoder]
        layers = self.network.encoder_layers()
        scales = [self.encoder_lr_scale * self.layer_decay ** (len(layers) - 1 - n) for n in range(len(layers))]
        return [*({"params": p, "lr_scale": s} for p, s in zip(layers, scales, strict=True)), decoder]

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
