"""The site is the repository: a page keeps its path, so links that work in a checkout work on the site too.

Nothing is registered. Pages are found by pattern and ordered by their first mention in README.md, the API reference is
made of the packages' docstrings, and whatever else a page links to (a script, a folder, a notebook) becomes a page.
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
REFERENCE = ("weakseg.py", "common/ops", "common/model", "datamodules", "methods", "experiments/runs")
ONE_PAGE = ("datamodules/sets", "methods/*")
PICTURES = {".png", ".svg", ".jpg", ".gif"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".sh": "bash"}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
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
        return f"# {name}\n\n::: {dotted(paths[0])}\n\n{exported(paths[0])}"
    shown = [f"::: {dotted(path)}\n    options: {{show_root_heading: true, heading_level: 2}}\n" for path in paths]
    return "\n".join([f"# {name}\n", *shown])


def exported(path: str) -> str:
    """What a module offers by another name than its home's: a list with links, and what no other page shows."""
    tree = ast.parse((ROOT / path).read_text()).body
    names = {
        one for node in tree if isinstance(node, ast.Assign) and is_all(node) for one in ast.literal_eval(node.value)
    }
    homes = [(node.module, one.name) for node in tree if isinstance(node, ast.ImportFrom) for one in node.names]
    homes = [(module, one) for module, one in homes if one in names]
    shown = {dotted(file) for files in reference().values() for file in files}
    rows = [f'- `{one}`: <autoref optional identifier="{home}.{one}">`{home}.{one}`</autoref>' for home, one in homes]
    blocks = [f"::: {home}.{one}\n    options: {{show_root_heading: true}}" for home, one in homes if home not in shown]
    return "\n".join([*rows, "", *blocks])


def is_all(node: ast.Assign) -> bool:
    return ast.unparse(node.targets[0]) == "__all__" and isinstance(node.value, ast.List)


def page_link(page: str, target: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def notebook_text(path: Path) -> str:
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"]]
    return "\n\n".join(f"```python\n{text}\n```" if kind == "code" else text for kind, text in cells)


def source_text(path: Path, page: str) -> str:
    """A file, or a folder's list of files, for a link that leads there."""
    name, head = path.relative_to(ROOT).as_posix(), "---\nsearch:\n  exclude: true\n---\n"
    if path.is_dir():
        rows = [f"- [{one}]({page_link(page, f'{name}/{one}')})" for one in listed(path)]
        return f"{head}# {name}\n\n" + "\n".join(rows)
    text = path.read_text()
    if path.suffix == ".ipynb":
        return head + notebook_text(path)
    return f"{head}# {name}\n\n~~~~~~ {LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n~~~~~~\n"


def listed(folder: Path) -> list[str]:
    names = (path.name for path in folder.iterdir() if path.is_file() or any(path.iterdir()))
    return sorted(name for name in names if not name.startswith((".", "__")))


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
    texts = {page_of(path): (ROOT / path).read_text() for path in ("README.md", *PROJECT)}
    for pattern in SECTIONS.values():
        for path in found(pattern):
            texts[page_of(path)] = notebook_text(ROOT / path) if path.endswith("ipynb") else (ROOT / path).read_text()
    made = {uri: reference_text(uri, paths) for uri, paths in reference().items()}
    shown = {path: uri for uri, paths in reference().items() for path in paths}
    pictures: set[str] = set()
    targets: dict[str, str] = {}  # path in the repository: its page
    queue = list(texts.items())
    while queue:
        uri, text = queue.pop()
        base = "" if uri.startswith("source/") else posixpath.dirname(uri)
        for link in LINK.findall(FENCE.sub("", text)):
            path = posixpath.normpath(posixpath.join(base, link))
            file = ROOT / path
            if page_of(path) in texts or path in targets or not file.exists() or not file.is_relative_to(ROOT):
                continue
            if file.suffix in PICTURES:
                pictures.add(path)
            elif path in shown:
                targets[path] = shown[path]
            elif (file / "README.md").exists() and f"{path}/README.md" in texts:
                targets[path] = f"{path}/README.md"
            else:
                targets[path] = f"source/{path.lstrip('.')}.md"
                made[targets[path]] = source_text(file, targets[path])
                if file.is_dir():
                    queue.append(("source/", "".join(f"]({path}/{name})" for name in listed(file))))
    config.extra["targets"] = targets
    add: Callable[..., File] = lambda uri, **source: kept.append(File.generated(config, uri, **source))  # noqa: E731
    for uri, text in (texts | made).items():
        add(uri, content=text)
    for path in pictures:
        add(path, abs_src_path=str(ROOT / path))
    return Files(kept)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri, targets = page.file.src_uri, config.extra["targets"]
    base = posixpath.dirname(uri)
    if uri == "README.md":
        page.meta["hide"] = ["navigation"]

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(base, match[0]))
        if base.startswith("source"):  # its links are made of paths in the repository
            path = path.removeprefix("../")
        return page_link(uri, page_of(targets.get(path, path)))

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
