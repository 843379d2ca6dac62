"""The engineer's story on real photos: strokes in labelme's files, a model, its predictions, what to label next, and a
second round.

    python -m experiments.benchmarks.story --root VOC2012_val --clicks points_val1449.json -- --trainer.max_steps 300

Photos of PASCAL VOC that show one of five kinds of objects play the engineer's own: 20 that are labelled at first, 20
others to choose from, and 15 and 50 with dense masks for val and test. A stroke is drawn through each click of a
person (Bearman et al. 2016), as far as a hand would go within the object: along the longest of eight directions in
which the dense mask has the click's class, to 0.8 of its length. A click on another class than its own stays a point,
as it is. The commands are those of docs/story.md; what is behind `--` goes to both trainings. All is written below
`--output`, and what is there is not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.ops.array import Array
from common.ops.batch import IGNORE
from common.training.files import write_csv, write_text
from datamodules.sets.voc import PascalVOC
from experiments.benchmarks.suggest import command

KINDS = ("aeroplane", "bird", "bus", "cat", "sheep")
SHARES = {"first": 4, "more": 4, "val": 3, "test": 10}  # photos of each kind
ANGLES = np.arange(8) * np.pi / 8
KEPT = 0.8  # of what is free on either side


def choose(data: PascalVOC) -> dict[str, list[str]]:
    """The ids of each share: of each kind the first photos by name whose mask has no other kind of object."""
    found: dict[int, list[str]] = {data.class_names.index(kind): [] for kind in KINDS}
    need = sum(SHARES.values())
    for name in sorted(data.masks):
        inside = {*np.unique(mask_of(data, name)).tolist()} - {0, IGNORE}
        if len(inside) == 1 and len(names := found.get(inside.pop(), [])) < need:
            names.append(name)
    chosen: dict[str, list[str]] = {}
    start = 0
    for share, count in SHARES.items():
        chosen[share] = sorted(name for names in found.values() for name in names[start : start + count])
        start += count
    return chosen


def mask_of(data: PascalVOC, name: str) -> Array:
    """The dense mask of a photo that has one."""
    mask = data.mask(name)
    assert mask is not None
    return mask


def stroke(mask: Array, x: int, y: int, value: int) -> list[list[int]]:
    """The ends of the stroke through a click, or the click alone."""
    height, width = mask.shape
    best = [[x, y]]
    longest = 4.0
    for angle in ANGLES if mask[y, x] == value else ():
        ends = []
        for sign in (1, -1):
            step = sign * np.array([np.cos(angle), np.sin(angle)])
            reach = 0
            while True:
                column, row = np.round([x, y] + step * (reach + 1)).astype(int)
                if not (0 <= row < height and 0 <= column < width and mask[row, column] == value):
                    break
                reach += 1
            ends.append(np.round([x, y] + KEPT * reach * step).astype(int).tolist())
        length = float(np.hypot(ends[0][0] - ends[1][0], ends[0][1] - ends[1][1]))
        if length > longest:
            best, longest = ends, length
    return best


def strokes(data: PascalVOC, name: str, ids: Mapping[int, str]) -> dict[str, Any]:
    """labelme's file of the strokes of a photo."""
    assert data.clicks is not None
    mask, shapes = mask_of(data, name), list[dict[str, Any]]()
    height, width = mask.shape
    entry = data.clicks[name]
    for x, y, value, *_ in [*entry["bg"], *entry["fg"]]:
        if value in ids:
            column = min(max(int(x * width / entry["size"][0]), 0), width - 1)
            row = min(max(int(y * height / entry["size"][1]), 0), height - 1)
            ends = stroke(mask, column, row, value)
            kind = "line" if len(ends) == 2 else "point"
            shapes.append({"label": ids[value], "points": ends, "shape_type": kind, "group_id": None, "flags": {}})
    about: dict[str, Any] = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": f"../images/{name}.png",
        "imageData": None,
    }
    return {**about, "imageHeight": height, "imageWidth": width}


def write_photos(data: PascalVOC, output: Path) -> None:
    """`my_photos`, a `Folder` with strokes on the first photos, and `more`, the others, whose strokes lie in `drawn`
    until they are asked for."""
    ids = {0: "background"} | {data.class_names.index(kind): kind for kind in KINDS}
    table = np.full(256, IGNORE, np.uint8)
    for number, value in enumerate(ids):
        table[value] = number
    photos, chosen = output / "my_photos", choose(data)
    for place in (photos / "images", photos / "masks", output / "more", output / "drawn"):
        place.mkdir(parents=True)
    for share, names in chosen.items():
        for name in names:
            place = output / "more" if share == "more" else photos / "images"
            Image.fromarray(data.image(name)).save(place / f"{name}.png")
            if share in ("val", "test"):
                Image.fromarray(table[mask_of(data, name)]).save(photos / "masks" / f"{name}.png")
            else:
                place = output / "drawn" if share == "more" else photos / "masks"
                write_text(place / f"{name}.json", json.dumps(strokes(data, name, ids), indent=1))
        if share in ("val", "test"):
            write_text(photos / f"{share}.txt", "".join(f"{name}\n" for name in names))
    write_text(photos / "classes.txt", "".join(f"{kind}\n" for kind in ids.values()))


def trained(output: Path, number: int, fit: list[str]) -> dict[str, Any]:
    """Train on what is labelled, and test: a row of the table."""
    run_dir, photos = output / "runs" / f"round{number}", output / "my_photos"
    summary = run_dir / "summary.json"
    if not summary.exists() or "test" not in json.loads(summary.read_text()):
        command("fit", "--data", photos, "--run_dir", run_dir, "--resume", "auto", *fit)
        command("test", "--run", run_dir)
    found = json.loads(summary.read_text())
    tested, drawn = found["test"]["best"], found["annotation"]
    scores = {name.removeprefix("test/iou/"): value for name, value in tested.items() if name.startswith("test/iou/")}
    row = {"round": number, "photos": drawn["images"], "labelled_share": drawn["labeled_pixels"] / drawn["pixels"]}
    row |= {"seconds": found["seconds"], "val_miou": found["best"]["val/miou"]}
    return row | {"test_miou": tested["test/miou"], **scores}


def main() -> None:
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder that holds VOCdevkit/")
    parser.add_argument("--splits", help="lists, see `PascalVOC`")
    parser.add_argument("--clicks", required=True, help="file of the clicks")
    parser.add_argument("--output", type=Path, default=Path("runs/story"))
    options = parser.parse_args(words[:at])
    fit, output = words[at + 1 :], options.output
    if not (output / "my_photos" / "classes.txt").exists():
        write_photos(PascalVOC(options.root, splits=options.splits, clicks=options.clicks), output)
    rows = [trained(output, 1, fit)]
    first = output / "runs" / "round1"
    if not (output / "predicted").exists():
        command("predict", "--run", first, "--images", output / "more", "--output", output / "predicted")
        command("suggest", "--run", first, "--images", output / "more", "-n", 10, "--output", output / "next")
    with (output / "next" / "suggest.csv").open(newline="") as file:
        asked = [Path(row["file"]).stem for row in csv.DictReader(file)]
    for name in asked:
        if (output / "more" / f"{name}.png").exists():
            shutil.copy(output / "drawn" / f"{name}.json", output / "my_photos" / "masks")
            shutil.move(output / "more" / f"{name}.png", output / "my_photos" / "images")
    rows.append(trained(output, 2, fit))
    write_csv(output / "story.csv", rows)
    print((output / "story.csv").read_text())


if __name__ == "__main__":
    main()
