"""The site is the repository: a page keeps its path, so links that work in a checkout work on the site too.

Pages are found by pattern and ordered by their first mention in README.md. The API reference is made of docstrings;
links to code lead there, those to other files become plain text.
"""

import ast
import json
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SECTIONS = {
    "Guide": "docs/*.md",
    "Methods": "methods/*/README.md",
    "Results": "experiments/results/*.md",
    "Notebooks": "experiments/notebooks/*.ipynb",
    "Project": "C*.md",
}
PACKAGES = ("common/ops", "common/model", "common/training", "datamodules", "methods", "experiments/runs")
LINK = re.compile(r"\[([^\[\]]*(?:!\[[^\]]*\]\([^)]*\))?[^\[\]]*)\]\((?!\w+:|#)([^)\s#]+)([^)]*)\)")
MARK = re.compile(r"\[(\w+)\](?=\s*\[)")  # [code] [ours]: two marks, and no link
NAME = re.compile(r"`((?:weakseg|common|datamodules|methods|experiments)(?:\.\w+)+)`")
FENCE = re.compile(r"(^ *(?:```+|~~~+).*?^ *(?:```+|~~~+) *$)", re.MULTILINE | re.DOTALL)


def found(pattern: str) -> list[str]:
    """Paths that match, in the order in which README.md first names them, the others behind by name."""
    readme = (ROOT / "README.md").read_text()
    paths = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))
    return sorted(paths, key=lambda path: readme.find(path) % (len(readme) + 1))


def reference() -> dict[str, list[str]]:
    """Pages, and whose docstrings each shows: a table of a package, a page of each module and of each folder in it."""
    pages = {"reference/weakseg.md": ["weakseg.py"]}
    for package in PACKAGES:
        pages[f"reference/{package}/README.md"] = [f"{package}/__init__.py"]
        for path in sorted(path.relative_to(ROOT) for path in ROOT.glob(f"{package}/**/[!_]*.py")):
            page = path.with_suffix("") if path.parent == Path(package) else path.parent
            pages.setdefault(f"reference/{page}.md", []).append(str(path))
    return pages


def docstring(path: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""


def reference_text(uri: str, paths: list[str]) -> str:
    folder, page = posixpath.split(uri)
    title = f"# {uri.removeprefix('reference/').removesuffix('.md').removesuffix('/README').replace('/', '.')}\n"
    if page == "README.md":
        below = {one: files for one, files in reference().items() if one.startswith(f"{folder}/") and one != uri}
        lines = {posixpath.relpath(one, folder): docstring(files[-1]).split("\n")[0] for one, files in below.items()}
        rows = [f"| [{link.removesuffix('.md')}]({link}) | {line} |" for link, line in lines.items()]
        return "\n".join([title, docstring(paths[0]), "\n| module | |", "|---|---|", *rows])
    options = "    options: {show_root_heading: true, heading_level: 2}\n" if len(paths) > 1 else ""
    return "\n".join([title, *(f"::: {path.removesuffix('.py').replace('/', '.')}\n{options}" for path in paths)])


def page_text(path: str) -> str:
    text = (ROOT / path).read_text()
    if path.endswith(".ipynb"):
        text = "\n\n".join(part for cell in json.loads(text)["cells"] for part in cell_text(cell))
    return text


def cell_text(cell: dict[str, Any]) -> list[str]:
    """A cell of a notebook, and below it what it has shown."""
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        return [source]
    parts = [f"```python\n{source}\n```"]
    for out in cell["outputs"]:
        data = out.get("data", {})
        if "image/png" in data:
            parts.append(f'<img alt="output" src="data:image/png;base64,{"".join(data["image/png"].split())}">')
        elif said := "".join(out.get("text", data.get("text/plain", ""))):
            parts.append(f"```text\n{said.rstrip()}\n```")
    return parts


def on_config(config: MkDocsConfig) -> None:
    packages: list[dict[str, object]] = [{"weakseg": "reference/weakseg.md"}]
    for package in PACKAGES:
        first, *pages = [uri for uri in reference() if uri.startswith(f"reference/{package}/")]
        packages.append({package.replace("/", "."): [{"Overview": first}, *({Path(uri).stem: uri} for uri in pages)]})
    sections = [{title: [re.sub("ipynb$", "md", one) for one in found(paths)]} for title, paths in SECTIONS.items()]
    config.nav = [{"Home": "README.md"}, *sections, {"Reference": packages}]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files stay; those of docs/ come under their path in the repository, with all the others."""
    kept = [file for file in files if file.src_dir != config.docs_dir or file.src_uri.endswith(".css")]
    texts = {uri: reference_text(uri, paths) for uri, paths in reference().items()}
    for path in ("README.md", *(path for pattern in SECTIONS.values() for path in found(pattern))):
        texts[path.replace(".ipynb", ".md")] = page_text(path)
    kept += [File.generated(config, uri, content=text) for uri, text in texts.items()]
    return Files([*kept, *(File.generated(config, one, abs_src_path=str(ROOT / one)) for one in found("docs/*.png"))])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    shown = {path: one for one, paths in reference().items() for path in paths}
    page.meta["hide"] = ["navigation"] if uri == "README.md" else []

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(uri), match[2]))
        for one in (path.replace(".ipynb", ".md"), shown.get(path), f"{path}/README.md"):
            if one and files.get_file_from_path(one):
                return f"[{match[1]}]({posixpath.relpath(one, posixpath.dirname(uri) or '.')}{match[3]})"
        return match[1]

    pieces = FENCE.split(indented(markdown))  # every second one is a fence
    pieces[::2] = [LINK.sub(link, MARK.sub(r"[\1\\]", text)).replace(" ± ", "&nbsp;±&nbsp;") for text in pieces[::2]]
    return "".join(pieces)


def indented(text: str) -> str:
    """Lists as GitHub reads them: they may follow a paragraph without a blank line, and what belongs to an item is
    indented by 2 or 3, where Markdown's Python wants 4. Fences that belong to no item stay."""
    text = re.sub(r"^(?![ #]|```|(?:\d+\.|[-*]) )(.+)\n(?=(?:\d+\.|[-*]) )", r"\1\n\n", text, flags=re.MULTILINE)
    top = r"^(```+|~~~+).*?^\1 *$|^  (?=.*\S)"
    return re.sub(top, lambda match: match[0] if match[1] else "    ", text, flags=re.MULTILINE | re.DOTALL)


def standard(text: str) -> str:
    """A docstring's Google sections as griffe reads them. Here `one, other: text` describes two arguments, the text
    after `Returns:` holds no type (it is in the signature), and names in code marks are links if they are shown."""
    text = re.sub(r"^    (\w+), (\w+): (.*)$", r"    \1: \3\n    \2: \3", text, flags=re.MULTILINE)
    text = re.sub(r"^(Returns|Yields):\n    ", r"\1:\n    : ", text, flags=re.MULTILINE)
    return NAME.sub(r'<autoref optional identifier="\1">`\1`</autoref>', text)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring:
            obj.docstring.value = standard(obj.docstring.value)
