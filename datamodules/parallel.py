"""Loader processes: those of training, and those that look at all files of a data set once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common.training.signals import blocked, die_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")
FEW = 64  # files that are read sooner than processes start
SECONDS = 2.0  # until there is a progress bar


class Loader(DataLoader[Any]):
    """A loader whose processes never see the signals that ask a run to stop, which a terminal and schedulers send to
    all of them: the training process ends them when it is through."""

    def __iter__(self) -> Any:
        with blocked():
            return super().__iter__()


def init_worker(worker: int) -> None:
    """Loader processes share the machine with the training process, one thread each, and end with it: one that has
    more to send than a pipe holds would wait for ever for a training process that was killed."""
    die_with_parent()
    torch.set_num_threads(1)
    if cv2 := sys.modules.get("cv2"):  # a forked process has its pool of threads without the threads
        cv2.setNumThreads(0)


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Mapped(Dataset[Any]):
    """What `work` gives for each item, or its error."""

    def __init__(self, work: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.work, self.items = work, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        try:
            return self.work(self.items[number])
        except (ValueError, OSError, ArithmeticError) as error:  # a loader would change its class and its text
            return error


def _as_it_is(found: Any) -> Any:
    return found


def mapped(work: Callable[[Item], Result], items: Sequence[Item], what: str) -> Iterator[Result]:
    """`map` on all processors, in order, with a progress bar called `what`.

    Raises:
        Exception: the first error of `work`.
    """
    workers = processors() if len(items) >= FEW else 0
    loader = Loader(
        Mapped(work, items), batch_size=None, num_workers=workers, collate_fn=_as_it_is, worker_init_fn=init_worker,
        prefetch_factor=16 if workers else None,
    )  # fmt: skip
    for found in tqdm(loader, desc=what, total=len(items), delay=SECONDS, disable=None, leave=False):
        if isinstance(found, Exception):
            raise found
        yield cast(Result, found)
