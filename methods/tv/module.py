"""Total variation of the class probabilities (Javanmardi et al. 2016, arXiv 1605.01368)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from common.model.module import SegmentationModule, StepOutput
from common.ops.batch import Batch, all_images
from common.ops.losses import contrast_weights, partial_cross_entropy, total_variation
from common.ops.schedules import ramp
from common.ops.tensors import at_least_fp32, valid_cells
from methods.tv.losses import directional_variation, labelled_pair_weights


class TV(SegmentationModule):
    """Total variation loss: pCE + tv_weight * total variation of the softmax (Javanmardi et al. 2016, 1605.01368).

    From the paper: the L1 norm of the gradient of the probability image, added to the supervised loss on a tiny share
    of labelled pixels, trained together. All else is this project's proposal, see README.md of this folder.

    Args:
        tv_weight: lambda, with the penalty summed over classes and averaged over valid pixels.
        variant: `aniso` (the paper's L1 norm, read literally), `iso`, `vector`, or `directional` for thin structures.
        eps: rounding of the kink in units of probability; `iso` and `vector` need it positive (1e-3).
        where: `all` pairs of neighbours, or `unlabelled`: those without a label at one end at least.
        weighting: `none`, or `contrast`: pairs across image edges count less.
        directional_weight: with `variant: directional`, the weight of that term; `tv_weight` is then the weight of
            the anisotropic term beside it (small, against speckle).
        softmin_temperature: with `variant: directional`, smooth the minimum over directions; None is the hard one.
        stride: the penalty is taken on probabilities averaged over stride x stride pixels; its value grows about
            linearly with it.
        start: fraction of the run before the penalty sets in.
        ramp: fraction of the run over which its weight then rises to the full one.
        kwargs: see `common.model.module.SegmentationModule`.

    Raises:
        ValueError: options that contradict each other.
    """

    def __init__(
        self,
        num_classes: int,
        tv_weight: float = 0.1,
        variant: Literal["aniso", "iso", "vector", "directional"] = "aniso",
        eps: float = 0.0,
        where: Literal["all", "unlabelled"] = "all",
        weighting: Literal["none", "contrast"] = "none",
        directional_weight: float = 0.0,
        softmin_temperature: float | None = None,
        stride: int = 1,
        start: float = 0.2,
        ramp: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if variant in ("iso", "vector") and eps <= 0:
            raise ValueError(f"variant {variant} needs eps > 0 (its gradient is not defined at 0): set eps, e.g. 1e-3")
        if variant == "directional" and (where, weighting) != ("all", "none"):
            raise ValueError("variant directional takes neither where nor weighting: leave them at all and none")
        if stride > 1 and where != "all":
            raise ValueError("where: unlabelled is defined between pixels: set stride to 1, or where to all")
        if (variant == "directional") != (directional_weight > 0):
            raise ValueError("variant directional and a positive directional_weight go together: set both or neither")
        if tv_weight < 0 or stride < 1 or not 0 <= start <= 1 or not 0 <= ramp <= 1:
            raise ValueError("tv_weight must be >= 0, stride >= 1, start and ramp fractions of the run in [0, 1]")
        self.tv_weight, self.variant, self.eps = tv_weight, variant, eps
        self.where, self.weighting, self.stride = where, weighting, stride
        self.directional_weight, self.softmin_temperature = directional_weight, softmin_temperature
        self.start, self.ramp = start, ramp

    def compute_loss(self, batch: Batch) -> StepOutput:
        image, mask, valid = all_images(batch["labeled"], batch.get("unlabeled"))
        logits = self.network(image)
        pce = partial_cross_entropy(logits, mask, valid)
        variation, directional = self.regularizer(logits, image, mask, valid)
        weight = ramp(self.progress, self.start, self.ramp)
        loss = pce + weight * (self.tv_weight * variation + self.directional_weight * directional)
        return StepOutput(loss, {"pce": pce, "tv": variation, "directional": directional, "ramp": weight})

    def regularizer(self, logits: Tensor, image: Tensor, mask: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The total variation and the directional term (zero unless chosen), before their weights."""
        p = at_least_fp32(logits).softmax(1)
        if self.stride > 1:
            p, image = F.avg_pool2d(p, self.stride), F.avg_pool2d(image, self.stride)
            valid = valid_cells(valid, self.stride)
        weights = None
        if self.weighting == "contrast":
            weights = contrast_weights(image, valid)
        if self.where == "unlabelled":
            both = labelled_pair_weights(mask)
            weights = both if weights is None else (weights[0] * both[0], weights[1] * both[1])
        variant = "aniso" if self.variant == "directional" else self.variant
        variation = total_variation(p, valid, variant=variant, eps=self.eps, pair_weights=weights)
        if self.variant != "directional":
            return variation, torch.zeros_like(variation)
        return variation, directional_variation(p, valid, softmin_temperature=self.softmin_temperature)
