"""The site: built strictly, complete, nothing from elsewhere, no dead link. And what else a visitor of the repository
meets: citation, forms, continuous integration, the page of losses."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml

from conftest import ROOT

EXTERNAL = re.compile(r"^(https?:)?//")
LOSSES = ROOT / "docs" / "losses.md"


class Document(HTMLParser):
    """What a page is called by (ids), leads to (links) and loads by itself (scripts, styles, pictures)."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        self.loaded += [
            attrs[name] for name in ("src", "href") if tag in ("script", "link", "img", "iframe") and attrs.get(name)
        ]


@pytest.fixture(scope="module")
def hooks():
    if not (importlib.util.find_spec("mkdocs") and importlib.util.find_spec("mkdocstrings")):
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_is_complete_loads_nothing_from_elsewhere_and_has_no_dead_link(hooks, tmp_path):
    """One test, since building takes half a minute and each process of pytest would do it again."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    # `404.html` is served for any address, so its links are absolute.
    pages = {path: Document(path.read_text()) for path in tmp_path.rglob("*.html") if path.name != "404.html"}
    assert not missing(tmp_path, pages)
    assert not foreign(tmp_path, pages)
    assert not dead(tmp_path, pages)
    losses = tmp_path / "reference" / "common" / "ops" / "losses.html"
    assert "common.ops.losses.partial_cross_entropy" in pages[losses].ids
    assert "Scalar in nats per labelled pixel of the global batch." in losses.read_text()


def missing(folder, pages):
    """Pages of the repository that are not built, or methods that the navigation does not name."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("methods/*/README.md")]
    found += [*ROOT.glob("experiments/results/*.md"), *ROOT.glob("experiments/notebooks/*.ipynb")]
    built = {path: folder / path.relative_to(ROOT).with_suffix(".html") for path in found}
    built |= {path: page.with_name("index.html") for path, page in built.items() if path.name == "README.md"}
    for path in ROOT.glob("common/ops/[a-z]*.py"):
        built[path] = folder / "reference" / path.relative_to(ROOT).with_suffix(".html")
    named = {folder / link for link in pages[folder / "index.html"].links}
    unnamed = [path for path in ROOT.glob("methods/*/README.md") if built[path] not in named]
    return [path for path, page in built.items() if page not in pages] + unnamed


def foreign(folder, pages):
    """What pages and styles load from another address."""
    styles = "".join(path.read_text() for path in folder.rglob("*.css"))
    loaded = [(path, link) for path, page in pages.items() for link in page.loaded if EXTERNAL.match(link)]
    return [*loaded, *re.findall(r"@import|url\(['\"]?(?:https?:)?//", styles)]


def dead(folder, pages):
    """Links to no file of the site, or to a place that the page does not have."""
    found = []
    for path, page in pages.items():
        for link in {*page.links, *page.loaded}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            fragment = unquote(parts.fragment)
            if not target.exists() or (fragment and target in pages and fragment not in pages[target].ids):
                found.append(f"{path.relative_to(folder)}: {link}")
    return found


def test_a_new_method_and_a_new_result_appear_and_a_deleted_one_is_gone(hooks, tmp_path, monkeypatch):
    for path, text in {
        "README.md": "[two](methods/two/README.md)",
        "methods/__init__.py": '"""Methods."""',
        "methods/one/README.md": "# One",
        "methods/one/module.py": '"""The first."""',
        "methods/two/README.md": "# Two",
        "methods/two/module.py": '"""The second."""',
        "experiments/results/new.md": "# New",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    assert hooks.found("methods/*/README.md") == ["methods/two/README.md", "methods/one/README.md"]
    assert hooks.found("experiments/results/*.md") == ["experiments/results/new.md"]
    assert "The second." in hooks.reference_text("reference/methods/README.md", ["methods/__init__.py"])
    assert hooks.reference()["reference/methods/two.md"] == ["methods/two/module.py"]
    (tmp_path / "methods/two/module.py").unlink()
    assert "reference/methods/two.md" not in hooks.reference()


def test_lists_and_docstrings_are_read_as_they_are_written(hooks):
    markdown = importlib.import_module("markdown").markdown
    text = "Steps:\n1. One\n   goes on.\n\n   ```text\n   if x\n     y\n   ```\n\n- A\n  b\n\nEnd\n  as it was"
    html = markdown(hooks.indented(text), extensions=["sane_lists", "pymdownx.superfences"])
    item = r"<p>Steps:</p>\s*<ol>\s*<li>\s*<p>One\s+goes on.</p>\s*<div.*if x\n  y.*</div>\s*</li>\s*</ol>"
    assert re.search(item, html, re.DOTALL)
    assert re.search(r"<ul>\s*<li>A\s+b</li>\s*</ul>\s*<p>End\s+as it was</p>", html)
    fence = "```text\n  as it is\n- too\n```"
    assert hooks.indented(fence) == fence
    doc = ["Sum.", "", "Args:", "    a, b: maps.", "", "Returns:", "    Zero without: one."]
    assert hooks.standard("\n".join(doc)).split("\n") == [
        *doc[:3], "    a: maps.", "    b: maps.", "", "Returns:", "    : Zero without: one."
    ]  # fmt: skip


# The page of losses ---------------------------------------------------------------------------------------------------


def test_the_python_of_the_page_of_losses_runs_in_its_order(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```", LOSSES.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    for number, text in enumerate(blocks):
        if gone := [
            name for name in re.findall(r"from methods\.(\w+)", text) if not (ROOT / "methods" / name).exists()
        ]:
            print(f"block {number} is of a method that was deleted: {gone}")
            continue
        exec(compile(text, f"{LOSSES.name}, block {number}", "exec"), names)


# Citation, forms, continuous integration ------------------------------------------------------------------------------


def test_the_citation_has_what_cff_requires_and_every_paper_of_a_methods_page():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cff["cff-version"] == "1.2.0"
    assert cff.keys() >= {"message", "title", "authors", "references"}
    assert cff["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    papers = {}
    for paper in cff["references"]:
        assert paper.keys() >= {"type", "title", "authors", "year"}
        assert all({"given-names", "family-names"} == person.keys() for person in paper["authors"])
        papers |= {one["value"].removeprefix("arXiv:"): paper["title"] for one in paper["identifiers"]}
        assert paper["url"].rsplit("/")[-1] in papers
    for path in ROOT.glob("methods/*/README.md"):
        line = re.search(r"^\*\*Paper\.\*\*.*?\n\n", path.read_text(), re.MULTILINE | re.DOTALL)[0]
        for arxiv in re.findall(r"\b\d{4}\.\d{5}\b", line):
            assert arxiv in papers, f"{path} names arXiv {arxiv}, CITATION.cff does not"


def test_the_forms_ask_for_what_is_needed():
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    assert forms.keys() == {"bug", "method", "question", "config"}
    for name in forms.keys() - {"config"}:
        assert forms[name].keys() >= {"name", "description", "body"}
        assert all(field["attributes"]["label"] for field in forms[name]["body"])
    assert {field["id"] for field in forms["bug"]["body"]} >= {"command", "config", "versions", "log"}
    template = (ROOT / ".github/pull_request_template.md").read_text()
    assert re.findall(r"^## (.*)$", template, re.MULTILINE) == ["What", "Why", "How it was seen", "Tests"]


def test_the_workflow_runs_the_script_on_every_python_the_lowest_versions_and_the_site():
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert ".ci/run" in commands["test"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert any("--resolution lowest-direct" in line for line in commands["lowest"])
    assert "make site" in commands["site"]
    assert "mkdocs build --strict" in (ROOT / "Makefile").read_text()
    assert not re.search(r"index-url|https?://", text)


@pytest.mark.parametrize("package", ["common", "datamodules", "experiments", "methods"])
def test_a_package_says_that_it_is_typed(package):
    assert Path(ROOT, package, "py.typed").exists()
