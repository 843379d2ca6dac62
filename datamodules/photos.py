"""Images without labels, to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.bands import image_reader, image_suffixes
from datamodules.base import SegmentationDataModule
from datamodules.cache import shrink
from datamodules.files import find_images, image_id
from datamodules.images import whole_image
from datamodules.loaders import loader, shared
from datamodules.names import Names
from datamodules.nifti import Volumes, check_alone


class Photos(SegmentationDataModule):
    """Any images, without labels and splits: classes, colours and size are those of a trained model.

    Args:
        class_names: of the model.
        colors: of the classes, [red, green, blue] from 0 to 255.
        value_range: what is black and white in images of other than 8 bits, see `datamodules.sets.folder.Folder`.
        channels: bands of an image.
        rgb: which of them are shown.
        kwargs: see `datamodules.base.SegmentationDataModule`.
    """

    def __init__(
        self,
        class_names: list[str],
        colors: list[list[int]],
        value_range: list[float] | list[list[float]] | Literal["percentiles"] | None = None,
        channels: int = 3,
        rgb: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.class_names, self.colors = class_names, [(r, g, b) for r, g, b in colors]
        self.channels, self.rgb = channels, rgb or [1, 2, 3]
        self.read, self.value_range = image_reader(channels, rgb, value_range), value_range
        self.volumes: Volumes | None = None

    def image(self, name: str) -> Array:
        if self.volumes is not None and self.volumes.files:
            return self.volumes.image(name, self.value_range)
        return self.read(self.images[name])

    def show(self, place: Path) -> Mapping[str, Path]:
        """The image file or the folder of images, with the folders in it, to predict: files by id. Of volumes in NIfTI
        files, the slices, see `datamodules.nifti`.

        Raises:
            FileNotFoundError, ValueError: there is none.
        """
        self.volumes = Volumes(place)
        if self.volumes.files:
            pictures = find_images(place, nested=True, needed=False) if place.is_dir() else {}
            check_alone(self.volumes, pictures, place)
            if self.channels != 3:
                raise ValueError(f"{place} holds volumes, which are grey, and the model sees {self.channels} bands")
            self.images = self.volumes.images()
        elif place.is_file():
            self.images = {image_id(Path(place.name)): place}
        else:
            self.images = find_images(place, nested=True, suffixes=image_suffixes(self.channels))
        return self.images

    def prepare_data(self) -> None:
        """Nothing is labelled."""

    def predict_dataloader(self) -> DataLoader[Any]:
        """One image at a time, see `PhotoData`. Images at their own size are read by this process: each of several
        loader processes would hold some."""
        how = {} if self.size else {"num_workers": 0}
        return loader(self, PhotoData(shared(self, Names(self.images)), self), batch_size=1, **how)


class PhotoData(Dataset[dict[str, Any]]):
    """Evaluation samples (`datamodules.images.whole_image`) whose masks are 255 everywhere; of images at their own size
    they are one pixel. In the place of an image that cannot be read stands a pixel, with the reason as `error`: one bad
    photo of thousands is no end."""

    def __init__(self, names: Sequence[str], data: Photos) -> None:
        self.names, self.read, self.size, self.channels = names, data.image, data.size, data.channels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        try:
            sample = whole_image(name, shrink(self.read(name), self.size), None)
            # Of a large image the mask would take a third of the image's memory, to say nothing.
            return sample if self.size else {**sample, "mask": torch.full((1, 1), IGNORE)}
        except (OSError, ValueError) as error:
            pixel = {"image": torch.zeros(self.channels, 1, 1, dtype=torch.uint8), "mask": torch.full((1, 1), IGNORE)}
            return {**pixel, "name": name, "size": torch.tensor([1, 1]), "error": str(error)}
