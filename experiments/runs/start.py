"""A new run that starts from a trained network, of any method and any list of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from common.model.ema import EMATeacher
from common.model.module import SegmentationModule
from common.model.networks import SegmentationNetwork
from experiments.runs.checkpoint import read_checkpoint

NETWORK, ENCODER, HEAD = "network.", "network.model.encoder.", "network.model.segmentation_head."


def start_from(model: SegmentationModule, file: Path, class_names: Sequence[str]) -> str:
    """Load a checkpoint's weights into a new model; returns what was taken, in a line.

    All weights, where method, network and classes are the same. Else those of the trained network that fit the new one
    by name and shape, as in papers that train in two phases; teachers start as copies of it. The last layer is left as
    it was drawn if the classes are others. Further networks (the second one of CPS, discriminators) start anew.

    Args:
        class_names: of the data; the checkpoint's may differ.

    Raises:
        FileNotFoundError, ValueError: there is no checkpoint, or its encoder is another one.
    """
    checkpoint = read_checkpoint(file)
    told, weights, own = checkpoint["weakseg"], checkpoint["state_dict"], model.state_dict()
    # A layer that is to get low-rank updates (LoRA) has its own weights one level below.
    below = {name.replace(".base_layer.", "."): name for name in own if ".base_layer." in name and name not in weights}
    weights = {below.get(name, name): value for name, value in weights.items()}
    same_classes = told.get("classes", [*class_names]) == [*class_names]
    if same_classes and told.get("method") == type(model).__name__ and shapes(weights) == shapes(own):
        model.load_state_dict(weights)
        keep_normalisation(model)
        return f"{file}: all weights"
    ours = {name: value for name, value in own.items() if name.startswith(NETWORK)}
    fits = {
        name: weights[name]
        for name, value in ours.items()
        if name in weights and weights[name].shape == value.shape and (same_classes or not name.startswith(HEAD))
    }
    if lost := [name for name in ours if name.startswith(ENCODER) and name not in fits and ".lora_" not in name]:
        raise ValueError(
            f"{file} has another encoder than this network ({lost[0]} does not fit): give the model.network that "
            "it was trained with"
        )
    model.load_state_dict({**own, **fits})
    keep_normalisation(model.network)
    network = model.network.state_dict()
    for teacher in model.modules():
        if isinstance(teacher, EMATeacher) and teacher.network.state_dict().keys() == network.keys():
            teacher.network.load_state_dict(network)
            keep_normalisation(teacher)
    left = [name for name in ours if name not in fits]
    reason = "" if same_classes else f" (the classes were {', '.join(told['classes'])})"
    named = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
    rest = f"; drawn anew: {named}{reason}" if left else ""
    return f"{file}, of {told.get('method')}: {len(fits)} of {len(ours)} tensors of the network{rest}"


def keep_normalisation(part: nn.Module) -> None:
    """Leave the networks in it the normalisation that their weights came with, where the data's would take its place
    (images of more than three bands)."""
    for network in part.modules():
        if isinstance(network, SegmentationNetwork):
            network.measured = []


def shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """What must agree for weights to be loaded."""
    return {name: tuple(value.shape) for name, value in weights.items()}
