"""Signals to the whole process group, as a terminal and schedulers send them: the run is saved, the status is 75."""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.training.signals import AGAIN, Stopped, stop_request
from conftest import ROOT, TINY, fit_tiny, slow_but_for, weakseg
from same_run import assert_same_run, load

LONG = ["--trainer.max_steps", "4000", "--trainer.val_check_interval", "1000", "--checkpoint_every", "100000"]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]


def start(run_dir, *arguments, pipe=""):
    """A command in a process group of its own, with that of its pipe."""
    words = [sys.executable, "-m", "experiments.cli", "fit", "--config", TINY, "--run_dir", run_dir, *arguments]
    if pipe:  # bash itself is not to die of the signal
        words = ["bash", "-c", f"trap '' INT TERM; (trap - INT TERM; {shlex.join(map(str, words))}) 2>&1 {pipe}; "
                               "exit ${PIPESTATUS[0]}"]  # fmt: skip
    return subprocess.Popen(
        [str(word) for word in words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(process, happened):
    end = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.02)


def end_of(process, status=os.EX_TEMPFAIL):
    text, _ = process.communicate(timeout=60)
    assert process.returncode == status, text
    assert "Traceback" not in text
    return text


def is_training(run_dir):
    """Whether the first steps are through."""
    path = run_dir / "metrics.csv"
    return lambda: path.exists() and len(path.read_text().splitlines()) > 3


def listens(process):
    """Whether Python has come so far as to handle SIGTERM."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"SigCgt:\t(\w+)", status)[1], 16) >> (signal.SIGTERM - 1) & 1


@pytest.mark.parametrize("pause", [0.0, 0.4])
def test_several_signals_on_the_way_out_are_one(pause, tmp_path):
    """SLURM sends SIGTERM more than once, and submitit another one."""
    process = start(tmp_path / "run")
    wait_for(process, lambda: listens(process))
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM):
        time.sleep(pause)
        if process.poll() is None:
            process.send_signal(number)
    assert "before the first step" in end_of(process)


WORKERS = ["--data.init_args.num_workers", "2"]
GROUPS = {
    "a scheduler's warning": (signal.SIGUSR1, WORKERS, ""),
    "a terminal that is closed": (signal.SIGHUP, WORKERS, ""),
    "the end of a job, two devices": (signal.SIGTERM, [*WORKERS, *TWO], ""),
    # `head` is gone after a line, as `tee` is after Ctrl-C: nobody reads what the run says.
    "Ctrl-C, a progress bar and a broken pipe": (
        signal.SIGINT,
        [*WORKERS, "--trainer.enable_progress_bar", "true"],
        "| head -1",
    ),
}


@pytest.mark.parametrize("row", slow_but_for(GROUPS, "Ctrl-C, a progress bar and a broken pipe"))
def test_a_signal_to_the_whole_group_saves_the_step_at_hand(row, tmp_path):
    number, arguments, pipe = GROUPS[row]
    process = start(tmp_path / "run", *LONG, *arguments, pipe=pipe)
    wait_for(process, is_training(tmp_path / "run"))
    time.sleep(random.uniform(0, 0.1))
    os.killpg(process.pid, number)
    text = end_of(process)
    step = load(tmp_path / "run")["global_step"]
    assert step >= 3
    if not pipe:
        assert f"stopped at step {step}, continue with the same command and --resume auto" in text


def test_stopped_with_its_workers_and_resumed_equals_the_unbroken_run(tmp_path):
    arguments = [*WORKERS, "--trainer.max_steps", "60", "--trainer.val_check_interval", "25"]
    fit_tiny(tmp_path / "whole", *arguments)
    process = start(tmp_path / "cut", *arguments)
    wait_for(process, is_training(tmp_path / "cut"))
    os.killpg(process.pid, signal.SIGINT)
    end_of(process)
    fit_tiny(tmp_path / "cut", *arguments, "--resume", "auto")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(("moment", "devices"), [("imports", 1), ("annotation", 1), ("random", 2)])
def test_a_signal_before_training_ends_it_and_leaves_nothing_half_made(moment, devices, tmp_path, monkeypatch):
    """Drawing 4,000 images takes seconds; what it has written goes."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("WEAKSEG_CACHE", str(cache))
    two = TWO if devices == 2 else []
    process = start(tmp_path / "run", "--data.init_args.train", "4000", *two)
    if moment == "annotation":
        wait_for(process, cache.exists)
    else:
        wait_for(process, lambda: listens(process))
        time.sleep(0 if moment == "imports" else random.uniform(0.2, 4))
    os.killpg(process.pid, signal.SIGTERM)
    since = time.monotonic()
    text = end_of(process)
    assert "stopped by SIGTERM before the first step, continue with the same command and --resume auto" in text
    assert time.monotonic() - since < 20
    assert not (tmp_path / "run").exists()
    assert not cache.exists() or not list(cache.iterdir())


FOREIGN = """
import os, signal, sys, time
import experiments.cli

class Foreign:
    def __del__(self):
        asked()

def asked():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)

foreign = [Foreign()]

def dropped():
    foreign.clear()

def imported():
    import foreign_module  # calls `asked`

def made_another():
    try:
        asked()
    except BaseException:
        raise AttributeError("of foreign code")

def run(rest):
    try:
        globals()[sys.argv[2]]()
        time.sleep(60)
    finally:
        print("cleared up", flush=True)

sys.modules["experiments.cli.fit"] = type(sys)("fit")
sys.modules["experiments.cli.fit"].main = run
sys.exit(experiments.cli.main())
"""


@pytest.mark.parametrize("how", ["dropped", "imported", "made_another"])
def test_a_signal_in_foreign_code_stops_the_command(how, tmp_path):
    """An exception is lost in `__del__`, made another by a bare `except`, and must not come within an import."""
    (tmp_path / "foreign_module.py").write_text(
        "import __main__\ntry:\n    __main__.asked()\nexcept BaseException:\n    print('half an import')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, "fit", how], cwd=ROOT, capture_output=True, text=True, timeout=50,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"},
    )  # fmt: skip
    assert done.returncode == os.EX_TEMPFAIL, done.stderr
    assert done.stderr == f"weakseg: stopped by SIGTERM before the first step, {AGAIN}\n"
    assert done.stdout == "cleared up\n"


def test_a_stop_is_not_taken_for_the_error_of_a_later_command(tmp_path):
    with pytest.raises(Stopped), stop_request.listening():
        signal.raise_signal(signal.SIGTERM)
    assert "no checkpoint" in weakseg("test", "--ckpt", tmp_path / "nothing.ckpt", expect=1)


FULL = """
import os, signal, time
import numpy
from datamodules.parallel import Loader, Mapped, init_worker

more_than_a_pipe_holds = Mapped(lambda number: numpy.zeros(100_000, numpy.uint8), range(300))
loader = Loader(more_than_a_pipe_holds, num_workers=2, prefetch_factor=16, worker_init_fn=init_worker, collate_fn=list)
running = iter(loader)
time.sleep(1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_loader_processes_end_with_a_training_process_that_is_killed():
    """They hold its output open: nobody who waits for the end of it would go on."""
    done = subprocess.run([sys.executable, "-c", FULL], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_listing_whose_reader_is_gone_ends_quietly():
    for words in (["methods"], ["datamodules"], ["--help"], ["study"]):
        command = f"{sys.executable} -m experiments.cli {' '.join(words)} | head -1; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), words


def test_ctrl_c_of_another_command_is_one_line(tmp_path, monkeypatch):
    import experiments.cli.methods

    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments.cli.methods, "main", interrupted)
    assert weakseg("methods", expect=130) == "weakseg: interrupted\n"


SLURM = {
    "JOB_ID": "12345",
    "JOB_NAME": "study",
    "NTASKS": "2",
    "PROCID": "0",
    "LOCALID": "0",
    "NODEID": "0",
    "NNODES": "1",
    "STEP_ID": "0",
    "STEP_NUM_TASKS": "2",
    "STEP_NUM_NODES": "1",
}


def test_a_job_of_slurm_is_requeued_by_its_script_alone(tmp_path, monkeypatch, caplog):
    """Lightning's own handlers would save in the middle of a step: not as one task of several, nor without srun."""
    for name, value in SLURM.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    from common.training.run import house_arguments

    assert [one.auto_requeue for one in house_arguments({})["plugins"] if hasattr(one, "auto_requeue")] == [False]
    monkeypatch.delenv("SLURM_STEP_ID")
    with caplog.at_level("INFO"):
        said = fit_tiny(tmp_path / "run", "--trainer.max_steps", "1")
    assert "auto-requeue" not in said + caplog.text
