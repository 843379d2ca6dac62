"""Two tones under uneven light, segmented without a label: the level-set loss without and with its bias field.

    python -m experiments.benchmarks.level_set_light experiments/results/level_set.md docs/level_set.png

Free logits (no network) are fitted to synthetic images by the loss alone; writes the table between the page's markers
`<!-- light -->` and `<!-- /light -->`, and the picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.array import Array
from common.ops.losses import total_variation_sum
from common.training.pictures import colorize, save_grid, to_uint8
from experiments.benchmarks.measure import options, spread
from experiments.compare.columns import markdown
from experiments.compare.report import fill
from methods.level_set.losses import (
    closed_form_field,
    head_field,
    reduce,
    region_variance_sum,
    roughness_sum,
    unit_mean,
)

BIAS = ("none", "closed_form", "head")
COLORS = ((60, 60, 60), (245, 190, 60))


def draw(side: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image (1, 3, side, side), truth (side, side) and light (1, 1, side, side): blobs of one tone on another."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    truth = np.zeros((side, side), bool)
    for _ in range(3):
        (v, u), (a, b) = rng.uniform(0.2, 0.8, 2), rng.uniform(0.08, 0.22, 2)
        truth |= ((y - v) / a) ** 2 + ((x - u) / b) ** 2 < 1
    turn = rng.uniform(0, 2 * np.pi)
    light = np.exp(
        0.9 * ((x - 0.5) * np.cos(turn) + (y - 0.5) * np.sin(turn)) - 1.2 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    )
    tone = np.where(truth, 0.65, 0.4) + rng.normal(0, 0.03, (3, side, side))
    valid = torch.ones(1, side, side, dtype=torch.bool)
    b = unit_mean(torch.from_numpy(light).float()[None, None], valid)
    return (torch.from_numpy(tone).float()[None] * b).clamp(0, 1), torch.from_numpy(truth), b


def split(image: Tensor, bias: str, steps: int, length_weight: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Phases (h, w) and the light that was found."""
    torch.manual_seed(0)
    height, width = image.shape[-2:]
    valid = torch.ones(1, height, width, dtype=torch.bool)
    logits = torch.randn(1, 2, height, width).requires_grad_()
    h = torch.zeros(1, 1, 5, 5).requires_grad_()  # a coarse grid, in place of a network's smooth output
    optimizer = torch.optim.Adam([logits, h], lr=0.1)
    for _ in range(steps):
        y = logits.softmax(1)
        b = None
        if bias != "none":
            smooth = F.interpolate(h, (height, width), mode="bilinear", align_corners=True)
            b = head_field(smooth, valid) if bias == "head" else closed_form_field(y, image, valid)
        loss = region_variance_sum(y, image, valid, bias=b) + length_weight * total_variation_sum(y, valid)
        if bias == "head":
            assert b is not None
            loss = loss + gamma * roughness_sum(b, valid)
        optimizer.zero_grad()
        reduce(loss, valid, "mean").backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return logits[0].argmax(0), torch.ones_like(image[:, :1]) if b is None else b.detach()


def main() -> None:
    args = options(__doc__, "page", "picture", images=6, side=64, steps=300, length_weight=3e-3, gamma=10.0)
    found: dict[str, list[tuple[float, float]]] = {bias: [] for bias in BIAS}
    rows = []
    for seed in range(args.images):
        image, truth, light = draw(args.side, seed)
        row = [to_uint8(image[0]), colorize(truth.numpy().astype(np.uint8), COLORS), grey(light)]
        for bias in BIAS:
            phases, field = split(image, bias, args.steps, args.length_weight, args.gamma)
            right = float((phases == truth).float().mean())
            if right < 0.5:
                phases, right = 1 - phases, 1 - right
            found[bias].append((100 * right, 100 * float((field / light - 1).abs().mean())))
            row += [colorize(phases.numpy().astype(np.uint8), COLORS)] + ([] if bias == "none" else [grey(field)])
        rows.append(row)
    titles = ["image", "truth", "light", "no field", "closed form", "its light", "free field", "its light"]
    save_grid(Path(args.picture), rows[:4], titles)
    lines = [[bias, *map(spread, zip(*scores, strict=True))] for bias, scores in found.items()]
    setting = f"lambda {args.length_weight:g}, gamma {args.gamma:g}, {args.steps} Adam steps on free logits"
    shown = markdown(["field", "accuracy, %", "mean error of the light, %"], lines)
    fill(Path(args.page), "light", f"{shown}\n\n{args.images} images of {args.side} px, {setting}.")


def grey(field: Tensor) -> Array:
    """A light of 0.25 to 2 as grey."""
    return to_uint8(((field[0] - 0.25) / 1.75).expand(3, -1, -1))


if __name__ == "__main__":
    main()
