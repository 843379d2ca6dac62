"""What people report of a segmentation beside IoU: overlap, boundaries, calibration, distances of surfaces."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.batch import IGNORE

BINS = 15  # of the confidence
BOUNDARY = 0.02  # of the image's diagonal


def overlap_scores(confusion: Tensor) -> dict[str, Tensor]:
    """Dice, precision and recall of each class, from a confusion matrix, in per cent, float64.

    With TP, FP and FN of a class: `dice = 2 TP / (2 TP + FP + FN)`, `precision = TP / (TP + FP)`, `recall = TP / (TP +
    FN)`; as in torchmetrics 0 where the denominator is 0 and the class occurs.

    Args:
        confusion: (..., K, K) pixel counts, rows the truth and columns the prediction.

    Returns:
        (..., K) each, NaN for a class that is neither in the truth nor in the prediction.
    """
    counts = confusion.double()
    right, found, true = counts.diagonal(dim1=-2, dim2=-1), counts.sum(-2), counts.sum(-1)
    absent = found + true == 0

    def share(parts: Tensor, whole: Tensor) -> Tensor:
        return (100 * parts / whole.clamp(min=1)).masked_fill(absent, torch.nan)

    return {
        "dice": share(2 * right, found + true),
        "precision": share(right, found),
        "recall": share(right, true),
    }


def miou_absent_zero(confusion: Tensor) -> Tensor:
    """mIoU in per cent with IoU 0 for a class that is neither in the truth nor in the prediction, float64.

    UniMatch's evaluation: `mean_k intersection_k / (union_k + 1e-10)` (arXiv 2208.09910, the authors' code; that of
    UniMatch V2 too). It differs from mIoU only where a class is absent.

    Args:
        confusion: (..., K, K) pixel counts.
    """
    counts = confusion.double()
    right = counts.diagonal(dim1=-2, dim2=-1)
    return (100 * right / (counts.sum(-2) + counts.sum(-1) - right + 1e-10)).mean(-1)


def boundary_counts(labels: Tensor, mask: Tensor, num_classes: int, ratio: float = BOUNDARY) -> Tensor:
    """Pixels in intersection and union of the boundary regions of each class, in one image.

    Boundary IoU (Cheng et al., CVPR 2021, arXiv 2103.16562): with G_d, P_d the pixels within distance d of the
    contours of truth G and prediction P,

        Boundary IoU = |(G_d n G) n (P_d n P)| / |(G_d n G) u (P_d n P)|

    d is `ratio` of the image's diagonal, 0.02 in the paper, rounded, at least 1. As in the authors' code `G_d n G` is G
    without its erosion by d steps of a 3 x 3 square, and what is beyond the image is no object. For a data set counts
    are added up over images, as for IoU. Ours: a pixel without a label is no object in both.

    Args:
        labels: (H, W) int64, predicted class ids.
        mask: (H, W) int64, class ids or 255.

    Returns:
        (2, K) int64: intersection and union.
    """
    height, width = mask.shape
    steps = max(1, round(ratio * math.hypot(height, width)))
    both = torch.stack([mask, labels.masked_fill(mask == IGNORE, IGNORE)])
    occur = both[both != IGNORE].unique()
    planes = (both[:, None] == occur[:, None, None]).float()
    eroded = -planes  # negative, so that the erosion is a maximum; 0 beyond the image
    for kernel, sides in (((2 * steps + 1, 1), (0, 0, steps, steps)), ((1, 2 * steps + 1), (steps, steps, 0, 0))):
        eroded = F.max_pool2d(F.pad(eroded, sides), kernel, 1)
    truth, found = (planes + eroded > 0).unbind()
    counts = torch.zeros(2, num_classes, dtype=torch.int64, device=mask.device)
    counts[:, occur] = torch.stack([(truth & found).sum((1, 2)), (truth | found).sum((1, 2))])
    return counts


def calibration_counts(probabilities: Tensor, mask: Tensor) -> Tensor:
    """What the calibration error adds up over images: in each bin of the confidence, the highest probability, the
    number of labelled pixels, the sum of their confidences and how many are right.

    Bins as in torchmetrics: 15 of equal width with their lower ends, and one for a confidence of 1.

    Args:
        probabilities: (B, K, H, W).
        mask: (B, H, W) int64, class ids or 255.

    Returns:
        (3, 16) float64.
    """
    confidence, labels = probabilities.max(1)
    known = mask != IGNORE
    confidence, right = confidence[known], (labels == mask)[known].double()
    bins = torch.bucketize(confidence, torch.linspace(0, 1, BINS + 1).to(confidence), right=True) - 1
    sums = right.new_zeros(3, BINS + 1)
    for row, values in zip(sums, (torch.ones_like(right), confidence.double(), right), strict=True):
        row.index_add_(0, bins, values)
    return sums


def calibration_error(counts: Tensor) -> Tensor:
    """Expected calibration error in per cent: `sum_b n_b / N |right_b / n_b - confidence_b / n_b|` over the bins of
    `calibration_counts` (Guo et al., ICML 2017, arXiv 1706.04599); NaN without a labelled pixel."""
    number, confidence, right = counts
    return 100 * (right - confidence).abs().sum() / number.sum()


def surface_distances(
    labels: Tensor, mask: Tensor, num_classes: int, spacing: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """95 % Hausdorff distance and average symmetric surface distance of each class in one image, by MONAI, in the units
    of `spacing`.

    `hd95 = max(P95 of d(a, G) over a in P, P95 of d(b, P) over b in G)` and `assd`, the mean of all these distances,
    with P and G the border pixels of prediction and truth (those with one of their four neighbours outside) and d the
    distance to the nearest border pixel of the other. A class in only one of both has the image's diagonal, as BraTS
    has it of its volumes. Ours: a pixel without a label is no object in both.

    Args:
        labels: (H, W) int64, predicted class ids.
        mask: (H, W) int64, class ids or 255.
        spacing: height and width of a pixel; left out, distances are in pixels.

    Returns:
        (2, K) float64: hd95 and assd; NaN for a class that is in neither.

    Raises:
        ModuleNotFoundError: MONAI is not installed.
    """
    compute_hausdorff_distance, compute_average_surface_distance = monai_distances()
    found = torch.full((2, num_classes), torch.nan, dtype=torch.float64)
    mask = mask.cpu()
    labels = labels.cpu().masked_fill(mask == IGNORE, IGNORE)
    for k in range(num_classes):
        truth, guess = mask == k, labels == k
        if truth.any() and guess.any():
            pair = (guess[None, None], truth[None, None])
            how: Any = {"include_background": True, "spacing": [*spacing]}
            found[0, k] = compute_hausdorff_distance(*pair, percentile=95, **how).item()
            found[1, k] = compute_average_surface_distance(*pair, symmetric=True, **how).item()
        elif truth.any() or guess.any():
            found[:, k] = math.hypot(mask.shape[0] * spacing[0], mask.shape[1] * spacing[1])
    return found


def monai_distances() -> tuple[Any, Any]:
    """MONAI's two functions.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        from monai.metrics.hausdorff_distance import compute_hausdorff_distance
        from monai.metrics.surface_distance import compute_average_surface_distance
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"surface distances need MONAI ({error}): pip install -e '.[medical]', or leave hd95 and assd out"
        ) from error
    return compute_hausdorff_distance, compute_average_surface_distance
