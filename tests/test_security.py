"""Files from elsewhere are data: no checkpoint runs code, whatever it says. See docs/security.md."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from conftest import ROOT, fit_tiny, weakseg
from experiments.runs.load import load_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("security") / "run"
    fit_tiny(run_dir, "--model", "TV", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2")
    return run_dir


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A working directory with a module that leaves a mark when it is imported."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Model: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def forged(trained, folder, change):
    """A copy of the run whose checkpoint's config was changed."""
    run_dir = shutil.copytree(trained, folder / "forged")
    for which in ("best", "last"):
        path = run_dir / "checkpoints" / f"{which}.ckpt"
        content = torch.load(path, weights_only=True)
        config = yaml.safe_load(content["weakseg"]["config"])
        config = change(config) or config
        content["weakseg"]["config"] = config if isinstance(config, str) else yaml.safe_dump(config)
        torch.save(content, path)
    return run_dir


def touch(desk):
    return {"class_path": "os.system", "init_args": {"command": f"touch {desk / 'mark'}"}}


def into(*keys, value):
    """A change that sets a value in the config; `value` may be a function of the mark's folder."""

    def change(config):
        place = config
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value(Path.cwd()) if callable(value) else value

    return change


MODEL, DATA, TRAINER = ("model", "init_args"), ("data", "init_args"), ("trainer",)
# Refused: the change, and what the line says.
HOSTILE = {
    "a function as model": (into("model", value=touch), "cannot be read"),
    "a class of the standard library": (into("model", "class_path", value="subprocess.Popen"), "subprocess.Popen"),
    "a module of the working directory": (into("model", "class_path", value="evil.Model"), "evil.Model"),
    "a module as data": (into("data", "class_path", value="evil.Model"), "evil.Model"),
    "the base class": (into("model", "class_path", value="common.model.module.SegmentationModule"), "Segmentation"),
    "a network that is a class": (into(*MODEL, "network", "decoder", value=touch), "names a class"),
    "a class deep inside": (into(*MODEL, "network", "decoder", value=lambda d: {"a": [{"b": touch(d)}]}), "a class"),
    "a class as inference": (into(*MODEL, "inference", value=touch), "names a class"),
    "an option that there is not": (into(*MODEL, "callbacks", value=["evil.Model"]), "option 'callbacks'"),
    "an option of the network": (into(*MODEL, "network", "hook", value="evil.Model"), "network.hook"),
    "an option of the data": (into(*DATA, "hook", value="evil.Model"), "option 'hook'"),
    "a number as text": (into(*MODEL, "tv_weight", value="__import__('evil')"), "tv_weight"),
    "a list as number": (into(*MODEL, "warmup", value=[1]), "warmup"),
    "a kind that there is not": (into(*DATA, "supervision", "kind", value="evil"), "supervision"),
    "a seed": (into("seed_everything", value="evil"), "seed 'evil'"),
    "a precision": (into(*TRAINER, "precision", value="evil"), "precision 'evil'"),
    "a text": (lambda config: "!!python/object/apply:os.system ['touch mark']", "cannot be read"),
    "a list": (lambda config: "[1, 2]", "cannot be read"),
    "nothing": (lambda config: "{}", "cannot be read"),
    "no options": (into("model", "init_args", value=None), "cannot be read"),
    "no network": (into(*MODEL, "network", value=3), "cannot be read"),
    "a broken text": (lambda config: "model: [", "cannot be read"),
}
# Left alone: none of it is needed after training.
IGNORED = {
    "an optimizer": into(*MODEL, "optimizer", value=touch),
    "callbacks": into(*TRAINER, "callbacks", value=lambda d: [touch(d)]),
    "a logger": into(*TRAINER, "logger", value=touch),
    "a profiler": into(*TRAINER, "profiler", value=touch),
    "plugins": into(*TRAINER, "plugins", value=lambda d: [touch(d)]),
    "a strategy": into(*TRAINER, "strategy", value=touch),
    "a further section": into("os.system", value=touch),
}


@pytest.mark.parametrize("row", HOSTILE)
def test_hostile_configs_end_in_one_line_and_run_nothing(row, trained, desk):
    change, words = HOSTILE[row]
    run_dir = forged(trained, desk, change)
    before = {*desk.rglob("*")}
    for verb in ("test", "export"):
        more = ["--output", "out.pt2"] if verb == "export" else []
        text = weakseg(verb, "--run", run_dir, *more, expect=1)
        assert text.startswith("weakseg: error: ")
        assert len(text.strip().splitlines()) == 1
        assert words in text
    with pytest.raises(ValueError, match="checkpoint"):
        load_run(run_dir)
    assert {*desk.rglob("*")} == before


@pytest.mark.parametrize("row", IGNORED)
def test_what_a_checkpoint_says_beyond_method_and_data_is_left_alone(row, trained, desk):
    run_dir = forged(trained, desk, IGNORED[row])
    weakseg("validate", "--run", run_dir, "--trainer.enable_progress_bar", "false")
    assert type(load_run(run_dir).model).__name__ == "TV"
    assert not (desk / "mark").exists()


def test_a_module_of_the_working_directory_is_not_imported_by_python_m(trained, desk):
    """`python -m` puts the working directory first."""
    run_dir = forged(trained, desk, into("model", "class_path", value="evil.Model"))
    words = [sys.executable, "-m", "experiments.cli", "test", "--run", str(run_dir)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(words, cwd=desk, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "evil.Model" in done.stderr
    assert not (desk / "mark").exists()


class Command:
    def __init__(self, line):
        self.line = line

    def __reduce__(self):
        return os.system, (self.line,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_nobody_is_told_to_run_it(zipped, desk):
    path = desk / "code.ckpt"
    content = {"state_dict": {}, "weakseg": {"config": Command(f"touch {desk / 'mark'}")}}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    for words in (["test", "--ckpt", path], ["export", "--run", path, "--output", "out.pt2"]):
        text = weakseg(*words, expect=1)
        assert "may run code" in text or "cannot be read" in text
        assert "weights_only" not in text
    assert not (desk / "mark").exists()


def test_a_stored_cache_folder_is_never_used(trained, desk):
    run_dir = forged(trained, desk, into(*DATA, "cache_dir", value=str(desk / "their_cache")))
    run = load_run(run_dir)
    run.data.prepare_data()
    assert desk not in run.data.annotation_dir().parents
    assert not (desk / "their_cache").exists()


def test_a_package_must_be_named_by_the_user(trained, desk):
    (desk / "mine").mkdir()
    (desk / "mine" / "__init__.py").write_text("")
    (desk / "mine" / "method.py").write_text(
        "from methods.tv.module import TV\nclass Mine(TV): pass\nclass Other: pass\n"
    )
    run_dir = forged(trained, desk, into("model", "class_path", value="mine.method.Mine"))
    assert "--package" in weakseg("validate", "--run", run_dir, expect=1)
    assert type(load_run(run_dir, packages=["mine"]).model).__name__ == "Mine"
    weakseg("validate", "--run", run_dir, "--package", "mine", "--trainer.enable_progress_bar", "false")
    words = ["fit", "--config", ROOT / "tests/tiny.yaml", "--model", "mine.method.Mine", "--run_dir", desk / "run"]
    weakseg(*words, "--trainer.max_steps", "1")
    weakseg(*words, "--trainer.max_steps", "2", "--resume", "auto")
    other = forged(trained, desk / "mine", into("model", "class_path", value="mine.method.Other"))
    assert "mine.method.Other" in weakseg("validate", "--run", other, "--package", "mine", expect=1)


def test_precision_is_that_of_training(trained, desk):
    """A bf16 run scores as it trained."""
    run_dir = forged(trained, desk, into(*TRAINER, "precision", value="bf16-mixed"))
    full = weakseg("validate", "--run", trained, "--trainer.enable_progress_bar", "false")
    half = weakseg("validate", "--run", run_dir, "--trainer.enable_progress_bar", "false")
    assert full != half
