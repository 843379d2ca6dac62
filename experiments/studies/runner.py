"""Runs the commands of a study: several at a time, resumable, with the time left.

A finished run is skipped, an interrupted one is resumed, a failed one is reported at the end and does not stop the
others. Several studies may share one folder: each run is made by one of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import IO

import yaml
from tqdm import tqdm

from experiments.runs.command import PROGRAM, environment
from experiments.studies.plan import Run


def steps_done(run_dir: Path) -> tuple[int, int]:
    """The last logged step of a run, and all that it makes; 0 before it began, or where steps are open."""
    try:
        steps = int(yaml.safe_load((run_dir / "config.yaml").read_text())["trainer"]["max_steps"])
        last = (run_dir / "metrics.csv").read_text().splitlines()[-1].split(",")[0]
        return max(0, int(last) + 1), max(0, steps)
    except (OSError, ValueError, IndexError):  # not there yet, or half a row
        return 0, 0


def share_done(run_dir: Path) -> float:
    """How far a run has come, in [0, 1]."""
    if (run_dir / "summary.json").exists():
        return 1.0
    done, steps = steps_done(run_dir)
    return min(1.0, done / steps) if steps else 0.0


def remaining(seconds: float, before: float, now: float, total: int) -> str:
    """Time left if the rest goes as fast as what was done since the start: `1:02:03`; `?` as long as nothing is."""
    return tqdm.format_interval(seconds * (total - now) / (now - before)) if now > before else "?"


def log_file(run_dir: Path) -> Path:
    """What a run prints goes here. The file is locked as long as the run is being made."""
    return run_dir.with_name(run_dir.name + ".log")


@contextlib.contextmanager
def claimed(run_dir: Path, stopped: Event | None = None, patience: float = float("inf")) -> Iterator[IO[str] | None]:
    """The run's log, once this process alone may make the run; None: it was stopped meanwhile, or its patience, in
    seconds, has ended.

    The lock is held by whatever process trains here, also by one that outlived its study: two never write to one
    folder.
    """
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with log_file(run_dir).open("a") as log:
        until = time.monotonic() + patience
        for turn in itertools.count():
            if (stopped and stopped.is_set()) or time.monotonic() > until:
                yield None
                return
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if not turn:
                tqdm.write(f"another process makes {run_dir}: waiting for it")
            time.sleep(0.5)
        yield log


def is_claimed(run_dir: Path) -> bool:
    """Whether a process of this machine makes the run."""
    if not log_file(run_dir).exists():
        return False
    with log_file(run_dir).open("a") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def with_share(jobs: int) -> dict[str, str]:
    """The environment of one of several commands at a time: its share of the cores, unless OMP_NUM_THREADS is set."""
    found = environment()
    if jobs > 1:
        found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return found


class Runner:
    """Makes runs.

    Args:
        tasks: the runs.
        jobs: runs at a time; with several, each gets its share of the cores unless OMP_NUM_THREADS is set.
    """

    def __init__(self, tasks: Sequence[Run], jobs: int) -> None:
        self.tasks, self.jobs = tasks, jobs
        self.failed: list[Path] = []
        self.running: set[subprocess.Popen[bytes]] = set()
        self.count, self.stopped = itertools.count(1), Event()
        self.environment = with_share(jobs)

    def tell(self, run_dir: Path, what: str) -> None:
        left = remaining(time.monotonic() - self.since, self.before, self.done(), len(self.tasks))
        line = f"[{next(self.count)}/{len(self.tasks)}] {what}: {run_dir}"
        tqdm.write(line if left == "?" or what == "finished before" else f"{line} ({left} left)")
        sys.stdout.flush()

    def done(self) -> float:
        """Runs done, those under way in part; a failed one is done too."""
        return sum(1.0 if task.folder in self.failed else share_done(task.folder) for task in self.tasks)

    def one(self, task: Run) -> None:
        with claimed(task.folder, self.stopped) as log:
            if log is None:
                return
            commands = task.missing()
            status = 0
            for words in commands:
                status = status or self.call(words, log)
        if self.stopped.is_set():
            return
        if status:
            self.failed.append(task.folder)
        file = log_file(task.folder)
        outcome = f"failed ({last_line(file)}; see {file})" if status else "done" if commands else "finished before"
        self.tell(task.folder, outcome)

    def call(self, words: Sequence[str], log: IO[str]) -> int:
        process = subprocess.Popen([*PROGRAM, *words], stdout=log, stderr=subprocess.STDOUT, env=self.environment)
        self.running.add(process)
        if self.stopped.is_set():  # it was stopped while this one started
            process.kill()
        status = process.wait()
        self.running.remove(process)
        return status

    def run(self) -> list[Path]:
        """Make all runs; returns the directories of those that failed.

        Raises:
            KeyboardInterrupt: the study was stopped, and its runs with it.
        """
        self.since, self.before = time.monotonic(), self.done()
        shape = "{percentage:3.0f}%|{bar}| {n:.1f}/{total} runs, {elapsed} gone, {remaining} left"
        pool = ThreadPoolExecutor(self.jobs)
        # Only on a terminal; a log file has the lines of finished runs.
        with tqdm(total=len(self.tasks), initial=self.before, bar_format=shape, disable=None) as bar:
            try:
                futures = {pool.submit(self.one, task) for task in self.tasks}
                while futures:
                    finished, futures = wait(futures, timeout=2)
                    for future in finished:
                        future.result()
                    bar.n = self.done()
                    bar.refresh()
            except BaseException:
                self.stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(self.running):
                    process.kill()  # a killed run resumes as the unbroken one would have gone on
                raise
            finally:
                pool.shutdown()
        return self.failed


def last_line(file: Path) -> str:
    """What a failed command said last."""
    lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("weakseg: error: ") if lines else "no word"
