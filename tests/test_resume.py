"""A run that is killed and resumed equals the unbroken one, bit for bit (on the CPU)."""

import os
import random
import signal
import time

import pytest
import torch

from conftest import LONG, REPRESENTATIVE, TINY, every_method, fit_tiny, weakseg, weakseg_process
from same_run import assert_same_run, load

OFTEN = [*LONG, "--checkpoint_every", "1"]


@pytest.mark.parametrize("method", every_method("UniMatch"))
def test_same_seed_twice_gives_the_same_run_and_another_seed_another(method, whole, tmp_path):
    fit_tiny(tmp_path / "two", "--model", method, *OFTEN)
    fit_tiny(tmp_path / "other", "--model", method, *OFTEN, "--seed_everything", "1")
    assert_same_run(whole(method), tmp_path / "two")
    key = "network.model.segmentation_head.0.weight"
    assert not torch.equal(load(whole(method))["state_dict"][key], load(tmp_path / "other")["state_dict"][key])


@pytest.mark.parametrize("method", every_method("DFR", "SCL", "CAM", *REPRESENTATIVE))
@pytest.mark.parametrize("stop", [pytest.param(3, marks=pytest.mark.slow), 8])
def test_stopped_at_a_checkpoint_and_resumed_equals_the_unbroken_run(method, stop, whole, tmp_path):
    """After 3 steps an epoch ends, after 8 a validation was made and an epoch's last batch follows."""
    with pytest.MonkeyPatch.context() as patch:
        from common.training.checkpoints import LastCheckpoint

        save = LastCheckpoint._save

        def save_and_die(self, trainer):
            save(self, trainer)
            if trainer.global_step == stop:
                raise ValueError("the power is gone")

        patch.setattr(LastCheckpoint, "_save", save_and_die)
        fit_tiny(tmp_path / "cut", "--model", method, *OFTEN, expect=1)
    assert load(tmp_path / "cut")["global_step"] == stop
    fit_tiny(tmp_path / "cut", "--model", method, *OFTEN, "--resume", "auto")
    assert_same_run(whole(method), tmp_path / "cut")


def kill_and_resume(run_dir, arguments, delay):
    """SIGKILL the whole process group `delay` seconds after training began, then resume until it is through."""
    process = weakseg_process("fit", "--config", TINY, "--run_dir", run_dir, *arguments)
    while not (run_dir / "config.yaml").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = not (run_dir / "summary.json").exists()
    weakseg("fit", "--config", TINY, "--run_dir", run_dir, *arguments, "--resume", "auto")
    return killed


def test_killed_at_three_random_moments_with_workers_equals_the_unbroken_run(tmp_path):
    arguments = ["--model", "TV", "--data.init_args.num_workers", "2", *OFTEN]
    start = time.perf_counter()
    weakseg("fit", "--config", TINY, "--run_dir", tmp_path / "whole", *arguments)
    seconds = time.perf_counter() - start
    chance = random.Random(time.time_ns())
    kills = 0
    for attempt in range(3):
        run_dir = tmp_path / f"cut{attempt}"
        killed = kill_and_resume(run_dir, arguments, delay=chance.uniform(0.1, 0.7) * seconds)
        kills += killed
        seconds *= 1 if killed else 0.3  # the machine has become faster since
        assert_same_run(tmp_path / "whole", run_dir)
    assert kills, "every run was through before it was killed: make it longer"
