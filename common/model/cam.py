"""Class activation maps: a classifier's last linear layer, applied at every position instead of after pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.model.networks import NetworkConfig, SegmentationNetwork, build_network
from common.ops.cam import Normalisation, normalise_cam
from common.ops.tensors import at_least_fp32

# Architectures to take the encoder from: at output stride 16 where it can be dilated, else (most transformers) as it
# is; a plain ViT goes with the last one alone, at its patches' stride.
DONORS = ("DeepLabV3Plus", "FPN", "Linear")
LEAST = 1e-6  # probability of a class that an image is not said to show


class CamHead(nn.Sequential):
    """`a = w F`, a 1x1 convolution without bias: (B, D, h, w) features to (B, C, h, w) activations.

    Without bias and with mean pooling, the mean of `a` is `w` times the mean of F: the order does not matter. A bias
    would shift a map by a constant.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(nn.Conv2d(channels, classes, 1, bias=False))


def image_logits(activations: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean of the activations (B, C, h, w) over the image: (B, C), at least float32.

    Args:
        valid: (B, H, W) bool, False = padding, of the pixels that the activations cover; a cell counts by its share of
            valid pixels [ours]. None: all.
    """
    a = at_least_fp32(activations)
    if valid is None:
        return a.mean((2, 3))
    share = F.adaptive_avg_pool2d(valid[:, None].to(a.dtype), (a.shape[2], a.shape[3]))
    return (a * share).sum((2, 3)) / share.sum((2, 3)).clamp(min=1e-6)


def at_scale(image: Tensor, scale: float, multiple: int = 1) -> Tensor:
    """The image (B, 3, H, W) magnified, each side rounded to a multiple of `multiple` pixels: the map then covers it
    exactly, without padding at one side [ours]. Bilinear, `align_corners=False`, antialias off."""
    height, width = (max(1, round(side * scale / multiple)) * multiple for side in image.shape[2:])
    if (height, width) == tuple(image.shape[2:]):
        return image
    return F.interpolate(image, (height, width), mode="bilinear", align_corners=False)


@torch.no_grad()
def multi_scale_cam(
    activations: Callable[[Tensor], Tensor],
    image: Tensor,
    size: tuple[int, int],
    scales: Sequence[float] = (0.5, 1.0, 1.5, 2.0),
    flip: bool = True,
    multiple: int = 1,
) -> Tensor:
    """Activations of an image at several magnifications, of it and its mirror image: the raw CAM, not normalised.

    Each is resized to `size` after relu, and added up [PSA, IRN, SEAM code].

    Args:
        activations: (B, 3, h, w) to (B, C, h', w'), which covers the image. In eval mode.
        image: (B, 3, H, W), RGB in [0, 1].
        size: (height, width) of the result.
        multiple: see `at_scale`.

    Returns:
        (B, C, *size), at least float32, >= 0.
    """

    def resized(scaled: Tensor) -> Tensor:
        return F.interpolate(at_least_fp32(activations(scaled)).relu(), size, mode="bilinear", align_corners=False)

    total: Tensor | None = None
    for scale in scales:
        scaled = at_scale(image, scale, multiple)
        found = resized(scaled)
        if flip:
            found = found + resized(scaled.flip(-1)).flip(-1)
        total = found if total is None else total + found
    assert total is not None  # there is a scale
    return total


class CamNetwork(SegmentationNetwork):
    """An encoder and a `CamHead`, which has no decoder. Background is class 0; C = K - 1 objects.

    `forward` gives logits as any network here does, by the classes that it finds itself, at one scale: the logarithm of
    the background's score and of the normalised CAMs of the classes with `sigmoid(z) > 0.5`. So the softmax are the
    scores divided by their sum, and the largest one is the label.
    """

    background: Tensor

    def __init__(self, donor: SegmentationNetwork, num_classes: int, config: NetworkConfig, background: float) -> None:
        model = donor.model
        model.decoder = nn.Identity()
        model.segmentation_head = CamHead(int(model.encoder.out_channels[-1]), num_classes - 1)
        super().__init__(model, donor.stride, [0.0] * config.channels, [1.0] * config.channels, config)
        self.mean, self.std, self.only_size = donor.mean, donor.std, donor.only_size
        self.affinity: nn.Module | None = None  # see `common.model.affinity.add_affinity`
        self.register_buffer("background", torch.tensor(background))
        self.normalisation: Normalisation = "max"  # of the maps of `forward`
        # A method's own: (activations, [normalised image, the encoder's last two maps or its only one], valid) to
        # better maps.
        self.refine: nn.Module | None = None

    def activations(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> (B, C, h, w), which covers the image padded to a multiple of the stride."""
        maps, _ = self.encode(image)
        return cast(Tensor, self.model.segmentation_head(self.dropout(maps[-1])))

    @property
    def trained_encoder(self) -> nn.Module:
        return super().trained_encoder if self.affinity is None else cast(nn.Module, self.affinity.encoder)

    def both(self, image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The activations, and the maps that show where objects are: `refine` of them, or the same.

        Args:
            image: (B, 3, H, W) RGB in [0, 1].
            valid: (B, H, W) bool of what the activations cover, False = padding; None: all.
        """
        maps, _ = self.encode(image)
        a = cast(Tensor, self.model.segmentation_head(self.dropout(maps[-1])))
        if self.refine is None:
            return a, a
        return a, self.refine(a, [self.prepared(image), *maps[-2:]], valid)

    def maps(self, image: Tensor) -> Tensor:
        """The second of `both`."""
        return self.both(image)[1]

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> (B, K, H, W) logits, see the class."""
        height, width = image.shape[-2:]
        a, maps = (at_least_fp32(one) for one in self.both(image))
        found = (image_logits(a) > 0)[:, :, None, None]
        maps = F.interpolate(maps, self.padded_size(height, width), mode="bilinear", align_corners=False)
        cam = normalise_cam(maps[..., :height, :width], self.normalisation) * found
        return torch.cat([self.background.expand_as(cam[:, :1]), cam], 1).clamp(min=LEAST).log()


def build_cam_network(config: NetworkConfig, num_classes: int, background: float) -> CamNetwork:
    """The encoder of `config` with a CAM head; what it says of `arch` and `decoder` is for a segmentation network, and
    of no use here. Parameters that take no part in the activations are frozen, see `build_network`.

    Args:
        background: the background's score in `forward`.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: see `build_network`.
    """
    depth: dict[str, Any] = {key: value for key, value in config.decoder.items() if key == "encoder_depth"}
    first: ValueError | None = None
    for arch in DONORS:
        try:
            donor = build_network(replace(config, arch=arch, decoder=depth if arch != "Linear" else {}), num_classes)
            network = CamNetwork(donor, num_classes, config, background)
            freeze_unused(network, network.activations)
            return network.to(memory_format=torch.channels_last)
        except ValueError as error:
            first = first or error
    assert first is not None
    raise first


def freeze_unused(network: CamNetwork, output: Callable[[Tensor], Tensor]) -> None:
    """Freeze the parameters that get no gradient from an output of an image (B, C, H, W), as the norms of an encoder's
    earlier maps: DDP refuses them."""
    side = network.only_size or -(-128 // network.stride) * network.stride
    parameters = [p for p in network.parameters() if p.requires_grad]
    network.eval()  # keeps the BatchNorm statistics and draws no random number
    with torch.enable_grad():  # also where a run is loaded, without
        found = output(network.mean.new_zeros(1, network.channels, side, side))
        gradients = torch.autograd.grad(found.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    network.train()
