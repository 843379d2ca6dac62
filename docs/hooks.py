"""The site is the repository: a page keeps its path, so links that work in a checkout work on the site too.

Nothing is registered. Pages are found by pattern and ordered by their first mention in README.md, and the API reference
is made of the packages' docstrings. Links to code lead to its reference; those to other files become plain text.
"""

from __future__ import annotations

import ast
import json
import posixpath
import re
from collections.abc import Callable, Iterable
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
}
PROJECT = ("CONTRIBUTING.md", "CHANGELOG.md")
# Packages of the reference, a page for each module; those below are a page for each folder.
REFERENCE = (
    "weakseg.py",
    "common/ops",
    "common/model",
    "common/training",
    "datamodules",
    "methods",
    "experiments/runs",
)
ONE_PAGE = ("datamodules/sets", "methods/*")
PICTURES = {".png", ".svg", ".jpg", ".gif"}
LINK = re.compile(r"\[([^\[\]]*(?:!\[[^\]]*\]\([^)]*\))?[^\[\]]*)\]\((?!\w+:|#)([^)\s#]+)([^)]*)\)")
MARKS = re.compile(r"\[(\w+)\](?=\s*\[)")  # [code] [ours]: two marks, and no link
NAME = re.compile(r"`((?:weakseg|common|datamodules|methods|experiments)(?:\.\w+)+)`")
FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
ITEM = re.compile(r"(\d+\.|[-*]) +(?=\S)")


# What there is --------------------------------------------------------------------------------------------------------


def found(pattern: str) -> list[str]:
    """Paths that match, in the order in which README.md first names them, the others behind by name."""
    readme = (ROOT / "README.md").read_text()
    paths = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))
    return sorted(paths, key=lambda path: readme.find(path) % (len(readme) + 1))


def page_of(path: str) -> str:
    """Where the site has a page of the repository: a notebook becomes Markdown."""
    return re.sub(r"\.ipynb$", ".md", path)


def modules(folder: str) -> list[str]:
    """Modules of a package, without those below that have only `__init__`."""
    return sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / folder).glob("*.py") if p.name != "__init__.py")


def reference() -> dict[str, list[str]]:
    """Pages of the API reference: the files whose docstrings each shows. A package's page comes before its modules'."""
    pages: dict[str, list[str]] = {}
    for entry in REFERENCE:
        if entry.endswith(".py"):
            if (ROOT / entry).exists():
                pages[f"reference/{entry[:-3]}.md"] = [entry]
            continue
        pages[f"reference/{entry}/README.md"] = [f"{entry}/__init__.py"]
        for module in modules(entry):
            pages[f"reference/{module[:-3]}.md"] = [module]
        for folder in sorted({path for pattern in ONE_PAGE for path in ROOT.glob(pattern) if path.is_dir()}):
            path = folder.relative_to(ROOT).as_posix()
            if path.startswith(f"{entry}/") and modules(path):
                pages[f"reference/{path}.md"] = modules(path)
    return pages


def dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def summary(path: str) -> str:
    """First line of a module's docstring."""
    return (ast.get_docstring(ast.parse((ROOT / path).read_text())) or "").split("\n")[0]


def reference_text(uri: str, paths: list[str]) -> str:
    name = dotted(uri.removeprefix("reference/").removesuffix(".md").removesuffix("/README"))
    if uri.endswith("README.md"):
        below = {page: files for page, files in reference().items() if page.startswith(posixpath.dirname(uri) + "/")}
        del below[uri]
        rows = [
            f"| [{Path(page).stem}]({page_link(uri, page)}) | {summary(files[-1])} |" for page, files in below.items()
        ]
        doc = ast.get_docstring(ast.parse((ROOT / paths[0]).read_text())) or ""
        return "\n".join([f"# {name}", "", doc, "", "| module | |", "|---|---|", *rows])
    if len(paths) == 1:
        return f"# {name}\n\n::: {dotted(paths[0])}\n"
    shown = [f"::: {dotted(path)}\n    options: {{show_root_heading: true, heading_level: 2}}\n" for path in paths]
    return "\n".join([f"# {name}\n", *shown])


def page_link(page: str, target: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def notebook_text(path: Path) -> str:
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"]]
    return "\n\n".join(f"```python\n{text}\n```" if kind == "code" else text for kind, text in cells)


# mkdocs' events -------------------------------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    nav: list[dict[str, Any]] = [{"Home": "README.md"}]
    nav += [{title: [page_of(path) for path in found(pattern)]} for title, pattern in SECTIONS.items()]
    tree: list[Any] = []
    for uri, paths in reference().items():
        if uri.endswith("README.md"):
            tree.append({dotted(paths[0]): [{"Overview": uri}]})
        elif tree and isinstance(tree[-1], dict) and uri.count("/") > 1:
            next(iter(tree[-1].values())).append({Path(uri).stem: uri})
        else:
            tree.append({Path(uri).stem: uri})
    config.nav = [*nav, {"Reference": tree}, {"Project": list(PROJECT)}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files stay; those of docs/ come under their path in the repository, with all the others."""
    kept = [file for file in files if file.src_dir != config.docs_dir or file.src_uri.endswith(".css")]
    texts = {uri: reference_text(uri, paths) for uri, paths in reference().items()}
    for path in ("README.md", *PROJECT, *(path for pattern in SECTIONS.values() for path in found(pattern))):
        file = ROOT / path
        texts[page_of(path)] = notebook_text(file) if path.endswith("ipynb") else file.read_text()
    kept += [File.generated(config, uri, content=text) for uri, text in texts.items()]
    pages = {posixpath.normpath(posixpath.join(posixpath.dirname(uri), match[2]))
             for uri, text in texts.items() for match in LINK.finditer(text)}  # fmt: skip
    pictures = {path for path in pages if Path(path).suffix in PICTURES and (ROOT / path).exists()}
    kept += [File.generated(config, path, abs_src_path=str(ROOT / path)) for path in sorted(pictures)]
    return Files(kept)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    shown = {path: target for target, paths in reference().items() for path in paths}
    if uri == "README.md":
        page.meta["hide"] = ["navigation"]

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(uri), match[2]))
        for target in (page_of(path), shown.get(path), f"{path}/README.md"):
            if target and files.get_file_from_path(target):
                return f"[{match[1]}]({page_link(uri, target)}{match[3]})"
        return match[1]

    return outside_fences(lambda text: LINK.sub(link, MARKS.sub(r"[\1\\]", text)), indented(markdown))


def on_page_content(html: str, **_: Any) -> str:
    return html.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def outside_fences(change: Callable[[str], str], text: str) -> str:
    pieces, end = [], 0
    for fence in FENCE.finditer(text):
        pieces += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, change(text[end:])])


def indented(text: str) -> str:
    """Lists as GitHub reads them: what belongs to an item is indented by the width of its marker, by 4 for Markdown's
    Python; and a list may follow a paragraph without a blank line."""
    lines: list[str] = []
    width = 0
    fence = ""
    for line in text.split("\n"):
        bare = line.strip()
        item = None if fence else ITEM.match(line)
        if fence:
            fence = "" if bare == fence else fence
        elif mark := re.match(r" *(```+|~~~+)", line):
            fence = mark[1]
        if item:
            if lines and lines[-1].strip() and not width:
                lines.append("")
            width = len(item[0])
        elif bare and not line.startswith(" ") and not (fence and not mark):
            width = 0
        lines.append(" " * 4 + line[width:] if width and not item and line.startswith(" " * width) else line)
    return "\n".join(lines)


# Docstrings -----------------------------------------------------------------------------------------------------------


class Docstrings(griffe.Extension):
    """Google's sections as they are written here: `one, other: text` describes two arguments, the text after `Returns:`
    holds no type (it is in the signature), and names of this project in code marks are links."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            text = "\n".join(self.lines(obj.docstring.value.split("\n")))
            # Optional: names that the reference does not show stay code.
            obj.docstring.value = NAME.sub(r'<autoref optional identifier="\1">`\1`</autoref>', text)

    @staticmethod
    def lines(lines: Iterable[str]) -> Iterable[str]:
        title, first = "", False
        for line in lines:
            if heading := re.fullmatch(r"(Args|Returns|Raises|Yields):", line):
                title, first = heading[1], True
                yield line
                continue
            if line and not line.startswith(" "):
                title = ""
            names = re.match(r"    (\w+(?:, \w+)+): (.*)", line) if title in ("Args", "Raises") else None
            if names:
                yield from (f"    {name}: {names[2]}" for name in names[1].split(", "))
            elif title in ("Returns", "Yields") and first:
                yield f"    : {line.strip()}"
            else:
                yield line
            first = False
