"""Total variation of the class probabilities (Javanmardi et al. 2016, arXiv 1605.01368)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from common.model.module import SegmentationModule, StepOutput
from common.ops.batch import Batch, all_images
from common.ops.losses import contrast_weights, total_variation
from common.ops.schedules import linear_ramp
from common.ops.tensors import at_least_fp32


class TV(SegmentationModule):
    """Total variation loss: pCE + tv_weight * total variation of the softmax (Javanmardi et al. 2016, 1605.01368).

    From the paper: the L1 norm of the gradient of the probability image, added to the supervised loss on a tiny share
    of labelled pixels, trained together. All else is this project's proposal, see README.md of this folder.

    Args:
        tv_weight: lambda, with the penalty summed over classes and averaged over valid pixels.
        weighting: `none`, or `contrast`: pairs of neighbours across image edges count less.
        start: fraction of the run before the penalty sets in.
        ramp: fraction of the run over which its weight then rises to the full one.
        kwargs: see `common.model.module.SegmentationModule`.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        num_classes: int,
        tv_weight: float = 0.3,
        weighting: Literal["none", "contrast"] = "none",
        start: float = 0.2,
        ramp: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if tv_weight < 0 or not 0 <= start <= 1 or not 0 <= ramp <= 1:
            raise ValueError("tv_weight must be >= 0, start and ramp fractions of the run in [0, 1]")
        self.tv_weight, self.weighting, self.start, self.ramp = tv_weight, weighting, start, ramp

    def compute_loss(self, batch: Batch) -> StepOutput:
        image, mask, valid = all_images(batch["labeled"], batch.get("unlabeled"))
        logits = self.network(image)
        pce = self.labeled_loss(logits, mask, valid)
        variation = self.variation(logits, image, valid)
        ramp = linear_ramp(self.progress, self.start, self.ramp)
        return StepOutput(pce + ramp * (self.tv_weight * variation), {"pce": pce, "tv": variation, "ramp": ramp})

    def variation(self, logits: Tensor, image: Tensor, valid: Tensor) -> Tensor:
        """The penalty before its weight."""
        weights = contrast_weights(image[:, :3], valid) if self.weighting == "contrast" else None
        return total_variation(at_least_fp32(logits).softmax(1), valid, pair_weights=weights)
