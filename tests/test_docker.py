"""The Dockerfile, without Docker: its instructions, what it copies, and that it installs the tested versions."""

import json
import re
import shlex
import tomllib

from conftest import ROOT

KNOWN = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions():
    """Pairs of an instruction and its words, in order."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line]


def test_it_has_instructions_that_there_are_and_one_argument():
    found = instructions()
    assert {name for name, _ in found} == KNOWN
    assert found[0] == ("FROM", "python:3.11-slim")
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert [words for name, words in found if name == "ARG"] == ["DEVICE=cpu"]
    for name, words in found:
        if name in ("ENTRYPOINT", "CMD"):
            assert all(isinstance(word, str) for word in json.loads(words))
        shlex.split(words)  # quotes are closed
    (entry,) = json.loads(dict(found)["ENTRYPOINT"])
    assert entry in PROJECT["project"]["scripts"]


def test_what_it_copies_is_there_and_all_that_an_installation_needs():
    copied = [words.split()[:-1] for name, words in instructions() if name == "COPY"]
    files = {name for names in copied for name in names}
    assert all((ROOT / name).exists() for name in files)
    packages = {pattern.removesuffix("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    modules = {f"{name}.py" for name in PROJECT["tool"]["setuptools"]["py-modules"]}
    project = PROJECT["project"]
    needed = packages | modules | {project["readme"], *project["license-files"], "pyproject.toml", "constraints.txt"}
    assert files == needed
    for words in (words.split() for name, words in instructions() if name == "COPY"):
        assert words[-1] == ("./" if len(words) > 2 else words[0])  # a folder keeps its name


def test_every_installation_keeps_to_the_tested_versions_or_takes_nothing_else():
    steps = [words for name, words in instructions() if name == "RUN"]
    installing = [re.search(r"(?:uv )?pip install .*", step)[0].split() for step in steps if "pip install" in step]
    assert len(installing) == len(steps) == 3
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for words in installing:
        assert "--no-deps" in words or words[words.index("--constraint") + 1] == "constraints.txt"
        if "--extra" in words:
            assert words[words.index("--extra") + 1] in PROJECT["project"]["optional-dependencies"]
    assert {"uv", "torch", "torchvision"} <= pinned


def test_no_address_of_a_package_index_is_in_it():
    assert "://" not in (ROOT / "Dockerfile").read_text()
