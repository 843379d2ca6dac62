"""A review written down: `review.html` (one file, no network), `images.csv` and `label_errors.csv`."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image

from common.model.metrics import scores
from common.ops.array import Array
from common.training.predictions import Written
from experiments.review.errors import ImageErrors, Pictures, Region, Review

PAGE, IMAGES, ERRORS = "review.html", "images.csv", "label_errors.csv"
TITLES = ("image", "mask", "prediction", "errors")


def write_review(written: Written, review: Review, about: Mapping[str, str], class_names: Sequence[str]) -> None:
    """Write the three files; `about` says of the page what it is of, `run`, `split` and so on."""
    review.finish()
    total = np.sum([one.confusion for one in review.images], 0)
    template = jinja2.Environment(autoescape=True).from_string((Path(__file__).parent / "page.html").read_text())
    cards = [card_of_region(rank, *one, class_names) for rank, one in enumerate(review.heaviest.items, 1)]
    cards += [card_of_image(rank, *one, class_names) for rank, one in enumerate(review.worst.items, 1)]
    found = scores(torch.from_numpy(total))
    html = template.render(
        about=about,
        bare=review.bare,
        images=len(review.images),
        regions=len(review.regions),
        confidence=f"{review.confidence:g}",
        share=f"{review.share:g}",
        miou=f"{float(found['miou']):.1f}",
        accuracy=f"{float(found['accuracy']):.1f}",
        classes=class_rows(total, class_names, review.colors),
        confusion=confusion_rows(total, class_names),
        pairs=pair_rows(review.images, total, class_names),
        names=[*class_names],
        titles=TITLES,
        cards=cards,
    )
    write_rows(written, IMAGES, image_rows(review.images), ("file", "miou", "wrong_share", "labelled_pixels"))
    columns = ("rank", "file", "mask", "prediction", "pixels", "confidence", "weight", "top", "left", "bottom", "right")
    write_rows(written, ERRORS, region_rows(review.regions, class_names), columns)
    with written.file(PAGE) as scratch:
        scratch.write_text(html, encoding="utf-8", errors="surrogateescape")


def write_rows(written: Written, target: str, rows: Iterable[Sequence[Any]], columns: Sequence[str]) -> None:
    with (
        written.file(target) as scratch,
        scratch.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def image_rows(images: Sequence[ImageErrors]) -> list[Sequence[Any]]:
    return [(one.name, f"{one.miou:.4f}", f"{one.wrong:.6f}", int(one.confusion.sum())) for one in images]


def region_rows(regions: Sequence[Region], class_names: Sequence[str]) -> list[Sequence[Any]]:
    return [
        (rank, one.name, class_names[one.mask], class_names[one.prediction], one.area, f"{one.confidence:.4f}",
         f"{one.weight:.6f}", *one.box)
        for rank, one in enumerate(regions, 1)
    ]  # fmt: skip


def share(part: Any, whole: Any) -> str:
    """In per cent; empty where there is nothing to divide by."""
    return f"{100 * part / whole:.1f}" if whole else ""


def class_rows(
    total: Array, class_names: Sequence[str], colors: Sequence[tuple[int, int, int]]
) -> list[dict[str, Any]]:
    """IoU, precision and recall in per cent, and the share of the labelled pixels."""
    truth, found, right = total.sum(1), total.sum(0), total.diagonal()
    return [
        {"number": k, "name": name, "color": "#{:02x}{:02x}{:02x}".format(*colors[k]),
         "iou": share(right[k], truth[k] + found[k] - right[k]), "precision": share(right[k], found[k]),
         "recall": share(right[k], truth[k]), "pixels": share(truth[k], total.sum())}
        for k, name in enumerate(class_names)
    ]  # fmt: skip


def confusion_rows(total: Array, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Of each class in the masks, the share in per cent that is predicted as each class."""
    rows = []
    for k, name in enumerate(class_names):
        whole = total[k].sum()
        cells = [{"text": share(n, whole), "heat": round(n / whole, 2) if whole else 0, "right": j == k}
                 for j, n in enumerate(total[k])]  # fmt: skip
        rows.append({"name": name, "cells": cells})
    return rows


def pair_rows(images: Sequence[ImageErrors], total: Array, class_names: Sequence[str], most: int = 10) -> list[Any]:
    """The pairs of classes with the most wrong pixels: their share of all of them, of the class's, and in how many
    images they are."""
    wrong = total.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    rows = []
    for true, found in (divmod(int(place), len(wrong)) for place in order):
        if wrong[true, found]:
            rows.append({
                "mask": class_names[true], "prediction": class_names[found],
                "of_errors": share(wrong[true, found], wrong.sum()),
                "of_class": share(wrong[true, found], total[true].sum()),
                "images": sum(bool(one.confusion[true, found]) for one in images),
            })  # fmt: skip
    return rows


def card_of_image(rank: int, one: ImageErrors, pictures: Pictures, class_names: Sequence[str]) -> dict[str, Any]:
    wrong = one.confusion.copy()
    np.fill_diagonal(wrong, 0)
    involved = np.flatnonzero(wrong.sum(0) + wrong.sum(1))
    true, found = divmod(int(wrong.argmax()), len(wrong))
    text = f"mIoU {one.miou:.1f}, {100 * one.wrong:.1f} % of its labelled pixels wrong, most of them " + (
        f"{class_names[true]} taken for {class_names[found]}"
    )
    return card("image", rank, one.name, text, involved.tolist(), pictures)


def card_of_region(rank: int, one: Region, pictures: Pictures, class_names: Sequence[str]) -> dict[str, Any]:
    text = (
        f"the mask says {class_names[one.mask]}, the model {class_names[one.prediction]} with probability "
        f"{one.confidence:.2f}, on {one.area} pixels from row {one.box[0]}, column {one.box[1]} on"
    )
    return card("label", rank, one.name, text, [one.mask, one.prediction], pictures)


def card(kind: str, rank: int, name: str, text: str, classes: Sequence[int], pictures: Pictures) -> dict[str, Any]:
    sources = [encoded(picture, photo=not number) for number, picture in enumerate(pictures)]
    shown = [{"title": title, "source": source} for title, source in zip(TITLES, sources, strict=True)]
    about = {"kind": kind, "rank": rank, "name": name, "text": text}
    return {**about, "classes": " ".join(map(str, classes)), "pictures": shown}


def encoded(picture: Array, photo: bool) -> str:
    """A picture as an address that holds it: photos as JPEG, others as PNG."""
    buffer = io.BytesIO()
    kind = "jpeg" if photo else "png"
    Image.fromarray(picture).save(buffer, kind, **({"quality": 85} if photo else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
