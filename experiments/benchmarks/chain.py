"""Commands of which some need what others made: several at a time, and what is made is not made again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from common.training.signals import die_with_parent
from experiments.studies.runner import last_line

Words = list[str | Path]  # behind `python`


class Step(NamedTuple):
    """Something to make.

    Args:
        name: its.
        commands: gives what to call; asked for when all that the step needs is there.
        made: a file that is there once all is done.
        needs: names of other steps.
    """

    name: str
    commands: Callable[[], list[Words]]
    made: Path
    needs: Sequence[str] = ()


def chosen(steps: Sequence[Step], parts: Sequence[str]) -> list[Step]:
    """The steps whose name holds one of `parts`, all if there are none, and those that they need, in order."""
    by_name = {step.name: step for step in steps}
    names = [step.name for step in steps if not parts or any(part in step.name for part in parts)]
    for name in names:  # grows
        names += [need for need in by_name[name].needs if need not in names]
    return [step for step in steps if step.name in names]


def work(steps: Sequence[Step], logs: Path, jobs: int, dry: bool = False, parts: Sequence[str] = ()) -> list[str]:
    """Make what is missing, the first steps first, with a log each; returns the steps that failed. They do not stop
    those that do not need them.

    Raises:
        KeyboardInterrupt: it was stopped, and its commands with it.
    """
    left = [step for step in chosen(steps, parts) if not step.made.exists()]
    print(f"{len(left)} steps to make", flush=True)
    if dry:
        print(*(step.name for step in left), sep="\n")
        return []
    logs.mkdir(parents=True, exist_ok=True)
    missing, failed, total, count = {step.name for step in left}, list[str](), len(left), 0
    running: dict[Future[bool], Step] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while True:
            for step in [one for one in left if not missing & {*one.needs}][: jobs - len(running)]:
                left.remove(step)
                running[pool.submit(make, step, logs, jobs)] = step
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                step, count = running.pop(future), count + 1
                if future.result():
                    missing.remove(step.name)
                else:
                    failed.append(step.name)
    for step in left:
        print(f"not made: {step.name}, which needs a step that failed")
    print(f"{count - len(failed)} of {total} made", flush=True)
    return failed


def make(step: Step, logs: Path, jobs: int) -> bool:
    """Call the commands of a step; whether all went well."""
    file, since = logs / f"{step.name.replace(', ', '_').replace(': ', '_').replace(' ', '_')}.log", time.monotonic()
    environment = dict(os.environ)
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with file.open("a") as log:
        for words in step.commands():
            command = [sys.executable, *map(str, words)]
            print("$", *command, file=log, flush=True)
            # Stopped with its parent, a command goes on next time as the unbroken one would have.
            called = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, preexec_fn=die_with_parent
            )
            if called.returncode:
                print(f"failed: {step.name} ({last_line(file)}; see {file})", flush=True)
                return False
    print(f"made: {step.name} ({time.monotonic() - since:.0f} s)", flush=True)
    return True
