"""`weakseg review`: where a model and the masks differ, as a page: its worst images, and errors of the masks."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.training.predictions import Written
from datamodules.images import WholeImages
from datamodules.loaders import loader, reader
from datamodules.splits import SPLITS
from experiments.cli.lightning import run
from experiments.cli.trained import TrainedCLI, check_folder, from_run, trained_parser
from experiments.review.errors import Review, Reviewed
from experiments.review.page import ERRORS, IMAGES, PAGE, write_review
from experiments.runs.checkpoint import read_checkpoint


class ReviewCLI(TrainedCLI):
    """The images of a split that have masks, into a folder with a page."""

    verb = "predict"  # Lightning's

    def predict(self, **kwargs: Any) -> None:
        options, data, since = self.options, self.datamodule, time.perf_counter()
        if self.trainer.world_size > 1:
            raise ValueError("weakseg review looks at images on one device: leave trainer.devices out")
        written = Written(options.output, "review")
        written.check((PAGE, IMAGES, ERRORS), options.overwrite)
        self.model.load_state_dict(read_checkpoint(options.ckpt)["state_dict"])
        names = [name for name in data.names(options.split) if data.has_mask(name)]
        if not names:
            raise ValueError(f"no image of {options.split} has a mask: choose another --split")
        images = loader(data, WholeImages(names, reader(data), data.mask), batch_size=1)
        review = Review(data.colors, options.confidence, options.area)
        self.trainer.callbacks.append(review)  # type: ignore[attr-defined]
        self.trainer.predict(Reviewed(self.model), images, return_predictions=False)
        if not review.images:
            raise ValueError(f"no mask of {options.split} has a labelled pixel: choose another --split")
        about = {
            "run": str(options.run or options.ckpt),
            "method": self.method,
            "checkpoint": options.ckpt.stem,
            "split": options.split,
        }
        write_review(written, review, about, data.class_names)
        worst = review.images[0]
        print(
            f"{len(review.images)} images in {time.perf_counter() - since:.1f} s, the worst {worst.name} with mIoU "
            f"{worst.miou:.1f}; {len(review.regions)} possible label errors. The page is {options.output / PAGE}"
        )


def main(arguments: Sequence[str]) -> None:
    parser = trained_parser("review")
    parser.description = __doc__
    parser.add_argument("--output", type=Path, help="folder for the page and its numbers")
    parser.add_argument("--split", choices=SPLITS, default="val", help="images to look at (val)")
    parser.add_argument(
        "--confidence", type=float, default=0.9, help="least mean probability of a label error's region (0.9)"
    )
    parser.add_argument(
        "--area", type=float, default=0.001, help="its least area, as a share of the image's labelled pixels (0.001)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what review wrote there before")
    words, options = from_run(parser, arguments)
    check(options)
    run(ReviewCLI, words, options)


def check(options: argparse.Namespace) -> None:
    """Raise ValueError, FileExistsError for options that cannot be, before anything is loaded."""
    if options.output is None:
        raise ValueError("weakseg review needs --output, a folder for the page")
    check_folder(options.output)
    for name in ("confidence", "area"):
        if not 0 <= getattr(options, name) <= 1:
            raise ValueError(f"--{name} is from 0 to 1, got {getattr(options, name):g}")
