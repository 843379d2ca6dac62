"""Training a pretrained encoder in part: frozen layers, low-rank updates (LoRA), activations computed twice."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from torch import nn

# The linear layers of an attention, in the words of timm and smp.
ATTENTION = ("qkv", "q_proj", "k_proj", "v_proj", "q", "kv")


@dataclass
class LoRAConfig:
    """Low-rank updates of linear layers (Hu et al., ICLR 2022, arXiv 2106.09685), by `peft`: W x + alpha / rank B A x.

    Args:
        rank: rows of A and columns of B.
        alpha: the update's scale, over `rank`.
        layers: names of the linear layers that get an update (`[qkv, proj, fc1, fc2]`); empty: those of the attention.
    """

    rank: int = 8
    alpha: float = 16.0
    layers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"lora needs rank >= 1 and alpha > 0, got {self.rank} and {self.alpha}")


def add_lora(encoder: nn.Module, config: LoRAConfig, name: str) -> None:
    """Give the encoder's layers their updates, zero at first, and freeze all else of it.

    Args:
        name: of the encoder, for errors.

    Raises:
        ModuleNotFoundError: peft is missing.
        ValueError: the encoder has no such layers.
    """
    if find_spec("peft") is None:
        raise ModuleNotFoundError("network.lora needs peft: pip install -e '.[lora]'")
    from peft import LoraConfig, inject_adapter_in_model

    linear = {path.rpartition(".")[2] for path, part in encoder.named_modules() if isinstance(part, nn.Linear)}
    chosen = sorted(config.layers or linear & {*ATTENTION})
    if not chosen or not linear.issuperset(chosen):
        missing = ", ".join(sorted({*chosen} - linear)) or "attention layers"
        raise ValueError(f"lora: encoder {name!r} has no {missing}; its linear layers: {', '.join(sorted(linear))}")
    options: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha}  # peft's types want a whole alpha
    inject_adapter_in_model(LoraConfig(**options, target_modules=chosen), encoder)


def check_lora(encoder: nn.Module, name: str) -> None:
    """Raise ValueError if the forward passes by the updates of a kind of layer: they were left without a gradient."""
    updates = [(path.partition(".lora_")[0].rpartition(".")[2], one) for path, one in encoder.named_parameters()
               if ".lora_" in path]  # fmt: skip
    reached = {layer for layer, one in updates if one.requires_grad}
    if lost := {layer for layer, _ in updates} - reached:
        raise ValueError(
            f"lora: encoder {name!r} reads the weights of {', '.join(sorted(lost))} past the updates, which would not "
            "learn: name other layers, as lora.layers [proj, fc1, fc2]"
        )


def merged(network: nn.Module) -> nn.Module:
    """A copy of the network with its low-rank updates added to the weights that they are of, a plain network with the
    same outputs; one without updates is returned as it is."""
    if not any(".lora_" in path for path, _ in network.named_parameters()):
        return network
    network = copy.deepcopy(network)
    updated: list[tuple[str, Any]] = [(path, part) for path, part in network.named_modules() if hasattr(part, "lora_A")]
    for path, part in updated:
        part.merge()
        network.set_submodule(path, part.get_base_layer())
    return network


def frozen_parts(encoder: nn.Module) -> list[nn.Module]:
    """Its modules that have parameters of which none is trained; they contain their dropout and BatchNorm."""
    parts = []
    for part in encoder.modules():
        parameters = [*part.parameters()]
        if parameters and not any(one.requires_grad for one in parameters):
            parts.append(part)
    return parts


def freeze_layers(layers: list[list[nn.Parameter]], count: int, name: str) -> None:
    """No gradient for the parameters of the first `count` layers.

    Raises:
        ValueError: there are no more layers than that.
    """
    if count >= len(layers):
        raise ValueError(
            f"freeze: encoder {name!r} has {len(layers)} layers, the patch embedding or stem as the first, got "
            f"{count}: at most {len(layers) - 1}, or freeze: encoder for them all"
        )
    for parameter in (one for layer in layers[:count] for one in layer):
        parameter.requires_grad_(False)


def checkpoint_activations(encoder: Any, still: bool, name: str) -> None:
    """Compute the encoder's activations again in the backward pass instead of keeping them.

    Args:
        still: its BatchNorm keeps its statistics.
        name: of the encoder, for errors.

    Raises:
        ValueError: it cannot, or its BatchNorm statistics would move twice a step.
    """
    model: Any = getattr(encoder, "model", None)
    if not hasattr(model, "set_grad_checkpointing"):
        model = getattr(model, "model", None)  # timm wraps some of its models
    if not hasattr(model, "set_grad_checkpointing"):
        raise ValueError(
            f"checkpoint_activations needs a timm encoder, {name!r} is smp's: set it to false or take a tu-"
        )
    if batch_norms(encoder) and not still:
        raise ValueError(
            f"checkpoint_activations would move the BatchNorm statistics of {name!r} twice a step: set "
            "freeze_bn to true, or checkpoint_activations to false"
        )
    model.set_grad_checkpointing()


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Its layers with batch statistics."""
    return [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
