"""`python -m experiments.studies.runner`: grids that are killed, that fail in part, and that were done before."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import methods
from conftest import ROOT, TINY, fit_tiny, weakseg
from experiments.cli.configs import compose
from experiments.studies.runner import Study, command, grid, remaining, share_done

SWEEP = """
program: weakseg
method: grid
parameters:
  config: {value: %s}
  trainer.max_steps: {values: [%s]}
command: ["${program}", fit, "${args}"]
"""


def start(file, folder, *extra):
    words = [sys.executable, "-m", "experiments.studies.runner", str(file), "--folder", str(folder), *extra]
    # A shell's background jobs, as tests may be, ignore SIGINT, and Python leaves it at that.
    return subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def metrics(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(file)]


def test_killed_during_a_run_and_continued_it_leaves_what_the_unbroken_runs_do(tmp_path):
    """The whole process group is killed: study and run."""
    sweep = tmp_path / "few.yaml"
    sweep.write_text(SWEEP % (TINY, "24"))
    run = tmp_path / "runs" / "few" / "config=tiny,max_steps=24"
    first = start(sweep, tmp_path / "runs")
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (run / "summary.json").exists(), "it was through before it was killed"
    second = start(sweep, tmp_path / "runs")
    text, _ = second.communicate()
    assert second.returncode == 0, text
    assert "[1/1] done" in text
    fit_tiny(tmp_path / "whole", "--trainer.max_steps", "24")
    assert metrics(run) == metrics(tmp_path / "whole")
    third, _ = start(sweep, tmp_path / "runs").communicate()
    assert third.startswith(f"[1/1] finished before: {run}")


def test_a_failed_run_is_reported_and_the_others_are_made(tmp_path, monkeypatch, capsys):
    (tmp_path / "some.yaml").write_text(SWEEP % (TINY, "bad, 1, 2"))
    study = Study(tmp_path / "some.yaml", tmp_path / "runs", 1, [])
    monkeypatch.setattr(Study, "words", lambda self, number: as_python(self, number))

    def as_python(self, number):  # stands for the command: starting it takes seconds
        steps, folder = self.points[number]["trainer.max_steps"], self.folders[number]
        script = (
            "import sys, pathlib\nif sys.argv[1] == 'bad': sys.exit(1)\n"
            "pathlib.Path(sys.argv[2]).mkdir(), pathlib.Path(sys.argv[2], 'summary.json').write_text('{}')"
        )
        return [sys.executable, "-c", script, str(steps), str(folder)]

    assert study.run() == ["config=tiny,max_steps=bad"]
    text = capsys.readouterr().out
    assert "[1/3] failed, see " in text
    assert outcomes(text) == ["failed", "done", "done"]
    assert "left)" in text
    assert study.done() == 3


def outcomes(text):
    return [line.split("] ")[1].split(",")[0].split(":")[0] for line in text.splitlines()]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stopping_the_study_stops_its_runs_and_starts_no_more(how, tmp_path):
    sweep = tmp_path / "sleep.yaml"
    sweep.write_text(
        "program: sleep\nmethod: grid\nparameters: {x: {values: [1, 2]}}\n"
        f"command: [{sys.executable}, -c, 'import time, os; print(os.getpid(), flush=True); time.sleep(60)']\n"
    )
    study = start(sweep, tmp_path / "runs")
    log = tmp_path / "runs" / "sleep" / "x=1.log"
    while not (log.exists() and log.read_text()):
        assert study.poll() is None, study.stdout.read()
        time.sleep(0.02)
    study.send_signal(how)
    text, _ = study.communicate(timeout=30)
    assert study.returncode == 1
    assert "stopped; the same command continues" in text
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)
    assert not (tmp_path / "runs" / "sleep" / "x=2.log").exists()


def test_a_run_that_outlived_its_study_is_waited_for(tmp_path):
    """The study alone is killed; its run goes on, and a second study must not write to the same folder meanwhile."""
    sweep = tmp_path / "slow.yaml"
    folder = tmp_path / "runs" / "slow" / "x=1"
    script = f"import time, pathlib; print(1, flush=True); time.sleep(2); p = pathlib.Path('{folder}'); p.mkdir(); " \
             "(p / 'summary.json').write_text('')"  # fmt: skip
    sweep.write_text(yaml.safe_dump({
        "program": "slow", "method": "grid", "parameters": {"x": {"value": 1}},
        "command": [sys.executable, "-c", script]}))  # fmt: skip
    first = start(sweep, tmp_path / "runs")
    log = tmp_path / "runs" / "slow" / "x=1.log"
    while not (log.exists() and log.read_text()):
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.02)
    first.kill()
    text, _ = start(sweep, tmp_path / "runs").communicate(timeout=30)
    assert "another process makes" in text
    assert "[1/1] finished before" in text
    assert log.read_text() == "1\n"


def test_progress_counts_steps_and_time_left_is_that_of_what_was_done_here(tmp_path):
    assert share_done(tmp_path) == 0
    (tmp_path / "config.yaml").write_text("trainer: {max_steps: 40}\n")
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss\n")
    assert share_done(tmp_path) == 0
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss\n9,0,1.5\n")
    assert share_done(tmp_path) == 0.25
    (tmp_path / "summary.json").write_text("{}")
    assert share_done(tmp_path) == 1
    # 2 of 8 runs were done before, 2 more took 100 s: 4 are left.
    assert remaining(100, before=2, now=4, total=8) == "03:20"
    assert remaining(100, before=2, now=2, total=8) == "?"


def test_a_value_may_be_null_or_false():
    parameters = {"a": {"value": None}, "b": {"values": [False, 1]}}
    sweep = {"method": "grid", "parameters": parameters, "program": "weakseg", "command": ["${args}"]}
    assert grid(sweep) == [{"a": None, "b": False}, {"a": None, "b": 1}]
    assert command(sweep, grid(sweep)[0], Path("run"), [])[:2] == ["--a=null", "--b=False"]


def test_the_sweep_of_all_methods_has_all_methods_and_one_kind_of_labels():
    sweep = yaml.safe_load((ROOT / "experiments" / "sweeps" / "synthetic_all.yaml").read_text())
    points = grid(sweep)
    named = {}
    for point in points:
        parts = [yaml.safe_load(text) for text in compose(ROOT / point["config"])]
        named[point["config"]] = next(
            p["model"]["class_path"] for p in parts[::-1] if "class_path" in p.get("model", {})
        )
    assert {*named.values()} == {*methods.CLASSES}, "experiments/sweeps/synthetic_all.yaml: one recipe of every method"
    assert len(points) == 2 * len(methods.CLASSES)
    assert {key for key, choice in sweep["parameters"].items() if len(choice.get("values", [])) > 1} == {
        "config", "seed_everything"}  # fmt: skip


@pytest.mark.parametrize("file", sorted((ROOT / "experiments" / "sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_an_agent_of_w_and_b_gives_a_run_the_same_options(file, tmp_path):
    """By W&B's own functions."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    study = Study(file, tmp_path, jobs=1, extra=[])
    for number, point in enumerate(study.points):
        made = create_sweep_command_args({"args": {key: {"value": value} for key, value in point.items()}})
        made["program"] = [study.sweep["program"]]
        words = [part for word in create_sweep_command(study.sweep["command"])
                 for part in (made[word[2:-1]] if word.startswith("${") else [word])]  # fmt: skip
        assert words[:2] == ["weakseg", "fit"]
        assert study.words(number)[3 : 2 + len(words)] == words[1:]


def test_runs_of_an_agent_that_differ_in_a_weight_have_directories_of_their_own(tmp_path):
    # The agent's environment; offline, for want of a server.
    words = [
        "fit",
        "--config",
        TINY,
        "--trainer.max_steps",
        "1",
        "--trainer.val_check_interval",
        "1",
        "--wandb=offline",
    ]
    for name in ("a1", "b2"):
        done = subprocess.run(
            [sys.executable, "-m", "experiments.cli", *map(str, words)], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": name},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    folders = sorted(path.parent for path in tmp_path.glob("runs/*/*/*/summary.json"))
    assert [path.name.rsplit("-", 1)[1] for path in folders] == ["a1", "b2"]
    assert [(path / "wandb" / "run_id").read_text() for path in folders] == ["a1", "b2"]


@pytest.mark.slow
def test_a_study_of_all_methods_from_start_to_report(tmp_path):
    """Killed once on the way, it ends in the table of an unbroken one."""
    sweep = ROOT / "experiments" / "sweeps" / "synthetic_all.yaml"
    small = {"trainer.max_steps": 6, "trainer.val_check_interval": 3, "checkpoint_every": 2,
             "trainer.log_every_n_steps": 1, "data.init_args.num_workers": 0, "data.init_args.train": 24,
             "data.init_args.val": 4, "data.init_args.test": 6}  # fmt: skip
    extra = ["--", *(f"--{key}={value}" for key, value in small.items())]
    first = start(sweep, tmp_path / "broken", *extra)
    while not list(tmp_path.glob("broken/synthetic_all/*seed_everything=1/checkpoints/last.ckpt")):
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    tables = {}
    for name in ("broken", "whole"):
        study = start(sweep, tmp_path / name, *extra)
        text, _ = study.communicate()
        assert study.returncode == 0, text
        report = tmp_path / name / "report"
        printed = weakseg("compare", tmp_path / name / "synthetic_all", "--test", "--output", report)
        rows = [line for line in printed.splitlines() if line.startswith("| ") and " 2 |" in line]
        assert {row.split()[1] for row in rows} == {*methods.CLASSES}
        assert printed.count("Synthetic, pixels-0.002\n") == 1
        assert (report / "report.html").stat().st_size > 100_000
        costs = ("seconds", "images_per_s", "peak_memory_gb")
        with (report / "table.csv").open() as file:
            tables[name] = [{k: v for k, v in row.items() if k not in costs} for row in csv.DictReader(file)]
    assert tables["broken"] == tables["whole"]
