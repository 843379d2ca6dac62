"""The run directory: one writer, ours, replaced by renaming; a run that was moved or continues on changed data."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_reliability import at_step, in_child

import common.training.files
import common.training.run_dir
from common.training.files import clean, folder_written_whole, host, written_whole
from common.training.run_dir import MARK, locked, set_aside
from conftest import ROOT, draw_folder, fit_tiny, on_folder, slow_but_for, snapshot, weakseg, weakseg_process
from same_run import assert_same_run, load


def summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


HOLD = """
import sys, time
from pathlib import Path
from common.training.run_dir import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


# One writer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["new", "--resume", "--overwrite"])
def test_a_directory_that_is_in_use_is_refused_and_free_when_its_process_is_killed(start, tmp_path):
    run_dir = tmp_path / "run"
    how = {"new": [], "--resume": ["--resume", "auto"], "--overwrite": ["--overwrite"]}[start]
    if start != "new":
        fit_tiny(run_dir)
    process = holder(run_dir)
    before = snapshot(run_dir)
    text = fit_tiny(run_dir, *how, expect=1)
    assert f"{run_dir} is in use by process {process.pid} on " in text
    assert "wait for its end, or choose another --run_dir or --name" in text
    assert snapshot(run_dir) == before
    process.kill()
    process.wait()
    fit_tiny(run_dir, *how)
    assert (run_dir / "summary.json").exists()


def test_of_runs_that_start_at_once_one_trains_and_its_run_is_whole(tmp_path):
    arguments = ["fit", "--config", ROOT / "tests" / "tiny.yaml", "--run_dir", tmp_path / "run"]
    arguments += ["--trainer.max_steps", "60", "--trainer.val_check_interval", "30"]
    racing = [weakseg_process(*arguments, "--seed_everything", seed) for seed in range(3)]
    texts = [process.communicate(timeout=120)[0] for process in racing]
    codes = [process.returncode for process in racing]
    assert sorted(codes) == [0, 1, 1], texts
    winner = codes.index(0)
    assert f"seed_everything: {winner}\n" in (tmp_path / "run" / "config.yaml").read_text()
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 60 + 2
    for text, code in zip(texts, codes, strict=True):
        assert code == 0 or "is in use by" in text or "holds a run already" in text


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(common.training.run_dir.fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match="cannot be locked .*start no other run in it"), locked(tmp_path / "run"):
        pass


def test_a_run_of_another_machine_is_in_use_as_long_as_it_gives_signs_of_life(tmp_path, monkeypatch):
    """On a file system that keeps locks to one machine; the machines are this one under two names."""
    monkeypatch.setattr(common.training.run_dir, "BEAT", 0.2)
    monkeypatch.setattr(common.training.run_dir.fcntl, "lockf", lambda *arguments: None)
    run_dir = tmp_path / "run"
    with locked(run_dir), monkeypatch.context() as patch:
        patch.setattr(common.training.run_dir.socket, "gethostname", lambda: "another")
        with (
            pytest.raises(FileExistsError, match=rf"in use by process {os.getpid()} on .* gives signs of life"),
            locked(run_dir),
        ):
            pass
    (run_dir / MARK).write_text("process 1 on a-node-that-died")
    with locked(run_dir):
        assert (run_dir / MARK).read_text().startswith(f"process {os.getpid()} on ")
    assert (run_dir / MARK).read_text() == ""


# Ours, or somebody else's ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Read it, do not write into it."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    fit_tiny(run_dir, "--trainer.max_steps", "4")
    return run_dir


FOREIGN = {
    "wandb": lambda folder: ((folder / "wandb").mkdir(), (folder / "wandb" / "theirs").write_text("x")),
    "pictures": lambda folder: ((folder / "pictures").mkdir(), (folder / "pictures" / "cat.jpg").write_text("x")),
    "config.yaml": lambda folder: (folder / "config.yaml").write_text("theirs: true\n"),
    "metrics.csv": lambda folder: (folder / "metrics.csv").write_text("a,b\n1,2\n"),
}


@pytest.mark.parametrize("how", [[], ["--overwrite"], ["--resume", "auto"], ["--resume", "FILE"]])
@pytest.mark.parametrize("name", FOREIGN)
def test_files_that_no_run_has_written_are_not_touched(name, how, trained, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    how = [trained / "checkpoints" / "last.ckpt" if word == "FILE" else word for word in how]
    FOREIGN[name](folder)
    before = snapshot(folder)
    text = fit_tiny(folder, *how, expect=1)
    assert str(folder) in text
    assert "another --run_dir" in text
    assert snapshot(folder) == before


NOT_TEXT = b"\xcd\x00abc"
DAMAGED = {"empty": b"", "cut": b'{"last": {', "no text": NOT_TEXT, "a list": b"[1]", "another": b'{"last": null}'}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_summary_is_named_before_anything_is_measured_and_can_be_written_anew(how, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "summary.json").write_bytes(DAMAGED[how])
    text = weakseg("test", "--run", run, expect=1)
    assert f"{run}/summary.json is broken (" in text
    assert "remove it, and start the run again with `--resume auto`" in text
    assert "test/miou" not in text
    (run / "summary.json").unlink()
    fit_tiny(run, "--trainer.max_steps", "4", "--resume", "auto")
    assert summary(run)["last"] == summary(trained)["last"]


def test_what_a_run_does_not_read_may_be_damaged(trained, tmp_path):
    """It is written again, or only shown."""
    run = shutil.copytree(trained, tmp_path / "run")
    for name in ("config.yaml", "metrics.csv", "data.json", MARK):
        (run / name).write_bytes(NOT_TEXT)
    weakseg("test", "--run", run)
    fit_tiny(run, "--trainer.max_steps", "6", "--resume", "auto")
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 6
    assert summary(run)["steps"] == 6


def test_metrics_of_another_shape_are_named(trained, tmp_path):
    """A spreadsheet has saved them."""
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "metrics.csv").write_text((run / "metrics.csv").read_text().replace(",", ";"))
    text = fit_tiny(run, "--trainer.max_steps", "6", "--resume", "auto", expect=1)
    assert f"{run}/metrics.csv has rows without a step: put it back" in text


def test_overwrite_replaces_the_run_and_leaves_the_rest(tmp_path):
    fit_tiny(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "test_best_images.npz").write_bytes(b"old")
    fit_tiny(tmp_path / "run", "--overwrite", "--seed_everything", "1")
    fit_tiny(tmp_path / "new", "--seed_everything", "1")
    assert_same_run(tmp_path / "new", tmp_path / "run")
    assert snapshot(tmp_path / "run").keys() - snapshot(tmp_path / "new").keys() == {"notes.txt"}


@pytest.mark.parametrize("moment", slow_but_for(["set_aside", "write_text", "rmtree"], "write_text"))
def test_killed_while_it_replaces_a_run(moment, tmp_path):
    """No old checkpoint is ever under a new config; the next start tidies up."""
    run_dir = tmp_path / "run"
    fit_tiny(run_dir)

    def kill_before():
        module = common.training.run_dir
        target = module.shutil if moment == "rmtree" else module

        def killed(*arguments, **options):
            if moment == "set_aside":  # half done
                aside = module.scratch_of(run_dir / "replaced")
                aside.mkdir()
                (run_dir / "summary.json").rename(aside / "summary.json")
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(target, moment, killed)

    status, text = in_child(kill_before, run_dir, "--overwrite", "--seed_everything", "1")
    assert status == -signal.SIGKILL, text
    new = "seed_everything: 1\n" in (run_dir / "config.yaml").read_text()
    assert not (new and (run_dir / "checkpoints").exists())
    assert not (run_dir / "summary.json").exists()
    fit_tiny(run_dir, "--overwrite", "--seed_everything", "1")
    fit_tiny(tmp_path / "new", "--seed_everything", "1")
    assert_same_run(tmp_path / "new", run_dir)
    assert not list(run_dir.glob(".replaced-*"))


def test_setting_aside_keeps_every_file(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_text("a")
    (tmp_path / "summary.json").write_text("b")
    aside = set_aside(tmp_path)
    assert {path.name for path in aside.rglob("*")} == {"checkpoints", "last.ckpt", "summary.json"}


# Scratch -----------------------------------------------------------------------------------------------------------


def test_what_killed_writers_left_is_removed_and_what_is_being_written_stays(tmp_path, monkeypatch):
    (tmp_path / f".last.ckpt-{host()}456789ab").write_text("half")
    (tmp_path / f".Folder-pixels-0123-{host()}456789ab").mkdir()
    (tmp_path / f".Folder-pixels-0123-{host()}456789ab" / "0.png").write_text("half")
    (tmp_path / ".hidden").write_text("mine")
    (elsewhere := tmp_path / ".last.ckpt-0123456789ab").write_text("another machine may be writing it")
    with written_whole(tmp_path / "a") as scratch, folder_written_whole(tmp_path / "b") as folder:
        scratch.write_text("new")
        (folder / "c").write_text("new")
        clean(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {scratch.name, folder.name, ".hidden", elsewhere.name}
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", ".hidden", elsewhere.name}
    monkeypatch.setattr(common.training.files, "DAY", 0.0)
    clean(tmp_path)
    assert not elsewhere.exists()


def test_files_and_folders_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        fit_tiny(tmp_path / "run")
    finally:
        os.umask(before)
    paths = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o750}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o640}


def test_a_folder_that_cannot_be_synced_is_a_warning(tmp_path, monkeypatch):
    sync = os.fsync

    def refuse(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(22, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.warns(UserWarning, match="cannot be synced"), written_whole(tmp_path / "a") as scratch:
        scratch.write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"


def test_checkpoints_do_not_go_through_the_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile.mkstemp", None)
    fit_tiny(tmp_path / "run")


# The end of a run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_run_is_validated_at_its_end_whatever_the_interval(steps, tmp_path):
    fit_tiny(tmp_path / "run", "--trainer.max_steps", str(steps), "--trainer.val_check_interval", "5")
    found = summary(tmp_path / "run")
    assert found["last"]["val/miou"] > 0
    assert found["best"]["val/miou"] >= found["last"]["val/miou"] - 1e-3
    weakseg("validate", "--run", tmp_path / "run")


def test_a_validation_without_a_label_is_said_and_the_summary_is_json(tmp_path):
    data = draw_folder(tmp_path / "data")
    (data / "val.txt").write_text("6\n7\n8")
    (data / "test.txt").write_text("9")
    for name in "67":
        with Image.open(data / "masks" / f"{name}.png") as mask:
            size = mask.size
        Image.new("L", size, 255).save(data / "masks" / f"{name}.png")
    with pytest.warns(UserWarning, match="no pixel of the images validated has a label.*latest validation"):
        said = fit_tiny(tmp_path / "run", *on_folder(data), "--trainer.limit_val_batches", "2")
    steps = [load(tmp_path / "run", which)["global_step"] for which in ("best", "last")]
    assert steps == [8, 8]
    assert re.search(r"^val/miou +absent$", said, re.MULTILINE)
    assert not re.search(r"\b(inf|nan)\b", said)
    text = (tmp_path / "run" / "summary.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert (found["last"]["val/miou"], found["best"]) == (None, {})
    two = ["--which", "last", "--trainer.limit_val_batches", "2"]
    assert re.search(r"^val/miou +absent$", weakseg("validate", "--run", tmp_path / "run", *two), re.MULTILINE)


def test_stopped_after_the_last_regular_validation_the_summary_is_that_of_the_unbroken_run(tmp_path):
    fit_tiny(tmp_path / "whole")
    status, text = in_child(lambda: at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM)), tmp_path / "cut")
    assert (status, load(tmp_path / "cut")["global_step"]) == (os.EX_TEMPFAIL, 7), text
    fit_tiny(tmp_path / "cut", "--resume", "auto")
    for part in ("last", "best", "steps", "annotation"):
        assert summary(tmp_path / "cut")[part] == summary(tmp_path / "whole")[part]
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_killed_between_the_last_checkpoint_and_the_summary(tmp_path):
    fit_tiny(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "summary.json").unlink()
    fit_tiny(tmp_path / "cut", "--resume", "auto")
    for part in ("last", "best", "steps", "annotation"):
        assert summary(tmp_path / "cut")[part] == summary(tmp_path / "whole")[part]


def test_the_summary_is_the_last_file_to_be_written(tmp_path):
    fit_tiny(tmp_path / "run")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    del files[tmp_path / "run" / ".weakseg"]
    assert max(files, key=files.get).name == "summary.json"


def test_a_run_that_was_moved_keeps_its_best_checkpoint(tmp_path):
    """With a learning rate that ruins the network after the first validation."""
    ruin = ["--model.init_args.optimizer.init_args.lr", "0.05", "--model.init_args.schedule", "constant"]
    arguments = [*ruin, "--trainer.max_steps", "12", "--trainer.val_check_interval", "2"]
    fit_tiny(tmp_path / "whole", *arguments)
    best = load(tmp_path / "whole", "best")["global_step"]
    stop = best + 1
    in_child(lambda: at_step(stop, lambda: os.kill(os.getpid(), signal.SIGTERM)), tmp_path / "cut", *arguments)
    (tmp_path / "cut").rename(tmp_path / "moved")
    fit_tiny(tmp_path / "moved", *arguments, "--resume", "auto")
    assert_same_run(tmp_path / "whole", tmp_path / "moved")
    assert summary(tmp_path / "moved")["best"] == summary(tmp_path / "whole")["best"]
    assert not (tmp_path / "cut").exists()


# What a resumed run must have in common with the stopped one -------------------------------------------------------


def test_another_number_of_threads_is_told(tmp_path):
    fit_tiny(tmp_path / "run", "--trainer.max_steps", "4")
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.warns(UserWarning, match=f"used {before} CPU threads, now there are {before + 1}"):
            fit_tiny(tmp_path / "run", "--resume", "auto")
    finally:
        torch.set_num_threads(before)


def test_an_optimizer_of_another_class_is_refused(tmp_path):
    fit_tiny(tmp_path / "run", "--trainer.max_steps", "4")
    before = snapshot(tmp_path / "run")
    other = ["--model.init_args.optimizer", "torch.optim.SGD", "--model.init_args.optimizer.init_args.lr", "0.1"]
    text = fit_tiny(tmp_path / "run", *other, "--resume", "auto", expect=1)
    assert "was trained by AdamW, not by SGD" in text
    assert "--init_from" in text
    after = snapshot(tmp_path / "run")
    assert after == before


def replace_masks(data):
    """By others with older dates, as `mv` and `rsync -a` leave them."""
    for path in (data / "masks").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == 1, 2, mask).astype(np.uint8)).save(path)
        os.utime(path, (1_000_000_000, 1_000_000_000))


def add_an_image(data):
    shutil.copy(data / "images" / "0.png", data / "images" / "new.png")


CHANGES = {
    "masks with older dates": (replace_masks, "10 masks changed (0, 1, 2"),
    "classes in another order": (
        lambda data: (data / "classes.txt").write_text("ground\nblue thing\nred thing\n"),
        "classes ground, red thing, blue thing are now ground, blue thing, red thing",
    ),
    "other colours": (
        lambda data: (data / "classes.txt").write_text("ground\nred thing 9 9 9\nblue thing\n"),
        "(9, 9, 9)",
    ),
    "another image": (add_an_image, "1 images new (new)"),
    "a mask that was touched": (lambda data: os.utime(data / "masks" / "3.png"), "1 masks changed (3)"),
}


@pytest.mark.parametrize("row", CHANGES)
def test_changed_data_are_drawn_anew_and_a_stopped_run_does_not_go_on_by_itself(row, tmp_path):
    change, words = CHANGES[row]
    data = draw_folder(tmp_path / "data")
    options = [*on_folder(data), "--data.init_args.cache_dir", str(tmp_path / "cache")]
    fit_tiny(tmp_path / "run", *options, "--trainer.max_steps", "4")
    (old,) = (tmp_path / "cache").iterdir()
    change(data)
    before = snapshot(tmp_path / "run")
    text = fit_tiny(tmp_path / "run", *options, "--resume", "auto", expect=1)
    assert "the data have changed since the run was stopped" in text
    assert words.replace("(9, 9, 9)", "[9, 9, 9]") in text, text
    assert "--changed_data accept" in text
    assert {name: value for name, value in snapshot(tmp_path / "run").items() if name != ".weakseg"} == {
        name: value for name, value in before.items() if name != ".weakseg"
    }
    (new,) = {*(tmp_path / "cache").iterdir()} - {old}
    fit_tiny(tmp_path / "run", *options, "--resume", "auto", "--changed_data", "accept")
    fit_tiny(tmp_path / "run", *options, "--resume", "auto")  # they are the run's data now
    drawn = {
        kind: json.loads((folder / "annotation.json").read_text()) for kind, folder in (("old", old), ("new", new))
    }
    if row == "masks with older dates":
        assert drawn["old"]["per_class"]["red thing"] > 0 == drawn["new"]["per_class"]["red thing"]
    if row == "classes in another order":
        assert drawn["old"]["per_class"]["red thing"] == drawn["new"]["per_class"]["blue thing"] > 0


def test_data_that_were_moved_are_the_same(tmp_path):
    data = draw_folder(tmp_path / "data")
    fit_tiny(tmp_path / "run", *on_folder(data), "--trainer.max_steps", "4")
    data.rename(tmp_path / "elsewhere")
    fit_tiny(tmp_path / "run", *on_folder(tmp_path / "elsewhere"), "--resume", "auto")


BROKEN = {
    "no report": lambda folder: (folder / "annotation.json").unlink(),
    "half a report": lambda folder: (folder / "annotation.json").write_text('{"images": '),
    "an empty report": lambda folder: (folder / "annotation.json").write_text("{}"),
    "half a mask": lambda folder: (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:40]),
    "an empty mask": lambda folder: (folder / "3.png").write_bytes(b""),
    "no mask": lambda folder: (folder / "3.png").unlink(),
}


@pytest.mark.parametrize("row", BROKEN)
def test_a_broken_annotation_is_named_and_drawn_anew(row, tmp_path):
    from datamodules import Folder

    options = {"root": str(draw_folder(tmp_path / "data")), "size": 32, "cache_dir": str(tmp_path / "cache")}
    Folder(**options).prepare_data()
    (folder,) = (tmp_path / "cache").iterdir()
    before = {name: content for name, (_, content) in snapshot(folder).items()}
    BROKEN[row](folder)
    broken = "3.png" if "mask" in row else "annotation.json"
    with pytest.warns(UserWarning, match=f"drawn anew: .*{broken}"):
        Folder(**options).prepare_data()
    assert {name: content for name, (_, content) in snapshot(folder).items()} == before


def test_looking_at_twenty_thousand_files_is_quick(tmp_path):
    """No file is opened. A generous limit: half a second was measured."""
    from datamodules.state import state_of

    class Many:
        class_names, colors, splits, pseudo = ("a", "b"), ((0, 0, 0), (1, 1, 1)), {}, None

        def sources(self):
            return {part: {str(n): tmp_path / f"{part}{n}" for n in range(10_000)} for part in ("images", "masks")}

    for files in Many().sources().values():
        for path in files.values():
            path.touch()
    since = time.perf_counter()
    assert len(state_of(Many())["files"]["masks"].names) == 10_000
    assert time.perf_counter() - since < 5
