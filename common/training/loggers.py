"""A CSV logger that survives a resume."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning_utilities.core.rank_zero import rank_zero_only

from common.training.files import sync, write_csv


class CSVLogger(Logger):
    """Appends to `metrics.csv`: one row per logged set of values, with columns `step`, `epoch` and the values' names.

    Each row is written at once. A resume drops the rows that the checkpoint does not cover (`drop_from`), and half a
    row that a kill left; they are written again. A new column rewrites the file once.

    Not a subclass of Lightning's: that one deletes the file on a resume, keeps rows back and writes new columns in
    place, so that nearly all of it would be overridden.

    Args:
        folder: run directory; the file is made at the first row.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.columns: list[str] = []  # of the file, once the run directory is claimed (`drop_from`)

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass  # config.yaml has them

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": step, **metrics}
        new = [name for name in row if name not in self.columns]
        if new:
            _, rows = self._read()
            order = {"step": 0, "epoch": 1}
            self.columns = sorted({*self.columns, *row}, key=lambda name: (order.get(name, 2), name))
            write_csv(self.path, rows, self.columns)
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    @rank_zero_only
    def drop_from(self, step: int) -> None:
        """Drop the rows of `step` and later, which a run that starts at `step` writes (again)."""
        self.columns, rows = self._read()
        if self.columns:
            write_csv(self.path, [row for row in rows if int(row["step"]) < step], self.columns)

    @rank_zero_only
    def sync(self) -> None:
        """Wait until all rows are on the disk, as they must be when a checkpoint covers them."""
        if self.path.exists():
            sync(self.path)

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        if not self.path.exists():
            return [], []
        with self.path.open(newline="", errors="replace") as file:
            reader = csv.DictReader(file)
            # A kill can leave half a row at the end: it has too few cells (None) and is written again.
            rows = [row for row in reader if None not in row.values()]
        if not all((row.get("step") or "").isdecimal() for row in rows):
            raise ValueError(f"{self.path} has rows without a step: put it back as it was written, or remove it")
        return list(reader.fieldnames or []), rows
