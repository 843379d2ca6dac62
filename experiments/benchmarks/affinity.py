"""What a sum with a Gaussian kernel over pairs of pixels costs: over all pairs, in a window, and next to a whole step.

    OMP_NUM_THREADS=2 python -m experiments.benchmarks.affinity

The energy sum_k p_k' W (1 - p_k) of the softmax of one image's logits, forward and backward, on the CPU, with position
and colour in W (40 pixels, 15 grey levels). All pairs: the matrix as the formula stands (`naive`), rows of it computed
twice (`chunked`), exact attention (`attention`, what `dense_kernel` is). A window of radius 5: with the values of every
window side by side (`unfold`), and offset by offset (`window`, what `window_kernel` is).

Memory is the peak of a step above the inputs, each form in a process of its own. The error is the largest of
W p, relative to its largest value in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.model.networks import NetworkConfig
from common.ops.affinity import chunked_sum, dense_kernel, positions, stack_modalities, window_kernel
from experiments.benchmarks.measure import alternate, at_the_end, machine, options, peak_gb, ratio, seconds
from experiments.compare.columns import markdown
from methods.regularized.module import Regularized


class Chunked(torch.autograd.Function):
    """Rows of the matrix, computed again in the backward pass; the kernel is symmetric."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        return chunked_sum(features, features, values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (features,) = ctx.saved_tensors
        return None, chunked_sum(features, features, gradient)


def pixels(maps: Tensor) -> Tensor:
    return maps.flatten(2).mT


def naive(features: Tensor, values: Tensor) -> Tensor:
    """The matrix, as the formula stands."""
    f = pixels(features)
    return (torch.cdist(f, f).square().mul(-0.5).exp() @ pixels(values)).mT.view_as(values)


def unfold(features: Tensor, values: Tensor) -> Tensor:
    """The window's kernel with all neighbours of all pixels at once."""
    channels, maps = features.shape[1], values.shape[1]
    n = features[0, 0].numel()
    inside = F.unfold(torch.ones_like(features[:, :1]), 11, padding=5)  # (B, 121, N); 0 outside the image
    near = F.unfold(features, 11, padding=5).view(-1, channels, 121, n)
    weight = (-0.5 * (near - features.view(-1, channels, 1, n)).square().sum(1)).exp() * inside
    weight[:, 60] = 0  # the centre
    patches = F.unfold(values, 11, padding=5).view(-1, maps, 121, n)
    return (patches * weight[:, None]).sum(2).view_as(values)


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "naive": naive,
    "chunked": lambda f, v: Chunked.apply(pixels(f), pixels(v)).mT.view_as(v),
    "attention": lambda f, v: dense_kernel(f)(v),
    "unfold": unfold,
    "window": lambda f, v: window_kernel(f)(v),
}


def inputs(side: int, maps: int) -> tuple[Tensor, Tensor]:
    """Features of a smooth image with some noise, and logits."""
    torch.manual_seed(0)
    coarse = F.interpolate(torch.rand(1, 3, 5, 5), (side, side), mode="bilinear")
    image = 0.9 * coarse + 0.1 * torch.rand(1, 3, side, side)
    features = stack_modalities([(positions(image), 40.0), (255 * image, 15.0)])
    return features, torch.randn(1, maps, side, side).requires_grad_()


def prepare(form: str, side: int, maps: int) -> Callable[[], float]:
    """A forward and backward of softmax and energy; it returns its seconds."""
    features, values = inputs(side, maps)

    def run() -> None:
        values.grad = None
        p = values.softmax(1)
        (FORMS[form](features, p) * (1 - p)).sum().backward()  # type: ignore[no-untyped-call]

    return lambda: seconds(run)


@torch.no_grad()
def errors(forms: Sequence[str], ours: str, side: int, maps: int) -> dict[str, str]:
    """Of W p, where the exact one fits into memory."""
    if side > 128:
        return dict.fromkeys(forms, "")
    features, values = inputs(side, maps)
    exact = FORMS[ours](features.double(), values.double().softmax(1))
    sums = {form: FORMS[form](features, values.softmax(1)) for form in forms}
    return {form: f"{float((found - exact).abs().max() / exact.max()):.1e}" for form, found in sums.items()}


PAIRS = {"all pairs": ("attention", ("naive", "chunked", "attention")), "window": ("window", ("unfold", "window"))}
LARGEST = {"naive": 128, "chunked": 128, "attention": 321, "unfold": 321, "window": 321}  # pixels a side


def steps(term: str, side: int = 256, batch: int = 2) -> dict[str, Callable[[], float]]:
    """A whole step of Regularized (U-Net, MobileNetV2, 21 classes), and the energy in it."""
    torch.manual_seed(0)
    network = NetworkConfig("Unet", "mobilenet_v2")
    model = at_the_end(Regularized(21, term=term, start=0, network=network))  # type: ignore[arg-type]
    every = torch.ones(batch, side, side, dtype=torch.bool)
    mask = torch.randint(0, 21, (batch, side, side)).where(torch.rand(batch, side, side) < 0.03, 255)
    image = torch.cat([inputs(side, 1)[0][:, 2:5] * 15 / 255 + 0.5 for _ in range(batch)])
    labeled = {"image": image, "mask": mask, "valid": every}
    logits = torch.randn(batch, 21, side, side).requires_grad_()
    return {
        "whole": lambda: seconds(lambda: model.compute_loss({"labeled": labeled}).loss.backward()),
        "energy": lambda: seconds(lambda: sum(model.regularizer(logits, image, mask, every).values()).backward()),
    }


def main() -> None:
    args = options(__doc__, sides=[64, 96, 128, 256, 321], maps=[2, 21], rounds=3)
    print(f"{machine()}, float32; medians of {args.rounds} rounds.\n")
    rows = []
    for (kernel, (ours, every)), maps, side in itertools.product(PAIRS.items(), args.maps, args.sides):
        forms = {form: prepare(form, side, maps) for form in every if side <= LARGEST[form]}
        alternate(forms, 1)  # threads and memory are being set up
        times, wrong = alternate(forms, args.rounds), errors([*forms], ours, side, maps)
        for form in forms:
            cells = [kernel, str(maps), f"{side} x {side}", form, f"{1000 * median(times[form]):.0f}"]
            cells += [*ratio(times[form], times[ours]), f"{1000 * peak_gb(prepare, form, side, maps):.0f}"]
            rows.append([*cells, wrong[form]])
    print(markdown(["kernel", "K", "pixels", "form", "ms", "to ours", "lowest and highest", "peak MB", "error"], rows))
    print("\nA step of two images of 256 pixels with 21 classes, each term at its own stride:\n")
    rows = []
    for term in ("gated_crf", "crf", "normalized_cut"):
        forms = steps(term)
        alternate(forms, 1)
        whole, energy = (median(found) for found in alternate(forms, args.rounds).values())
        rows.append([term, f"{whole:.3f}", f"{energy:.3f}", f"{energy / whole:.1%}"])
    print(markdown(["term", "whole step, s", "energy, s", "share"], rows))


if __name__ == "__main__":
    main()
