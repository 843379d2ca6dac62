"""One's own images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.bands import STACK, image_reader, image_suffixes
from datamodules.base import SegmentationDataModule
from datamodules.boxes import Boxes, check_boxes, placed, read_boxes
from datamodules.class_list import background_of, class_file, is_void, read_classes
from datamodules.decode import SUFFIXES, Picture
from datamodules.drawn import check_classes, find, yolo
from datamodules.drawn.content import BOXES, naming
from datamodules.drawn.paint import upright_size
from datamodules.files import class_ids, find_images, near, read_mask, unread_images, upright_mask
from datamodules.names import Names
from datamodules.nifti import Volumes, check_alone
from datamodules.simulate import paint_boxes
from datamodules.splits import SPLITS, check_disjoint, first_few, in_hash_order, missing, read_list
from datamodules.tags import FOLDERS, Tags, check_tagged, folder_tags, nearest, read_tags

VOLUME = "^(.*)/"  # of a slice's id: slices of a volume stay together
OTHER_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Folder(SegmentationDataModule):
    """Your own images: a folder with `images/`, `masks/` and `classes.txt`.

    A mask has its image's name (any image suffix for either) and is an indexed or grey PNG of class ids, or an RGB
    picture in the colours of `classes.txt`; 255, or the colour of a class named `void`, is a pixel without a label. So
    scribbles are masks with 255 elsewhere; thin ones survive the resize to `size`. Instead of pictures there may be the
    files of annotation tools, see `datamodules.drawn`. Images without a mask are unlabelled training images. An image
    in a folder below, `images/day1/a.jpg`, has the id `day1/a` and the mask `masks/day1/a.png`. What is read of other
    tools' files, and what is refused, is in docs/files.md.

    Volumes in NIfTI files, `images/a.nii.gz` and `masks/a.nii.gz`, are read as axial slices `a/000`, `a/001` and so on,
    and are sequences, see `datamodules.nifti`; lists may name volumes.

    Bounding boxes, for `supervision: {kind: boxes, real: true}`, are those of COCO in `boxes.json`, or of VOC in
    `boxes/NAME.xml`, see `datamodules.boxes`. If there is no mask at all, val and test are compared with their boxes,
    filled.

    Splits: the ids in `train.txt`, `val.txt` and `test.txt`, one a line. Where a list is missing, images that no list
    names take its place: without `train.txt` all of them, without `val.txt` or `test.txt` those with a mask, half of
    them each if both are missing. Without `train.txt` every fifth image with a mask is for validation, and every fifth
    for test, where these have no list. They are chosen by a hash of the name, the same in every run.

    Args:
        root: the folder.
        fill: class of the pixels outside the shapes that annotation tools have drawn; None: they have no label.
        value_range: [low, high] of images of other than 8 bits, see `datamodules.files.read_image`; with `channels`
            also one such pair for each band, in the order of the file. Or `percentiles`.
        channels: bands of an image: 3 for pictures in colour or grey; more for TIFF files, pictures with four bands and
            NumPy arrays (.npy), see `datamodules.bands`.
        rgb: numbers, from 1 on, of the three bands that are shown and that kernels over colour and the jitter see as
            red, green and blue; default: the first three.
        mask_values: class of each value of the masks, such as {0: background, 255: horse}, where values are not class
            ids; `ignore`: no label.
        sequences: regular expression for what ids of one person or video share, such as `^[^_]+` for `p07_03` or `^.*/`
            for folders: its first group, or all that it finds. Such images stay together in splits made here, and
            `supervision.by_sequence` draws by it.
        tags: which classes occur in each image, from people who drew no masks, for `supervision: {kind: tags}`: a file
            (here or in the folder) with a line for each image, its name and its classes, see `datamodules.tags`; or
            `folders`, where images lie in `images/CLASS/`. Images of val and test then need no mask either, and where
            there is none at all the splits are made of all images.
        kwargs: see `datamodules.base.SegmentationDataModule`.

    Raises:
        FileNotFoundError: a folder, `classes.txt` or a listed image is missing.
        ValueError: bad content, named with the file and the way out.
    """

    keep_strokes = True
    own_splits = True

    def __init__(
        self,
        root: str,
        fill: str | None = None,
        value_range: list[float] | list[list[float]] | Literal["percentiles"] | None = None,
        channels: int = 3,
        rgb: list[int] | None = None,
        mask_values: dict[int, str] | None = None,
        sequences: str | None = None,
        tags: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise FileNotFoundError(f"folder {self.root} does not exist: check data.root")
        classes, self.palette, self.void_before = read_classes(class_file(self.root))
        self.class_names = [one.name for one in classes]
        self.colors = [one.color for one in classes]
        self.background = background_of(self.class_names)
        self.channels = channels
        self.reader = image_reader(channels, rgb, value_range)
        self.mask_values = None if mask_values is None else _given_ids(mask_values, self.class_names)
        self.value_range = value_range
        self.volumes = Volumes(self.root / "images")
        self.images = self._find_images()
        self.tag_file = None if tags in (None, FOLDERS) else near(self.root, str(tags))
        self.tagged = self._read_tags(tags)
        if fill is not None and fill not in self.class_names:
            raise ValueError(f"data.fill is '{fill}', but the classes are {', '.join(self.class_names)}")
        self.fill = None if fill is None else self.class_names.index(fill)
        self.people_boxes = self._read_boxes()
        self.boxed = None if self.people_boxes is None else self.people_boxes.rows
        self.filled: set[str] = set()  # images of val and test whose boxes take the place of masks
        self.needed = self.tagged is None and self.boxed is None  # masks: there is nothing else
        self.drawn = find(self.root, self.images, self.class_names, self.fill, needed=self.needed)
        self.masks = self._find_masks()
        if lost := missing(self.masks, self.images):
            others = unread_images(self.root / "images", nested=True)
            raise ValueError(
                f"{self.root} has masks without an image: {lost}; name each mask as its image, add the images, or "
                "remove the masks" + _unread(others, self.masks.keys() - self.images.keys())
            )
        self.sequences = _pattern(VOLUME if sequences is None and self.volumes.files else sequences)
        self.splits = self._make_splits()
        if not self.masks and self.tagged is None and self.boxed is not None:
            self.filled = {*self.splits["val"], *self.splits["test"]} & self.boxed.keys()
        for split in ("val", "test"):
            if lost := missing(self.splits[split], self.masks.keys() | {*(self.tagged or ())} | self.filled):
                tag = ", tag them in data.tags" if self.tagged is not None else ""
                raise ValueError(f"{split} images need a mask, these have none: {lost}; draw them{tag}, or list others")
        if self.tagged is not None:
            check_tagged(self.tagged, self.splits["train"], f"data.tags={tags}")

    def _find_images(self) -> Mapping[str, Path]:
        """The file of each image, or of each slice of volumes."""
        folder, suffixes = self.root / "images", image_suffixes(self.channels)
        pictures = find_images(folder, nested=True, needed=not self.volumes.files, suffixes=suffixes)
        check_alone(self.volumes, pictures, folder)
        if self.volumes.files and self.channels != 3:
            raise ValueError(f"{folder} holds volumes, which are grey: leave data.channels out")
        return self.volumes.images() or pictures

    def _read_tags(self, tags: str | None) -> Tags | None:
        if tags == FOLDERS:
            return folder_tags(self.root / "images", self.images, self.class_names)
        return None if self.tag_file is None else read_tags(self.tag_file, self.images, self.class_names)

    def _read_boxes(self) -> Boxes | None:
        if self.volumes.files and any((self.root / name).exists() for name in (BOXES, Path(BOXES).stem)):
            raise ValueError(f"{self.root} has volumes, and boxes, which are read of pictures alone: remove the boxes")
        return None if self.volumes.files else read_boxes(self.root, self.images, self.class_names)

    def _find_masks(self) -> Mapping[str, Path]:
        """The file of each mask: pictures, and drawings of annotation tools."""
        folder = self.root / "masks"
        if self.volumes.files:
            self.mask_volumes = Volumes(folder)
            check_alone(self.mask_volumes, find_images(folder, nested=True, needed=False), folder)
            if lost := missing(self.mask_volumes.files, self.volumes.files):
                raise ValueError(
                    f"{folder} has masks without a volume: {lost}; name each mask as its volume, add the volumes, or "
                    "remove the masks"
                )
            self.volumes.check_masks(self.mask_volumes)
            return self.mask_volumes.images()
        pictures = find_images(folder, nested=True, needed=not self.drawn and self.needed)
        others = unread_images(folder, nested=True)
        if others and (lost := _unread(others, self.images.keys() - pictures.keys() - self.drawn.keys())):
            raise ValueError(f"{self.root} has images whose masks are in another format{lost}")
        if twice := self.drawn.keys() & pictures.keys():
            raise ValueError(f"there are a picture and a JSON file for {first_few(twice)}: keep one of them")
        if self.drawn:
            masks = map(self._read_mask, pictures.values())
            check_classes(self.drawn.values(), self.class_names, self.fill, masks)
        return dict(pictures.items()) | {name: one.path for name, one in self.drawn.items()} if self.drawn else pictures

    def _make_splits(self) -> dict[str, Names]:
        self._check_names_of_lists()
        files = {split: self.root / f"{split}.txt" for split in SPLITS}
        listed: dict[str, list[str]] = {split: self._read_list(file) for split, file in files.items() if file.exists()}
        check_disjoint(listed)
        named = {name for names in listed.values() for name in names}
        ready: Mapping[str, object] = self.masks or self.tagged or self.boxed or {}  # what can be evaluated on
        spare = in_hash_order(ready.keys() - named)
        absent = [split for split in ("val", "test") if split not in listed]
        if not listed and len(spare) < 5:
            what = "images with boxes" if ready is self.boxed else "masks" if ready is self.masks else "tagged images"
            raise ValueError(
                f"{self.root} has {len(spare)} {what}; 5 are needed to keep some for val and test, or list them"
            )
        if not listed:
            self._check_names_of_folders()
        # Images of one sequence are drawn together: each is a sequence of its own where `sequences` tells of none.
        group = self.sequence if self.sequences else str
        known = {group(name) for name in named}  # those in a list go to no other split
        order = in_hash_order({group(name) for name in spare} - known)
        share = len(absent) if "train" in listed else 5
        held = {}
        for number, split in enumerate(absent):  # from an end of the order each: few change it when images are added
            count = -(-(len(order) - number) // share)
            held[split] = {*(order[:count] if split == "val" else order[len(order) - count :])}
        found = listed | {split: [name for name in spare if group(name) in groups] for split, groups in held.items()}
        for split in absent:
            if not found[split]:
                raise ValueError(
                    f"{self.root} has no {split}.txt, and too few images with a mask are in no list: write it, with "
                    "lines moved from another list if need be"
                )
        if listed and len(listed) < len(SPLITS):
            names = ", ".join(f"{split} {len(found[split])}" for split in absent)
            rest = [names] if names else []
            rest += [] if "train" in listed else ["train the rest"]
            rank_zero_warn(
                f"{self.root} has lists of {', '.join(listed)}; of the other images are {' and '.join(rest)}"
            )
        taken = {name for names in found.values() for name in names}
        if self.sequences:
            known = known.union(*held.values())
            beside = {name for name in (spare if "train" in listed else self.images) if group(name) in known} - taken
            if beside:
                rank_zero_warn(f"{len(beside)} images are of sequences of other splits, and are left out")
            taken |= beside
        train = listed.get("train") or [name for name in self.images if name not in taken]
        return {split: Names(names) for split, names in ({"train": train} | found).items()}

    def _check_names_of_lists(self) -> None:
        """Raise ValueError for a list under another name: it is not left unread."""
        for path in sorted(self.root.iterdir()):
            split = OTHER_NAMES.get(path.stem.lower())
            right = self.root / f"{split}.txt"
            if split and path.suffix.lower() in (".txt", ".csv", ".lst") and path.is_file() and not right.exists():
                raise ValueError(f"{path} is not read: call a list of images {right.name}, one id a line")

    def _check_names_of_folders(self) -> None:
        """Warn of folders of images that are called as splits are: without lists their images are mixed."""
        inside = (self.root / "images").iterdir()
        folders = [path.name for path in inside if path.name.lower() in OTHER_NAMES and path.is_dir()]
        if {"val", "test"} & {OTHER_NAMES[name.lower()] for name in folders}:
            rank_zero_warn(
                f"the folders {first_few(folders)} in {self.root / 'images'} are no splits: these "
                "are drawn from all images; write train.txt, val.txt and test.txt, with lines such as "
                f"{next(iter(self.images))}, to keep them apart"
            )

    def _read_list(self, file: Path) -> list[str]:
        listed = self.volumes.listed()
        names = [one for name in read_list(file, {*self.images, *listed}) for one in listed.get(name, [name])]
        if lost := [name for name in names if name not in self.images]:
            others = unread_images(self.root / "images", nested=True)
            raise FileNotFoundError(
                f"{file} lists {first_few(lost)}: not in images/{_unread(others, lost)}" + nearest(lost[0], self.images)
            )
        return names

    def prepare_data(self) -> None:
        super().prepare_data()
        if self.turned:
            rank_zero_warn(
                f"{first_few(self.turned)}: turned by their EXIF orientation, and their sizes do not tell if their "
                "masks are: these are taken as drawn on the upright images; look at some with `weakseg doctor --sheet`"
            )

        if self.filled:
            rank_zero_warn(
                f"there is no mask, so {len(self.filled)} images of val and test are compared with their filled boxes: "
                "such scores compare runs, and no good segmentation comes near 100; draw some masks for true ones"
            )

    def knows_sequences(self) -> bool:
        return self.sequences is not None

    def sequence(self, name: str) -> str:
        if self.sequences is None:
            raise ValueError("which images are of one video? give data.sequences, or leave by_sequence or evenly out")
        found = self.sequences.search(name)
        if not found:
            raise ValueError(f"data.sequences '{self.sequences.pattern}' finds nothing in '{name}': correct it")
        return found[1] if self.sequences.groups else found[0]

    def sources(self) -> dict[str, Mapping[str, Path]]:
        numbers = yolo.names_file(self.root) if self.drawn else None  # it says which class a YOLO file means
        lists = {f"{path.relative_to(self.root)}": path for path in (class_file(self.root), numbers) if path}
        tags = {} if self.tag_file is None else {"tags": {self.tag_file.name: self.tag_file}}
        boxes = {} if self.people_boxes is None else {"boxes": self.people_boxes.files}
        return {**super().sources(), "lists": lists, **tags, **boxes}

    def has_mask(self, name: str) -> bool:
        return name in self.masks or name in self.filled

    def boxes(self, name: str) -> Sequence[Sequence[float]]:
        assert self.people_boxes is not None
        rows = super().boxes(name)
        with naming(f"{self.people_boxes.files[name]}, image {name}"):
            check_boxes(rows, self.people_boxes.sizes[name], self._size(name))
        return rows

    def _size(self, name: str) -> tuple[int, int]:
        """Width and height of an image, upright."""
        if self.images[name].suffix.lower() in SUFFIXES:
            return upright_size(self.images[name])
        height, width = self.image(name).shape[:2]
        return width, height

    def read(self, path: Path) -> Array:
        """An image file of the same kind as this set's, uint8 (H, W, `channels`), RGB first."""
        return self.reader(path)

    def image(self, name: str) -> Array:
        if self.volumes.files:
            return self.volumes.image(name, self.value_range)
        return self.read(self.images[name])

    def spacing(self, name: str) -> tuple[float, float] | None:
        return self.volumes.spacing(name) if self.volumes.files else None

    def mask(self, name: str) -> Array | None:
        if name in self.filled:
            assert self.background is not None
            width, height = self._size(name)
            rows = placed(self.boxes(name), (height, width), (height, width))
            return paint_boxes(np.full((height, width), self.background, np.uint8), rows, "filled", None)
        if name not in self.masks:
            return None
        if self.volumes.files:
            path = self.masks[name]
            picture = Picture(self.mask_volumes.whole(name), "volume")
            return class_ids(path, picture, self.num_classes, None, self.mask_values, self.void_before)
        if name in self.drawn:
            return self.drawn[name].mask()
        if self.images[name].suffix.lower() == STACK:
            return self._read_mask(self.masks[name])
        mask, unclear = upright_mask(self._read_mask(self.masks[name]), self.images[name])
        if unclear:
            self.turned.add(name)
        return mask

    def _read_mask(self, path: Path) -> Array:
        mask = read_mask(path, self.num_classes, self.palette, self.mask_values, self.void_before)
        if path.suffix.lower() in (".jpg", ".jpeg"):
            raise ValueError(f"{path} is a JPEG, which changes values near edges to other classes: save masks as PNG")
        return mask


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise ValueError(f"data.sequences '{text}' is no regular expression ({error})") from error


def _given_ids(given: Mapping[int, str], class_names: Sequence[str]) -> dict[int, int]:
    """Class id, or 255, of each value."""
    found = {}
    for value, name in given.items():
        if name not in class_names and not is_void(name):
            raise ValueError(
                f"data.mask_values gives {value} the class '{name}', but the classes are {', '.join(class_names)}, and "
                "'ignore' is no label"
            )
        found[value] = class_names.index(name) if name in class_names else IGNORE
    return found


def _unread(others: Mapping[str, Path], names: Iterable[str]) -> str:
    """Part of an error: those of the names that there are only in formats that are not read; empty if none."""
    files = [others[name].name for name in names if name in others]
    return f"; {first_few(files)} cannot be read: convert to PNG" if files else ""
