"""W&B and TensorBoard, on real offline runs that are read back."""

import json
import shutil

import pytest
import yaml

from common.training import tracking
from conftest import fit_tiny, weakseg
from experiments.compare.runs import from_folder, from_offline, read_records

CLASSES = ["background", "disc", "box", "triangle", "ring", "cross"]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run with W&B, offline, and TensorBoard: stopped at step 5, resumed, tested."""
    run_dir = tmp_path_factory.mktemp("tracked") / "run"
    options = ["--wandb", "offline", "--tensorboard", "true", "--wandb_checkpoints", "true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SILENT", "true")
        with pytest.MonkeyPatch.context() as power:
            from common.training.checkpoints import LastCheckpoint

            save = LastCheckpoint._save

            def save_and_die(self, trainer):
                if trainer.global_step == 6:
                    raise ValueError("the power is gone")  # the last checkpoint is of step 4
                save(self, trainer)

            power.setattr(LastCheckpoint, "_save", save_and_die)
            fit_tiny(run_dir, *options, expect=1)
        fit_tiny(run_dir, *options, "--resume", "auto")
        weakseg("test", "--run", run_dir)
    return run_dir


@pytest.fixture(scope="module")
def records(tracked):
    return parts(tracked)


def parts(run_dir):
    """Records of each part of the offline run, by type."""
    files = sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))
    return [[(r["type"], r.get(r["type"], {})) for r in read_records(file)] for file in files]


def test_a_resumed_and_tested_run_is_one_w_and_b_run_with_names_that_tell_it_apart(tracked, records):
    assert len(records) == 3
    starts = [next(content for kind, content in part if kind == "run") for part in records]
    assert {start["run_id"] for start in starts} == {(tracked / "wandb" / "run_id").read_text()}
    commit = json.loads((tracked / "summary.json").read_text())["commit"]
    for start in starts:
        assert start["project"] == "weakseg"
        assert start["run_group"] == "Synthetic/pixels-0.05"
        assert start["job_type"] == "Supervised"
        assert start["display_name"] == "Supervised-seed0"
        assert {*start["tags"]} == {"tu-test_resnet", commit} - {None}


def test_steps_are_the_runs_own_and_rise(records):
    for part in records:
        steps = [content["item"]["_step"] for kind, content in part if kind == "history"]
        assert steps == sorted({*steps})
    rows = {r["item"]["_step"]: r["item"] for part in records[:2] for k, r in part if k == "history"}
    assert {step for step, row in rows.items() if "val/miou" in row} == {2, 5, 7}
    assert {step for step, row in rows.items() if "train/loss" in row} == {*range(8)}
    assert {step for step, row in rows.items() if any(key.startswith("predictions.") for key in row)} == {2, 5, 7}


def test_what_w_and_b_has_is_what_the_directory_has(tracked, tmp_path):
    shutil.copytree(tracked / "wandb", tmp_path / "wandb")  # as copied from another machine
    (one,), other = from_offline(tmp_path), from_folder(tracked)
    for section in ("model", "data", "trainer", "seed_everything"):
        assert one.config[section] == other.config[section]
    assert {key: one.summary[key] for key in other.summary} == other.summary
    assert one.curve == other.curve
    assert (one.images["best"].confusion == other.images["best"].confusion).all()
    assert (one.folder, other.folder) == (None, tracked)


def test_pictures_have_masks_whose_classes_have_names(records):
    content = [r["item"] for part in records for kind, r in part if kind == "history"]
    pictures = next(row for row in content if "predictions.count" in row)
    assert pictures["predictions.count"] == 3
    masks = [r for part in records for kind, r in part if kind == "files"]
    assert sum("mask" in file["path"] for one in masks for file in one["files"]) >= 6  # of 3 images, 2 times
    labels = [r["update"]["_wandb"].get("mask/class_labels") for part in records for kind, r in part
              if kind == "config" and "_wandb" in r["update"]]  # fmt: skip
    named = [value["value"] for one in labels if one for value in one.values()]
    assert named
    assert all(one == {**{str(k): name for k, name in enumerate(CLASSES)}, "255": "no label"} for one in named)


def test_the_table_of_classes_is_that_of_the_summary(tracked):
    tables = sorted((tracked / "wandb").glob("offline-run-*/files/media/table/*.json"), key=lambda path: path.parts[-5])
    table = json.loads(tables[-1].read_text())
    summary = json.loads((tracked / "summary.json").read_text())
    assert table["columns"] == ["class", "val last", "test best"]
    expected = [
        [name, summary["last"][f"val/iou/{name}"], summary["test"]["best"][f"test/iou/{name}"]] for name in CLASSES
    ]
    assert table["data"] == expected


def test_checkpoints_are_one_artifact_of_the_finished_run(tracked, records, tmp_path):
    sent = [[r["name"] for kind, r in part if kind == "artifact" and r["type"] == "model"] for part in records]
    assert sent == [[], [f"Supervised-{(tracked / 'wandb' / 'run_id').read_text()}"], []]  # stopped, finished, tested
    text = fit_tiny(tmp_path / "no", "--wandb_checkpoints", "true", expect=1)
    assert "--wandb_checkpoints sends checkpoints to W&B: set --wandb" in text


def test_tensorboard_has_the_same(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tracked / "tensorboard"))
    found.Reload()
    tags = found.Tags()
    assert {"train/loss", "val/miou", "perf/images_per_s"} <= {*tags["scalars"]}
    assert [event.step for event in found.Scalars("train/loss")] == [*range(8)]  # what was repeated counts once
    assert [event.step for event in found.Images("predictions")] == [2, 5, 7]
    texts = {tag: found.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    config = yaml.safe_load(texts["config/text_summary"].replace("```yaml", "").replace("```", ""))
    assert config == yaml.safe_load((tracked / "config.yaml").read_text())
    assert "| disc |" in texts["iou per class/text_summary"]
    assert "images_per_s" in texts["summary/text_summary"]


@pytest.mark.parametrize(("option", "package"), [("--wandb=offline", "wandb"), ("--tensorboard=true", "tensorboard")])
def test_a_missing_package_is_a_plain_message_before_anything_is_written(option, package, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    text = fit_tiny(tmp_path / "run", option, expect=1)
    assert f"needs the package {package}: pip install {package}" in text
    assert not (tmp_path / "run").exists()


def test_online_without_an_account_is_a_plain_message_before_anything_is_written(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    text = fit_tiny(tmp_path / "run", "--wandb", "online", expect=1)
    assert "--wandb online needs an account: `wandb login` once" in text
    assert not (tmp_path / "run").exists()


def test_a_sweeps_agent_gives_the_id_and_a_resumed_run_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    assert tracking.run_id(tmp_path) == "fromagent"
    monkeypatch.setenv("WANDB_RUN_ID", "another")
    assert tracking.run_id(tmp_path) == "fromagent"


@pytest.mark.parametrize(
    ("supervision", "name"),
    [
        ({"kind": "image_subset", "fraction": 0.125, "number": None}, "image_subset-0.125"),
        ({"kind": "image_subset", "fraction": 0.125, "by_sequence": False}, "image_subset-0.125"),
        ({"kind": "image_subset", "fraction": 0.125, "by_sequence": True}, "image_subset_by_sequence-0.125"),
        ({"kind": "image_subset", "fraction": 0.125, "evenly": True}, "image_subset_evenly-0.125"),
        ({"kind": "points", "fraction": None, "per_class": 1}, "points-1"),
        ({"kind": "image_subset", "list_file": "lists/sixteenth.txt"}, "image_subset-sixteenth"),
        ({"kind": "dense", "fraction": None}, "dense"),
        ({"kind": "boxes", "inside": "filled"}, "boxes_filled"),
    ],
)
def test_partition_names_what_is_labelled(supervision, name):
    assert tracking.partition(supervision) == name
