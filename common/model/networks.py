"""Networks for RGB of any size: an architecture of segmentation_models_pytorch (smp), or of `common.model.decoders`, on
an encoder of smp or timm."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import segmentation_models_pytorch as smp
import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional as F

from common.model import adapt, encoders, pretrained
from common.model.adapt import LoRAConfig, batch_norms
from common.model.pretrained import FILE_SUFFIXES


@dataclass
class NetworkConfig:
    """Which network to build.

    Args:
        arch: smp architecture: Unet, FPN, DeepLabV3Plus, PSPNet, Segformer, UPerNet, DPT, ...; or, for plain vision
            transformers of any patch size, Linear or UniMatchDPT.
        encoder: smp or timm model name; a name that both know is smp's, `tu-NAME` is always timm's.
        weights: None (from scratch), a name that smp or timm has for this encoder ("imagenet", "a1_in1k"; downloaded
            once), or the path of a .safetensors, .pt or .pth file with the encoder's weights. Files of timm's
            EfficientNets, Inceptions and Xception want the encoder `tu-NAME`.
        decoder: further arguments of the architecture, e.g. {"decoder_channels": [128, 64, 32, 16, 16]}.
        channels: of the images, as the data say (`data.channels`). With more than three the first convolution repeats
            the pretrained weights of R, G, B as timm and smp do.
        mean: a value a channel in units of RGB in [0, 1]. None: what the weights state, else ImageNet's; with more than
            three channels the training images'.
        std: as `mean`.
        dropout: share of the decoder's output channels dropped in training, before the segmentation head. Some
            architectures have a dropout of their own, set through `decoder`.
        freeze_bn: BatchNorm keeps the statistics of the weights (its scale and shift still learn): for small batches,
            and so that accumulated parts and devices see what one large batch would. `encoder`: only the encoder's.
        layer_decay: each layer of the encoder learns this times as fast as the next one, in (0, 1]; 1: all alike. For
            pretrained transformers, which want 0.65 to 0.9.
        checkpoint_activations: compute the encoder's activations again in the backward pass instead of keeping them;
            timm encoders only, and with BatchNorm only if it is frozen, whose statistics would move twice a step.
        compile: torch.compile of encoder, decoder and head; the first steps take a minute, checkpoints stay the same.
        freeze: `encoder`: it takes no gradient and no memory for one, its BatchNorm keeps its statistics and nothing in
            it is dropped; N: its first N layers, as `layer_decay` counts them, the patch embedding or stem first.
        lora: train low-rank updates of the encoder's linear layers (`rank`, `alpha`, `layers`) and leave its weights as
            they are; needs the extra `lora`. Their learning rate is the encoder's, for which `encoder_lr_scale` 1 is
            usual.
    """

    arch: str = "Unet"
    encoder: str = "mobilenet_v2"
    weights: str | None = None
    decoder: dict[str, Any] = field(default_factory=dict)
    channels: int = 3
    mean: list[float] | None = None
    std: list[float] | None = None
    dropout: float = 0.0
    freeze_bn: bool | Literal["encoder"] = False
    layer_decay: float = 1.0
    checkpoint_activations: bool = False
    compile: bool = False
    freeze: Literal["none", "encoder"] | int = "none"
    lora: LoRAConfig | None = None

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (len(values) != self.channels or not all(0 <= value <= 1 for value in values)):
                raise ValueError(
                    f"{name} must be {self.channels} values in units of RGB in [0, 1] (divide by 255), got {values}"
                )
        if self.std is not None and min(self.std) == 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1], 1 for one learning rate, got {self.layer_decay}")
        if self.freeze not in ("none", "encoder") and (type(self.freeze) is not int or self.freeze < 1):
            raise ValueError(f"freeze is none, encoder or a number of layers from 1 on, got {self.freeze!r}")
        if self.lora is not None and self.freeze != "none":
            raise ValueError(f"lora freezes the encoder's own weights: leave freeze at none, got {self.freeze!r}")


class SegmentationNetwork(nn.Module):
    """An smp model that takes RGB in [0, 1] at any size: it normalises, pads to its stride, and crops back."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, stride: int, mean: list[float], std: list[float], config: NetworkConfig) -> None:
        super().__init__()
        self.channels = config.channels
        # What the training images are to say, see `normalise_by`.
        self.measured = [one for one in ("mean", "std") if config.channels > 3 and getattr(config, one) is None]
        self.model = model  # an smp.base.SegmentationModel, whose parts smp does not declare
        self.encoder_name, self.only_size = config.encoder, 0  # the one size of images that some encoders take
        self.stride, self.freeze_bn, self.layer_decay = stride, config.freeze_bn, config.layer_decay
        self.freeze = "encoder" if config.lora is not None else config.freeze  # what stays in eval mode
        self.dropout = nn.Dropout2d(config.dropout)
        # Persistent: trained weights mean nothing under another normalisation, so it travels with them in every
        # checkpoint, also to where the pretrained weights that stated it are not at hand.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def train(self, mode: bool = True) -> SegmentationNetwork:
        super().train(mode)
        if self.freeze_bn:
            for module in batch_norms(self.trained_encoder if self.freeze_bn == "encoder" else self):
                module.eval()
        if self.freeze == "encoder":
            self.model.encoder.eval()
        elif self.freeze != "none":
            for module in adapt.frozen_parts(self.model.encoder):
                module.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K, H, W) logits."""
        height, width = image.shape[-2:]
        return self.classify(self.features(image)[1], height, width)

    def features(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, C, H, W) in [0, 1] -> smp's list of encoder maps, and the decoder's output (B, C, h, w).

        They cover the image padded at the bottom and right to a multiple of `self.stride`.
        """
        maps, tokens = self.encode(image)
        return maps, self.decode(maps, tokens)

    def encode(self, image: Tensor) -> tuple[list[Tensor], list[Tensor | None] | None]:
        """(B, C, H, W) in [0, 1] -> the list of encoder maps (B, D, h, w), and for smp's DPT a ViT's prefix tokens.
        Raises what `prepared` raises."""
        encoded = self.model.encoder(self.prepared(image))
        return encoded if isinstance(encoded, tuple) else (encoded, None)  # DPT has prefix tokens, the others have none

    def prepared(self, image: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> what an encoder takes: normalised, and padded to a multiple of the stride.

        Raises:
            ValueError: an image larger than the one size that an encoder is built for.
        """
        height, width = image.shape[-2:]
        if self.only_size and max(height, width) > self.only_size:
            side = self.only_size
            raise ValueError(
                f"encoder {self.encoder_name!r} takes at most {side} x {side} pixels, got {height} x {width}: "
                f"set data.crop and model.inference.window to [{side}, {side}]"
            )
        normalised = (image - self.mean) / self.std
        # After the normalisation, so that padding looks like the mean colour and not like black.
        padded = F.pad(normalised, (0, -width % self.stride, 0, -height % self.stride))
        # Convolutions are 20 to 30 % faster on CPUs (measured, Unet and FPN) and not slower on GPUs in this layout.
        return padded.contiguous(memory_format=torch.channels_last)

    def decode(self, maps: list[Tensor], tokens: list[Tensor | None] | None = None) -> Tensor:
        """What `encode` gave -> the decoder's output (B, C, h, w); between the two, features can be perturbed."""
        return cast(Tensor, self.model.decoder(maps) if tokens is None else self.model.decoder(maps, tokens))

    def classify(self, decoded: Tensor, height: int, width: int) -> Tensor:
        """The decoder's output of a height x width image -> its logits (B, K, height, width)."""
        logits: Tensor = self.model.segmentation_head(self.dropout(decoded))
        return logits[..., :height, :width]

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the padded image that `features` covers, for an image of height x width."""
        return height + -height % self.stride, width + -width % self.stride

    @property
    def decoder_channels(self) -> int:
        """Channels of the decoder's output."""
        return next(m.in_channels for m in self.model.segmentation_head.modules() if isinstance(m, nn.Conv2d))

    def parameter_groups(self, encoder_lr_scale: float) -> list[dict[str, Any]]:
        """Optimizer groups of the trained parameters: the encoder (with `layer_decay` a group a layer, from the image
        on), then all the rest; `lr_scale` multiplies the learning rate."""
        layers = [self.encoder_parameters()] if self.layer_decay == 1 else self.encoder_layers()
        groups = [
            {"params": parameters, "lr_scale": encoder_lr_scale * self.layer_decay ** (len(layers) - 1 - number)}
            for number, parameters in enumerate(layers)
        ]
        return [*groups, {"params": self.decoder_parameters(), "lr_scale": 1.0}]

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The trained parameters of the encoder, for a learning rate of their own."""
        return [p for p in self.trained_encoder.parameters() if p.requires_grad]

    @property
    def trained_encoder(self) -> nn.Module:
        """Whose parameters are the encoder's in `parameter_groups`."""
        return cast(nn.Module, self.model.encoder)

    def encoder_layers(self) -> list[list[nn.Parameter]]:
        """The encoder's trained parameters layer by layer, from the image on: the layers that a timm model states, else
        by the first number in a name, which counts stages or blocks (`block1.0`, `features.7`, `layers_2`)."""
        model: Any = getattr(self.trained_encoder, "model", self.trained_encoder)
        if hasattr(model, "group_matcher"):
            layer = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        else:
            numbers = {name: re.search(r"\d+", name) for name, _ in model.named_parameters()}
            layer = {name: int(number[0]) if number else -1 for name, number in numbers.items()}
        found: dict[int, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                found.setdefault(layer[name], []).append(parameter)
        return [found[number] for number in sorted(found)]

    def decoder_parameters(self) -> list[nn.Parameter]:
        """The trained parameters of everything but the encoder."""
        encoder = {id(p) for p in self.trained_encoder.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in encoder]


def build_network(config: NetworkConfig, num_classes: int) -> SegmentationNetwork:
    """Build the network of `config` for `num_classes` classes, with its pretrained encoder if it asks for one.

    Parameters that its forward never uses (encoder stages below PSPNet's, a ViT's classifier) are frozen: DDP refuses
    parameters that get no gradient.

    Raises:
        ValueError: unknown arch, encoder, weights name or decoder argument (the message names the nearest), a weights
            file that does not fit the encoder or that it would compute something else with, an arch and an encoder that
            do not go together, or what cannot be frozen, adapted or checkpointed.
        FileNotFoundError: no such weights file.
        RuntimeError: named weights that cannot be downloaded.
        ModuleNotFoundError: `lora` without peft.
    """
    arch = encoders.find_arch(config.arch)
    encoders.check_decoder(arch, config.decoder)
    encoder = encoders.find_encoder(config.encoder, timm_only=arch in (*encoders.ON_TOKENS, smp.DPT))
    full = encoders.timm_skeleton(encoder) if encoder.startswith("tu-") else None
    if full is not None:
        encoders.check_pair(arch, config.encoder, {int(stage["reduction"]) for stage in full.feature_info})

    file = config.weights if config.weights is not None and config.weights.endswith(FILE_SUFFIXES) else None
    named = config.weights if file is None else None
    if file is not None:
        pretrained.check_takes_files(encoder)
    state, metadata = pretrained.read_weights(Path(file)) if file is not None else ({}, {})
    if named is not None:
        pretrained.check_weights_name(encoder, named)
        if full is not None:
            encoder = f"{encoder}.{named}"  # timm's weights are part of the model's name
    pair = f"arch {config.arch} with encoder {config.encoder}"
    try:
        model = arch(
            encoder_name=encoder,
            encoder_weights=named if full is None else (True if named else None),
            in_channels=config.channels,
            classes=num_classes,
            **encoders.any_size_arguments(full),
            **config.decoder,
        )
    except OSError as error:
        raise RuntimeError(
            f"weights {named!r} of encoder {config.encoder!r} could not be downloaded ({type(error).__name__}). Without"
            f" a network, set weights to null (from scratch) or to a local {', '.join(FILE_SUFFIXES)} file"
        ) from error
    except Exception as error:
        raise ValueError(f"{pair} cannot be built: {error}") from error

    mean, std = config.mean, config.std
    if mean is None or std is None:
        if named is not None:
            stated = pretrained.named_normalisation(encoder, named)
        else:
            stated = pretrained.file_normalisation(metadata, file)
        if config.channels > 3:
            stated = [0.5] * config.channels, [0.25] * config.channels
        mean, std = mean or stated[0], std or stated[1]
    if file is not None:
        pretrained.load_encoder(model.encoder, state, file, full)
    stride = int(model.encoder.output_stride)
    if arch is smp.DPT:  # its i-th map is resampled to stride 2^(i + 2), also beyond the patch size
        stride = max(stride, 2 ** (len(model.encoder.out_channels) + 1))
    network = SegmentationNetwork(model, stride, mean, std, config)
    if config.lora is not None:
        adapt.add_lora(model.encoder, config.lora, config.encoder)
    _try_out(network, num_classes, pair, int(full.pretrained_cfg["input_size"][-1]) if full is not None else None)
    if config.lora is not None:
        adapt.check_lora(model.encoder, config.encoder)
    elif config.freeze == "encoder":
        model.encoder.requires_grad_(False)
    elif config.freeze != "none":
        adapt.freeze_layers(network.encoder_layers(), config.freeze, config.encoder)
    network.train()
    if config.checkpoint_activations:
        adapt.checkpoint_activations(
            model.encoder, bool(config.freeze_bn) or network.freeze == "encoder", config.encoder
        )
    if config.compile:
        for part in (model.encoder, model.decoder, model.segmentation_head):  # methods call them one by one
            part.compile()
    return network.to(memory_format=torch.channels_last)


def normalise_by(module: nn.Module, data: Any) -> None:
    """Check that networks take the images of a data module, and normalise those of more than three channels, whose mean
    and deviation no weights state, by its training images.

    Raises:
        ValueError: a network is for another number of channels.
    """
    for network in module.modules():
        if isinstance(network, SegmentationNetwork):
            if network.channels != data.channels:
                raise ValueError(
                    f"the images have {data.channels} channels, the network takes {network.channels}: set "
                    f"model.network.channels to {data.channels}"
                )
            if network.measured:
                statistics = dict(zip(("mean", "std"), data.statistics(), strict=True))
                for name in network.measured:
                    stated = getattr(network, name)
                    stated.copy_(torch.tensor(statistics[name]).view_as(stated))


def _try_out(network: SegmentationNetwork, num_classes: int, what: str, usual: int | None) -> None:
    """One small image through `network`: check its output's size and freeze the parameters without a gradient.

    An encoder that refuses it is tried with the one size that it may be built for, `usual`, and is kept to it.
    """
    small = network.stride * math.ceil(128 / network.stride)  # PAN needs 128 pixels
    parameters = [one for one in network.parameters() if one.requires_grad]
    network.eval()  # keeps the BatchNorm statistics and draws no random number
    failed: Exception | None = None
    for side in (small, usual or small):
        try:
            with torch.enable_grad():
                logits = network(torch.zeros(1, network.channels, side, side))
            break
        except Exception as error:
            failed = failed or error
    else:
        raise ValueError(f"{what} does not run: {failed}") from failed
    if failed is not None:
        network.stride = network.only_size = side
    if logits.shape != (1, num_classes, side, side):
        raise ValueError(f"{what}: the logits of a {side} x {side} image are {tuple(logits.shape)}; see `decoder`")
    gradients = torch.autograd.grad(logits, parameters, torch.ones_like(logits), allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
