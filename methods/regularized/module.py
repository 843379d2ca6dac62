"""Regularised losses for scribbles: dense CRF, normalised cut, kernel cut (Tang et al. 2018), Gated CRF."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from common.model.module import SegmentationModule, StepOutput
from common.ops.affinity import dense_kernel, positions, stack_modalities, window_kernel
from common.ops.batch import IGNORE, Batch, all_images
from common.ops.schedules import linear_ramp
from common.ops.tensors import at_least_fp32, valid_cells
from methods.regularized.losses import clamp_seeds, crf, gated_crf, normalized_cut

PRESETS: dict[str, dict[str, Any]] = {  # what an option left at null is, by term; sources in README.md
    "crf": {"crf_weight": 2.0, "nc_weight": 0.0, "sigma_xy": 100.0, "sigma_rgb": 15.0, "stride": 2, "radius": None},
    "normalized_cut": {"crf_weight": 0.0, "nc_weight": 1.6},
    "kernel_cut": {"crf_weight": 2.0, "nc_weight": 0.4},
    "gated_crf": {"crf_weight": 0.1, "nc_weight": 0.0, "sigma_xy": 24.0, "sigma_rgb": 5.75, "stride": 4, "radius": 5},
}


class Regularized(SegmentationModule):
    """Regularised loss: pCE, then + CRF, normalised cut, kernel cut or Gated CRF (Tang et al. 2018, 1803.09569).

    From the papers: the energies, clamped seeds, two phases. Normalised weights are this project's proposal, see
    README.md of this folder, which also converts the published ones. An option at None takes its term's value.

    Args:
        term: `crf`, `normalized_cut`, `kernel_cut` (both), or `gated_crf` (in a window, per pixel).
        crf_weight: of the CRF energy as a share of disagreement in [0, 1]; of the loss itself for `gated_crf`.
        nc_weight: of the normalised cut, a sum over classes in [0, K - 1].
        sigma_xy: bandwidth of position in pixels of the batch's images.
        sigma_rgb: bandwidth of colour in grey levels, of RGB in 0..255.
        stride: the term is taken on probabilities and colours averaged over stride x stride pixels.
        radius: pairs at most so many steps apart; None: all pairs (`gated_crf`: 5).
        reduction: `normalised`, or the code's `raw` sum; with `crf`.
        max_labelled: images with a larger share of labelled pixels count as fully labelled: the term leaves them out.
        start: fraction of the run with pCE alone, the first phase; 0 is a single phase.
        ramp: fraction of the run over which the term's weight then rises.
        kwargs: see `common.model.module.SegmentationModule`.

    Raises:
        ValueError: options that contradict each other.
    """

    def __init__(
        self,
        num_classes: int,
        term: Literal["crf", "normalized_cut", "kernel_cut", "gated_crf"] = "crf",
        crf_weight: float | None = None,
        nc_weight: float | None = None,
        sigma_xy: float | None = None,
        sigma_rgb: float | None = None,
        stride: int | None = None,
        radius: int | None = None,
        reduction: Literal["normalised", "raw"] = "normalised",
        max_labelled: float = 0.5,
        start: float = 0.5,
        ramp: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        given = {"crf_weight": crf_weight, "nc_weight": nc_weight, "sigma_xy": sigma_xy, "sigma_rgb": sigma_rgb}
        given |= {"stride": stride, "radius": radius}
        chosen = PRESETS["crf"] | PRESETS[term] | {name: value for name, value in given.items() if value is not None}
        other = "crf_weight" if term == "normalized_cut" else "nc_weight"
        if term != "kernel_cut" and chosen[other]:
            raise ValueError(f"term {term} has no use for {other}: leave it out, or take term kernel_cut")
        if reduction == "raw" and term != "crf":
            raise ValueError("reduction raw is that of the code for crf: set term to crf, or reduction to normalised")
        if min(chosen["crf_weight"], chosen["nc_weight"]) < 0 or not 0 <= max_labelled <= 1:
            raise ValueError("crf_weight and nc_weight must be >= 0, max_labelled a share in [0, 1]")
        if min(chosen["sigma_xy"], chosen["sigma_rgb"]) <= 0 or not 0 <= start <= 1 or not 0 <= ramp <= 1:
            raise ValueError("sigma_xy and sigma_rgb must be positive, start and ramp fractions of the run in [0, 1]")
        self.stride, self.radius = chosen["stride"], chosen["radius"]
        if self.stride < 1 or (self.radius is not None and self.radius < 1):
            raise ValueError("stride and radius must be >= 1 (radius: or null, for all pairs)")
        self.crf_weight, self.nc_weight = float(chosen["crf_weight"]), float(chosen["nc_weight"])
        self.sigma_xy, self.sigma_rgb = float(chosen["sigma_xy"]), float(chosen["sigma_rgb"])
        self.term, self.reduction, self.max_labelled, self.start, self.ramp = term, reduction, max_labelled, start, ramp

    def compute_loss(self, batch: Batch) -> StepOutput:
        image, mask, valid = all_images(batch["labeled"], batch.get("unlabeled"))
        logits = self.network(image)
        pce = self.labeled_loss(logits, mask, valid)
        ramp = linear_ramp(self.progress, self.start, self.ramp)
        if ramp == 0:  # the first phase; no parameter belongs to the terms alone, so they are not computed
            return StepOutput(pce, {"pce": pce, "ramp": ramp})
        terms = self.regularizer(logits, image, mask, valid)
        weights = {"crf": self.crf_weight, "nc": self.nc_weight}
        energy = sum((weights[name] * value for name, value in terms.items()), torch.zeros_like(pce))
        return StepOutput(pce + ramp * energy, {"pce": pce, **terms, "ramp": ramp})

    def regularizer(self, logits: Tensor, image: Tensor, mask: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """The energies `crf` and `nc` that have a weight, before it."""
        p, terms = at_least_fp32(logits).softmax(1), {}
        share = ((mask != IGNORE) & valid).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
        valid = valid & (share <= self.max_labelled)[:, None, None]
        cells = valid_cells(valid, self.stride)
        colors = F.avg_pool2d(255 * image[:, :3], self.stride)
        features = stack_modalities([(positions(colors), self.sigma_xy / self.stride), (colors, self.sigma_rgb)])
        if self.radius is None:
            kernel = dense_kernel(features, cells)
        else:
            kernel = window_kernel(features, cells, radius=self.radius)
        if self.crf_weight > 0:
            q = F.avg_pool2d(p, self.stride)
            gated = self.term == "gated_crf"
            terms["crf"] = gated_crf(q, kernel, cells) if gated else crf(q, kernel, self.reduction)
        if self.nc_weight > 0:  # labels are finer than cells, so they are set before
            terms["nc"] = normalized_cut(F.avg_pool2d(clamp_seeds(p, mask), self.stride), kernel)
        return terms
