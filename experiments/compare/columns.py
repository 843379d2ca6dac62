"""Columns of a table: what is measured of a row, for the csv, and how it is shown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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


def spread_of(
    title: str | None, key: str, found: Callable[[Table, Row], list[float]], sign: str = "", digits: int = 1
) -> Column:  # fmt: skip
    """Mean, standard deviation and number of values, shown as `mean ± deviation`; the number is shown where not every
    seed of the row has a value."""

    def measure(table: Table, row: Row) -> Numbers:
        numbers = found(table, row)
        deviation = stdev(numbers) if len(numbers) > 1 else None
        return {key: mean(numbers) if numbers else None, f"{key}_sd": deviation, f"{key}_n": len(numbers)}

    def show(row: Row, found: Numbers) -> str:
        if found[key] is None:
            return ""
        deviation, count = found[f"{key}_sd"], found[f"{key}_n"]
        text = f"{found[key]:{sign}.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")
        return text if count == (row.planned or len(row.runs)) else f"{text} ({count})"

    return Column(title, measure, show)


def plain(title: str | None, key: str, read: Callable[[Table, Row], Any], pattern: str) -> Column:
    """One value of a row; blank where it is None."""
    return Column(
        title,
        lambda table, row: {key: read(table, row)},
        lambda row, found: "" if found[key] is None else pattern.format(found[key]),
    )


def mean_of(title: str | None, key: str, read: Read, pattern: str = "{:.1f}") -> Column:
    """Mean over seeds of a number of each run."""

    def average(table: Table, row: Row) -> float | None:
        found = values(row, read)
        return mean(found) if found else None

    return plain(title, key, average, pattern)


def summary(key: str) -> Read:
    return lambda run: run.summary.get(key)


# The columns -------------------------------------------------------------------------------------------------------


def count() -> Column:
    return plain("n", "n", lambda table, row: len(row.runs), "{}")


def on_test(which: str, title: str, metric: str = "miou") -> Column:
    """A metric on test of the checkpoint `which`, or of a refinement such as `best+mrf`."""
    return spread_of(title, f"test_{metric}_{which}", lambda table, row: row.tests(which, metric))


def gain(which: str, title: str) -> Column:
    """Test mIoU minus the baseline's at equal seeds: mean and deviation."""
    return spread_of(title, f"gain_{which}", lambda table, row: paired(table, row, which), "+")


def paired(table: Table, row: Row, which: str) -> list[float]:
    return gains(row, table.baseline, which) if table.baseline and row is not table.baseline else []


def gains_by_seed(which: str) -> Column:
    def read(table: Table, row: Row) -> str | None:
        return ", ".join(f"{one:+.1f}" for one in paired(table, row, which)) or None

    return plain("gain, seed by seed", f"gain_{which}_by_seed", read, "{}")


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

    def read(table: Table, row: Row) -> float | None:
        found, full = paired(table, row, which), paired(table, table.full, which) if table.full else []
        if not found or not full or row is table.full or not mean(full):
            return None
        return mean(found) / mean(full)

    return plain("share of the gap", f"gap_{which}", read, "{:.0%}")


def above_two_deviations(which: str) -> Column:
    def read(table: Table, row: Row) -> str | None:
        found = paired(table, row, which)
        return None if len(found) < 2 else "yes" if mean(found) > 2 * stdev(found) else "no"

    return plain("above 2 sd", f"gain_{which}_above_2_sd", read, "{}")


def validated(which: str, title: str | None) -> Column:
    """mIoU on val of the checkpoint `which`, of the network that the row scores."""
    return spread_of(
        title, f"val_miou_{which}", lambda table, row: values(row, lambda run: row.validation(run, which))
    )  # fmt: skip


def logged(name: str, read: Read, digits: int) -> Column:
    """A metric by its name in the log."""
    return spread_of(name, name.replace("/", "_"), lambda table, row: values(row, read), digits=digits)


def best_of(name: str) -> Column:
    """A score of a method that has another one than `val/miou`, at its best."""
    return spread_of(
        f"{name}, best", f"{name.replace('/', '_')}_best",
        lambda table, row: values(row, lambda run: run.summary["best"].get(name)),
    )  # fmt: skip


COSTS = {
    "steps": mean_of("steps", "steps", summary("steps"), "{:.0f}"),
    "minutes": Column(
        "min",
        mean_of(None, "seconds", summary("seconds")).measure,
        lambda row, found: "" if found["seconds"] is None else f"{found['seconds'] / 60:.1f}",
    ),
    "images/s": mean_of("images/s", "images_per_s", summary("images_per_s")),
    "memory": mean_of("GB", "peak_memory_gb", summary("peak_memory_gb")),
    "parameters": mean_of("parameters", "parameters", summary("parameters"), "{:.0f}"),
}


def comparison(table: Table, more: Sequence[str] = ()) -> list[Column]:
    """The columns of `weakseg compare`; `more`: names of further ones, as a study gives them.

    Raises:
        ValueError: there is no such column.
    """
    found = [count(), *(on_test(which, f"test {which}") for which in table.tested)]
    for which in ("best", "last"):
        if which in table.tested:
            shown = table.baseline is not None
            found.append(gain(which, f"gain, {which}") if shown else silent(gain(which, "")))
            found.append(interval_of(which, "95 % images") if shown else silent(interval_of(which, "")))
    found += [validated("best", "val best"), validated("last", None)]
    for name in table.own_scores:
        found.append(best_of(name))
        for which in ("best", "last"):
            if which in table.tested:
                metric = name.removeprefix("val/")
                found.append(on_test(which, f"test/{metric}, {which}", metric))
    for name in more:
        if name.startswith("test/"):
            tested = [which for which in ("best", "last") if which in table.tested]
            found += [on_test(which, f"{name}, {which}", name.removeprefix("test/")) for which in tested]
        else:
            found.append(find_column(name, "best"))
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
    if name.startswith("val/"):  # after the last step
        return logged(name, lambda run: run.summary["last"].get(name), 2)
    if name.startswith("train/"):
        return logged(name, lambda run: run.logged.get(name), 3)
    columns = named(which)
    if name not in columns:
        metrics = "and metrics as test/accuracy, val/miou or train/loss"
        raise ValueError(f"there is no column '{name}'{near(name, columns)}: there are {', '.join(columns)}, {metrics}")
    return columns[name]


def near(name: str, known: Iterable[str]) -> str:
    """The name most like a mistyped one, as the middle of a sentence."""
    found = difflib.get_close_matches(name, [*known], 1)
    return f", nearest: {found[0]}" if found else ""


# Tables ------------------------------------------------------------------------------------------------------------


def measure(table: Table, columns: Sequence[Column]) -> list[Numbers]:
    """A dict per row, with the keys of the csv; None where nothing was measured."""
    found: list[Numbers] = [{"table": table.title, "row": row.label} for row in table.rows]
    for row, one in zip(table.rows, found, strict=True):
        for column in columns:
            one |= column.measure(table, row)
    return found


def numbers(table: Table, more: Sequence[str] = ()) -> list[Numbers]:
    """What `weakseg compare` writes into `table.csv`; `more` as in `comparison`."""
    return measure(table, comparison(table, more))


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


SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
           "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
           **{one: rf"\{one}" for one in "&%$#_{}"}}  # fmt: skip


def escaped(text: str) -> str:
    """A text as LaTeX prints it, with a minus before a negative number."""
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", "".join(SPECIAL.get(one, one) for one in text))


def latex(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of the package booktabs, with the title as its caption."""
    lines = [" & ".join(map(escaped, line)) + r" \\" for line in (columns, *rows)]
    return "\n".join([
        r"\begin{table}", r"  \centering", f"  \\caption{{{escaped(title)}}}",
        f"  \\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"    \toprule", f"    {lines[0]}", r"    \midrule",
        *(f"    {line}" for line in lines[1:]), r"    \bottomrule", r"  \end{tabular}", r"\end{table}",
    ])  # fmt: skip
