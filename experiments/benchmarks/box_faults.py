"""What faults of real data do to proposals, one at a time, on synthetic rooms, where the truth is known.

    python -m experiments.benchmarks.box_faults

Poses that were estimated, boxes of coarse polygons, objects without a box: each is put into rooms with the depth noise
of a sensor, a quarter of whose views have boxes. Proposals by votes, compared with the exact masks over all pixels, 255
counted as background; mean and standard deviation over the seeds, which draw views and faults.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from datamodules.sets.rooms import Rooms
from datamodules.supervision import Supervision
from experiments.benchmarks.measure import options, spread
from experiments.compare.columns import markdown
from experiments.runs.propose import How, Round, check_data

FAULTS: dict[str, dict[str, float]] = {
    "none": {},
    "poses by 0.5 cm, 0.25°": {"centimetres": 0.5, "degrees": 0.25},
    "poses by 1 cm, 0.5°": {"centimetres": 1, "degrees": 0.5},
    "poses by 2 cm, 1°": {"centimetres": 2, "degrees": 1},
    "sides of boxes by 2 pixels": {"pixels": 2},
    "sides of boxes by 5 pixels": {"pixels": 5},
    "a tenth of the boxes missing": {"missing": 0.1},
    "a quarter of the boxes missing": {"missing": 0.25},
}


def turned(pose: torch.Tensor, centimetres: float, degrees: float, rng: np.random.Generator) -> torch.Tensor:
    """A pose world to camera (4, 4) whose camera was moved along each axis, and turned about each, by normal errors of
    these standard deviations."""
    x, y, z = torch.from_numpy(np.deg2rad(rng.normal(0, degrees, 3)))
    error = torch.eye(4, dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
    error[:3, :3] = torch.linalg.matrix_exp(cross)
    error[:3, 3] = torch.from_numpy(rng.normal(0, centimetres / 100, 3))
    return error @ pose


def spoil(
    data: Rooms, seed: int, centimetres: float = 0, degrees: float = 0, pixels: float = 0, missing: float = 0
) -> None:
    """Put faults into a data set.

    Args:
        pixels: standard deviation by which each side of a box is moved.
        missing: share of the boxes that nobody has drawn.
    """
    rng = np.random.default_rng(seed)
    views = {}
    for name, view in data.views.items():
        assert view.pose is not None
        views[name] = view._replace(pose=turned(view.pose, centimetres, degrees, rng))
    data.views = views
    drawn: dict[str, list[list[float]]] = {}
    for name, boxes in data.boxed.items():
        wide, high = data.width - 1, data.width * 3 // 4 - 1
        drawn[name] = []
        for *sides, label in boxes:
            x0, y0, x1, y1 = np.clip(np.rint(np.array(sides) + rng.normal(0, pixels, 4)), 0, [wide, high] * 2)
            if rng.random() >= missing and x0 <= x1 and y0 <= y1:
                drawn[name].append([x0, y0, x1, y1, label])
    data.__dict__["boxed"] = drawn


def proposals(fault: dict[str, float], seed: int, rooms: int, around: int) -> dict[str, Any]:
    """What a round says of itself, and how far depths agree."""
    boxes = Supervision("boxes", real=True, fraction=0.25, inside="filled")
    data = Rooms(rooms, 1, 1, around, supervision=boxes, seed=seed)
    boxed = data.lists()[0]
    spoil(data, seed, **fault)
    with tempfile.TemporaryDirectory() as folder:
        about = {"classes": [*data.class_names]}
        return Round(check_data(data), boxed, How()).write(Path(folder) / "made", False, about)


def main() -> None:
    given = options(__doc__, rooms=4, around=20, seeds=[0, 1, 2])
    cells = []
    for name, fault in FAULTS.items():
        found = [proposals(fault, seed, given.rooms, given.around) for seed in given.seeds]
        agreed = [100 * mean(one["agreement"].values()) for one in found]
        scores = [[one[key] for one in found] for key in ("miou_all_unboxed", "miou_all_boxed")]
        cells.append([name, *map(spread, [agreed, *scores])])
        print(*cells[-1], sep=" | ", flush=True)
    heads = ["fault", "depth that agrees, %", "views without boxes", "views with boxes"]
    print("\n" + markdown(heads, cells))


if __name__ == "__main__":
    main()
