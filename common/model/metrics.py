"""Scores of a segmentation, from one confusion matrix over the whole data set."""

from __future__ import annotations

from collections.abc import Iterable
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
        prediction, mask = prediction[counted], mask[counted].long()
        # torchmetrics would count a class K as (row + 1, column 0) and not complain.
        for name, values in (("prediction", prediction), ("mask", mask)):
            strange = values[(values < 0) | (values >= self.num_classes)]
            if strange.numel():
                raise ValueError(f"{name} holds class {int(strange[0])}, outside 0..{self.num_classes - 1}")
        self.confusion += multiclass_confusion_matrix(prediction, mask, self.num_classes, validate_args=False)

    def update_strips(self, strips: Iterable[Tensor], mask: Tensor) -> None:
        """`update` with the labels of one image in strips (1, rows, W) from top to bottom; mask (1, H, W)."""
        top = 0
        for labels in strips:
            self.update(labels, mask[:, top : top + labels.shape[1]])
            top += labels.shape[1]

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

    def update_strips(self, strips: Iterable[Tensor], mask: Tensor) -> None:
        """See the base class. The best assignment of an image needs all of it."""
        if self.match == "dataset":
            return super().update_strips(strips, mask)
        self.update(torch.cat([*strips], 1), mask)

    def compute(self) -> dict[str, Tensor]:
        """See the base class. Call it on all processes."""
        confusion = matched(self.confusion) if self.match == "dataset" else self.confusion
        return {**scores(confusion), "confusion": confusion}


def matched(confusion: Tensor) -> Tensor:
    """A square confusion matrix with its columns, the phases, moved to the classes of `match_phases`."""
    order = torch.from_numpy(match_phases(confusion.cpu().numpy())).to(confusion.device)
    return torch.empty_like(confusion).index_copy_(1, order, confusion)


class CamMetrics(Metric):
    """mIoU of class activation maps at every threshold, from one histogram of all images since the last reset.

    A labelled pixel counts by its class, the object class k* of the largest CAM there, and that value m. At threshold
    j/n it is an object iff m > j/n, so the n + 1 confusion matrices are sums over the histogram: exact at multiples of
    1/n. The best threshold is chosen on the images that it is scored on, and maps know the images' tags: the custom of
    the field, and no mIoU of a segmentation.

    Args:
        num_classes: K, from 2 to 255; 0 is the background.
        steps: n.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int, steps: int = 100) -> None:
        super().__init__()
        if not 2 <= num_classes <= IGNORE:
            raise ValueError(f"num_classes must be from 2 to {IGNORE}, got {num_classes}")
        self.num_classes, self.steps = num_classes, steps
        zeros = torch.zeros(num_classes, num_classes - 1, steps + 1, dtype=torch.int64)
        self.add_state("counts", default=zeros, dist_reduce_fx="sum")

    def update(self, cam: Tensor, mask: Tensor) -> None:
        """Count the pixels that have a label.

        Args:
            cam: (B, K - 1, H, W) in [0, 1], 0 where an image has no such tag.
            mask: (B, H, W) int64 or uint8, class ids or IGNORE.
        """
        if cam.shape[1] != self.num_classes - 1 or (len(cam), *cam.shape[2:]) != tuple(mask.shape):
            raise ValueError(f"CAMs {tuple(cam.shape)} and mask {tuple(mask.shape)} differ in shape or classes")
        counted = mask != IGNORE
        highest, winner = cam.max(1)
        truth, value = mask[counted].long(), highest[counted].double()  # a large mask comes in bytes
        strange = truth[(truth < 0) | (truth >= self.num_classes)]
        if strange.numel():
            raise ValueError(f"mask holds class {int(strange[0])}, outside 0..{self.num_classes - 1}")
        edges = torch.arange(self.steps + 1, dtype=torch.float64, device=value.device) / self.steps
        above = torch.bucketize(value, edges).clamp(max=self.steps)  # the thresholds that it exceeds
        cell = (truth * (self.num_classes - 1) + winner[counted]) * (self.steps + 1) + above
        self.counts += torch.bincount(cell, minlength=self.counts.numel()).view_as(self.counts)

    def confusions(self) -> Tensor:
        """(n + 1, K, K) int64, rows the truth: the confusion matrix at each threshold j/n."""
        above = self.counts.flip(2).cumsum(2).flip(2)  # of the histogram's cells >= j
        objects = torch.cat([above[..., 1:], torch.zeros_like(above[..., :1])], 2)
        background = self.counts.sum((1, 2))[:, None] - objects.sum(1)
        return torch.cat([background[:, None], objects], 1).permute(2, 0, 1)

    def compute(self) -> dict[str, Tensor]:
        """`curve` (n + 1,), the mIoU in per cent at thresholds j/n; `miou`, its largest value, `threshold`, the lowest
        one that has it, and `iou` (K,) there. NaN if no pixel was counted. Call it on all processes."""
        found = scores(self.confusions())
        best = int(found["miou"].nan_to_num(-1).argmax())
        threshold = torch.tensor(best / self.steps, dtype=torch.float64, device=self.counts.device)
        if not self.counts.any():
            threshold = threshold * torch.nan
        return {
            "miou": found["miou"][best],
            "threshold": threshold,
            "iou": found["iou"][best],
            "curve": found["miou"],
        }
