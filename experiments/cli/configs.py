"""Configs: composed from files for a run, and read back from its checkpoint."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.cli.messages import FILES

CONFIG_OPTIONS = ("-c", "--config")


def compose(path: Path) -> list[str]:
    """YAML texts of a config file, in the order in which they apply.

    A file may open with `compose: [base.yaml, ...]`, paths relative to itself: these come first, it overrides them.

    Raises:
        FileNotFoundError: the file, or one that it names, is missing.
        ValueError: it is not a YAML mapping.
    """
    FILES.append(path)
    if not path.is_file():
        raise FileNotFoundError(f"config file {path} does not exist; recipes are in experiments/configs/recipes")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `key: value` pairs, got {type(content).__name__}")
    parts = [text for part in content.pop("compose", []) for text in compose(path.parent / part)]
    return [*parts, yaml.safe_dump(content, sort_keys=False)]


def expand_configs(arguments: list[str]) -> list[str]:
    """Replace each `--config FILE` by the texts that it is composed of, and `--model... null` by a text, because
    jsonargparse hands the option of a dataclass inside a class on as the word "None"."""
    expanded: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        option, sign, value = argument.partition("=")
        if option.startswith(("--model.", "--data.")):
            value = value if sign else next(rest, "")
            nothing = value in ("null", "~")
            expanded += ["--config", set_to_null(option)] if nothing else [argument, *([] if sign else [value])]
        elif option in CONFIG_OPTIONS:
            path = value or next(rest, "")
            if not path:
                raise ValueError("--config needs a file: recipes are in experiments/configs/recipes")
            expanded += [word for text in compose(Path(path)) for word in ("--config", text)]
        else:
            expanded.append(argument)
    return expanded


def stated(arguments: list[str], *keys: str) -> Any:
    """What the config texts among expanded arguments say at `keys`, the last one that says it; None if none does."""
    found = None
    for option, text in itertools.pairwise(arguments):
        if option in CONFIG_OPTIONS:
            content = yaml.safe_load(text)
            for key in keys:
                content = content.get(key) if isinstance(content, dict) else None
            found = found if content is None else content
    return found


def set_to_null(option: str) -> str:
    """YAML text that sets `--model.init_args.network.weights`, or the same without `init_args`, to null."""
    first, *keys = option.removeprefix("--").split(".")
    keys = [first, "init_args", *keys[keys[0] == "init_args" :]]
    content: Any = None
    for key in reversed(keys):
        content = {key: content}
    return str(yaml.safe_dump(content))


def from_run(verb: str, arguments: list[str]) -> tuple[list[str], argparse.Namespace]:
    """Take `--run`, `--ckpt`, `--which` and predict's options off the command line; put that run's config first.

    It runs in one process, whatever trained the run: the numbers are the same, and its machines may be elsewhere.
    Other options (`--trainer.devices 2`) overrule this as they do the config.
    """
    parser = argparse.ArgumentParser(
        prog=f"weakseg {verb}",
        allow_abbrev=False,
        epilog="The run's config is taken as it is, on one device; any option of `weakseg fit` overrides it.",
    )
    parser.add_argument("--run", type=Path, help="run directory")
    parser.add_argument("--ckpt", type=Path, help="or a checkpoint file")
    parser.add_argument("--which", choices=["best", "last"], default="best", help="checkpoint of the run (best)")
    if verb == "predict":
        parser.add_argument("--images", type=Path, help="folder of images")
        parser.add_argument("--output", type=Path, help="folder for the labels, and their colours over the images")
        parser.add_argument("--probabilities", action="store_true", help="write them too")
    options, rest = parser.parse_known_args(arguments)
    if (options.run is None) == (options.ckpt is None):
        raise ValueError(f"weakseg {verb} needs a trained model: give either --run RUN_DIR or --ckpt FILE")
    options.ckpt = options.ckpt or options.run / "checkpoints" / f"{options.which}.ckpt"
    if not options.ckpt.is_file():
        raise FileNotFoundError(f"there is no checkpoint {options.ckpt}: is it a run directory that `fit` has written?")
    config = stored_config(options.ckpt)
    # The plugins too: they say which cluster it was.
    config["trainer"] |= {"devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": None}
    return ["--config", yaml.safe_dump(config), *expand_configs(rest), "--ckpt_path", str(options.ckpt)], options


def stored_config(checkpoint: Path) -> dict[str, Any]:
    """The config in a checkpoint, without the weights that its encoder started from: the trained ones follow, and the
    file or the download may not be at hand here."""
    config: dict[str, Any] = yaml.safe_load(read_checkpoint(checkpoint)["weakseg"]["config"])
    config["model"]["init_args"]["network"]["weights"] = None
    return config


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint written by `fit`, on the CPU.

    Raises:
        ValueError: it is not one.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no checkpoint {path}") from None
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(content, dict) or "weakseg" not in content:
        raise ValueError(f"{path} was not written by `weakseg fit`")
    return content


def check_method(path: Path, method: str) -> None:
    """Refuse a checkpoint of another method (`Class`), before anything is loaded or written."""
    stored = read_checkpoint(path)["weakseg"]["method"]
    if stored != method:
        raise ValueError(f"{path} is a checkpoint of {stored}, this run is {method}: give a checkpoint of {method}")
