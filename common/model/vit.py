"""Plain vision transformers of timm as encoders: maps of tokens on the patch grid, of any patch and image size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from torch import Tensor, nn

# What a class of timm wants said to it, where that is not the rule: the maps after its last norm.
# SAM's "norm" is the neck of its mask decoder, made for its last layer alone.
ARGUMENTS: dict[str, dict[str, Any]] = {"VisionTransformerSAM": {"norm": False}}


class ViTEncoder(nn.Module):
    """Chosen layers of a plain vision transformer, each after the model's last norm, as DINOv2 gives them out.

    `SegmentationNetwork` pads an image to whole patches, so that the token grid covers it exactly: 37 x 37 tokens of 14
    pixels for 518 x 518. timm resamples the position embeddings to the grid. Class and register tokens take part in the
    attention and are left out of the maps.

    Args:
        name: timm's name of the model, weights in it (`vit_small_patch14_dinov2.lvd142m`).
        pretrained: download these weights.
        layers: numbers of the blocks whose output is wanted, in rising order; negative ones count from the end.
        arguments: of the timm model.

    Raises:
        ValueError: the model has no such layers.
    """

    layers: list[int]
    model: Any

    def __init__(self, name: str, pretrained: bool, layers: Sequence[int], **arguments: Any) -> None:
        super().__init__()
        self.model = timm.create_model(name, pretrained=pretrained, **arguments)
        self.depth = len(self.model.feature_info)
        self.output_stride = int(self.model.feature_info[0]["reduction"])
        self.arguments = {"norm": True, **ARGUMENTS.get(type(self.model).__name__, {})}
        self.choose(layers)

    def choose(self, layers: Sequence[int]) -> None:
        """Give out these layers from now on."""
        self.layers = [number % self.depth if -self.depth <= number < self.depth else -1 for number in layers]
        if not self.layers or -1 in self.layers or self.layers != sorted({*self.layers}):
            raise ValueError(f"layers must be rising numbers of its {self.depth} blocks, from 0 on; got {[*layers]}")
        self.out_channels = [int(self.model.feature_info[number]["num_chs"]) for number in self.layers]

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W), whole patches -> a map (B, C, H / patch, W / patch) of each layer."""
        maps: list[Tensor] = self.model.forward_intermediates(
            image, indices=self.layers, intermediates_only=True, **self.arguments
        )
        return maps
