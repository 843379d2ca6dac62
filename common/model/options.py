"""The constructor options of methods and data modules as plain values, so that a run made in Python can be loaded.

Lightning's `save_hyperparameters` would put objects into checkpoints, which then could not be read as data.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

LEFT_OUT = ("self", "kwargs", "num_classes", "seed")  # the seed is the run's


def given_options(made: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What the constructor of `made` is called with, by name; copies and unpickled objects call it with nothing."""
    given = dict(inspect.signature(type(made).__init__).bind_partial(made, *args, **kwargs).arguments)
    return given | given.pop("kwargs", {})


def constructor_options(made: Any) -> dict[str, Any]:
    """Every option of a method or data module with its value (`given`, or the default of its class or their base);
    functions, such as an optimizer's, are left out."""
    values: dict[str, Any] = {}
    for base in type(made).__mro__:
        if "__init__" in vars(base) and base.__module__.split(".")[0] in ("common", "datamodules", "methods"):
            for name, parameter in inspect.signature(base.__init__).parameters.items():
                values.setdefault(name, made.given.get(name, parameter.default))
    return {name: plain(value) for name, value in values.items() if name not in LEFT_OUT and not callable(value)}


def plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, paths as strings: what YAML gives back as it was."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
