"""The labelled term of every method: cross entropy, with what helps against classes of unequal size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss
from torch import Tensor

from common.ops.batch import IGNORE
from common.ops.distributed import global_mean
from common.ops.losses import hard_pixels, partial_cross_entropy
from common.ops.tensors import at_least_fp32


@dataclass(frozen=True)
class LabeledConfig:
    """The loss on labelled pixels; the defaults are the plain cross entropy.

    Args:
        class_weights: of the cross entropy: `none`; `balanced`: N / (K n_k), with n_k of the N labelled pixels in class
            k; or a number for each class. Only their ratios count.
        ohem: online hard example mining: pixels whose label has a higher probability are left out of the cross entropy
            (0.7 in the codes of CPS and UniMatch); null: all count.
        ohem_kept: with `ohem`, labelled pixels of a batch that count at least, the hardest ones.
        dice: weight of the Dice loss of segmentation_models_pytorch, the mean over classes; 0: without.
        focal: weight of its focal loss (gamma 2, each class against the others), the mean over classes and pixels; 0:
            without.

    Raises:
        ValueError: an option out of range.
    """

    class_weights: Literal["none", "balanced"] | list[float] = "none"
    ohem: float | None = None
    ohem_kept: int = 200_000
    dice: float = 0.0
    focal: float = 0.0

    def __post_init__(self) -> None:
        weights = self.class_weights
        if isinstance(weights, str):
            if weights not in ("none", "balanced"):
                raise ValueError(f"labeled.class_weights is none, balanced or a list of numbers, got {weights!r}")
        elif not all(0 <= one < math.inf for one in weights) or not any(weights):
            raise ValueError(f"labeled.class_weights must be >= 0, and one above 0, got {weights}")
        if self.ohem is not None and not 0 < self.ohem < 1:
            raise ValueError(f"labeled.ohem is a probability between 0 and 1 (such as 0.7), got {self.ohem}")
        if self.ohem_kept < 1:
            raise ValueError(f"labeled.ohem_kept is a number of pixels, at least 1, got {self.ohem_kept}")
        if min(self.dice, self.focal) < 0:
            raise ValueError(f"labeled.dice and labeled.focal must be >= 0, got {self.dice} and {self.focal}")


def given_weights(config: LabeledConfig, num_classes: int) -> Tensor | None:
    """The class weights that a config gives as numbers; None: it gives none, or they follow from the labels.

    Raises:
        ValueError: there are more or fewer than classes.
    """
    if isinstance(config.class_weights, str):
        return None
    if len(config.class_weights) != num_classes:
        raise ValueError(
            f"labeled.class_weights has {len(config.class_weights)} numbers for {num_classes} classes: give one each"
        )
    return torch.tensor([*config.class_weights], dtype=torch.float32)


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """`N / (K n_k)` (K,) float32 of the labelled pixels n_k of each class, as scikit-learn's `balanced`; a class
    without a pixel counts as one with one."""
    n = torch.tensor([*counts], dtype=torch.float64).clamp(min=1)
    return (n.sum() / (len(n) * n)).float()


def weights_for(config: LabeledConfig, weights: Tensor | None, data: Any) -> Tensor | None:
    """The class weights to train with on a data module, whose annotation has been drawn: hidden labels are in no count.

    Raises:
        ValueError: an option that would be without effect.
    """
    pixels = data.crop[0] * data.crop[1] * (data.batch_size // data.accumulation)
    if config.ohem is not None and pixels <= config.ohem_kept:
        raise ValueError(
            f"labeled.ohem is without effect: a batch has {pixels} pixels, and labeled.ohem_kept={config.ohem_kept} "
            "of them count in any case: give fewer, or leave ohem out"
        )
    if config.class_weights != "balanced":
        return weights
    return balanced_weights([*data.annotation_report()["per_class"].values()])


def labeled_loss(
    logits: Tensor, mask: Tensor, valid: Tensor, config: LabeledConfig, weights: Tensor | None = None
) -> Tensor:
    """`pce + dice * Dice loss + focal * focal loss` of the labelled pixels.

        loss = labeled_loss(logits, labeled["mask"], labeled["valid"], LabeledConfig(dice=1.0))

    Args:
        logits: (B, K, H, W) floating.
        mask: (B, H, W) int64, class id or 255.
        valid: (B, H, W) bool, False = padding.
        config: see there.
        weights: (K,) class weights of the cross entropy, None: all equal.

    Returns:
        Scalar; zero with zero gradient without a labelled pixel. On several processes the cross entropy and the focal
        loss are those of the global batch; the Dice loss, which is no mean over pixels, is the mean over processes.

    Raises:
        ValueError: the class weights are `balanced`, and nobody has counted.
    """
    if config.class_weights == "balanced" and weights is None:
        raise ValueError("labeled.class_weights=balanced needs the data's counts: train by a trainer, or give numbers")
    if config.ohem is None:
        loss = partial_cross_entropy(logits, mask, valid, weights)
    else:
        hard = hard_pixels(logits, mask.masked_fill(~valid, IGNORE), config.ohem, config.ohem_kept)
        loss = partial_cross_entropy(logits, hard, valid, weights)
    if config.dice or config.focal:
        logits, mask = at_least_fp32(logits), mask.masked_fill(~valid, IGNORE)
    if config.dice:
        loss = loss + config.dice * DiceLoss("multiclass", ignore_index=IGNORE)(logits, mask)
    if config.focal:
        total = FocalLoss("multiclass", ignore_index=IGNORE, reduction="sum")(logits, mask)
        loss = loss + config.focal * global_mean(total, (mask != IGNORE).sum())
    return loss
