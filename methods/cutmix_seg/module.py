"""CutMix-Seg: consistency under mixed images on a mean teacher (French et al., BMVC 2020, arXiv 1906.01916)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.model.ema import EMATeacher
from common.model.module import SegmentationModule, StepOutput
from common.ops.batch import IGNORE, Batch, SegBatch
from common.ops.losses import Confidence, pixel_consistency
from common.ops.mixing import box_masks, class_masks, cow_masks, mix, partners
from common.ops.schedules import sigmoid_ramp
from common.ops.tensors import at_least_fp32


class CutMixSeg(SegmentationModule):
    """CutMix-Seg: a student agrees on mixed images with its teacher's mixed answers (French et al. 2020, 1906.01916).

    The teacher, a moving average of the student, sees two clean images; the student sees their mix and is to give the
    mix of the teacher's answers. Evaluated: the teacher (`val/miou`) and the student.

    Args:
        consistency_weight: of the squared error between probabilities, summed over classes, averaged over pixels.
        mixing: `cutmix`, one box of half of the image; `classmix`, half of the teacher's classes (2007.07936);
            `cowmask`, blotches (2003.12022); `cutout`, no partner: the student sees the inside of one box only, and the
            error outside of it counts 0 in the mean over all pixels, as in the official code.
        confidence: `batch`, the error times the share of confident pixels; `pixel`, errors of confident pixels only;
            `none`.
        threshold: probability from which a pixel of the teacher is confident.
        ramp: share of the run over which the weight rises; with `confidence: none`.
        ema_decay: of the teacher per step.
        ema_warmup: begin with lower decays, min(1 - 1 / (step + 1), ema_decay), so that the teacher is not held back by
            its random start.
        kwargs: see `common.model.module.SegmentationModule`.

    Raises:
        ValueError: an option out of range, or a ramp together with a confidence rule.
    """

    streams = ("labeled", "unlabeled")

    def __init__(
        self,
        num_classes: int,
        consistency_weight: float = 1.0,
        mixing: Literal["cutmix", "classmix", "cowmask", "cutout"] = "cutmix",
        confidence: Confidence = "batch",
        threshold: float = 0.97,
        ramp: float = 0.0,
        ema_decay: float = 0.99,
        ema_warmup: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if consistency_weight < 0 or not 0 <= threshold <= 1 or not 0 <= ramp <= 1:
            raise ValueError("consistency_weight must be >= 0, threshold a probability and ramp a share of the run")
        if ramp and confidence != "none":  # as in the official code: both hold the term back early on
            raise ValueError("ramp goes with confidence none: set confidence to none, or ramp to 0")
        self.consistency_weight, self.mixing, self.confidence = consistency_weight, mixing, confidence
        self.threshold, self.ramp = threshold, ramp
        self.teacher = EMATeacher(self.network, ema_decay, ema_warmup)

    def after_step(self) -> None:
        self.teacher.update(self.network)

    def eval_networks(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher.network, "student": self.network}

    def compute_loss(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        target = at_least_fp32(self.teacher(unlabeled["image"])).softmax(1)
        mask = self.mixing_mask(unlabeled, target)
        image, target, valid = self.mixed(unlabeled, target, mask)
        count = len(labeled["image"])
        logits = self.network(torch.cat([labeled["image"], image]))
        pce = self.labeled_loss(logits[:count], labeled["mask"], labeled["valid"])
        seen = mask if self.mixing == "cutout" else None
        consistency, confident = pixel_consistency(logits[count:], target, valid, self.confidence, self.threshold, seen)
        weight = sigmoid_ramp(self.progress, self.ramp) * self.consistency_weight
        return StepOutput(pce + weight * consistency, {"pce": pce, "consistency": consistency, "confident": confident})

    def mixing_mask(self, stream: SegBatch, probabilities: Tensor) -> Tensor:
        """(B, H, W) bool, True = the sample's own pixels; the teacher's probabilities are (B, K, H, W)."""
        key, size = stream["key"], (stream["image"].shape[-2], stream["image"].shape[-1])
        if self.mixing == "classmix":
            labels = probabilities.argmax(1).masked_fill(~stream["valid"], IGNORE)
            return class_masks(labels, key, self.num_classes, seed=self.draw_seed())
        if self.mixing == "cowmask":
            return cow_masks(key, size, seed=self.draw_seed())
        area = (1e-3, 1.0) if self.mixing == "cutout" else (0.5, 0.5)  # of the box, as in the official code
        return box_masks(key, size, area=area, seed=self.draw_seed())

    def mixed(self, stream: SegBatch, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The student's images (B, 3, H, W), the teacher's probabilities for them, and where they are valid."""
        view = stream["strong"][:, 0] if "strong" in stream else stream["image"]
        if self.mixing == "cutout":  # erased pixels have the mean colour, 0 for the network
            return torch.where(mask[:, None], view, self.network.mean), target, stream["valid"]
        own = {"view": view, "target": target, "valid": stream["valid"]}
        mixed = mix(own, mask, partners(own))
        return mixed["view"], mixed["target"], mixed["valid"]
