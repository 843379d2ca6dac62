"""`weakseg fit`: train a method."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only

from common.training.run import fill_streams, run_parts
from common.training.run_dir import file_state, is_used, used
from common.training.tracking import check_trackers, partition
from experiments.cli.configs import expand_configs, named_config
from experiments.cli.lightning import WeaksegCLI, run
from experiments.cli.messages import FILES
from experiments.cli.own_data import CHOSEN, with_choices
from experiments.runs.checkpoint import check_method
from experiments.runs.run_dir import print_results
from experiments.runs.start import start_from

# Options of `--model` that say where something is, or how it is computed, not what is trained.
NOT_TOLD = re.compile(r"--model\.(init_args\.)?(network\.(weights|compile|checkpoint_activations)|optimizer)")


class Fit(WeaksegCLI):
    """Training with a run directory."""

    verb = "fit"

    def __init__(self, arguments: list[str], words: Sequence[str]) -> None:
        self.words = words  # as they were typed
        super().__init__(arguments)

    @property
    def run_dir(self) -> Path:
        """Given, or made of regime, method, labels and seed (no time stamp: the same on all ranks)."""
        settings = self.settings
        if settings.run_dir:
            return Path(settings.run_dir)
        regime, variant = (named_config(self.words, folder) for folder in ("regimes", "methods"))
        data, model = (str(one.class_path).rsplit(".", 1)[-1] for one in (settings.data, settings.model))
        labels = partition(vars(settings.data.init_args.supervision))
        if pseudo := settings.data.init_args.get("pseudo_masks"):
            labels += f"_{Path(pseudo).name}"
        name = settings.name or ",".join([f"{labels}-seed{settings.seed_everything}", *told_options(self.words)])
        if os.environ.get("WANDB_SWEEP_ID"):  # runs of a sweep differ in what is in no name
            name += "-" + os.environ["WANDB_RUN_ID"]
        return Path("runs", regime or data, variant or model, name)

    def parts(self) -> dict[str, Any]:
        settings = self.settings
        check_trackers(settings.wandb, settings.tensorboard)
        if settings.wandb_checkpoints and settings.wandb == "off":
            raise ValueError("--wandb_checkpoints sends checkpoints to W&B: set --wandb online or offline too")
        for option, value in fill_streams(self.model, self.datamodule).items():
            settings.data.init_args[option] = value
        self.datamodule.accumulation = settings.trainer.accumulate_grad_batches
        last = self.run_dir / "checkpoints" / "last.ckpt"
        claim = {
            "overwrite": bool(settings.overwrite),
            "expected": file_state(last) if settings.resume else False,
            "accept_changed_data": settings.changed_data == "accept",
        }
        return run_parts(
            self.run_dir,
            self.method,
            self.config_text(),
            seed=int(settings.seed_everything),
            claim=claim,
            checkpoint_every=settings.checkpoint_every,
            skip_nonfinite=settings.skip_nonfinite,
            patience=settings.patience,
            wandb=settings.wandb,
            tensorboard=bool(settings.tensorboard),
            wandb_checkpoints=bool(settings.wandb_checkpoints),
        )

    def fit(self, **kwargs: Any) -> None:
        resume, source, folder = self.settings.resume, self.settings.init_from, self.run_dir
        if (resume and source) or (resume and self.settings.overwrite):
            raise ValueError("--resume continues a run, --init_from and --overwrite start a new one: give one of them")
        last = folder / "checkpoints" / "last.ckpt"
        checkpoint = (last if last.exists() else None) if resume == "auto" else Path(resume) if resume else None
        if is_used(folder) and not resume and not self.settings.overwrite:  # on all ranks: none is to wait for another
            raise FileExistsError(used(folder))
        if checkpoint and is_used(folder) and checkpoint.resolve().parent != last.resolve().parent:
            raise FileExistsError(
                f"{folder} holds another run than {checkpoint}, which would take its place: choose another --run_dir"
            )
        if checkpoint:
            own = [one.class_path.partition(".")[0] for one in (self.settings.model, self.settings.data)]
            check_method(checkpoint, self.method, own)  # what the command has named and built already
        if source:
            rank_zero_only(print)(f"start from {start_from(self.model, Path(source), self.datamodule.class_names)}")
        data, devices, parts = self.settings.data.init_args, self.trainer.world_size, self.datamodule.accumulation
        share = f"{data.batch_size // (devices * parts)} per device" + (f", {parts} accumulated" if parts > 1 else "")
        rate = self.settings.model.init_args.optimizer.init_args.lr
        rank_zero_only(print)(f"global batch {data.batch_size} ({share}), learning rate {rate:g}")
        rank_zero_only(print)(f"run directory: {folder}")
        if 0 in (self.trainer.max_steps, self.trainer.max_epochs, self.trainer.limit_train_batches):
            raise ValueError("nothing is trained: trainer.max_steps, max_epochs or limit_train_batches is 0")
        self.trainer.fit(ckpt_path=checkpoint, weights_only=True, **kwargs)
        if self.trainer.is_global_zero:
            print_results(folder)


def told_options(words: Sequence[str]) -> list[str]:
    """`tv_weight=0.3` for each `--model.tv_weight 0.3` of the command line, so that each variant has its directory."""
    told = []
    for word, after in zip(words, [*words[1:], ""], strict=True):
        option, sign, value = word.partition("=")
        if option.startswith("--model.") and not NOT_TOLD.match(option):
            told.append(re.sub(r"[^\w.+=-]", "_", f"{option.rsplit('.', 1)[-1]}={value if sign else after}")[:40])
    return told


def main(arguments: Sequence[str]) -> None:
    FILES.clear()
    words = with_choices(["--help" if word == "--help-all" else word for word in arguments])
    try:
        run(Fit, expand_configs(words), words)
    finally:
        os.environ.pop(CHOSEN, None)
