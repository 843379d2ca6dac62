"""The page and the csv of a study, from its runs, through the tables and columns of `experiments.compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from common.training.files import write_csv, write_text
from experiments.compare.columns import Column, cells, count, find_column, markdown, measure
from experiments.compare.protocol import protocol, settings
from experiments.compare.report import fill
from experiments.compare.runs import Finished, from_folder
from experiments.compare.tables import Row, Table, check_images, differing, told_apart
from experiments.studies import plan, spec
from experiments.studies.plan import Place
from experiments.studies.postprocess import key_of, known_scores
from experiments.studies.spec import ALL_LABELS, KIND, Options, Search, Study

Shown = tuple[list[str], list[list[str]]]


# Tables ------------------------------------------------------------------------------------------------------------


def table_of(study: Study, place: Place, regime: str) -> Table:
    """The rows of a regime in the order of the study; a row without runs is there, and blank.

    Raises:
        ValueError: runs stand side by side that were not trained, or not evaluated, in one way.
    """
    rows = {row.name: table_row(study, place, regime, row) for row in study.rows.values() if regime in row.regimes}
    table = Table({}, regime, [*rows.values()])
    table.baseline, table.full = rows.get(study.baseline), rows.get(ALL_LABELS)
    check_images(table)
    table.notes = [*check_protocol(table), *differing(table)]
    return table


def table_row(study: Study, place: Place, regime: str, row: spec.Row) -> Row:
    refined = str(row.test.get(KIND, ""))
    planned = [plan.row_run(study, place, regime, row, seed) for seed in study.seeds]
    done = [run for run in planned if run.finished]
    if refined:  # a test with other values is not this row's
        done = [run for run in done if plan.is_tested(run, f"{study.score}+{refined}", row.test)]
    runs = [from_folder(run.folder) for run in done]
    for run in runs:
        who = f"{run.source} and {runs[0].source}, two seeds of '{row.name}',"
        same(settings(run) | protocol(run), settings(runs[0]) | protocol(runs[0]), who)
    return Row(settings(runs[0]) if runs else {}, runs, row.name, len(study.seeds), refined, row.network)


def check_protocol(table: Table) -> list[str]:
    """Rows of one table may differ in their labels alone, which is noted."""
    first: tuple[Finished, dict[str, Any]] | None = None
    labels: dict[str, str] = {}
    for row in table.rows:
        for run in row.runs:
            found = protocol(run)
            told = {key: found.pop(key) for key in [*found] if key.startswith("labels.")}
            labels[row.label] = ", ".join(f"{key.removeprefix('labels.')} {value}" for key, value in told.items())
            first = first or (run, found)
            same(found, first[1], f"{run.source} and {first[0].source}, of one table,")
    return told_apart("labels", labels)


def same(one: dict[str, Any], other: dict[str, Any], who: str) -> None:
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key):
            raise ValueError(f"{who} differ in {key}: {one.get(key)} and {other.get(key)}; remove one to make it again")


def columns_of(study: Study) -> list[Column]:
    return [find_column(name, study.score) for name in study.columns]


def markdown_of(study: Study, table: Table) -> str:
    titles, lines = cells(table, columns_of(study))
    return markdown(["method", *titles[1:]], lines)


def tables_of(study: Study, tables: Sequence[Table], heading: str = "**{}**") -> str:
    """All tables as Markdown; with several regimes each below its name."""
    parts = [(heading.format(table.title), markdown_of(study, table)) for table in tables]
    return "\n\n".join(text for head, body in parts for text in ((head, body) if len(tables) > 1 else (body,)))


# What was chosen on val --------------------------------------------------------------------------------------------


def on_val(study: Study, place: Place, regime: str, row: spec.Row, seed: int) -> float | None:
    """Val mIoU of a row with its own values; None while it is not measured."""
    run = plan.row_run(study, place, regime, row, seed)
    if row.of is not None:
        return known_scores(run.folder).get(key_of(study.score, row.test))
    return trained_score(study, row, run) if run.finished else None


def trained_score(study: Study, row: spec.Row, run: plan.Run) -> float | None:
    return Row({}, [], network=row.network).validation(from_folder(run.folder), study.score)


def search_scores(study: Study, place: Place, search: Search) -> list[float | None]:
    """Val mIoU of each point, mean over the search's seeds; None while one of the runs is missing."""
    row = study.rows[search.row]

    def score(point: Options, seed: int) -> float | None:
        if row.of is not None:
            return on_val(study, place, search.regime, replace(row, test=row.test | point), seed)
        run = plan.search_run(study, place, search, point, seed)
        return trained_score(study, row, run) if run.finished else None

    found = [[one for seed in search.seeds if (one := score(point, seed)) is not None] for point in search.points()]
    return [mean(scores) if len(scores) == len(search.seeds) else None for scores in found]


def search_table(study: Study, place: Place, search: Search) -> tuple[Shown, list[str]]:
    """The table of a search, and lines on what it does not settle."""
    scores, points = search_scores(study, place, search), search.points()
    row = study.rows[search.row]
    values = row.test if row.of else row.chosen(search.regime)
    known = [score for score in scores if score is not None]
    best = scores.index(max(known)) if known and len(known) == len(scores) else None  # of some it says nothing
    lines, shown = [], []
    for number, (point, score) in enumerate(zip(points, scores, strict=True)):
        marks = [word for word, told in (("best", number == best), ("chosen", plan.is_chosen(point, values))) if told]
        cell = "" if score is None else f"{score:.1f}"
        shown.append([*map(plan.word, point.values()), cell, ", ".join(marks)])
    if best is None:
        lines.append(f"{len(scores) - len(known)} of {len(scores)} points are not measured yet.")
    else:
        lines += edges(search, points[best])
        if not any(plan.is_chosen(point, values) for point in points):
            lines.append("The row's own value is not among those that were tried here.")
        elif not plan.is_chosen(points[best], values):
            lines.append("The row's own value is not the best one on val.")
    titles = [*(name.rsplit(".", 1)[-1] for name in search.over), f"val mIoU, {study.score}", ""]
    return (titles, shown), lines


def edges(search: Search, best: Options) -> list[str]:
    """A best value at the end of its range says that the range was too short."""
    lines = []
    for name, tried in search.over.items():
        numbers = [value for value in tried if isinstance(value, (int, float)) and not isinstance(value, bool)]
        if len(numbers) < 2 or best[name] not in (min(numbers), max(numbers)):
            continue
        end = "lowest" if best[name] == min(numbers) else "highest"
        short = name.rsplit(".", 1)[-1]
        lines.append(f"The best {short}, {plan.word(best[name])}, is the {end} tried: the search is not finished.")
    return lines


def searches_of(study: Study, place: Place) -> list[str]:
    parts = []
    for search in study.searches:
        (titles, rows), lines = search_table(study, place, search)
        parts += [f"**{search.row}**, {search.regime}, {of_seeds(search.seeds)}", markdown(titles, rows), *lines]
    return parts


# The page ----------------------------------------------------------------------------------------------------------


def runs_of(study: Study, tables: Sequence[Table]) -> list[str]:
    """What the artefacts say of the runs themselves."""
    runs = {run.source: run for table in tables for row in table.rows for run in row.runs}.values()
    if not runs:
        return []
    seconds = mean(float(run.summary["seconds"]) for run in runs)
    parts = [f"{len(runs)} runs, {seconds:.0f} s each on average"]
    for name, key in (("commits", "commit"), ("devices", "devices")):
        parts.append(f"{name} {', '.join(sorted({str(run.summary[key]) for run in runs}))}")
    parts.append(f"torch {', '.join(sorted({str(run.summary['versions']['torch']) for run in runs}))}")
    lines = ["; ".join(parts) + "."]
    for table in tables:
        run = next((run for row in table.rows if row is table.baseline for run in row.runs), None)
        found = run.summary.get("annotation", {}) if run else {}
        if run and {"labeled_pixels", "images"} <= found.keys():
            labelled = f"{found['labeled_pixels']} labelled pixels in {found['images']} images"
            lines.append(f"{table.title}, seed {run.seed}: {labelled}.")
    return lines


def missing_of(study: Study, place: Place) -> list[str]:
    """The runs that are not finished, row by row, with the command of the first one."""
    missing = [run for run in plan.all_runs(study, place) if not run.finished]
    if not missing:
        return []
    rows: dict[str, list[int]] = {}
    for run in missing:
        if run.tests:
            rows.setdefault(run.name, []).append(run.seed)
    points = sum(not run.tests for run in missing)
    of_searches = f", {points} of them of searches" if points else ""
    lines = [f"{len(missing)} runs are missing{of_searches}; `weakseg study {study.given}` makes them."]
    for name, seeds in rows.items():
        lines.append(f'- {name}, {of_seeds(seeds)}: `weakseg study {study.given} --row "{name}" --seed {seeds[0]}`')
    return ["\n".join(lines)]


def of_seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def page_text(study: Study, place: Place, tables: Sequence[Table]) -> str:
    """The page between its markers."""
    seeds = ", ".join(map(str, study.seeds))
    told = (
        f"Mean ± standard deviation over {len(study.seeds)} seeds ({seeds}), in brackets the number of runs where "
        f"some are missing. Gains are over '{study.baseline}' at equal seeds; intervals are over other test images, "
        "with the networks as they are. `best` and `last` are checkpoints of one run; what was searched was chosen on "
        "val."
    )
    parts = [f"# {study.title}", study.about, told]
    if place.extra:
        parts.append(f"Every run with `{' '.join(place.extra)}`.")
    for table in tables:
        parts += [f"## {table.title}", markdown_of(study, table), "\n".join(f"- {note}" for note in table.notes)]
    if study.searches:
        parts += ["## What was chosen on val", *searches_of(study, place)]
    repeat = f"`weakseg study {study.given}` repeats it."
    parts += ["## Runs", *runs_of(study, tables), *missing_of(study, place), repeat]
    return "\n\n".join(part for part in parts if part)


def write_page(study: Study, place: Place, folder: Path) -> tuple[Path, list[Table]]:
    """Write `NAME.md` and `NAME.csv` into `folder`. Words outside of the page's markers stay as they are.

    Raises:
        ValueError: the page is there and has no markers.
    """
    tables = [table_of(study, place, regime) for regime in study.regimes]
    page, content = folder / f"{study.name}.md", page_text(study, place, tables)
    if not page.exists():
        write_text(page, f"<!-- page {study.name} -->\n<!-- /page {study.name} -->\n")
    fill(page, f"page {study.name}", content)
    rows = [
        {"regime": table.title, **found, **val_numbers(study, place, table.title, found["row"])}
        for table in tables
        for found in measure(table, [count(), *columns_of(study)])
    ]
    write_csv(page.with_suffix(".csv"), [{key: value for key, value in row.items() if key != "table"} for row in rows])
    return page, tables


def val_numbers(study: Study, place: Place, regime: str, name: str) -> dict[str, float | int | None]:
    """What `experiments.benchmarks.decision` chooses by: mean of a row's val mIoU and its number of seeds."""
    scores = [on_val(study, place, regime, study.rows[name], seed) for seed in study.seeds]
    known = [score for score in scores if score is not None]
    return {f"val_miou_{study.score}": mean(known) if known else None, f"val_miou_{study.score}_n": len(known)}
