"""The command line of `weakseg compare`; what it needs is imported once the command line is right."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DESCRIPTION = """\
Finished runs side by side: a table over seeds, curves, bars per class and predictions, in one HTML file that needs no
network, in Markdown, LaTeX and CSV. Runs of other data, labels or evaluation come into tables of their own."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="weakseg compare",
        allow_abbrev=False,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="+",
        help="run directories, folders that are searched for them, offline W&B folders, patterns of these, or "
        "wandb:ENTITY/PROJECT[/GROUP]",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("comparison"), help="folder of the report (comparison)")
    parser.add_argument("--baseline", help="row that others are compared with, by its name in the table (Supervised)")
    parser.add_argument("--images", type=int, default=4, help="test images shown with the predictions of each row (4)")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="NAME",
        help="further columns: what was tested (test/accuracy, test/iou/CLASS, what `weakseg test --metrics` adds), "
        "val/... and train/... of the last step",
    )  # fmt: skip
    parser.add_argument(
        "--formats", nargs="+", default=[], choices=["pdf", "svg"], help="of the figures, beside PNG: pdf, svg"
    )  # fmt: skip
    parser.add_argument("--test", action="store_true", help="run `weakseg test` on runs that lack it, best and last")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """`weakseg compare`.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: no run, no such baseline, no access.
    """
    options = parse(arguments)
    from experiments.compare.report import write_report
    from experiments.compare.runs import read_runs
    from experiments.compare.tables import build_tables

    runs, left_out = read_runs(options.runs)
    if options.test:
        test_missing([run.folder for run in runs if run.folder])
        runs, left_out = read_runs(options.runs)
    if not runs:
        raise FileNotFoundError("no run is finished: " + "; ".join(left_out))
    tables, remarks = build_tables(runs, options.baseline)
    told = [*left_out, *remarks]
    shown = write_report(options.output, tables, told, options.images, options.columns, options.formats)
    print(shown)
    for line in told:
        print(f"\n{line}")
    print(f"\nreport: {(options.output / 'report.html').resolve()}")


def lacks_images(folder: Path, which: str, summary: Mapping[str, Any]) -> bool:
    """Whether a test should have left matrices of its images, and has not: maps have none."""
    from experiments.compare.runs import score_of

    return score_of(summary) == "val/miou" and not (folder / f"test_{which}_images.npz").exists()


def test_missing(folders: Sequence[Path]) -> None:
    """Run `weakseg test` on the checkpoints of finished runs whose images were not measured yet."""
    from common.training.files import read_summary
    from experiments.cli.test import main as test

    for folder in folders:
        for which in ("best", "last"):
            summary = read_summary(folder)
            tested = summary.get("test", {})
            checkpoint = folder / "checkpoints" / f"{which}.ckpt"
            if checkpoint.exists() and (which not in tested or lacks_images(folder, which, summary)):
                quiet = ["--trainer.enable_progress_bar", "false"]
                try:
                    test(["--run", str(folder), "--which", which, *quiet])
                except (ValueError, OSError) as error:
                    raise ValueError(f"{folder} could not be tested ({error}): leave --test off") from error
