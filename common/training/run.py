"""A run: the callbacks, loggers and checkpoints of one training, for the command line and for Python alike."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Trainer, seed_everything
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning_utilities.core.rank_zero import rank_zero_only

from common.model.module import SegmentationModule
from common.model.options import plain_options
from common.training.cam_curve import CamCurve
from common.training.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, Patience
from common.training.loggers import CSVLogger
from common.training.nonfinite import NonFiniteGuard
from common.training.predictions import PredictionPictures
from common.training.progress import progress
from common.training.run_dir import RunStart, is_used
from common.training.summary import RunSummary, git_commit
from common.training.throughput import FetchTimer, Throughput
from common.training.tracking import Tracking, WandbMode, make_trackers

# What configs/base.yaml says of the trainer too, without the numbers of steps.
DEFAULTS = {"max_epochs": -1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0, "devices": 1,
            "log_every_n_steps": 10, "enable_model_summary": False}  # fmt: skip
RANK_TIMEOUT = 10.0  # minutes
ABOVE_0 = ("accumulate_grad_batches", "log_every_n_steps", "num_nodes", "val_check_interval")
QUIET = ("pytorch.utilities.rank_zero", "pytorch.trainer.connectors.checkpoint_connector", "fabric.utilities.seed")


def run_parts(
    folder: Path,
    method: str,
    config: str,
    *,
    seed: int,
    claim: Mapping[str, Any],
    checkpoint_every: int = 50,
    skip_nonfinite: int = 0,
    patience: int | None = None,
    wandb: WandbMode = "off",
    tensorboard: bool = False,
    wandb_checkpoints: bool = False,
) -> dict[str, Any]:
    """Trainer arguments of a training that writes into a run directory: `callbacks`, `logger`, `default_root_dir`.

    Args:
        folder: run directory.
        method: class name of the method.
        config: resolved config of the run, YAML; it goes into `config.yaml` and into each checkpoint.
        seed: of the run.
        claim: how the directory is claimed: options of `common.training.run_dir.RunStart`.
        checkpoint_every: optimizer steps between `last.ckpt` files.
        skip_nonfinite: steps without a finite gradient to leave out before the run stops.
        patience: validations without a higher score after which the run ends; None: it goes on.
        wandb, tensorboard: log there too.
        wandb_checkpoints: send the checkpoints to W&B too.

    Raises:
        ValueError: `checkpoint_every` or `patience` is below 1.
    """
    if checkpoint_every < 1:
        raise ValueError(f"--checkpoint_every is a number of steps, at least 1, got {checkpoint_every}")
    # Called when the run directory is claimed: they write into it at once.
    more_loggers = partial(make_trackers, folder, wandb, tensorboard, git_commit())
    checkpoints = folder / "checkpoints"
    callbacks = [
        RunStart(folder, method, config, more_loggers, **claim),
        NonFiniteGuard(folder, skip_nonfinite),
        Throughput(),
        PredictionPictures(folder),
        CamCurve(folder),
        BestCheckpoint(checkpoints),
        *([] if patience is None else [Patience(patience)]),
        RunSummary(folder, seed),
        LastCheckpoint(checkpoints, checkpoint_every),
        Tracking(folder, wandb_checkpoints),
    ]
    return {"callbacks": callbacks, "logger": CSVLogger(folder), "default_root_dir": str(folder)}


def quiet() -> None:
    """Silence what Lightning says of every run."""
    for name in QUIET:
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)


def make_trainer(
    folder: str | Path, model: SegmentationModule, data: Any, *, overwrite: bool = False, **trainer: Any
) -> Trainer:
    """A Lightning trainer that does what `weakseg fit` does: run directory, checkpoints, metrics, pictures, summary.

        trainer = make_trainer("runs/mine", model, data, max_steps=200, val_check_interval=100)
        trainer.fit(model, data)

    Args:
        folder: run directory.
        model: a method, built with plain values.
        data: a data module, built with plain values; its seed is the run's.
        overwrite: replace the run that is in the directory.
        trainer: arguments of `lightning.Trainer`; `callbacks` and `logger` come after the project's.

    Raises:
        FileExistsError: there is a run in the directory.
    """
    folder = Path(folder)
    if is_used(folder) and not overwrite:
        raise FileExistsError(f"{folder} holds a run already: give overwrite=True, or another directory")
    told = {**DEFAULTS, **trainer}
    options = plain_options({**data.given, **fill_streams(model, data)})
    config = {
        "seed_everything": data.seed,
        "trainer": {name: value for name, value in told.items() if isinstance(value, (int, float, str, type(None)))},
        "model": {"class_path": f"methods.{type(model).__name__}", "init_args": plain_options(model.given)},
        "data": {"class_path": f"datamodules.{type(data).__name__}", "init_args": options},
    }
    quiet()
    seed_everything(data.seed, verbose=False)
    claim = {"overwrite": overwrite}
    parts = run_parts(folder, type(model).__name__, yaml.safe_dump(config), seed=data.seed, claim=claim)
    first, *rest = parts.pop("callbacks")
    callbacks = [first, *progress(told), *rest, *told.pop("callbacks", [])]
    data.accumulation = told.get("accumulate_grad_batches", 1)
    loggers = [parts.pop("logger"), *as_list(told.pop("logger", None))]
    return Trainer(**{**house_arguments(told), **parts, "callbacks": callbacks, "logger": loggers})


def fill_streams(method: SegmentationModule, data: Any) -> dict[str, Any]:
    """Set the options of a data module that follow from the method, and that it was not given (None).

    As many unlabelled images as labelled ones where the method learns from them, or there are no others; its strong
    views; the images without an annotation, or all where none is left. The superpixels and groups that it asks for.

    Returns:
        These options, for the config of the run.
    """
    if data.given["unlabeled_batch_size"] is None:
        needed = "unlabeled" in method.streams or data.supervision.kind == "none"
        data.unlabeled_batch_size = data.batch_size if needed else 0
    if data.given["strong_views"] is None:
        data.strong_views = method.strong_views if data.unlabeled_batch_size else 0
    if data.given["unlabeled_pool"] is None and data.unlabeled_batch_size and not data.lists()[1]:
        data.unlabeled_pool = "all"
        rank_zero_only(print)("every training image is labelled: all are in the unlabelled stream too, without labels")
    for name in ("superpixels", "group"):
        if data.given[name] is None:
            setattr(data, name, getattr(method, name))
    filled = ("unlabeled_batch_size", "strong_views", "unlabeled_pool", "superpixels", "group")
    return {name: getattr(data, name) for name in filled}


def house_arguments(told: Mapping[str, Any], rank_timeout: float = RANK_TIMEOUT) -> dict[str, Any]:
    """Trainer arguments with what every run needs: samplers of our own, whole checkpoints, one strategy, the timer;
    nodes and devices as srun or torchrun have started the processes.

    Args:
        told: trainer arguments.
        rank_timeout: minutes that one process waits for another.

    Raises:
        ValueError: the arguments say other nodes and devices than the processes that were started, or a number that
            cannot be.
    """
    for name in ABOVE_0:
        if isinstance(value := told.get(name), (int, float)) and value <= 0:
            raise ValueError(f"trainer.{name} must be above 0, got {value}")
    if rank_timeout <= 0:
        raise ValueError(f"--rank_timeout is in minutes, above 0, got {rank_timeout}")
    config = {**told, "use_distributed_sampler": False}  # EpochSampler and the evaluation loader shard by themselves
    config["plugins"] = [AtomicCheckpointIO(), *as_list(told.get("plugins"))]
    if not any(isinstance(plugin, ClusterEnvironment) for plugin in config["plugins"]):
        config |= as_launched(config)
        config["plugins"] += cluster_environment()
    config["profiler"] = FetchTimer() if told.get("profiler") is None else told["profiler"]
    if config.get("devices") in (-1, "-1") and not (on_gpus(told) and torch.cuda.is_available()):
        config["devices"] = "auto"  # which is 1; Lightning knows no -1 there
    if device_count(config) > 1 and told.get("strategy", "auto") in ("auto", "ddp"):
        # Every parameter gets a gradient in every step, and `average_buffers` makes buffers equal before they are used.
        config["strategy"] = DDPStrategy(
            find_unused_parameters=False, static_graph=False, gradient_as_bucket_view=True, broadcast_buffers=False,
            timeout=timedelta(minutes=rank_timeout),
        )  # fmt: skip
        config["sync_batchnorm"] = on_gpus(told) and torch.cuda.is_available()  # it refuses CPU
    return config


def launched() -> tuple[str, int, int]:
    """Who has started this process as one of several, and how many on each node, on how many nodes. A job of SLURM
    whose batch script calls the command without srun, or with one task, is a process like any other."""
    found, told = "", os.environ
    if TorchElasticEnvironment.detect():
        found, tasks = "torchrun", int(told["WORLD_SIZE"])
        nodes = tasks // int(told["LOCAL_WORLD_SIZE"])
    elif "SLURM_STEP_ID" in told and "SLURM_PROCID" in told:
        tasks, nodes = (int(told.get(f"SLURM_STEP_NUM_{name}", 1)) for name in ("TASKS", "NODES"))
        found = "srun" if tasks > 1 else ""
    if not found:
        return "", 1, 1
    if tasks % nodes:
        raise ValueError(f"{found} has started {tasks} processes on {nodes} nodes: start as many on each of them")
    return found, tasks // nodes, nodes


def as_launched(told: Mapping[str, Any]) -> dict[str, int]:
    """`devices` and `num_nodes` as the processes were started.

    Raises:
        ValueError: the arguments say something else.
    """
    launcher, devices, nodes = launched()
    if not launcher:
        return {}
    said = told.get("devices", 1), int(told.get("num_nodes", 1))
    if (
        said[0] not in ("auto", -1, "-1")
        and said != (1, 1)
        and (device_count(told), said[1]) != (devices * nodes, nodes)
    ):
        raise ValueError(
            f"{launcher} has started {devices} processes on each of {nodes} nodes, the config says trainer.devices "
            f"{said[0]} and trainer.num_nodes {said[1]}: leave these out, or start as many"
        )
    return {"devices": devices, "num_nodes": nodes}


def cluster_environment() -> list[ClusterEnvironment]:
    """What tells Lightning how processes find each other, where SLURM is there. By itself it would take any process of
    a job for one of several, requeue jobs by itself, in the middle of a step, and advise srun at every start."""
    launcher, devices, _ = launched()
    if launcher == "srun":
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))  # Lightning asks for it, `srun -n` does not set it
        return [SLURMEnvironment(auto_requeue=False)]
    if launcher or not (shutil.which("srun") or "SLURM_JOB_ID" in os.environ):
        return [TorchElasticEnvironment()] if launcher else []
    return [LightningEnvironment()]


def device_count(told: Mapping[str, Any]) -> int:
    """Processes that trainer arguments ask for. Raises ValueError for devices that are no number or list."""
    devices = said = told.get("devices", 1)
    if devices in ("auto", -1, "-1"):
        devices = torch.cuda.device_count() if on_gpus(told) else 1
    if isinstance(devices, str) and "," in devices:  # numbers of GPUs, `0,` is the first one
        devices = [one for one in devices.split(",") if one.strip()]
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        devices = len(devices)
    try:
        return max(1, int(devices)) * int(told.get("num_nodes", 1))
    except (TypeError, ValueError):
        raise ValueError(f"trainer.devices is a number, auto, or a list of GPUs, got {said}") from None


def as_list(given: Any) -> list[Any]:
    """What Lightning takes alone or as a list; a switch is neither."""
    return list(given) if isinstance(given, (list, tuple)) else [given] if given and given is not True else []


def on_gpus(told: Mapping[str, Any]) -> bool:
    """Whether trainer arguments allow GPUs."""
    return told.get("accelerator", "auto") in ("auto", "gpu", "cuda")
