"""An encoder's pretrained weights: their names, their files, and the normalisation that they state."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from safetensors import safe_open
from timm.models import adapt_input_conv
from torch import Tensor, nn

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
FILE_SUFFIXES = (".safetensors", ".pt", ".pth")
CLASSIFIER_KEYS = ("classifier.", "fc.", "_fc.", "head.", "last_linear.")
# smp's own encoders, each with the timm model that has its names and shapes and computes something else: smp pads
# symmetrically, or where timm does not pad, and has another BatchNorm eps.
COMPUTE_OTHERWISE = {
    **{f"timm-efficientnet-{size}": f"tf_efficientnet_{size}" for size in (*(f"b{n}" for n in range(9)), "l2")},
    **{f"timm-tf_efficientnet_lite{n}": f"tf_efficientnet_lite{n}" for n in range(5)},
    "inceptionresnetv2": "inception_resnet_v2",
    "inceptionv4": "inception_v4",
    "xception": "legacy_xception",
}


def check_weights_name(encoder: str, name: str) -> None:
    """Raise ValueError unless smp or timm (`tu-`) has weights of this name for the encoder; it tells what there is."""
    if encoder.startswith("tu-"):
        known = [full.partition(".")[2] for full in timm.list_pretrained(f"{encoder.removeprefix('tu-')}.*")]
    else:
        known = list(smp.encoders.encoders[encoder]["pretrained_settings"])
    if name not in known:
        raise ValueError(
            f"unknown weights {name!r} for encoder {encoder!r}; it has: {', '.join(known) or 'none'}."
            f" A local file must end in {', '.join(FILE_SUFFIXES)}"
        )


def check_takes_files(encoder: str) -> None:
    """Raise ValueError for an encoder that timm's file would fit without an error, and give other features."""
    if encoder in COMPUTE_OTHERWISE:
        twin = COMPUTE_OTHERWISE[encoder]
        raise ValueError(
            f"encoder {encoder!r} takes no weights file: one of timm's {twin} would load, and give other features than"
            f" timm's (other padding, other BatchNorm eps). Write encoder: tu-{twin}, or tu- and the file's timm model"
        )


def named_normalisation(encoder: str, weights: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, in units of RGB in [0, 1], that such weights state; ValueError if not for RGB."""
    stated = smp.encoders.get_preprocessing_params(encoder, pretrained=weights)
    if stated["input_space"] != "RGB":
        raise ValueError(
            f"weights {weights!r} of {encoder!r} want {stated['input_space']} images; only RGB is supported"
        )
    scale = stated["input_range"][1]  # mean and std are in units of this range, our images end at 1
    return [value / scale for value in stated["mean"]], [value / scale for value in stated["std"]]


def file_normalisation(metadata: dict[str, str], file: str | None) -> tuple[list[float], list[float]]:
    """The `input` that a safetensors file states, e.g. "(uint8_rgb - 128) / 128"; ImageNet's if it states none.

    Mean and standard deviation in units of RGB in [0, 1]; ValueError for a statement in another form.
    """
    if "input" not in metadata:
        return IMAGENET_MEAN, IMAGENET_STD
    match = re.fullmatch(r"\(uint8_rgb - (\d+\.?\d*)\) / (\d+\.?\d*)", metadata["input"])
    if match is None:
        raise ValueError(f"{file} states its input as {metadata['input']!r}, not understood here: set mean and std")
    mean, std = (float(group) / 255 for group in match.groups())
    return [mean] * 3, [std] * 3


def read_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and metadata, of a .safetensors, .pt or .pth file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds anything but tensors.
    """
    file = file.expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no weights file {file} (looked for {file.absolute()})")
    metadata: dict[str, str] = {}
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata() or {}
            state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
    else:
        state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} must hold a flat dict of names and tensors, as module.state_dict() gives it")
    return state, metadata


def load_encoder(encoder: nn.Module, state: dict[str, Tensor], file: str, full: Any) -> None:
    """Copy `state` into `encoder`; names are its own (`encoder.` in front or not) or those of timm's whole model.

    Args:
        file: named in errors.
        full: timm's whole model, on the meta device; None for smp's own encoders.
    """
    state = {name.removeprefix("encoder."): value for name, value in state.items()}
    wanted = encoder.state_dict()
    ignorable = {name for name in state if name.startswith(CLASSIFIER_KEYS)}
    if full is not None:
        whole = set(full.state_dict())
        ignorable |= whole  # its last norm and the stages that the decoder does not read are not in the encoder
        # timm's names of the encoder's keys: without smp's "model.", and "stages.0." or "features.conv0." where its
        # feature extractors say "stages_0." and "features_conv0.", or without what they put in front.
        for name in wanted:
            own = name.removeprefix("model.")
            numbered, dotted = re.sub(r"_(\d+)\.", r".\1.", own, count=1), own.replace("_", ".", 1)
            bare = re.sub(r"^(body|model)\.", "", own)
            theirs = next((one for one in (own, numbered, dotted, bare) if one in whole), own)
            if name not in state and theirs in state:
                state[name] = state.pop(theirs)

    def first(names: list[str]) -> str:
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    for name, weight in wanted.items():  # the first convolution, of images with more channels than RGB
        more = weight.ndim == 4 and weight.shape[1] > 3
        if more and name in state and state[name].shape == (len(weight), 3, *weight.shape[2:]):
            state[name] = adapt_input_conv(weight.shape[1], state[name])

    # Older files lack BatchNorm's batch counter, which only a cumulative average (momentum None) would use.
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in wanted and name not in ignorable]
    reshaped = [
        f"{name} {tuple(state[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    if any(wrong.values()):
        text = "; ".join(f"{kind}: {first(names)}" for kind, names in wrong.items() if names)
        raise ValueError(f"{file} does not fit the encoder: {text}")
    # Copies into the encoder's fp32 tensors, also from a file in half precision. Not by the encoder's own method: some
    # of smp's take no `strict`.
    nn.Module.load_state_dict(encoder, {name: value for name, value in state.items() if name in wanted}, strict=False)
