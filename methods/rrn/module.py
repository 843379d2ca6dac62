"""RRN-style: cross pseudo-supervision with judged and weighted regions (Chen et al. 2023, arXiv 2304.11539)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from common.model.inference import as_float, predict_probabilities
from common.model.module import SegmentationModule, StepOutput
from common.model.networks import NetworkConfig, SegmentationNetwork, build_network
from common.model.optim import ChainedOptimizer
from common.model.pairs import MeanLogits, cross_entropies, joint_groups, mixed_pseudo_labels, pixel_mean
from common.ops.batch import IGNORE, Batch, SegBatch
from common.ops.tensors import at_least_fp32, one_hot
from methods.rrn.diagnostics import RegionReport
from methods.rrn.discriminator import STRIDE, RegionDiscriminator, class_planes
from methods.rrn.losses import (
    discriminator_loss,
    dynamic_region_loss,
    feature_matching_loss,
    local_selection_loss,
    region_reliability,
    region_scores,
    region_sums,
)


class RRN(SegmentationModule):
    """Region relevance: two networks label each other, regions judged and weighted (Chen et al. 2023, 2304.11539).

    Discriminators judge each region of a pseudo-label, and bad ones are left out of the selection loss; where the
    networks differ, a region counts less in the dynamic region loss. Without both it is cross pseudo-supervision,
    method CPS. Evaluated: the first network (`val/miou`; `network` in all that predicts), the second and the mean of
    their logits. Which values are the abstract's, the code's or ours: README.md of this folder.

    Args:
        selection_weight: of the cross entropy in regions that the discriminators keep.
        dynamic_weight: of the cross entropy in all regions, weighted by how much the networks agree in each.
        matching_weight: of the distance between discriminator features of predictions and of ground truth.
        threshold: score above which a region is kept.
        diversity: how the networks' agreement is measured: `js`, by the Jensen-Shannon divergence; `none`: not at all,
            the dynamic region loss is the plain mean over pixels.
        region_conv: side of a region in cells of 16 pixels; 10 for crops from 320 pixels on, 2 for images of 96 to 128.
        discriminator_lr: of the discriminators' Adam, constant over the run.
        kwargs: see `common.model.module.SegmentationModule`.

    Raises:
        ValueError: an option out of range, or all that makes it another method than CPS is off.
    """

    streams = ("labeled", "unlabeled")

    def __init__(
        self,
        num_classes: int,
        selection_weight: float = 1.0,
        dynamic_weight: float = 1.0,
        matching_weight: float = 0.1,
        threshold: float = 0.6,
        diversity: Literal["js", "none"] = "js",
        region_conv: int = 10,
        discriminator_lr: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if min(selection_weight, dynamic_weight, matching_weight, discriminator_lr) < 0 or region_conv < 1:
            raise ValueError("weights and discriminator_lr must be >= 0 and region_conv >= 1")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is a score in [0, 1], got {threshold}")
        if selection_weight == matching_weight == 0 and diversity == "none":
            raise ValueError("selection_weight 0, matching_weight 0 and diversity none leave no region: use method CPS")
        self.selection_weight, self.dynamic_weight = selection_weight, dynamic_weight
        self.matching_weight, self.threshold, self.diversity = matching_weight, threshold, diversity
        self.discriminator_lr, self.cell = discriminator_lr, STRIDE * region_conv
        config = kwargs["network"] if "network" in kwargs else NetworkConfig()
        self.network2: SegmentationNetwork = build_network(config, num_classes)
        self.discriminators = nn.ModuleList(RegionDiscriminator(num_classes + 3, region_conv) for _ in range(2))

    @property
    def networks(self) -> tuple[SegmentationNetwork, SegmentationNetwork]:
        return self.network, self.network2

    @property
    def judges(self) -> list[RegionDiscriminator]:
        return [cast(RegionDiscriminator, one) for one in self.discriminators]

    def eval_networks(self) -> dict[str, nn.Module]:
        return {"branch1": self.network, "branch2": self.network2, "ensemble": MeanLogits(*self.networks)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return joint_groups(self.networks, self.encoder_lr_scale)

    def make_optimizer(self) -> Optimizer:
        group = {"params": list(self.discriminators.parameters()), "constant_lr": True}
        return ChainedOptimizer([super().make_optimizer(), Adam([group], lr=self.discriminator_lr, betas=(0.9, 0.99))])

    # Training ------------------------------------------------------------------------------------------------------

    def compute_loss(self, batch: Batch) -> StepOutput:
        """L_G + L_D of one forward pass; each parameter has a gradient from its own loss alone."""
        labeled = batch["labeled"]
        image, valid, q = mixed_pseudo_labels(self.networks, batch["unlabeled"], self.draw_seed())
        self.check_regions(valid)
        count, both = len(labeled["image"]), torch.cat([labeled["image"], image])
        outputs = [at_least_fp32(network(both)) for network in self.networks]
        pce = torch.stack([self.labeled_loss(one[:count], labeled["mask"], labeled["valid"]) for one in outputs])
        logits = [one[count:] for one in outputs]
        losses, logs = self.consistency(logits, q, image, valid)
        losses |= {"pce": pce.sum(), **self.adversaries(labeled, logits, image, valid)}
        weights = {
            "pce": 1.0,
            "dynamic": self.dynamic_weight,
            "selection": self.selection_weight,
            "matching": self.matching_weight,
            "discriminator1": 1.0,
            "discriminator2": 1.0,
        }
        loss = torch.stack([weight * losses[name] for name, weight in weights.items()]).sum()
        return StepOutput(loss, {**losses, **logs})

    def consistency(
        self, logits: Sequence[Tensor], q: Tensor, image: Tensor, valid: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Dynamic region loss and local selection loss of both networks' logits (B, K, H, W), and what to log."""
        found = region_sums(valid, self.cell) > 0
        scores = region_scores(self.judge(q, image, valid), "mean")
        # In the first epoch the discriminators know nothing. The term stays, so that every step has one graph.
        kept = (scores > self.threshold) & found & (self.current_epoch > 0)
        logs = {"score": share(scores, found), "kept": share(kept, found)}
        error = cross_entropies(logits, q.argmax(2).flip(0))  # each network learns the other's labels
        if self.diversity == "none":
            dynamic = [pixel_mean(one, valid) for one in error]
        else:
            weight = region_reliability(q, valid, self.cell, self.diversity)
            dynamic = [dynamic_region_loss(one, valid, weight, self.cell) for one in error]
            logs["weight"] = share(weight, found)
        pairs = zip(error, kept.flip(0), strict=True)
        selection = [local_selection_loss(one, valid, regions, self.cell) for one, regions in pairs]
        return {"dynamic": torch.stack(dynamic).sum(), "selection": torch.stack(selection).sum()}, logs

    @torch.no_grad()
    def judge(self, q: Tensor, image: Tensor, valid: Tensor) -> Tensor:
        """Verdicts (2, 2, B, G, G') of both discriminators on both networks' probabilities (2, B, K, H, W)."""
        planes = torch.cat([class_planes(one, valid, image) for one in q])
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
        real = class_planes(one_hot(truth, self.num_classes), labeled["valid"], labeled["image"])
        matching, terms = [], {}
        for k, (discriminator, one) in enumerate(zip(self.judges, logits, strict=True)):
            fake = class_planes(one.softmax(1), valid, image)
            with torch.no_grad():
                _, wanted = discriminator(real)
            _, features = discriminator.frozen(fake)
            matching.append(feature_matching_loss(features, wanted, fake_found, real_found))
            verdicts, _ = discriminator(torch.cat([fake.detach(), real]), dropout=True)
            judged, truthful = verdicts.split([len(fake), len(real)])
            terms[f"discriminator{k + 1}"] = discriminator_loss(judged, truthful, fake_found, real_found)
        return {"matching": torch.stack(matching).sum(), **terms}

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
        self.report = RegionReport(self.threshold)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        image, size = as_float(batch["image"]), batch["image"].shape[-2:]
        if min(size) < self.cell:
            return
        q = torch.stack([predict_probabilities(network, image, self.inference) for network in self.networks])
        mask = F.interpolate(batch["mask"][:, None].float(), size)[:, 0].long()
        valid = torch.ones_like(mask, dtype=torch.bool)
        judged = self.judge(q, image, valid)
        weight = region_reliability(q, valid, self.cell, self.diversity)
        self.report.update(judged, region_scores(judged, "mean"), weight, q.argmax(2), mask, self.cell)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log_dict({f"val/{name}": value for name, value in self.report.compute().items()})
        self.report.reset()


def share(values: Tensor, found: Tensor) -> Tensor:
    """Mean over regions that hold a valid pixel; values (B, G, G') or (2, B, G, G')."""
    found = found.expand_as(values)
    return (values * found).sum() / found.sum().clamp(min=1)
