"""What the documentation says is done, as it stands: commands, links, tables, checklists."""

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from dataclasses import fields, is_dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from PIL import Image

import datamodules
import methods
from conftest import ROOT, weakseg
from datamodules.supervision import OPTIONS, Supervision

FOLDERS = ("*.md", "docs/*.md", "methods/*/README.md", "experiments/**/*.md")
PAGES = sorted(path for pattern in FOLDERS for path in ROOT.glob(pattern))
USING = ROOT / "docs" / "using.md"
QUICK = [ROOT / "README.md", ROOT / "docs" / "python.md", ROOT / "methods" / "tv" / "README.md"]
STORY = ROOT / "docs" / "story.md"
SLOW = [USING, STORY, ROOT / "docs" / "comparing.md", *sorted({*ROOT.glob("methods/*/README.md")} - {*QUICK})]
RUN = [*QUICK, *(pytest.param(page, marks=pytest.mark.slow) for page in SLOW)]  # CONTRIBUTING has tests of its own
SKIPPED = {
    "source .venv/bin/activate": "changes the reader's shell",
    "python3 -m venv /tmp/lowest": "installs",
    ".venv/bin/uv pip install --python /tmp/lowest/bin/python --resolution lowest-direct --editable .[dev]": "installs",
    "/tmp/lowest/bin/python -m pytest": "the whole test suite",
}
# What is laid over the documented fits: two steps of a tiny network on small images, no download.
TINY = """
trainer: {max_steps: 2, val_check_interval: 2, log_every_n_steps: 1, enable_progress_bar: false}
data: {init_args: {num_workers: 0, size: 64, batch_size: 4}}
model:
  init_args:
    network:
      arch: Unet
      encoder: tu-test_resnet
      weights: null
      decoder: {decoder_channels: [16, 16, 8, 8], encoder_depth: 4}
"""
FEW_SCENES = "data: {init_args: {train: 24, val: 2, test: 2}}"
COPIED = ("common", "datamodules", "methods", "experiments", "tests", "weakseg.py", "pyproject.toml")


def blocks(page, language):
    """The fenced blocks of a language, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def commands(page):
    """The words of each line of the console blocks."""
    return [shlex.split(line) for text in blocks(page, "console") for line in text.splitlines() if line.strip()]


def section(page, title):
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def table(page):
    """Cells of every table row, code marks removed."""
    return [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("|")
    ]


def image(path, *colors, size=(40, 50)):
    """A picture of random pixels of the given values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    Image.fromarray(rng.choice(np.array(colors, np.uint8), size)).save(path)


@pytest.fixture(scope="module")
def weizmann(tmp_path_factory):
    root = tmp_path_factory.mktemp("weizmann_horse_db")
    for number in range(1, 329):
        image(root / "rgb" / f"horse{number:03d}.png", 0, 90, 180, size=(8, 9))
        image(root / "figure_ground" / f"horse{number:03d}.png", 0, 1, size=(8, 9))
    return root


@pytest.fixture
def desk(tmp_path, monkeypatch, weizmann):
    """A working directory with all that the documented commands name."""
    for name in ("experiments", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "weizmann_horse_db").symlink_to(weizmann)
    for number in range(10):
        image(tmp_path / "my_data" / "images" / f"{number}.jpg", 0, 90, 180)
        image(tmp_path / "my_data" / "masks" / f"{number}.png", 0, 1, 255)
    image(tmp_path / "my_data" / "images" / "bare.jpg", 0, 90, 180)
    (tmp_path / "my_data" / "classes.txt").write_text("background\nthing 230 85 75\n")
    image(tmp_path / "photos" / "one.jpg", 0, 200, size=(41, 53))
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "few.yaml").write_text(FEW_SCENES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def subprocess_output(words, **options):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, f"{words}\n{done.stdout}"
    return done.stdout


def run(words):
    """Run a documented command, on little."""
    match words:
        case ["weakseg", "fit", *rest]:
            rest += ["--config", "tiny.yaml"]
            if {"quickstart", "synthetic_few", "Synthetic"} & {*rest}:
                rest += ["--config", "few.yaml"]
            # Lightning starts the command again for each process; W&B's service is that of other tests in this one.
            if "--trainer.devices" in rest or "wandb" in " ".join(rest):
                plain = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
                subprocess_output([sys.executable, "-m", "experiments.cli", "fit", *rest], env=plain)
            else:
                weakseg("fit", *rest)
        case ["weakseg", "study", *rest]:
            weakseg("study", *dict.fromkeys([*rest, "--dry-run"]))
        case ["weakseg", "annotate", *rest]:
            with mock.patch("experiments.annotate.server.Server.serve_forever", side_effect=KeyboardInterrupt):
                assert "Open http://127.0.0.1:" in weakseg("annotate", *rest)
        case ["weakseg", *rest]:
            weakseg(*rest)
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {target}"
        case _:
            raise AssertionError(f"not a command that this test knows: {shlex.join(words)}")


def test_every_promise_names_a_test_that_there_is():
    text = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    rows = [row for row in table((ROOT / "docs" / "reliability.md").read_text()) if row[-1].startswith("test_")]
    assert len(rows) > 10
    for name in (name for row in rows for name in row[-1].split(", ")):
        assert f"def {name}(" in text, name


# README and the methods' pages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RUN, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_and_the_python_of_a_page_run_in_its_order(path, desk):
    page = path.read_text()
    assert commands(page) or blocks(page, "python")
    for words in commands(page):
        if " ".join(words) not in SKIPPED:
            run(words)
    names = {}
    for text in blocks(page, "python"):
        exec(compile(text, str(path), "exec"), names)
    if path == USING:
        files = {
            str(file.relative_to("runs/quickstart/tv/tuned")) for file in Path("runs/quickstart/tv/tuned").rglob("*.*")
        }
        assert files == {row[0] for row in table(section(page, "Where a run's files go"))[2:]}
        assert Path("labelled/one.png").exists()
        assert Path("labelled/overlays/one.png").exists()
        assert Path("labelled_last/probabilities/one.npy").exists()


def test_skipped_commands_are_those_listed_and_all_others_of_contributing_are_make_targets():
    found = {
        " ".join(words): words
        for path in (*QUICK, *SLOW, ROOT / "CONTRIBUTING.md")
        for words in commands(path.read_text())
    }
    assert found.keys() >= SKIPPED.keys()
    assert len(SKIPPED) == 4
    for words in commands((ROOT / "CONTRIBUTING.md").read_text()):
        if " ".join(words) not in SKIPPED:
            assert words[0] == "make"
            run(words)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_point_at_files(path):
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL))
    for target in targets:
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            linked = (path.parent / file).resolve() if file else path
            assert linked.exists(), f"{target} does not exist"
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE) if anchor else []
            slugs = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
            assert not anchor or anchor in slugs, target


def test_readme_names_every_method_and_data_set_and_the_manual_every_regime():
    page = (ROOT / "README.md").read_text()
    rows = {row[0]: row for row in table(section(page, "Methods"))[2:]}
    assert rows.keys() == methods.CLASSES.keys()
    for name, row in rows.items():
        folder = methods.CLASSES[name].module.split(".")[0]
        assert f"(methods/{folder}/README.md)" in row[-1]
    named = re.search(r"^Data: (.*?);", section(page, "Methods"), re.MULTILINE | re.DOTALL)[1]
    assert {*re.findall(r"`(\w+)`", named)} == datamodules.CLASSES.keys()
    lines = [yaml.safe_load(line) for text in blocks(USING.read_text(), "yaml") for line in text.splitlines()]
    assert {Supervision(**line["supervision"]).kind for line in lines} == OPTIONS.keys()


def defaults(method):
    """Own options of a method (the base's, if it has none of its own) and their defaults, as YAML; None: an object."""
    parameters = inspect.signature(getattr(methods, method).__init__).parameters.values()
    for parameter in parameters:
        value = parameter.default
        if parameter.name in ("self", "num_classes", "kwargs"):
            continue
        if is_dataclass(value):
            for field in fields(value):
                yield f"{parameter.name}.{field.name}", as_yaml(getattr(value, field.name))
        else:
            yield parameter.name, None if callable(value) else as_yaml(value)


def as_yaml(value):
    return yaml.safe_dump(value, default_flow_style=True).splitlines()[0]


@pytest.mark.parametrize("method", methods.CLASSES)
def test_a_methods_page_has_the_sections_and_every_option_with_its_default(method):
    folder = ROOT / "methods" / methods.CLASSES[method].module.split(".")[0]
    page = (folder / "README.md").read_text()
    sections = ["Idea", "Where we differ and why", "Options", "Commands", "Measured", "Picture"]
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == sections
    assert "\n**Paper.**" in page
    assert len(re.findall(r"^\d\. ", section(page, "Idea"), re.MULTILINE)) == 5
    rows = {row[0]: row[1] for row in table(section(page, "Options"))}
    for option, default in defaults(method):
        assert option in rows, f"{folder.name}/README.md has no row for {option}"
        assert default in (None, rows[option]), f"{folder.name}/README.md: {option} is {default}"


# CONTRIBUTING ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """A copy of the tree, and a function that runs shell lines in it with the copy's packages."""
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__", "*.ckpt")
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(
            ROOT / name, tmp_path / name, **({"ignore": ignored} if (ROOT / name).is_dir() else {})
        )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def shell(lines):
        return subprocess_output(["bash", "-euo", "pipefail", "-c", lines], cwd=tmp_path, env=environment)

    packages = shell("python -c 'import common, datamodules, experiments, methods as m; print(m.__file__)'")
    assert packages.strip() == str(tmp_path / "methods" / "__init__.py")
    return tmp_path, shell


def follow(title, tree, shell):
    """Do what a section of CONTRIBUTING.md says: run its shell lines, write its Python blocks into the files that their
    first lines name. Returns all that was printed, and the test files to run (left to the caller, to start once)."""
    text = section((ROOT / "CONTRIBUTING.md").read_text(), title)
    printed, tests = "", []
    for language, block in re.findall(r"^ *```(bash|python)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        content = inspect.cleandoc(f"\n{block}") + "\n"
        if language == "python":
            (tree / content.splitlines()[0].removeprefix("# ")).write_text(content)
        elif content.startswith("python -m pytest "):
            tests.append(content.removeprefix("python -m pytest ").strip())
        else:
            printed += shell(content)
    return printed, tests


def test_a_paper_and_a_data_set_are_added_as_contributing_says(tree):
    tree, shell = tree
    printed, tests = follow("Add a paper", tree, shell)
    assert "Entropy baseline" in printed  # when it was no more than a copy
    listed = shell("weakseg methods")
    assert "Entropy minimisation: pCE" in listed
    assert sorted(line.split()[0] for line in listed.splitlines()) == sorted([*methods.CLASSES, "Entropy"])
    assert "class_path: methods.Entropy" in (tree / "runs/entropy/config.yaml").read_text()
    assert yaml.safe_load((tree / "runs/entropy/summary.json").read_text())["steps"] == 2
    printed, more = follow("Add a data set", tree, shell)
    assert "Dots on grey" in printed
    assert "3 passed" in shell(f"python -m pytest {' '.join(tests + more)}")


@pytest.mark.slow
def test_a_paper_is_deleted_as_contributing_says(tree):
    tree, shell = tree
    before = {path.relative_to(tree) for path in tree.rglob("*") if path.is_file()}
    assert follow("Delete a paper", tree, shell) == ("", [])
    removed = before - {path.relative_to(tree) for path in tree.rglob("*") if path.is_file()}
    folder = next(path.parts[1] for path in removed if path.parts[0] == "methods")
    name = next(name for name, found in methods.CLASSES.items() if found.module.split(".")[0] == folder)
    left = [line.split()[0] for line in shell("weakseg methods").splitlines()]
    assert left == sorted(methods.CLASSES.keys() - {name})
    shell("weakseg fit --config tests/tiny.yaml --model Supervised --trainer.max_steps 2 --run_dir runs/left")
    # Nothing that is left leads to what is gone. Pages and results may speak of it, shared tests take it as an example.
    configs = [path.name for path in removed if path.suffix == ".yaml"]
    gone = [f"methods.{folder}", f"methods/{folder}", f"class_path: {name}", *configs]
    words = re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in gone))
    for path in sorted(before - removed):
        code = path.suffix in (".py", ".yaml", ".toml") and path.parts[0] != "tests"
        if code and path.parts[:2] != ("experiments", "results"):
            match = words.search((tree / path).read_text())
            assert match is None, f"{path} names {match[0]}, which deleting {name} removes"
