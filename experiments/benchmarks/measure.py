"""What the benchmarks share: options, rounds in which forms take turns, memory of a process of its own, ratios.

A machine's speed drifts: the ratio of two times is therefore the median of the ratios of each round.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import mean, median, stdev
from typing import Any, TypeVar

import torch

from common.training.memory import reset_peak, resident_gb

Name = TypeVar("Name")
Found = TypeVar("Found")


def options(about: str | None, *places: str, **defaults: Any) -> argparse.Namespace:
    """The command line: places by position, and an option for each default; one that is a list takes several values."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for place in places:
        parser.add_argument(place)
    for name, default in defaults.items():
        many = isinstance(default, list)
        kind, nargs = (type(default[0]), "+") if many else (type(default), None)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, nargs=nargs, default=default, help=f"{default}")
    return parser.parse_args()


def at_the_end(model: Any) -> Any:
    """The model in the last step of a run, where all terms of its loss count. Its class is left alone: it may be used
    elsewhere in this process."""
    model.__class__ = type(type(model).__name__, (type(model),), {"progress": property(lambda self: 1.0)})
    return model


def machine() -> str:
    return f"{torch.get_num_threads()} CPU threads, torch {torch.__version__}, Python {platform.python_version()}"


def seconds(run: Callable[[], Any]) -> float:
    since = time.perf_counter()
    run()
    return time.perf_counter() - since


def alternate(forms: Mapping[Name, Callable[[], Found]], rounds: int) -> dict[Name, list[Found]]:
    """What each form gives, once a round."""
    found: dict[Name, list[Found]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, run in forms.items():
            found[name].append(run())
    return found


def spread(values: Sequence[float]) -> str:
    """`mean ± standard deviation` of seeds; of one the value, of none nothing."""
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def ratio(times: Sequence[float], base: Sequence[float], digits: int = 2) -> list[str]:
    """Two cells: the median of the rounds' ratios; the lowest and the highest."""
    found = sorted(one / other for one, other in zip(times, base, strict=True))
    return [f"{median(found):.{digits}f}", f"{found[0]:.{digits}f}, {found[-1]:.{digits}f}"]


def peak_gb(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> float:
    """Peak of three runs of `prepare(*arguments)` in a process of its own, above what imports and inputs take."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(own_peak, prepare, *arguments).result()


def own_peak(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> float:
    run = prepare(*arguments)
    before = resident_gb("VmRSS")
    reset_peak()  # importing had its own
    for _ in range(3):
        run()
    return resident_gb("VmHWM") - before
