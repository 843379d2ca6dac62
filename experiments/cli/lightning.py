"""fit, validate, test and predict on LightningCLI: composed configs, run directories, readable errors."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only

import datamodules
import methods
from common.model.module import SegmentationModule
from common.training.checkpoints import AtomicCheckpointIO, LastCheckpoint, Stopped, best_checkpoint
from common.training.loggers import CSVLogger
from common.training.memory import keep_freed
from common.training.nonfinite import NonFiniteGuard
from common.training.predictions import PredictionPictures, PredictionWriter
from common.training.strategy import make_strategy
from common.training.summary import RunSummary, git_commit
from common.training.test_images import TestImages
from common.training.throughput import FetchTimer, Throughput
from common.training.tracking import Tracking, check_trackers, make_trackers
from datamodules.base import SegmentationDataModule
from experiments.cli.configs import check_method, expand_configs, from_run, read_checkpoint, stated
from experiments.cli.messages import FILES, Parser
from experiments.runs.run_dir import RunStart, is_used, print_results

RUN_OPTIONS = ("run_dir", "name", "resume", "init_from", "overwrite")  # about one start, not part of the saved config
QUIET = ("pytorch.utilities.rank_zero", "pytorch.trainer.connectors.checkpoint_connector", "fabric.utilities.seed")


class WeaksegCLI(LightningCLI):
    """LightningCLI with run directories. Loggers and checkpoint callbacks are built here from `run_dir`, because
    config links cannot reach into lists."""

    def __init__(self, verb: str, arguments: list[str], options: argparse.Namespace | None = None) -> None:
        self.verb, self.options, self.arguments = verb, options, arguments
        for package in (methods, datamodules):
            for name in package.CLASSES:
                getattr(package, name)  # imported, so that the short class name is known
        super().__init__(
            SegmentationModule,
            SegmentationDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=Parser,
            parser_kwargs={"prog": "weakseg", verb: {"prog": f"weakseg {verb}"}},
            args=[verb, *arguments],
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        skipped = LightningCLI.subcommands()
        return {**skipped, "fit": skipped["fit"] | {"ckpt_path", "weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir", type=str | None, help="where the run's files go; default runs/DATA/METHOD/NAME"
        )
        parser.add_argument("--name", type=str | None, help="NAME in the default run_dir; default: regime and seed")
        parser.add_argument(
            "--resume", type=str | None, help="'auto': continue what is in run_dir, if anything; or a file"
        )
        parser.add_argument("--init_from", type=str | None, help="start from the weights of this checkpoint, at step 0")
        parser.add_argument("--overwrite", type=bool, default=False, help="replace the run that is in run_dir")
        parser.add_argument("--checkpoint_every", type=int, default=50, help="optimizer steps between last.ckpt files")
        parser.add_argument("--skip_nonfinite", type=int, default=0, help="steps of no finite gradient to leave out")
        parser.add_argument("--tensorboard", type=bool, default=False, help="log to TensorBoard too")
        # An agent of a W&B sweep expects its run there.
        logged: Any = "online" if os.environ.get("WANDB_SWEEP_ID") else "off"
        parser.add_argument("--wandb", type=Literal["off", "online", "offline"], default=logged, help="log to W&B too")
        parser.add_argument("--wandb_checkpoints", type=bool, default=False, help="send the checkpoints to W&B too")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # As the base class, without its warning about sys.argv, which is ours too.
        self.config = parser.parse_args(args)

    @property
    def settings(self) -> Any:
        """The parsed config of this verb."""
        return self.config[self.verb]

    @property
    def method(self) -> str:
        return str(self.settings.model.class_path).rsplit(".", 1)[-1]

    def run_dir(self) -> Path:
        """The run directory: given, or made of data, method, regime and seed (no time stamp: the same on all ranks)."""
        if self.options and self.options.run:
            return Path(self.options.run)
        if self.settings.run_dir:
            return Path(self.settings.run_dir)
        data = self.settings.data
        regime = data.init_args.supervision
        amount = regime.fraction or regime.number or regime.per_class or ""
        how = "-by_sequence" if regime.by_sequence else ""
        name = self.settings.name or f"{regime.kind}{amount}{how}-seed{self.settings.seed_everything}"
        if os.environ.get("WANDB_SWEEP_ID"):  # runs of a sweep differ in what is in no name
            name += "-" + os.environ["WANDB_RUN_ID"]
        return Path("runs", str(data.class_path).rsplit(".", 1)[-1], self.method, name)

    def before_instantiate_classes(self) -> None:
        """A batch size that overrides the config's changes the learning rate with it, linearly for SGD, by the square
        root for others, unless that is given too. Nothing else does: devices and accumulation share the batch."""
        if self.verb != "fit":
            return
        batch, optimizer = self.settings.data.init_args.batch_size, self.settings.model.init_args.optimizer
        before = stated(self.arguments, "data", "init_args", "batch_size") or batch
        rate, ratio = optimizer.init_args.lr, batch / before
        given = re.compile(r"--model\.(init_args\.)?optimizer\.(init_args\.)?lr(=|$)")
        if ratio != 1 and not any(map(given.match, self.arguments)):
            optimizer.init_args.lr = rate * (ratio if optimizer.class_path.endswith(".SGD") else ratio**0.5)
            rank_zero_only(print)(f"batch {before} -> {batch}: learning rate {rate:g} -> {optimizer.init_args.lr:g}")

    def config_text(self) -> str:
        """The resolved config, enough to repeat the run, without the options about this start."""
        text = self._parser(self.verb).dump(self.settings, skip_unset=False)
        content = {k: v for k, v in yaml.safe_load(text).items() if k not in (*RUN_OPTIONS, "config")}
        return str(yaml.safe_dump(content, sort_keys=False))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        folder = self.run_dir()
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        config["default_root_dir"] = str(folder)
        config["use_distributed_sampler"] = False  # EpochSampler and the evaluation loader shard by themselves
        config["plugins"] = [AtomicCheckpointIO(), *(config["plugins"] or [])]
        if device_count(config) > 1 and config["strategy"] in ("auto", "ddp"):
            config["strategy"] = make_strategy()
            config["sync_batchnorm"] = torch.cuda.is_available()  # it refuses CPU
        if config["profiler"] is None:
            config["profiler"] = FetchTimer()
        seed = int(self.settings.seed_everything)
        check_trackers(self.settings.wandb, self.settings.tensorboard)
        if self.settings.wandb_checkpoints and self.settings.wandb == "off":
            raise ValueError("--wandb_checkpoints sends checkpoints to W&B: set --wandb online or offline too")
        callbacks: list[Callback] = [] if config.get("enable_progress_bar") is False else [TQDMProgressBar()]
        if self.verb == "fit":
            checkpoints = folder / "checkpoints"
            callbacks = [
                RunStart(folder, self.method, self.config_text(), bool(self.settings.overwrite), self.more_loggers),
                *callbacks,
                NonFiniteGuard(folder, self.settings.skip_nonfinite),
                Throughput(),
                PredictionPictures(folder),
                best_checkpoint(checkpoints),
                RunSummary(folder, seed),
                LastCheckpoint(checkpoints, self.settings.checkpoint_every),
                Tracking(folder, self.settings.wandb_checkpoints),
            ]
            config["logger"] = CSVLogger(folder)
            self.datamodule.accumulation = config["accumulate_grad_batches"]
        else:
            config["logger"] = False
            config["enable_checkpointing"] = False
            callbacks += self.after_training(folder, seed)
        config["callbacks"] = [*callbacks, *(config["callbacks"] or [])]
        return Trainer(**config)

    def more_loggers(self, step: int = 0) -> list[Logger]:
        """The loggers beside `metrics.csv`. They write into the run directory at once: made when it is claimed."""
        return make_trackers(self.run_dir(), self.settings.wandb, self.settings.tensorboard, git_commit(), step)

    def after_training(self, folder: Path, seed: int) -> list[Callback]:
        assert self.options is not None
        if self.verb == "test":
            kind = self.model.postprocess.kind
            name = self.options.ckpt.stem + ("" if kind == "none" else f"+{kind}")
            if not self.options.run:
                return []
            return [
                RunSummary(folder, seed, name),
                TestImages(folder, name),
                Tracking(folder, False, self.more_loggers),
            ]
        if self.verb == "predict":
            if self.options.images is None or self.options.output is None:
                raise ValueError("weakseg predict needs --images FOLDER and --output FOLDER")
            self.datamodule.predict_folder = self.options.images
            return [PredictionWriter(self.options.output, self.options.probabilities)]
        return []

    def fit(self, **kwargs: Any) -> None:
        resume, source = self.settings.resume, self.settings.init_from
        folder = self.run_dir()
        if (resume and source) or (resume and self.settings.overwrite):
            raise ValueError("--resume continues a run, --init_from and --overwrite start a new one: give one of them")
        last = folder / "checkpoints" / "last.ckpt"
        checkpoint = (last if last.exists() else None) if resume == "auto" else Path(resume) if resume else None
        if is_used(folder) and not resume and not self.settings.overwrite and not getattr(rank_zero_only, "rank", 0):
            raise FileExistsError(
                f"{folder} holds a run already: continue it with --resume auto, replace it with --overwrite true, "
                "or choose another --run_dir or --name"
            )
        if checkpoint:
            check_method(checkpoint, self.method)
        if source:
            check_method(Path(source), self.method)
            self.model.load_state_dict(read_checkpoint(Path(source))["state_dict"])
        data, devices, parts = self.settings.data.init_args, self.trainer.world_size, self.datamodule.accumulation
        share = f"{data.batch_size // (devices * parts)} per device" + (f", {parts} accumulated" if parts > 1 else "")
        rate = self.settings.model.init_args.optimizer.init_args.lr
        rank_zero_only(print)(f"global batch {data.batch_size} ({share}), learning rate {rate:g}")
        rank_zero_only(print)(f"run directory: {folder}")
        self.trainer.fit(ckpt_path=checkpoint, weights_only=True, **kwargs)
        if self.trainer.global_step == 0:
            raise ValueError("nothing was trained: trainer.max_steps, max_epochs or limit_train_batches is 0")
        if self.trainer.is_global_zero:
            print_results(folder)

    def validate(self, **kwargs: Any) -> None:
        self.trainer.validate(**{**kwargs, "weights_only": True})

    def test(self, **kwargs: Any) -> None:
        self.trainer.test(**{**kwargs, "weights_only": True})

    def predict(self, **kwargs: Any) -> None:
        self.trainer.predict(
            **{**kwargs, "return_predictions": False, "weights_only": True}
        )  # the writer has them; all at once fill memory


def device_count(config: dict[str, Any]) -> int:
    """Processes that the trainer settings ask for."""
    devices = config["devices"]
    if devices in ("auto", -1, "-1"):
        devices = torch.cuda.device_count() if config["accelerator"] in ("auto", "gpu", "cuda") else 1
    count = len(devices) if isinstance(devices, list) else len(str(devices).split(",")) if "," in str(devices) else 0
    return max(1, count or int(devices)) * int(config["num_nodes"])


def run(verb: str, arguments: list[str]) -> None:
    """Run a Lightning verb with command-line arguments.

    Raises:
        ValueError, OSError: a wrong input, with the way out.
        SystemExit: a wrong command line (jsonargparse has printed why); with status 75 (EX_TEMPFAIL) after a signal:
            the run is saved, and to be started again with --resume auto.
    """
    for name in QUIET:
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    FILES.clear()
    keep_freed()
    options = None
    if verb == "fit":
        arguments = expand_configs(arguments)
    else:
        arguments, options = from_run(verb, arguments)
    try:
        WeaksegCLI(verb, arguments, options)
    except Stopped as stop:
        rank_zero_only(print)(f"weakseg: {stop}", file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL)
    except MisconfigurationException as error:  # trainer options that contradict each other or this machine
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        if "could not be downloaded" in str(error):
            raise ValueError(str(error)) from error
        if "Error(s) in loading state_dict" in str(error):
            detail = str(error).splitlines()[1].strip()
            raise ValueError(
                f"the checkpoint does not fit the network ({detail[:200]}): give the network that it was trained with"
            ) from error
        raise
