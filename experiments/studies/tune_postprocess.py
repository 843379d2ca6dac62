"""Validation mIoU of finished runs under post-processing, for a grid of its settings.

    python -m experiments.studies.tune_postprocess mrf RUN_DIR [RUN_DIR ...]
    python -m experiments.studies.tune_postprocess dense_crf RUN_DIR [RUN_DIR ...]

Writes `mrf_val.json`, {"potts": {"mu": mIoU, ...}, "contrast": {...}}, or `dense_crf_val.json`, {"weight": {...}}, into
each run directory, in per cent. Its weight is chosen from them as the weight of a loss is from the runs: on the
validation images.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from common.model.inference import predict_probabilities
from common.model.metrics import SegmentationMetrics
from common.model.postprocess import PostprocessConfig, postprocess
from common.training.files import write_json
from experiments.runs.load import load_run

MU = (0.0, 0.3, 1.0, 3.0, 10.0)
CRF = PostprocessConfig("dense_crf", crf_stride=8, crf_iterations=5)  # ten times faster than the default
GRIDS = {
    "mrf": {(kind, mu): PostprocessConfig("mrf", mu, kind) for kind in ("potts", "contrast") for mu in MU},
    "dense_crf": {("weight", weight): replace(CRF, crf_weight=weight) for weight in (0.0, 1.0, 3.0, 10.0)},
}


@torch.no_grad()
def tune(kind: str, run_dir: Path) -> None:
    """Write `run_dir/<kind>_val.json` unless it is there."""
    path = run_dir / f"{kind}_val.json"
    if path.exists():
        return
    run = load_run(run_dir)
    run.data.num_workers = 0
    grid = GRIDS[kind]
    metrics = {name: SegmentationMetrics(run.data.num_classes) for name in grid}
    for loaded in run.data.val_dataloader():
        batch = run.data.on_after_batch_transfer(loaded, 0)
        size = batch["mask"].shape[-2:]
        probabilities = predict_probabilities(run.model.network, batch["image"], run.model.inference, size)
        image = F.interpolate(batch["image"], size, mode="bilinear", align_corners=False)
        for name, setting in grid.items():
            metrics[name].update(postprocess(probabilities[0], image[0], setting)[None], batch["mask"])
    found: dict[str, dict[str, float]] = {}
    for (group, value), metric in metrics.items():
        found.setdefault(group, {})[f"{value:g}"] = round(float(metric.compute()["miou"]), 4)
    write_json(path, found)
    print(run_dir, found, flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in GRIDS:
        sys.exit("usage: python -m experiments.studies.tune_postprocess mrf|dense_crf RUN_DIR [RUN_DIR ...]")
    for argument in sys.argv[2:]:
        tune(sys.argv[1], Path(argument))
