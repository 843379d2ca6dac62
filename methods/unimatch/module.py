"""UniMatch (Yang et al., CVPR 2023, arXiv 2208.09910) and its second version (2024, arXiv 2410.10777)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.model.ema import EMATeacher
from common.model.module import SegmentationModule, StepOutput
from common.ops.batch import Batch, SegBatch
from common.ops.mixing import box_masks, mix, partners
from common.ops.tensors import at_least_fp32
from methods.unimatch.losses import complementary_channels, dropped_channels, pseudo_label_loss

Planes = dict[str, Tensor]


class UniMatch(SegmentationModule):
    """UniMatch: pseudo-labels of a weak view for two strong ones and perturbed features (Yang et al. 2023, 2208.09910).

    Args:
        variant: `v1`: pseudo-labels are the student's own, a third stream perturbs the weak view's features; `v2`
            (2410.10777): they are a moving-average teacher's, and the features of the two strong views are perturbed
            in complementary channels. With v2 the teacher is `val/miou`, the student `val/miou_student`.
        threshold: probability from which a pseudo-label counts.
        feature_dropout: share of the channels dropped in v1's third stream.
        ema_decay: of v2's teacher per step, reached from 0 as min(1 - 1 / (step + 1), ema_decay).
        kwargs: see `common.model.module.SegmentationModule`.

    Raises:
        ValueError: a share or probability out of range.
    """

    streams = ("labeled", "unlabeled")
    strong_views = 2

    def __init__(
        self,
        num_classes: int,
        variant: Literal["v1", "v2"] = "v1",
        threshold: float = 0.95,
        feature_dropout: float = 0.5,
        ema_decay: float = 0.996,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if not 0 <= threshold <= 1 or not 0 <= feature_dropout < 1:
            raise ValueError("threshold must lie in [0, 1] and feature_dropout in [0, 1)")
        self.variant, self.threshold, self.feature_dropout = variant, threshold, feature_dropout
        self.teacher = EMATeacher(self.network, ema_decay, warmup=True) if variant == "v2" else None

    def after_step(self) -> None:
        if self.teacher is not None:
            self.teacher.update(self.network)

    def eval_networks(self) -> dict[str, nn.Module]:
        if self.teacher is None:
            return {"network": self.network}
        return {"teacher": self.teacher.network, "student": self.network}

    def compute_loss(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        if self.teacher is None:
            logits, weak, perturbed = self.weak_streams(labeled["image"], unlabeled)
        else:
            logits, weak = self.network(labeled["image"]), self.teacher(unlabeled["image"])
        confidence, labels = at_least_fp32(weak.detach()).softmax(1).max(1)
        pseudo = {"labels": labels, "confidence": confidence, "valid": unlabeled["valid"]}
        pce = self.labeled_loss(logits, labeled["mask"], labeled["valid"])
        strong = torch.stack(self.strong_losses(unlabeled, pseudo))
        kept = ((confidence >= self.threshold) & unlabeled["valid"]).sum() / unlabeled["valid"].sum().clamp(min=1)
        logs = {"pce": pce, "strong": strong.mean(), "confident": kept}
        if self.teacher is not None:
            return StepOutput((pce + strong.mean()) / 2, logs)
        feature = pseudo_label_loss(perturbed, **pseudo, threshold=self.threshold)
        return StepOutput((pce + strong.mean() / 2 + feature / 2) / 2, {**logs, "feature": feature})

    def weak_streams(self, image: Tensor, unlabeled: SegBatch) -> tuple[Tensor, Tensor, Tensor]:
        """v1: logits of the labelled images, of the unlabelled ones, and of these with channels dropped."""
        count, key = len(image), unlabeled["key"]
        maps, tokens = self.network.encode(torch.cat([image, unlabeled["image"]]))
        perturbed = [
            one[count:] * dropped_channels(key, one.shape[1], self.feature_dropout, self.draw_seed(2 + level))
            for level, one in enumerate(maps)
        ]
        maps = [torch.cat([one, other]) for one, other in zip(maps, perturbed, strict=True)]
        if tokens is not None:
            tokens = [None if one is None else torch.cat([one, one[count:]]) for one in tokens]
        logits = self.network.classify(self.network.decode(maps, tokens), *image.shape[-2:])
        labelled, weak, dropped = logits.split([count, len(key), len(key)])
        return labelled, weak, dropped

    def strong_losses(self, unlabeled: SegBatch, pseudo: Planes) -> list[Tensor]:
        """The pseudo-label loss of each strong view, after a CutMix of its own."""
        key, size = unlabeled["key"], (unlabeled["image"].shape[-2], unlabeled["image"].shape[-1])
        views = []
        for view in range(2):
            # Boxes of UniMatch's code; where there is one, the partner's pixels come in.
            box = box_masks(
                key, size, area=(0.02, 0.4), aspect=(0.3, 1 / 0.3), probability=0.5, seed=self.draw_seed(view)
            )
            own = {"image": unlabeled["strong"][:, view], **pseudo}
            views.append(mix(own, ~box, partners(own)))
        maps, tokens = self.network.encode(torch.cat([view.pop("image") for view in views]))
        if self.teacher is not None:
            # One seed: a sample is left alone at every level or at none, and equal widths share the mask (the code's).
            seed = self.draw_seed(2)
            maps = [one * torch.cat(complementary_channels(key, one.shape[1], seed)) for one in maps]
        logits = self.network.classify(self.network.decode(maps, tokens), *size).chunk(2)
        return [
            pseudo_label_loss(one, **view, threshold=self.threshold) for one, view in zip(logits, views, strict=True)
        ]
