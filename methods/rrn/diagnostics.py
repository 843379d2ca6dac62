"""Is a region's score or weight worth anything? Measured in validation, where the truth is known."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc

from common.ops.batch import IGNORE
from methods.rrn.losses import region_means, region_scores

RIGHT = 0.9  # of its pixels, from which a region counts as right [ours]


class RegionReport(Metric):
    """Scores and weights of regions against the share of right pixels in them, over a whole split and all processes.

    `compute()` returns `precision_all` and `precision_kept`, the share of right regions (at least 90 % of the labelled
    pixels are) among all and among those with a score above the threshold; `auroc`, `auroc_own`, `auroc_cross` of the
    score, of the own and of the other discriminator's verdict, for "the region is right" (0.5 = chance);
    `weight_correlation` (Pearson) of w with the share of right pixels. Each a float64 scalar, NaN where nothing was
    measured.

    Args:
        threshold: score above which a region is kept.
    """

    full_state_update = False
    rows: list[Tensor] | Tensor  # a tensor once the processes have been put together

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, judged: Tensor, scores: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, cell: int) -> None:
        """Take the regions of a batch in.

        Args:
            judged, scores: (2, 2, B, G, G') and (2, B, G, G'), see `methods.rrn.losses.region_scores`.
            weight: (B, G, G'), see `methods.rrn.losses.region_reliability`.
            labels: (2, B, H, W) int64, the networks' pseudo-labels.
            mask: (B, H, W) int64, the truth, class id or 255; regions without a label are left out.
            cell: side of a region in pixels.
        """
        own, cross = region_scores(judged, "own"), region_scores(judged, "cross")
        for k in range(2):
            right, count = region_means((labels[k] == mask).float(), mask != IGNORE, cell)
            rows = torch.stack([right, scores[k], own[k], cross[k], weight], -1)[count > 0]
            # One-dimensional, as torchmetrics takes a rank without any row.
            cast(list[Tensor], self.rows).append(rows.flatten())

    def compute(self) -> dict[str, Tensor]:
        """See the class. Call it on all processes."""
        rows = self.rows
        if isinstance(rows, list):
            rows = torch.cat(rows) if rows else torch.empty(0, device=self.device)
        share, score, own, cross, weight = rows.double().view(-1, 5).unbind(1)
        right = share >= RIGHT
        found = {
            "precision_all": right.double().mean(),
            "precision_kept": right[score > self.threshold].double().mean(),
            "weight_correlation": torch.corrcoef(torch.stack([weight, share]))[0, 1],
        }
        for name, one in {"auroc": score, "auroc_own": own, "auroc_cross": cross}.items():
            both_kinds = right.any() and not right.all()
            found[name] = binary_auroc(one, right.long()) if both_kinds else torch.full_like(share.sum(), torch.nan)
        return found
