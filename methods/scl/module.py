"""Structured consistency loss on a CutMix mean teacher (Kim et al. 2020, arXiv 2001.04647)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.model.ema import EMATeacher
from common.model.labeled import LabeledConfig
from common.model.module import SegmentationModule, StepOutput
from common.model.networks import SegmentationNetwork
from common.ops.batch import Batch, SegBatch
from common.ops.losses import pixel_consistency
from common.ops.mixing import box_masks, mix, partners
from common.ops.schedules import sigmoid_ramp
from common.ops.tensors import at_least_fp32
from methods.scl.losses import relaxed_cross_entropy, sample_pixels, structured_consistency


class SCL(SegmentationModule):
    """Structured consistency: a CutMix mean teacher also teaches how alike pixels are (Kim et al. 2020, 2001.04647).

    The teacher, a moving average of the student, sees two clean images; the student sees their CutMix and is to agree
    with the mixed answer of the teacher, pixel by pixel and in the similarity between pixels. Evaluated: the teacher
    (`val/miou`) and the student. Which values are the paper's, CutMix-Seg's or ours: README.md of this folder.

    Args:
        consistency_weight: of the squared error between probabilities, summed over classes, averaged over pixels and
            multiplied by the share of confident pixels.
        structured_weight: of the squared difference of similarities, averaged over the pairs of pixels inside the box.
        threshold: probability from which a pixel of the teacher is confident.
        feature: what similarities are taken of: `prob`, `logit`, or `embed`, the decoder's output.
        samples: pairs among so many pixels of each image, drawn at random; None: every pair, exactly.
        stride: similarities are taken at every stride-th pixel of the feature.
        relaxation: radius in pixels of boundary label relaxation on labelled images; 0 is cross entropy.
        ramp: share of the run over which the structured weight rises.
        ema_decay: of the teacher per step.
        ema_warmup: begin with lower decays, min(1 - 1 / (step + 1), ema_decay), so that the teacher is not held back by
            its random start.
        kwargs: see `common.model.module.SegmentationModule`.

    Raises:
        ValueError: an option out of range.
    """

    streams = ("labeled", "unlabeled")

    def __init__(
        self,
        num_classes: int,
        consistency_weight: float = 1.0,
        structured_weight: float = 0.1,
        threshold: float = 0.97,
        feature: Literal["prob", "logit", "embed"] = "prob",
        samples: int | None = None,
        stride: int = 1,
        relaxation: int = 0,
        ramp: float = 0.0,
        ema_decay: float = 0.99,
        ema_warmup: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if min(consistency_weight, structured_weight, relaxation) < 0 or stride < 1:
            raise ValueError("weights and relaxation must be >= 0, stride >= 1")
        if samples is not None and samples < 2:
            raise ValueError(f"samples must be >= 2, or null for every pair, got {samples}")
        if not 0 <= threshold <= 1 or not 0 <= ramp <= 1:
            raise ValueError("threshold is a probability and ramp a share of the run: both lie in [0, 1]")
        if relaxation and self.labeled != LabeledConfig():
            raise ValueError("relaxation is a labelled loss of its own: set it to 0, or leave the options labeled out")
        self.consistency_weight, self.structured_weight = consistency_weight, structured_weight
        self.threshold, self.feature, self.samples, self.stride = threshold, feature, samples, stride
        self.relaxation, self.ramp = relaxation, ramp
        self.teacher = EMATeacher(self.network, ema_decay, ema_warmup)

    def after_step(self) -> None:
        self.teacher.update(self.network)

    def eval_networks(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher.network, "student": self.network}

    def compute_loss(self, batch: Batch) -> StepOutput:
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        with torch.no_grad():
            target = self.outputs(self.teacher.network, unlabeled["image"])
        key, size = unlabeled["key"], (unlabeled["image"].shape[-2], unlabeled["image"].shape[-1])
        box = box_masks(key, size, seed=self.draw_seed())
        image, target, valid = self.mixed(unlabeled, target, box)
        count = len(labeled["image"])
        both = self.outputs(self.network, torch.cat([labeled["image"], image]))
        logits, answer = both["logit"][:count], {name: value[count:] for name, value in both.items()}

        if self.relaxation:
            pce = relaxed_cross_entropy(logits, labeled["mask"], labeled["valid"], self.relaxation)
        else:
            pce = self.labeled_loss(logits, labeled["mask"], labeled["valid"])
        consistency, confident = pixel_consistency(answer["logit"], target["prob"], valid, threshold=self.threshold)
        structured = self.structured(answer[self.feature], target[self.feature], valid, box, key)
        weight = sigmoid_ramp(self.progress, self.ramp) * self.structured_weight
        loss = pce + self.consistency_weight * consistency + weight * structured
        logs = {"pce": pce, "consistency": consistency, "confident": confident, "structured": structured}
        return StepOutput(loss, logs)

    def outputs(self, network: SegmentationNetwork, image: Tensor) -> dict[str, Tensor]:
        """`logit` and `prob` (B, K, H, W), and `embed`, the decoder's output (B, C, h, w)."""
        _, decoded = network.features(image)
        logits = network.classify(decoded, *image.shape[-2:])
        return {"logit": logits, "prob": at_least_fp32(logits).softmax(1), "embed": decoded}

    def mixed(
        self, stream: SegBatch, target: dict[str, Tensor], box: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The student's images, the teacher's `prob` and feature for them, and where they are valid."""
        view = stream["strong"][:, 0] if "strong" in stream else stream["image"]
        own = {"view": view, "valid": stream["valid"], "prob": target["prob"]}
        if self.feature == "logit":
            own["logit"] = target["logit"]
        mixed = mix(own, box, partners(own))
        if self.feature == "embed":
            embed = {"embed": target["embed"]}
            mixed |= mix(embed, self.at_feature(box, target["embed"]), partners(embed))
        return mixed["view"], mixed, mixed["valid"]

    def at_feature(self, plane: Tensor, feature: Tensor) -> Tensor:
        """A bool plane (B, H, W) of the image at the pixels of a feature (B, C, h, w) of the padded image."""
        height, width = plane.shape[-2:]
        plane = F.pad(plane, (0, -width % self.network.stride, 0, -height % self.network.stride))
        size = (feature.shape[-2], feature.shape[-1])
        if size == (height, width):
            return plane[:, :height, :width]
        rows, columns = (
            ((torch.arange(count, device=plane.device) + 0.5) * side / count).long()  # a cell's middle pixel
            for count, side in zip(size, plane.shape[-2:], strict=True)
        )
        return plane[:, rows[:, None], columns]

    def structured(self, student: Tensor, teacher: Tensor, valid: Tensor, inside: Tensor, key: Tensor) -> Tensor:
        """The structured term of a feature (B, C, h, w), on every pair or on those among drawn pixels."""
        if self.feature == "embed":
            valid, inside = self.at_feature(valid, student), self.at_feature(inside, student)
        at = (..., slice(None, None, self.stride), slice(None, None, self.stride))
        student, teacher, valid, inside = student[at].flatten(2), teacher[at].flatten(2), valid[at], inside[at]
        valid, inside = valid.flatten(1), inside.flatten(1)
        if self.samples is not None:
            index, valid = sample_pixels(key, valid & inside, self.samples, self.draw_seed(1))
            inside = inside.gather(1, index)
            student, teacher = (
                one.gather(2, index[:, None].expand(-1, one.shape[1], -1)) for one in (student, teacher)
            )
        return structured_consistency(student, teacher, valid, inside)
