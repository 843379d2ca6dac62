"""The annotation of a run: what training may see of the labels, drawn once into a folder that later runs find again.

The folder holds a mask of each labelled image (PNG, at the training size, 255 = no label), the counts of labelled
pixels and the length of each mask in `annotation.json`, what a survey of the files has found in `findings.json`, and
for boxes and tags the classes that occur in each image in `tags.json`. Its name is a hash of all that it depends on,
also of the size and time of change of every file of the data set: whatever is replaced, by something newer or older, is
drawn anew.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn
from numpy.typing import NDArray
from PIL import Image

from common.ops.array import Array
from common.ops.batch import IGNORE
from common.training.files import clean, folder_written_whole, written_whole
from datamodules.boxes import placed
from datamodules.decode import read_drawn
from datamodules.images import check_sizes
from datamodules.parallel import mapped
from datamodules.simulate import paint_boxes
from datamodules.splits import Split, in_hash_order
from datamodules.state import digest_of
from datamodules.supervision import TAGGED, dense_names, draw_annotation, known_protocol, shrink_mask
from datamodules.survey import Look, Survey, look
from datamodules.transforms import fit_size, resize_image

if TYPE_CHECKING:
    from datamodules.base import SegmentationDataModule

VERSION = 3  # of the drawing; raise it when reading, resizing or drawing gives other labels
FINDINGS = "findings.json"  # of the survey, which is made once
STATISTICS = "statistics.json"  # mean and standard deviation of each band, where there are more than three
LOOKED_AT = 20_000  # unlabelled images before training: a look takes some ms, and there may be millions
CLASSES = "classes.npy"  # labelled pixels of each image and class, where they are asked for


def folder_name(data: SegmentationDataModule) -> str:
    """The folder of a data module's annotation, named by all that it depends on."""
    name, what = type(data).__name__, data.supervision
    drawn = [data.size, asdict(what), data.annotation_seed, [*data.lists()[0]]]
    return f"{name}-{what.kind}-{digest_of(VERSION, name, data.source(), data.reading(), data.digest(), drawn)[:16]}"


def fault_of(folder: Path) -> str | None:
    """What is wrong with a drawn annotation; None if it is whole. Files are looked at, not opened."""
    file = folder / "annotation.json"
    try:
        lengths = dict(json.loads(file.read_text())["bytes"])
    except FileNotFoundError:
        return f"there is no {file}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{file} is broken ({error})"
    if not (folder / FINDINGS).exists():
        return f"there is no {folder / FINDINGS}"
    for name, length in lengths.items():
        try:
            if (folder / name).stat().st_size != length:
                return f"{folder / name} is broken: {(folder / name).stat().st_size} bytes instead of {length}"
        except OSError as error:
            return f"{folder / name} is missing ({error.strerror})"
    return None


def prepare(data: SegmentationDataModule, folder: Path) -> None:
    """Draw the annotation if it is not there, or is not whole."""
    clean(folder.parent)
    if folder.exists() and (fault := fault_of(folder)):
        rank_zero_warn(f"the drawn annotation is drawn anew: {fault}")
        shutil.rmtree(folder)
    if not folder.exists():
        draw(data, folder)


def draw(data: SegmentationDataModule, folder: Path) -> None:
    """Draw the annotation of a data module's labelled images into `folder`, whole or not at all.

    All that training and validation read is read here too, so that a bad file is named before the run begins.
    """
    labeled, unlabeled = data.lists()
    masked = [name for name in labeled if data.pseudo or data.has_mask(name)]  # tags alone do not need one
    dense, survey = dense_names(masked, data.supervision, data.annotation_seed), Survey(data)
    with folder_written_whole(folder) as scratch:
        drawn = []
        for name, one in zip(labeled, mapped(partial(annotate, data, scratch, dense), labeled, "drawing"), strict=True):
            survey.add("train", name, one.look)
            drawn.append(one._replace(look=None))
        write_report(scratch, labeled, drawn, data.class_names, data.supervision.kind)
        lists: dict[Split, Sequence[str]] = {"train": rest(labeled, unlabeled), "val": data.names("val")}
        for split, names in lists.items():
            for name, seen in zip(names, mapped(partial(looked_at, data, split), names, "reading"), strict=True):
                survey.add(split, name, seen)
        if data.channels > 3:
            (scratch / STATISTICS).write_text(json.dumps(survey.statistics()))
        findings = survey.findings()
        if fatal := [one.text for one in findings if one.level == "stop"]:
            raise ValueError("; ".join(fatal))
        (scratch / FINDINGS).write_text(json.dumps([[*one] for one in findings], indent=1))


class Drawn(NamedTuple):
    """What is told of the drawn mask of an image."""

    length: int  # of its file, in bytes
    labeled: Array  # pixels of each class, (K,): in what training sees, and in the dense mask
    dense: Array
    pixels: int
    tags: Array  # bool (K,)
    look: Any  # of the image and its dense mask, see `datamodules.survey`


def annotate(data: SegmentationDataModule, folder: Path, dense: Container[str], name: str) -> Drawn:
    """Draw what training may see of a labelled image, of those in `dense` all, into its file in a folder."""
    image = data.image(name)
    mask = data.training_mask(name, image.shape)
    check_sizes(name, image.shape, mask)
    whole, drawn, tags = visible(data, name, image, mask, name in dense)
    file = folder / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)  # ids may have folders
    Image.fromarray(drawn).save(file)
    counts, totals = (np.bincount(one[one != IGNORE], minlength=data.num_classes) for one in (drawn, whole))
    return Drawn(file.stat().st_size, counts, totals, whole.size, tags, look(data, name, image, mask))


def looked_at(data: SegmentationDataModule, split: Split, name: str) -> Look:
    """What is seen of an image that training has no label of, or of one of another split with its mask."""
    image = data.image(name)
    mask = None if split == "train" else data.mask(name)
    check_sizes(name, image.shape, mask)
    return look(data, name, image, mask)


def rest(labeled: Sequence[str], unlabeled: Sequence[str]) -> list[str]:
    """The unlabelled images to look at: all, or of very many some, drawn by a hash of their names."""
    known = {*labeled}
    others = [name for name in unlabeled if name not in known]
    if len(others) <= LOOKED_AT:
        return others
    told = f"of {len(others)} unlabelled images {LOOKED_AT} are looked at before training"
    rank_zero_only(print)(told, file=sys.stderr)  # `doctor --json` prints its JSON alone
    return sorted(in_hash_order(others)[:LOOKED_AT])


def visible(
    data: SegmentationDataModule, name: str, image: Array, mask: Array | None, dense: bool
) -> tuple[Array, Array, Array]:
    """The mask of a labelled image at the training size, and what of it training may see (`dense`: all of it, whatever
    the supervision says), both uint8 (h, w); and its tags, bool (K,), of the mask before it is shrunk."""
    tags = data.learned_tags(name, mask)
    if mask is None:  # people have tagged it
        mask = np.full(image.shape[:2], IGNORE, np.uint8)
    size = fit_size(mask.shape, data.size)
    small = shrink_mask(mask, size, keep_strokes=data.keep_strokes and data.pseudo is None)
    if dense:
        return small, small, tags
    if data.supervision.real and data.supervision.kind == "boxes":
        return small, people_boxes(data.boxes(name), mask.shape, size, data, resize_image(image, size)), tags
    if data.supervision.real:
        real = data.annotation(name, cast(Literal["points", "scribbles"], data.supervision.kind))
        strokes = np.full(mask.shape, IGNORE, np.uint8) if real is None else real
        return small, shrink_mask(strokes, size, keep_strokes=True), tags
    colors = resize_image(image, size) if data.supervision.inside == "grabcut" else None
    return small, draw_annotation(small, data.supervision, data.annotation_seed, name, data.background, colors), tags


def people_boxes(
    boxes: Sequence[Sequence[float]],
    of: Sequence[int],
    size: tuple[int, int],
    data: SegmentationDataModule,
    image: Array,
) -> Array:
    """What boxes [x0, y0, x1, y1, class] in an image of size `of` (height, width), last pixels included, say of its
    pixels at the training `size`, uint8 (h, w)."""
    if data.background is None:
        raise ValueError("supervision kind boxes needs a class 'background', which this data set does not have")
    drawn = np.full(size, data.background, np.uint8)
    return paint_boxes(drawn, placed(boxes, of, size), data.supervision.inside, image)


def write_report(
    folder: Path, names: Sequence[str], drawn: Sequence[Drawn], class_names: Sequence[str], kind: str
) -> None:
    """Write what was drawn for each of the labelled images, in all and, for boxes and tags, the tags."""
    none = np.zeros(len(class_names), np.int64)
    counts, totals = (sum((getattr(one, what) for one in drawn), none) for what in ("labeled", "dense"))
    if not counts.any() and kind not in ("tags", "none"):
        raise ValueError(f"no pixel of the {len(names)} labelled images has a label: check the masks")
    lengths = {f"{name}.png": one.length for name, one in zip(names, drawn, strict=True)}
    report = {
        "images": len(names),
        "labeled_pixels": int(counts.sum()),
        "pixels": sum(one.pixels for one in drawn),
        "per_class": {name: int(count) for name, count in zip(class_names, counts, strict=True)},
        "share_per_class": {
            name: round(float(count / total), 6) if total else None
            for name, count, total in zip(class_names, counts, totals, strict=True)
        },
        "images_without_label": sum(not one.labeled.any() for one in drawn) if kind != "tags" else 0,
    }
    if kind in TAGGED:
        tags = {name: one.tags.tolist() for name, one in zip(names, drawn, strict=True)}
        per_tag = np.sum([*tags.values()], 0)
        report["images_per_tag"] = {name: int(count) for name, count in zip(class_names, per_tag, strict=True) if count}
        file = folder / "tags.json"
        file.write_text(json.dumps(tags))
        lengths[file.name] = file.stat().st_size
    (folder / "annotation.json").write_text(json.dumps({**report, "bytes": lengths}, indent=1))


def class_counts(folder: Path, names: Sequence[str], num_classes: int) -> NDArray[np.int64]:
    """Labelled pixels of each class in each of the drawn masks, (N, K) int64: counted once, into `classes.npy`."""
    file = folder / CLASSES
    if not file.exists():
        drawn = (read_drawn(folder / f"{name}.png") for name in names)
        rows = [np.bincount(mask[mask != IGNORE], minlength=num_classes) for mask in drawn]
        with written_whole(file) as scratch, scratch.open("wb") as opened:
            np.save(opened, np.array(rows, np.int64))
    counts: NDArray[np.int64] = np.load(file, allow_pickle=False)
    if not counts.any():
        raise ValueError("data.class_sampling goes by labelled pixels, and there is none: leave it out")
    return counts


def object_tags(folder: Path, names: Sequence[str]) -> NDArray[np.bool_]:
    """The tags of labelled images, (N, K) bool; background is nobody's."""
    tags = json.loads((folder / "tags.json").read_text())
    return np.array([tags[name] for name in names], dtype=bool)


def told_tags(counts: Mapping[str, int]) -> str:
    """Images per tag, in words."""
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none has a tag"


def announce(data: SegmentationDataModule) -> None:
    """Print how much is labelled, and warn of images and classes without a label; on the first process only."""
    folder, report, kind = data.annotation_dir(), data.annotation_report(), data.supervision.kind
    share = report["labeled_pixels"] / max(1, report["pixels"])
    rank_zero_only(print)(
        f"labelled: {report['images']} images, {report['labeled_pixels']} pixels ({share:.4%} of them), "
        f"drawn once into {folder} (delete it to draw again)"
    )
    if "images_per_tag" in report:
        rank_zero_only(print)(f"images per tag: {told_tags(report['images_per_tag'])}")
    for level, text in json.loads((folder / FINDINGS).read_text()):
        rank_zero_warn(f"{text}{' (`weakseg doctor` tells more)' if level == 'error' else ''}")
    if report["images_without_label"]:
        rank_zero_warn(f"{report['images_without_label']} of the labelled images have no label at all")
    missing = [name for name, count in report["per_class"].items() if not count]
    if missing and kind not in ("tags", "none"):
        rank_zero_warn(f"no labelled pixel of class {', '.join(missing)}: it cannot be learned")
    if protocol := known_protocol(data.lists()[0]):
        rank_zero_only(print)(f"the labelled list is {protocol}")
