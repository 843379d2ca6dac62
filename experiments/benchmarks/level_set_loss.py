"""What the moment form of the level-set data term saves against the naive form, which has a (B, N, C, H, W) tensor.

    python -m experiments.benchmarks.level_set_loss

Softmax, loss and backward from logits, on the CPU. The two forms alternate, and the figure is the median of the ratios
of their times, because a machine's speed drifts; memory is the peak of two steps above the inputs, each form in a
process of its own. `none` is softmax and backward without the loss.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from common.training.memory import reset_peak, resident_gb
from methods.level_set.losses import EPS, region_variance


def naive(y: Tensor, x: Tensor, valid: Tensor) -> Tensor:
    """`region_variance`, as the formula stands."""
    v, y, x = valid[:, None, None].to(y.dtype), y[:, :, None], x[:, None]
    c = ((v * x * y).sum((3, 4), keepdim=True) / ((v * y).sum((3, 4), keepdim=True) + EPS)).detach()
    return (v * (x - c) ** 2 * y).sum() / valid.sum()


def nothing(y: Tensor, x: Tensor, valid: Tensor) -> Tensor:
    """The rest of a step."""
    return y.square().mean()


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "none": nothing,
    "naive": naive,
    "moments": region_variance,
}


def inputs(size: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, image and valid plane of (B, N, H, W)."""
    torch.manual_seed(0)
    batch, _, height, width = size
    x = torch.rand(batch, 3, height, width)
    return torch.randn(size).requires_grad_(), x, torch.ones(batch, height, width, dtype=torch.bool)


def step(form: str, z: Tensor, x: Tensor, valid: Tensor) -> tuple[float, float]:
    """Seconds of a forward and backward, and the loss."""
    z.grad = None
    since = time.perf_counter()
    loss = FORMS[form](z.softmax(1), x, valid)
    loss.backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - since, float(loss.detach())


def own_peak(form: str, size: tuple[int, int, int, int]) -> float:
    """Peak GB of two steps above what imports and inputs take."""
    data = inputs(size)
    before = resident_gb("VmRSS")
    reset_peak()  # importing had its own
    for _ in range(2):
        step(form, *data)
    return resident_gb("VmHWM") - before


def peak_memory(form: str, size: tuple[int, int, int, int]) -> float:
    """The same in GB, in a process of its own."""
    code = f"from experiments.benchmarks.level_set_loss import own_peak; print(own_peak('{form}', {size}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--phases", type=int, nargs="+", default=[21, 2])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    shape = f"{args.batch} x N x {args.side} x {args.side}"
    print(f"Logits {shape}, 3 channels, {torch.get_num_threads()} CPU threads, torch", end=" ")
    print(f"{torch.__version__}; medians of {args.rounds} alternating rounds. Peak memory is above the inputs.\n")
    print("| N | loss | s/step | naive / moments | lowest and highest | peak GB | difference of the values |")
    print("|---" * 7 + "|")
    for phases in args.phases:
        size = (args.batch, phases, args.side, args.side)
        data = inputs(size)
        for form in FORMS:
            step(form, *data)  # threads and memory are being set up
        rounds = [{form: step(form, *data) for form in FORMS} for _ in range(args.rounds)]
        memory = {form: peak_memory(form, size) for form in FORMS}
        ratios = sorted(one["naive"][0] / one["moments"][0] for one in rounds)
        apart = max(abs(one["moments"][1] / one["naive"][1] - 1) for one in rounds)
        for form in FORMS:
            seconds = median(one[form][0] for one in rounds)
            compared = f"{median(ratios):.2f} | {ratios[0]:.2f}, {ratios[-1]:.2f}" if form == "moments" else "|"
            difference = f"{apart:.1e}" if form == "moments" else ""
            print(f"| {phases} | {form} | {seconds:.3f} | {compared} | {memory[form]:.2f} | {difference} |")


if __name__ == "__main__":
    main()
