"""`--patience`: when a run ends, and that a stop and a resume change nothing of it."""

import json

import pytest
import torch

from common.training.checkpoints import LastCheckpoint
from conftest import fit_tiny
from experiments.compare.protocol import settings
from experiments.compare.runs import read_runs
from same_run import assert_same_run, load, metrics

# Nothing is learned: the first validation is the best one. Three batches an epoch; validated after steps 2, 4, 6, ...
LAZY = ["--trainer.max_steps", "14", "--trainer.val_check_interval", "2", "--checkpoint_every", "1"]
LAZY += ["--model.init_args.optimizer.init_args.lr", "0", "--model.init_args.network.freeze_bn", "true"]
PATIENT = [*LAZY, "--patience", "2"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    return folder, fit_tiny(folder, *PATIENT)


def steps(folder):
    return json.loads((folder / "summary.json").read_text())["steps"]


def test_a_run_ends_after_so_many_validations_without_a_gain(stopped):
    folder, text = stopped
    scores = [int(row["step"]) + 1 for row in metrics(folder) if row.get("val/miou")]
    assert scores == [2, 4, 6]  # the best, and two without a gain
    assert steps(folder) == load(folder)["global_step"] == 6
    assert "stopped at step 6: no higher val/miou in 2 validations" in text
    assert load(folder, "best")["global_step"] == 2


@pytest.mark.parametrize("stop", [3, 6])
def test_stopped_by_force_and_resumed_it_ends_at_the_same_step(stop, stopped, tmp_path, monkeypatch):
    save = LastCheckpoint._save

    def save_and_die(self, trainer):
        save(self, trainer)
        if trainer.global_step == stop:
            raise ValueError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "_save", save_and_die)
        fit_tiny(tmp_path / "cut", *PATIENT, expect=1)
    fit_tiny(tmp_path / "cut", *PATIENT, "--resume", "auto")
    assert steps(tmp_path / "cut") == 6
    assert_same_run(stopped[0], tmp_path / "cut")


def test_resumed_it_stays_ended_and_goes_on_with_more_patience(stopped):
    folder, before = stopped[0], load(stopped[0])
    summary = (folder / "summary.json").read_text()
    fit_tiny(folder, *PATIENT, "--resume", "auto")
    assert (folder / "summary.json").read_text() == summary
    assert all(torch.equal(one, load(folder)["state_dict"][name]) for name, one in before["state_dict"].items())
    fit_tiny(folder, *LAZY, "--patience", "3", "--resume", "auto")
    assert steps(folder) == 8


def test_runs_of_other_patience_are_other_rows_and_defaults_are_those_of_before(tmp_path):
    fit_tiny(tmp_path / "run", "--trainer.max_steps", "1")
    [run], _ = read_runs([str(tmp_path / "run")])
    found = settings(run)
    assert not any(key.endswith(("patience", "class_sampling")) or "labeled." in key for key in found)
    del run.config["patience"], run.config["model"]["init_args"]["labeled"]
    del run.config["data"]["init_args"]["class_sampling"]
    assert settings(run) == found
    run.config["patience"] = 2
    run.config["model"]["init_args"]["labeled"] = {"dice": 1.0, "focal": 0.0}
    assert settings(run).items() - found.items() == {("trainer.patience", "2"), ("model.labeled.dice", "1")}


def test_no_patience_at_all_is_refused(tmp_path):
    assert "--patience is a number of validations, at least 1" in fit_tiny(tmp_path / "no", "--patience", "0", expect=1)
