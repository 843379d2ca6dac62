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
    """Cells with a label and a mask, how many are right; those of them that were reassigned, how many of these were and
    are right; those that lost their label, and how many of these were right."""

    labelled: int
    right: int
    changed: int
    changed_right_before: int
    changed_right_after: int
    dropped: int
    dropped_right: int


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
    _, after, _ = reassigned(similarities(embedding, model.centres), known, candidates)
    return known[0], after[0]


def measure(run: Run, split: Any, count: int) -> Found:
    """Counts over `count` images spread over a split."""
    model: Any = run.model
    device, total = model.centres.device, torch.zeros(len(Found._fields), dtype=torch.int64)
    for image, tags, mask in images(run, split, count):
        before, after = (one.cpu() for one in cells_of(model, image.to(device), tags.to(device)))
        small = F.interpolate(mask[None, None].float(), image.shape[1:], mode="nearest-exact")[0].long()
        truth = model.at_cells(small, torch.ones_like(before[None], dtype=torch.bool))[0]
        seen = (before != IGNORE) & (truth != IGNORE)
        changed = seen & (after != IGNORE) & (after != before)
        dropped = seen & (after == IGNORE)
        right, mended = before == truth, after == truth
        counted = (seen, seen & right, changed, changed & right, changed & mended, dropped, dropped & right)
        total += torch.stack([one.sum() for one in counted])
    return Found(*total.tolist())


def report(found: Found) -> str:
    """What was found, in words."""

    def share(part: int, whole: int) -> str:
        return f"{part / max(1, whole):.1%}"

    kept = found.labelled - found.dropped
    right = found.right - found.dropped_right + found.changed_right_after - found.changed_right_before
    changed = f"{share(found.changed_right_before, found.changed)} of these were right"
    lines = [
        f"{found.labelled} cells with a label, {share(found.right, found.labelled)} of them right",
        f"{share(found.changed, found.labelled)} reassigned: {changed}, "
        f"{share(found.changed_right_after, found.changed)} are",
        f"{share(found.dropped, found.labelled)} without a label afterwards: "
        f"{share(found.dropped_right, found.dropped)} of these were right",
        f"{share(right, kept)} of the labels that are left are right",
    ]
    return "\n".join(lines)


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
