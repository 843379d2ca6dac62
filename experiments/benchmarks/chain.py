"""Commands of which some need what others made: several at a time, and what is made is not made again."""

from __future__ import annotations

import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import NamedTuple

from common.training.signals import die_with_parent
from experiments.studies.runner import last_line, with_share
from experiments.studies.spec import folder_name

Words = list[str | Path]  # behind `python`


class Step(NamedTuple):
    """Something to make.

    Args:
        name: its.
        commands: gives what to call; asked for when all that the step needs is there.
        made: a file that is there once all is done.
        needs: names of other steps.
        wanted: for itself; else it is made only where a wanted one needs it.
    """

    name: str
    commands: Callable[[], list[Words]]
    made: Path
    needs: Sequence[str] = ()
    wanted: bool = True


def chosen(steps: Sequence[Step], parts: Sequence[str]) -> list[Step]:
    """The wanted steps whose name holds one of `parts`, all if there are none, and those that they need, in order."""
    by_name = {step.name: step for step in steps}
    names = [step.name for step in steps if step.wanted and (not parts or any(part in step.name for part in parts))]
    for name in names:  # grows
        names += [need for need in by_name[name].needs if need not in names]
    return [step for step in steps if step.name in names]


def work(steps: Sequence[Step], logs: Path, jobs: int, dry: bool = False, parts: Sequence[str] = ()) -> list[str]:
    """Make what is missing, the first steps first, with a log each; returns the steps that failed. They do not stop
    those that do not need them.

    Raises:
        KeyboardInterrupt: it was stopped, and its commands with it: the same call goes on.
    """
    left = [step for step in chosen(steps, parts) if not step.made.exists()]
    print(f"{len(left)} steps to make", flush=True)
    if dry:
        print(*(step.name for step in left), sep="\n")
        return []
    logs.mkdir(parents=True, exist_ok=True)
    missing, failed, total = {step.name for step in left}, list[str](), len(left)
    running: dict[Future[bool], Step] = {}
    called: set[subprocess.Popen[bytes]] = set()
    stopped = Event()
    pool = ThreadPoolExecutor(jobs)
    try:
        while True:
            for step in [one for one in left if not missing & {*one.needs}][: jobs - len(running)]:
                left.remove(step)
                running[pool.submit(make, step, logs, jobs, called, stopped)] = step
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                step = running.pop(future)
                if future.result():
                    missing.remove(step.name)
                else:
                    failed.append(step.name)
    except BaseException:
        stopped.set()  # no step begins its next command
        for process in [*called]:
            process.kill()  # its step goes on from there as the unbroken one would have
        raise
    finally:
        pool.shutdown()
    for step in left:
        print(f"not made: {step.name}, which needs a step that failed")
    print(f"{total - len(left) - len(failed)} of {total} made", flush=True)
    return failed


def make(step: Step, logs: Path, jobs: int, called: set[subprocess.Popen[bytes]], stopped: Event) -> bool:
    """Call the commands of a step, each in `called` as long as it runs, until `stopped`; whether all went well."""
    file, since = logs / f"{folder_name(step.name)}.log", time.monotonic()
    status = 0
    with file.open("a") as log:
        try:
            for words in step.commands():
                if stopped.is_set():
                    return False
                command = [sys.executable, *map(str, words)]
                print("$", *command, file=log, flush=True)
                process = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, env=with_share(jobs), preexec_fn=die_with_parent
                )
                called.add(process)
                status = process.wait()
                called.remove(process)
                if status:
                    break
        except Exception:  # of what the commands are made from
            traceback.print_exc(file=log)
            status = 1
    if status or not step.made.exists():
        print(f"failed: {step.name} ({last_line(file)}; see {file})", flush=True)
        return False
    print(f"made: {step.name} ({time.monotonic() - since:.0f} s)", flush=True)
    return True
