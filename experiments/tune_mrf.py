"""Validation mIoU of finished runs under MRF post-processing, for a grid of its settings.

    python -m experiments.tune_mrf RUN_DIR [RUN_DIR ...]

Writes `mrf_val.json` into each run directory: {"potts": {"mu": mIoU, ...}, "contrast": {...}}, in per cent. The weight
of the baseline is chosen from it as the weight of the penalty is from the runs: on the validation images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from common.callbacks import write_json
from common.inference import predict_probabilities
from common.metrics import SegmentationMetrics
from common.postprocess import PostprocessConfig, postprocess
from experiments.load import load_run

MU = (0.0, 0.3, 1.0, 3.0, 10.0)


@torch.no_grad()
def tune(run_dir: Path) -> None:
    """Write `run_dir/mrf_val.json` unless it is there."""
    if (run_dir / "mrf_val.json").exists():
        return
    run = load_run(run_dir)
    run.data.num_workers = 0
    settings = [PostprocessConfig("mrf", mu, weights) for weights in ("potts", "contrast") for mu in MU]
    metrics = [SegmentationMetrics(run.data.num_classes) for _ in settings]
    for loaded in run.data.val_dataloader():
        batch = run.data.on_after_batch_transfer(loaded, 0)
        size = batch["mask"].shape[-2:]
        probabilities = predict_probabilities(run.model.network, batch["image"], run.model.inference, size)
        image = F.interpolate(batch["image"], size, mode="bilinear", align_corners=False)
        for setting, metric in zip(settings, metrics, strict=True):
            metric.update(postprocess(probabilities[0], image[0], setting)[None], batch["mask"])
    found: dict[str, dict[str, float]] = {"potts": {}, "contrast": {}}
    for setting, metric in zip(settings, metrics, strict=True):
        found[setting.weights][f"{setting.mu:g}"] = round(float(metric.compute()["miou"]), 4)
    write_json(run_dir / "mrf_val.json", found)
    print(run_dir, found, flush=True)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        tune(Path(argument))
