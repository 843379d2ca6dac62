"""torchrun over two agents, as on two nodes: one is killed, the other ends in time, the restart goes on."""

import os
import socket
import subprocess
import sys
import time

import pytest

from conftest import ROOT, TINY, weakseg_process
from same_run import assert_same_run

pytestmark = pytest.mark.cluster


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def agents(run_dir, port, *arguments):
    words = [
        "fit",
        "--config",
        TINY,
        "--run_dir",
        run_dir,
        "--trainer.accelerator",
        "cpu",
        "--resume",
        "auto",
        *arguments,
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--max_restarts=0"]
    return [
        subprocess.Popen(
            [*map(str, [*torchrun, f"--node_rank={rank}", "--master_addr=127.0.0.1", f"--master_port={port}"]),
             "-m", "experiments.cli", *map(str, words)],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip


def test_an_agent_is_killed_the_other_ends_and_the_restart_is_the_unbroken_run(tmp_path):
    steps = ["--trainer.max_steps", "400", "--trainer.val_check_interval", "150", "--checkpoint_every", "20"]
    first = agents(tmp_path / "cut", free_port(), *steps)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    end = time.monotonic() + 180
    while not last.exists():
        assert time.monotonic() < end
        assert all(agent.poll() is None for agent in first)
        time.sleep(0.1)
    first[1].kill()
    since = time.monotonic()
    said, _ = first[0].communicate(timeout=120)
    assert first[0].returncode
    assert time.monotonic() - since < 60, said
    for agent in agents(tmp_path / "cut", free_port(), *steps):
        said, _ = agent.communicate(timeout=300)
        assert agent.returncode == 0, said
    words = ["fit", "--config", TINY, "--run_dir", tmp_path / "whole", "--trainer.accelerator", "cpu", *steps]
    whole = weakseg_process(*words, "--trainer.devices", "2")
    said, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, said
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
