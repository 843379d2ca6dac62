"""Scores of segmentations whose regions have no name: phases matched to classes, and partitions against partitions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from skimage import metrics

from common.ops.array import Array


def match_phases(confusion: Array) -> Array:
    """One-to-one assignment of phases to classes with the largest sum of IoUs (Hungarian method).

    Args:
        confusion: (K, N) pixel counts, rows the classes of the truth and columns the predicted phases.

    Returns:
        (N,) int64, the class of each phase; -1 for those left over when N > K. Ties, such as an empty matrix, go to the
        lower numbers.
    """
    iou = iou_matrix(confusion)
    classes, phases = linear_sum_assignment(iou, maximize=True)
    matched = np.full(iou.shape[1], -1, np.int64)
    matched[phases] = classes
    return matched


def iou_matrix(confusion: Array) -> Array:
    """Intersection over union of every row with every column of pixel counts, in [0, 1]; 0 where both are empty."""
    counts = np.asarray(confusion, np.float64)
    union = counts.sum(0, keepdims=True) + counts.sum(1, keepdims=True) - counts
    return np.divide(counts, union, out=np.zeros_like(counts), where=union > 0)


def contingency(segmentation: Array, truth: Array) -> Array:
    """(R, S) number of pixels in segment r of `segmentation` and s of `truth`, whatever their numbers are."""
    return metrics.contingency_table(*_numbered(segmentation, truth)).toarray().astype(np.int64)


def _numbered(segmentation: Array, truth: Array) -> tuple[Array, Array]:
    """Both with their segments numbered from 0, as scikit-image needs them."""
    if segmentation.shape != truth.shape:
        raise ValueError(f"segmentation {segmentation.shape} and truth {truth.shape} differ in shape")
    first, second = (np.unique(labels, return_inverse=True)[1] for labels in (segmentation, truth))
    return first.reshape(truth.shape), second.reshape(truth.shape)


def covering(segmentation: Array, truths: Sequence[Array]) -> float:
    """Covering of the human segments by the machine's: `1/P sum_{S in truth} |S| max_{R in segmentation} IoU(R, S)`.

    Each person's segmentation is covered separately, and the mean over people is taken. P is the number of pixels.

    Args:
        segmentation: (H, W) integers; pixels with one number are one segment, connected or not.
        truths: at least one of the same shape.

    Returns:
        In [0, 1], 1 only for a segmentation that equals everyone's.
    """
    values = []
    for truth in truths:
        counts = contingency(segmentation, truth)
        values.append((counts.sum(0) * iou_matrix(counts).max(0)).sum() / counts.sum())
    return float(np.mean(values))


def probabilistic_rand_index(segmentation: Array, truths: Sequence[Array]) -> float:
    """Share of pixel pairs on which the segmentation and a person agree (same segment, or not), mean over people.

    With `p_ij` the share of people who put pixels i and j together, this is `1/T sum_{i<j} c_ij p_ij + (1 - c_ij)
    (1 - p_ij)` over all T pairs. Arguments as for `covering`; in [0, 1], 1 is best.
    """
    values = []
    for truth in truths:
        counts = contingency(segmentation, truth).astype(np.float64)  # squares are exact up to 2^53
        total = counts.sum()
        apart = (counts.sum(0) ** 2).sum() + (counts.sum(1) ** 2).sum() - 2 * (counts**2).sum()
        values.append(1 - apart / max(1.0, total * (total - 1)))
    return float(np.mean(values))


def variation_of_information(segmentation: Array, truths: Sequence[Array]) -> float:
    """`H(S|T) + H(T|S)` in bits (logarithm to base 2), mean over people; 0 is best. Arguments as for `covering`."""
    return float(np.mean([metrics.variation_of_information(*_numbered(segmentation, truth)).sum() for truth in truths]))


def best_person_iou(segmentation: Array, truths: Sequence[Array]) -> float:
    """Mean IoU of the machine's segments with the segments of a person assigned to them, for the best person [ours].

    Segments are assigned one to one (`match_phases`); a segment of the machine without a partner counts 0. Arguments
    as for `covering`; in [0, 1].
    """
    values = []
    for truth in truths:
        counts = contingency(segmentation, truth).T
        phase_of = match_phases(counts)
        iou = iou_matrix(counts)
        values.append(sum(iou[k, n] for n, k in enumerate(phase_of) if k >= 0) / len(phase_of))
    return float(max(values))
