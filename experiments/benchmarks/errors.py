"""Where the wrong pixels of runs lie on test: at the borders of the truth, far from all objects, inside of them.

    python -m experiments.benchmarks.errors runs/acdc_scribbles/scribbles/TV/seed1 runs/...  [--which best]

Each wrong pixel is counted once, in the first of these that it is:

- border: another true class is nearer than 2 % of the image's diagonal, also beyond a seam without a label,
- far: an object where there is background, farther than 10 % of the diagonal from every true object,
- near: another object where there is background,
- missed: background where there is an object,
- class: one object taken for another, or, without a background, one class for another.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from common.ops.array import Array
from common.ops.batch import IGNORE
from experiments.compare.columns import markdown
from experiments.runs.load import load_run

BORDER, FAR = 0.02, 0.1  # of the image's diagonal
KINDS = ("border", "far", "near", "missed", "class")


def count_errors(labels: Array, mask: Array, background: int | None) -> Array:
    """Wrong pixels of each of `KINDS`, and at last the number of labelled pixels.

    Args:
        labels: (H, W) predicted class ids.
        mask: (H, W) class ids or 255, which counts nowhere.
        background: its class id; None: there is none.

    Returns:
        (6,) int64.
    """
    known, diagonal = mask != IGNORE, math.hypot(*mask.shape)
    wrong = known & (labels != mask)
    nowhere = np.zeros_like(known)
    truth, found = (nowhere, nowhere) if background is None else (mask == background, labels == background)
    at = {
        "border": distance_to_another(mask) - 1 < BORDER * diagonal,  # 0 on either side of a border
        "far": truth & (distance_to(known & ~truth) > FAR * diagonal),
        "near": truth,
        "missed": found,
        "class": ~nowhere,
    }
    counts = []
    for kind in KINDS:
        counts.append((wrong & at[kind]).sum())
        wrong = wrong & ~at[kind]
    return np.array([*counts, known.sum()])


def distance_to_another(mask: Array) -> Array:
    """(H, W): pixels from each labelled one to the nearest one of another class, 1 to its neighbour; else infinite."""
    known, found = mask != IGNORE, np.full(mask.shape, np.inf)
    for one in np.unique(mask[known]):
        own = mask == one
        found[own] = distance_to(known & ~own)[own]
    return found


def distance_to(pixels: Array) -> Array:
    """(H, W): pixels to the nearest one of `pixels`; infinite if there are none."""
    if not pixels.any():
        return np.full(pixels.shape, np.inf)
    found: Array = ndimage.distance_transform_edt(~pixels)
    return found


def of_run(path: Path, which: str) -> Array:
    """`count_errors` summed over the test images of a run."""
    run = load_run(path, which)
    total = np.zeros(len(KINDS) + 1, np.int64)
    for name in run.data.names("test"):
        mask = run.data.mask(name)
        if mask is not None:
            total += count_errors(run.predict(run.data.image(name)), mask, run.data.background)
    return total


def table(runs: Sequence[Path], which: str) -> str:
    """In per cent of the labelled pixels."""
    return markdown(["run", "wrong, %", *KINDS], [[str(path), *shares_wrong(of_run(path, which))] for path in runs])


def shares_wrong(counts: Array) -> list[str]:
    """Of what `count_errors` gives: wrong pixels, and those of each kind, in per cent of the labelled ones."""
    *wrong, known = counts
    return [f"{100 * count / known:.2f}" for count in [sum(wrong), *wrong]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--which", default="last", choices=["best", "last"], help="checkpoint (last)")
    options = parser.parse_args()
    print(table(options.runs, options.which))


if __name__ == "__main__":
    main()
