"""Scores of a segmentation, from one confusion matrix over the whole data set."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix

from common.ops.batch import IGNORE
from common.ops.partition import match_phases


def scores(confusion: Tensor) -> dict[str, Tensor]:
    """Scores of a confusion matrix, in per cent, float64.

    Args:
        confusion: (..., K, K) pixel counts, rows the truth and columns the prediction.

    Returns:
        `iou` (..., K), NaN for a class that is neither in the truth nor in the prediction; `miou`, its mean over the
        other classes; `accuracy`, the share of right pixels. Without any counted pixel all are NaN: nothing was
        measured.
    """
    counts = confusion.double()  # exact up to 2^53 pixels
    right = counts.diagonal(dim1=-2, dim2=-1)
    union = counts.sum(-2) + counts.sum(-1) - right
    iou = 100 * right / union  # 0 / 0 is NaN for an absent class
    return {"miou": iou.nanmean(-1), "accuracy": 100 * right.sum(-1) / counts.sum((-2, -1)), "iou": iou}


class SegmentationMetrics(Metric):
    """Confusion matrix over all images seen since the last reset, summed over processes, and its `scores`.

    `compute()` returns the entries of `scores` and `confusion`, the (K, K) int64 matrix (rows truth, columns
    prediction), so that it can be stored and scored again.

    Args:
        num_classes: K, from 2 to 255 (255 is the mask's IGNORE).
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if not 2 <= num_classes <= IGNORE:
            raise ValueError(f"num_classes must be from 2 to {IGNORE}, got {num_classes}")
        self.num_classes = num_classes
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", default=zeros, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, mask: Tensor, valid: Tensor | None = None) -> None:
        """Count the pixels that have a label and are valid.

        Args:
            prediction: (B, H, W) int64, class ids.
            mask: (B, H, W) int64, class ids or IGNORE.
            valid: (B, H, W) bool, False = padding. None: all valid.
        """
        if prediction.shape != mask.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and mask {tuple(mask.shape)} differ in shape")
        counted = mask != IGNORE
        if valid is not None:
            counted &= valid
        prediction, mask = prediction[counted], mask[counted]
        # torchmetrics would count a class K as (row + 1, column 0) and not complain.
        for name, values in (("prediction", prediction), ("mask", mask)):
            strange = values[(values < 0) | (values >= self.num_classes)]
            if strange.numel():
                raise ValueError(f"{name} holds class {int(strange[0])}, outside 0..{self.num_classes - 1}")
        self.confusion += multiclass_confusion_matrix(prediction, mask, self.num_classes, validate_args=False)

    def compute(self) -> dict[str, Tensor]:
        """See the class. Call it on all processes."""
        return {**scores(self.confusion), "confusion": self.confusion}


class MatchedMetrics(SegmentationMetrics):
    """`SegmentationMetrics` of phases: `compute()` scores them as the classes that `match_phases` gives them.

    Args:
        num_classes: K, also the number of phases.
        match: one assignment for the whole `dataset`, or the best one for each `image`, which is more lenient: it needs
            the truth of every image.
    """

    def __init__(self, num_classes: int, match: Literal["dataset", "image"] = "dataset") -> None:
        super().__init__(num_classes)
        self.match = match

    def update(self, prediction: Tensor, mask: Tensor, valid: Tensor | None = None) -> None:
        """See the base class."""
        if self.match == "dataset":
            return super().update(prediction, mask, valid)
        before = self.confusion.clone()
        for number in range(len(prediction)):
            self.confusion = torch.zeros_like(before)
            one = slice(number, number + 1)
            super().update(prediction[one], mask[one], None if valid is None else valid[one])
            before += matched(self.confusion)
        self.confusion = before

    def compute(self) -> dict[str, Tensor]:
        """See the base class. Call it on all processes."""
        confusion = matched(self.confusion) if self.match == "dataset" else self.confusion
        return {**scores(confusion), "confusion": confusion}


def matched(confusion: Tensor) -> Tensor:
    """A square confusion matrix with its columns, the phases, moved to the classes of `match_phases`."""
    order = torch.from_numpy(match_phases(confusion.cpu().numpy())).to(confusion.device)
    return torch.empty_like(confusion).index_copy_(1, order, confusion)
