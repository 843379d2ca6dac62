"""`weakseg predict`: label images with a trained model."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.training.geotiff import georeference
from common.training.memory import release_freed
from common.training.predictions import PredictionWriter, Written
from datamodules.photos import Photos
from experiments.cli.lightning import run
from experiments.cli.trained import TrainedCLI, check_folder, from_run, trained_parser


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
        images = self.datamodule.show(options.images)
        written.check(self.writer.targets(images), options.overwrite)
        for path in images.values() if options.geotiff else ():
            georeference(path)
        return super().parts() | {"callbacks": [self.writer]}

    def predict(self, **kwargs: Any) -> None:
        since = time.perf_counter()
        # The writer has the predictions: all of them at once would fill the memory.
        self.trainer.predict(**{**kwargs, "return_predictions": False, "weights_only": True})
        if not self.trainer.is_global_zero:
            return
        counts, failed = self.writer.counts, self.writer.failed
        shares = zip(self.datamodule.class_names, counts / max(1, counts.sum()), strict=True)
        named = ", ".join(f"{name} {share:.1%}" for name, share in shares if share)
        count, seconds = len(self.datamodule.images) - len(failed), time.perf_counter() - since
        print(f"{count} images in {seconds:.1f} s{': ' * bool(named)}{named}. Labels are in {self.options.output}")
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
    words, options = from_run(parser, arguments, photos=True)
    check(options)
    run(Predict, words, options)


def check(options: argparse.Namespace) -> None:
    """Raise ValueError, FileNotFoundError for images that are not there, and an output among them."""
    if options.images is None or options.output is None:
        raise ValueError("weakseg predict needs --images, an image or a folder, and --output FOLDER")
    if not options.images.exists():
        raise FileNotFoundError(f"{options.images} does not exist: check --images")
    inside = options.output.resolve().is_relative_to(options.images.resolve())
    if inside and options.images.is_dir():
        raise ValueError(f"--output {options.output} is in the folder of images: choose another folder for the labels")
    check_folder(options.output)
