"""A comparison written down: report.html (one file, no network), report.md, table.csv, table.tex, runs.csv, figures."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from common.training.files import write_bytes, write_csv, write_text
from common.training.pictures import save_grid
from experiments.compare import figures
from experiments.compare.columns import cells, comparison, latex, markdown, numbers
from experiments.compare.tables import DRAWS, Table, run_numbers


def slug(title: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", title.lower()).strip("_")[:80]


def fill(file: Path, name: str, content: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` of a file.

    Raises:
        ValueError: it has no such markers.
    """
    text, start, end = file.read_text(), f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in text or end not in text[text.index(start) :]:
        raise ValueError(f"{file} has no lines {start} and {end}, between which it would be written")
    before, after = text.index(start) + len(start), text.index(end, text.index(start))
    write_text(file, f"{text[:before]}\n{content}\n{text[after:]}")


def embed(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def write_report(
    folder: Path,
    tables: Sequence[Table],
    remarks: Sequence[str],
    images: int,
    more: Sequence[str] = (),
    formats: Sequence[str] = (),
) -> str:
    """Write everything into `folder`.

    Args:
        images: number of test images that are shown with their predictions.
        more: names of further columns.
        formats: of the figures beside PNG, `pdf` and `svg`.

    Returns:
        The tables as Markdown.

    Raises:
        ValueError: there is no such column.
    """
    drawn = folder / "figures"
    colors = figures.row_colors(tables)
    count = sum(len(row.runs) for table in tables for row in table.rows)
    lines, shown = [f"# Comparison of {count} runs\n", *(f"{remark}\n" for remark in remarks)], []

    def keep(name: str, figure: Figure) -> tuple[str, str]:
        """The figure as a line of Markdown, and as an address for the page."""
        content = {kind: figures.drawn(figure, kind) for kind in ("png", *formats)}
        for kind, one in content.items():
            write_bytes(drawn / f"{name}.{kind}", one)
        return f"![{name}](figures/{name}.png)\n", embed(content["png"])

    written = [cells(table, comparison(table, more)) for table in tables]  # intervals take long: once
    for number, (table, (columns, rows)) in enumerate(zip(tables, written, strict=True)):
        which = "best" if not table.tested or "best" in table.tested else table.tested[0]
        lines += [f"## {table.title}\n", markdown(columns, rows) + "\n", *(f"- {note}" for note in table.notes), ""]
        made = {"curves": figures.curves(table, colors), "classes": figures.bars(table, colors, which)}
        name = f"{number}_{slug(table.title)}"
        content = {kind: keep(f"{name}_{kind}", figure) for kind, figure in made.items() if figure}
        lines += [line for line, _ in content.values()]
        found, classes, about = figures.pictures(table, images) if images else ([], [], "")
        if found:
            save_grid(drawn / f"{name}_pictures.png", *figures.grid_rows(found), height=110)
            lines += [f"![predictions](figures/{name}_pictures.png)\n"]
        lines += [f"{about}\n"] if about else []
        shown.append({
            "title": table.title, "columns": columns, "cells": rows, "notes": table.notes,
            "figures": {kind: address for kind, (_, address) in content.items()},
            "classes": classes, "about_pictures": about, "labels": [*found[0].predictions] if found else [],
            "pictures": [
                {"name": one.name, "image": embed(figures.encode(one.image)), "truth": embed(figures.encode(one.truth)),
                 "predictions": [
                    {"label": label, "labels": embed(figures.encode(labels)), "errors": embed(figures.encode(errors)),
                     "miou": f"{miou:.1f}"} for label, (labels, errors, miou) in one.predictions.items()]}
                for one in found],
        })  # fmt: skip
    shares = [
        (title, *keep(f"{number}_{slug(title)}_shares", one))
        for number, (title, one) in enumerate(figures.shares(tables, colors, "best"))
    ]
    lines += [line for title, one, _ in shares for line in (f"## {title}: amount of labels\n", one)]
    page = jinja2.Environment(autoescape=True).from_string((Path(__file__).parent / "report.html").read_text())
    html = page.render(tables=shown, remarks=remarks, count=count, draws=DRAWS, shares=shares)
    write_text(folder / "report.html", html)
    write_text(folder / "report.md", "\n".join(lines))
    tex = [latex(table.title, *one) for table, one in zip(tables, written, strict=True)]
    write_text(folder / "table.tex", "\n\n".join(["% \\usepackage{booktabs}", *tex]) + "\n")
    write_csv(folder / "table.csv", [row for table in tables for row in numbers(table, more)])
    write_csv(folder / "runs.csv", [row for table in tables for row in run_numbers(table)])
    return "\n\n".join(f"{table.title}\n\n{markdown(*one)}" for table, one in zip(tables, written, strict=True))
