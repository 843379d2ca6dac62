"""Two phases of BSDS500 images without a label: the level-set loss against k-means and Chan-Vese.

    python -m experiments.benchmarks.level_set_bsds500 data/BSDS500 experiments/results/level_set.md

Each image is segmented on its own, shrunk to fit --side pixels; the result is enlarged to the image's size, and scored
against all human segmentations (common/ops/partition.py). Phases are scored as they are, connected or not. The table
replaces the text between the page's markers `<!-- bsds500 -->` and `<!-- /bsds500 -->`. Nothing is tuned: the methods'
settings are those of the paper, the libraries, or a first guess.
"""

from __future__ import annotations

import argparse
import itertools
import time
import zlib
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from PIL import Image
from scipy.cluster.vq import kmeans2
from skimage.color import rgb2gray
from skimage.segmentation import chan_vese
from torch import nn
from tqdm import tqdm

from common.ops.array import Array
from common.ops.losses import total_variation
from common.ops.partition import best_person_iou, covering, probabilistic_rand_index, variation_of_information
from datamodules.cache import shrink
from datamodules.sets.bsds500 import BSDS500
from experiments.benchmarks.measure import options
from experiments.compare.columns import markdown
from experiments.compare.report import fill
from methods.level_set.losses import region_variance

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


def settings(phases: int, steps: int, length_weight: list[float]) -> dict[str, Method]:
    """The methods by their names in the table."""
    found: dict[str, Method] = {
        f"level-set loss, lambda {weight:g}": partial(level_set, length_weight=weight, steps=steps)
        for weight in length_weight
    }
    return found | {"k-means": k_means, **({"Chan-Vese": classical} if phases == 2 else {}), "one segment": one_segment}


def evaluate(name: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """The scores of each method on one image, and its seconds."""
    torch.set_num_threads(1)
    data = BSDS500(args.data, phases=args.phases)
    full, people = data.image(name), data.segmentations(name)
    small = shrink(full, (args.side, args.side)).image.transpose(1, 2, 0) / 255
    found = {}
    for method, segment in settings(args.phases, args.steps, args.length_weight).items():
        since = time.perf_counter()
        labels = segment(small, args.phases, zlib.crc32(name.encode()))
        seconds = time.perf_counter() - since
        size = (full.shape[1], full.shape[0])
        large = np.asarray(Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
        found[method] = [*(score(large, people) for score in SCORES.values()), seconds]
    return found


def main() -> None:
    args = options(
        __doc__, "data", "page", split="test", phases=2, side=160, steps=150, length_weight=[1e-3, 1e-2],
        images=200, jobs=1,
    )  # fmt: skip
    names = BSDS500(args.data, phases=args.phases).names(args.split)[: args.images]
    with get_context("spawn").Pool(args.jobs) as pool:
        found = list(tqdm(pool.imap(partial(evaluate, args=args), names), total=len(names)))
    rows = []
    for method in found[0]:
        *scores, seconds = zip(*(one[method] for one in found), strict=True)
        cells = [f"{mean(score):.3f} ± {stdev(score):.3f}" for score in scores]
        rows.append([method, *cells, f"{mean(seconds):.2f}"])
    about = f"{len(names)} images, {args.phases} phases, fitted at {args.side} px, {args.steps} Adam steps a network."
    fill(Path(args.page), "bsds500", f"{about}\n\n{markdown(['method', *SCORES, 's/image'], rows)}")


if __name__ == "__main__":
    main()
