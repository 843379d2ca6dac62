"""AffinityNet: features whose distances say which neighbouring pixels are of one class (Ahn & Kwak 2018, arXiv
1803.10464)."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.model.cam import CamNetwork, freeze_unused
from common.ops.walk import feature_distance

WIDTHS = (64, 128, 256)  # channels that each of three stages is reduced to
RADIUS = 5  # of the pairs, in cells [code]


class AffinityNetwork(nn.Module):
    """A second encoder beside a classifier's, and convolutions that make pixels of one class near.

    Its last three maps, each reduced by a 1x1 convolution and ELU, at the size of the first of them, together through
    another one [code]. The classifier is frozen: its maps are what the affinities are to spread.

    Args:
        network: whose encoder is copied, as it is now.
    """

    def __init__(self, network: CamNetwork) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(network.model.encoder)
        stages = self.encoder.out_channels
        stages = stages[1:] if len(stages) > 1 else stages  # the first one is the image, but for a plain transformer
        channels = [int(number) for number in stages if number][-len(WIDTHS) :]
        widths = WIDTHS[-len(channels) :]
        self.reduce = nn.ModuleList(nn.Conv2d(c, w, 1, bias=False) for c, w in zip(channels, widths, strict=True))
        self.join = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)
        for convolution in self.reduce:
            nn.init.kaiming_normal_(cast(nn.Conv2d, convolution).weight)
        nn.init.xavier_uniform_(self.join.weight, gain=4)

    def forward(self, prepared: Tensor) -> Tensor:
        """(B, C, H, W), an image as `SegmentationNetwork.prepared` makes it -> distances (B, P, h, w) of pairs of
        cells, see `common.ops.walk.feature_distance`."""
        encoded = self.encoder(prepared)
        maps = encoded[0] if isinstance(encoded, tuple) else encoded
        maps = maps[-len(self.reduce) :]
        size = maps[0].shape[2:]
        reduced = [F.elu(one(m)) for one, m in zip(self.reduce, maps, strict=True)]
        reduced = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in reduced]
        return feature_distance(F.elu(self.join(torch.cat(reduced, 1))), RADIUS)


def add_affinity(network: CamNetwork) -> None:
    """Give a classifier's network an `AffinityNetwork`, and freeze all else of it."""
    network.requires_grad_(False)
    network.affinity = affinity = AffinityNetwork(network)
    affinity.requires_grad_(True)

    freeze_unused(network, lambda image: affinity(network.prepared(image)).nan_to_num(posinf=0.0))
    affinity.to(memory_format=torch.channels_last)
