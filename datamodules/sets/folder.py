"""One's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.ops.array import Array
from datamodules.annotation import warn_of_changes
from datamodules.base import SegmentationDataModule
from datamodules.drawn import check_classes, find
from datamodules.files import find_images, read_classes, read_mask
from datamodules.splits import SPLITS, check_disjoint, first_few, in_hash_order, missing, read_list


class Folder(SegmentationDataModule):
    """Your own images: a folder with `images/`, `masks/` and `classes.txt`.

    A mask has its image's name (any image suffix for either) and is an indexed or grey PNG of class ids, or an RGB
    picture in the colours of `classes.txt`; 255, or the colour of a class named `void`, is a pixel without a label. So
    scribbles are masks with 255 elsewhere; thin ones survive the resize to `size`. Instead of pictures there may be the
    files of annotation tools, see `datamodules.drawn`. Images without a mask are unlabelled training images.

    Splits: the ids in `train.txt`, `val.txt` and `test.txt`, one a line, where there are such files (all three). Else
    every fifth image with a mask is for validation and every fifth for test, chosen by a hash of the name, the same in
    every run; the rest is for training.

    Args:
        root: the folder.
        fill: class of the pixels outside the shapes that annotation tools have drawn; None: they have no label.
        kwargs: see `datamodules.base.SegmentationDataModule`.

    Raises:
        FileNotFoundError: a folder, `classes.txt` or a listed image is missing.
        ValueError: bad content, named with the file and the way out.
    """

    keep_strokes = True

    def __init__(self, root: str, fill: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        classes, self.palette = read_classes(self.root / "classes.txt")
        self.class_names = [one.name for one in classes]
        self.colors = [one.color for one in classes]
        self.background = self.class_names.index("background") if "background" in self.class_names else None
        self.images = find_images(self.root / "images")
        if fill is not None and fill not in self.class_names:
            raise ValueError(f"data.fill is '{fill}', but the classes are {', '.join(self.class_names)}")
        self.fill = None if fill is None else self.class_names.index(fill)
        self.drawn = find(self.root, self.images, self.class_names, self.fill)
        self.masks = self._find_masks()
        if lost := missing(self.masks, self.images):
            raise ValueError(f"{self.root} has masks without an image: {lost}; add the images, or remove the masks")
        self.splits = self._listed() if (self.root / "train.txt").exists() else self._hashed()
        for split in ("val", "test"):
            if lost := missing(self.splits[split], self.masks):
                raise ValueError(f"{split} images need a mask, these have none: {lost}; draw them, or list others")

    def _find_masks(self) -> dict[str, Path]:
        """The file of each mask: pictures, and drawings of annotation tools."""
        folder = self.root / "masks"
        others = folder.is_dir() and any(path.suffix != ".json" for path in folder.iterdir() if path.name[0] != ".")
        pictures = find_images(folder) if others or not self.drawn else {}
        if twice := self.drawn.keys() & pictures.keys():
            raise ValueError(f"there are a picture and a JSON file for {first_few(twice)}: keep one of them")
        if self.drawn:
            masks = (read_mask(path, self.num_classes, self.palette) for path in pictures.values())
            check_classes(self.drawn.values(), self.class_names, self.fill, masks)
        return pictures | {name: one.path for name, one in self.drawn.items()}

    def _listed(self) -> dict[str, list[str]]:
        splits: dict[str, list[str]] = {split: read_list(self.root / f"{split}.txt") for split in SPLITS}
        for split, names in splits.items():
            if lost := missing(names, self.images):
                raise FileNotFoundError(f"{self.root / split}.txt lists {lost}: not in images/")
        check_disjoint(splits)
        return splits

    def _hashed(self) -> dict[str, list[str]]:
        order = in_hash_order(self.masks)
        if len(order) < 5:
            raise ValueError(
                f"{self.root} has {len(order)} masks; 5 are needed to keep some for val and test, or list them"
            )
        val, test = order[::5], order[1::5]
        return {"train": sorted(self.images.keys() - {*val, *test}), "val": val, "test": test}

    def prepare_data(self) -> None:
        super().prepare_data()
        warn_of_changes(self, [self.root / "classes.txt", *{*self.masks.values()}])

    def source(self) -> str:
        return f"{self.root.resolve()} {self.fill}"

    def mask(self, name: str) -> Array | None:
        if name not in self.masks:
            return None
        if name in self.drawn:
            return self.drawn[name].mask()
        return read_mask(self.masks[name], self.num_classes, self.palette)
