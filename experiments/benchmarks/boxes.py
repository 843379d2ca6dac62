"""What boxes are worth with depth, on synthetic rooms: proposals by votes, by GrabCut and by filled boxes.

    python -m experiments.benchmarks.boxes --output boxes.md

Views of `Rooms` in training, with the depth noise of a sensor; mIoU in per cent against their masks over all pixels,
255 counted as background, mean and standard deviation over draws of the boxed views. No network takes part.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from common.model.metrics import SegmentationMetrics
from common.ops.batch import IGNORE
from common.training.files import write_text
from datamodules.annotation import people_boxes
from datamodules.sets.rooms import Rooms
from datamodules.supervision import Supervision
from experiments.benchmarks.measure import machine
from experiments.compare.columns import markdown
from experiments.runs.propose import How, Round, check_data

SHARES = (0.05, 0.1, 0.25)
WAYS = {
    "mean": How(),
    "veto": How("veto"),
    "mean, GrabCut": How(refine="grabcut"),
    "mean, voxels": How(cloud="voxel"),
    "mean, no visibility": How(hidden=False),
}


def rooms(number: int, around: int, share: float, seed: int, inside: str = "filled") -> Rooms:
    boxes = Supervision("boxes", real=True, fraction=share, inside=inside, seed=seed)  # type: ignore[arg-type]
    return Rooms(number, 1, 1, around, supervision=boxes)


def by_itself(data: Rooms, boxed: list[str]) -> float:
    """mIoU of boxed views, each by its own boxes as `supervision.inside` says."""
    metric = SegmentationMetrics(data.num_classes)
    for name in boxed:
        image, mask = data.image(name), data.mask(name)
        drawn = people_boxes(data.boxes(name), mask.shape, mask.shape, data, image)
        made = torch.from_numpy(drawn.astype(np.int64))[None]
        metric.update(made.masked_fill(made == IGNORE, 0), torch.from_numpy(mask.astype(np.int64))[None])
    return float(metric.compute()["miou"])


def votes(data: Rooms, boxed: list[str], how: How) -> tuple[float, float, float]:
    """mIoU of the views without boxes and with, and the share of pixels without a label in per cent."""
    with tempfile.TemporaryDirectory() as folder:
        about = {"classes": [*data.class_names]}
        report = Round(check_data(data), boxed, how).write(Path(folder) / "made", False, about)
    return report["miou_all_unboxed"], report["miou_all_boxed"], 100 * report["unlabeled"]


def cell(values: list[float]) -> str:
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def large_room() -> str:
    """Seconds and memory of a round over one room of 50 views."""
    data = rooms(1, 50, 0.25, 0)
    boxed = data.lists()[0]
    for name in data.names("train"):
        data.image(name)  # rendered
    before, since = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    votes(data, boxed, How())
    seconds, after = time.process_time() - since, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (
        f"A room of 50 views of 160 x 120 pixels, {len(boxed)} of them with boxes: {seconds:.1f} s of one core, and "
        f"{max(0, after - before) / 1024:.0f} MiB above the {before / 1024:.0f} MiB of the process with its data."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rooms", type=int, default=4)
    parser.add_argument("--around", type=int, default=20)
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    large = large_room()
    rows: list[list[str]] = []
    for share in SHARES:
        found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
        filled, cut, count = [], [], 0
        for seed in range(options.draws):
            data = rooms(options.rooms, options.around, share, seed)
            boxed, count = data.lists()[0], len(data.lists()[0])
            filled.append(by_itself(data, boxed))
            cut.append(by_itself(rooms(options.rooms, options.around, share, seed, "grabcut"), boxed))
            for way, how in WAYS.items():
                found[way].append(votes(data, boxed, how))
            print(share, seed, flush=True)
        name = f"{share:.0%} ({count} of {options.rooms * options.around})"
        rows += [[name, "boxes filled", "", cell(filled), ""], [name, "GrabCut in boxes", "", cell(cut), ""]]
        for way, values in found.items():
            rows.append([name, f"votes: {way}", *(cell(list(column)) for column in zip(*values, strict=True))])
    head = ["views with boxes", "labels by", "views without boxes", "views with boxes", "without a label, %"]
    table = markdown(head, rows)
    write_text(options.output, f"{machine()}\n\n{options.draws} draws.\n\n{table}\n\n{large}\n")


if __name__ == "__main__":
    main()
