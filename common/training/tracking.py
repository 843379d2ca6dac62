"""W&B and TensorBoard: what they get in addition to the metrics that `metrics.csv` has too."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch import loggers
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only

from common.ops.array import Array
from common.ops.batch import IGNORE
from common.training.files import read_summary, write_text

WandbMode = Literal["off", "online", "offline"]


class Sample(NamedTuple):
    """A validation image with its truth and what is predicted, at one size: (H, W, 3) uint8 and twice (H, W)."""

    name: str
    image: Array
    truth: Array
    labels: Array


class WandbLogger(loggers.WandbLogger):
    """Lightning's, whose steps are the run's own: W&B's step is the optimizer step.

    A resumed run repeats the steps since its checkpoint with the same values: those that W&B has are not sent again,
    because it accepts rising steps only.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None or step >= self.experiment.starting_step:
            self.experiment.log({**metrics, "trainer/global_step": step}, step=step)


def check_trackers(wandb: WandbMode, tensorboard: bool) -> None:
    """Before anything is written.

    Raises:
        ModuleNotFoundError: a package that is asked for is not installed.
        ValueError: W&B does not know who logs.
    """
    if wandb != "off" and find_spec("wandb") is None:
        raise ModuleNotFoundError("--wandb needs the package wandb: pip install wandb, or leave --wandb off")
    if tensorboard and find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            "--tensorboard needs the package tensorboard: pip install tensorboard, or leave it off"
        )
    if wandb == "online":
        import wandb as package

        try:
            known = package.login()  # asks on a terminal
        except package.Error:
            known = False
        if not known:
            raise ValueError("--wandb online needs an account: `wandb login` once, or take --wandb offline")


def make_trackers(folder: Path, wandb: WandbMode, tensorboard: bool, commit: str | None, step: int = 0) -> list[Logger]:
    """The loggers other than `metrics.csv`, started, on the first process only; on the others none.

    Args:
        folder: run directory, with its `config.yaml`. A W&B run's id is kept in `wandb/run_id`, so that whatever is
            resumed, or tested later, there goes to the same W&B run.
        wandb: `offline` runs are in `folder/wandb`, for `wandb sync`.
        tensorboard: into `folder/tensorboard`.
        commit: a tag in W&B.
        step: where the run is resumed.
    """
    if getattr(rank_zero_only, "rank", 0):
        return []
    text = (folder / "config.yaml").read_text(errors="replace")
    made: list[Logger] = []
    if tensorboard:
        board = loggers.TensorBoardLogger(folder, name="", version="tensorboard", purge_step=step or None)
        board.experiment.add_text("config", f"```yaml\n{text}\n```", step)
        made.append(board)
    if wandb != "off":
        made.append(start_wandb(folder, wandb, yaml.safe_load(text), commit))
    return made


def start_wandb(folder: Path, mode: WandbMode, config: Mapping[str, Any], commit: str | None) -> WandbLogger:
    """A W&B run: group data/partition, job type method, name method-seed, tags encoder and commit."""
    import wandb

    method = str(config["model"]["class_path"]).rsplit(".", 1)[-1]
    data = str(config["data"]["class_path"]).rsplit(".", 1)[-1]
    logger = WandbLogger(
        f"{method}-seed{config['seed_everything']}",
        folder,
        id=run_id(folder),
        project=os.environ.get("WANDB_PROJECT", "weakseg"),
        group=f"{data}/{partition(config['data']['init_args']['supervision'])}",
        job_type=method,
        tags=[word for word in (config["model"]["init_args"]["network"]["encoder"], commit) if word],
        mode=mode,
        resume="allow" if mode == "online" else None,  # offline there is no one to ask; the id joins the parts
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning gives it, W&B warns of it
    try:
        logger.experiment.config.update(dict(config), allow_val_change=True)
    except wandb.Error as error:
        raise ValueError(f"W&B: {error}; log in with `wandb login`, or take --wandb offline") from error
    return logger


def partition(supervision: Mapping[str, Any]) -> str:
    """What is labelled, in a word: `image_subset-0.125`, `image_subset_by_sequence-0.125`, `points-1`, `dense`; the
    amount last, so that titles without it name what may be compared over amounts."""
    amount = next((supervision[key] for key in ("fraction", "number", "per_class") if supervision.get(key)), None)
    if supervision.get("list_file"):
        amount = Path(supervision["list_file"]).stem
    how = "".join(f"_{name}" for name in ("by_sequence", "evenly") if supervision.get(name))
    how += f"_{inside}" if (inside := supervision.get("inside")) else ""
    return f"{supervision['kind']}{how}" + ("" if amount is None else f"-{amount}")


def run_id(folder: Path) -> str:
    """The id of the folder's W&B run: kept there, given by a W&B agent, or drawn now."""
    path = folder / "wandb" / "run_id"
    if not path.exists():
        write_text(path, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    return path.read_text().strip()


def log_pictures(
    trackers: Iterable[Logger], samples: Sequence[Sample], sheet: Array, class_names: Sequence[str], step: int
) -> None:
    """Predictions: to W&B as images with masks whose classes can be switched, to TensorBoard as one sheet (H, W, 3)."""
    for tracker in trackers:
        if isinstance(tracker, loggers.TensorBoardLogger):
            tracker.experiment.add_image("predictions", sheet, step, dataformats="HWC")
        elif isinstance(tracker, WandbLogger) and step >= tracker.experiment.starting_step:
            import wandb

            labels = {**dict(enumerate(class_names)), IGNORE: "no label"}
            pictures = []
            for sample in samples:
                masks = {"prediction": sample.labels, "truth": sample.truth}
                shown = {name: {"mask_data": mask, "class_labels": labels} for name, mask in masks.items()}
                pictures.append(wandb.Image(sample.image, caption=sample.name, masks=shown))
            tracker.experiment.log({"predictions": pictures}, step=step)


def log_summary(trackers: Iterable[Logger], summary: Mapping[str, Any], files: Iterable[Path] = ()) -> None:
    """`summary.json`, a table of the IoU of each class, and files of results (W&B only)."""
    columns, rows = iou_table(summary)
    for tracker in trackers:
        if isinstance(tracker, loggers.TensorBoardLogger):
            lines = [columns, ["---"] * len(columns), *rows]
            text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
            tracker.experiment.add_text("iou per class", text, summary["steps"])
            tracker.experiment.add_text("summary", f"```json\n{json.dumps(summary, indent=1)}\n```", summary["steps"])
        elif isinstance(tracker, WandbLogger):
            import wandb

            run = tracker.experiment
            table = wandb.Table(columns=[*columns], data=rows)
            run.log({"iou per class": table}, step=max(summary["steps"], run.starting_step))
            run.summary.update(dict(summary))
            for file in files:
                copy = shutil.copy(file, run.dir)  # W&B would link to it
                run.save(copy, base_path=run.dir, policy="now")


def iou_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: a class a row, what was measured on val (at the last step) and test; None: absent."""
    stages = {"val last": ("val/iou/", summary["last"])}
    stages |= {f"test {which}": ("test/iou/", found) for which, found in summary.get("test", {}).items()}
    prefix, found = stages["val last"]
    classes = [key.removeprefix(prefix) for key in found if key.startswith(prefix)]
    return ["class", *stages], [[name, *(s.get(p + name) for p, s in stages.values())] for name in classes]


def log_checkpoints(trackers: Iterable[Logger], folder: Path) -> None:
    """The run's checkpoints as one W&B artifact of type `model`, a new version for each call."""
    for tracker in trackers:
        if isinstance(tracker, WandbLogger):
            import wandb

            artifact = wandb.Artifact(f"{tracker.experiment.job_type}-{tracker.experiment.id}", type="model")
            for file in sorted((folder / "checkpoints").glob("*.ckpt")):
                artifact.add_file(str(file))
            artifact.add_file(str(folder / "config.yaml"))
            tracker.experiment.log_artifact(artifact)


def finish(trackers: Iterable[Logger], failed: bool = False) -> None:
    """End W&B runs, so that the next run of this process is one of its own."""
    for tracker in trackers:
        if isinstance(tracker, WandbLogger) and tracker._experiment is not None:
            tracker.experiment.finish(exit_code=int(failed))


class Tracking(Callback):
    """At the end sends what the run directory holds to W&B and TensorBoard, and ends the W&B run. The last callback.

    Args:
        folder: run directory.
        checkpoints: send best.ckpt and last.ckpt too, as a W&B artifact.
        trackers: makes the loggers of `test`, which has none of its own; with `fit` they are the trainer's.
    """

    def __init__(
        self, folder: Path, checkpoints: bool = False, trackers: Callable[[], list[Logger]] | None = None
    ) -> None:
        self.folder, self.checkpoints, self.trackers = folder, checkpoints, trackers

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            log_summary(trainer.loggers, read_summary(self.folder))
            if self.checkpoints:
                log_checkpoints(trainer.loggers, self.folder)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        summary = self.folder / "summary.json"
        if trainer.is_global_zero and self.trackers and summary.exists():
            trackers = self.trackers()
            log_summary(trackers, read_summary(self.folder), sorted(self.folder.glob("test_*_images.npz")))
            finish(trackers)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        finish(trainer.loggers, failed=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        finish(trainer.loggers)
