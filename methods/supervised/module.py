"""Supervised baseline. Copy this folder to add a paper."""

from __future__ import annotations

from common.batch import Batch
from common.losses import partial_cross_entropy
from common.module import SegmentationModule, StepOutput


class Supervised(SegmentationModule):
    """Supervised baseline: cross entropy on the labelled pixels, nothing else.

    With sparse labels this is partial cross entropy (pCE). An unlabelled stream, if the data has one, is not looked at.
    """

    def compute_loss(self, batch: Batch) -> StepOutput:
        labeled = batch["labeled"]
        logits = self.network(labeled["image"])
        return StepOutput(partial_cross_entropy(logits, labeled["mask"], labeled["valid"]))
