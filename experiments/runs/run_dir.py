"""What is told of a finished run, or of its evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from common.training.files import read_summary

# Beginnings of metrics' names.
PER_CENT = ("miou", "iou", "accuracy", "cam_miou", "cam_iou", "map", "f1", "dice", "precision", "recall",
            "boundary_iou", "ece")  # fmt: skip


def print_results(folder: Path) -> None:
    """The end of a run: what came out, and where it is."""
    summary = read_summary(folder)
    print_metrics({"last": summary["last"], "best": summary["best"]})
    speed = f", {summary['images_per_s']} images/s" if summary["images_per_s"] else ""
    print(f"\n{summary['seconds']:.0f} s{speed}. Everything is in {folder}")


def print_metrics(columns: Mapping[str, Mapping[str, float | None]]) -> None:
    """A table of metrics, mIoU first: in per cent with two decimals, anything else with four digits. A class that does
    not occur is `absent`; what the first column has and another one lacks stays blank."""
    first = next(iter(columns.values()))
    width = max(24, *(len(name) + 2 for name in first), 0)
    print(f"\n{'metric':{width}}{''.join(f'{title:>10}' for title in columns)}")
    for name in sorted(first, key=lambda name: (not name.endswith(("/miou", "/cam_miou")), name)):
        cells = [shown(name, values[name]) if name in values else "" for values in columns.values()]
        print(f"{name:{width}}{''.join(f'{cell:>10}' for cell in cells)}".rstrip())


def shown(name: str, value: float | None) -> str:
    """A metric's value as a person reads it."""
    if value is None:
        return "absent"
    per_cent = any(part.startswith(PER_CENT) for part in name.split("/"))
    return f"{value:.2f}" if per_cent else f"{value:.4g}"
