"""What a sum with a Gaussian kernel over all pairs of pixels costs: the matrix, rows of it, and exact attention.

    python -m experiments.benchmarks.affinity

Forward and backward of one image with K maps on the CPU, position and colour in the kernel (40 pixels, 15 grey levels).
The forms alternate, and the figure is the median of the ratios of their times, because a machine's speed drifts; memory
is the peak of two steps above the inputs, each form in a process of its own. The error is the largest, relative to
the largest sum in float64. `window` is the kernel of radius 5, another sum, for orientation.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.affinity import chunked_sum, dense_kernel, positions, stack_modalities, window_kernel
from common.memory import reset_peak, resident_gb


class Chunked(torch.autograd.Function):
    """Rows of the matrix, computed anew in the backward pass; the kernel is symmetric."""

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


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "naive": naive,
    "chunked": lambda f, v: Chunked.apply(pixels(f), pixels(v)).mT.view_as(v),
    "attention": lambda f, v: dense_kernel(f)(v),
    "window": lambda f, v: window_kernel(f)(v),
}


def inputs(side: int, maps: int) -> tuple[Tensor, Tensor]:
    """Features of a smooth image with some noise, and values that are probabilities."""
    torch.manual_seed(0)
    coarse = F.interpolate(torch.rand(1, 3, 5, 5), (side, side), mode="bilinear")
    image = 0.9 * coarse + 0.1 * torch.rand(1, 3, side, side)
    features = stack_modalities([(positions(image), 40.0), (255 * image, 15.0)])
    return features, torch.randn(1, maps, side, side).softmax(1).requires_grad_()


def step(form: str, features: Tensor, values: Tensor) -> tuple[float, Tensor]:
    """Seconds of a forward and backward, and the sum."""
    values.grad = None
    since = time.perf_counter()
    out = FORMS[form](features, values)
    (out * values.detach()).sum().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - since, out.detach()


def own_peak(form: str, side: int, maps: int) -> float:
    """Peak GB of two steps above what imports and inputs take."""
    data = inputs(side, maps)
    before = resident_gb("VmRSS")
    reset_peak()  # importing had its own
    for _ in range(2):
        step(form, *data)
    return resident_gb("VmHWM") - before


def peak_memory(form: str, side: int, maps: int) -> float:
    """The same in GB, in a process of its own."""
    code = f"from experiments.benchmarks.affinity import own_peak; print(own_peak('{form}', {side}, {maps}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 96, 128])
    parser.add_argument("--maps", type=int, default=21)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"{args.maps} maps, {torch.get_num_threads()} CPU threads, torch {torch.__version__}; medians of")
    print(f"{args.rounds} alternating rounds. Peak memory is above the inputs.\n")
    print("| pixels | form | s/step | form / attention | lowest and highest | peak GB | error |")
    print("|---" * 7 + "|")
    for side in args.sides:
        data = inputs(side, args.maps)
        exact = dense_kernel(data[0].double())(data[1].detach().double())
        errors = {form: float((step(form, *data)[1] - exact).abs().max() / exact.max()) for form in FORMS}
        rounds = [{form: step(form, *data)[0] for form in FORMS} for _ in range(args.rounds)]
        for form in FORMS:
            ratios = sorted(one[form] / one["attention"] for one in rounds)
            cells = [f"{side} x {side}", form, f"{median(one[form] for one in rounds):.4f}", f"{median(ratios):.2f}"]
            error = "" if form == "window" else f"{errors[form]:.1e}"
            cells += [f"{ratios[0]:.2f}, {ratios[-1]:.2f}", f"{peak_memory(form, side, args.maps):.2f}", error]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
