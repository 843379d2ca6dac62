"""Two phases of BSDS500 images without a label: the level-set loss against k-means and Chan-Vese.

    python -m experiments.benchmarks.level_set_bsds500 data/BSDS500 runs experiments/results/level_set.md

Each image is segmented on its own, shrunk to fit --side pixels; the result is enlarged to the image's size, and scored
against all human segmentations (common/ops/partition.py). Phases are scored as they are, connected or not. One line per
image and method goes to RUNS/bsds500_level_set/, so that a broken run continues; with a page, the table of what is
there replaces the text between its markers `<!-- bsds500 -->` and `<!-- /bsds500 -->`. Nothing is tuned: the methods'
settings are those of the paper, the libraries, or a first guess.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.cluster.vq import kmeans2
from skimage.color import rgb2gray
from skimage.segmentation import chan_vese
from torch import nn

from common.ops.losses import total_variation
from common.ops.partition import best_person_iou, covering, probabilistic_rand_index, variation_of_information
from datamodules.cache import shrink
from datamodules.sets.bsds500 import BSDS500
from experiments.compare.report import fill
from methods.level_set.losses import region_variance

Array = np.ndarray[Any, Any]
Method = Callable[[Array, int, int], Array]
SCORES: dict[str, Callable[[Array, list[Array]], float]] = {
    "covering": covering,
    "PRI": probabilistic_rand_index,
    "VOI, bits": variation_of_information,
    "IoU, best person": best_person_iou,
}


def level_set(image: Array, phases: int, seed: int, *, length_weight: float, steps: int) -> Array:
    """Phases (h, w) of an image (h, w, 3) in [0, 1]: a small network fitted to it by the loss alone (beta = 1)."""
    torch.manual_seed(seed)
    widths = (3, 32, 32, 32)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1, padding_mode="replicate"), nn.BatchNorm2d(after), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Conv2d(widths[-1], phases, 1))
    x = torch.from_numpy(image).float().permute(2, 0, 1)[None]
    valid = torch.ones(1, *x.shape[2:], dtype=torch.bool)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        y = network(x).softmax(1)
        loss = region_variance(y, x, valid) + length_weight * total_variation(y, valid)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return np.asarray(network(x)[0].argmax(0))


def k_means(image: Array, phases: int, seed: int) -> Array:
    """k-means on the colours."""
    return np.asarray(kmeans2(image.reshape(-1, 3), phases, minit="++", rng=seed)[1].reshape(image.shape[:2]))


def classical(image: Array, phases: int, seed: int) -> Array:
    """Chan-Vese on the grey image, as scikit-image has it; two phases only."""
    return np.asarray(chan_vese(rgb2gray(image))).astype(np.int64)  # type: ignore[no-untyped-call]


def one_segment(image: Array, phases: int, seed: int) -> Array:
    """What a score of nothing is."""
    return np.zeros(image.shape[:2], np.int64)


def settings(args: argparse.Namespace) -> dict[str, Method]:
    """The methods by their names in the table."""
    found: dict[str, Method] = {
        f"level-set loss, lambda {weight:g}": partial(level_set, length_weight=weight, steps=args.steps)
        for weight in args.length_weight
    }
    found |= {"k-means": k_means, "Chan-Vese": classical, "one segment": one_segment}
    if args.phases != 2:
        del found["Chan-Vese"]
    return found


def folder_of(args: argparse.Namespace) -> Path:
    return Path(args.runs) / "bsds500_level_set" / f"phases={args.phases},side={args.side},steps={args.steps}"


def evaluate(work: tuple[argparse.Namespace, str, list[str]]) -> list[dict[str, Any]]:
    """The scores of some methods on one image."""
    args, name, todo = work
    torch.set_num_threads(1)
    data = BSDS500(args.data, phases=args.phases)
    full, people = data.image(name), data.segmentations(name)
    small = shrink(full, (args.side, args.side)).image.transpose(1, 2, 0) / 255
    found = []
    for method in todo:
        since = time.perf_counter()
        labels = settings(args)[method](small, args.phases, zlib.crc32(name.encode()))
        seconds = time.perf_counter() - since
        size = (full.shape[1], full.shape[0])
        large = np.asarray(Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
        scores = {score: round(of(large, people), 6) for score, of in SCORES.items()}
        found.append({"image": name, "method": method, **scores, "seconds": round(seconds, 4)})
    return found


def read(file: Path) -> list[dict[str, Any]]:
    """The whole lines of an artefact; a broken run may leave half a line."""
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def run(args: argparse.Namespace, names: list[str]) -> list[dict[str, Any]]:
    """All scores of the images, computing those that are not in the artefact yet."""
    file = folder_of(args) / "scores.jsonl"
    rows = read(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = {(row["image"], row["method"]) for row in rows}
    missing = {name: [method for method in settings(args) if (name, method) not in done] for name in names}
    work = [(args, name, todo) for name, todo in missing.items() if todo]
    for number, found in enumerate(results(work, args.jobs), 1):
        rows += found
        with file.open("a") as out:
            out.write("".join(json.dumps(row) + "\n" for row in found))
        print(f"{number} of {len(work)}: {found[0]['image']}", flush=True)
    return [row for row in rows if row["image"] in names]


def results(work: list[Any], jobs: int) -> Iterator[list[dict[str, Any]]]:
    if jobs == 1:
        yield from map(evaluate, work)
        return
    with get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(evaluate, work)


def table(args: argparse.Namespace, rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the images, as Markdown."""
    count = len({row["image"] for row in rows})
    lines = [
        f"{count} images, {args.phases} phases, fitted at {args.side} px, {args.steps} Adam steps a network.\n",
        f"| method | {' | '.join(SCORES)} | s/image |",
        "|---" * (len(SCORES) + 2) + "|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        cells = []
        for score in SCORES:
            values = [row[score] for row in mine]
            cells.append(f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}")
        name = method if len(mine) == count else f"{method} ({len(mine)} images)"
        lines.append(f"| {name} | {' | '.join(cells)} | {mean(row['seconds'] for row in mine):.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder that holds data/images and data/groundTruth")
    parser.add_argument("runs", help="folder of the artefacts")
    parser.add_argument(
        "page", nargs="?", type=Path, help="Markdown file with the markers; without it, print the table"
    )
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--phases", type=int, default=2)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--length-weight", type=float, nargs="+", default=[1e-3, 1e-2])
    parser.add_argument("--limit", type=int, help="the first images only")
    parser.add_argument("--jobs", type=int, default=1, help="processes; one image each at a time")
    args = parser.parse_args()
    data = BSDS500(args.data, phases=args.phases)
    names = data.names(args.split)[: args.limit]
    rows = run(args, names)
    content = table(args, rows)
    if args.page:
        fill(args.page, "bsds500", content)
    else:
        print(content)


if __name__ == "__main__":
    main()
