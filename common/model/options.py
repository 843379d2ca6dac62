"""The constructor options of methods and data modules as plain values, so that a run made in Python can be loaded.

Lightning's `save_hyperparameters` would put objects into checkpoints, which then could not be read as data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch.utilities.parsing import collect_init_args

LEFT_OUT = ("num_classes", "seed")  # the data's, and the run's


def given_options(frame: FrameType | None) -> dict[str, Any]:
    """The arguments, defaults too, of the constructor that runs in `frame` and of the subclasses' that called it."""
    assert frame is not None  # CPython has frames
    return {name: value for level in collect_init_args(frame, []) for name, value in level.items()}


def plain_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as YAML gives them back; functions, such as an optimizer's, are left out."""
    return {name: plain(value) for name, value in given.items() if name not in LEFT_OUT and not callable(value)}


def plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, paths as strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
