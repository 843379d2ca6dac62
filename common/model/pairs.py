"""Two networks that label each other's images: what cross pseudo-supervision and the papers built on it share.

Cross pseudo-supervision (CPS) is Chen et al., CVPR 2021 (arXiv 2106.01226, code charlesCXK/TorchSemiSeg).

    image, valid, q = mixed_pseudo_labels((self.network, self.network2), batch["unlabeled"], self.draw_seed())
    logits = [network(image) for network in (self.network, self.network2)]
    error = cross_entropies(logits, q.argmax(2).flip(0))    # each learns the other's labels
    loss = sum(pixel_mean(one, valid) for one in error)

Shapes: B images of H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.model.networks import SegmentationNetwork
from common.ops.batch import SegBatch
from common.ops.distributed import global_mean
from common.ops.mixing import box_masks, mix, partners
from common.ops.tensors import at_least_fp32


class MeanLogits(nn.Module):
    """The ensemble: the mean of several networks' logits."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> (B, K, H, W) logits."""
        return torch.stack([network(image) for network in self.networks]).mean(0)


def joint_groups(networks: Sequence[SegmentationNetwork], encoder_lr_scale: float) -> list[dict[str, Any]]:
    """The parameter groups of one network, each with the parameters of all of them (they are built alike)."""
    groups = [network.parameter_groups(encoder_lr_scale) for network in networks]
    return [
        {**same[0], "params": [parameter for group in same for parameter in group["params"]]}
        for same in zip(*groups, strict=True)
    ]


@torch.no_grad()
def mixed_pseudo_labels(
    networks: Sequence[SegmentationNetwork], unlabeled: SegBatch, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The CutMix of unlabelled images, and what two networks say of it: their answers to the whole images, mixed.

    Boxes are those of the CPS code: three, combined by exclusive or; the partner's pixels lie inside. Ours: networks
    answer in eval mode, so that pseudo-labels move no statistics and know no dropout; and both images of a pair are
    mixed, each by boxes of its own, where the code mixes two batches into one.

    Args:
        networks: two; each is left in the mode that it came in.
        unlabeled: an even number of images, with their keys.
        seed: of the boxes.

    Returns:
        The image (B, 3, H, W), where it is valid (B, H, W), and the probabilities (2, B, K, H, W), constants.
    """
    answers = []
    for network in networks:
        mode = network.training
        network.eval()
        answers.append(at_least_fp32(network(unlabeled["image"])).softmax(1))
        network.train(mode)
    size = (unlabeled["image"].shape[-2], unlabeled["image"].shape[-1])
    box = box_masks(unlabeled["key"], size, area=(0.25, 0.5), boxes=3, seed=seed)
    own = {"image": unlabeled["image"], "valid": unlabeled["valid"], "q1": answers[0], "q2": answers[1]}
    mixed = mix(own, ~box, partners(own))
    return mixed["image"], mixed["valid"], torch.stack([mixed["q1"], mixed["q2"]])


def cross_entropies(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Cross entropy of each pixel in nats (networks, B, H, W), from the logits (B, K, H, W) of each network (not
    stacked: that would copy them, forward and backward) and what each is to learn, (networks, B, H, W) in 0..K-1."""
    pairs = zip(logits, labels, strict=True)
    return torch.stack([F.cross_entropy(at_least_fp32(one), wanted, reduction="none") for one, wanted in pairs])


def pixel_mean(error: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid pixels of the global batch, the loss of CPS; error and valid (B, H, W)."""
    return global_mean((error * valid).sum(), valid.sum())
