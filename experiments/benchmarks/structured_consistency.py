"""What SCL's structured term costs: every pair by N x N matrices, sampled pixels, and every pair by C x C matrices.

    python -m experiments.benchmarks.structured_consistency > experiments/results/structured_consistency.md

Times are of forward and backward on one image; the forms alternate, and the ratio is the median over rounds. Memory is
the growth of the peak of a process of its own. The last table puts the term, over all pixels, against a whole step of
SCL, which takes the pixels inside the box.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from common.model.networks import NetworkConfig
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


def seconds(form: str, side: int, channels: int, repeats: int) -> float:
    """Of forward and backward, the lowest of some repeats."""
    torch.manual_seed(0)
    student = torch.randn(1, channels, side * side, requires_grad=True)
    teacher = student.detach() + 0.1 * torch.randn_like(student)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        FORMS[form](student, teacher).backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - start)
    return min(times)


def peak_mib(form: str, side: int, channels: int) -> float:
    """Growth of the peak memory of a process that computes the loss and its gradient once."""
    code = (
        "from common.training.memory import *; from experiments.benchmarks.structured_consistency import seconds\n"
        "seconds('exact', 8, 4, 1); before = resident_gb('VmRSS'); reset_peak()\n"
        f"seconds('{form}', {side}, {channels}, 1); print(1024 * (resident_gb('VmHWM') - before))"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def step(stride: int, side: int, batch: int, rounds: int) -> tuple[float, float]:
    """Seconds of a whole step of SCL, forward and backward, and of the structured term in it (21 classes)."""
    torch.manual_seed(0)
    model = SCL(21, stride=stride, network=NetworkConfig("Unet", "mobilenet_v2"))
    type(model).progress = property(lambda self: 1.0)  # type: ignore[method-assign, assignment]
    stream = {
        "image": torch.rand(batch, 3, side, side),
        "mask": torch.randint(0, 21, (batch, side, side)),
        "valid": torch.ones(batch, side, side, dtype=torch.bool),
        "key": torch.stack([torch.zeros(batch, dtype=torch.int64), torch.arange(batch)], 1),
    }
    logits = torch.randn(batch, 21, side, side)
    whole, term = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        model.compute_loss({"labeled": stream, "unlabeled": stream}).loss.backward()  # type: ignore
        middle = time.perf_counter()
        p = logits.softmax(1).requires_grad_()
        between = time.perf_counter()
        model.structured(p, logits.softmax(1), stream["valid"], stream["valid"], stream["key"]).backward()  # type: ignore
        whole.append(middle - start)
        term.append(time.perf_counter() - between)
        model.zero_grad()
    return median(whole), median(term)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--channels", type=int, nargs="+", default=[19, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    print("# Cost of the structured consistency term\n")
    print(f"{torch.get_num_threads()} CPU threads, torch {torch.__version__}, Python {platform.python_version()}; one")
    print(
        f"image, forward and backward, medians of {args.rounds} alternating rounds; `sampled` draws {SAMPLES} pixels;"
    )
    print(f"`naive` only up to {NAIVE_LIMIT} px (one of its matrices has 17 GB at 256). Made by")
    print("`python -m experiments.benchmarks.structured_consistency`.\n")
    print(
        "| pixels | C | naive, ms | sampled, ms | exact, ms | naive / exact | naive, MiB | sampled, MiB | exact, MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for side in args.sides:
        for channels in args.channels:
            forms = [form for form in FORMS if form != "naive" or side <= NAIVE_LIMIT]
            times: dict[str, list[float]] = {form: [] for form in forms}
            for _ in range(args.rounds):
                for form in forms:
                    times[form].append(seconds(form, side, channels, 1 if form == "naive" else 3))
            memory = {form: f"{peak_mib(form, side, channels):.0f}" for form in forms}
            milliseconds = {form: f"{1000 * median(found):.2f}" for form, found in times.items()}
            ratio = (
                f"{median(a / b for a, b in zip(times['naive'], times['exact'], strict=True)):.0f}"
                if "naive" in times
                else ""
            )
            cells = [milliseconds.get(form, "") for form in FORMS] + [ratio] + [memory.get(form, "") for form in FORMS]
            print(f"| {side} x {side} | {channels} | {' | '.join(cells)} |", flush=True)
    print(f"\nIn a step of SCL (Unet mobilenet_v2, 256 px, {args.batch} + {args.batch} images, 21 classes):\n")
    print("| stride | step, s | structured term, s | share |\n|---|---|---|---|")
    for stride in (1, 4):
        whole, term = step(stride, 256, args.batch, args.rounds)
        print(f"| {stride} | {whole:.2f} | {term:.4f} | {term / whole:.1%} |", flush=True)


if __name__ == "__main__":
    main()
