"""Post-processing searched on val: one forward pass of a finished run, all settings on its probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import move_data_to_device

from common.model.inference import predict_probabilities
from common.model.metrics import SegmentationMetrics
from common.model.postprocess import PostprocessConfig
from common.training.files import read_json, write_json
from experiments.runs.load import load_run
from experiments.studies.spec import POSTPROCESS, Options

FILE = "postprocess_val.json"


def key_of(which: str, setting: Options) -> str:
    """What a setting's score is kept under in the run directory."""
    short = {name.removeprefix(POSTPROCESS): value for name, value in sorted(setting.items())}
    return f"{which} {json.dumps(short)}"


def known_scores(run_dir: Path) -> dict[str, float]:
    file = run_dir / FILE
    return read_json(file, ": remove it, its scores are measured again") if file.exists() else {}


def score_settings(run_dir: Path, which: str, settings: Sequence[Options]) -> None:
    """Write the val mIoU, in per cent, of each setting that is not known yet into the run directory.

    The network is the one whose score is `val/miou`, which `weakseg test` scores too: of a method with a teacher, the
    teacher.

    Args:
        which: checkpoint, `best` or `last`.
        settings: options `model.postprocess...`, laid over those of the run.

    Raises:
        ValueError: an option that post-processing does not have, or a value out of its range.
    """
    found = known_scores(run_dir)
    missing = [setting for setting in settings if key_of(which, setting) not in found]
    if missing:
        scores = measure(run_dir, which, missing)
        write_json(run_dir / FILE, found | {key_of(which, one): v for one, v in zip(missing, scores, strict=True)})


@torch.no_grad()
def measure(run_dir: Path, which: str, settings: Sequence[Options]) -> list[float]:
    run = load_run(run_dir, which)
    run.data.num_workers = 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = run.model.to(device).scored_network
    configs = [make_config(vars(run.model.postprocess), setting) for setting in settings]
    metrics = [SegmentationMetrics(run.data.num_classes) for _ in configs]
    for loaded in run.data.val_dataloader():
        batch: Any = run.data.on_after_batch_transfer(move_data_to_device(loaded, device), 0)
        size = batch["mask"].shape[-2:]
        probabilities = predict_probabilities(network, batch["image"], run.model.inference, size)
        for config, metric in zip(configs, metrics, strict=True):
            run.model.postprocess = config
            metric.update(run.model.refined(probabilities, batch["image"], size).cpu(), batch["mask"].cpu())
    return [round(float(metric.compute()["miou"]), 4) for metric in metrics]


def make_config(base: dict[str, Any], setting: Options) -> PostprocessConfig:
    try:
        return PostprocessConfig(**base | {name.removeprefix(POSTPROCESS): value for name, value in setting.items()})
    except TypeError as error:
        raise ValueError(f"post-processing: {str(error).rpartition('()')[2].strip()}") from error
