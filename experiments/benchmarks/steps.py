"""What a training step of each method costs against the supervised one: time, and peak memory.

    OMP_NUM_THREADS=2 python -m experiments.benchmarks.steps

A step is `compute_loss` and its backward pass on the CPU, all terms active, with the same network and the same labelled
images; methods that learn from unlabelled images have as many of them too. The methods alternate, and the figure is
the median of the ratios of their times, because a machine's speed drifts; memory is the peak of three steps of a
process of its own, above what imports and inputs take. Methods that learn from tags are compared with the classifier.

`to its passes` compares a method with the least that its definition asks of the networks: each learns from the labelled
images and as many mixed ones, after a pass without gradient that labels these; cross entropy, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

import methods
from common.model.module import SegmentationModule
from common.model.networks import NetworkConfig, build_network
from common.ops.losses import partial_cross_entropy
from common.training.memory import keep_freed
from experiments.benchmarks.measure import alternate, at_the_end, machine, options, peak_gb, ratio, seconds
from experiments.compare.columns import markdown

CLASSES = 21
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "Supervised": ("Supervised", {}),
    "TV": ("TV", {"start": 0}),
    "LevelSet": ("LevelSet", {"start": 0}),
    "Regularized, Gated CRF": ("Regularized", {"term": "gated_crf", "start": 0}),
    "Regularized, dense CRF at stride 2": ("Regularized", {"term": "crf", "start": 0}),
    "DFR": ("DFR", {"start": 0, "confident_start": 0}),
    "CutMix-Seg": ("CutMixSeg", {}),
    "SCL": ("SCL", {}),
    "UniMatch": ("UniMatch", {}),
    "CPS": ("CPS", {}),
    "RRN": ("RRN", {"region_conv": 2}),
}
TAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "CAM": ("CAM", {}),
    "CPN": ("CPN", {}),
    "CPN without TCP": ("CPN", {"tcp_weight": 0.0}),
    "CPN without CPCR": ("CPN", {"cpcr_weight": 0.0}),
    "CPN, PCM alone": ("CPN", {"prcm": False}),
    "Group-WSSS, groups of two": ("GroupWSSS", {"group": 2}),
    "Group-WSSS, groups of one": ("GroupWSSS", {"group": 1}),
    "AA&LR": ("AALR", {}),
    "AA&LR, cross entropy alone": ("AALR", {"affinity_weight": 0.0, "reassign_weight": 0.0}),
    "AA&LR, affinity": ("AALR", {"reassign_weight": 0.0}),
    "AA&LR, reassigning": ("AALR", {"affinity_weight": 0.0}),
}
LEARNERS = {"CutMix-Seg": 1, "SCL": 1, "CPS": 2}  # networks


def build(
    name: str,
    side: int,
    batch: int,
    row: tuple[str, dict[str, Any]] | None = None,
    network: NetworkConfig = NetworkConfig("Unet", "mobilenet_v2"),  # noqa: B008 (never written to)
) -> tuple[SegmentationModule, Any]:
    """The method in training, at the end of its schedules, and a batch of what it needs; `row`: if in no table."""
    torch.manual_seed(0)
    method, options = row or {**OPTIONS, **TAGS}[name]
    found = getattr(methods, method)
    model = at_the_end(found(CLASSES, network=network, **options).train())
    plane = torch.ones(batch, side, side, dtype=torch.bool)
    key = torch.stack([torch.zeros(batch, dtype=torch.int64), torch.arange(batch)], 1)
    stream = {"image": torch.rand(batch, 3, side, side), "valid": plane, "key": key}
    mask = torch.randint(0, CLASSES, (batch, side, side)).where(torch.rand(batch, side, side) < 0.03, 255)
    tags = torch.zeros(batch, CLASSES, dtype=torch.bool)  # one or two, as images of VOC have; none of the background
    for number, one in enumerate(tags):
        one[1 + torch.randperm(CLASSES - 1)[: 1 + number % 2]] = True
    rows = torch.arange(side) // max(1, side // 16)
    superpixels = (1 + 16 * rows[:, None] + rows).expand(batch, side, side)
    streams: dict[str, Any] = {"labeled": {**stream, "mask": mask, "tags": tags, "superpixels": superpixels}}
    if "unlabeled" in found.streams:
        strong = torch.rand(batch, max(1, found.strong_views), 3, side, side)
        streams["unlabeled"] = {**stream, "mask": torch.full_like(mask, 255)}
        if found.strong_views:
            streams["unlabeled"]["strong"] = strong
    return model, streams


def prepare(name: str, side: int, batch: int) -> Callable[[], float]:
    """A step of a method, forward and backward; it returns its seconds."""
    model, streams = build(name, side, batch)

    def run() -> None:
        model.zero_grad()
        model.compute_loss(streams).loss.backward()  # type: ignore[no-untyped-call]

    return lambda: seconds(run)


def passes_alone(count: int, side: int, batch: int) -> Callable[[], float]:
    """The same of what semi-supervised learning with so many networks cannot do without."""
    torch.manual_seed(0)
    networks = [build_network(NetworkConfig("Unet", "mobilenet_v2"), CLASSES).train() for _ in range(count)]
    image, mask = torch.rand(2 * batch, 3, side, side), torch.randint(0, CLASSES, (2 * batch, side, side))

    def run() -> None:
        for network in networks:
            network.zero_grad()
            network.eval()
            with torch.no_grad():
                network(image[batch:])
            network.train()
            partial_cross_entropy(network(image), mask).backward()  # type: ignore[no-untyped-call]

    return lambda: seconds(run)


def main() -> None:
    args = options(__doc__, side=128, batch=8, rounds=5)
    keep_freed()  # as `weakseg fit` does
    print(f"U-Net with MobileNetV2, {args.batch} labelled images of {args.side} pixels, {CLASSES} classes,")
    print(f"{machine()}, {args.rounds} rounds.\n")
    sizes = (args.side, args.batch)
    forms: dict[str | int, Callable[[], float]] = {name: prepare(name, *sizes) for name in (*OPTIONS, *TAGS)}
    forms |= {count: passes_alone(count, *sizes) for count in set(LEARNERS.values())}
    alternate(forms, 1)  # memory and threads are being set up
    times = alternate(forms, args.rounds)
    for names, base in ((OPTIONS, "Supervised"), (TAGS, "CAM")):
        memory = {name: peak_gb(prepare, name, *sizes) for name in names}
        rows = []
        for name in names:
            least = ratio(times[name], times[LEARNERS[name]])[0] if name in LEARNERS else ""
            cells = [name, f"{median(times[name]):.3f}", *ratio(times[name], times[base]), least]
            rows.append([*cells, f"{memory[name]:.2f}", f"{memory[name] / memory[base]:.2f}"])
        to = f"to {base}"
        print(markdown(["method", "s/step", to, "lowest and highest", "to its passes", "peak GB", to], rows) + "\n")


if __name__ == "__main__":
    main()
