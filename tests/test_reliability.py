"""One process or many, one batch or parts of it, stopped or not: the same numbers, for every method.

The rows of docs/reliability.md name these tests.
"""

import csv
import inspect
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from lightning import Callback
from lightning.pytorch.plugins import MixedPrecision

import common.training.files
import methods
from common.model.module import SegmentationModule
from conftest import LONG, ROOT, SMALL, TINY, every_method, fit_tiny, two_processes, weakseg, weakseg_process
from same_run import assert_same_run, load, metrics

OFTEN = [*LONG, "--checkpoint_every", "3"]

# No batch statistics and no dropout: what a part of the batch gives does not depend on the rest of it.
PLAIN = "{arch: Unet, encoder: tu-test_convnext, decoder: {decoder_channels: [16, 16, 8, 8], encoder_depth: 4, " \
        "decoder_use_norm: false}, dropout: 0.0}"  # fmt: skip
# Every pixel labelled and no padding, so that all parts of a batch count as many pixels.
EXACT = ["--model.init_args.network", PLAIN, "--trainer.precision", "64-true", "--trainer.max_steps", "2",
         "--trainer.val_check_interval", "2", "--model.init_args.optimizer", "torch.optim.SGD",
         "--model.init_args.optimizer.init_args.lr", "0.1", "--data.init_args.scale", "[1, 1]",
         "--data.init_args.supervision", "{kind: dense, fraction: null}"]  # fmt: skip


# Without terms that are normalised by what a part of the batch turns out to hold: confident pixels, pairs of a class.
EVEN = {
    "CutMixSeg": {"threshold": 0.2, "confidence": "pixel"},
    "SCL": {"threshold": 0.0},
    "UniMatch": {"threshold": 0.2},
    "Regularized": {"max_labelled": 1.0},
    "DFR": {"fch_weight": 0, "kernel": "deep"},
    "AALR": {"start": 1.0},
}


def active(method, even=True):
    """Options with which the terms of a method act from the first step on; AALR's, which are means over what each part
    of a batch holds, if they need not be `even`."""
    known = inspect.signature(getattr(methods, method).__init__).parameters
    wanted = {name: 0 for name in ("start", "ramp", "reassign_start") if name in known}
    wanted |= EVEN.get(method, {}) if even or method != "AALR" else {}
    return [word for name, value in wanted.items() for word in (f"--model.init_args.{name}", str(value))]


def state(run_dir):
    weights = load(run_dir)["state_dict"].items()
    return torch.cat([value.double().flatten() for name, value in weights if value.is_floating_point()])


# Accumulated parts, two processes ----------------------------------------------------------------------------------


# Adversaries drop channels as they train, drawn for the part of the batch that a process sees.
NO_DROPOUT = "torch.nn.functional.dropout2d = lambda planes, *_, **__: planes"


@pytest.fixture
def no_dropout(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "dropout2d", lambda planes, *_, **__: planes)


@pytest.fixture(scope="session")
def exact(tmp_path_factory):
    """Runs of two exact steps, one per method, and how far they went."""
    done = {}

    def run(method):
        if method not in done:
            folder = tmp_path_factory.mktemp(f"exact-{method}")
            fit_tiny(folder / "run", "--model", method, *EXACT, *active(method))
            fit_tiny(folder / "start", "--model", method, *EXACT, *active(method),
                     "--model.init_args.optimizer.init_args.lr", "0")  # fmt: skip
            moved = (state(folder / "run") - state(folder / "start")).abs().max().item()
            assert moved > 1e-4
            done[method] = folder / "run", moved
        return done[method]

    return run


@pytest.mark.parametrize("method", every_method("Supervised", "UniMatch"))
def test_accumulated_parts_make_the_step_of_the_whole_batch(method, exact, no_dropout, tmp_path):
    if method == "Box":
        pytest.skip("its means are over boxes, of which the parts of a batch hold different numbers")
    whole, moved = exact(method)
    fit_tiny(tmp_path, "--model", method, *EXACT, *active(method), "--trainer.accumulate_grad_batches", "2")
    assert load(tmp_path)["global_step"] == 2
    assert (state(tmp_path) - state(whole)).abs().max().item() < 1e-5 * moved


BOTH = """
import json, os, sys
from conftest import fit_tiny, weakseg
os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
               "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
for method, arguments in json.load(open(f"{folder}/arguments.json")).items():
    fit_tiny(f"{folder}/{method}", "--model", method, *arguments, *two)
    weakseg("test", "--run", f"{folder}/{method}", "--which", "last", *two)
"""


@pytest.mark.slow  # tests/test_cli.py has one method
def test_two_processes_train_and_test_as_one_does_for_every_method(exact, no_dropout, tmp_path):
    """Weights after two steps to 1e-5 of their way, in float64; the test metrics, of integer counts, exactly."""
    arguments = {method: [*EXACT, *active(method)] for method in methods.CLASSES}
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    two_processes(f"sys.path.insert(0, 'tests')\n{NO_DROPOUT}\n{BOTH}", tmp_path)
    for method in methods.CLASSES:
        one, moved = exact(method)
        assert (state(tmp_path / method) - state(one)).abs().max().item() < 1e-5 * moved, method
        found = json.loads((tmp_path / method / "summary.json").read_text())
        assert (found["devices"], found["steps"]) == ("2 x cpu", 2)
        weakseg(
            "test",
            "--run",
            tmp_path / method,
            "--which",
            "last",
            "--trainer.devices",
            "1",
            "--trainer.strategy",
            "auto",
        )
        assert json.loads((tmp_path / method / "summary.json").read_text())["test"] == found["test"], method


# Stopped from outside ----------------------------------------------------------------------------------------------


def in_child(prepare, run_dir, *arguments):
    """Exit status and output of a run in a child process (forked: nothing is imported again), after `prepare()`."""
    log = run_dir.with_name(f"{run_dir.name}.log")
    child = os.fork()
    if child == 0:
        status = 99
        try:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
            prepare()
            from experiments.cli import main

            status = main([str(a) for a in ("fit", "--config", TINY, "--run_dir", run_dir, *arguments)])
        except SystemExit as stop:
            status = stop.code
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, log.read_text()


def at_step(number, act):
    """Have `act` called when step `number` begins."""
    begin = SegmentationModule.training_step

    def step(self, batch, batch_idx):
        if self.global_step == number:
            act()
        return begin(self, batch, batch_idx)

    SegmentationModule.training_step = step


def kill_during_step(number, delay):
    at_step(number, lambda: threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start())


def kill_while_writing(number):
    """Die with the `number`-th checkpoint half on the disk, before it gets its name."""
    calls = []

    def half(path):
        if path.name.startswith(".") and ".ckpt" in path.name:
            calls.append(path)
        if len(calls) >= number:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    common.training.files.sync = half


@pytest.mark.parametrize("fault", ["SIGKILL", "SIGTERM", "while writing", "SIGUSR1"])
@pytest.mark.parametrize("method", every_method("Supervised"))
def test_stopped_at_a_random_step_and_resumed_equals_the_unbroken_run(method, fault, whole, tmp_path):
    chance = random.Random(time.time_ns())
    step, delay, write = chance.randint(4, 12), chance.uniform(0, 0.05), chance.randint(2, 5)
    prepare = {
        "SIGKILL": lambda: kill_during_step(step, delay),
        "SIGTERM": lambda: at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        "SIGUSR1": lambda: at_step(step, lambda: os.kill(os.getpid(), signal.SIGUSR1)),
        "while writing": lambda: kill_while_writing(write),
    }[fault]
    said = f"step {step}, delay {delay}, write {write}"
    arguments = ["--model", method, *SMALL.get(method, []), *OFTEN]
    status, text = in_child(prepare, tmp_path / "cut", *arguments)
    if fault.startswith("SIG") and fault != "SIGKILL":
        assert (status, load(tmp_path / "cut")["global_step"]) == (os.EX_TEMPFAIL, step + 1), text + said
        assert f"{fault}: saving after this step" in text
        assert f"stopped at step {step + 1}, continue with the same command and --resume auto" in text
    else:
        assert status == -signal.SIGKILL, text + said
    fit_tiny(tmp_path / "cut", "--model", method, *OFTEN, "--resume", "auto")
    assert_same_run(whole(method), tmp_path / "cut")
    steps = [int(row["step"]) for row in metrics(tmp_path / "cut") if row["train/loss"]]
    assert steps == list(range(14)), said
    left = [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir() if not path.name.startswith(".")]
    assert sorted(left) == ["best.ckpt", "last.ckpt"]


def test_ctrl_c_saves_and_a_second_one_does_not_wait(tmp_path):
    def interrupt(times):
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)

    status, text = in_child(lambda: at_step(5, lambda: interrupt(1)), tmp_path / "once", *OFTEN)
    assert (status, load(tmp_path / "once")["global_step"]) == (os.EX_TEMPFAIL, 6), text
    status, text = in_child(lambda: at_step(5, lambda: interrupt(2)), tmp_path / "twice", *OFTEN)
    assert (status, load(tmp_path / "twice")["global_step"]) == (1, 3), text


def test_a_signal_before_the_first_step_stops_without_a_checkpoint(tmp_path):
    status, text = in_child(lambda: at_step(0, lambda: os.kill(os.getpid(), signal.SIGTERM)), tmp_path / "run", *OFTEN)
    assert (status, load(tmp_path / "run")["global_step"]) == (os.EX_TEMPFAIL, 1), text


def test_a_signal_between_accumulated_parts_waits_for_the_step(tmp_path):
    arguments = [*OFTEN, "--trainer.accumulate_grad_batches", "2"]
    fit_tiny(tmp_path / "whole", *arguments)
    status, text = in_child(
        lambda: at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM)), tmp_path / "cut", *arguments
    )
    assert (status, load(tmp_path / "cut")["global_step"]) == (os.EX_TEMPFAIL, 6), text
    fit_tiny(tmp_path / "cut", *arguments, "--resume", "auto")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    """The limit on a file's size stands for the disk's end."""

    def no_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        at_step(5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY)))

    fit_tiny(tmp_path / "whole", *OFTEN)
    status, text = in_child(no_room, tmp_path / "cut", *OFTEN)
    assert status == 1, text
    assert f"cannot write {tmp_path / 'cut' / 'checkpoints' / 'last.ckpt'}" in text
    assert "the previous checkpoint is kept; free some space" in text
    assert load(tmp_path / "cut")["global_step"] == 3
    assert len(list((tmp_path / "cut" / "checkpoints").iterdir())) == 2  # nothing half-written is left
    fit_tiny(tmp_path / "cut", *OFTEN, "--resume", "auto")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("name", ["metrics.csv", "summary.json", "pictures/last.png"])
def test_a_full_disk_names_the_file_that_it_cuts_off(name, tmp_path, monkeypatch):
    """Here only this file finds no room; what was there before stays."""
    sync, open_file = common.training.files.sync, Path.open

    def full(path, *arguments, **options):
        if path.name.startswith(f".{Path(name).name}-"):
            raise OSError(28, "No space left on device")
        return sync(path)

    def refused(path, mode="r", *arguments, **options):
        if path.name == name and mode == "a":
            raise OSError(28, "No space left on device")
        return open_file(path, mode, *arguments, **options)

    monkeypatch.setattr(common.training.files, "sync", full)
    monkeypatch.setattr(Path, "open", refused)
    text = fit_tiny(tmp_path / "run", expect=1)
    assert f"weakseg: error: [Errno 28] No space left on device: '{tmp_path / 'run' / name}'" in text
    monkeypatch.undo()
    fit_tiny(tmp_path / "run", "--resume", "auto")
    fit_tiny(tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_two_processes_stop_at_the_same_step_when_one_is_told(tmp_path):
    arguments = ["--model", "TV", *OFTEN, "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    arguments += ["--trainer.accelerator", "cpu", "--trainer.max_steps", "4000"]
    process = weakseg_process("fit", "--config", TINY, "--run_dir", tmp_path, *arguments)
    try:
        while not (tmp_path / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        # The second process, which the first has started.
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        os.kill(int(children[0]), signal.SIGTERM)
        text, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == os.EX_TEMPFAIL, text
    step = load(tmp_path)["global_step"]
    assert f"stopped at step {step}," in text
    more = ["--trainer.max_steps", str(step + 2), "--resume", "auto"]
    process = weakseg_process("fit", "--config", TINY, "--run_dir", tmp_path, *arguments, *more)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert load(tmp_path)["global_step"] == step + 2


# Numbers that are not finite, and few bits -------------------------------------------------------------------------


@pytest.fixture
def broken_steps(monkeypatch):
    """Make the loss of given steps NaN."""

    def breaks(*steps):
        original = methods.Supervised.compute_loss

        def compute_loss(self, batch):
            out = original(self, batch)
            out.loss = out.loss * (float("nan") if self.global_step in steps else 1)
            return out

        monkeypatch.setattr(methods.Supervised, "compute_loss", compute_loss)

    return breaks


def test_some_non_finite_steps_can_be_left_out(broken_steps, tmp_path):
    broken_steps(2)
    fit_tiny(tmp_path / "run", "--skip_nonfinite", "1", "--checkpoint_every", "1")
    assert [row["perf/skipped_steps"] for row in rows(tmp_path / "run") if row["perf/skipped_steps"]] == ["1.0"]
    assert load(tmp_path / "run")["global_step"] == 8
    assert torch.isfinite(state(tmp_path / "run")).all()


def rows(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_left_out_steps_are_counted_over_a_resume(broken_steps, tmp_path):
    broken_steps(2, 5)
    skip = ["--skip_nonfinite", "1", "--checkpoint_every", "1"]
    text = fit_tiny(tmp_path / "run", *skip, expect=1)
    assert "step 5 (1 steps were left out before)" in text
    assert "--skip_nonfinite" in text
    text = fit_tiny(tmp_path / "run", *skip, "--resume", "auto", expect=1)
    assert "step 5 (1 steps were left out before)" in text
    fit_tiny(tmp_path / "run", "--skip_nonfinite", "2", "--checkpoint_every", "1", "--resume", "auto")


def test_a_left_out_step_leaves_the_weights(broken_steps, tmp_path):
    broken_steps(*range(8))
    fit_tiny(tmp_path / "run", "--skip_nonfinite", "8", "--model.init_args.network.dropout", "0")
    fit_tiny(tmp_path / "still", "--skip_nonfinite", "8", "--model.init_args.optimizer.init_args.lr", "0")
    one, two = load(tmp_path / "run")["state_dict"], load(tmp_path / "still")["state_dict"]
    assert all(torch.equal(one[name], two[name]) for name in one if name.endswith("weight"))


@pytest.mark.parametrize("method", every_method("Supervised", "UniMatch"))
def test_bf16_autocast_is_finite_and_learns(method, tmp_path):
    steps = ["--trainer.max_steps", "30", "--trainer.val_check_interval", "30", "--checkpoint_every", "30"]
    fit_tiny(tmp_path, "--model", method, *active(method, even=False), *steps, "--trainer.precision", "bf16-mixed")
    assert torch.isfinite(state(tmp_path)).all()
    assert all(v.dtype in (torch.float32, torch.int64, torch.bool) for v in load(tmp_path)["state_dict"].values())
    found = [row for row in metrics(tmp_path) if row["train/loss"]]
    name = next(name for name in ("train/pce", "train/tag", "train/loss") if name in found[0])
    losses = [float(row[name]) for row in found]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


class Scaled(Callback):
    """Looks at the fp16 scaler."""

    def __init__(self):
        self.scales = []

    def on_train_batch_end(self, trainer, *_):
        self.scales.append(trainer.precision_plugin.scaler.get_scale())


@pytest.mark.parametrize("method", every_method("Supervised", "UniMatch"))
def test_the_fp16_scaler_skips_what_overflows_and_training_goes_on(method, tmp_path, monkeypatch):
    """Lightning takes bf16 for fp16 on a CPU, so the plugin is given; the first scale is far too high."""
    import experiments.cli.lightning as cli

    seen = Scaled()
    build = cli.Trainer

    def trainer(**config):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-8)
        plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        return build(**{**config, "plugins": [*config["plugins"], plugin], "callbacks": [*config["callbacks"], seen]})

    monkeypatch.setattr(cli, "Trainer", trainer)
    fit_tiny(tmp_path, "--model", method, *active(method, even=False), "--trainer.max_steps", "12")
    assert seen.scales[0] < 2.0**40  # the first step was skipped
    assert seen.scales[-1] == seen.scales[-2] > 1  # the last was not
    assert torch.isfinite(state(tmp_path)).all()


# The batch and the learning rate -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "options", "rate"),
    [
        ("torch.optim.AdamW", [], 0.01 * 2**0.5),
        ("torch.optim.SGD", [], 0.02),
        ("torch.optim.SGD", ["--model.init_args.optimizer.init_args.lr", "0.3"], 0.3),
        ("torch.optim.SGD", ["--model.optimizer.lr=0.3"], 0.3),
        ("torch.optim.SGD", ["--model.optimizer", "{class_path: torch.optim.SGD, init_args: {lr: 0.3}}"], 0.3),
        ("torch.optim.SGD", ["--trainer.accumulate_grad_batches", "2"], 0.02),
    ],
)
def test_the_learning_rate_follows_a_batch_that_overrides_the_configs(optimizer, options, rate, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {{init_args: {{optimizer: {{class_path: {optimizer}, init_args: {{lr: 0.01}}}}, schedule: constant, "
        "warmup: 0.0}}\n"
    )
    run = ["--config", config, *options, "--trainer.max_steps", "2"]
    fit_tiny(tmp_path / "own", *run)
    text = fit_tiny(tmp_path / "run", *run, "--data.init_args.batch_size", "8")
    group = load(tmp_path / "run")["optimizer_states"][0]["param_groups"][1]
    assert group["lr"] == pytest.approx(rate)
    assert f"learning rate {rate:g}" in text
    assert "global batch 8" in text
    own = load(tmp_path / "own")["optimizer_states"][0]["param_groups"][1]["lr"]
    assert own == pytest.approx(0.3 if "0.3" in " ".join(map(str, options)) else 0.01)


def test_the_soak_can_start():
    """It takes minutes, and is not in these tests."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "soak.py", "--help"], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
