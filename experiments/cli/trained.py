"""What validate, test and predict share: options that name a trained model, and its config."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from common.training.summary import read_metrics
from experiments.cli.configs import expand_configs
from experiments.cli.lightning import WeaksegCLI
from experiments.cli.messages import FILES
from experiments.runs.checkpoint import check_weights, classes_of, photos_part, read_checkpoint, stored_config
from experiments.runs.run_dir import print_metrics


class TrainedCLI(WeaksegCLI):
    """A verb on a trained model, without loggers and checkpoints."""

    def __init__(self, arguments: list[str], options: argparse.Namespace) -> None:
        self.options = options
        super().__init__(arguments)

    def parts(self) -> dict[str, Any]:
        names, trained = [*self.datamodule.class_names], self.options.classes.names
        if names != trained:  # ids would mean something else, and no number would show it
            raise ValueError(
                f"the data's classes are {', '.join(names)}, but the model was trained on {', '.join(trained)}: "
                "give it the same classes in the same order"
            )
        return {"callbacks": [], "logger": False, "enable_checkpointing": False}

    def print_metrics(self, stage: str) -> None:
        """What the evaluation found."""
        if self.trainer.is_global_zero:
            print_metrics({self.options.ckpt.stem: read_metrics(self.trainer, stage)})


def trained_parser(verb: str) -> argparse.ArgumentParser:
    """The options that say which trained model."""
    parser = argparse.ArgumentParser(
        prog=f"weakseg {verb}",
        allow_abbrev=False,
        epilog="The run's config is taken as it is, on one device; any option of `weakseg fit` overrides it.",
    )
    parser.add_argument("--run", type=Path, help="run directory")
    parser.add_argument("--ckpt", type=Path, help="or a checkpoint file")
    parser.add_argument(
        "--package", action="append", default=[], help="package of yours whose classes the checkpoint may name"
    )
    parser.add_argument("--which", choices=["best", "last"], default="best", help="checkpoint of the run (best)")
    return parser


def from_run(
    parser: argparse.ArgumentParser, arguments: Sequence[str], photos: bool = False
) -> tuple[list[str], argparse.Namespace]:
    """Take the parser's options off the command line; put that run's config first. Its data are what the model was
    trained on, or any `photos`.

    It runs in one process, whatever trained the run: the numbers are the same, and its machines may be elsewhere.
    Other options (`--trainer.devices 2`) overrule this as they do the config.
    """
    FILES.clear()
    options, rest = parser.parse_known_args(arguments)
    if (options.run is None) == (options.ckpt is None):
        raise ValueError(f"{parser.prog} needs a trained model: give either --run RUN_DIR or --ckpt FILE")
    options.ckpt = options.ckpt or options.run / "checkpoints" / f"{options.which}.ckpt"
    if options.run and not options.ckpt.is_file() and options.ckpt.with_name("last.ckpt").is_file():
        raise FileNotFoundError(f"{options.run} has no best.ckpt, for nothing was validated yet: give --which last")
    if not options.ckpt.is_file():
        raise FileNotFoundError(f"there is no checkpoint {options.ckpt}: is it a run directory that `fit` has written?")
    checkpoint = read_checkpoint(options.ckpt)
    config = stored_config(checkpoint, options.package)
    options.classes = classes_of(checkpoint, config)
    check_weights(checkpoint, config, options.classes)
    options.trained_on = config["data"]
    if photos:
        config["data"] = photos_part(options.classes, config)
    config["trainer"] |= {"devices": 1, "enable_model_summary": False}
    # Results go to W&B and TensorBoard where the run directory shows that the run did, not because a file says so.
    if not options.run or not (options.run / "wandb" / "run_id").exists():
        config["wandb"] = "off"
    if not options.run or not (options.run / "tensorboard").exists():
        config["tensorboard"] = False
    return ["--config", yaml.safe_dump(config), *expand_configs(rest), "--ckpt_path", str(options.ckpt)], options


def check_folder(output: Path) -> None:
    """Raise FileExistsError for an output that is a file."""
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"--output {output} is a file: choose a folder")
