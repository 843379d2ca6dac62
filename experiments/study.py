"""Run a grid of runs from one YAML in W&B's sweep syntax, on this machine and without an account.

    python -m experiments.study experiments/sweeps/weizmann_supervised.yaml --jobs 2 -- --data.init_args.root DIR

The same file goes to `wandb sweep`. A finished run is skipped, an interrupted one is resumed, a failed one is reported
at the end and does not stop the others. What follows `--` is given to every run.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml


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
    axes = [
        [value] if (value := choice.get("value")) is not None else choice["values"] for choice in parameters.values()
    ]
    return [dict(zip(parameters, point, strict=True)) for point in itertools.product(*axes)]


def run_name(point: dict[str, Any]) -> str:
    """A folder name from the last words of the parameters: `fraction=0.001,seed_everything=0`; of a file its stem."""
    shown = {k: Path(v).stem if isinstance(v, str) and v.endswith(".yaml") else v for k, v in point.items()}
    return ",".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in shown.items())


def command(sweep: dict[str, Any], point: dict[str, Any], run_dir: Path, extra: list[str]) -> list[str]:
    """The command line of one run: the sweep's `command` with its macros replaced."""
    arguments = [f"--{name}={value}" for name, value in point.items()]
    words: list[str] = []
    for word in sweep["command"]:
        if word == "${program}":
            words += [sys.executable, "-m", "experiments.cli"] if sweep["program"] == "weakseg" else [sweep["program"]]
        elif word == "${args}":
            words += arguments
        elif word != "${env}":
            words.append(str(word))
    return [*words, "--run_dir", str(run_dir), "--resume", "auto", "--trainer.enable_progress_bar", "false", *extra]


def study(file: Path, folder: Path, jobs: int, extra: list[str], dry_run: bool) -> list[str]:
    """Run the grid into `folder/<file's name>/<parameters>`; returns the names of failed runs."""
    sweep = yaml.safe_load(file.read_text())
    points = grid(sweep)
    failed: list[str] = []
    done = itertools.count(1)

    def one(point: dict[str, Any]) -> None:
        run_dir = folder / file.stem / run_name(point)
        if (run_dir / "summary.json").exists():
            print(f"[{next(done)}/{len(points)}] finished before: {run_dir}", flush=True)
            return
        words = command(sweep, point, run_dir, extra)
        if dry_run:
            print(f"[{next(done)}/{len(points)}] {' '.join(words)}")
            return
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        log = run_dir.with_suffix(run_dir.suffix + ".log")
        with log.open("a") as output:
            status = subprocess.run(words, stdout=output, stderr=subprocess.STDOUT).returncode
        if status:
            failed.append(run_dir.name)
        print(f"[{next(done)}/{len(points)}] {'failed, see ' + str(log) if status else 'done'}: {run_dir}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, points))
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (set OMP_NUM_THREADS=1 with more than one)")
    parser.add_argument("--dry-run", action="store_true")
    own = sys.argv[1:]
    rest = own[own.index("--") + 1 :] if "--" in own else []
    options = parser.parse_args(own[: own.index("--")] if "--" in own else own)
    failures = study(options.file, options.folder, options.jobs, rest, options.dry_run)
    sys.exit(f"{len(failures)} runs failed: {', '.join(failures)}" if failures else 0)
