"""The weakseg command from end to end, on tiny data."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import methods
from common.model.inference import InferenceConfig
from common.model.module import SegmentationModule
from common.model.postprocess import PostprocessConfig
from common.ops.batch import IGNORE, check_batch
from conftest import (
    FOLDER_SIZES,
    REPRESENTATIVE,
    ROOT,
    TINY,
    draw_folder,
    fit_tiny,
    on_folder,
    slow_but_for,
    snapshot,
    weakseg,
    weakseg_process,
)
from experiments.cli.configs import stated
from experiments.cli.trained import from_run, trained_parser
from experiments.runs.load import load_run
from same_run import assert_equal, assert_same_run, load

CLASSES = ["background", "disc", "box", "triangle", "ring", "cross"]


# So fast that it is better after six steps than at the end.
FAST = ["--model.init_args.optimizer.init_args.lr", "0.04", "--model.init_args.schedule", "constant",
        "--model.init_args.encoder_lr_scale", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of eight steps on synthetic scenes; read it, copy it (`copied`), but do not write into it."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    fit_tiny(run_dir, *FAST)
    return run_dir


@pytest.fixture
def copied(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("folder") / "data")


@pytest.fixture(scope="module")
def folder_run(folder, tmp_path_factory):
    """A run on the folder, long enough to predict every class."""
    run_dir = tmp_path_factory.mktemp("folder_run") / "run"
    rate = ["--model.init_args.optimizer.init_args.lr", "0.01", "--model.init_args.encoder_lr_scale", "1"]
    fit_tiny(run_dir, *on_folder(folder), *rate, "--trainer.max_steps", "30", "--trainer.val_check_interval", "10")
    return run_dir


def summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def weights(run_dir, which="last"):
    return load(run_dir, which)["state_dict"]


# Help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["--help", "methods", "datamodules", "fit --help"])
def test_help_and_listings_answer_at_once_and_without_torch(verb):
    code = "import sys; from experiments.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    text = subprocess.run(
        [sys.executable, "-c", code, *verb.split()], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert text.stdout.splitlines()[-1] == "False"
    seconds = []
    for _ in range(5):  # the best of five: other programs may be running
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "experiments.cli", *verb.split()], cwd=ROOT, capture_output=True, check=True
        )
        seconds.append(time.perf_counter() - start)
    assert min(seconds) <= 0.5


def test_listings_name_every_class_with_a_line():
    for package, name in (("methods", "TV"), ("methods", "Supervised"), ("datamodules", "Folder")):
        line = next(line for line in weakseg(package).splitlines() if line.split()[0] == name)
        assert len(line.split()) > 3


def test_no_command_is_help_and_an_unknown_one_is_refused():
    assert weakseg() == weakseg("--help")
    text = weakseg("train", expect=2)
    assert "no command 'train'" in text
    assert "weakseg fit" in text


def test_help_of_a_verb_lists_its_options():
    assert "--trainer.overfit_batches" in weakseg("fit", "--help-all")
    assert "--model.tv_weight" in weakseg("fit", "--model", "TV", "--model.help", "TV")
    assert "--images" in weakseg("predict", "--help")
    assert len(weakseg("test", "--help").splitlines()) < 30  # a run has its options already; ten lines are metrics


# The run directory -------------------------------------------------------------------------------------------------


def test_fit_writes_exactly_these_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what libraries drop into the working directory is seen too
    text = weakseg("fit", "--config", TINY)
    run_dir = tmp_path / "runs" / "Synthetic" / "Supervised" / "pixels-0.05-seed0"
    files = {"config.yaml", "metrics.csv", "summary.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    files |= {".weakseg", "data.json"}
    expected = {run_dir / name for name in files | {"pictures/last.png"}}
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == expected
    assert "runs/Synthetic/Supervised/pixels-0.05-seed0" in text
    assert "612 pixels" in text


def test_summary_says_what_was_trained_on_what(trained):
    found = summary(trained)
    run = load_run(trained)
    assert set(found) == {
        "method", "data", "seed", "steps", "annotation", "last", "score", "best", "seconds", "images_per_s",
        "peak_memory_gb", "parameters", "commit", "versions", "devices",
    }  # fmt: skip
    assert (found["method"], found["data"], found["seed"], found["steps"]) == ("Supervised", "Synthetic", 0, 8)
    assert found["parameters"] == sum(p.numel() for p in run.model.parameters())
    drawn = [np.asarray(Image.open(path)) for path in run.data.annotation_dir().glob("*.png")]
    labels = np.concatenate([picture[picture != IGNORE] for picture in drawn])
    annotation = found["annotation"]
    assert annotation["images"] == len(drawn) == 12
    assert annotation["labeled_pixels"] == labels.size
    assert annotation["pixels"] == sum(picture.size for picture in drawn)
    assert annotation["per_class"] == dict(zip(CLASSES, np.bincount(labels, minlength=6).tolist(), strict=True))
    metrics = {"val/miou", "val/accuracy", *(f"val/iou/{name}" for name in CLASSES)}
    assert set(found["last"]) == metrics
    assert found["best"]["val/miou"] >= found["last"]["val/miou"] - 1e-4
    assert min(found[key] for key in ("seconds", "images_per_s", "peak_memory_gb")) > 0
    assert found["devices"] == "1 x cpu" or torch.cuda.is_available()
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]


@pytest.mark.parametrize(("method", "terms"), [("Supervised", []), ("TV", ["pce", "tv", "ramp"])])
def test_columns_and_rows_of_metrics_csv(method, terms, tmp_path):
    fit_tiny(tmp_path / "run", "--model", method, "--trainer.max_steps", "5")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    validation = ["val/miou", "val/accuracy", *(f"val/iou/{name}" for name in CLASSES)]
    training = ["train/loss", *(f"train/{term}" for term in terms)]
    speed = ["perf/images_per_s", "perf/data_wait", "perf/peak_memory_gb"]
    assert list(rows[0])[:2] == ["step", "epoch"]
    assert set(rows[0]) == {"step", "epoch", *training, *speed, *validation}
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1", "2", "3", "4"]
    assert [row["step"] for row in rows if row["val/miou"]] == ["2", "4"]  # after three steps, and the end
    assert all(row[column] for row in rows if row["train/loss"] for column in training)
    assert 0 <= float([row for row in rows if row["perf/data_wait"]][-1]["perf/data_wait"]) <= 1


def test_config_repeats_the_run(trained, tmp_path):
    weakseg("fit", "--config", trained / "config.yaml", "--run_dir", tmp_path / "again")
    assert_same_run(trained, tmp_path / "again")
    config = (trained / "config.yaml").read_text()
    assert (tmp_path / "again" / "config.yaml").read_text() == config
    assert not {"run_dir", "name", "resume", "init_from", "overwrite", "config"} & yaml.safe_load(config).keys()


def test_steps_fewer_than_the_logging_interval_still_end_well(tmp_path):
    text = fit_tiny(tmp_path / "run", "--trainer.max_steps", "2", "--trainer.log_every_n_steps", "10")
    assert "None" not in text
    assert summary(tmp_path / "run")["steps"] == 2


def test_speed_is_logged_where_an_epoch_is_shorter_than_the_logging_interval(tmp_path):
    run_dir = tmp_path / "run"  # three batches an epoch, two a step
    told = {"max_steps": 9, "log_every_n_steps": 4, "accumulate_grad_batches": 2}
    fit_tiny(run_dir, *(word for name, value in told.items() for word in (f"--trainer.{name}", value)))
    with (run_dir / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert {"3", "7"} <= {row["step"] for row in logged if row["perf/images_per_s"]}
    assert summary(run_dir)["images_per_s"] > 0


def test_a_test_of_one_batch_is_none_of_all_images(copied):
    one = ["test", "--run", copied, "--trainer.limit_test_batches"]
    assert f"{copied} keeps scores of all images only" in weakseg(*one, "1")
    assert "and no limit of batches" in weakseg(*one, "1", "--metrics", "confusion", expect=1)
    assert "test" not in summary(copied)
    weakseg(*one, "1.0")
    assert "best" in summary(copied)["test"]


# --resume, --init_from, --overwrite --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--init_from", "LAST"]])
def test_a_used_directory_is_refused_with_the_ways_out(options, copied):
    before = snapshot(copied)
    options = [str(copied / "checkpoints" / "last.ckpt") if word == "LAST" else word for word in options]
    text = fit_tiny(copied, *options, expect=1)
    for words in (str(copied), "--resume auto", "--overwrite", "--run_dir"):
        assert words in text
    assert snapshot(copied) == before


def test_overwrite_replaces_the_run_and_leaves_other_files(copied, tmp_path):
    (copied / "notes.txt").write_text("mine")
    for name in ("nonfinite_rank0.pt", "confusion_best.csv", "cam_curve.json"):
        (copied / name).touch()
    options = ["--seed_everything", "1", "--trainer.max_steps", "4"]
    fit_tiny(copied, *options, "--overwrite")
    fit_tiny(tmp_path / "fresh", *options)
    assert_same_run(copied, tmp_path / "fresh")
    assert summary(copied)["seed"] == 1
    assert snapshot(copied).keys() - snapshot(tmp_path / "fresh").keys() == {"notes.txt"}


def test_init_from_starts_at_step_0_with_those_weights(trained, tmp_path):
    source = trained / "checkpoints" / "last.ckpt"
    still = ["--model.init_args.optimizer.init_args.lr", "0", "--trainer.max_steps", "1"]
    fit_tiny(tmp_path / "run", "--init_from", source, "--seed_everything", "5", *still)
    checkpoint = load(tmp_path / "run")
    assert checkpoint["global_step"] == 1
    names = [name for name, _ in load_run(trained).model.named_parameters()]
    assert_equal({name: checkpoint["state_dict"][name] for name in names}, {n: weights(trained)[n] for n in names})
    fit_tiny(tmp_path / "other", "--seed_everything", "5", *still)
    assert not torch.equal(weights(tmp_path / "other")[names[0]], weights(trained)[names[0]])


@pytest.mark.parametrize("other", [["--init_from", "LAST"], ["--overwrite"]])
def test_contradictory_starts_are_refused(other, copied):
    before = snapshot(copied)
    other = [str(copied / "checkpoints" / "last.ckpt") if word == "LAST" else word for word in other]
    text = fit_tiny(copied, "--resume", "auto", *other, expect=1)
    assert "--resume" in text
    assert other[0] in text
    assert snapshot(copied) == before


def test_resuming_a_finished_run_changes_nothing(copied):
    before = snapshot(copied)
    fit_tiny(copied, *FAST, "--resume", "auto")
    after = snapshot(copied)
    del before[".weakseg"], after[".weakseg"]  # who writes here
    assert after == before


def test_resume_auto_starts_where_there_is_nothing(trained, tmp_path):
    fit_tiny(tmp_path / "run", *FAST, "--resume", "auto")
    assert_same_run(trained, tmp_path / "run")


def test_resume_from_a_file_in_a_new_directory(trained, tmp_path):
    best = trained / "checkpoints" / "best.ckpt"
    step = load(trained, "best")["global_step"]
    assert 0 < step < 8
    fit_tiny(tmp_path / "run", *FAST, "--resume", best)
    assert_equal(weights(trained), weights(tmp_path / "run"))
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert next(csv.DictReader(file))["step"] == str(step)


def test_a_checkpoint_of_elsewhere_does_not_replace_a_run(trained, copied):
    before = snapshot(copied)
    text = fit_tiny(copied, *FAST, "--resume", trained / "checkpoints" / "last.ckpt", expect=1)
    assert f"{copied} holds another run than {trained}" in text
    assert snapshot(copied) == before
    fit_tiny(copied, *FAST, "--resume", copied / "checkpoints" / "best.ckpt")


def test_a_finished_run_that_goes_on_has_no_results_until_it_is_through(copied):
    weakseg("test", "--run", copied, "--metrics", "confusion")
    more = ["--resume", "auto", "--trainer.max_steps", "4000", "--trainer.enable_progress_bar", "false"]
    process = weakseg_process("fit", "--config", TINY, "--run_dir", copied, *more)
    until = time.monotonic() + 60
    while len((copied / "metrics.csv").read_text().splitlines()) < 14 and time.monotonic() < until:
        time.sleep(0.05)
    process.terminate()
    text, _ = process.communicate(timeout=60)
    assert process.returncode == os.EX_TEMPFAIL, text
    assert not [*copied.glob("summary.json"), *copied.glob("test_*"), *copied.glob("confusion_*")]


# Trained models ----------------------------------------------------------------------------------------------------


def test_evaluation_reads_nothing_of_the_training_images(tmp_path, monkeypatch):
    root = draw_folder(tmp_path / "data")
    fit_tiny(tmp_path / "run", *on_folder(root), "--trainer.max_steps", "1")
    monkeypatch.setenv("WEAKSEG_CACHE", str(tmp_path / "another"))
    for name in (root / "train.txt").read_text().split():
        shutil.copy(root / "classes.txt", root / "images" / f"{name}.png")
    for verb in ("validate", "test"):
        weakseg(verb, "--run", tmp_path / "run")


def table_value(text, name):
    """A value in the table that the command prints, of two decimals."""
    return float(re.search(rf"^{name} +(\d+\.\d\d)$", text, re.MULTILINE)[1])


@pytest.mark.parametrize("way", ["run", "last", "ckpt"])
def test_validate_gives_what_fit_has_measured(way, trained):
    last = trained / "checkpoints" / "last.ckpt"
    arguments = {"run": ["--run", trained], "last": ["--run", trained, "--which", "last"], "ckpt": ["--ckpt", last]}
    before = snapshot(trained)
    text = weakseg("validate", *arguments[way])
    assert snapshot(trained) == before
    best = summary(trained)["best"]["val/miou"]
    if way == "run":
        assert table_value(text, "val/miou") == pytest.approx(best, abs=5.1e-3)
    else:
        assert table_value(text, "val/miou") == pytest.approx(summary(trained)["last"]["val/miou"], abs=5.1e-3)
        assert summary(trained)["last"]["val/miou"] != pytest.approx(best, abs=5.1e-3)


def test_test_adds_to_the_summary_an_entry_for_each_checkpoint_and_refinement(copied):
    before = summary(copied)
    for options in ([], ["--which", "last"], ["--model.init_args.postprocess", "{kind: mrf, mu: 0.0}"]):
        weakseg("test", "--run", copied, *options)
    after = summary(copied)
    tests = after.pop("test")
    assert after == before
    assert set(tests) == {"best", "last", "best+mrf"}
    assert set(tests["best"]) == {"test/miou", "test/accuracy", *(f"test/iou/{name}" for name in CLASSES)}
    assert tests["best+mrf"] == tests["best"] != tests["last"]  # at mu 0 the MRF is the argmax
    weakseg("test", "--run", copied, "--model.init_args.postprocess", "{kind: mrf, mu: 5.0}")
    refined = summary(copied)["test"]
    assert refined["best+mrf"] != refined["best"] == tests["best"]


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_run_without_a_validation_names_its_last_checkpoint(verb, copied, tmp_path):
    (copied / "checkpoints" / "best.ckpt").unlink()
    more = ["--images", tmp_path, "--output", tmp_path / "out"] if verb == "predict" else []
    text = weakseg(verb, "--run", copied, *more, expect=1)
    assert "has no best.ckpt, for nothing was validated yet: give --which last" in text


def test_test_of_a_checkpoint_file_writes_nothing(trained):
    before = snapshot(trained.parent)
    text = weakseg("test", "--ckpt", trained / "checkpoints" / "best.ckpt")
    assert table_value(text, "test/accuracy") > 0
    assert snapshot(trained.parent) == before


INFERENCE = {
    "whole": [],
    "flip": ["--model.init_args.inference.flip", "true"],
    "windows": ["--model.init_args.inference", "{window: [20, 24], stride: [11, 13], flip: true}"],
    "mrf": ["--model.init_args.postprocess", "{kind: mrf, mu: 0.5, weights: contrast}"],
}


@pytest.fixture(scope="module")
def predictions():
    """Predictions per inference option, to compare them."""
    return {}


@pytest.mark.parametrize("how", INFERENCE)
def test_predict_equals_test(how, folder, folder_run, predictions, tmp_path):
    """The files of `predict`, counted by hand against the masks, give the numbers of `test` exactly."""
    run_dir = shutil.copytree(folder_run, tmp_path / "run")
    weakseg("test", "--run", run_dir, *INFERENCE[how])
    found = summary(run_dir)["test"]["best+mrf" if how == "mrf" else "best"]
    (tmp_path / "images").mkdir()
    for name in "89":
        shutil.copy(folder / "images" / f"{name}.png", tmp_path / "images")
    weakseg("predict", "--run", run_dir, "--images", tmp_path / "images", "--output", tmp_path / "out", *INFERENCE[how])

    confusion = np.zeros((3, 3), int)
    for name in "89":
        truth = np.asarray(Image.open(folder / "masks" / f"{name}.png"))
        labels = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        assert labels.shape == truth.shape == FOLDER_SIZES[int(name)]
        predictions.setdefault(how, []).append(labels)
        for row in range(3):
            for column in range(3):
                confusion[row, column] += ((truth == row) & (labels == column)).sum()
    assert (confusion.sum(0) > 0).all(), "a class is never predicted: train longer"
    right = confusion.diagonal()
    iou = 100 * right / (confusion.sum(0) + confusion.sum(1) - right)
    assert found == {
        "test/miou": round(iou.mean(), 4),
        "test/accuracy": round(100 * right.sum() / confusion.sum(), 4),
        **{f"test/iou/{name}": round(v, 4) for name, v in zip(("ground", "red thing", "blue thing"), iou, strict=True)},
    }
    if how != "whole" and "whole" in predictions:
        assert any((a != b).any() for a, b in zip(predictions[how], predictions["whole"], strict=True))


def test_files_of_predict(folder, folder_run, tmp_path):
    options = ["--images", folder / "images", "--output", tmp_path / "out"]
    weakseg("predict", "--run", folder_run, *options)
    names = [str(number) for number in range(10)]
    pictures = {f"{name}.png" for name in names} | {f"overlays/{name}.png" for name in names}
    pictures.add(".weakseg-predictions.jsonl")
    assert snapshot(tmp_path / "out").keys() == pictures
    again = ["--ckpt", folder_run / "checkpoints" / "best.ckpt", *options, "--probabilities", "--overwrite"]
    assert "10 images in " in weakseg("predict", *again)
    assert snapshot(tmp_path / "out").keys() == pictures | {f"probabilities/{name}.npy" for name in names}
    for name, size in zip(names, FOLDER_SIZES, strict=True):
        labels = Image.open(tmp_path / "out" / f"{name}.png")
        assert (labels.mode, labels.size[::-1]) == ("L", size)
        assert np.asarray(labels).max() < 3
        overlay = Image.open(tmp_path / "out" / "overlays" / f"{name}.png")
        assert (overlay.mode, overlay.size) == ("RGB", labels.size)
        probabilities = np.load(tmp_path / "out" / "probabilities" / f"{name}.npy")
        assert (probabilities.dtype, probabilities.shape) == (np.float16, (3, *size))
        np.testing.assert_allclose(probabilities.astype(np.float32).sum(0), 1, atol=2e-3)
        assert (probabilities.argmax(0) == np.asarray(labels)).mean() > 0.99  # but for ties in half precision


@pytest.mark.parametrize("how", INFERENCE)
def test_predict_in_python_equals_the_files_of_predict(how, folder, folder_run, tmp_path):
    options = ["--images", folder / "images", "--output", tmp_path / "out", "--probabilities", *INFERENCE[how]]
    weakseg("predict", "--run", folder_run, *options)
    run = load_run(folder_run)
    if how == "flip":
        run.model.inference = InferenceConfig(flip=True)
    if how == "windows":
        run.model.inference = InferenceConfig([20, 24], [11, 13], True)
    if how == "mrf":
        run.model.postprocess = PostprocessConfig("mrf", mu=0.5, weights="contrast")
    found = dict(run.predict(folder / "images", probabilities=True))
    assert sorted(found) == [str(number) for number in range(10)]
    for name, (labels, probabilities) in found.items():
        assert labels.dtype == np.uint8
        assert (labels == np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))).all()
        assert probabilities.dtype == np.float32
        assert (probabilities.astype(np.float16) == np.load(tmp_path / "out" / "probabilities" / f"{name}.npy")).all()
    assert len({int(label) for labels, _ in found.values() for label in np.unique(labels)}) == 3
    file = folder / "images" / "3.png"
    for same in (file, str(file), Image.open(file), np.asarray(Image.open(file))):
        assert (run.predict(same) == found["3"][0]).all()


@pytest.mark.parametrize("wrong", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), torch.zeros(3, 8, 8)])
def test_what_is_no_image_is_refused(wrong, folder_run):
    with pytest.raises(ValueError, match=r"an image is a uint8 array \(height, width, 3\) in RGB"):
        load_run(folder_run).predict(wrong)


def test_a_run_is_loaded_from_an_artifact_or_refused_in_a_line(folder_run, monkeypatch):
    import wandb

    class Api:
        def artifact(self, name, type):
            assert (name, type) == ("us/weakseg/TV-x:latest", "model")
            return self

        def download(self):
            return str(folder_run / "checkpoints")

    monkeypatch.setattr(wandb, "Api", Api)
    loaded = load_run("wandb:us/weakseg/TV-x:latest", "last")
    assert_equal(dict(loaded.model.state_dict()), weights(folder_run, "last"))

    def refuse():
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "Api", refuse)
    with pytest.raises(ValueError, match="No API key configured; log in with `wandb login`"):
        load_run("wandb:us/weakseg/TV-x:latest")


def test_a_trained_model_needs_no_file_of_initial_weights(folder, tmp_path):
    file = tmp_path / "encoder.pt"
    fit_tiny(tmp_path / "first", "--trainer.max_steps", "1")
    network = load_run(tmp_path / "first", "last").model.network
    torch.save(network.model.encoder.state_dict(), file)
    fit_tiny(tmp_path / "run", "--model.init_args.network.weights", file, "--trainer.max_steps", "1")
    file.unlink()
    last = ["--run", tmp_path / "run", "--which", "last"]
    weakseg("predict", *last, "--images", folder / "images", "--output", tmp_path / "out")
    assert (tmp_path / "out" / "9.png").exists()
    assert load_run(tmp_path / "run", "last").model.num_classes == 6
    assert str(file) in fit_tiny(tmp_path / "new", "--model.init_args.network.weights", file, expect=1)


def test_load_run(tmp_path, trained):
    fit_tiny(tmp_path / "run", "--model", "TV", "--seed_everything", "3")
    run = load_run(tmp_path / "run")
    assert type(run.model).__name__ == "TV"
    assert not run.model.training
    assert list(run.class_names) == CLASSES
    assert len(run.colors) == run.model.num_classes == 6
    assert run.data.annotation_report() == summary(tmp_path / "run")["annotation"]  # so its seed is the run's
    assert run.data.annotation_dir() != load_run(trained).data.annotation_dir()
    assert_equal(dict(run.model.state_dict()), weights(tmp_path / "run", "best"))
    last = load_run(tmp_path / "run" / "checkpoints" / "last.ckpt").model
    assert_equal(dict(last.state_dict()), weights(tmp_path / "run", "last"))
    assert_equal(dict(load_run(tmp_path / "run", "last").model.state_dict()), weights(tmp_path / "run", "last"))
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_run(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read as a checkpoint"):
        load_run(tmp_path / "run" / "config.yaml")


# Data --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pixels", "points"])
def test_hidden_labels_are_irrelevant(kind, tmp_path):
    """Once the annotation is drawn, training masks may be anything: training is the same, bit for bit."""
    data = draw_folder(tmp_path / "data")
    amount = {"pixels": "fraction: 0.05", "points": "per_class: 2, fraction: null"}[kind]
    supervision = ["--data.init_args.supervision", f"{{kind: {kind}, {amount}}}"]
    options = [*on_folder(data), *supervision, "--data.init_args.cache_dir", str(tmp_path / "cache")]
    fit_tiny(tmp_path / "one", *options)
    masks = [data / "masks" / f"{number}.png" for number in range(6)]
    kept = [path.read_bytes() for path in masks]
    times = [path.stat().st_mtime_ns for path in masks]

    def write(contents):
        for path, content, changed in zip(masks, contents, times, strict=True):
            path.write_bytes(content)
            os.utime(path, ns=(changed, changed))  # a file of the same size and time is taken for the same

    write([b"no picture".ljust(len(content)) for content in kept])
    fit_tiny(tmp_path / "two", *options)
    assert_same_run(tmp_path / "one", tmp_path / "two")

    drawn = snapshot(tmp_path / "cache")
    assert len(drawn) == 8  # six pictures, the report and the survey
    shutil.rmtree(tmp_path / "cache")
    assert str(masks[0]) in fit_tiny(tmp_path / "three", *options, expect=1)  # it has to be drawn again, and cannot be
    write(kept)
    fit_tiny(tmp_path / "three", *options)
    assert {k: v for k, (_, v) in snapshot(tmp_path / "cache").items()} == {k: v for k, (_, v) in drawn.items()}
    assert_same_run(tmp_path / "one", tmp_path / "three")


OF_PIXELS = [name for name in methods.CLASSES if "pixels" in getattr(methods, name).supervision]


@pytest.mark.parametrize("method", slow_but_for(OF_PIXELS, *REPRESENTATIVE))
def test_every_method_takes_an_unlabelled_stream(method, tmp_path, monkeypatch):
    seen = []
    start = SegmentationModule.on_train_batch_start

    def look(self, batch, batch_idx):
        for stream in batch.values():
            check_batch(stream, self.num_classes)
        seen.append({name: list(stream["name"]) for name, stream in batch.items()})
        assert (batch["unlabeled"]["mask"] == IGNORE).all()
        assert (batch["labeled"]["mask"] != IGNORE).any()
        start(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationModule, "on_train_batch_start", look)
    subset = [
        "--data.init_args.supervision",
        "{kind: image_subset, number: 4, fraction: null}",
        "--data.init_args.batch_size",
        "2",
    ]
    subset += ["--data.init_args.unlabeled_batch_size", "4", "--data.init_args.unlabeled_pool", "rest"]
    fit_tiny(tmp_path / "run", "--model", method, *subset)
    labeled, unlabeled = ({name for batch in seen for name in batch[key]} for key in ("labeled", "unlabeled"))
    assert len(seen) == 8
    assert {(len(batch["labeled"]), len(batch["unlabeled"])) for batch in seen} == {(2, 4)}
    assert (len(labeled), len(unlabeled), len(labeled & unlabeled)) == (4, 8, 0)
    assert summary(tmp_path / "run")["annotation"]["images"] == 4


@pytest.mark.parametrize("masks", ["all", "some"])
@pytest.mark.parametrize(
    "method",
    slow_but_for([name for name in methods.CLASSES if "unlabeled" in getattr(methods, name).streams], "UniMatch"),
)
def test_the_unlabelled_stream_follows_from_the_method(method, masks, tmp_path):
    """On a folder of one's own, without an option for it; the config of the run says what it was, and repeats it."""
    data = draw_folder(tmp_path / "data")
    if masks == "some":
        (data / "masks" / "0.png").unlink()
        (data / "masks" / "3.png").unlink()
    said = fit_tiny(tmp_path / "one", *on_folder(data), "--model", method, "--trainer.max_steps", "2")
    used = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())["data"]["init_args"]
    views, pool = getattr(methods, method).strong_views, "all" if masks == "all" else "rest"
    assert (used["unlabeled_batch_size"], used["strong_views"], used["unlabeled_pool"]) == (4, views, pool)
    assert ("every training image is labelled" in said) == (masks == "all")
    said = weakseg("fit", "--config", tmp_path / "one" / "config.yaml", "--run_dir", tmp_path / "two")
    assert "every training image is labelled" not in said  # it is told now
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_only_methods_that_want_it_see_the_unlabelled_stream(tmp_path):
    """An epoch of one step either way, so that the labelled images come in the same order."""
    subset = ["--data.init_args.supervision", "{kind: image_subset, number: 4, fraction: null}"]
    for method in ("Supervised", "TV"):
        for count in (0, 8):
            run_dir = tmp_path / f"{method}{count}"
            fit_tiny(run_dir, "--model", method, *subset, "--data.init_args.unlabeled_batch_size", count)
    head = "network.model.segmentation_head.0.weight"
    assert_equal(weights(tmp_path / "Supervised0"), weights(tmp_path / "Supervised8"))
    assert not torch.equal(weights(tmp_path / "TV0")[head], weights(tmp_path / "TV8")[head])


# doctor ------------------------------------------------------------------------------------------------------------


def test_doctor_tells_versions_and_devices():
    text = weakseg("doctor")
    assert re.search(rf"^torch +{re.escape(torch.__version__.split('+')[0])}", text, re.MULTILINE)
    assert "CPU threads" in text


def test_doctor_counts_sound_data_and_names_every_problem(folder, tmp_path):
    options = on_folder(folder)
    text = weakseg("doctor", "--config", TINY, *options)
    assert "Folder: 3 classes (ground, red thing, blue thing)" in text
    assert "train: 6 images (6 with a mask), 29 x 29 to 53 x 38 pixels" in text
    assert "no problem found" in text
    broken = shutil.copytree(folder, tmp_path / "data")
    (broken / "images" / "1.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(broken / "masks" / "6.png")
    text = weakseg("doctor", "--config", TINY, *on_folder(broken), expect=1)
    problems = [line for line in text.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 2
    assert str(broken / "images" / "1.png") in problems[0]
    assert "image '6' is 25 x 61 pixels but its mask 9 x 9" in problems[1]
    assert "2 problems in the data" in text.splitlines()[-1]


# Two processes -----------------------------------------------------------------------------------------------------

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]


def in_two_processes(*arguments):
    process = weakseg_process(*arguments, *TWO)
    try:
        text, _ = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 0, text
    return text


@pytest.mark.slow
def test_two_processes_measure_what_one_does(copied):
    """Three test images on two processes: none is counted twice."""
    weakseg("test", "--run", copied)
    alone, images = summary(copied)["test"], np.load(copied / "test_best_images.npz")
    assert len(images["names"]) == 3
    text = weakseg("test", "--run", copied, "--trainer.limit_test_batches", "2")
    assert f"{copied} keeps scores of all images only" in text
    assert f"{alone['best']['test/miou']:.2f}" not in text  # each image counts
    assert summary(copied)["test"] == alone
    assert len(np.load(copied / "test_best_images.npz")["names"]) == 3
    in_two_processes("test", "--run", copied)
    assert summary(copied)["test"] == alone
    together = np.load(copied / "test_best_images.npz")
    assert together["names"].tolist() == images["names"].tolist()
    assert (together["confusion"] == images["confusion"]).all()


def test_two_processes_train_as_one_does(tmp_path):
    """Same global batch, a network without batch statistics, no dropout: the gradients are those of one process."""
    plain = "{arch: Unet, encoder: tu-test_convnext, decoder: {decoder_channels: [16, 16, 8, 8], encoder_depth: 4, " \
            "decoder_use_norm: false}, dropout: 0.0}"  # fmt: skip
    options = ["--model.init_args.network", plain, "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    sgd = ["--model.init_args.optimizer", "torch.optim.SGD", "--model.init_args.optimizer.init_args.lr", "0.5"]
    extra = ["--data.init_args.supervision.fraction", "0.01", "--model.init_args.start", "0"]
    arguments = ["--model", "TV", *options, *sgd, *extra]
    fit_tiny(tmp_path / "one", *arguments)
    in_two_processes("fit", "--config", TINY, "--run_dir", tmp_path / "two", *arguments)
    fit_tiny(tmp_path / "none", *arguments, "--model.init_args.optimizer.init_args.lr", "0")
    one, two, start = weights(tmp_path / "one"), weights(tmp_path / "two"), weights(tmp_path / "none")
    moved = max((one[name] - start[name]).abs().max().item() for name in one)
    differ = max((one[name] - two[name]).abs().max().item() for name in one)
    assert moved > 1e-2
    assert differ < 1e-4 * moved
    assert summary(tmp_path / "two")["devices"] == "2 x cpu"
    # Evaluated in one process, unless told otherwise.
    options, _ = from_run(trained_parser("test"), ["--run", str(tmp_path / "two")])
    assert stated(options, "trainer", "devices") == 1
    weakseg("test", "--run", tmp_path / "two")
    assert summary(tmp_path / "two")["steps"] == 2
    assert summary(tmp_path / "two")["last"]["val/miou"] == pytest.approx(summary(tmp_path / "one")["last"]["val/miou"])
