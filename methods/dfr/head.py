"""The feature consistency head: what the kernel's deep feature is made by. Its layers are [ours]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from common.ops.tensors import at_least_fp32

EPS = 1e-6  # of the length of a vector


def resize(features: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) at another size: means where it shrinks, bilinear where it grows."""
    if features.shape[-2:] == size:
        return features
    return F.interpolate(features, size, mode="area" if features.shape[-1] > size[1] else "bilinear")


class FeatureConsistencyHead(nn.Module):
    """1x1 convolution, layer normalisation over channels, ReLU, 1x1 convolution, unit length.

    Layer normalisation, so that an embedding hangs on its own image alone: not on the batch, its parts or its padding.
    The last layer has no ReLU: a mean that all vectors share would make every cosine near 1.

    Args:
        channels: of each input map. Several are projected to 64 channels each and concatenated.
        hidden: channels of the hidden layer.
        dim: channels of the embedding.
    """

    def __init__(self, channels: Sequence[int], hidden: int = 256, dim: int = 128) -> None:
        super().__init__()
        several = len(channels) > 1
        self.project = nn.ModuleList([nn.Conv2d(c, 64, 1) if several else nn.Identity() for c in channels])
        wide = 64 * len(channels) if several else channels[0]
        # No bias before a normalisation.
        self.layers = nn.Sequential(
            nn.Conv2d(wide, hidden, 1, bias=False), LayerNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, dim, 1)
        )

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps (B, C_m, h_m, w_m) of the same images -> (B, dim, *size), unit vectors, at least float32."""
        resized = [resize(project(one), size) for one, project in zip(maps, self.project, strict=True)]
        return F.normalize(at_least_fp32(self.layers(torch.cat(resized, 1))), dim=1, eps=EPS)
