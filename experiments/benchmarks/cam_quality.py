"""What class activation maps are worth, map by map: one scale or several, each refinement, each at its best threshold.

    python -m experiments.benchmarks.cam_quality RUN --split val --images 200 --crf 20

Prints a table: the mIoU in per cent over the images at the best threshold of that row, the threshold, and the mIoU at
the threshold that the run's validation found. Masks and tags of the split are those of the run's data set. IRN's seeds
have no threshold to sweep: their row says what share of the pixels is sure, and the mIoU of these; `--crf` is how many
images, since a dense CRF takes seconds for each. `--network` is a run that learned from the labels: its mIoU, and what
it would be if the network, too, were told the tags of each image. `--errors` tells where the wrong pixels lie, `--json`
is a file for the rows. `--picture` draws image, CAM, labels and truth of the first images, with `--beside RUN...` the
maps of several runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.model.cam_module import CamModule, labels_of
from common.model.metrics import CamMetrics, SegmentationMetrics
from common.ops.array import Array
from common.ops.batch import IGNORE
from common.training.files import write_text
from common.training.pictures import colorize, save_grid, to_uint8
from datamodules.images import whole_image
from experiments.benchmarks.errors import KINDS, count_errors, shares_wrong
from experiments.compare.columns import markdown
from experiments.runs.load import Run, load_run

EVALUATED = "all scales, mirrored"  # the maps that validation scores
NAMES = ("one scale", EVALUATED, "PAMR", "walk")
Maps = Callable[[Tensor, Tensor, tuple[int, int]], Tensor]


def kinds(model: CamModule) -> dict[str, Maps]:
    """What makes a map (K - 1, H, W) of an image, its tags and a size."""

    def single(image: Tensor, tags: Tensor, size: tuple[int, int]) -> Tensor:
        scales, flip = model.scales, model.flip
        model.scales, model.flip = [1.0], False
        try:
            return model.cam_of(image, tags, size)
        finally:
            model.scales, model.flip = scales, flip

    refined = (partial(model.refined_cam, refine=how) for how in ("pamr", "walk"))
    return dict(zip(NAMES, (single, model.cam_of, *refined), strict=True))


def masks(run: Run, split: Any, count: int) -> Iterator[tuple[str, Array]]:
    """Names and masks (H, W) of images spread over a split."""
    names = run.data.names(split)
    for place in np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int):
        mask = run.data.mask(names[place])
        if mask is None:
            raise ValueError(f"'{names[place]}' has no mask to compare with")
        yield names[place], mask


def images(run: Run, split: Any, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Image (3, h, w), tags (K,) and mask (H, W) of `masks`."""
    for name, mask in masks(run, split, count):
        sample = whole_image(name, run.data.small_image(name), mask)
        yield sample["image"].float() / 255, torch.tensor(run.data.tags(name, mask)), sample["mask"].long()


def measure(run: Run, split: Any, count: int, seeds: int, names: Collection[str] = ()) -> list[dict[str, Any]]:
    """Rows of the table, of `names` alone if there are any, on the device of the model: what made the `map`, its
    `miou`, the best `threshold`, the mIoU at the run's `own`, and `seconds` an image; of IRN's seeds also how many
    `images`, and which share is `sure`."""
    model: Any = run.model
    device = model.classifier.background.device
    makers = {name: maps for name, maps in kinds(model).items() if not names or name in names}
    found = {name: CamMetrics(model.num_classes) for name in makers}
    seconds = dict.fromkeys(found, 0.0)
    seen = 0
    for image, tags, mask in images(run, split, count):
        seen += 1
        for name, maps in makers.items():
            start = time.perf_counter()
            cam = maps(image.to(device), tags.to(device), (mask.shape[0], mask.shape[1])).cpu()
            seconds[name] += time.perf_counter() - start
            found[name].update(cam[None], mask[None])
    rows: list[dict[str, Any]] = []
    for name, metric in found.items():
        result = metric.compute()
        own = result["curve"][round(model.pseudo_threshold * metric.steps)]
        told = {key: round(float(value), 4) for key, value in (*result.items(), ("own", own)) if value.ndim == 0}
        rows.append({"map": name, **told, "seconds": round(seconds[name] / seen, 3)})
    certain, sure, pixels, start = SegmentationMetrics(model.num_classes), 0, 0, time.perf_counter()
    for image, tags, mask in images(run, split, seeds):
        size = (mask.shape[0], mask.shape[1])
        labels = model.pseudo_labels(image.to(device), tags, size, "crf", model.pseudo_threshold).cpu()
        both = (labels != IGNORE) & (mask != IGNORE)
        sure, pixels = sure + int(both.sum()), pixels + int((mask != IGNORE).sum())
        certain.update(labels.masked_fill(~both, 0)[None], mask.masked_fill(~both, IGNORE)[None])
    if seeds:
        miou = round(float(certain.compute()["miou"]), 4)
        each = round((time.perf_counter() - start) / seeds, 3)
        rows.append({"map": "IRN's seeds", "own": miou, "seconds": each, "images": seeds, "sure": sure / pixels})
    return rows


def of_network(network: Run, run: Run, split: Any, count: int) -> list[dict[str, Any]]:
    """Rows of a network at its last step on the images of `measure`: with all classes, and with those of the tags
    alone, which maps know and a network does not."""
    found = {name: SegmentationMetrics(network.model.num_classes) for name in ("network", "network, tags given")}
    for name, mask in masks(run, split, count):
        _, scores = network.predict(run.data.image(name), probabilities=True)
        possible = run.data.tags(name, mask)
        possible[run.data.background] = True  # which is no tag
        told = scores * possible[:, None, None]
        for metric, labels in zip(found.values(), (scores.argmax(0), told.argmax(0)), strict=True):
            metric.update(torch.from_numpy(labels)[None], torch.from_numpy(mask).long()[None])
    return [{"map": name, "miou": round(float(one.compute()["miou"]), 4)} for name, one in found.items()]


def where_wrong(run: Run, split: Any, count: int, rows: list[dict[str, Any]]) -> str:
    """A table of where the wrong pixels lie, see `experiments.benchmarks.errors`, of each row's maps at their best
    threshold."""
    model: Any = run.model
    makers, device = kinds(model), model.classifier.background.device
    best = {row["map"]: row["threshold"] for row in rows if "threshold" in row}
    total = {name: np.zeros(len(KINDS) + 1, np.int64) for name in best}
    for image, tags, mask in images(run, split, count):
        for name, threshold in best.items():
            cam = makers[name](image.to(device), tags.to(device), (mask.shape[0], mask.shape[1]))
            total[name] += count_errors(labels_of(cam[None], threshold).cpu().numpy(), mask.numpy(), background=0)
    lines = [[name, *shares_wrong(counts)] for name, counts in total.items()]
    return markdown(["map", "wrong, %", *KINDS], lines)


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    name = row["map"] if "sure" not in row else f"{row['map']}, {row['images']} images, {row['sure']:.1%} sure"
    shown = [("miou", ".1f"), ("threshold", ".2f"), ("own", ".1f"), ("seconds", ".2f")]
    return [name, *(f"{row[key]:{form}}" if key in row else "" for key, form in shown)]


def heat(cam: Tensor, image: Tensor, size: tuple[int, int]) -> Array:
    """The largest map (H, W) as red over the grey image, uint8 (H, W, 3)."""
    grey = torch.nn.functional.interpolate(image[None, :3].mean(1, keepdim=True), size, mode="bilinear")[0, 0]
    strength = cam.amax(0)
    return to_uint8(torch.stack([grey * (1 - strength) + strength, grey * (1 - strength), grey * (1 - strength)]))


def draw(run: Run, network: Run | None, split: Any, path: Path, count: int = 5) -> None:
    """Rows of image, CAM, its labels, IRN's seeds, PAMR, walk, prediction of another run, truth."""
    model: Any = run.model
    rows = []
    for image, tags, mask in images(run, split, count):
        size, t = (mask.shape[0], mask.shape[1]), model.pseudo_threshold
        labels = [model.pseudo_labels(image, tags, size, refine, t) for refine in ("none", "crf", "pamr", "walk")]
        shown = [colorize(one.numpy().astype(np.uint8), run.colors) for one in (*labels, mask)]
        whole = enlarged(image, size)
        if network is not None:
            shown.insert(-1, colorize(network.predict(whole), run.colors))
        rows.append([whole, heat(model.cam_of(image, tags, size), image, size), *shown])
    titles = ["image", "CAM", "labels", "IRN's seeds", "PAMR", "walk", "truth"]
    if network is not None:
        titles.insert(-1, "network")
    save_grid(path, rows, titles)


def draw_beside(runs: Sequence[Run], split: Any, path: Path, count: int = 5) -> None:
    """Rows of image, the map of each run, truth."""
    models: list[Any] = [run.model for run in runs]
    rows = []
    for image, tags, mask in images(runs[0], split, count):
        size = (mask.shape[0], mask.shape[1])
        maps = [heat(model.cam_of(image, tags, size), image, size) for model in models]
        rows.append([enlarged(image, size), *maps, colorize(mask.numpy().astype(np.uint8), runs[0].colors)])
    save_grid(path, rows, ["image", *(type(model).__name__ for model in models), "truth"])


def enlarged(image: Tensor, size: tuple[int, int]) -> Array:
    """An image (3, h, w) in [0, 1] as uint8 (*size, 3)."""
    return to_uint8(torch.nn.functional.interpolate(image[None], size, mode="bilinear", align_corners=False)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="of CAM, or of another method with class activation maps")
    parser.add_argument("--which", choices=["best", "last"], default="best")
    parser.add_argument("--split", choices=["train", "val", "test"], default="val")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--crf", type=int, default=0)
    parser.add_argument("--maps", nargs="+", default=[], choices=NAMES, help="which to measure (all)")
    parser.add_argument("--errors", action="store_true", help="also tell where the wrong pixels lie")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--picture", type=Path, help="PNG to draw instead of the table")
    parser.add_argument("--beside", nargs="+", default=[], help="runs whose maps the picture shows beside those of RUN")
    parser.add_argument("--network", help="run of a network trained on the pseudo-masks")
    options = parser.parse_args()
    if options.beside and (options.network or not options.picture):
        parser.error("--beside is for --picture, and without --network")
    if options.picture and (options.errors or options.maps or options.json):
        parser.error("--picture takes the place of the table: leave --errors, --maps and --json out")
    paths = [options.run, *options.beside]
    run, *others = (load_run(path, options.which) for path in paths)
    for path, one in zip(paths, (run, *others), strict=True):
        if not isinstance(one.model, CamModule):
            raise SystemExit(f"{path} is no run of a method with class activation maps")
    network = load_run(options.network, "last") if options.network else None
    if options.picture and others:
        draw_beside([run, *others], options.split, options.picture)
        return
    if options.picture:
        draw(run, network, options.split, options.picture)
        return
    if torch.cuda.is_available():
        run.model.cuda()
    rows = measure(run, options.split, options.images, options.crf, options.maps)
    if network:
        rows += of_network(network, run, options.split, options.images)
    head = ["map", "mIoU", "best threshold", "at the run's threshold", "s an image"]
    print(markdown(head, [*map(cells, rows)]))
    if options.errors:
        print(where_wrong(run, options.split, options.images, rows))
    if options.json:
        write_text(options.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
