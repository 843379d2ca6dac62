"""One line instead of the config parser's page: what is wrong, where, and what there is instead."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from lightning.pytorch.cli import LightningArgumentParser

import datamodules
import methods

PACKAGES = {"model": methods, "data": datamodules}
FILES: list[Path] = []  # config files of this command in the order read, to name the one that holds a wrong key
NO_OPTIONS = "'NoneType' object has no attribute 'keys'"
# How messages begin that only wrap the one that tells something, which is their cause.
WRAPPER = re.compile(r"\s*(- )?(Parser key|Does not validate|Expected a path but|Problem with given|Type typing\.)")
UNKNOWN_OPTION = re.compile(
    r"Option '(.+)' is not accepted|(?:Group|Subcommand) '.+' does not accept option '(.+)'|"
    r"unrecognized arguments: (.+)"
)
UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (.+)|Import path (.+) does not correspond")


class Parser(LightningArgumentParser):
    """LightningCLI's parser, whose errors are one line instead of a page of options, as is the usage over its help. An
    option is its whole name: shortened ones are taken without a word by argparse, and mean another option once there
    is a new one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "usage": "%(prog)s [options]", **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside the parser: its error is wrapped and comes to the outer one
            super().error(message, ex)
        print(f"weakseg: error: {explain(message, ex, option_names(self))}", file=sys.stderr)
        self.exit(2)


def explain(message: str, error: BaseException | None = None, options: Iterable[str] = ()) -> str:
    """The innermost of jsonargparse's nested errors, with the key, the file, near names and a way out.

    Args:
        message: what is told if nothing better is found.
        error: its exception, whose causes are looked through.
        options: names that the parser knows.
    """
    keys: list[str] = []  # from the outermost: "model", "network.encoder"
    owner = ""  # the class whose options these are
    while error is not None:
        message = str(error)
        keys += [key for key in re.findall(r'^\s*Parser key "(.+?)"', message) if [key] != keys[-1:]]
        owner = (re.findall(r"^\s*Problem with given class_path '(.+?)'", message) or [owner])[0]
        if error.__cause__ is None or not (WRAPPER.match(message) or str(error.__cause__) == message):
            break
        error = error.__cause__
    if "in DataLoader worker process" in message:  # the worker's traceback, its error at the end
        message = message.strip().splitlines()[-1].partition(": ")[2]
    where = ".init_args.".join(keys)
    if message == NO_OPTIONS:
        return f"{where}.init_args is null: name options below it, or leave it out"
    short = owner.rsplit(".", 1)[-1]
    page = f"{keys[0]}.help {short}" if owner and keys else "help-all"
    way_out = f"`weakseg fit --{page}` lists them"
    if match := UNKNOWN_OPTION.match(message):
        name = next(group for group in match.groups() if group)
        word = re.split(r"[ =]", name)[0].lstrip("-")
        if len(keys) > 1:  # an option of a class inside the class, such as the optimizer
            return f"{where}: there is no option '{name}'{in_file(word)}: see the documentation of that class"
        options = class_options(owner) if owner else options
        of = f"{short} has" if owner else "there is"
        return f"{of} no option '{name}'{in_file(word)}{near(word, options)}; {way_out}"
    if match := UNKNOWN_CLASS.match(message):
        name = next(group for group in match.groups() if group)
        if where in PACKAGES:
            kind = "method" if where == "model" else "data set"
            return f"'{name}'{in_file(name)} is no {kind}: there are {', '.join(sorted(PACKAGES[where].CLASSES))}"
        return f"{where}: there is no class '{name}'{in_file(name)}: give its import path, as in torch.optim.SGD"
    if match := re.match(r"the following arguments are required: (.+)", message):
        if owner:
            name = match[1].split(", ")[0]
            return f"{short} needs {match[1]}: give --{where}.init_args.{name} or {name} in a config file"
        names = match[1].replace("fit.", "--")
        return f"{names} missing: start from a regime, as in --config quickstart"
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message).replace("Expected a ", "expected ")
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text).replace(". Got value:", ", got").strip()
    return f"{where}: {text}" if where and WRAPPER.match(str(error)) is None else text


def near(name: str, known: Iterable[str]) -> str:
    """Names like a mistyped one, as the middle of a sentence."""
    first = {option.partition(".")[0] for option in known}
    last = {option.rpartition(".")[2]: option for option in known}
    start, end = name.partition(".")[0], name.rpartition(".")[2]
    found = difflib.get_close_matches(start, first, 1) if "." in name and start not in first else []
    found = found or difflib.get_close_matches(name, [*known], 3)
    found = found or [last[key] for key in difflib.get_close_matches(end, last, 3)]
    return f", nearest: {', '.join(found)}" if found else ""


def option_names(parser: Any) -> list[str]:
    """Options of a parser and, for the outermost one, of its commands."""
    inner = getattr(getattr(parser, "_subcommands_action", None), "choices", None) or {}
    actions = [action for one in (parser, *inner.values()) for action in one._actions]
    return sorted({string.strip("-+") for action in actions for string in action.option_strings})


def class_options(path: str) -> list[str]:
    """Constructor arguments of a class, its bases and the dataclasses among them."""
    module, _, name = path.rpartition(".")
    names: set[str] = set()
    for base in getattr(import_module(module), name).__mro__:
        if "__init__" in vars(base) and base.__module__.split(".")[0] in ("methods", "datamodules", "common", "torch"):
            hints = get_type_hints(base.__init__)
            for option in list(inspect.signature(base.__init__).parameters)[1:]:
                hint = hints.get(option)
                names.add(option)
                names |= {f"{option}.{field.name}" for field in fields(hint)} if is_dataclass(hint) else set()
    return sorted(names - {"args", "kwargs"})


def check_given(part: str, config: Any) -> None:
    """Raise ValueError for an option of a method or a data set that is null and must not be.

    Args:
        part: "model" or "data".
        config: its class path and options, parsed.
    """
    module, _, name = config.class_path.rpartition(".")
    for base in getattr(import_module(module), name).__mro__:
        if "__init__" in vars(base) and base.__module__.split(".")[0] != "builtins":
            check_values(part, config.init_args, get_type_hints(base.__init__, vars(sys.modules[base.__module__])))


def check_values(where: str, values: Any, hints: dict[str, Any]) -> None:
    """`check_given` of options of these types, and of the groups among them."""
    for name, hint in hints.items():
        value = values.get(name, ...) if name != "num_classes" else ...  # the data tells it later
        if value is None and hint not in (Any, type(None)) and type(None) not in get_args(hint):
            raise ValueError(f"{where}.{name} is null: leave it out for the default, or give it a value")
        if is_dataclass(hint) and hasattr(value, "get"):
            check_values(f"{where}.{name}", value, get_type_hints(hint))


def in_file(word: str) -> str:
    """The last config file with this word as a key or value, as the middle of a sentence."""
    last = re.escape(word.rsplit(".", 1)[-1])
    found = [path for path in FILES if path.is_file() and re.search(rf"(?<![\w.]){last}\b", path.read_text())]
    return f" (in {found[-1]})" if found else ""
