"""What networks that learned from boxes see: image, its boxes, the predictions of some runs, and the mask.

    python -m experiments.benchmarks.pictures.boxes docs/box.png runs/filled runs/grabcut runs/box

Test images of the first run's data set; boxes are those around the masks' components. The name of a run's folder stands
over its predictions.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from common.ops.array import Array
from common.training.pictures import Color, colorize, save_grid
from datamodules.base import SegmentationDataModule
from datamodules.simulate import bounding_boxes
from experiments.runs.load import load_run

IMAGES = 5


def framed(data: SegmentationDataModule, image: Array, mask: Array) -> Array:
    """An image (H, W, 3) in grey with the boxes of its objects in their classes' colours."""
    drawn = np.repeat(image[..., :3].mean(-1, keepdims=True), 3, axis=-1).astype(np.uint8)
    assert data.background is not None
    for label, (rows, columns) in bounding_boxes(mask, data.background):
        color: Color = data.colors[label]
        inside = drawn[rows, columns].copy()
        drawn[rows, columns] = color
        drawn[rows, columns][1:-1, 1:-1] = inside[1:-1, 1:-1]
    return drawn


def main() -> None:
    if len(sys.argv) < 3 or "--help" in sys.argv:
        raise SystemExit(__doc__)
    folders = [Path(word) for word in sys.argv[2:]]
    runs = [load_run(folder) for folder in folders]
    data = runs[0].data
    names, rows = data.names("test"), []
    for name in names[:: max(1, len(names) // IMAGES)][:IMAGES]:
        image, mask = data.image(name), data.mask(name)
        assert mask is not None
        found = [colorize(run.predict(image), data.colors) for run in runs]
        rows.append([image[..., :3], framed(data, image, mask), *found, colorize(mask, data.colors)])
    save_grid(Path(sys.argv[1]), rows, ["image", "boxes", *(folder.name for folder in folders), "mask"], colors=256)


if __name__ == "__main__":
    main()
