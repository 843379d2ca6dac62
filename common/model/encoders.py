"""Which encoder and which architecture: their names, what goes together, and what lets an encoder take any size."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch import MODEL_ARCHITECTURES_MAPPING

from common.model.decoders import Linear, UniMatchDPT

ON_TOKENS = (Linear, UniMatchDPT)  # ours, on plain vision transformers
ARCHITECTURES = {**MODEL_ARCHITECTURES_MAPPING, **{arch.__name__.lower(): arch for arch in ON_TOKENS}}


def unknown(kind: str, name: str, known: Sequence[str], whole_list: str = "") -> ValueError:
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=4, cutoff=0.5)]
    nearest = f"nearest: {', '.join(near)}" if near else "no similar name"
    return ValueError(f"unknown {kind} {name!r}; {nearest}. All of them: {whole_list or ', '.join(known)}")


def find_arch(name: str) -> Any:
    """The class of an architecture, smp's or ours; upper and lower case are the same."""
    if name.lower() not in ARCHITECTURES:
        raise unknown("arch", name, [arch.__name__ for arch in ARCHITECTURES.values()])
    return ARCHITECTURES[name.lower()]


def check_decoder(arch: Any, decoder: dict[str, Any]) -> None:
    """smp passes what it does not know on to the encoder, where a typing error is lost without a word."""
    ours = {"self", "kwargs", "encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params"}
    known = [name for name in inspect.signature(arch.__init__).parameters if name not in ours]
    for name in decoder:
        if name not in known:
            raise unknown(f"decoder argument of {arch.__name__}", name, known)


def find_encoder(name: str, timm_only: bool) -> str:
    """The name that smp wants: its own, or timm's with the prefix `tu-`."""
    smp_names = [] if timm_only else smp.encoders.get_encoder_names()
    if name in smp_names:
        return name
    timm_name, _, tag = name.removeprefix("tu-").partition(".")
    if not timm.is_model(timm_name):
        smp_list = "" if timm_only else " and segmentation_models_pytorch.encoders.get_encoder_names()"
        raise unknown("encoder", name, [*timm.list_models(), *smp_names], f"timm.list_models(){smp_list}")
    if tag:
        raise ValueError(f"encoder {name!r} names its weights: write encoder: {timm_name} and weights: {tag}")
    return f"tu-{timm_name}"


def check_pair(arch: Any, encoder: str, strides: set[int]) -> None:
    """Raise ValueError for an encoder whose maps have these strides and which the architecture cannot take."""
    if arch in ON_TOKENS and len(strides) > 1:
        raise ValueError(
            f"arch {arch.__name__} wants a plain vision transformer, encoder {encoder!r} has maps of several sizes: "
            "use FPN, UPerNet, Unet or another arch of smp's"
        )
    if arch is smp.DPT and any(stride & (stride - 1) for stride in strides):
        raise ValueError(
            f"arch DPT needs a patch size that is a power of 2, encoder {encoder!r} has {max(strides)}: "
            "use arch UniMatchDPT or Linear"
        )
    if arch not in (*ON_TOKENS, smp.DPT) and len(strides) == 1:
        raise ValueError(
            f"encoder {encoder!r} is a plain vision transformer: use arch DPT, UniMatchDPT or Linear, "
            f"not {arch.__name__}"
        )


def timm_skeleton(encoder: str) -> Any:
    """The whole timm model without memory: to see its arguments, strides and parameter names."""
    with torch.device("meta"):
        return timm.create_model(encoder.removeprefix("tu-"))


def any_size_arguments(full: Any) -> dict[str, Any]:
    """What makes a timm transformer take images of any size, by what its class understands."""
    known = inspect.signature(type(full).__init__).parameters
    if "strict_img_size" in known:  # Swin
        return {"strict_img_size": False}
    return {"dynamic_img_size": True} if "dynamic_img_size" in known else {}
