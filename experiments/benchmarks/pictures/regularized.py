"""Draws docs/regularized.png: where the regularised losses pull a prediction, on synthetic scenes and without training.

    python -m experiments.benchmarks.pictures.regularized docs/regularized.png

The prediction is the truth, blurred and with noise. Of each energy the picture shows the negative gradient by the logit
of "any object": red pixels are pulled to objects, blue ones to the background.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from common.ops.affinity import dense_kernel, positions, stack_modalities, window_kernel
from common.ops.array import Array
from common.training.pictures import save_grid, to_uint8
from datamodules.sets.synthetic import Synthetic
from methods.regularized.losses import crf, gated_crf, normalized_cut


def pull(value: Tensor, logits: Tensor) -> Array:
    """(H, W, 3) uint8, white where nothing pulls; the strongest thousandth has full colour."""
    (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
    force = -gradient[0, 1]
    force = (force / force.abs().flatten().kthvalue(int(0.999 * force.numel())).values).clamp(-1, 1)
    white = 1 - force.abs()
    return to_uint8(torch.stack([white + force.clamp(min=0), white, white - force.clamp(max=0)]))


def row(data: Synthetic, name: str) -> list[Array]:
    image = torch.from_numpy(data.image(name)).permute(2, 0, 1)[None] / 255
    truth = torch.from_numpy(data.mask(name) > 0)[None, None].float()
    blurred = gaussian_blur2d(truth, (13, 13), (3.0, 3.0))
    torch.manual_seed(0)
    noise = gaussian_blur2d(torch.randn_like(truth), (13, 13), (3.0, 3.0))
    logit = 6 * (blurred - 0.4) + 8 * noise
    logits = torch.cat([-logit / 2, logit / 2], 1).requires_grad_()
    p, valid = logits.softmax(1), torch.ones_like(truth[:, 0], dtype=torch.bool)
    wide = dense_kernel(stack_modalities([(positions(image), 30.0), (255 * image, 15.0)]))
    near = window_kernel(stack_modalities([(positions(image), 6.0), (255 * image, 15.0)]))
    energies = [crf(p, wide), normalized_cut(p, wide), gated_crf(p, near, valid)]
    shown = p[0, 1].detach().expand(3, -1, -1)
    return [to_uint8(image[0]), to_uint8(shown), *(pull(energy, logits) for energy in energies)]


if __name__ == "__main__":
    scenes = Synthetic(side=96)
    rows = [row(scenes, name) for name in scenes.names("test")[:4]]
    save_grid(Path(sys.argv[1]), rows, ["image", "prediction", "dense CRF", "normalised cut", "Gated CRF"])
