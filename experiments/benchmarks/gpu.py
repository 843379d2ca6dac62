"""What the GPU at hand does: a few training steps of every method, and the speed of two networks.

    python -m experiments.benchmarks.gpu --output experiments/results/gpu.md

`make gpu` runs it, in at most ten minutes. A step is forward, backward and AdamW, under bf16 autocast, with all terms
of a method active, on random images and sparse random labels; loaders have no part in it. The time is the median of the
steps after the first, the memory the peak of what torch's allocator held, network and optimizer included. Rows that the
minutes do not reach stay blank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from common.model.networks import NetworkConfig, build_network
from common.training.files import written_whole
from experiments.benchmarks.measure import machine, options
from experiments.benchmarks.steps import OPTIONS, build
from experiments.compare.columns import markdown

TAGGED: dict[str, dict[str, Any]] = {
    "CAM": {},
    "CPN": {},
    "AALR": {},
    "GroupWSSS": {"group": 2},
    "Box": {},
    "Guided3D": {"crf_weight": 0.1},
}
METHODS = {**OPTIONS, "UniMatch V2": ("UniMatch", {"variant": "v2"}), **{n: (n, how) for n, how in TAGGED.items()}}
NETWORKS = {
    "DeepLabV3+, ResNet-50": NetworkConfig("DeepLabV3Plus", "resnet50"),
    "UniMatch's DPT, ViT-S/16": NetworkConfig("UniMatchDPT", "vit_small_patch16_224"),
}
TINY = NetworkConfig("Unet", "tu-test_resnet", decoder={"decoder_channels": [8, 8, 8, 8, 8]})  # to try the script


def peak_gb(device: torch.device) -> float | None:
    """What the device's allocator held at most; None where nobody counts."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def timed(run: Callable[[], Any], device: torch.device, steps: int) -> float:
    """Median seconds of `run` after a first one."""
    times = []
    for _ in range(steps + 1):
        since = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - since)
    return median(times[1:])


def fresh(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def on(device: torch.device, value: Any) -> Any:
    return {key: on(device, one) for key, one in value.items()} if isinstance(value, dict) else value.to(device)


def method_row(name: str, device: torch.device, network: NetworkConfig, side: int, batch: int, steps: int) -> list[str]:
    """Whether a method trains, its seconds a step and its peak."""
    fresh(device)
    model, streams = build(name, side, batch, METHODS[name], network)
    model.to(device)
    data = on(device, streams)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    losses = []

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):  # CPUs emulate it
            loss = model.compute_loss(data).loss
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.after_step()
        losses.append(loss.detach())

    seconds = timed(step, device, steps)
    finite = bool(torch.stack(losses).isfinite().all())
    peak = peak_gb(device)
    return ["trains" if finite else "loss is not finite", f"{seconds:.3f}", "" if peak is None else f"{peak:.2f}"]


def network_row(
    config: NetworkConfig, device: torch.device, side: int, batch: int, steps: int, half: bool
) -> list[str]:
    """Images a second in training and in prediction, and the peak of training."""
    fresh(device)
    network = build_network(config, 21).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
    image = torch.rand(batch, 3, side, side, device=device)
    mask = torch.randint(0, 21, (batch, side, side), device=device)

    def logits() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            found: torch.Tensor = network(image)
        return found

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits().float(), mask).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    training, peak = timed(train, device, steps), peak_gb(device)
    network.eval()
    with torch.inference_mode():
        predicting = timed(logits, device, steps)
    cells = [f"{batch / training:.1f}", f"{batch / predicting:.1f}"]
    return [*cells, "" if peak is None else f"{peak:.2f}"]


def guarded(rows: Iterator[tuple[list[str], Callable[[], list[str]]]], width: int, until: float) -> list[list[str]]:
    """The rows' cells behind their names; a row that fails says why, one that is too late stays blank."""
    table = []
    for names, make in rows:
        cells = [""] * width
        if time.perf_counter() < until:
            try:
                cells = make()
            except torch.OutOfMemoryError:
                cells[0] = "out of memory"
            except Exception as error:
                cells[0] = f"fails: {' '.join(str(error).split())[:80]}".replace("|", "/")
        print(" | ".join([*names, *cells]), flush=True)
        table.append([*names, *cells])
    return table


def page(device: torch.device, side: int, batch: int, steps: int, until: float, tiny: bool) -> str:
    """The results as Markdown."""
    networks = {"tiny": TINY} if tiny else NETWORKS
    first = next(iter(networks.values()))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    speed = (
        ([name, "bf16" if half else "fp32"], lambda c=config, h=half: network_row(c, device, side, batch, steps, h))
        for name, config in networks.items()
        for half in ((False, True) if device.type == "cuda" else (False,))
    )
    every = (([name], lambda n=name: method_row(n, device, first, side, batch, steps)) for name in METHODS)
    tables = [guarded(speed, 3, until), guarded(every, 3, until)]
    heads = [
        ["network", "precision", "images/s, training", "images/s, prediction", "peak GB"],
        ["method", "result", "s/step", "peak GB"],
    ]
    about = f"{where}, {machine()}. Made by `python -m experiments.benchmarks.gpu`."
    told = (
        f"{batch} labelled images of {side} pixels, 21 classes, {steps} steps; as many unlabelled images where a "
        f"method learns from them. Methods: {next(iter(networks))}, {'bf16' if device.type == 'cuda' else 'fp32'}."
    )
    parts = ["# What a GPU does", about, told, *map(markdown, heads, tables)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> None:
    args = options(__doc__, device="cuda", side=512, batch=4, steps=5, minutes=9.0, output="", network="real")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "gpu: torch sees no GPU here (torch.cuda.is_available() is false): check nvidia-smi, and that torch is a "
            "CUDA build; --device cpu --network tiny --side 64 tries the script without one"
        )
    torch.manual_seed(0)
    until = time.perf_counter() + 60 * args.minutes
    text = page(device, args.side, args.batch, args.steps, until, args.network == "tiny")
    if not args.output:
        print(f"\n{text}")
        return
    with written_whole(Path(args.output)) as scratch:
        scratch.write_text(text)
    print(f"written: {args.output}")


if __name__ == "__main__":
    main()
