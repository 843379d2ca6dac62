"""Finished runs in Python: the model, the data and the classes, from a run directory or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from common.model.module import SegmentationModule
from common.ops.array import Array
from datamodules.base import SegmentationDataModule
from datamodules.files import to_rgb
from datamodules.photos import Photos
from experiments.runs.checkpoint import built, check_weights, classes_of, photos_part, read_checkpoint, stored_config
from experiments.runs.wandb_api import wandb_api

ARTIFACT = "wandb:"


@dataclass
class Run:
    """A trained model with its classes. The data that it was trained on are opened when one asks for `data`."""

    path: Path
    model: SegmentationModule
    photos: Photos  # how it sees images
    config: dict[str, Any]  # what is taken of the stored one

    @cached_property
    def data(self) -> SegmentationDataModule:
        """The data set that it was trained on.

        Raises:
            FileNotFoundError, ValueError: it is not here, or not as it was.
        """
        data: SegmentationDataModule = built(self.config["data"])
        data.seed = self.config["seed_everything"]
        return data

    @property
    def network(self) -> nn.Module:
        """The network whose score is `val/miou` (of a method with a teacher, the teacher): RGB in [0, 1] to logits."""
        return self.model.scored_network

    @property
    def class_names(self) -> Sequence[str]:
        return self.photos.class_names

    @property
    def colors(self) -> Sequence[tuple[int, int, int]]:
        return self.photos.colors

    def predict(self, image: Any, probabilities: bool = False) -> Any:
        """What `weakseg predict` finds in an image, at the image's own size and on the device that the model is on.

        Size, inference (windows, flips) and post-processing are the run's own; `run.model.inference` and
        `run.model.postprocess` may be set to others. In float32, also if the run was trained in half precision.

        Args:
            image: uint8 (H, W, 3) RGB array, PIL image, path of an image file, or path of a folder of images. Of a
                model for more bands: an array (H, W, C) with RGB first, or a path.
            probabilities: give them too.

        Returns:
            uint8 (H, W) class ids; with `probabilities` a pair of these and float32 (K, H, W). Of a folder an iterator
            over pairs of the image's id and this, read one by one: `dict(run.predict(folder))` has all at once.

        Raises:
            FileNotFoundError, ValueError: no such file or folder, no image, or an array of another shape or type.
        """
        if isinstance(image, (str, Path)) and Path(image).is_dir():
            return self._predict_folder(Path(image), probabilities)
        labels, found = self._predict(to_array(image, self.photos), probabilities)
        return (labels, found) if probabilities else labels

    def _predict_folder(self, folder: Path, probabilities: bool) -> Iterator[tuple[str, Any]]:
        for name in self.photos.show(folder):
            yield name, self.predict(self.photos.image(name), probabilities)

    @torch.inference_mode()
    def _predict(self, image: Array, probabilities: bool) -> tuple[Array, Array]:
        out = self.model.predict_step(self.photos.evaluation_batch(image, device=self.model.device), 0)
        labels, found = [], []  # of a large image in strips, of which few fit the memory as floats
        for one, p in out["strips"] if "strips" in out else [(out["labels"], out["probabilities"])]:
            labels.append(one[0].byte().cpu().numpy())
            found += [p[0].cpu().numpy()] if probabilities else []
        return np.concatenate(labels), np.concatenate(found, 1) if found else np.zeros(0, np.float32)


def to_array(image: Any, photos: Photos) -> Array:
    """uint8 (H, W, C), RGB first, of an array, a PIL image or the path of an image file."""
    if isinstance(image, (str, Path)):
        return photos.read(Path(image))
    if isinstance(image, Image.Image) and photos.channels == 3:
        return to_rgb(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (photos.channels,):
        return image
    got = f"an array {image.shape} of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
    bands = "3) in RGB, a PIL image" if photos.channels == 3 else f"{photos.channels})"
    raise ValueError(f"an image is a uint8 array (height, width, {bands} or a path; got {got}")


def load_run(path: str | Path, which: str = "best", packages: Sequence[str] = ()) -> Run:
    """Load a run directory (its `best` or `last` checkpoint) or a checkpoint file; the model is in eval mode.

    Args:
        path: or `wandb:ENTITY/PROJECT/NAME:VERSION`, an artifact of `--wandb_checkpoints true`, which is downloaded.
        which: `best` or `last`, of a directory or an artifact.
        packages: of your own, whose methods and data sets the checkpoint may name; others' are refused.

    Raises:
        FileNotFoundError, ValueError: there is no checkpoint of `weakseg fit`, or W&B refuses.
    """
    if str(path).startswith(ARTIFACT):
        path = download(str(path)) / f"{which}.ckpt"
    path = Path(path)
    file = path / "checkpoints" / f"{which}.ckpt" if path.is_dir() else path
    checkpoint = read_checkpoint(file)
    config = stored_config(checkpoint, packages)
    classes = classes_of(checkpoint, config)
    check_weights(checkpoint, config, classes)
    model = built(config["model"], len(classes.names))
    model.load_state_dict(checkpoint["state_dict"])
    return Run(path, model.eval(), Photos(**photos_part(classes, config)["init_args"]), config)


def download(artifact: str) -> Path:
    """The folder with the files of `wandb:ENTITY/PROJECT/NAME:VERSION`, downloaded unless it is there.

    Raises:
        ModuleNotFoundError, ValueError: there is no W&B, it needs a login, or it has no such artifact.
    """
    with wandb_api(artifact, "give a run directory or a checkpoint") as api:
        return Path(api.artifact(artifact.removeprefix(ARTIFACT), type="model").download())
