"""`weakseg pseudo`: labels for training images by a trained model, to train another one on."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from common.training.summary import git_commit
from datamodules.splits import SPLITS
from experiments.cli.lightning import run
from experiments.cli.trained import TrainedCLI, from_run, trained_parser
from experiments.runs.checkpoint import read_checkpoint
from experiments.runs.pseudo import (
    PseudoLabels,
    PseudoWriter,
    Refine,
    check_output,
    images_of,
    pseudo_folder,
    write_about,
)


class Pseudo(TrainedCLI):
    """The images of a split, into a folder that `data.pseudo_masks` takes."""

    verb = "predict"  # Lightning's

    def predict(self, **kwargs: Any) -> None:
        options, data, since = self.options, self.datamodule, time.perf_counter()
        data.trainer = self.trainer  # each process takes its share of the images
        self.model.load_state_dict(read_checkpoint(options.ckpt)["state_dict"])
        self.model.run_dir = options.ckpt.resolve().parent.parent  # what a method has kept there of its images
        labels = PseudoLabels(self.model, options.refine, options.threshold, options.seeds)
        images = images_of(data, options.split, labels.by_tags)
        first = self.trainer.is_global_zero
        scored = getattr(self.model, "scored_refinement", None)
        if first and options.threshold is None and options.refine == "walk" and scored == "none":
            print(
                f"threshold {labels.threshold:.2f} was chosen for the maps as they are: after the walk a higher one is "
                "best; python -m experiments.benchmarks.cam_quality RUN finds it where val has masks"
            )
        with pseudo_folder(options.output, options.overwrite) if first else nullcontext(options.output) as folder:
            writer = PseudoWriter(folder, data)
            self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]
            self.trainer.predict(labels, images, return_predictions=False)
            report = writer.report()
            about = {
                "method": self.method,
                "run": str(options.run or options.ckpt),
                "checkpoint": options.ckpt.stem,
                "split": options.split,
                "refine": options.refine,
                "threshold": labels.threshold,
                "seeds": options.seeds,
                "classes": [*data.class_names],
                "commit": git_commit(),
                "version": version("weakseg"),
            }
            if first:
                write_about(folder, {**about, **report})
        if not first:
            return
        named = ", ".join(f"{name} {share:.1%}" for name, share in report["per_class"].items() if share)
        print(f"{report['images']} images in {time.perf_counter() - since:.1f} s: {named or 'no label'}")
        print(f"without a label (255): {report['unlabeled']:.1%} of the pixels")
        if "miou_train" in report:
            what = f"{writer.compared} masks of {options.split}"
            print(f"mIoU of the others against the {what}, which are used for nothing else: {report['miou_train']:.2f}")
        print(f"train on them: weakseg fit ... --data.pseudo_masks {options.output}")


def main(arguments: Sequence[str]) -> None:
    parser = trained_parser("pseudo")
    parser.description = __doc__
    parser.add_argument("--output", type=Path, help="folder for the labels; written whole or not at all")
    parser.add_argument(
        "--refine",
        choices=get_args(Refine),
        default="none",
        help="how maps become labels, of a method that learns from tags (none)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="pixels whose label has a lower probability get 255, no label (0); of maps the score of the background "
        "(what the run's validation found)",
    )
    parser.add_argument(
        "--seeds",
        action="store_true",
        help="label of maps only what is sure: objects above twice the threshold, background below a third of it",
    )
    parser.add_argument("--split", choices=SPLITS, default="train", help="images to label (train)")
    parser.add_argument("--overwrite", action="store_true", help="replace what pseudo wrote there before")
    words, options = from_run(parser, arguments)
    check(options)
    run(Pseudo, words, options)


def check(options: argparse.Namespace) -> None:
    """Raise ValueError, FileExistsError for an output that is not free, before anything is loaded."""
    if options.output is None:
        raise ValueError("weakseg pseudo needs --output, a folder for the labels")
    check_output(options.output, options.overwrite)
