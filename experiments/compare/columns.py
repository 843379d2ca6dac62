"""Columns of a table: what is measured of a row, for the csv, and how it is shown."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from typing import Any

from experiments.compare.runs import Finished
from experiments.compare.tables import Row, Table, best_step, gains, interval

Numbers = dict[str, Any]
Read = Callable[[Finished], float | None]


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        title: its head; None: it goes into the csv alone.
        measure: the numbers of a row by csv key, None where nothing was measured.
        show: the cell, from the numbers of the whole row; `""` where nothing was measured.
    """

    title: str | None
    measure: Callable[[Table, Row], Numbers]
    show: Callable[[Row, Numbers], str]


# Parts of columns --------------------------------------------------------------------------------------------------


def values(row: Row, read: Read) -> list[float]:
    return [float(value) for run in row.runs if (value := read(run)) is not None]


def average(numbers: Sequence[float]) -> float | None:
    return mean(numbers) if numbers else None


def spread(key: str, numbers: Sequence[float]) -> Numbers:
    """Mean, standard deviation over seeds and number of values."""
    deviation = stdev(numbers) if len(numbers) > 1 else None
    return {key: average(numbers), f"{key}_sd": deviation, f"{key}_n": len(numbers)}


def show_spread(key: str, sign: str, digits: int, row: Row, found: Numbers) -> str:
    """`mean ± deviation`, with the number of values where not every seed of the row has one."""
    if found[key] is None:
        return ""
    deviation = found[f"{key}_sd"]
    text = f"{found[key]:{sign}.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")
    count = found[f"{key}_n"]
    return text if count == (row.planned or len(row.runs)) else f"{text} ({count})"


def show_plain(key: str, pattern: str, row: Row, found: Numbers) -> str:
    return "" if found[key] is None else pattern.format(found[key])


def spread_of(title: str | None, key: str, read: Read, sign: str = "", digits: int = 1) -> Column:
    """Mean and deviation over seeds of a number of each run."""
    return Column(title, lambda table, row: spread(key, values(row, read)), partial(show_spread, key, sign, digits))


def mean_of(title: str | None, key: str, read: Read, pattern: str = "{:.1f}") -> Column:
    return Column(title, lambda table, row: {key: average(values(row, read))}, partial(show_plain, key, pattern))


def summary(key: str) -> Read:
    return lambda run: run.summary.get(key)


# The columns -------------------------------------------------------------------------------------------------------


def count() -> Column:
    return Column("n", lambda table, row: {"n": len(row.runs)}, lambda row, found: str(found["n"]))


def on_test(which: str, title: str, metric: str = "miou", digits: int = 1) -> Column:
    """A metric on test of the checkpoint `which`, or of a refinement such as `best+mrf`."""
    key = f"test_{metric}_{which}"
    return Column(
        title,
        lambda table, row: spread(key, row.tests(which, metric)),
        partial(show_spread, key, "", digits),
    )


def gain(which: str, title: str) -> Column:
    """Test mIoU minus the baseline's at equal seeds: mean and deviation."""
    key = f"gain_{which}"
    return Column(title, lambda table, row: spread(key, paired(table, row, which)), partial(show_spread, key, "+", 1))


def paired(table: Table, row: Row, which: str) -> list[float]:
    return gains(row, table.baseline, which) if table.baseline and row is not table.baseline else []


def gains_by_seed(which: str) -> Column:
    key = f"gain_{which}_by_seed"

    def measure(table: Table, row: Row) -> Numbers:
        return {key: ", ".join(f"{one:+.1f}" for one in paired(table, row, which)) or None}

    return Column("gain, seed by seed", measure, partial(show_plain, key, "{}"))


def interval_of(which: str, title: str) -> Column:
    """Where the mean gain lies if other test images are drawn."""
    low, high = f"gain_{which}_images_low", f"gain_{which}_images_high"

    def measure(table: Table, row: Row) -> Numbers:
        limits = interval(row, table.baseline, which) if table.baseline and paired(table, row, which) else None
        return {low: limits and limits[0], high: limits and limits[1]}

    def show(row: Row, found: Numbers) -> str:
        return "" if found[low] is None else f"{found[low]:+.1f} to {found[high]:+.1f}"

    return Column(title, measure, show)


def share_of_gap(which: str) -> Column:
    """Mean gain over the distance between the baseline and the row with all labels."""
    key = f"gap_{which}"

    def measure(table: Table, row: Row) -> Numbers:
        found = paired(table, row, which)
        if not found or table.full is None or row is table.full or not paired(table, table.full, which):
            return {key: None}
        gap = mean(paired(table, table.full, which))
        return {key: mean(found) / gap if gap else None}

    return Column("share of the gap", measure, partial(show_plain, key, "{:.0%}"))


def above_two_deviations(which: str) -> Column:
    key = f"gain_{which}_above_2_sd"

    def measure(table: Table, row: Row) -> Numbers:
        found = paired(table, row, which)
        return {key: ("yes" if mean(found) > 2 * stdev(found) else "no") if len(found) > 1 else None}

    return Column("above 2 sd", measure, partial(show_plain, key, "{}"))


def validated(which: str, title: str | None) -> Column:
    """mIoU on val of the checkpoint `which`, of the network that the row scores."""
    key = f"val_miou_{which}"
    return Column(
        title,
        lambda table, row: spread(key, [v for run in row.runs if (v := row.validation(run, which)) is not None]),
        partial(show_spread, key, "", 1),
    )  # fmt: skip


def logged(name: str) -> Column:
    """The last value that training logged as `train/...`."""
    return spread_of(name, name.replace("/", "_"), lambda run: run.logged.get(name), digits=3)


def last_validation(name: str) -> Column:
    """A metric `val/...` after the last step."""
    return spread_of(name, name.replace("/", "_"), lambda run: run.summary["last"].get(name), digits=2)


COSTS = {
    "steps": mean_of("steps", "steps", summary("steps"), "{:.0f}"),
    "minutes": Column(
        "min",
        lambda table, row: {"seconds": average(values(row, summary("seconds")))},
        lambda row, found: "" if found["seconds"] is None else f"{found['seconds'] / 60:.1f}",
    ),
    "images/s": mean_of("images/s", "images_per_s", summary("images_per_s")),
    "memory": mean_of("GB", "peak_memory_gb", summary("peak_memory_gb")),
    "parameters": mean_of("parameters", "parameters", summary("parameters"), "{:.0f}"),
}


def comparison(table: Table) -> list[Column]:
    """The columns of `weakseg compare`."""
    found = [count(), *(on_test(which, f"test {which}") for which in table.tested)]
    for which in ("best", "last"):
        if which in table.tested:
            shown = table.baseline is not None
            found.append(gain(which, f"gain, {which}") if shown else silent(gain(which, "")))
            found.append(interval_of(which, "95 % images") if shown else silent(interval_of(which, "")))
    found += [validated("best", "val best"), validated("last", None)]
    found += [mean_of("at step", "best_step", best_step, "{:.0f}")]
    return [*found, *(COSTS[name] for name in ("steps", "minutes", "images/s", "memory")), silent(COSTS["parameters"])]


def silent(column: Column) -> Column:
    """The same for the csv alone."""
    return Column(None, column.measure, column.show)


def named(which: str) -> dict[str, Column]:
    """The columns that a study's table may name, for scores of the checkpoint `which`."""
    return {
        "score": on_test(which, f"test mIoU, {which}"),
        "gain": gain(which, "gain"),
        "seeds": gains_by_seed(which),
        "interval": interval_of(which, "95 % over images"),
        "gap": share_of_gap(which),
        "2 sd": above_two_deviations(which),
        "n": count(),
        "best": on_test("best", "test mIoU, best"),
        "last": on_test("last", "test mIoU, last"),
        "val": validated(which, f"val mIoU, {which}"),
        **COSTS,
    }


def find_column(name: str, which: str) -> Column:
    """A column by its name in a study: one of `named`, or a metric `test/...`, `val/...` or `train/...`.

    Raises:
        ValueError: there is no such column.
    """
    if name.startswith("test/"):
        metric = name.removeprefix("test/")
        return on_test(which, metric if metric != "miou" else f"test mIoU, {which}", metric)
    if name.startswith("val/"):
        return last_validation(name)
    if name.startswith("train/"):
        return logged(name)
    columns = named(which)
    if name not in columns:
        nearest = difflib.get_close_matches(name, columns, 1)
        raise ValueError(
            f"there is no column '{name}'{f', nearest: {nearest[0]}' if nearest else ''}: there are "
            f"{', '.join(columns)}, and metrics as test/accuracy, val/miou or train/loss"
        )
    return columns[name]


# Tables ------------------------------------------------------------------------------------------------------------


def measure(table: Table, columns: Sequence[Column]) -> list[Numbers]:
    """A dict per row, with the keys of the csv; None where nothing was measured."""
    found = []
    for row in table.rows:
        one: Numbers = {"table": table.title, "row": row.label}
        for column in columns:
            one |= column.measure(table, row)
        found.append(one)
    return found


def numbers(table: Table) -> list[Numbers]:
    """What `weakseg compare` writes into `table.csv`."""
    return measure(table, comparison(table))


def cells(table: Table, columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    """Column titles and the text of each row, as shown in HTML and Markdown."""
    shown = [column for column in columns if column.title is not None]
    lines = [
        [row.label, *(column.show(row, found) for column in shown)]
        for row, found in zip(table.rows, measure(table, columns), strict=True)
    ]
    return ["", *(str(column.title) for column in shown)], lines


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
