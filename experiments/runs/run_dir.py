"""What is told of a finished run."""

from __future__ import annotations

import json
from pathlib import Path


def print_results(folder: Path) -> None:
    """The end of a run: what came out, and where it is."""
    summary = json.loads((folder / "summary.json").read_text())
    best = summary["best"].get("val/miou")
    print(f"\n{'metric':24}{'last':>10}{'best':>10}")
    for name, value in sorted(summary["last"].items(), key=lambda item: (item[0] != "val/miou", item[0])):
        shown = "absent" if value is None else f"{value:.2f}"
        print(f"{name:24}{shown:>10}{f'{best:.2f}' if name == 'val/miou' and best is not None else '':>10}")
    speed = f", {summary['images_per_s']} images/s" if summary["images_per_s"] else ""
    print(f"\n{summary['seconds']:.0f} s{speed}. Everything is in {folder}")
