"""Structured consistency loss on a CutMix mean teacher (Kim et al. 2020, arXiv 2001.04647)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.model.ema import EMATeacher
from common.model.module import SegmentationModule, StepOutput
from common.model.networks import SegmentationNetwork
from common.ops.batch import IGNORE, Batch, SegBatch
from common.ops.losses import partial_cross_entropy
from common.ops.mixing import box_masks, class_masks, cow_masks, mix, partners
from common.ops.schedules import sigmoid_ramp
from common.ops.tensors import at_least_fp32
from methods.scl.losses import (
    Confidence,
    Pairs,
    pixel_consistency,
    relaxed_cross_entropy,
    sample_pixels,
    structured_consistency,
)


class SCL(SegmentationModule):
    """Structured consistency on a CutMix mean teacher (Kim et al. 2020, 2001.04647); weight 0 is CutMix-Seg.

    The teacher, a moving average of the student, sees two clean images; the student sees their CutMix and is to agree
    with the mixed answer of the teacher, pixel by pixel and in the similarity between pixels. Evaluated: the teacher
    (`val/miou`) and the student. Which values are the paper's, CutMix-Seg's or ours: README.md of this folder.

    Args:
        consistency_weight: of the squared error between probabilities, summed over classes, averaged over pixels.
        structured_weight: of the squared difference of similarities, averaged over pairs; 0 is CutMix-Seg.
        mixing: `cutmix`, one box of half of the image; `classmix`, half of the teacher's classes; `cowmask`, blotches;
            `cutout`, no partner: the student sees the inside of one box only.
        confidence: `batch`, the error times the share of confident pixels; `pixel`, errors of confident pixels only;
            `none`.
        threshold: probability from which a pixel of the teacher is confident.
        feature: what similarities are taken of: `prob`, `logit`, or `embed`, the decoder's output.
        pairs: of pixels both `inside` the box, on `both_sides` (both inside or both outside), `cross`, or `all`.
        mode: `gram`, every pair, exactly; `sampled`, the pairs among `samples` pixels of each image.
        samples: pixels per image with `mode: sampled`.
        stride: similarities are taken at every stride-th pixel of the feature.
        detach_norm: no gradient through the length of a pixel's vector.
        relaxation: radius in pixels of boundary label relaxation on labelled images; 0 is cross entropy.
        ramp_up: share of the run over which the structured weight rises; with `confidence: none` the other one too.
        decay: of the teacher per step.
        decay_warmup: begin with lower decays, min(1 - 1 / (step + 1), decay), so that the teacher is not held back by
            its random start.
        kwargs: see `common.model.module.SegmentationModule`.

    Raises:
        ValueError: options that contradict each other.
    """

    streams = ("labeled", "unlabeled")

    def __init__(
        self,
        num_classes: int,
        consistency_weight: float = 1.0,
        structured_weight: float = 1.0,
        mixing: Literal["cutmix", "classmix", "cowmask", "cutout"] = "cutmix",
        confidence: Confidence = "batch",
        threshold: float = 0.97,
        feature: Literal["prob", "logit", "embed"] = "prob",
        pairs: Pairs = "inside",
        mode: Literal["gram", "sampled"] = "gram",
        samples: int = 512,
        stride: int = 1,
        detach_norm: bool = False,
        relaxation: int = 0,
        ramp_up: float = 0.0,
        decay: float = 0.99,
        decay_warmup: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if min(consistency_weight, structured_weight, relaxation) < 0 or stride < 1 or samples < 2:
            raise ValueError("weights and relaxation must be >= 0, stride >= 1, samples >= 2")
        if mixing == "cutout" and pairs == "cross":
            raise ValueError("mixing cutout leaves nothing outside the box: set pairs to another than cross")
        if not 0 <= threshold <= 1 or not 0 <= ramp_up <= 1:
            raise ValueError("threshold is a probability and ramp_up a share of the run: both lie in [0, 1]")
        self.consistency_weight, self.structured_weight = consistency_weight, structured_weight
        self.mixing, self.confidence, self.threshold = mixing, confidence, threshold
        self.feature, self.pairs, self.mode, self.samples = feature, pairs, mode, samples
        self.stride, self.detach_norm = stride, detach_norm
        self.relaxation, self.ramp_up = relaxation, ramp_up
        self.teacher = EMATeacher(self.network, decay, decay_warmup)

    def after_step(self) -> None:
        self.teacher.update(self.network)

    def eval_networks(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher.network, "student": self.network}

    def compute_loss(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        with torch.no_grad():
            target = self.outputs(self.teacher.network, unlabeled["image"])
            target["prob"] = at_least_fp32(target["logit"]).softmax(1)
        mask = self.mixing_mask(unlabeled, target["prob"])
        view, target, valid = self.mixed(unlabeled, target, mask)
        count = len(labeled["image"])
        both = self.outputs(self.network, torch.cat([labeled["image"], view]))
        logits, answer = both["logit"][:count], {name: value[count:] for name, value in both.items()}

        if self.relaxation:
            supervised = relaxed_cross_entropy(logits, labeled["mask"], labeled["valid"], self.relaxation)
        else:
            supervised = partial_cross_entropy(logits, labeled["mask"], labeled["valid"])
        consistency, confident = pixel_consistency(
            answer["logit"], target["prob"], valid, self.confidence, self.threshold
        )
        ramp = sigmoid_ramp(self.progress, self.ramp_up)
        # CutMix-Seg's code forbids a ramp beside the confidence rule: both hold the term back early on.
        loss = supervised + (ramp if self.confidence == "none" else 1) * self.consistency_weight * consistency
        logs: dict[str, Tensor | float] = {"pce": supervised, "consistency": consistency, "confident": confident}
        if self.structured_weight:
            name = self.feature
            if name == "prob":
                answer["prob"] = at_least_fp32(answer["logit"]).softmax(1)
            structured = self.structured(answer[name], target[name], valid, mask, unlabeled["key"])
            loss, logs["structured"] = loss + ramp * self.structured_weight * structured, structured
        return StepOutput(loss, logs)

    def outputs(self, network: SegmentationNetwork, image: Tensor) -> dict[str, Tensor]:
        """`logit` (B, K, H, W), and `embed`, the decoder's output (B, C, h, w)."""
        _, decoded = network.features(image)
        return {"logit": network.classify(decoded, *image.shape[-2:]), "embed": decoded}

    def mixing_mask(self, stream: SegBatch, probabilities: Tensor) -> Tensor:
        """(B, H, W) bool, True = the sample's own pixels."""
        key, size = stream["key"], (stream["image"].shape[-2], stream["image"].shape[-1])
        if self.mixing == "classmix":
            labels = probabilities.argmax(1).masked_fill(~stream["valid"], IGNORE)
            return class_masks(labels, key, self.num_classes, seed=self.draw_seed())
        if self.mixing == "cowmask":
            return cow_masks(key, size, seed=self.draw_seed())
        area = (1e-3, 1.0) if self.mixing == "cutout" else (0.5, 0.5)  # of the box, as in CutMix-Seg's code
        return box_masks(key, size, area=area, seed=self.draw_seed())

    def mixed(
        self, stream: SegBatch, target: dict[str, Tensor], mask: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The student's images, what it learns from the teacher's outputs for them, and where they are valid."""
        view = stream["strong"][:, 0] if "strong" in stream else stream["image"]
        if self.mixing == "cutout":  # erased pixels have the mean colour, 0 for the network
            return torch.where(mask[:, None], view, self.network.mean), target, stream["valid"] & mask
        own = {"view": view, "valid": stream["valid"], "prob": target["prob"]}
        if self.feature == "logit":
            own["logit"] = target["logit"]
        mixed = mix(own, mask, partners(own))
        if self.feature == "embed":
            embed = {"embed": target["embed"]}
            mixed |= mix(embed, self.at_feature(mask, target["embed"]), partners(embed))
        return mixed["view"], mixed, mixed["valid"]

    def at_feature(self, plane: Tensor, feature: Tensor) -> Tensor:
        """A bool plane (B, H, W) of the image at the pixels of a feature (B, C, h, w) of the padded image."""
        height, width = plane.shape[-2:]
        plane = F.pad(plane, (0, -width % self.network.stride, 0, -height % self.network.stride))
        step = plane.shape[-1] // feature.shape[-1] if feature.shape[-2:] != (height, width) else 1
        return plane[:, step // 2 :: step, step // 2 :: step][..., : feature.shape[-2], : feature.shape[-1]]

    def structured(self, student: Tensor, teacher: Tensor, valid: Tensor, inside: Tensor, key: Tensor) -> Tensor:
        """The structured term of a feature (B, C, h, w), on every pair or on those among drawn pixels."""
        if self.feature == "embed":
            valid, inside = self.at_feature(valid, student), self.at_feature(inside, student)
        at = (..., slice(None, None, self.stride), slice(None, None, self.stride))
        student, teacher, valid, inside = student[at].flatten(2), teacher[at].flatten(2), valid[at], inside[at]
        valid, inside = valid.flatten(1), inside.flatten(1)
        if self.mode == "sampled":
            candidates = valid & inside if self.pairs == "inside" else valid
            index, valid = sample_pixels(key, candidates, self.samples, self.draw_seed(1))
            inside = inside.gather(1, index)
            student, teacher = (
                one.gather(2, index[:, None].expand(-1, one.shape[1], -1)) for one in (student, teacher)
            )
        return structured_consistency(student, teacher, valid, inside, self.pairs, self.detach_norm)
