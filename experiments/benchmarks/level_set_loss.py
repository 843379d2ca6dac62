"""What the level-set data term without a (B, N, C, H, W) tensor saves against the naive form, which has one.

    python -m experiments.benchmarks.level_set_loss

Softmax, loss and backward from logits, on the CPU. The two forms alternate, and the figure is the median of the ratios
of their times, because a machine's speed drifts; memory is the peak of two steps above the inputs, each form in a
process of its own. `none` is softmax and backward without the loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from experiments.benchmarks.measure import alternate, machine, options, peak_gb, ratio
from experiments.compare.columns import markdown
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
    "ours": region_variance,
}


def prepare(form: str, *size: int) -> Callable[[], tuple[float, float]]:
    """Forward and backward from logits (B, N, H, W); it returns its seconds, and the loss."""
    torch.manual_seed(0)
    x = torch.rand(size[0], 3, *size[2:])
    z, valid = torch.randn(size).requires_grad_(), torch.ones(x[:, 0].shape, dtype=torch.bool)

    def run() -> tuple[float, float]:
        z.grad = None
        since = time.perf_counter()
        loss = FORMS[form](z.softmax(1), x, valid)
        loss.backward()  # type: ignore[no-untyped-call]
        return time.perf_counter() - since, float(loss.detach())

    return run


def main() -> None:
    args = options(__doc__, batch=8, phases=[21, 2], side=512, rounds=7)
    shape = f"{args.batch} x N x {args.side} x {args.side}"
    print(f"Logits {shape}, 3 channels, {machine()};\nmedians of {args.rounds} alternating rounds.", end=" ")
    print("Peak memory is above the inputs.\n")
    rows = []
    for phases in args.phases:
        size = (args.batch, phases, args.side, args.side)
        forms = {form: prepare(form, *size) for form in FORMS}
        alternate(forms, 1)  # threads and memory are being set up
        found = alternate(forms, args.rounds)
        times = {form: [seconds for seconds, _ in one] for form, one in found.items()}
        pairs = zip(found["ours"], found["naive"], strict=True)
        pairs = zip(found["ours"], found["naive"], strict=True)
        apart = max(abs(ours / theirs - 1) for (_, ours), (_, theirs) in pairs)
        for form in FORMS:
            ours = form == "ours"
            compared = ratio(times["naive"], times["ours"]) if ours else ["", ""]
            cells = [str(phases), form, f"{median(times[form]):.3f}", *compared, f"{peak_gb(prepare, form, *size):.2f}"]
            rows.append([*cells, f"{apart:.1e}" if ours else ""])
    head = ["N", "loss", "s/step", "naive / ours", "lowest and highest", "peak GB", "difference of the values"]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
