"""Finished runs in Python: the model, the data and the classes, from a run directory or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser
from torch import nn

import datamodules
import methods
from common.module import SegmentationModule
from datamodules.base import SegmentationDataModule
from experiments.compose import read_checkpoint, stored_config


@dataclass
class Run:
    """A trained model with the data that it was trained on."""

    path: Path
    model: SegmentationModule
    data: SegmentationDataModule

    @property
    def network(self) -> nn.Module:
        """The network whose score is `val/miou` (of a method with a teacher, the teacher): RGB in [0, 1] to logits."""
        return next(iter(self.model.eval_networks().values()))

    @property
    def class_names(self) -> Sequence[str]:
        return self.data.class_names

    @property
    def colors(self) -> Sequence[tuple[int, int, int]]:
        return self.data.colors


def load_run(path: str | Path, which: str = "best") -> Run:
    """Load a run directory (its `best` or `last` checkpoint) or a checkpoint file; the model is in eval mode.

    Raises:
        FileNotFoundError, ValueError: there is no checkpoint of `weakseg fit`.
    """
    path = Path(path)
    file = path / "checkpoints" / f"{which}.ckpt" if path.is_dir() else path
    checkpoint = read_checkpoint(file)
    config = stored_config(file)
    config["data"]["init_args"]["seed"] = config["seed_everything"]  # a link of `fit`, so not in the file
    for package in (methods, datamodules):
        for name in package.CLASSES:
            getattr(package, name)
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(SegmentationModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(SegmentationDataModule, "data", subclass_mode=True)
    parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
    parts = parser.instantiate(parser.parse_object({"model": config["model"], "data": config["data"]}))
    parts.model.load_state_dict(checkpoint["state_dict"])
    return Run(path, parts.model.eval(), parts.data)
