"""Whether AA&LR's reassigned labels are better ones: how many of them are right, before and after.

    python -m experiments.benchmarks.reassigned RUN --split train --images 200

Labels are those of the run's last network: of its maps by the tags of each image, and what the class centres make of
them, cell by cell. Masks are looked at here alone; training has seen none.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.batch import IGNORE
from common.ops.tensors import valid_cells
from experiments.benchmarks.cam_quality import images
from experiments.runs.load import Run, load_run
from methods.aalr.losses import reassigned, similarities
from methods.aalr.module import AALR


class Found(NamedTuple):
    """Cells with a label and a mask, those of them that were reassigned, and how many of which are right."""

    labelled: int
    right: int
    changed: int
    changed_right_before: int
    changed_right_after: int


@torch.no_grad()
def cells_of(model: AALR, image: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (h, w) of the cells of an image (3, H, W) with `tags` (K,), and what they are after reassigning."""
    valid = torch.ones_like(image[:1], dtype=torch.bool)
    stream: Any = {"image": image[None], "tags": tags[None], "valid": valid}
    labels, _ = model.online_labels(stream)
    cells = valid_cells(valid, model.stride)
    known = model.at_cells(labels, cells)
    size = (image.shape[1], image.shape[2])
    embedding = model.embed(model.network.decode(*model.network.encode(image[None])), size)
    candidates = tags[None].clone()
    candidates[:, 0] = True
    candidates &= model.centres.any(1)
    nobody = torch.zeros_like(known, dtype=torch.bool)
    _, after, _ = reassigned(similarities(embedding, model.centres), known, candidates, nobody)
    return known[0], after[0]


def measure(run: Run, split: Any, count: int) -> Found:
    """Counts over `count` images spread over a split."""
    model: Any = run.model
    device, total = model.centres.device, torch.zeros(5, dtype=torch.int64)
    for image, tags, mask in images(run, split, count):
        before, after = (one.cpu() for one in cells_of(model, image.to(device), tags.to(device)))
        small = F.interpolate(mask[None, None].float(), image.shape[1:], mode="nearest-exact")[0].long()
        truth = model.at_cells(small, torch.ones_like(before[None], dtype=torch.bool))[0]
        seen = (before != IGNORE) & (truth != IGNORE)
        changed = seen & (after != IGNORE) & (after != before)
        right, mended = before == truth, after == truth
        total += torch.stack([one.sum() for one in (seen, seen & right, changed, changed & right, changed & mended)])
    return Found(*total.tolist())


def report(found: Found) -> str:
    """What was found, in words."""
    share, of_changed = found.changed / max(1, found.labelled), max(1, found.changed)
    net = found.changed_right_after - found.changed_right_before
    return (
        f"{found.labelled} cells with a label, {found.right / max(1, found.labelled):.1%} of them right\n"
        f"{share:.2%} reassigned: {found.changed_right_before / of_changed:.1%} of these were right, "
        f"{found.changed_right_after / of_changed:.1%} are ({net / max(1, found.labelled):+.2%} of all)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="of AALR with reassign_weight above 0")
    parser.add_argument("--which", choices=["best", "last"], default="last")
    parser.add_argument("--split", choices=["train", "val", "test"], default="train")
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    run = load_run(options.run, options.which)
    if not isinstance(run.model, AALR) or run.model.embedding is None:
        raise SystemExit(f"{options.run} is no run of AALR that reassigns labels")
    if torch.cuda.is_available():
        run.model.cuda()
    print(report(measure(run, options.split, options.images)))


if __name__ == "__main__":
    main()
