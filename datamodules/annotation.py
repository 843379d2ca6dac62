"""The annotation of a run: what training may see of the labels, drawn once into a folder that later runs find again.

The folder holds a mask of each labelled image (PNG, at the training size, 255 = no label), the counts of labelled
pixels in `annotation.json`, and for boxes and tags the classes that occur in each image in `tags.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn
from PIL import Image

from common.ops.array import Array
from common.ops.batch import IGNORE
from common.training.files import folder_written_whole
from datamodules.images import check_sizes
from datamodules.splits import first_few
from datamodules.supervision import dense_names, draw_annotation, known_protocol, shrink_mask
from datamodules.transforms import fit_size

if TYPE_CHECKING:
    from datamodules.base import SegmentationDataModule

VERSION = 1  # of the drawing; raise it when reading, resizing or drawing gives other labels


def folder_name(data: SegmentationDataModule) -> str:
    """The folder of a data module's annotation, named by all that it depends on."""
    name, what, seed = type(data).__name__, data.supervision, data.annotation_seed
    key: list[Any] = [name, data.source(), data.size, asdict(what), seed, data.lists()[0]]
    if VERSION > 1:  # the first version's drawings, older than this number, stay valid
        key.append(VERSION)
    return f"{name}-{what.kind}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"


def draw(data: SegmentationDataModule, folder: Path) -> None:
    """Draw the annotation of a data module's labelled images into `folder`, whole or not at all.

    All that training and validation read is read here too, so that a bad file is named before the run begins.
    """
    labeled, unlabeled = data.lists()
    dense = dense_names(labeled, data.supervision, data.annotation_seed)
    with folder_written_whole(folder) as scratch:
        masks = ((name, *annotate(data, name, name in dense)) for name in labeled)
        write_annotation(scratch, masks, data.class_names, data.supervision.kind)
        for name in unlabeled:
            data.image(name)
        for name in data.names("val"):
            check_sizes(name, data.image(name).shape, data.mask(name))


def annotate(data: SegmentationDataModule, name: str, dense: bool) -> tuple[Array, Array]:
    """The mask of a labelled image at the training size, and what of it training may see (`dense`: all of it, whatever
    the supervision says), both uint8 (h, w)."""
    mask = data.mask(name)
    assert mask is not None  # `lists` takes labelled images from those that have one
    check_sizes(name, data.image(name).shape, mask)
    size = fit_size(mask.shape, data.size)
    small = shrink_mask(mask, size, keep_strokes=data.keep_strokes)
    if dense:
        return small, small
    if data.supervision.real:
        real = data.annotation(name, cast(Literal["points", "scribbles"], data.supervision.kind))
        strokes = np.full(mask.shape, IGNORE, np.uint8) if real is None else real
        return small, shrink_mask(strokes, size, keep_strokes=True)
    return small, draw_annotation(small, data.supervision, data.annotation_seed, name, data.background)


def write_annotation(
    folder: Path, masks: Iterable[tuple[str, Array, Array]], class_names: Sequence[str], kind: str
) -> None:
    """Write the masks, their counts and, for boxes and tags, the tags. `masks` gives each labelled image's name, its
    dense mask and what of it is labelled, both uint8 (h, w) with class ids and 255."""
    counts, totals = np.zeros(len(class_names), np.int64), np.zeros(len(class_names), np.int64)
    tags: dict[str, list[bool]] = {}
    pixels = empty = 0
    for name, dense, drawn in masks:
        Image.fromarray(drawn).save(folder / f"{name}.png")
        counts += np.bincount(drawn[drawn != IGNORE], minlength=len(class_names))
        totals += np.bincount(dense[dense != IGNORE], minlength=len(class_names))
        pixels += dense.size
        empty += bool((drawn == IGNORE).all())
        tags[name] = np.isin(np.arange(len(class_names)), dense).tolist()
    if not counts.any() and kind not in ("tags", "none"):
        raise ValueError(f"no pixel of the {len(tags)} labelled images has a label: check the masks")
    report = {
        "images": len(tags),
        "labeled_pixels": int(counts.sum()),
        "pixels": pixels,
        "per_class": {name: int(count) for name, count in zip(class_names, counts, strict=True)},
        "share_per_class": {
            name: round(float(count / total), 6) if total else None
            for name, count, total in zip(class_names, counts, totals, strict=True)
        },
        "images_without_label": empty if kind != "tags" else 0,
    }
    if kind in ("boxes", "tags"):  # elsewhere they would be a label that nobody gave
        (folder / "tags.json").write_text(json.dumps(tags))
    (folder / "annotation.json").write_text(json.dumps(report, indent=1))


def warn_of_changes(data: SegmentationDataModule, files: Iterable[Path]) -> None:
    """Warn of files that have changed since the annotation was drawn from them."""
    drawn = data.annotation_dir()
    since = (drawn / "annotation.json").stat().st_mtime
    if changed := [file.name for file in files if file.stat().st_mtime > since]:
        rank_zero_warn(
            f"files of {data.root} are newer than the annotation that was drawn from them: {first_few(changed)}; "
            f"delete {drawn} to train on them"
        )


def announce(data: SegmentationDataModule) -> None:
    """Print how much is labelled, and warn of images and classes without a label; on the first process only."""
    folder, report, kind = data.annotation_dir(), data.annotation_report(), data.supervision.kind
    share = report["labeled_pixels"] / max(1, report["pixels"])
    rank_zero_only(print)(
        f"labelled: {report['images']} images, {report['labeled_pixels']} pixels ({share:.4%} of them), "
        f"drawn once into {folder} (delete it to draw again)"
    )
    if report["images_without_label"]:
        rank_zero_warn(f"{report['images_without_label']} of the labelled images have no label at all")
    missing = [name for name, count in report["per_class"].items() if not count]
    if missing and kind not in ("tags", "none"):
        rank_zero_warn(f"no labelled pixel of class {', '.join(missing)}: it cannot be learned")
    if protocol := known_protocol(data.lists()[0]):
        rank_zero_only(print)(f"the labelled list is {protocol}")
