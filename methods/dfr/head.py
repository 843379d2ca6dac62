"""The feature consistency head: what the kernel's deep feature is made by. Its layers are [ours]."""

from __future__ import annotations

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

    Layer normalisation, so that an embedding depends on its own image alone: not on the batch, its parts, its padding.
    The last layer has no ReLU: a mean that all vectors share would make every cosine near 1.

    Args:
        channels: of the input map, the decoder's output.
        hidden: channels of the hidden layer.
        dim: channels of the embedding.
    """

    def __init__(self, channels: int, hidden: int = 256, dim: int = 128) -> None:
        super().__init__()
        # No bias before a normalisation.
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), LayerNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, dim, 1)
        )

    def forward(self, decoded: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, channels, h, w) -> (B, dim, *size), unit vectors, at least float32."""
        return F.normalize(at_least_fp32(self.layers(resize(decoded, size))), dim=1, eps=EPS)
