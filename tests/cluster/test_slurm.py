"""On a real SLURM of two nodes, which `slurm.sh` starts on this machine: `make cluster`."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT, TINY, fit_tiny, weakseg, weakseg_process
from experiments.studies.element import slurm_states
from same_run import assert_same_run

HERE = Path(__file__).parent
pytestmark = pytest.mark.cluster
COMMAND = [sys.executable, "-m", "experiments.cli"]


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory):
    """The folder of a running SLURM."""
    if os.geteuid() or not shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin"):
        pytest.skip("a SLURM is started by root alone, where Debian's slurm-wlm is installed: make cluster")
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PYTHONPATH", f"{ROOT}")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MASTER_ADDR", "127.0.0.1")  # the nodes' names are in no hosts file
        try:
            subprocess.run([HERE / "slurm.sh", "start", folder], check=True, timeout=120)
            yield folder
        finally:
            subprocess.run([HERE / "slurm.sh", "stop", folder], check=False)


def srun(*words, **environment):
    done = subprocess.run(
        ["srun", *map(str, words)], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def wait_until(happened, seconds=400.0):
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end
        time.sleep(0.5)
    return found


def test_a_run_over_two_nodes_is_that_over_two_processes_of_one(tmp_path):
    """No overlay, no devices: nodes and tasks are those of the step."""
    arguments = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "6"]
    words = [*COMMAND, "fit", "--config", TINY, "--run_dir", tmp_path / "nodes", *arguments]
    status, said = srun("-N2", "-n2", "--ntasks-per-node=1", *words)
    assert status == 0, said
    assert said.count("global batch 4 (2 per device)") == 1
    assert "requeue" not in said
    assert "deprecat" not in said
    words = ["fit", "--config", TINY, "--run_dir", tmp_path / "one", *arguments, "--trainer.devices", "2"]
    one = weakseg_process(*words)  # Lightning starts the second process with the words of the first
    assert one.wait(300) == 0, one.stdout.read()
    assert_same_run(tmp_path / "one", tmp_path / "nodes")


def test_options_that_contradict_the_step_are_one_line(tmp_path):
    words = [*COMMAND, "fit", "--config", TINY, "--run_dir", tmp_path / "run", "--trainer.devices", "4"]
    status, said = srun("-n2", *words)
    assert status
    assert said.startswith("weakseg: error")
    assert "Traceback" not in said
    assert "srun has started 2 processes on each of 1 nodes, the config says trainer.devices 4" in said


def test_a_batch_script_without_srun_is_a_process_like_any_other(tmp_path):
    words = " ".join(map(str, [*COMMAND, "fit", "--config", TINY, "--run_dir", tmp_path / "run"]))
    subprocess.run(
        ["sbatch", "--wait", "--ntasks=2", f"--output={tmp_path}/log", "--wrap", words], check=True, cwd=ROOT
    )
    assert (tmp_path / "run" / "summary.json").exists(), (tmp_path / "log").read_text()


STUDY = f"""
title: Tiny scenes
regimes:
  pixels: {{configs: [{TINY}], set: {{trainer.max_steps: 2400, trainer.val_check_interval: 1200,
            trainer.log_every_n_steps: 20}}}}
seeds: [0, 1]
baseline: base
rows:
  base: {{config: supervised}}
  TV: {{config: tv, set: {{model.tv_weight: 0.3}}}}
  + MRF: {{of: base, test: {{model.postprocess.kind: mrf, model.postprocess.mu: 1.0}}}}
search:
  + MRF: {{over: {{model.postprocess.mu: [0.0, 1.0]}}}}
"""
JOBS = "partition: low\ntime: 2\nwarning: 30\ncpus: 1\nat_once: 2\n"  # the machine may have two cores


def study(folder, *words, expect=0):
    done = subprocess.run(
        [*COMMAND, "study", "few.yaml", "--runs", "runs", "--output", "page", *words], cwd=folder, text=True,
        capture_output=True, timeout=2400,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def restarts(job):
    told = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"Restarts=(\d+)", told)[1])


def busy():
    """The nodes that something runs on."""
    told = ["squeue", "--noheader", "--states=RUNNING", "--format=%N"]
    return subprocess.run(told, capture_output=True, text=True, check=True).stdout.split()


def state_of(folder, row, seed):
    lines = study(folder, "--status").splitlines()
    return next(line for line in lines if re.match(rf"pixels/{row} +{seed} ", line))


@pytest.mark.slow
def test_a_study_that_is_disturbed_in_every_way_gives_the_page_of_an_undisturbed_one(tmp_path, slurm):
    """Time limits that each element reaches, a job that preempts, a requeue by hand, a cancelled element, a node that
    dies with its processes."""
    quiet, disturbed = tmp_path / "quiet", tmp_path / "disturbed"
    for folder in (quiet, disturbed):
        folder.mkdir()
        (folder / "few.yaml").write_text(STUDY)
        (folder / "cluster.yaml").write_text(JOBS)
    said = study(disturbed, "--cluster", "slurm")
    array = re.search(r"4 of 4 runs submitted, job (\d+)", said)[1]
    run = {(row, seed): disturbed / f"runs/few/pixels/{row}/seed{seed}" for row in ("base", "TV") for seed in (0, 1)}
    elements = dict(zip(run, (f"{array}_{n}" for n in range(4)), strict=True))

    def trains(key):
        return lambda: (run[key] / "metrics.csv").exists() and slurm_states([array]).get(elements[key]) == "RUNNING"

    # One element is requeued by hand: its sister runs on.
    wait_until(lambda: trains(("base", 0))() and trains(("base", 1))())
    before = {key: restarts(elements[key]) for key in run}
    subprocess.run(["scontrol", "requeue", elements["base", 1]], check=True)
    time.sleep(2)
    after = {key: restarts(elements[key]) for key in run}
    assert {key for key in run if after[key] > before[key]} == {("base", 1)}
    assert slurm_states([array])[elements["base", 0]] == "RUNNING"

    # One is cancelled: the table says so, and the next call submits it again, and nothing else.
    subprocess.run(["scancel", elements["base", 0]], check=True)
    wait_until(lambda: slurm_states([array]).get(elements["base", 0]) == "CANCELLED")
    assert "cancelled  at step" in state_of(disturbed, "base", 0)
    again = re.search(r"1 of 4 runs submitted, job (\d+)", study(disturbed, "--cluster", "slurm"))[1]
    wait_until(lambda: slurm_states([again]).get(again) == "RUNNING")

    # A job of the high partition takes both nodes.
    words = ["sbatch", "--wait", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap"]
    subprocess.run([*words, "sleep 3"], check=True, timeout=300)

    # A node dies.
    kill_node(slurm, wait_until(busy)[0])
    said = study(disturbed, "--cluster", "slurm", "--wait")
    assert "page:" in said

    assert all(restarts(element) for key, element in elements.items() if key != ("base", 0))
    study(quiet, "--jobs", "2")
    for folder in run.values():
        assert_same_run(quiet / folder.relative_to(disturbed), folder)
    pages = [(folder / "page" / "few.md").read_text() for folder in (quiet, disturbed)]
    assert without_times(pages[0]) == without_times(pages[1])


def without_times(page):
    return re.sub(r"[\d.]+ (min|s each)", "", page)


def kill_node(folder, node):
    """slurmd of a node and all that it has started, at once; another slurmd takes its place after a while."""
    daemon = int((folder / f"slurmd-{node}.pid").read_text())
    steps = subprocess.run(["pgrep", "-f", f"slurmstepd.*{node}|slurmstepd: "], capture_output=True, text=True).stdout
    on_node = [
        pid for pid in steps.split() if f"spool-{node}" in Path(f"/proc/{pid}/environ").read_text(errors="replace")
    ]
    os.kill(daemon, signal.SIGKILL)
    for pid in on_node:
        subprocess.run(["pkill", "-KILL", "-P", pid], check=False)
        os.kill(int(pid), signal.SIGKILL)


def test_the_commands_of_the_page_lead_to_a_finished_one(tmp_path):
    """As they are written, with runs of a few steps."""
    page = (ROOT / "docs" / "clusters.md").read_text().split("```console\n")[1].split("```")[0]
    install, *commands = [shlex.split(line) for line in page.splitlines()]
    assert install == ["pip", "install", "weakseg[cluster]"]
    assert len(commands) == 5
    short = [
        "--output",
        "page",
        "--",
        "--trainer.max_steps=4",
        "--trainer.val_check_interval=4",
        "--data.train=8",
        "--data.val=2",
        "--data.test=2",
    ]
    (tmp_path / "cluster.yaml").write_text("cpus: 1\n")
    said = []
    for command, *words in commands:
        assert command == "weakseg"
        done = subprocess.run(
            [*COMMAND, *words, *(short if words[0] == "study" else [])], cwd=tmp_path, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout)
    assert "4 runs; " in said[0]
    assert "4 of 4 runs submitted" in said[1]
    assert re.search(r"eight pixels an image/TV +1 +(queued|running|done)", said[2])
    assert "page: " in said[3]
    assert (tmp_path / "report").is_dir()


def test_predictions_in_one_process_in_shares_and_under_srun_are_the_same(tmp_path):
    fit_tiny(tmp_path / "run")
    images = tmp_path / "images"
    images.mkdir()
    make_images(images, 500)
    told = ["predict", "--run", tmp_path / "run", "--images", images]
    weakseg(*told, "--output", tmp_path / "one")
    for share in ("3/3", "1/3", "2/3"):
        weakseg(*told, "--output", tmp_path / "shares", "--shard", share)
    # Killed in the middle, and resumed.
    words = [*COMMAND, *told, "--output", tmp_path / "tasks"]
    process = subprocess.Popen(["srun", "-n2", *map(str, words)], cwd=ROOT)
    wait_until(lambda: len([*(tmp_path / "tasks").glob("*.png")]) > 4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    job = subprocess.run(["squeue", "--noheader", "--format=%i"], capture_output=True, text=True).stdout.split()
    subprocess.run(["scancel", *job], check=False)
    wait_until(lambda: not subprocess.run(["squeue", "--noheader"], capture_output=True, text=True).stdout)
    status, said = srun("-n2", *words, "--resume")
    assert status == 0, said
    assert snapshot_of(tmp_path / "one") == snapshot_of(tmp_path / "shares") == snapshot_of(tmp_path / "tasks")
    assert len(snapshot_of(tmp_path / "one")) == 1000


def snapshot_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}


def make_images(folder, count):
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(count):
        pixels = draw.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((320, 240)).save(folder / f"{number:03}.jpg")


def test_test_scores_of_two_tasks_are_those_of_one(tmp_path):
    fit_tiny(tmp_path / "run")
    one = weakseg("test", "--run", tmp_path / "run", "--which", "last")
    status, two = srun("-n2", *COMMAND, "test", "--run", tmp_path / "run", "--which", "last")
    assert status == 0, two
    assert re.findall(r"miou +([\d.]+)", one) == re.findall(r"miou +([\d.]+)", two) != []
