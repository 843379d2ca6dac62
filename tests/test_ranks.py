"""What one process cannot do, or only one refuses, ends all of them within seconds and with one line."""

import os
import socket
import time

import pytest

from conftest import TINY, fit_tiny, slow_but_for, weakseg_process

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]


def ended(*processes, within=180):
    """What they printed; all have failed. Two starts, one after the other, take long on a slow machine; a hang takes
    half an hour."""
    since = time.monotonic()
    try:
        texts = [process.communicate(timeout=within)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert time.monotonic() - since < within
    assert all(process.returncode for process in processes), texts
    return "".join(texts)


def one_line(text):
    lines = {line for line in text.splitlines() if line.startswith("weakseg: error: ")}
    assert len(lines) == 1, text  # of a process that is seconds behind, the other one has told it too
    assert "Traceback" not in text
    return lines.pop()


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def by_torchrun(run_dir, *arguments):
    """Two processes as torchrun starts them."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test",
              "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}  # fmt: skip
    words = ["fit", "--config", TINY, "--run_dir", run_dir, *arguments, *TWO]
    return [weakseg_process(*words, **shared, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]


@pytest.mark.parametrize("split", slow_but_for(["val", "test"], "val"))
def test_fewer_images_to_evaluate_than_processes(split, tmp_path):
    if split == "test":
        fit_tiny(tmp_path / "run", "--data.init_args.test", "1", "--trainer.max_steps", "1")
        process = weakseg_process("test", "--run", tmp_path / "run", *TWO)
    else:
        words = ["fit", "--config", TINY, "--run_dir", tmp_path / "run", "--data.init_args.val", "1", *TWO]
        process = weakseg_process(*words)
    assert "1 images to evaluate cannot be shared by 2 devices: use 1" in one_line(ended(process))


@pytest.mark.slow
def test_a_used_directory_under_torchrun(tmp_path):
    fit_tiny(tmp_path / "run", "--trainer.max_steps", "1")
    text = ended(*by_torchrun(tmp_path / "run"))
    assert "holds a run already" in text
    assert "Traceback" not in text


def test_a_directory_in_use_under_torchrun(tmp_path):
    """Only the first process sees the lock; the second ends with it."""
    from test_run_directory import holder

    process = holder(tmp_path / "run")
    try:
        text = ended(*by_torchrun(tmp_path / "run"))
    finally:
        process.kill()
        process.wait()
    assert f"is in use by process {process.pid} on" in one_line(text)


def test_a_taken_port(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = ["fit", "--config", TINY, "--run_dir", tmp_path / "run", *TWO]
        text = ended(weakseg_process(*words, MASTER_ADDR="localhost", MASTER_PORT=port))
    assert "set MASTER_PORT to a free one" in one_line(text)


def test_the_death_of_one_process_is_that_of_all(tmp_path):
    """However it comes: here the first one is killed, and the second, which waits for it, goes with it."""
    words = ["fit", "--config", TINY, "--run_dir", tmp_path / "run", "--trainer.max_steps", "4000", *TWO]
    process = weakseg_process(*words)
    path = tmp_path / "run" / "metrics.csv"
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        children = [int(one) for one in file.read().split()]
    assert children
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{one}") and "Z" not in state(one) for one in children):
        assert time.monotonic() < end
        time.sleep(0.1)


def state(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"
