"""Supervised baseline. Copy this folder to add a paper."""

from __future__ import annotations

from typing import Any

from torch import nn

from common.model.ema import EMATeacher
from common.model.module import SegmentationModule, StepOutput
from common.ops.batch import Batch


class Supervised(SegmentationModule):
    """Supervised baseline: cross entropy on the labelled pixels, nothing else.

    With sparse labels this is partial cross entropy (pCE). An unlabelled stream, if the data has one, is not looked at.

    Args:
        ema_decay: evaluate a moving average of the network too, as the baseline of methods that evaluate a teacher:
            it is `val/miou` then, and the network itself `val/miou_network`.
        kwargs: see `common.model.module.SegmentationModule`.
    """

    def __init__(self, num_classes: int, ema_decay: float | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.average = None if ema_decay is None else EMATeacher(self.network, ema_decay, warmup=True)

    def after_step(self) -> None:
        if self.average is not None:
            self.average.update(self.network)

    def eval_networks(self) -> dict[str, nn.Module]:
        average = {} if self.average is None else {"average": self.average.network}
        return {**average, "network": self.network}

    def compute_loss(self, batch: Batch) -> StepOutput:
        labeled = batch["labeled"]
        logits = self.network(labeled["image"])
        return StepOutput(self.labeled_loss(logits, labeled["mask"], labeled["valid"]))
