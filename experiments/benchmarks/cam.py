"""What maps and their refinement cost on one image of 321 pixels, next to the forms in which they are mostly written.

    python -m experiments.benchmarks.cam

PAMR (6 dilations, 10 iterations) of 3 maps: all 54 samples of all pixels side by side (`stacked`), and neighbour by
neighbour (`views`, what `pamr` is). Random walk of 3 maps, 256 steps over a radius of 5 cells: a matrix of all pairs of
cells, squared eight times (`matrix`), a sparse matrix multiplied 256 times (`sparse`), and its diagonals multiplied
(`diagonals`, what `random_walk` is). CAM of an image with 3 of 20 classes at four scales and mirrored (MobileNetV2):
maps of all classes at the image's size (`all classes`), and of the tagged ones (`tagged`, what `cam_of` does).

One thread. Memory is the peak above the inputs and the network; each run is in a process of its own. The error is the
largest difference from the form that is ours, the last one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.model.affinity import RADIUS
from common.model.cam import multi_scale_cam
from common.model.cam_module import BETA
from common.model.networks import NetworkConfig
from common.ops.array import Array
from common.ops.cam import normalise_cam
from common.ops.refine import DILATIONS, offsets, pamr
from common.ops.walk import bilateral_affinity, half_disc, places, random_walk
from common.training.memory import reset_peak, resident_gb
from experiments.benchmarks.measure import alternate, machine, options, ratio
from experiments.compare.columns import markdown
from methods.cam.module import CAM

SIDE, MAPS, CLASSES = 321, 3, 21


def inputs(side: int, maps: int = MAPS) -> tuple[Tensor, Tensor]:
    """A smooth image with some noise, and maps with smooth blobs."""
    torch.manual_seed(0)
    image, blobs = (F.interpolate(torch.rand(1, c, 5, 5), (side, side), mode="bilinear") for c in (3, maps))
    return 0.9 * image + 0.1 * torch.rand(1, 3, side, side), blobs


def stacked_pamr(image: Tensor, maps: Tensor) -> Tensor:
    """All neighbours of all pixels in one tensor."""
    most = max(DILATIONS)

    def near(values: Tensor) -> Tensor:
        padded = F.pad(values, (most,) * 4, mode="replicate")
        height, width = values.shape[2:]
        ways = offsets(DILATIONS)
        return torch.stack([padded[..., most + y : most + y + height, most + x : most + x + width] for y, x in ways], 2)

    samples = near(image)
    centre = image[:, :, None]
    deviation = torch.cat([samples, centre.expand(-1, -1, len(DILATIONS), -1, -1)], 2).std(2, keepdim=True)
    weights = (-((samples - centre).abs() / (1e-8 + 0.1 * deviation))).mean(1, keepdim=True).softmax(2)
    for _ in range(10):
        maps = (weights * near(maps)).sum(2)
    return maps


def pairs(affinity: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (2, n) and the sharpened affinity (n,) of all pairs of cells of one image, a cell with itself too."""
    height, width = affinity.shape[2:]
    number = torch.arange(height * width).view(height, width)
    rows, columns, values = [number.flatten()], [number.flatten()], [torch.ones(height * width)]
    for plane, offset in zip(affinity[0], half_disc(RADIUS), strict=True):
        if found := places(offset, height, width):
            one, two = number[found[0]].flatten(), number[found[1]].flatten()
            weight = plane[found[0]].flatten() ** BETA
            rows, columns, values = [*rows, one, two], [*columns, two, one], [*values, weight, weight]
    return torch.stack([torch.cat(rows), torch.cat(columns)]), torch.cat(values)


def matrix_walk(affinity: Tensor, maps: Tensor) -> Tensor:
    """The matrix of all pairs, to the power 256."""
    (rows, columns), values = pairs(affinity)
    size = maps[0, 0].numel()
    t = torch.zeros(size, size)
    t[rows, columns] = values
    t /= t.sum(0)
    for _ in range(8):
        t = t @ t
    return (maps.flatten(2) @ t).view_as(maps)


def sparse_walk(affinity: Tensor, maps: Tensor) -> Tensor:
    """A sparse matrix, 256 times."""
    index, values = pairs(affinity)
    size = maps[0, 0].numel()
    sums = torch.zeros(size).index_add_(0, index[1], values)
    weights = values / sums[index[1]]
    t = torch.sparse_coo_tensor(index.flip(0), weights, (size, size), check_invariants=True).coalesce()  # transposed
    found = maps[0].flatten(1).mT.contiguous()
    for _ in range(256):
        found = t @ found
    return found.mT.reshape(maps.shape)


def classifier() -> CAM:
    torch.manual_seed(0)
    return CAM(CLASSES, network=NetworkConfig("Unet", "mobilenet_v2")).eval()


def prepare(part: str, form: str) -> Callable[[], Any]:
    """A form on its inputs."""
    if part == "PAMR":
        image, maps = inputs(SIDE)
        run = stacked_pamr if form == "stacked" else pamr
        return lambda: run(image, maps)
    if part.startswith("walk"):
        image, maps = inputs(-(-SIDE // CELLS[part]))
        affinity = bilateral_affinity(image, RADIUS)
        walks = {"matrix": matrix_walk, "sparse": sparse_walk}
        return lambda: walks[form](affinity, maps) if form in walks else random_walk(affinity, maps, RADIUS, BETA)
    model, image = classifier(), inputs(SIDE)[0]
    tags = torch.zeros(CLASSES, dtype=torch.bool)
    tags[1:4] = True
    if form == "tagged":
        return lambda: model.cam_of(image[0], tags, (SIDE, SIDE))[:3]

    def every() -> Tensor:
        raw = multi_scale_cam(model.classifier.maps, image, (SIDE, SIDE), model.scales, multiple=16)
        return (normalise_cam(raw) * tags[1:, None, None])[0, :3]

    return every


CELLS = {"walk, cells of 8 pixels": 8, "walk, cells of 4 pixels": 4, "walk, pixels": 1}
FORMS = {
    "PAMR": ("stacked", "views"),
    "walk, cells of 8 pixels": ("matrix", "sparse", "diagonals"),
    "walk, cells of 4 pixels": ("sparse", "diagonals"),
    "walk, pixels": ("diagonals",),
    "CAM": ("all classes", "tagged"),
}


def measured(part: str, form: str) -> tuple[float, float, Array]:
    """Seconds, peak GB and result of one run, in this process."""
    run = prepare(part, form)
    before = resident_gb("VmRSS")
    reset_peak()
    since = time.perf_counter()
    found = run()
    return time.perf_counter() - since, resident_gb("VmHWM") - before, found.numpy()


def apart(part: str, form: str) -> tuple[float, float, Array]:
    """The same in a process of its own, forked: this one must not have computed with several threads before."""
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        return pool.submit(measured, part, form).result()


def main() -> None:
    args = options(__doc__, rounds=3)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print(f"{machine()}, float32, {SIDE} x {SIDE} pixels; medians of {args.rounds} rounds.\n")
    rows = []
    for part, forms in FORMS.items():
        found = alternate({form: partial(apart, part, form) for form in forms}, args.rounds)
        ours = found[forms[-1]]
        for form, runs in found.items():
            times, base = ([one[0] for one in several] for several in (runs, ours))
            error = "" if runs is ours else f"{float(np.abs(runs[0][2] - ours[0][2]).max()):.1e}"
            cells = [part, form, f"{1000 * median(times):.0f}", *ratio(times, base)]
            rows.append([*cells, f"{1000 * median(one[1] for one in runs):.0f}", error])
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    print(markdown(["part", "form", "ms", "to ours", "lowest and highest", "peak MB", "error"], rows))


if __name__ == "__main__":
    main()
