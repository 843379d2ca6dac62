"""Cross pseudo-supervision with CutMix (Chen et al., CVPR 2021, arXiv 2106.01226)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from common.model.module import SegmentationModule, StepOutput
from common.model.networks import NetworkConfig, SegmentationNetwork, build_network
from common.model.pairs import MeanLogits, cross_entropies, joint_groups, mixed_pseudo_labels, pixel_mean
from common.ops.batch import Batch
from common.ops.tensors import at_least_fp32


class CPS(SegmentationModule):
    """Cross pseudo-supervision: two networks learn each other's labels of CutMix images (Chen et al. 2021, 2106.01226).

    Evaluated: the first network (`val/miou`; `network` in all that predicts), the second and the mean of their logits.

    Args:
        cps_weight: of the cross entropy against the other network's pseudo-labels, summed over both networks.
        kwargs: see `common.model.module.SegmentationModule`.

    Raises:
        ValueError: a negative weight.
    """

    streams = ("labeled", "unlabeled")

    def __init__(self, num_classes: int, cps_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        if cps_weight < 0:
            raise ValueError(f"cps_weight must be >= 0, got {cps_weight}")
        self.cps_weight = cps_weight
        config = kwargs["network"] if "network" in kwargs else NetworkConfig()
        self.network2: SegmentationNetwork = build_network(config, num_classes)

    @property
    def networks(self) -> tuple[SegmentationNetwork, SegmentationNetwork]:
        return self.network, self.network2

    def eval_networks(self) -> dict[str, nn.Module]:
        return {"branch1": self.network, "branch2": self.network2, "ensemble": MeanLogits(*self.networks)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return joint_groups(self.networks, self.encoder_lr_scale)

    def compute_loss(self, batch: Batch) -> StepOutput:
        labeled = batch["labeled"]
        image, valid, q = mixed_pseudo_labels(self.networks, batch["unlabeled"], self.draw_seed())
        count, both = len(labeled["image"]), torch.cat([labeled["image"], image])
        outputs = [at_least_fp32(network(both)) for network in self.networks]
        pce = torch.stack([self.labeled_loss(one[:count], labeled["mask"], labeled["valid"]) for one in outputs])
        error = cross_entropies([one[count:] for one in outputs], q.argmax(2).flip(0))
        cps = torch.stack([pixel_mean(one, valid) for one in error])
        terms = {"pce": pce.sum(), "cps": cps.sum()}
        return StepOutput(terms["pce"] + self.cps_weight * terms["cps"], terms)
