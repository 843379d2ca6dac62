"""What a comparison shows: curves, mIoU against the share of labels, bars per class, and predictions side by side."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from common.model.metrics import SegmentationMetrics
from common.ops.array import Array
from common.ops.batch import IGNORE
from common.training.pictures import colorize
from experiments.compare.runs import Finished
from experiments.compare.tables import Row, Table, class_ious
from experiments.runs.load import load_run

WRONG = (225, 0, 60)
COLORS = ["#4b4b4b", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f3fbf", "#a6a600"]
STANDING = 8  # classes whose bars stand side by side
FONTS = ("Arial", "Helvetica", "Liberation Sans", "DejaVu Sans")  # the first that is installed; the last one always is
# Letters stay letters: TrueType in PDF, where journals refuse Matplotlib's own Type 3, and text in SVG.
STYLE: dict[Any, Any] = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "weakseg"}
UNDATED = {"png": None, "pdf": {"CreationDate": None}, "svg": {"Date": None}}  # the same runs give the same file


def drawn(figure: Figure, kind: str = "png") -> bytes:
    """A figure as a file: `png`, `pdf` or `svg`."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    with matplotlib.rc_context({**STYLE, "font.sans-serif": [name for name in FONTS if name in installed]}):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=120, bbox_inches="tight", metadata=UNDATED[kind])
    return buffer.getvalue()


def row_colors(tables: Sequence[Table]) -> dict[str, str]:
    """One colour per row label, the same in all figures."""
    labels = list(dict.fromkeys(row.label for table in tables for row in table.rows))
    return {label: COLORS[number % len(COLORS)] for number, label in enumerate(labels)}


def legend(axes: Axes) -> None:
    """Above the axes, where a narrow page shows it too, in as many columns as the labels leave room for."""
    longest = max((len(label) for label in axes.get_legend_handles_labels()[1]), default=1)
    columns = max(1, min(4, 40 // (longest + 6)))
    above = 3.0 if axes.xaxis.get_tick_params()["labeltop"] else 0.8  # the numbers there
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8, ncols=columns, borderaxespad=above)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def curves(table: Table, colors: dict[str, str]) -> Figure | None:
    """Val mIoU against the optimizer step: each run thin, the mean of a row thick where its runs share their steps."""
    if not any(run.curve for row in table.rows for run in row.runs):
        return None
    figure = Figure(figsize=(7, 3.2))
    axes = figure.add_subplot()
    for row in table.rows:
        lines = [run.curve for run in row.runs if run.curve]
        for line in lines:
            axes.plot(*zip(*line, strict=True), color=colors[row.label], lw=0.7, alpha=0.5)
        steps = [[step for step, _ in line] for line in lines]
        if lines and all(one == steps[0] for one in steps):
            height = [mean(points) for points in zip(*([value for _, value in line] for line in lines), strict=True)]
            axes.plot(steps[0], height, color=colors[row.label], lw=2, marker="o", ms=3, label=row.label)
        elif lines:
            axes.plot([], [], color=colors[row.label], lw=2, label=row.label)
    axes.set(xlabel="optimizer step", ylabel="val mIoU [%]")
    legend(axes)
    return figure


def bars(table: Table, colors: dict[str, str], which: str) -> Figure | None:
    """IoU per class, mean over seeds, with the standard deviation as a whisker; of many classes one below the other."""
    found = {row.label: class_ious(row, which if table.tested else None) for row in table.rows}
    classes = list(dict.fromkeys(name for ious in found.values() for name in ious))
    if not classes:
        return None
    lying = len(classes) > STANDING
    length = (0.13 if lying else 0.22) * len(classes) * (len(found) + 1.5)
    figure = Figure(figsize=(6.0, max(3.2, length)) if lying else (max(5.0, length), 3.2))
    axes = figure.add_subplot()
    width = 0.85 / len(found)
    draw, whisker = (axes.barh, "xerr") if lying else (axes.bar, "yerr")
    for number, (label, ious) in enumerate(found.items()):
        shown = [(place, ious[name]) for place, name in enumerate(classes) if ious.get(name)]
        if shown:
            whiskers: Any = {whisker: [stdev(numbers) if len(numbers) > 1 else 0 for _, numbers in shown]}
            draw(
                [place + (number + 0.5) * width - 0.425 for place, _ in shown],
                [mean(numbers) for _, numbers in shown],
                width * 0.95,
                **whiskers,
                error_kw={"lw": 0.8},
                color=colors[label],
                label=label,
            )
    score = f"IoU [%], {'test, ' + which if table.tested else 'val, last'}"
    if lying:
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.tick_params(axis="x", labeltop=True)
        axes.set_xlabel(score)
    else:
        axes.set_xticks(range(len(classes)), classes, rotation=30 if len(classes) > 6 else 0, ha="center", fontsize=8)
        axes.set_ylabel(score)
    legend(axes)
    return figure


def shares(tables: Sequence[Table], colors: dict[str, str], which: str) -> list[tuple[str, Figure]]:
    """Test mIoU against the amount of labels, a figure and its title for each family of tables that differ in the
    amount alone."""
    families: dict[str, list[Table]] = defaultdict(list)
    for table in tables:
        rest = {
            k: v for k, v in table.protocol.items() if k not in ("labels.fraction", "labels.number", "labels.per_class")
        }
        if table.share:
            families[str(sorted(rest.items()))].append(table)
    figures = []
    for family in families.values():
        lines: dict[str, list[tuple[float, list[float]]]] = defaultdict(list)
        for table in family:
            for row in table.rows:
                if table.share and (tested := row.tests(which)):
                    lines[row.label].append((table.share[1], tested))
        if len(family) < 2 or not lines:
            continue
        figure = Figure(figsize=(7, 3.2))
        axes = figure.add_subplot()
        for label, points in lines.items():
            points.sort(key=lambda point: point[0])
            deviations = [stdev(one) if len(one) > 1 else 0 for _, one in points]
            amounts, height = [amount for amount, _ in points], [mean(one) for _, one in points]
            axes.errorbar(amounts, height, deviations, color=colors[label], marker="o", ms=4, capsize=3, label=label)
        ticks = sorted({amount for points in lines.values() for amount, _ in points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        kind = family[0].share[0] if family[0].share else ""
        axes.set(xlabel=f"amount of labels ({kind})", ylabel=f"test mIoU [%], {which}")
        legend(axes)
        head, bracket, why = family[0].title.partition(" (")  # why its runs are kept apart from others
        figures.append((head.rsplit("-", 1)[0] + bracket + why, figure))
    return figures


# Predictions -------------------------------------------------------------------------------------------------------


@dataclass
class Picture:
    """A test image with its truth, and per row the prediction, the errors over the grey image, and the image's mIoU."""

    name: str
    image: Array
    truth: Array
    predictions: dict[str, tuple[Array, Array, float]]


def show_errors(image: Array, truth: Array, labels: Array) -> Array:
    """Pale grey image (H, W, 3) with the wrong pixels in red; pixels without a label are never wrong."""
    grey = image.mean(-1, keepdims=True)
    shown = np.repeat((110 + grey * 0.55).astype(np.uint8), 3, -1)
    shown[(labels != truth) & (truth != IGNORE)] = WRONG
    return shown


def chosen_runs(table: Table) -> dict[str, Finished]:
    """A run per row, of the first seed that all rows have, or else each row's first; only where it can be loaded."""
    common = set.intersection(*({*row.by_seed()} for row in table.rows))

    def choose(row: Row) -> Finished:
        return row.by_seed()[min(common)] if common else row.runs[0]

    runs = {row.label: choose(row) for row in table.rows}
    return {label: run for label, run in runs.items() if run.folder and (run.folder / "checkpoints/best.ckpt").exists()}


def pictures(table: Table, count: int) -> tuple[list[Picture], list[tuple[str, tuple[int, int, int]]], str]:
    """Test images spread over the split, predicted by the best checkpoint of one run of each row.

    Returns:
        The pictures, class names with their colours, and a line about them, which says why there are none.
    """
    runs = chosen_runs(table)
    if not runs:
        return [], [], "no pictures: the runs' checkpoints are not here"
    shown: dict[str, Picture] = {}
    classes: list[tuple[str, tuple[int, int, int]]] = []
    for label, run in runs.items():
        assert run.folder
        try:
            loaded = load_run(run.folder)
            data = loaded.data
            names = [name for name in data.names("test") if data.has_mask(name)]  # those of tags may have none
            if not names:
                return [], [], "no pictures: no test image has a mask"
            places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
            for name in [names[place] for place in places]:
                image, truth = data.image(name), data.mask(name)
                assert truth is not None
                found = loaded.predict(image)
                metric = SegmentationMetrics(data.num_classes)
                metric.update(*(torch.from_numpy(one.astype(np.int64))[None] for one in (found, truth)))
                miou = float(metric.compute()["miou"])
                rgb = image[..., :3]  # of more bands
                picture = shown.setdefault(name, Picture(name, rgb, colorize(truth, data.colors), {}))
                picture.predictions[label] = (colorize(found, data.colors), show_errors(rgb, truth, found), miou)
            classes = list(zip(data.class_names, data.colors, strict=True))
        except (OSError, ValueError) as error:
            return [], [], f"no pictures: {error}"
    seeds = sorted({run.seed for run in runs.values()})
    missing = [row.label for row in table.rows if row.label not in runs]
    line = f"best checkpoints of seed {', '.join(map(str, seeds))}; wrong pixels in red, mIoU of the image in per cent"
    return [*shown.values()], classes, line + (f"; no checkpoint here of {', '.join(missing)}" if missing else "")


def grid_rows(shown: Sequence[Picture]) -> tuple[list[list[Array]], list[str]]:
    """Rows of `common.training.pictures.save_grid`: two an image, predictions above errors, and the columns' titles."""
    rows = []
    for picture in shown:
        blank = np.full_like(picture.image, 255)
        rows.append([picture.image, picture.truth, *(one for one, _, _ in picture.predictions.values())])
        rows.append([blank, blank, *(errors for _, errors, _ in picture.predictions.values())])
    return rows, ["image", "truth", *(shown[0].predictions if shown else [])]


def encode(picture: Array, most: int = 320) -> bytes:
    """PNG of a picture, shrunk to at most so many pixels a side."""
    tile = Image.fromarray(picture)
    tile.thumbnail((most, most), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    tile.save(buffer, "PNG")
    return buffer.getvalue()
