"""Run a grid of runs from one YAML in W&B's sweep syntax, on this machine and without an account.

    python -m experiments.studies.runner experiments/sweeps/weizmann_supervised.yaml --jobs 2 -- --data.init_args.root DIR

The same file goes to `wandb sweep`. A finished run is skipped, an interrupted one is resumed, a failed one is reported
at the end and does not stop the others. What follows `--` is given to every run. Ctrl-C (or `kill`) ends the study and
its runs; the same command continues them. Several studies may share one folder: each run is made by one of them.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

import yaml
from tqdm import tqdm


def grid(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """All combinations of a sweep's parameter values, the last parameter changing fastest.

    Raises:
        ValueError: the sweep is not a grid of values.
    """
    if sweep.get("method") != "grid":
        raise ValueError(f"method {sweep.get('method')!r}: only `method: grid` runs without a W&B server")
    parameters = sweep["parameters"]
    for name, choice in parameters.items():
        if not {"value", "values"} & choice.keys():
            raise ValueError(f"parameter {name} needs `value` or `values`")
    axes = [[choice["value"]] if "value" in choice else choice["values"] for choice in parameters.values()]
    return [dict(zip(parameters, point, strict=True)) for point in itertools.product(*axes)]


def run_name(point: dict[str, Any]) -> str:
    """A folder name from the last words of the parameters: `fraction=0.001,seed_everything=0`; of a file its stem."""
    shown = {k: Path(v).stem if isinstance(v, str) and v.endswith(".yaml") else v for k, v in point.items()}
    return ",".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in shown.items())


def command(sweep: dict[str, Any], point: dict[str, Any], run_dir: Path, extra: list[str]) -> list[str]:
    """The command line of one run: the sweep's `command` with its macros replaced."""
    arguments = [f"--{name}={'null' if value is None else value}" for name, value in point.items()]
    words: list[str] = []
    for word in sweep["command"]:
        if word == "${program}":
            words += [sys.executable, "-m", "experiments.cli"] if sweep["program"] == "weakseg" else [sweep["program"]]
        elif word == "${args}":
            words += arguments
        elif word != "${env}":
            words.append(str(word))
    return [*words, "--run_dir", str(run_dir), "--resume", "auto", "--trainer.enable_progress_bar", "false", *extra]


def share_done(run_dir: Path) -> float:
    """How far a run has come, in [0, 1]: the last logged step of all. 0 before it began, or where steps are open."""
    try:
        if (run_dir / "summary.json").exists():
            return 1.0
        steps = yaml.safe_load((run_dir / "config.yaml").read_text())["trainer"]["max_steps"]
        last = (run_dir / "metrics.csv").read_text().splitlines()[-1].split(",")[0]
        return float(min(1.0, max(0.0, (int(last) + 1) / steps)))
    except (OSError, ValueError, IndexError):  # not there yet, or half a row
        return 0.0


def remaining(seconds: float, before: float, now: float, total: int) -> str:
    """Time left if the rest goes as fast as what was done since the start: `1:02:03`; `?` as long as nothing is."""
    return tqdm.format_interval(seconds * (total - now) / (now - before)) if now > before else "?"


class Study:
    """A grid of runs below one folder.

    Args:
        file: the sweep.
        folder: a run goes to `folder/<file's name>/<parameters>`, what it prints to a `.log` beside it.
        jobs: runs at a time.
        extra: arguments for every run.
    """

    def __init__(self, file: Path, folder: Path, jobs: int, extra: list[str]) -> None:
        self.sweep = yaml.safe_load(file.read_text())
        self.points = grid(self.sweep)
        self.folders = [folder / file.stem / run_name(point) for point in self.points]
        self.jobs, self.extra = jobs, extra
        self.failed: list[str] = []
        self.running: set[subprocess.Popen[bytes]] = set()
        self.count, self.stopped = itertools.count(1), False

    def words(self, number: int) -> list[str]:
        return command(self.sweep, self.points[number], self.folders[number], self.extra)

    def tell(self, run_dir: Path, what: str) -> None:
        left = remaining(time.monotonic() - self.since, self.before, self.done(), len(self.points))
        line = f"[{next(self.count)}/{len(self.points)}] {what}: {run_dir}"
        tqdm.write(line if left == "?" or what == "finished before" else f"{line} ({left} left)")
        sys.stdout.flush()

    def done(self) -> float:
        """Runs done, those under way in part; a failed one is done too."""
        return sum(1.0 if run.name in self.failed else share_done(run) for run in self.folders)

    def one(self, number: int) -> None:
        run_dir = self.folders[number]
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        log = run_dir.with_suffix(run_dir.suffix + ".log")
        with log.open("a") as output:
            # Held by whatever process trains here, also by one that outlived its study: two never write to one folder.
            if not self.locked(output, run_dir):
                return
            if (run_dir / "summary.json").exists():
                self.tell(run_dir, "finished before")
                return
            process = subprocess.Popen(self.words(number), stdout=output, stderr=subprocess.STDOUT)
            self.running.add(process)
            status = process.wait()
            self.running.remove(process)
        if self.stopped:
            return
        if status:
            self.failed.append(run_dir.name)
        self.tell(run_dir, f"failed, see {log}" if status else "done")

    def locked(self, log: IO[str], run_dir: Path) -> bool:
        """Wait until this process alone may make the run; False: the study was stopped meanwhile."""
        told = False
        while not self.stopped:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if not told:
                    tqdm.write(f"another process makes {run_dir}: waiting for it")
                told = True
                time.sleep(0.5)
        return False

    def run(self) -> list[str]:
        """Make all runs; returns the names of those that failed.

        Raises:
            KeyboardInterrupt: the study was stopped, and its runs with it.
        """
        self.since, self.before = time.monotonic(), self.done()
        shape = "{percentage:3.0f}%|{bar}| {n:.1f}/{total} runs, {elapsed} gone, {remaining} left"
        pool = ThreadPoolExecutor(self.jobs)
        # Only on a terminal; a log file has the lines of finished runs.
        with tqdm(total=len(self.points), initial=self.before, bar_format=shape, disable=None) as bar:
            try:
                futures = {pool.submit(self.one, number) for number in range(len(self.points))}
                while futures:
                    finished, futures = wait(futures, timeout=2)
                    for future in finished:
                        future.result()
                    bar.n = self.done()
                    bar.refresh()
            except BaseException:
                self.stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(self.running):
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()  # a killed run resumes as the unbroken one would have gone on
                raise
            finally:
                pool.shutdown()
        return self.failed


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (set OMP_NUM_THREADS=1 with more than one)")
    parser.add_argument("--dry-run", action="store_true")
    own = sys.argv[1:]
    rest = own[own.index("--") + 1 :] if "--" in own else []
    options = parser.parse_args(own[: own.index("--")] if "--" in own else own)
    study = Study(options.file, options.folder, options.jobs, rest)
    if options.dry_run:
        for number, run_dir in enumerate(study.folders):
            shown = f"finished before: {run_dir}" if share_done(run_dir) == 1 else " ".join(study.words(number))
            print(f"[{number + 1}/{len(study.folders)}] {shown}")
        sys.exit()
    signal.signal(signal.SIGTERM, stop)
    try:
        failures = study.run()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues")
    sys.exit(f"{len(failures)} runs failed: {', '.join(failures)}" if failures else 0)
