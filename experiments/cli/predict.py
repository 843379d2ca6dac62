"""`weakseg predict`: label images with a trained model."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from common.training.geotiff import georeference
from common.training.memory import release_freed
from common.training.predictions import PredictionWriter, Written
from datamodules.photos import Photos
from experiments.cli.lightning import run
from experiments.cli.trained import TrainedCLI, check_folder, from_run, trained_parser
from experiments.compare.protocol import HARDWARE


class Predict(TrainedCLI):
    """Images of a folder, and of the folders in it, into one of the same shape."""

    verb = "predict"
    datamodule: Photos

    def parts(self) -> dict[str, Any]:
        options = self.options
        if self.datamodule.size is None:  # images may be large
            release_freed()
        written = Written(options.output)
        self.writer = PredictionWriter(written, options.probabilities, options.geotiff)
        images = dict(self.datamodule.show(options.images))
        list(self.writer.targets(images))  # refuses two images of one file, also in other shares
        if options.shard:
            share, shares = options.shard
            images = {name: images[name] for name in sorted(images)[share - 1 :: shares]}
        shown = len(images)
        made = written.begin(self.maker(), options.resume or bool(options.shard))
        if options.resume:
            images = {name: path for name, path in images.items() if not made.issuperset(self.writer.targets([name]))}
        self.there, self.datamodule.images = shown - len(images), images
        written.check(self.writer.targets(images), options.overwrite or options.resume)
        for path in images.values() if options.geotiff else ():
            georeference(path)
        return super().parts() | {"callbacks": [self.writer]}

    def maker(self) -> str:
        """What decides the labels, so that those of two checkpoints are not mixed."""
        content = yaml.safe_load(self.config_text())
        data = {name: value for name, value in content["data"]["init_args"].items() if name not in HARDWARE}
        told = json.dumps([content["model"], data, content["trainer"]["precision"]], sort_keys=True)
        return sha256(self.options.ckpt.read_bytes() + told.encode()).hexdigest()

    def predict(self, **kwargs: Any) -> None:
        since = time.perf_counter()
        if not self.datamodule.images:
            if self.trainer.is_global_zero:
                print(f"all {self.there} images were labelled before, in {self.options.output}")
            return
        # The writer has the predictions: all of them at once would fill the memory.
        self.trainer.predict(**{**kwargs, "return_predictions": False, "weights_only": True})
        if not self.trainer.is_global_zero:
            return
        counts, failed = self.writer.counts, self.writer.failed
        shares = zip(self.datamodule.class_names, counts / max(1, counts.sum()), strict=True)
        named = ", ".join(f"{name} {share:.1%}" for name, share in shares if share)
        count, seconds = len(self.datamodule.images) - len(failed), time.perf_counter() - since
        more = f" ({self.there} were there)" if self.there else ""
        print(
            f"{count} images in {seconds:.1f} s{more}{': ' * bool(named)}{named}. Labels are in {self.options.output}"
        )
        if failed:
            for line in failed:
                print(f"not read: {line}")
            raise ValueError(f"{len(failed)} of {count + len(failed)} images could not be read (named above)")


def main(arguments: Sequence[str]) -> None:
    parser = trained_parser("predict")
    parser.add_argument("--images", type=Path, help="an image, or a folder of images with the folders in it")
    parser.add_argument("--output", type=Path, help="folder for the labels, and their colours over the images")
    parser.add_argument("--probabilities", action="store_true", help="write them too")
    parser.add_argument("--geotiff", action="store_true", help="write GeoTIFFs too, in the place of the images")
    parser.add_argument("--overwrite", action="store_true", help="replace what predict wrote there before")
    parser.add_argument("--resume", action="store_true", help="leave out what this model has labelled there before")
    parser.add_argument(
        "--shard", type=share_of, metavar="I/N", help="label the I-th of N shares of the images, as one of N processes"
    )
    words, options = from_run(parser, arguments, photos=True)
    check(options)
    run(Predict, words, options)


def share_of(text: str) -> tuple[int, int]:
    """(3, 8) of `3/8`. Raises ArgumentTypeError, which argparse tells, for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"a share is I/N with 1 <= I <= N, as 3/8, got {text!r}")
    return int(match[1]), int(match[2])


def check(options: argparse.Namespace) -> None:
    """Raise ValueError, FileNotFoundError for images that are not there, and an output among them."""
    if options.images is None or options.output is None:
        raise ValueError("weakseg predict needs --images, an image or a folder, and --output FOLDER")
    if not options.images.exists():
        raise FileNotFoundError(f"{options.images} does not exist: check --images")
    if options.resume and options.overwrite:
        raise ValueError("--resume leaves out what is there, --overwrite replaces it: give one of them")
    inside = options.output.resolve().is_relative_to(options.images.resolve())
    if inside and options.images.is_dir():
        raise ValueError(f"--output {options.output} is in the folder of images: choose another folder for the labels")
    check_folder(options.output)
