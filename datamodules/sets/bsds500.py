"""BSDS500."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import loadmat

from common.ops.array import Array
from datamodules.base import SegmentationDataModule
from datamodules.files import default_color, find_images
from datamodules.splits import SPLITS, Split
from datamodules.supervision import Supervision


class BSDS500(SegmentationDataModule):
    """BSDS500, 500 images with several human segmentations each and no classes (Arbelaez et al., TPAMI 2011).

    For unsupervised methods: no image has a mask. The classes are the `phases` into which a method divides an image;
    their order means nothing. What people drew is in `segmentations`; scores that need no class, such as segmentation
    covering, compare with it.

    Layout: `data/images/{train,val,test}/ID.jpg` (200 / 100 / 200, the official splits) and
    `data/groundTruth/{train,val,test}/ID.mat`, or one PNG per person, `ID_0.png`, `ID_1.png` and so on. There is no
    void.

    Args:
        root: folder that holds `data/`. A split without a folder is missing until one asks for it.
        phases: number of kinds of region that a method tells apart.
        supervision: kind `none`, nothing else.
        kwargs: see `datamodules.base.SegmentationDataModule`.

    Raises:
        FileNotFoundError: there is no image, or no segmentation of one.
        ValueError: fewer than two phases, another supervision, or a file that cannot be read.
    """

    def __init__(
        self,
        root: str,
        phases: int = 2,
        supervision: Supervision = Supervision(kind="none"),  # noqa: B008 (frozen)
        **kwargs: Any,
    ) -> None:
        super().__init__(supervision=supervision, **kwargs)
        if supervision.kind != "none":
            raise ValueError("BSDS500 has no class labels: set data.supervision.kind=none")
        if phases < 2:
            raise ValueError(f"data.phases must be at least 2, got {phases}")
        self.class_names = [f"phase {number}" for number in range(1, phases + 1)]
        self.colors = [default_color(number) for number in range(1, phases + 1)]
        self.root = Path(root).expanduser()
        folders = {split: self.root / "data" / "images" / split for split in SPLITS}
        found = {split: find_images(folder) for split, folder in folders.items() if folder.is_dir()}
        if not found:
            raise FileNotFoundError(f"folder {folders['train']} does not exist, nor val or test: check the path")
        self.splits = {split: list(files) for split, files in found.items()}
        self.images = {name: path for files in found.values() for name, path in files.items()}

    def names(self, split: Split) -> Sequence[str]:
        if split not in self.splits:
            raise FileNotFoundError(f"folder {self.root / 'data' / 'images' / split} does not exist: check the path")
        return super().names(split)

    def has_mask(self, name: str) -> bool:
        return False

    def segmentations(self, name: str) -> list[Array]:
        """What each person drew: (H, W) int64 arrays. Pixels with one number are one segment; the numbers mean nothing.

        Raises:
            FileNotFoundError: nobody drew on this image.
            ValueError: a file that cannot be read.
        """
        folder = self.root / "data" / "groundTruth" / self.images[name].parent.name
        try:
            if (folder / f"{name}.mat").is_file():
                people = loadmat(folder / f"{name}.mat")["groundTruth"][0]
                return [np.asarray(one["Segmentation"][0, 0], np.int64) for one in people]
            files = sorted(folder.glob(f"{name}_*.png"), key=lambda path: int(path.stem.split("_")[-1]))
            drawn = [np.asarray(Image.open(path, formats=["PNG"]), np.int64) for path in files]
        except Exception as error:  # scipy raises many kinds
            raise ValueError(f"a segmentation of {name} in {folder} cannot be read ({error}): replace it") from error
        if not drawn:
            raise FileNotFoundError(f"{folder} has neither {name}.mat nor {name}_0.png: unpack it again")
        return drawn
