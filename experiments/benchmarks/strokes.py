"""Strokes and clicks of people beside simulated ones: how much they label, how deep inside, how far outside.

    python -m experiments.benchmarks.strokes --config acdc_scribbles --data.root data/acdc
    python -m experiments.benchmarks.strokes --config voc_clicks --data.root data/VOC2012_val

The same training masks with what people drew on them, and with what each kind that is its rival simulates, at the
images' own size. Of more than eight classes, those of objects make one row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, cast

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize

from common.ops.array import Array
from common.ops.batch import IGNORE
from datamodules.simulate import EIGHT
from datamodules.supervision import Kind, Supervision, draw_annotation
from experiments.cli.doctor import load_data
from experiments.compare.columns import markdown

RIVALS: dict[str, tuple[Kind, ...]] = {"scribbles": ("human_scribbles", "scribbles"), "points": ("points",)}
MOST_ROWS = 8
Pair = tuple[Array, Array]  # a mask, and what is drawn on it
HEADS = ["drawn by", "class", "images with a stroke, %", "pixels labelled, %", "strokes", "length", "depth", "distance"]


def quartiles(values: Sequence[float]) -> str:
    """Median, and between which values 80 per cent lie."""
    if not values:
        return ""
    low, middle, high = np.percentile(values, [10, 50, 90])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def described(pairs: Sequence[Pair], classes: Sequence[int], background: int | None) -> list[str]:
    """The cells of a row. Lengths are those of skeletons, in roots of the area; depths in parts of the largest depth;
    distances from the next object in roots of the objects' area."""
    area = labelled = touched = 0
    images, strokes = 0, list[float]()
    lengths, depths, distances = list[float](), list[float](), list[float]()
    for mask, drawn in pairs:
        for label in classes:
            region = mask == label
            if not region.any():
                continue
            stroke = (drawn == label) & region
            images, touched = images + 1, touched + bool(stroke.any())
            area, labelled = area + int(region.sum()), labelled + int(stroke.sum())
            if not stroke.any():
                continue
            strokes.append(ndimage.label(stroke, EIGHT)[1])
            lengths.append(thin(stroke) / region.sum() ** 0.5)
            things = (mask != background) & (mask != IGNORE)
            if label != background:
                depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
                depths.append(float((depth[stroke] / depth.max()).mean()))
            elif things.any():
                far = ndimage.distance_transform_edt(~things)[stroke]
                distances.append(float(np.median(far) / things.sum() ** 0.5))
    return [
        f"{100 * touched / max(1, images):.0f}",
        f"{100 * labelled / max(1, area):.2f}",
        f"{np.mean(strokes or [0]):.1f}",
        *map(quartiles, (lengths, depths, distances)),
    ]


def thin(stroke: Array) -> int:
    """The length of a stroke in pixels: of its skeleton."""
    return int(skeletonize(stroke).sum())  # type: ignore[no-untyped-call]


def main() -> None:
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(__doc__)
        return
    data = load_data(sys.argv[1:])
    kind = cast(Literal["points", "scribbles"], data.supervision.kind)
    if not data.supervision.real:
        raise SystemExit("nothing of people: give a config with supervision.real, such as acdc_scribbles or voc_clicks")

    def people(name: str, mask: Array) -> Array | None:
        return data.annotation(name, kind)

    def simulated(rival: Kind) -> Callable[[str, Array], Array]:
        supervision = Supervision(rival)
        return lambda name, mask: draw_annotation(mask, supervision, data.annotation_seed, name, data.background)

    def pairs(draw: Callable[[str, Array], Array | None]) -> Iterator[Pair]:
        for name in data.names("train"):
            mask = data.mask(name)
            if mask is not None and (drawn := draw(name, mask)) is not None:
                yield mask, drawn

    classes = range(data.num_classes)
    groups = {name: [label] for label, name in enumerate(data.class_names)}
    if len(groups) > MOST_ROWS and data.background is not None:
        ground = data.background
        groups = {"background": [ground], "objects": [label for label in classes if label != ground]}
    cells = []
    for who, draw in [("people", people), *((rival, simulated(rival)) for rival in RIVALS[kind])]:
        made = [*pairs(draw)]
        cells += [[who, name, *described(made, labels, data.background)] for name, labels in groups.items()]
    print(markdown(HEADS, cells))


if __name__ == "__main__":
    main()
