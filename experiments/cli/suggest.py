"""`weakseg suggest`: which images to label next, with a model's predictions to go on drawing on."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from common.training.predictions import Written
from datamodules.base import SegmentationDataModule
from datamodules.photos import Photos
from experiments.cli.lightning import run
from experiments.cli.trained import TrainedCLI, check_folder, from_run, trained_parser
from experiments.runs.checkpoint import built, read_checkpoint
from experiments.suggest.scoring import LIST, SHEET, By, Scorer, Scores, SuggestionWriter, labelled_images


class Suggest(TrainedCLI):
    """Images of a folder: all are scored, and the chosen ones are predicted."""

    verb = "predict"  # Lightning's
    datamodule: Photos

    def predict(self, **kwargs: Any) -> None:
        options, data, since = self.options, self.datamodule, time.perf_counter()
        if self.trainer.world_size > 1:
            raise ValueError("weakseg suggest looks at images on one device: leave trainer.devices out")
        written = Written(options.output, "suggest")
        written.check((LIST, SHEET), options.overwrite)
        self.model.load_state_dict(read_checkpoint(options.ckpt)["state_dict"])
        images = dict(data.show(options.images))
        if data.volumes is not None and data.volumes.files:
            raise ValueError(f"{options.images} holds volumes, which labelme does not draw on: save slices as pictures")
        labelled = labelled_images(images, options.masks, training_data(options.trained_on))
        if len(labelled) == len(images):
            raise ValueError(f"all {len(images)} images of {options.images} have labels: there is nothing to suggest")
        scorer, found = Scorer(self.model, options.by), Scores()
        chosen = self.chosen(scorer, found, labelled)
        if chosen:
            data.images = {name: images[name] for name in chosen}
            writer = SuggestionWriter(written, data.images, options.images, found.scores, options.by)
            written.check(writer.targets(), options.overwrite)
            scorer.with_labels = True
            self.look(scorer, writer)
            print(
                f"{len(chosen)} of {len(images) - len(labelled)} images without labels, by {options.by}, in "
                f"{time.perf_counter() - since:.1f} s: {options.output / LIST}, {SHEET}, and the predictions as "
                "polygons in labelme/"
            )
        if found.failed:
            for line in found.failed:
                print(f"not read: {line}")
            raise ValueError(f"{len(found.failed)} of {len(images)} images could not be read (named above)")

    def chosen(self, scorer: Scorer, found: Scores, labelled: set[str]) -> list[str]:
        """The ids of what to label next."""
        self.look(scorer, found)
        return found.choose(self.options.number, labelled)

    def look(self, scorer: Scorer, keeper: Any) -> None:
        """Let the scorer see the data's images, and the keeper what it finds."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks.append(keeper)
        try:
            self.trainer.predict(scorer, datamodule=self.datamodule, return_predictions=False)
        finally:
            callbacks.remove(keeper)


def training_data(part: dict[str, Any]) -> SegmentationDataModule | None:
    """What a run was trained on; None, said in a line, if that is not here."""
    try:
        data: SegmentationDataModule = built(part)
        return data
    except (OSError, ValueError) as error:
        print(f"the run's data are not here, so that only --masks and files beside images say what has labels: {error}")
        return None


def main(arguments: Sequence[str]) -> None:
    parser = trained_parser("suggest")
    parser.description = __doc__
    parser.add_argument("--images", type=Path, help="folder of images with the folders in it")
    parser.add_argument("--output", type=Path, help="folder for the list, a sheet of pictures, and labelme's files")
    parser.add_argument("-n", "--number", type=int, default=20, help="how many images (20)")
    parser.add_argument(
        "--by",
        choices=get_args(By),
        default="entropy",
        help="what makes an image worth a label: entropy, a small margin between the two likeliest classes, or "
        "disagreement between the image and its mirror image, and between the method's networks (entropy)",
    )
    parser.add_argument(
        "--masks",
        type=Path,
        help="folder of labels: images with one there are left out, as are those with one in the run's data",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what suggest wrote there before")
    words, options = from_run(parser, arguments, photos=True)
    check(options)
    run(Suggest, words, options)


def check(options: argparse.Namespace) -> None:
    """Raise ValueError, FileNotFoundError, FileExistsError for options that cannot be, before anything is loaded."""
    if options.images is None or options.output is None:
        raise ValueError("weakseg suggest needs --images FOLDER, and --output FOLDER")
    if not options.images.is_dir():
        raise FileNotFoundError(f"{options.images} is no folder: check --images")
    if options.number < 1:
        raise ValueError(f"-n is a number of images, 1 or more, got {options.number}")
    if options.output.resolve().is_relative_to(options.images.resolve()):
        raise ValueError(f"--output {options.output} is in the folder of images: choose another folder")
    check_folder(options.output)
