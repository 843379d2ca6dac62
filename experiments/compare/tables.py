"""Runs into tables, and tables into rows of runs that differ in the seed alone."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from common.model.metrics import scores
from common.ops.array import Array
from common.training.tracking import partition
from experiments.compare.protocol import Flat, protocol, settings
from experiments.compare.runs import Finished

DRAWS = 2000  # of the bootstrap


@dataclass(eq=False)
class Row:
    """Runs that differ in the seed alone, sorted by it.

    Args:
        settings: what the runs share.
        label: the row's name in its table.
        planned: number of runs that there are to be; 0: those that there are.
        refined: kind of post-processing (`mrf`, `dense_crf`) whose scores are the row's; "": none.
        network: name of the network whose scores are the row's (`test/miou_NAME`); "": the scored one.
    """

    settings: Flat
    runs: list[Finished]
    label: str = ""
    planned: int = 0
    refined: str = ""
    network: str = ""

    @property
    def method(self) -> str:
        return str(self.settings["method"])

    def by_seed(self) -> dict[int, Finished]:
        return {run.seed: run for run in self.runs}

    def tested(self, which: str) -> str:
        """Name of the row's test of a checkpoint, `best` or `last`: with a post-processing, `best+mrf`."""
        return f"{which}+{self.refined}" if self.refined else which

    def test(self, run: Finished, which: str, metric: str = "miou") -> float | None:
        """A metric on test of one of the row's runs; None if it was not measured."""
        return run.test(self.tested(which), f"{metric}_{self.network}" if self.network else metric)

    def tests(self, which: str, metric: str = "miou") -> list[float]:
        return [value for run in self.runs if (value := self.test(run, which, metric)) is not None]

    def validation(self, run: Finished, which: str) -> float | None:
        """mIoU on val at the checkpoint `best` or `last` of one of the row's runs."""
        value: float | None = run.summary[which].get(f"val/miou_{self.network}" if self.network else "val/miou")
        return value

    def matrices(self, run: Finished, which: str) -> Array | None:
        """(N, K, K) confusion matrices of the test images; None if they were not written."""
        images = run.images.get(self.tested(which))
        if images is None:
            return None
        return images.others.get(self.network) if self.network else images.confusion


@dataclass(eq=False)
class Table:
    """Rows that may be compared.

    Args:
        protocol: what all runs share.
        baseline: the row that the others are compared with.
        full: the row of what is reached with all labels.
    """

    protocol: Flat
    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    baseline: Row | None = None
    full: Row | None = None

    @property
    def tested(self) -> list[str]:
        """What was tested: `best`, `last`, then refinements such as `best+mrf`."""
        names = {name for row in self.rows for run in row.runs for name in run.summary.get("test", {})}
        return sorted(names, key=lambda name: (name not in ("best", "last"), name))

    @property
    def own_scores(self) -> list[str]:
        """Scores on val of rows that have no `val/miou`; they are never in its column."""
        return sorted({run.score for row in self.rows for run in row.runs} - {"val/miou"})

    @property
    def share(self) -> tuple[str, float] | None:
        """Kind of the labels and how much of them there is, if one number says it."""
        amounts = [self.protocol.get(f"labels.{key}") for key in ("fraction", "number", "per_class")]
        amount = next((float(amount) for amount in amounts if amount is not None), None)
        if amount is None and self.protocol["labels.kind"] == "dense":
            amount = 1.0
        return None if amount is None else (str(self.protocol["labels.kind"]), amount)


def build_tables(runs: Sequence[Finished], baseline: str | None = None) -> tuple[list[Table], list[str]]:
    """Tables of the runs, and lines on what was left out or kept apart.

    Args:
        baseline: label or method of the row that others are compared with; None: `Supervised`, where a table has one
            row of it.

    Raises:
        ValueError: no table has such a baseline, or runs that agree in every option saw different test images.
    """
    remarks: list[str] = []
    groups: dict[str, list[Finished]] = defaultdict(list)
    for run in runs:
        groups[json.dumps(protocol(run), sort_keys=True)].append(run)
    tables = []
    for key, group in groups.items():
        rows: dict[str, Row] = {}
        for run in group:
            own = settings(run)
            rows.setdefault(json.dumps(own, sort_keys=True), Row(own, [])).runs.append(run)
        for row in rows.values():
            remarks += drop_repeats(row)
        supervision = {"kind": None, **group[0].config["data"]["init_args"]["supervision"]}
        tables.append(Table(json.loads(key), f"{group[0].data}, {partition(supervision)}", [*rows.values()]))
        check_images(tables[-1])
    tables.sort(key=lambda table: (table.title.rsplit("-", 1)[0], table.share or ("", 0.0)))
    label_rows(tables)
    remarks += kept_apart(tables)
    for table in tables:
        table.baseline = find_baseline(table, baseline)
        table.rows.sort(key=lambda row: (row is not table.baseline, row.label))
        table.notes = notes(table)
    if baseline and not any(table.baseline for table in tables):
        labels = sorted({row.label for table in tables for row in table.rows})
        raise ValueError(f"there is no row '{baseline}' to be the baseline: there are {'; '.join(labels)}")
    return tables, remarks


def drop_repeats(row: Row) -> list[str]:
    """Keep one run per seed, the first one: a repeated run is no new draw, and would make deviations too small."""
    kept: dict[int, Finished] = {}
    lines = []
    for run in row.runs:
        if run.seed in kept:
            lines.append(f"{run.source}: left out, same options and seed as {kept[run.seed].source}")
        else:
            kept[run.seed] = run
    row.runs = [kept[seed] for seed in sorted(kept)]
    return lines


def check_images(table: Table) -> None:
    first: tuple[str, Array, Array] | None = None
    for run in (run for row in table.rows for run in row.runs):
        for images in run.images.values():
            truth = images.confusion.sum(2)  # pixels of each class in each image: no prediction changes them
            if first is None:
                first = (run.source, images.names, truth)
            elif not (np.array_equal(first[1], images.names) and np.array_equal(first[2], truth)):
                raise ValueError(
                    f"{first[0]} and {run.source} agree in every option, but were tested on different images or masks: "
                    "test them on the same files, or compare them apart"
                )


def label_rows(tables: Sequence[Table]) -> None:
    """Name rows by their method and, where a table has several rows of one, by the options in which these differ."""
    varying: dict[str, set[str]] = defaultdict(set)
    for table in tables:
        for method in {row.method for row in table.rows}:
            same = [row.settings for row in table.rows if row.method == method]
            keys = {key for flat in same for key in flat}
            varying[method] |= {key for key in keys if len({flat.get(key) for flat in same}) > 1}
    for row in (row for table in tables for row in table.rows):
        names = sorted(varying[row.method])
        short = [name.rsplit(".", 1)[-1] for name in names]
        shown = [s if short.count(s) == 1 else n.split(".", 1)[1] for n, s in zip(names, short, strict=True)]
        row.label = " ".join([row.method, *(f"{s}={row.settings.get(n)}" for n, s in zip(names, shown, strict=True))])


def kept_apart(tables: Sequence[Table]) -> list[str]:
    """Why runs of one data set and one supervision stand in different tables; such tables get titles that say it."""
    lines = []
    by_title: dict[str, list[Table]] = defaultdict(list)
    for table in tables:
        by_title[table.title].append(table)
    for title, same in by_title.items():
        if len(same) == 1:
            continue
        keys = sorted({key for table in same for key in table.protocol})
        differ = [key for key in keys if len({table.protocol.get(key) for table in same}) > 1]
        for table in same:
            table.title = f"{title} ({', '.join(f'{key} {table.protocol.get(key)}' for key in differ)})"
        sources = "; ".join(f"{table.rows[0].runs[0].source}" for table in same)
        lines.append(f"{title}: runs that differ in {', '.join(differ)} are not put into one column (as {sources})")
    return lines


def find_baseline(table: Table, wanted: str | None) -> Row | None:
    named = [row for row in table.rows if row.label == wanted] or [
        row for row in table.rows if row.method == (wanted or "Supervised")
    ]
    if wanted and len(named) > 1:
        labels = "; ".join(row.label for row in named)
        raise ValueError(f"'{wanted}' is more than one row of {table.title}: give one of {labels}")
    return named[0] if len(named) == 1 else None


def notes(table: Table) -> list[str]:
    """What a reader of the table has to know: settings that all methods have and rows do not share, and commits."""
    commits = sorted({str(run.summary.get("commit")) for row in table.rows for run in row.runs})
    devices = sorted({str(run.summary.get("devices")) for row in table.rows for run in row.runs})
    lines = [*differing(table), *refinements(table), f"commits {', '.join(commits)}; devices {', '.join(devices)}"]
    if table.baseline is None:
        lines.append("no row of Supervised, or more than one: `--baseline ROW` adds differences")
    untested = sum("best" not in run.summary.get("test", {}) for row in table.rows for run in row.runs)
    if untested:
        lines.append(f"{untested} runs have no test score: `--test` measures them")
    elif any("best" not in run.images for row in table.rows for run in row.runs):
        lines.append("runs without test_best_images.npz have no interval over images: `--test` measures them again")
    return lines


def differing(table: Table) -> list[str]:
    """The settings that all methods have and rows do not share, a line each."""
    rows = [row for row in table.rows if row.runs]
    keys = sorted(set.intersection(*({*row.settings} for row in rows)) - {"method"}) if rows else []
    return [line for key in keys for line in told_apart(key, {row.label: row.settings[key] for row in rows})]


def refinements(table: Table) -> list[str]:
    """A line on each refinement, such as `best+mrf`, that runs were not tested with in the same way."""
    lines = []
    for which in (which for which in table.tested if "+" in which):
        told = {
            run.source: str(json.loads(run.images[which].evaluation).get("postprocess"))
            for row in table.rows for run in row.runs if which in run.images
        }  # fmt: skip
        lines += told_apart(which, told)
    return lines


def told_apart(key: str, values: dict[str, str]) -> list[str]:
    """A line on rows that differ, by row label; none where they do not, or where their labels say it."""
    labels: dict[str, list[str]] = defaultdict(list)
    for label, value in values.items():
        labels[value].append(label)
    if len(labels) < 2 or all(f"={value}" in label for label, value in values.items()):
        return []
    parts = [f"{value} ({'; '.join(names)})" for value, names in labels.items()]
    return [f"rows differ in {key}: {', '.join(parts)}"]


# Numbers -------------------------------------------------------------------------------------------------------------


def gains(row: Row, baseline: Row, which: str) -> list[float]:
    """Test mIoU minus the baseline's at the same seed, of the seeds that both have."""
    base = {run.seed: baseline.test(run, which) for run in baseline.runs}
    pairs = [(row.test(run, which), base.get(run.seed)) for run in row.runs]
    return [one - other for one, other in pairs if one is not None and other is not None]


def interval(row: Row, baseline: Row, which: str, draws: int = DRAWS) -> tuple[float, float] | None:
    """95 % percentile interval of the mean gain over other test images of the same kind; None without the matrices.

    Test images are drawn with replacement, the same ones for both rows and all seeds; the trained networks stay as
    they are. So the interval says nothing about seeds, and the deviation over seeds nothing about images.
    """
    base = {run.seed: baseline.matrices(run, which) for run in baseline.runs}
    both = [(row.matrices(run, which), base.get(run.seed)) for run in row.runs]
    pairs = [(ours, theirs) for ours, theirs in both if ours is not None and theirs is not None]
    if not pairs:
        return None
    return bootstrap([one for one, _ in pairs], [other for _, other in pairs], draws)


def bootstrap(ours: Sequence[Array], theirs: Sequence[Array], draws: int) -> tuple[float, float]:
    """2.5 and 97.5 % quantiles of mean over runs of mIoU(ours) - mIoU(theirs), in points.

    Args:
        ours, theirs: per run (N, K, K) integer confusion matrices of the same N images.
    """
    number = len(ours[0])
    counts = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), size=draws)  # (draws, N)
    difference = np.zeros(draws)
    for sign, matrices in ((1, ours), (-1, theirs)):
        for matrix in matrices:
            # Pixel counts are whole numbers below 2^53: the sums are exact.
            total = counts.astype(np.float64) @ matrix.reshape(number, -1).astype(np.float64)
            miou = scores(torch.from_numpy(total).view(draws, *matrix.shape[1:]))["miou"].numpy()
            difference += sign * miou / len(matrices)
    low, high = np.nanquantile(difference, (0.025, 0.975))  # without images that have no label at all
    return float(low), float(high)


def best_step(run: Finished) -> int | None:
    """Optimizer steps after which the best checkpoint was taken."""
    measured = [point for point in run.curve if not math.isnan(point[1])]  # without a label on val: none
    return max(measured, key=lambda point: (point[1], -point[0]))[0] if measured else None


def run_numbers(table: Table) -> list[dict[str, Any]]:
    """A dict per run, with the keys of `runs.csv`."""
    found = []
    for row in table.rows:
        for run in row.runs:
            best = run.summary["best"].get("val/miou")
            one: dict[str, Any] = {"table": table.title, "row": row.label, "seed": run.seed, "run": run.source}
            one |= {f"test_miou_{which}": run.test(which) for which in table.tested}
            one |= {"val_miou_best": best, "val_miou_last": run.summary["last"].get("val/miou"),
                    "best_step": best_step(run)}  # fmt: skip
            keys = ("steps", "seconds", "images_per_s", "peak_memory_gb", "parameters", "commit", "devices")
            found.append(one | {key: run.summary.get(key) for key in keys})
    return found


def class_ious(row: Row, which: str | None) -> dict[str, list[float]]:
    """IoU of each class, a value per run in which the class occurs: on test at the checkpoint `which`, or, None, on val
    at the last step."""
    found: dict[str, list[float]] = {}
    prefix = "test/iou/" if which else "val/iou/"
    for run in row.runs:
        content = run.summary.get("test", {}).get(which, {}) if which else run.summary["last"]
        for key, value in content.items():
            if key.startswith(prefix):
                found.setdefault(key.removeprefix(prefix), []).extend([] if value is None else [value])
    return found
