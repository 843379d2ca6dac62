"""What RRN's discriminators and the agreement of its networks say of regions, and how right these are.

    python -m experiments.benchmarks.pictures.rrn runs/synthetic_few/1_8/RRN/seed0 docs/rrn.png

Test scenes and the first network of a run of RRN, as `weakseg study synthetic_few` makes it. A map is black at the
lowest of its values and white at the highest; its title says which these are.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.ops.array import Array
from common.training.pictures import colorize, save_grid, to_uint8
from experiments.runs.load import load_run
from methods.rrn.losses import at_pixels, region_means, region_reliability, region_scores

SCENES = 5


@torch.no_grad()
def regions(model: Any, image: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The first network's labels (H, W), and by region the share of right ones, the score and the weight, (G, G')."""
    q = torch.stack([network(image).softmax(1) for network in model.networks])
    valid, labels = torch.ones_like(mask, dtype=torch.bool), q[0].argmax(1)
    right, _ = region_means((labels == mask).float(), valid, model.cell)
    score = region_scores(model.judge(q, image, valid), model.score)[0]
    weight = region_reliability(q, valid, model.cell, model.diversity)
    return labels[0], {"right pixels": right[0], "score": score[0], "weight": weight[0]}


def main(run_dir: Path, path: Path) -> None:
    run = load_run(run_dir)
    model: Any = run.model.eval()
    rows: list[list[Array]] = []
    maps: list[dict[str, Tensor]] = []
    for batch in itertools.islice(run.data.test_dataloader(), SCENES):
        image, mask = batch["image"].float() / 255, batch["mask"]
        labels, found = regions(model, image, mask)
        rows.append([to_uint8(image[0]), *(colorize(one.numpy(), run.data.colors) for one in (mask[0], labels))])
        maps.append(found)
    titles = ["image", "truth", "prediction"]
    for name in maps[0]:
        low, high = (float(get(torch.stack([one[name] for one in maps]))) for get in (torch.min, torch.max))
        titles.append(f"{name}, {low:.2f} to {high:.2f}")
        for row, one in zip(rows, maps, strict=True):
            height, width = row[0].shape[:2]
            plane = at_pixels((one[name][None] - low) / (high - low), (height, width), model.cell)
            row.append(to_uint8(plane.expand(3, -1, -1)))
    save_grid(path, rows, titles)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
