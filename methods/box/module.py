"""Boxes alone, without proposals: the projection and pairwise terms of BoxInst (Tian et al. 2021, 2012.02310)."""

from __future__ import annotations

from typing import Any, cast

from common.model.module import SegmentationModule, StepOutput
from common.ops.batch import IGNORE, Batch
from common.ops.boxes import class_boxes, pairwise_loss, projection_loss
from common.ops.schedules import linear_ramp
from common.ops.tensors import at_least_fp32
from methods.box.losses import absent_loss


class Box(SegmentationModule):
    """Bounding boxes: their projections, and one class for near pixels of like colour (after Tian et al. 2021).

    From the paper: both terms. That a class in an image stands for an instance, and the cross entropy outside of the
    boxes, is this project's proposal, see README.md of this folder.

    Args:
        projection_weight: of the Dice losses of the projections.
        pairwise_weight: of the pairs of like colour.
        threshold: pairs as similar as that count, in [0, 1].
        dilation: distance of the pairs in pixels.
        ramp: fraction of the run over which the pairs' weight rises.
        kwargs: see `common.model.module.SegmentationModule`.

    Raises:
        ValueError: an option out of range.
    """

    supervision = ("boxes",)

    def __init__(
        self,
        num_classes: int,
        projection_weight: float = 1.0,
        pairwise_weight: float = 1.0,
        threshold: float = 0.3,
        dilation: int = 2,
        ramp: float = 0.11,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if min(projection_weight, pairwise_weight) < 0 or not 0 <= threshold <= 1 or not 0 <= ramp <= 1:
            raise ValueError("projection_weight and pairwise_weight must be >= 0, threshold and ramp in [0, 1]")
        if dilation < 1:
            raise ValueError(f"dilation is a distance in pixels, at least 1, got {dilation}")
        self.projection_weight, self.pairwise_weight = projection_weight, pairwise_weight
        self.threshold, self.dilation, self.ramp = threshold, dilation, ramp

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = cast(Any, self.trainer).datamodule
        if stage == "fit" and (data.supervision.inside != "filled" or data.background != 0):
            raise ValueError(
                f"Box learns from boxes that are filled with their class, above a background that is class 0, and not "
                f"from supervision.inside={data.supervision.inside} and background {data.background}: set "
                "data.supervision to {kind: boxes, inside: filled}, or choose another method"
            )

    def compute_loss(self, batch: Batch) -> StepOutput:
        labeled = batch["labeled"]
        image, mask, valid = labeled["image"], labeled["mask"], labeled["valid"]
        mask = mask.masked_fill(~valid, IGNORE)
        logits = self.network(image)
        # Outside all boxes is background; a mask that is dense counts as a box of its shape.
        outside = self.labeled_loss(logits, mask.masked_fill(mask > 0, IGNORE), valid)
        planes, p = class_boxes(mask, at_least_fp32(logits).softmax(1))
        terms = {
            "outside": outside,
            "projection": projection_loss(p, planes),
            "absent": absent_loss(logits, mask, labeled["tags"]),
            "pairwise": pairwise_loss(
                logits, image[:, :3], (mask > 0) & (mask != IGNORE), valid, self.threshold, self.dilation
            ),
        }
        weight = self.pairwise_weight * linear_ramp(self.progress, 0.0, self.ramp)
        loss = terms["outside"] + self.projection_weight * terms["projection"] + terms["absent"]
        return StepOutput(loss + weight * terms["pairwise"], terms)
