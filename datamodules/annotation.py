"""The annotation of a run: what training may see of the labels, drawn once into a folder that later runs find again.

The folder holds a mask of each labelled image (PNG, at the training size, 255 = no label), the counts of labelled
pixels in `annotation.json`, and for boxes and tags the classes that occur in each image in `tags.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn
from PIL import Image

from common.ops.batch import IGNORE
from datamodules.supervision import Supervision

Array = np.ndarray[Any, Any]
VERSION = 1  # of the drawing; raise it when reading, resizing or drawing gives other labels, and all is drawn anew


def folder_name(
    data: str, source: str, size: tuple[int, int], supervision: Supervision, seed: int, labeled: Sequence[str]
) -> str:
    """The folder of an annotation, named by all that it depends on.

    Args:
        data: name of the data set's class.
        source: its files, see `SegmentationDataModule.source`.
        size: height and width that its images are resized to fit.
        supervision: what is labelled.
        seed: of the draw.
        labeled: names of the labelled images.
    """
    key: list[Any] = [data, source, size, asdict(supervision), seed, labeled]
    if VERSION > 1:  # the first version's drawings, older than this number, stay valid
        key.append(VERSION)
    return f"{data}-{supervision.kind}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """An empty folder to write into; it becomes `folder` when the block ends without an error, and is removed else."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".drawing-"))
    try:
        yield scratch
        # Another run may have drawn the same annotation meanwhile: the first one stays.
        if not folder.exists():
            os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_annotation(
    folder: Path, masks: Iterable[tuple[str, Array, Array]], class_names: Sequence[str], kind: str
) -> None:
    """Write the masks, their counts and, for boxes and tags, the tags.

    Args:
        folder: an empty folder.
        masks: each labelled image's name, its dense mask and what of it is labelled, both uint8 (h, w) with class ids
            and 255.
        class_names: of the data set.
        kind: of supervision.

    Raises:
        ValueError: no pixel has a label, where the kind gives labels to pixels.
    """
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


def announce(folder: Path, report: Mapping[str, Any], kind: str) -> None:
    """Print how much is labelled, and warn of images and classes without a label; on the first process only."""
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
