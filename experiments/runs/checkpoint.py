"""Checkpoints of `weakseg fit`: the file, and what is taken of the config in it. Both are data, whoever wrote them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Annotated, Any, Literal, get_type_hints

import torch
import yaml
from pydantic import Field, TypeAdapter, ValidationError

import datamodules
import methods
from common.model.module import SegmentationModule
from common.training.files import plain_yaml
from datamodules.base import SegmentationDataModule
from datamodules.files import default_color
from experiments.runs.legacy import class_name, translate

Checkpoint = dict[str, Any]
Names = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=2, max_length=255)]
Side = Annotated[int, Field(ge=1, le=2**16)]
Level = Annotated[int, Field(ge=0, le=255)]


@dataclass(frozen=True)
class Classes:
    """What a model's predictions mean, and at what size it sees images."""

    names: Names
    colors: list[tuple[Level, Level, Level]]
    size: tuple[Side, Side] | Literal["native"]


MOST_PIXELS = 2**26  # of the size that a checkpoint may ask for: small photos are enlarged to it
PRECISIONS = ("32-true", "32", "16-mixed", "16", "bf16-mixed", "bf16", "bf16-true", "16-true", "64-true", "64")
# Stored options that are not taken: an optimizer is code, a cache is a place to write to, the seed is the run's.
LEFT_OUT = ("optimizer", "cache_dir", "seed", "num_classes")


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint written by `fit`, on the CPU.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not one.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no checkpoint {path}") from None
    except UnpicklingError:  # torch's own message advises to run whatever is in the file
        raise ValueError(f"{path} holds more than tensors and plain values, and is not read: it may run code") from None
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {' '.join(str(error).split())[:200]}") from error
    told = content.get("weakseg") if isinstance(content, dict) else None
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(told, dict) or not isinstance(told.get("config"), str) or not isinstance(weights, dict):
        raise ValueError(f"{path} was not written by `weakseg fit`")
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()):
        raise ValueError(f"{path} has weights that are no tensors")
    return dict(content)


def stored_config(checkpoint: Checkpoint, packages: Sequence[str] = ()) -> dict[str, Any]:
    """What is taken of a checkpoint's config, in today's names: method and data with checked options, seed, precision,
    and where the run was logged.

    Optimizer, callbacks, loggers and all else of the trainer are left out, since nothing after training needs them, and
    so are the cache's folder and the weights that the encoder started from: the trained ones follow.

    Args:
        packages: whose classes are taken too, because the user has named them.

    Raises:
        ValueError: it names a class that is not found, or options that the class does not take.
    """
    try:
        config = plain_yaml(checkpoint["weakseg"]["config"])
        model, data = translate(config)["model"], config["data"]
        seed, precision = config["seed_everything"], (config.get("trainer") or {}).get("precision") or "32-true"
        model["init_args"]["network"]["weights"] = None
        data["init_args"].keys()
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"the checkpoint's config cannot be read ({told})") from error
    shown = (config.get("trainer") or {}).get("enable_progress_bar") is not False
    if type(seed) is not int or not 0 <= seed < 2**32 or str(precision) not in PRECISIONS:
        raise ValueError(f"the checkpoint's config has seed {seed!r} and precision {precision!r}: neither is known")
    wandb = config.get("wandb")
    return {
        "wandb": wandb if wandb in ("online", "offline") else "off",
        "tensorboard": config.get("tensorboard") is True,
        "seed_everything": seed,
        "trainer": {"precision": str(precision), "enable_progress_bar": shown},
        "model": checked(model, methods, SegmentationModule, packages),
        "data": checked(data, datamodules, SegmentationDataModule, packages),
    }


def classes_of(checkpoint: Checkpoint, config: dict[str, Any]) -> Classes:
    """Classes and size of a model. A checkpoint of an earlier version does not hold them: they are the data set's, or,
    where that is not here, numbers.

    Args:
        config: of `stored_config`.

    Raises:
        ValueError: they are no such thing.
    """
    told = checkpoint["weakseg"]
    if "classes" not in told:
        try:
            data = built(config["data"])
            return Classes([*data.class_names], [*data.colors], data.size or "native")
        except (OSError, ValueError):
            weights = checkpoint["state_dict"]
            head = next((one for name, one in weights.items() if name.endswith("segmentation_head.0.weight")), None)
            if head is None:
                raise ValueError("the checkpoint says nothing of its classes, and its data set is not here") from None
            count, size = len(head), config["data"]["init_args"].get("size", 128)
            names, colors = [f"class {number}" for number in range(count)], [*map(default_color, range(count))]
            return Classes(
                names, colors, (size, size) if isinstance(size, int) else size if size == "native" else tuple(size)
            )
    try:
        found = TypeAdapter(Classes).validate_python(
            {"names": told["classes"], "colors": told.get("colors"), "size": told.get("size")}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"the checkpoint's {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if found.size != "native" and found.size[0] * found.size[1] > MOST_PIXELS:
        raise ValueError(f"the checkpoint's size {[*found.size]} has more than {MOST_PIXELS >> 20} Mi pixels")
    if len(found.colors) != len(found.names):
        raise ValueError(f"the checkpoint has {len(found.names)} classes and {len(found.colors)} colours")
    return found


def check_weights(checkpoint: Checkpoint, config: dict[str, Any], classes: Classes) -> None:
    """Build the model without memory, and compare: so a config cannot ask for more than the file has weights.

    Raises:
        ValueError: the weights are not those of the network that the config names.
    """
    with torch.device("meta"):
        model = built(config["model"], len(classes.names))
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    if wanted != found:
        name = min(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        raise ValueError(
            f"the checkpoint's weights are not those of the network that its config names: {name} is "
            f"{found.get(name, 'missing')} instead of {wanted.get(name, 'missing')}"
        )


def photos_part(classes: Classes, config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that says the data: any images, as a trained model sees them."""
    options = {"class_names": [*classes.names], "colors": [[*color] for color in classes.colors]}
    size = classes.size if classes.size == "native" else [*classes.size]
    of_data = ("value_range", "channels", "rgb", *(["crop"] if size == "native" else []))
    kept = {name: value for name, value in config["data"]["init_args"].items() if name in of_data}
    if tones := getattr(class_of(config["data"]), "value_range", None):  # of a set that does not ask for it
        kept["value_range"] = tones
    return {"class_path": "datamodules.photos.Photos", "init_args": {**options, "size": size, **kept}}


def checked(part: dict[str, Any], package: ModuleType, base: type, packages: Sequence[str] = ()) -> dict[str, Any]:
    """A class and its options, plain values that its constructor takes."""
    found = find_class(str(part["class_path"]), package, base, packages)
    hints = option_types(found)
    options = {name: value for name, value in part["init_args"].items() if name not in LEFT_OUT}
    for name, value in options.items():
        if name not in hints:
            raise ValueError(f"the checkpoint has an option '{name}' that {found.__name__} does not have")
        typed(found.__name__, name, value, hints[name])
    return {"class_path": f"{found.__module__}.{found.__name__}", "init_args": options}


def find_class(path: str, package: ModuleType, base: type, packages: Sequence[str] = ()) -> Any:
    """The class by its name among those that are discovered, or in a package that the user names.

    Raises:
        ValueError: there is none.
    """
    home, _, name = path.rpartition(".")
    top = home.split(".")[0]
    if top in ("", package.__name__) and name in package.CLASSES:
        return getattr(package, name)
    if top in packages:
        found = getattr(import_module(home), name, None)
        if isinstance(found, type) and issubclass(found, base):
            return found
    raise ValueError(
        f"the checkpoint names '{path}', which is none of {', '.join(sorted(package.CLASSES))}: if it is yours, name "
        "its package, --package PACKAGE"
    )


def option_types(found: type) -> dict[str, Any]:
    """Types of a constructor's options, those of its base included."""
    hints: dict[str, Any] = {}
    for one in reversed(found.__mro__):
        if "__init__" in vars(one) and issubclass(one, (SegmentationModule, SegmentationDataModule)):
            hints |= get_type_hints(one.__init__, vars(sys.modules[one.__module__]))
    return {name: hint for name, hint in hints.items() if name not in ("kwargs", "return", *LEFT_OUT)}


def typed(owner: str, name: str, value: Any, hint: Any) -> Any:
    """The value as the option's type, dataclasses built.

    Raises:
        ValueError: it is another type, out of range, or names a class.
    """
    if "class_path" in str(value):
        raise ValueError(f"the checkpoint's {name} of {owner} names a class: options are plain values")
    if is_dataclass(hint) and isinstance(value, dict):
        strange = value.keys() - {field.name for field in fields(hint)}
        if strange:
            raise ValueError(f"the checkpoint has an option '{name}.{min(map(str, strange))}' that there is not")
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        told = error.errors()[0]
        where = ".".join(map(str, (name, *told["loc"])))
        got = str(told["input"])[:80]
        raise ValueError(f"the checkpoint's {where} of {owner}: {told['msg']}, got {got}") from error


def class_of(part: dict[str, Any]) -> Any:
    """The class that a checked part of a config names."""
    module, _, name = part["class_path"].rpartition(".")
    return getattr(sys.modules[module], name)


def built(part: dict[str, Any], *first: Any) -> Any:
    """The object of a checked part of a config; `first` are further arguments of its constructor."""
    found = class_of(part)
    hints = option_types(found)
    return found(
        *first, **{key: typed(found.__name__, key, value, hints[key]) for key, value in part["init_args"].items()}
    )


def check_method(path: Path, method: str, packages: Sequence[str] = ()) -> Checkpoint:
    """The checkpoint, refused if it is of another method (`Class`), before anything is loaded or written; `packages`
    are those of the user's own classes."""
    content = read_checkpoint(path)
    stored = class_name(stored_config(content, packages)["model"]["class_path"])
    if stored != method:
        raise ValueError(f"{path} is a checkpoint of {stored}, this run is {method}: give a checkpoint of {method}")
    return content
