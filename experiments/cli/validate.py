"""`weakseg validate`: validation metrics of a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.cli.lightning import run
from experiments.cli.trained import TrainedCLI, from_run, trained_parser


class Validate(TrainedCLI):
    verb = "validate"

    def validate(self, **kwargs: Any) -> None:
        self.trainer.validate(**{**kwargs, "weights_only": True, "verbose": False})
        self.print_metrics("val")


def main(arguments: Sequence[str]) -> None:
    run(Validate, *from_run(trained_parser("validate"), arguments))
