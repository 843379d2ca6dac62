"""The constructor options of methods and data modules as plain values, so that a run made in Python can be loaded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


class RemembersOptions:
    """Keeps what the constructor was given. Lightning's `save_hyperparameters` would put objects into checkpoints."""

    _given: Mapping[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__new__(cls)
        # Copies and unpickling pass nothing here; they bring `_given` along in the instance's state.
        made._given = inspect.signature(cls.__init__).bind_partial(made, *args, **kwargs).arguments
        return made

    def constructor_options(self) -> dict[str, Any]:
        """Every option of the class and its bases with its value, plain; callables and `num_classes` are left out."""
        given = dict(self._given) | dict(self._given.get("kwargs", {}))
        options: dict[str, Any] = {}
        for base in type(self).__mro__:
            if "__init__" in vars(base) and base.__module__.split(".")[0] in PACKAGES:
                for name, parameter in inspect.signature(base.__init__).parameters.items():
                    if (name not in LEFT_OUT and parameter.default is not parameter.empty) or name in given:
                        options.setdefault(name, given.get(name, parameter.default))
        return {name: plain(value) for name, value in options.items() if name not in LEFT_OUT and not callable(value)}


PACKAGES = ("common", "datamodules", "methods")
LEFT_OUT = ("self", "kwargs", "num_classes", "seed")


def plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, paths as strings: what YAML gives back as it was."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
