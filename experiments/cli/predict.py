"""`weakseg predict`: label images with a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.training.predictions import PredictionWriter
from experiments.cli.lightning import run
from experiments.cli.trained import TrainedCLI, from_run, trained_parser


class Predict(TrainedCLI):
    verb = "predict"

    def parts(self) -> dict[str, Any]:
        if self.options.images is None or self.options.output is None:
            raise ValueError("weakseg predict needs --images FOLDER and --output FOLDER")
        self.datamodule.predict_folder = self.options.images
        writer = PredictionWriter(self.options.output, self.options.probabilities)
        return super().parts() | {"callbacks": [writer]}

    def predict(self, **kwargs: Any) -> None:
        # The writer has the predictions: all of them at once would fill the memory.
        self.trainer.predict(**{**kwargs, "return_predictions": False, "weights_only": True})


def main(arguments: Sequence[str]) -> None:
    parser = trained_parser("predict")
    parser.add_argument("--images", type=Path, help="folder of images")
    parser.add_argument("--output", type=Path, help="folder for the labels, and their colours over the images")
    parser.add_argument("--probabilities", action="store_true", help="write them too")
    run(Predict, *from_run(parser, arguments))
