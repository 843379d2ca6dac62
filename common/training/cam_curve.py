"""The mIoU of class activation maps at each threshold, as a file."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from common.training.files import write_json


class CamCurve(Callback):
    """After each validation that scored maps, writes `cam_curve.json` into the run directory: their mIoU on val at each
    threshold (the `curve` of `common.model.cam_module.CamModule`)."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cam_curve.json"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        curve = getattr(pl_module, "curve", None)
        if curve is None or not trainer.is_global_zero:
            return
        steps = len(curve) - 1
        content = {
            "step": trainer.global_step,
            "threshold": [j / steps for j in range(steps + 1)],
            "cam_miou": [round(float(value), 4) for value in curve],
        }
        write_json(self.path, content)
