"""A network that learns from proposals of boxes and depth (after Sun et al., ACCV 2020, arXiv 2012.00242)."""

from __future__ import annotations

from typing import Any

from torch.nn import functional as F

from common.model.module import SegmentationModule, StepOutput
from common.ops.affinity import positions, potts, stack_modalities, window_kernel
from common.ops.batch import Batch
from common.ops.distributed import global_mean
from common.ops.tensors import at_least_fp32, valid_cells

STRIDE, RADIUS, SIGMA_XY, SIGMA_RGB = 4, 5, 24.0, 5.75  # of Gated CRF, as in its code


class Guided3D(SegmentationModule):
    """3D-guided proposals: cross entropy on what boxes and depth say together (after Sun et al. 2020, 2012.00242).

    From the paper's abstract: proposals from boxes in some images and a point cloud, round after round. All else is
    this project's proposal, see README.md of this folder. `weakseg propose` makes the proposals.

    Args:
        crf_weight: of a Gated CRF term on the pixels that no proposal labels and all others; 0: none.
        kwargs: see `common.model.module.SegmentationModule`.

    Raises:
        ValueError: a negative weight.
    """

    def __init__(self, num_classes: int, crf_weight: float = 0.0, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        if crf_weight < 0:
            raise ValueError(f"crf_weight must be >= 0, got {crf_weight}")
        self.crf_weight = crf_weight

    def compute_loss(self, batch: Batch) -> StepOutput:
        labeled = batch["labeled"]
        logits = self.network(labeled["image"])
        pce = self.labeled_loss(logits, labeled["mask"], labeled["valid"])
        if not self.crf_weight:
            return StepOutput(pce)
        cells = valid_cells(labeled["valid"], STRIDE)
        colors = F.avg_pool2d(255 * labeled["image"][:, :3], STRIDE)
        features = stack_modalities([(positions(colors), SIGMA_XY / STRIDE), (colors, SIGMA_RGB)])
        p = F.avg_pool2d(at_least_fp32(logits).softmax(1), STRIDE)
        crf = global_mean(potts(p, window_kernel(features, cells, radius=RADIUS))[0].sum(), cells.sum())
        return StepOutput(pce + self.crf_weight * crf, {"pce": pce, "crf": crf})
