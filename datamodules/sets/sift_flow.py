"""SIFT Flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_warn
from scipy.io import loadmat

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.base import SegmentationDataModule
from datamodules.files import default_color, find_images
from datamodules.splits import hold_out, in_hash_order, missing, read_list

SCENES = "spatial_envelope_256x256_static_8outdoorcategories"
LISTS = ("TestSet1.txt", "test.txt")


class SIFTFlow(SegmentationDataModule):
    """SIFT Flow, 33 classes, 2,688 scenes of 256 x 256 (Liu et al., CVPR 2009; Tighe & Lazebnik, ECCV 2010).

    Layout: `Images/NAME.jpg` and `SemanticLabels/NAME.mat`, both perhaps in a sub-folder `spatial_envelope_...` as
    released. The matrix `S` of a label file holds 0 = unlabelled, which becomes 255, and 1 to 33, which become 0 to 32.

    Splits: the official list of 200 test images, `TestSet1.txt` (or FCN's `test.txt`), next to these folders. Of the
    2,488 others, sorted, every fifth is `val`: ours. Without the list, as large a share in the order of a hash of the
    name is the test set, with a warning: results are then not comparable.

    Args:
        root: folder that holds `Images/` and `SemanticLabels/`.
        kwargs: see `datamodules.base.SegmentationDataModule`.

    Raises:
        FileNotFoundError: a folder or an image of the test list is missing.
        ValueError: an image without labels, or a label file that cannot be read.
    """

    class_names = (
        *("awning", "balcony", "bird", "boat", "bridge", "building", "bus", "car", "cow", "crosswalk", "desert"),
        *("door", "fence", "field", "grass", "moon", "mountain", "person", "plant", "pole", "river", "road"),
        *("rock", "sand", "sea", "sidewalk", "sign", "sky", "staircase", "streetlight", "sun", "tree", "window"),
    )
    colors = tuple(default_color(number) for number in range(1, 34))

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.images = find_images(self._inner("Images"))
        labels = self._inner("SemanticLabels")
        self.masks = {path.stem: path for path in labels.glob("*.mat")}
        if lost := missing(self.images, self.masks):
            raise ValueError(f"{labels} has no labels of {lost}: unpack SemanticLabels again")
        self.splits = hold_out(self.images, self._test())

    def _inner(self, kind: str) -> Path:
        folder = self.root / kind / SCENES
        return folder if folder.is_dir() else folder.parent

    def _test(self) -> list[str]:
        for path in (self.root / name for name in LISTS):
            if path.is_file():
                names = read_list(path)
                if lost := missing(names, self.images):
                    raise FileNotFoundError(f"{path} lists {lost}, not in {self._inner('Images')}: unpack Images again")
                return names
        rank_zero_warn(f"{self.root} has no {LISTS[0]}: the test set is a draw of ours, not the official one")
        order = in_hash_order(self.images)
        return order[: max(1, len(order) * 200 // 2688)]

    def mask(self, name: str) -> Array:
        path = self.masks[name]
        try:
            labels = loadmat(path, variable_names=["S"])["S"].astype(np.int64)
        except Exception as error:  # scipy raises many kinds
            raise ValueError(f"{path} cannot be read as a label map `S` ({error}): replace it") from error
        if labels.min() < 0 or labels.max() > self.num_classes:
            raise ValueError(
                f"{path} holds values from {labels.min()} to {labels.max()}, not 0 to {self.num_classes}: replace it"
            )
        return np.where(labels == 0, IGNORE, labels - 1).astype(np.uint8)
