"""A comparison written down: report.html (one file, no network), report.md, table.csv, runs.csv, figures/."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2

from common.training.files import write_bytes, write_csv, write_text
from common.training.pictures import save_grid
from experiments.compare import figures
from experiments.compare.columns import cells, comparison, markdown, numbers
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
    folder: Path, tables: Sequence[Table], remarks: Sequence[str], images: int, more: Sequence[str] = ()
) -> str:
    """Write everything into `folder`; returns the tables as Markdown. `more`: names of further columns.

    Raises:
        ValueError: there is no such column.
    """
    drawn = folder / "figures"
    colors = figures.row_colors(tables)
    count = sum(len(row.runs) for table in tables for row in table.rows)
    lines, shown = [f"# Comparison of {count} runs\n", *(f"{remark}\n" for remark in remarks)], []

    def keep(name: str, content: bytes) -> str:
        write_bytes(drawn / f"{name}.png", content)
        return f"![{name}](figures/{name}.png)\n"

    for number, table in enumerate(tables):
        which = "best" if not table.tested or "best" in table.tested else table.tested[0]
        columns, rows = cells(table, comparison(table, more))
        lines += [f"## {table.title}\n", markdown(columns, rows) + "\n", *(f"- {note}" for note in table.notes), ""]
        made = {"curves": figures.curves(table, colors), "classes": figures.bars(table, colors, which)}
        content = {name: figures.png(figure) for name, figure in made.items() if figure}
        name = f"{number}_{slug(table.title)}"
        lines += [keep(f"{name}_{kind}", one) for kind, one in content.items()]
        found, classes, about = figures.pictures(table, images) if images else ([], [], "")
        if found:
            save_grid(drawn / f"{name}_pictures.png", *figures.grid_rows(found), height=110)
            lines += [f"![predictions](figures/{name}_pictures.png)\n"]
        lines += [f"{about}\n"] if about else []
        shown.append({
            "title": table.title, "columns": columns, "cells": rows, "notes": table.notes,
            "figures": {kind: embed(one) for kind, one in content.items()},
            "classes": classes, "about_pictures": about, "labels": [*found[0].predictions] if found else [],
            "pictures": [
                {"name": one.name, "image": embed(figures.encode(one.image)), "truth": embed(figures.encode(one.truth)),
                 "predictions": [
                    {"label": label, "labels": embed(figures.encode(labels)), "errors": embed(figures.encode(errors)),
                     "miou": f"{miou:.1f}"} for label, (labels, errors, miou) in one.predictions.items()]}
                for one in found],
        })  # fmt: skip
    shares = {title: figures.png(one) for title, one in figures.shares(tables, colors, "best").items()}
    lines += [
        line
        for title, one in shares.items()
        for line in (f"## {title}: amount of labels\n", keep(f"{slug(title)}_shares", one))
    ]
    page = jinja2.Environment(autoescape=True).from_string((Path(__file__).parent / "report.html").read_text())
    embedded = {title: embed(one) for title, one in shares.items()}
    html = page.render(tables=shown, remarks=remarks, count=count, draws=DRAWS, shares=embedded)
    write_text(folder / "report.html", html)
    write_text(folder / "report.md", "\n".join(lines))
    write_csv(folder / "table.csv", [row for table in tables for row in numbers(table, more)])
    write_csv(folder / "runs.csv", [row for table in tables for row in run_numbers(table)])
    return "\n\n".join(f"{table.title}\n\n{markdown(*cells(table, comparison(table, more)))}" for table in tables)
