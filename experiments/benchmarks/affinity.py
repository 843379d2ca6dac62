"""What a sum with a Gaussian kernel over pairs of pixels costs: over all pairs, in a window, and next to a whole step.

    OMP_NUM_THREADS=2 python -m experiments.benchmarks.affinity

The energy sum_k p_k' W (1 - p_k) of the softmax of one image's logits, forward and backward, on the CPU, with position
and colour in W (40 pixels, 15 grey levels). All pairs: the matrix as the formula stands (`naive`), rows of it computed
twice (`chunked`), exact attention (`attention`, what `dense_kernel` is). A window of radius 5: with the values of every
window side by side (`unfold`), and offset by offset (`window`, what `window_kernel` is).

The forms of a kernel alternate, and the figure is the median of the ratios of their times, because a machine's speed
drifts; memory is the peak of two steps above the inputs, each form in a process of its own. The error is the largest of
W p, relative to its largest value in float64.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.model.networks import NetworkConfig
from common.ops.affinity import chunked_sum, dense_kernel, positions, stack_modalities, window_kernel
from common.training.memory import reset_peak, resident_gb
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


def step(form: str, features: Tensor, values: Tensor) -> tuple[float, Tensor]:
    """Seconds of a forward and backward of softmax and energy, and W p."""
    values.grad = None
    since = time.perf_counter()
    p = values.softmax(1)
    out = FORMS[form](features, p)
    (out * (1 - p)).sum().backward()  # type: ignore[no-untyped-call]
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


PAIRS = {"all pairs": ("attention", ("naive", "chunked", "attention")), "window": ("window", ("unfold", "window"))}
LARGEST = {"naive": 128, "chunked": 128, "attention": 321, "unfold": 321, "window": 321}  # pixels a side


def whole_step(term: str, rounds: int, side: int = 256, batch: int = 2) -> tuple[float, float]:
    """Seconds of a whole step of Regularized (U-Net, MobileNetV2, 21 classes), and of the energy in it."""
    torch.manual_seed(0)
    model = Regularized(21, term=term, start=0, network=NetworkConfig("Unet", "mobilenet_v2"))  # type: ignore[arg-type]
    type(model).progress = property(lambda self: 1.0)  # type: ignore[method-assign, assignment]
    every = torch.ones(batch, side, side, dtype=torch.bool)
    mask = torch.randint(0, 21, (batch, side, side)).where(torch.rand(batch, side, side) < 0.03, 255)
    image = torch.cat([inputs(side, 1)[0][:, 2:5] * 15 / 255 + 0.5 for _ in range(batch)])
    logits = torch.randn(batch, 21, side, side)
    whole, energy = [], []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        model.compute_loss({"labeled": {"image": image, "mask": mask, "valid": every}}).loss.backward()  # type: ignore
        middle = time.perf_counter()
        terms = model.regularizer(logits.requires_grad_(), image, mask, every)
        sum(terms.values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
        energy.append(time.perf_counter() - middle)
        whole.append(middle - start)
        model.zero_grad()
    return median(whole[1:]), median(energy[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 96, 128, 256, 321])
    parser.add_argument("--maps", type=int, nargs="+", default=[2, 21])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(
        f"{torch.get_num_threads()} CPU threads, torch {torch.__version__}, float32; medians of {args.rounds} rounds.\n"
    )
    print("| kernel | K | pixels | form | ms | to ours | lowest and highest | peak MB | error |\n" + "|---" * 9 + "|")
    for (kernel, (ours, forms)), maps, side in itertools.product(PAIRS.items(), args.maps, args.sides):
        data = inputs(side, maps)
        exact = FORMS[ours](data[0].double(), data[1].detach().double().softmax(1)) if side <= 128 else None
        shown = [form for form in forms if side <= LARGEST[form]]
        sums = {form: step(form, *data)[1] for form in shown}
        rounds = [{form: step(form, *data)[0] for form in shown} for _ in range(args.rounds)]
        for form in shown:
            ratios = sorted(one[form] / one[ours] for one in rounds)
            cells = [kernel, str(maps), f"{side} x {side}", form, f"{1000 * median(one[form] for one in rounds):.0f}"]
            cells += [f"{median(ratios):.2f}", f"{ratios[0]:.2f}, {ratios[-1]:.2f}"]
            error = "" if exact is None else f"{float((sums[form] - exact).abs().max() / exact.max()):.1e}"
            cells += [f"{1000 * peak_memory(form, side, maps):.0f}", error]
            print("| " + " | ".join(cells) + " |", flush=True)
    print("\nA step of two images of 256 pixels with 21 classes, each term at its own stride:\n")
    print("| term | whole step, s | energy, s | share |\n|---|---|---|---|")
    for term in ("gated_crf", "crf", "normalized_cut"):
        whole, energy = whole_step(term, args.rounds)
        print(f"| {term} | {whole:.3f} | {energy:.3f} | {energy / whole:.1%} |", flush=True)


if __name__ == "__main__":
    main()
