"""Decoders on plain vision transformers, beside those of segmentation_models_pytorch (smp), of the same three parts: an
encoder, a decoder that gives maps, and a head that gives logits at the size of the padded image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from common.model.vit import ViTEncoder

# `features` and `out_channels` of UniMatch V2's code and of Depth Anything, whose head it has, by width of transformer.
# S and B follow a rule, width / 6 and width / 8, / 4, / 2 and itself, by which others are built here too [ours].
DPT_WIDTHS = {1024: (256, [256, 512, 1024, 1024]), 1536: (384, [1536, 1536, 1536, 1536])}
DPT_LAYERS = {24: [4, 11, 17, 23]}  # by depth; others take the last of each quarter: 2, 5, 8, 11 of 12


class Resized(nn.Module):
    """Maps resized bilinearly by a fraction; in whole numbers, since a product of floats can fall short of a pixel."""

    def __init__(self, times: int, over: int, align_corners: bool) -> None:
        super().__init__()
        self.times, self.over, self.align_corners = times, over, align_corners

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h times / over, w times / over)."""
        size = [side * self.times // self.over for side in maps.shape[-2:]]
        return F.interpolate(maps, size, mode="bilinear", align_corners=self.align_corners)


class LastMap(nn.Module):
    """BatchNorm of the last map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of the encoder -> the last one (B, C, h, w), normalised."""
        normalised: Tensor = self.norm(maps[-1])
        return normalised


class Linear(nn.Module):
    """BatchNorm and a 1x1 convolution on the last tokens: the linear head of DINOv2 (Oquab et al. 2024, 2304.07193).

    Args:
        encoder_name: `tu-` and timm's name of a plain vision transformer.
        encoder_weights: None for random ones.
        in_channels: of the images.
        classes: K.
        kwargs: of the timm model.
    """

    def __init__(self, encoder_name: str, encoder_weights: Any, in_channels: int, classes: int, **kwargs: Any) -> None:
        super().__init__()
        self.encoder = ViTEncoder(
            encoder_name.removeprefix("tu-"), bool(encoder_weights), [-1], in_chans=in_channels, **kwargs
        )
        channels = self.encoder.out_channels[-1]
        self.decoder = LastMap(channels)
        self.segmentation_head = nn.Sequential(
            nn.Conv2d(channels, classes, 1), Resized(self.encoder.output_stride, 1, align_corners=False)
        )


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.conv2(F.relu(self.conv1(F.relu(x))))
        return x + change


class Fusion(nn.Module):
    """The deeper level's map and this level's, as one map at the size of the next level; the deepest has no deeper."""

    def __init__(self, channels: int, deepest: bool) -> None:
        super().__init__()
        self.of_level = None if deepest else Residual(channels)
        self.of_sum = Residual(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, level: Tensor, deeper: Tensor | None, size: Sequence[int]) -> Tensor:
        if self.of_level is not None and deeper is not None:
            level = deeper + self.of_level(level)
        fused = F.interpolate(self.of_sum(level), size, mode="bilinear", align_corners=True)
        projected: Tensor = self.project(fused)
        return projected


class DPTDecoder(nn.Module):
    """Four maps of one size -> a pyramid of 4, 2, 1 and 1/2 times it -> fused from the deepest on, at 8 times it."""

    def __init__(self, channels: Sequence[int], features: int, out_channels: Sequence[int]) -> None:
        super().__init__()
        self.projects = nn.ModuleList(nn.Conv2d(one, out, 1) for one, out in zip(channels, out_channels, strict=True))
        first, second, _, last = out_channels
        self.resizes = nn.ModuleList([
            nn.ConvTranspose2d(first, first, 4, stride=4),
            nn.ConvTranspose2d(second, second, 2, stride=2),
            nn.Identity(),
            nn.Conv2d(last, last, 3, stride=2, padding=1),
        ])  # fmt: skip
        self.levels = nn.ModuleList(nn.Conv2d(out, features, 3, padding=1, bias=False) for out in out_channels)
        self.fusions = nn.ModuleList(Fusion(features, deepest=number == 3) for number in range(4))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps (B, C, h, w) -> (B, features, 8 h, 8 w)."""
        parts = zip(maps, self.projects, self.resizes, self.levels, strict=True)
        levels = [level(resize(project(one))) for one, project, resize, level in parts]
        height, width = levels[0].shape[-2:]
        sizes = [(2 * height, 2 * width), *(one.shape[-2:] for one in levels[:3])]
        fused: Tensor | None = None
        for level, fusion, size in [*zip(levels, self.fusions, sizes, strict=True)][::-1]:
            fused = fusion(level, fused, size)
        assert fused is not None
        return fused


class UniMatchDPT(nn.Module):
    """The DPT decoder (Ranftl et al., ICCV 2021, 2103.13413) as UniMatch V2 has it (Yang et al. 2024, 2410.10777; code
    LiheYoung/UniMatch-V2): no BatchNorm, class token left out, every map after the transformer's last norm.

    Args:
        encoder_name: `tu-` and timm's name of a plain vision transformer.
        encoder_weights: None for random ones.
        in_channels: of the images.
        classes: K.
        features: channels of the fused maps; None: what the code has for a transformer of this width.
        out_channels: channels of the pyramid's four levels; None: as `features`.
        layers: four blocks of the transformer, from 0 on; None: the code's for this depth.
        kwargs: of the timm model.

    Raises:
        ValueError: not four levels or layers.
    """

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: Any,
        in_channels: int,
        classes: int,
        features: int | None = None,
        out_channels: Sequence[int] | None = None,
        layers: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        # All blocks first: how many there are, timm tells only of a model that is built.
        self.encoder = ViTEncoder(
            encoder_name.removeprefix("tu-"), bool(encoder_weights), [-1], in_chans=in_channels, **kwargs
        )
        depth = self.encoder.depth
        quarters = [depth * part // 4 - 1 for part in (1, 2, 3, 4)]
        self.encoder.choose(DPT_LAYERS.get(depth, quarters) if layers is None else layers)
        width = self.encoder.out_channels[-1]
        rule = (width // 6, [width // 8, width // 4, width // 2, width])
        usual = DPT_WIDTHS.get(width, rule)
        features = usual[0] if features is None else features
        out_channels = usual[1] if out_channels is None else out_channels
        if not len(self.encoder.out_channels) == len(out_channels) == 4:
            raise ValueError(f"layers and out_channels are four each, got {layers} and {[*out_channels]}")
        self.decoder = DPTDecoder(self.encoder.out_channels, features, out_channels)
        self.segmentation_head = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(features, classes, 1),
            Resized(self.encoder.output_stride, 8, align_corners=True),
        )
