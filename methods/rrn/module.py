"""RRN-style: cross pseudo-supervision with judged and weighted regions (Chen et al. 2023, arXiv 2304.11539)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from common.model.inference import predict_probabilities
from common.model.module import SegmentationModule, StepOutput
from common.model.networks import NetworkConfig, SegmentationNetwork, build_network
from common.model.optim import ChainedOptimizer
from common.ops.batch import IGNORE, Batch, SegBatch
from common.ops.distributed import global_mean
from common.ops.losses import partial_cross_entropy
from common.ops.mixing import box_masks, mix, partners
from common.ops.tensors import at_least_fp32, one_hot
from methods.rrn.diagnostics import RegionReport
from methods.rrn.discriminator import STRIDE, RegionDiscriminator, class_planes
from methods.rrn.losses import (
    Diversity,
    Norm,
    Score,
    corrected_labels,
    discriminator_loss,
    dynamic_region_loss,
    feature_matching_loss,
    local_selection_loss,
    region_reliability,
    region_scores,
    region_sums,
)


class MeanLogits(nn.Module):
    """The ensemble: the mean of several networks' logits."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([network(image) for network in self.networks]).mean(0)


class RRN(SegmentationModule):
    """Two networks label each other's CutMix, regions judged and weighted (Chen et al. 2023, 2304.11539); or plain CPS.

    Discriminators judge each region of a pseudo-label, and bad ones are left out of the selection loss; where the
    networks differ, a region counts less in the dynamic region loss. Without both and without discriminators this is
    CPS with CutMix (Chen et al. 2021, 2106.01226): `selection_weight: 0, matching_weight: 0, diversity: none`.
    Evaluated: the first network (`val/miou`; `network` in all that predicts), the second and the mean of their logits.
    Which values are the abstract's, the code's or ours: README.md of this folder.

    Args:
        selection_weight: of the cross entropy in regions that the discriminators keep.
        dynamic_weight: of the cross entropy in all regions, weighted by how much the networks agree in each.
        matching_weight: of the distance between discriminator features of predictions and of ground truth.
        threshold: score above which a region is kept.
        score: of a region: `mean` of both discriminators, `own`, `cross` (the other network's) or `max`.
        target: pseudo-labels of the selection loss: the `partner`'s, or the network's `own` (self-training).
        diversity: how the networks' agreement is measured: `js`, `agree`, `kl`; `none`: the plain mean over pixels.
        norm: the dynamic region loss is divided by the `count` of regions or by the sum of their weights (`sum_w`).
        correct: what it teaches: the `partner`'s labels, or, where the networks differ, the better judged one's
            (`winner`).
        margin: difference 1 - w of a region from which `winner` decides.
        region_conv: side of a region in cells of 16 pixels; 10 for crops from 320 pixels on, 2 for images of 96 to 128.
        d_input: the discriminators see class probabilities and the image (`prob_image`) or the former alone (`prob`).
        d_fake: what they learn to tell from ground truth: `softmax`, or its `onehot`, which is as sharp as the truth.
        discriminator_lr: of their Adam, constant over the run.
        pseudo_mode: pseudo-labels come from the networks in `eval` mode, or in `train` mode.
        kwargs: see `common.model.module.SegmentationModule`.

    Raises:
        ValueError: options that contradict each other.
    """

    streams = ("labeled", "unlabeled")

    def __init__(
        self,
        num_classes: int,
        selection_weight: float = 1.0,
        dynamic_weight: float = 1.0,
        matching_weight: float = 0.1,
        threshold: float = 0.6,
        score: Score = "mean",
        target: Literal["partner", "own"] = "partner",
        diversity: Diversity = "js",
        norm: Norm = "count",
        correct: Literal["partner", "winner"] = "partner",
        margin: float = 0.1,
        region_conv: int = 10,
        d_input: Literal["prob_image", "prob"] = "prob_image",
        d_fake: Literal["softmax", "onehot"] = "softmax",
        discriminator_lr: float = 1e-4,
        pseudo_mode: Literal["eval", "train"] = "eval",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if min(selection_weight, dynamic_weight, matching_weight) < 0 or region_conv < 1:
            raise ValueError("weights must be >= 0 and region_conv >= 1")
        if not 0 <= threshold <= 1 or not 0 <= margin <= 1:
            raise ValueError("threshold is a score and margin a difference of weights: both lie in [0, 1]")
        if correct == "winner" and diversity == "none":
            raise ValueError("correct winner decides where the networks differ: set diversity to another than none")
        self.selection_weight, self.dynamic_weight = selection_weight, dynamic_weight
        self.matching_weight, self.threshold, self.score, self.target = matching_weight, threshold, score, target
        self.diversity, self.norm, self.correct, self.margin = diversity, norm, correct, margin
        self.d_image, self.d_fake = d_input == "prob_image", d_fake
        self.discriminator_lr, self.pseudo_mode, self.cell = discriminator_lr, pseudo_mode, STRIDE * region_conv
        config = kwargs["network"] if "network" in kwargs else NetworkConfig()
        self.network2: SegmentationNetwork = build_network(config, num_classes)
        self.discriminators: nn.ModuleList | None = None
        judged = bool(selection_weight or matching_weight) or correct == "winner"
        self.regional = judged or diversity != "none"
        if judged:
            channels = num_classes + 3 * self.d_image
            self.discriminators = nn.ModuleList(RegionDiscriminator(channels, region_conv) for _ in range(2))

    @property
    def networks(self) -> tuple[SegmentationNetwork, SegmentationNetwork]:
        return self.network, self.network2

    def eval_networks(self) -> dict[str, nn.Module]:
        return {"branch1": self.network, "branch2": self.network2, "ensemble": MeanLogits(*self.networks)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        encoders = [p for network in self.networks for p in network.encoder_parameters()]
        decoders = [p for network in self.networks for p in network.decoder_parameters()]
        return [{"params": encoders, "lr_scale": self.encoder_lr_scale}, {"params": decoders, "lr_scale": 1.0}]

    def make_optimizer(self) -> Optimizer:
        optimizer = super().make_optimizer()
        if self.discriminators is None:
            return optimizer
        group = {"params": list(self.discriminators.parameters()), "constant_lr": True}
        return ChainedOptimizer([optimizer, Adam([group], lr=self.discriminator_lr, betas=(0.9, 0.99))])

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # The norm of the discriminators' gradients must not decide how far the networks' are cut.
        for part in optimizer.optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]:
            self.clip_gradients(part, gradient_clip_val, gradient_clip_algorithm)

    # Training ------------------------------------------------------------------------------------------------------

    def compute_loss(self, batch: Batch) -> StepOutput:
        """L_G + L_D of one forward pass; each parameter has a gradient from its own loss alone."""
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        image, valid, q = self.pseudo_labels(unlabeled)
        count, both = len(labeled["image"]), torch.cat([labeled["image"], image])
        outputs = [at_least_fp32(network(both)) for network in self.networks]  # not stacked: that copies them
        pce = torch.stack([partial_cross_entropy(one[:count], labeled["mask"], labeled["valid"]) for one in outputs])
        logits = [one[count:] for one in outputs]
        terms = {"pce": pce.sum(), **self.consistency(logits, q, image, valid)}
        if self.discriminators is not None:
            terms |= self.adversaries(labeled, logits, image, valid)
        weights = {
            "pce": 1.0,
            "dynamic": self.dynamic_weight,
            "selection": self.selection_weight,
            "matching": self.matching_weight,
            "discriminator1": 1.0,
            "discriminator2": 1.0,
        }
        loss = torch.stack([weight * terms[name] for name, weight in weights.items() if name in terms]).sum()
        return StepOutput(loss, terms)

    def pseudo_labels(self, unlabeled: SegBatch) -> tuple[Tensor, Tensor, Tensor]:
        """The CutMix image (B, 3, H, W), where it is valid, and both networks' mixed probabilities (2, B, K, H, W)."""
        size = (unlabeled["image"].shape[-2], unlabeled["image"].shape[-1])
        for network in self.networks:
            network.train(self.training and self.pseudo_mode == "train")
        with torch.no_grad():
            q1, q2 = (at_least_fp32(network(unlabeled["image"])).softmax(1) for network in self.networks)
        for network in self.networks:
            network.train(self.training)
        # Boxes of the CPS code: three, by exclusive or; the partner's pixels lie inside.
        box = box_masks(unlabeled["key"], size, area=(0.25, 0.5), boxes=3, seed=self.draw_seed())
        own = {"image": unlabeled["image"], "valid": unlabeled["valid"], "q1": q1, "q2": q2}
        mixed = mix(own, ~box, partners(own))
        return mixed["image"], mixed["valid"], torch.stack([mixed["q1"], mixed["q2"]])

    def consistency(self, logits: Sequence[Tensor], q: Tensor, image: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Dynamic region loss and local selection loss of both networks' logits (B, K, H, W), and what to log."""
        labels, terms = q.argmax(2), {}
        partner = taught = labels.flip(0)
        if self.regional:
            self.check_regions(valid)
        found = region_sums(valid, self.cell) > 0
        weight = region_reliability(q, valid, self.cell, self.diversity)
        if self.discriminators is not None:
            scores = region_scores(self.judge(q, image, valid), self.score)
            terms["score"] = share(scores, found)
            if self.correct == "winner":
                taught = corrected_labels(labels, scores, weight, self.margin, self.cell)
        error = cross_entropies(logits, taught)
        if self.diversity == "none":
            dynamic = [pixel_mean(one, valid) for one in error]
        else:
            dynamic = [dynamic_region_loss(one, valid, weight, self.cell, self.norm) for one in error]
            terms["weight"] = share(weight, found)
        terms["dynamic"] = torch.stack(dynamic).sum()
        if self.selection_weight:
            # In the first epoch the discriminators know nothing. The term stays, so that every step has one graph.
            kept = (scores > self.threshold) & found & (self.current_epoch > 0)
            terms["kept"] = share(kept, found)
            chosen, learned = (labels, kept) if self.target == "own" else (partner, kept.flip(0))
            error = error if chosen is taught else cross_entropies(logits, chosen)
            pairs = zip(error, learned, strict=True)
            terms["selection"] = torch.stack([local_selection_loss(e, valid, r, self.cell) for e, r in pairs]).sum()
        return terms

    def judge(self, q: Tensor, image: Tensor, valid: Tensor) -> Tensor:
        """Verdicts (2, 2, B, G, G') of both discriminators on both networks' probabilities, without gradient."""
        planes = torch.cat([class_planes(one, valid, image if self.d_image else None) for one in q])
        with torch.no_grad():
            verdicts = [discriminator(planes)[0].sigmoid() for discriminator in self.judges]
        return torch.stack(verdicts).unflatten(1, (2, -1))

    def adversaries(
        self, labeled: SegBatch, logits: Sequence[Tensor], image: Tensor, valid: Tensor
    ) -> dict[str, Tensor]:
        """Feature matching, whose gradient reaches the networks alone, and the discriminators' losses, whose gradient
        reaches these alone."""
        truth = labeled["mask"].masked_fill(~labeled["valid"], IGNORE)
        fake_found = region_sums(valid, self.cell) > 0
        real_found = region_sums(truth != IGNORE, self.cell) > 0
        given, mixed = (labeled["image"], image) if self.d_image else (None, None)
        real = class_planes(one_hot(truth, self.num_classes), labeled["valid"], given)
        matching, terms = [], {}
        for k, (discriminator, one) in enumerate(zip(self.judges, logits, strict=True)):
            p = one.softmax(1)
            if self.matching_weight:
                with torch.no_grad():
                    _, wanted = discriminator(real)
                _, features = discriminator.frozen(class_planes(p, valid, mixed))
                matching.append(feature_matching_loss(features, wanted, fake_found, real_found))
            p = p.detach() if self.d_fake == "softmax" else one_hot(p.argmax(1), self.num_classes)
            verdicts, _ = discriminator(torch.cat([class_planes(p, valid, mixed), real]), dropout=True)
            fake, truthful = verdicts.split([len(p), len(real)])
            terms[f"discriminator{k + 1}"] = discriminator_loss(fake, truthful, fake_found, real_found)
        if matching:
            terms["matching"] = torch.stack(matching).sum()
        return terms

    @property
    def judges(self) -> list[RegionDiscriminator]:
        return [cast(RegionDiscriminator, one) for one in self.discriminators or []]

    def check_regions(self, plane: Tensor) -> None:
        """Raise ValueError unless images have at least 2 x 2 regions."""
        height, width = plane.shape[-2:]
        if min(height, width) < 2 * self.cell:
            most = min(height, width) // (2 * STRIDE)
            raise ValueError(
                f"images of {height} x {width} pixels have less than 2 x 2 regions of {self.cell}: "
                + (f"set region_conv to {most} or less" if most else f"set data.size to {2 * STRIDE} or more")
            )

    # Validation ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.report = RegionReport(self.threshold) if self.discriminators is not None else None

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        image, size = batch["image"], batch["image"].shape[-2:]
        if self.report is None or min(size) < self.cell:
            return
        q = torch.stack([predict_probabilities(network, image, self.inference) for network in self.networks])
        mask = F.interpolate(batch["mask"][:, None].float(), size)[:, 0].long()
        valid = torch.ones_like(mask, dtype=torch.bool)
        judged = self.judge(q, image, valid)
        weight = region_reliability(q, valid, self.cell, self.diversity)
        self.report.update(judged, region_scores(judged, self.score), weight, q.argmax(2), mask, self.cell)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self.report is not None:
            self.log_dict({f"val/{name}": value for name, value in self.report.compute().items()})
            self.report.reset()


def cross_entropies(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Cross entropy of each pixel in nats: both networks' logits (B, K, H, W), labels (2, B, H, W) to (2, B, H, W)."""
    return torch.stack([F.cross_entropy(*one, reduction="none") for one in zip(logits, labels, strict=True)])


def pixel_mean(error: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid pixels of the global batch: the loss of CPS."""
    return global_mean((error * valid).sum(), valid.sum())


def share(values: Tensor, found: Tensor) -> Tensor:
    """Mean over regions that hold a valid pixel; values (B, G, G') or (2, B, G, G')."""
    found = found.expand_as(values)
    return (values * found).sum() / found.sum().clamp(min=1)
