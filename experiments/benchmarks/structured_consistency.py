"""What SCL's structured term costs: every pair by N x N matrices, sampled pixels, and every pair by C x C matrices.

    python -m experiments.benchmarks.structured_consistency > experiments/results/structured_consistency.md

Times are of forward and backward on one image; the forms alternate, and the ratio is the median over rounds. Memory is
the growth of the peak of a process of its own. The last table puts the term, over all pixels, against a whole step of
SCL, which takes the pixels inside the box.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from common.model.networks import NetworkConfig
from experiments.benchmarks.measure import alternate, at_the_end, machine, options, peak_gb, ratio, seconds
from experiments.compare.columns import markdown
from methods.scl.losses import sample_pixels, structured_consistency
from methods.scl.module import SCL

SAMPLES = 512
NAIVE_LIMIT = 128  # beyond it one matrix takes 17 GB


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    """The formula as it stands, (B, C, n) each."""
    z, w = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    n = z.shape[2]
    return ((z.mT @ z - w.mT @ w) ** 2).sum((1, 2)).mean() / (n * (n - 1))


def sampled(student: Tensor, teacher: Tensor) -> Tensor:
    """The pairs among sampled pixels."""
    every = torch.ones(student[:, 0].shape, dtype=torch.bool, device=student.device)
    index, valid = sample_pixels(torch.zeros(len(student), 2, dtype=torch.int64), every, SAMPLES, seed=0)
    student, teacher = (one.gather(2, index[:, None].expand(-1, one.shape[1], -1)) for one in (student, teacher))
    return structured_consistency(student, teacher, valid, valid, "all")


def exact(student: Tensor, teacher: Tensor) -> Tensor:
    """All pairs by Gram matrices."""
    every = torch.ones(student[:, 0].shape, dtype=torch.bool, device=student.device)
    return structured_consistency(student, teacher, every, every, "all")


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"naive": naive, "sampled": sampled, "exact": exact}


def prepare(form: str, side: int, channels: int) -> Callable[[], float]:
    """Forward and backward of a form; it returns its seconds."""
    torch.manual_seed(0)
    student = torch.randn(1, channels, side * side, requires_grad=True)
    teacher = student.detach() + 0.1 * torch.randn_like(student)
    return lambda: seconds(lambda: FORMS[form](student, teacher).backward())  # type: ignore[no-untyped-call]


def steps(stride: int, side: int, batch: int) -> dict[str, Callable[[], float]]:
    """A whole step of SCL, forward and backward, and the structured term in it (21 classes)."""
    torch.manual_seed(0)
    model = at_the_end(SCL(21, stride=stride, network=NetworkConfig("Unet", "mobilenet_v2")))
    valid = torch.ones(batch, side, side, dtype=torch.bool)
    key = torch.stack([torch.zeros(batch, dtype=torch.int64), torch.arange(batch)], 1)
    mask = torch.randint(0, 21, (batch, side, side))
    stream = {"image": torch.rand(batch, 3, side, side), "mask": mask, "valid": valid, "key": key}
    p = torch.randn(batch, 21, side, side).softmax(1).requires_grad_()
    return {
        "step": lambda: seconds(lambda: model.compute_loss({"labeled": stream, "unlabeled": stream}).loss.backward()),
        "term": lambda: seconds(lambda: model.structured(p, p.detach(), valid, valid, key).backward()),
    }


def main() -> None:
    args = options(__doc__, sides=[32, 64, 128, 256], channels=[19, 64], rounds=5, batch=4)
    print(f"""# Cost of the structured consistency term

{machine()}; one image, forward and backward, medians of {args.rounds}
alternating rounds; `sampled` draws {SAMPLES} pixels; `naive` only up to {NAIVE_LIMIT} px (one of its matrices has 17 GB
at 256). Made by `python -m experiments.benchmarks.structured_consistency`.
""")
    rows = []
    for side, channels in itertools.product(args.sides, args.channels):
        forms = [form for form in FORMS if form != "naive" or side <= NAIVE_LIMIT]
        times = alternate({form: prepare(form, side, channels) for form in forms}, args.rounds)
        shown = {form: f"{1000 * median(found):.2f}" for form, found in times.items()}
        memory = {form: f"{1024 * peak_gb(prepare, form, side, channels):.0f}" for form in forms}
        faster = ratio(times["naive"], times["exact"], 0)[0] if "naive" in times else ""
        cells = [f"{side} x {side}", str(channels), *(shown.get(form, "") for form in FORMS), faster]
        rows.append([*cells, *(memory.get(form, "") for form in FORMS)])
    units = [[f"{form}, {unit}" for form in FORMS] for unit in ("ms", "MiB")]
    print(markdown(["pixels", "C", *units[0], "naive / exact", *units[1]], rows))
    print(f"\nIn a step of SCL (Unet mobilenet_v2, 256 px, {args.batch} + {args.batch} images, 21 classes):\n")
    rows = []
    for stride in (1, 4):
        whole, term = (median(found) for found in alternate(steps(stride, 256, args.batch), args.rounds).values())
        rows.append([str(stride), f"{whole:.2f}", f"{term:.4f}", f"{term / whole:.1%}"])
    print(markdown(["stride", "step, s", "structured term, s", "share"], rows))


if __name__ == "__main__":
    main()
