"""Minutes of random faults, for `make soak`: kills, group signals, full disks and moved directories over all methods,
with loader processes. A run is broken and resumed until it is through; it must then equal the unbroken one bit for bit.

    python tests/soak.py --minutes 10 [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import methods
from conftest import SMALL, TINY
from same_run import assert_same_run

STEPS = ["--trainer.max_steps", "40", "--trainer.val_check_interval", "15", "--checkpoint_every", "7",
         "--data.init_args.num_workers", "2"]  # fmt: skip
FAULTS = ("kill", "kill the group", "Ctrl-C to the group", "SIGTERM to the group", "SIGUSR1", "full disk", "moved")
SIGNALS = {"Ctrl-C to the group": signal.SIGINT, "SIGTERM to the group": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}


def command(method: str, run_dir: Path, limit: int | None = None) -> subprocess.Popen[bytes]:
    """A run in a process group of its own. `limit`: bytes of a file, as if the disk were full then."""
    words = [sys.executable, "-m", "experiments.cli", "fit", "--config", str(TINY), "--run_dir", str(run_dir),
             "--model", method, *SMALL.get(method, []), *STEPS, "--resume", "auto"]  # fmt: skip
    if limit is not None:
        words = ["prlimit", f"--fsize={limit}", *words]
    log = run_dir.with_suffix(".log").open("ab")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True, env=environment)


def finish(method: str, run_dir: Path) -> float:
    """Run to the end; seconds."""
    since = time.monotonic()
    if command(method, run_dir).wait():
        raise AssertionError(f"{run_dir} does not go on: {run_dir.with_suffix('.log').read_text()[-2000:]}")
    return time.monotonic() - since


def break_it(fault: str, method: str, run_dir: Path, seconds: float, chance: random.Random) -> tuple[Path, bool]:
    """Start or continue the run, and have the fault happen at a random moment; where it lies then, and whether it was
    still running."""
    process = command(method, run_dir, chance.randint(1, 400) * 1000 if fault == "full disk" else None)
    try:
        status: int | None = process.wait(chance.uniform(0.2, 0.7) * seconds)
    except subprocess.TimeoutExpired:
        status = None
    if status is None and fault in SIGNALS:
        os.killpg(process.pid, SIGNALS[fault])
        status = process.wait(120)
        # 0: it was through before the signal was seen.
        assert status in (0, os.EX_TEMPFAIL), (
            f"{fault}: status {status}; {run_dir.with_suffix('.log').read_text()[-2000:]}"
        )
        return run_dir, status != 0
    running = status is None
    if running and fault == "kill":
        process.kill()
    elif running:
        os.killpg(process.pid, signal.SIGKILL)
    status = process.wait()
    if fault == "moved" and run_dir.exists():
        target = run_dir.with_name(f"{run_dir.name}-moved")
        run_dir.rename(target)
        run_dir = target
    return run_dir, running or status != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    options = parser.parse_args()
    chance, end = random.Random(options.seed), time.monotonic() + 60 * options.minutes
    done: Counter[str] = Counter()
    runs = 0
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["WEAKSEG_CACHE"] = str(folder / "cache")
        whole: dict[str, float] = {}
        while time.monotonic() < end:
            method = chance.choice(sorted(methods.CLASSES))
            if method not in whole:
                whole[method] = finish(method, folder / f"{method}-whole")
            run_dir = folder / f"{method}-{runs}"
            for fault in chance.sample(FAULTS, 3):
                run_dir, happened = break_it(fault, method, run_dir, whole[method], chance)
                done[fault] += happened
            finish(method, run_dir)
            assert_same_run(folder / f"{method}-whole", run_dir)
            runs += 1
            print(f"{runs} runs, {sum(done.values())} faults: {method} equals the unbroken run", flush=True)
    print("\n| fault | times |\n|---|---|\n" + "\n".join(f"| {fault} | {done[fault]} |" for fault in FAULTS))
    print(f"\n{runs} runs of {len(whole)} methods, {sum(done.values())} faults, all equal to the unbroken runs")


if __name__ == "__main__":
    main()
