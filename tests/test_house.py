"""The house: what may import what, and what is shipped."""

import ast
import importlib
import subprocess
import sys

import pytest

from conftest import ROOT

PACKAGES = ("common", "methods", "datamodules", "experiments")
FORBIDDEN = {
    "common": {"methods", "datamodules", "experiments"},
    "methods": {"datamodules", "experiments"},
    "datamodules": {"methods", "experiments"},
    "experiments": set(),
}
ROOMS = ("ops", "model", "training")  # of common, from the lowest floor up
NOT_IN_OPS = {"lightning", "segmentation_models_pytorch", "timm", "torchmetrics"}


def imports_of(path):
    """Names of modules that a file imports, at any depth of its code."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{name.name}" for name in node.names)


def test_imports_point_one_way():
    wrong, seen = [], set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            own = path.relative_to(ROOT).parts
            for name in imports_of(path):
                parts = name.split(".")
                seen.add((package, parts[0]))
                other = package == "methods" and parts[0] == "methods" and len(own) > 2 and parts[1] != own[1]
                if parts[0] in FORBIDDEN[package] or other:
                    wrong.append(f"{path.relative_to(ROOT)} imports {name}")
                if package == "common" and len(own) > 2:
                    above = {f"common.{room}" for room in ROOMS[ROOMS.index(own[1]) + 1 :]}
                    foreign = own[1] == "ops" and parts[0] in NOT_IN_OPS
                    if ".".join(parts[:2]) in above or foreign:
                        wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong
    assert {("methods", "common"), ("datamodules", "common"), ("experiments", "methods")} <= seen  # it does look


@pytest.mark.parametrize("package", PACKAGES)
def test_the_imported_packages_are_this_checkouts(package):
    where = "import importlib, pathlib; print(pathlib.Path(importlib.import_module(%r).__file__).resolve().parent)"
    text = subprocess.run(
        [sys.executable, "-c", where % package], cwd="/", capture_output=True, text=True, check=True
    )  # from elsewhere: the installed package answers, not the current folder
    assert text.stdout.strip() == str((ROOT / package).resolve())
    assert importlib.import_module(package).__file__ == str(ROOT / package / "__init__.py")
