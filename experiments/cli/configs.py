"""Configs: found by name, composed of files, and laid over one another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.cli.messages import FILES, near

SHIPPED = Path(__file__).parents[1] / "configs"
CONFIG_OPTIONS = ("-c", "--config")
FLAGS = ("--overwrite", "--tensorboard", "--wandb_checkpoints")  # given alone they mean true


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the project, by name. Names are unique over the folders."""
    return {path.stem: path for path in sorted(SHIPPED.rglob("*.yaml"))}


def find_config(name: str) -> Path:
    """The file of `--config NAME`: a word with `/` or `.yaml` is a path, any other the name of a shipped config.

    Raises:
        FileNotFoundError: there is no such file or name.
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"config file {path} does not exist; shipped configs are given by name{listed()}")
        return path
    shipped = shipped_configs()
    if name not in shipped:
        raise FileNotFoundError(f"there is no config '{name}'{near(name, shipped)}{listed()}; a path needs / or .yaml")
    return shipped[name]


def listed() -> str:
    """The names of regimes and methods, as the end of a message."""
    return "; regimes: {}; methods: {}".format(
        *(", ".join(path.stem for path in sorted((SHIPPED / kind).glob("*.yaml"))) for kind in ("regimes", "methods"))
    )


def named_config(words: Sequence[str], folder: str) -> str | None:
    """The first shipped config of a folder that the command line names."""
    shipped = {path.stem for path in (SHIPPED / folder).glob("*.yaml")}
    values = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    values += [after for word, after in itertools.pairwise(words) if word in CONFIG_OPTIONS]
    return next((value for value in values if value in shipped), None)


def compose(path: Path, above: tuple[Path, ...] = ()) -> list[str]:
    """YAML texts of a config file, in the order in which they apply.

    A file may open with `compose: [base.yaml, ...]`, paths relative to itself: these come first, it overrides them.

    Args:
        path: the file.
        above: the files whose part it is.

    Raises:
        FileNotFoundError: the file, or one that it names, is missing.
        ValueError: it is not a YAML mapping, or composes itself.
    """
    if path.resolve() in above:
        raise ValueError(f"{path} composes itself, through {above[-1]}: take it out of one of them")
    FILES.append(path)
    if not path.is_file():
        raise FileNotFoundError(f"config file {path} does not exist")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `key: value` pairs, got {type(content).__name__}")
    names = content.pop("compose", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: compose must be a list of config files, got {names!r}")
    parts = [text for name in names for text in compose(path.parent / name, (*above, path.resolve()))]
    return [*parts, yaml.safe_dump(content, sort_keys=False)]


def expand_configs(arguments: list[str]) -> list[str]:
    """The arguments as jsonargparse understands them.

    Each `--config NAME` becomes the texts that it is composed of, a flag given alone becomes `--flag=true`, and
    `--model... null` becomes a text, because jsonargparse hands the option of a dataclass inside a class on as the word
    "None".
    """
    expanded: list[str] = []
    words = [*reversed(arguments)]

    def value_of(given: str) -> str:
        return given or (words.pop() if words else "")

    while words:
        argument = words.pop()
        option, sign, value = argument.partition("=")
        if option in FLAGS and not sign:
            told = words.pop().lower() if words and words[-1].lower() in ("true", "false") else "true"
            expanded.append(f"{option}={told}")
        elif option.startswith(("--model.", "--data.")):
            value = value if sign else value_of("")
            nothing = value in ("null", "~")
            expanded += ["--config", set_to_null(option)] if nothing else [argument, *([] if sign else [value])]
        elif option in CONFIG_OPTIONS:
            name = value_of(value)
            if not name:
                raise ValueError(f"--config needs the name of a config, or a file{listed()}")
            expanded += [word for text in compose(find_config(name)) for word in ("--config", text)]
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
    """YAML text that sets `--model.network.weights`, with or without `init_args`, to null."""
    first, *keys = option.removeprefix("--").split(".")
    keys = [first, "init_args", *keys[keys[0] == "init_args" :]]
    content: Any = None
    for key in reversed(keys):
        content = {key: content}
    return str(yaml.safe_dump(content))
