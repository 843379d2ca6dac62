"""Finding methods and data sets by reading source files, so that listings need neither torch nor an import."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple


class Found(NamedTuple):
    """A class found in a source file: its module below the package, and its docstring's first line."""

    module: str
    line: str


def find_classes(folders: Iterable[str], bases: Collection[str], pattern: str) -> dict[str, Found]:
    """Classes that derive directly from one of `bases` in the files of a package that match `pattern`, by name.

    Inheritance is one deep by rule, so a direct base is all there is to look for.
    """
    found: dict[str, Found] = {}
    for folder in map(Path, folders):
        for path in sorted(folder.glob(pattern)):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and any(
                    isinstance(b, ast.Name) and b.id in bases for b in node.bases
                ):
                    module = ".".join(path.relative_to(folder).with_suffix("").parts)
                    found[node.name] = Found(module, (ast.get_docstring(node) or "").split("\n")[0])
    return found


def load(package: str, classes: dict[str, Found], name: str) -> Any:
    """The class `name`, imported (for a package's `__getattr__`).

    Raises:
        AttributeError: no such class.
    """
    if name not in classes:
        raise AttributeError(f"{package} has no '{name}': it has {', '.join(sorted(classes)) or 'nothing'}")
    return getattr(import_module(f"{package}.{classes[name].module}"), name)


def import_all(*packages: Any) -> None:
    """Import every class that the packages have found (so that jsonargparse knows it by its short name)."""
    for package in packages:
        for name in package.CLASSES:
            getattr(package, name)
