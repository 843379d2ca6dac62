"""`weakseg pseudo` and training on what it writes: a folder that is whole or not there, and read as data."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

import experiments.runs.pseudo
import weakseg as package
from common.training.checkpoints import LastCheckpoint
from conftest import SMALL, TINY, draw_tagged, fit_tiny, on_folder, snapshot, weakseg, weakseg_process
from datamodules.sets.synthetic import Synthetic
from datamodules.supervision import Supervision, shrink_mask
from experiments.benchmarks.cam_quality import of_network
from experiments.runs.pseudo import PseudoLabels

DENSE = ["--data.init_args.supervision", "{kind: dense, fraction: null}"]
SCENES = {"train": 12, "val": 3, "test": 3, "side": 40, "size": 32, "batch_size": 4, "num_workers": 0}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pseudo") / "run"
    fit_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def made(run_dir):
    """Pseudo-masks of all pixels."""
    output = run_dir.parent / "made"
    weakseg("pseudo", "--run", run_dir, "--output", output)
    return output


@pytest.fixture
def folder(made, tmp_path):
    """A copy of them to spoil."""
    return shutil.copytree(made, tmp_path / "masks")


def labels(path):
    return np.asarray(Image.open(path))


def miou(truth, found, classes=6):
    """In per cent over the pixels that both label, class after class."""
    known = (truth != 255) & (found != 255)
    pairs = [(truth[known] == k, found[known] == k) for k in range(classes)]
    return 100 * np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs if (a | b).any()])


# What is written ---------------------------------------------------------------------------------------------------


def test_labels_are_the_predictions_where_these_are_sure(run_dir, made, tmp_path):
    run = package.load_run(run_dir)
    names = run.data.names("train")
    threshold = float(np.median([run.predict(run.data.image(name), True)[1].max(0) for name in names]))
    text = weakseg("pseudo", "--run", run_dir, "--output", tmp_path / "sure", "--threshold", threshold)
    every = {"truth": [], "found": []}
    for name in names:
        found, probabilities = run.predict(run.data.image(name), True)
        assert (labels(made / f"{name}.png") == found).all()
        sure = np.where(probabilities.max(0) >= np.float32(threshold), found, 255)
        assert (labels(tmp_path / "sure" / f"{name}.png") == sure).all()
        every["truth"].append(run.data.mask(name).ravel())
        every["found"].append(sure.ravel())
    truth, found = (np.concatenate(every[key]) for key in ("truth", "found"))
    about = json.loads((tmp_path / "sure" / "pseudo.json").read_text())
    assert {path.name for path in (tmp_path / "sure").iterdir()} == {"pseudo.json", *(f"{n}.png" for n in names)}
    assert about["unlabeled"] == pytest.approx((found == 255).mean(), abs=1e-6)
    assert 0.4 < about["unlabeled"] < 0.6
    shares = [(found == k).sum() / (found != 255).sum() for k in range(6)]
    assert [*about["per_class"].values()] == pytest.approx(shares, abs=1e-6)
    assert about["miou_train"] == pytest.approx(miou(truth, found), abs=1e-4)
    assert f"{about['miou_train']:.2f}" in text
    told = {"method": "Supervised", "run": str(run_dir), "split": "train", "images": 12, "threshold": threshold}
    assert told.items() <= about.items()
    assert about["classes"] == [*run.class_names]
    assert Image.open(made / f"{names[0]}.png").mode == "P"


def test_two_processes_write_the_folder_of_one(run_dir, made, tmp_path):
    words = ["pseudo", "--run", run_dir, "--output", tmp_path / "two", "--trainer.accelerator", "cpu"]
    process = weakseg_process(*words, "--trainer.devices", "2")
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert text.count("12 images in") == 1
    one, two = (
        {name: content for name, (_, content) in snapshot(folder).items()} for folder in (made, tmp_path / "two")
    )
    assert one == two


class Tagged(torch.nn.Module):
    """A method that labels by tags: the last tagged class above the threshold of grey, 255 at the border."""

    def pseudo_labels(self, image, tags, size, refine, threshold, seeds=False, name=None):
        assert image.shape[0] == 3
        assert image.max() <= 1
        grey = torch.nn.functional.interpolate(image.mean(0)[None, None], size)[0, 0]
        found = (grey > threshold).long() * int(tags.nonzero().max())
        found[0] = 255 if refine == "pamr" else 0
        return found


def test_a_method_that_learns_from_tags_is_asked_for_its_own_labels():
    model = Tagged()
    image, tags = torch.rand(1, 3, 8, 10), torch.tensor([[False, True, False, True]])
    batch = {"image": image, "tags": tags, "size": torch.tensor([[16, 20]]), "name": ["one"]}
    [found] = PseudoLabels(model, "pamr", 0.5).predict_step(batch, 0)
    assert (found == model.pseudo_labels(image[0], tags[0], (16, 20), "pamr", 0.5)).all()
    assert {*found.unique().tolist()} == {0, 3, 255}
    model.pseudo_threshold = 0.25
    assert PseudoLabels(model).threshold == 0.25
    assert PseudoLabels(model, threshold=0.5).threshold == 0.5


WRONG = {
    "refine": (["--refine", "pamr"], "--refine is for maps of methods that learn from tags"),
    "threshold": (["--threshold", "1.5"], "--threshold is from 0 to 1, got 1.5"),
}


@pytest.mark.parametrize("row", WRONG)
def test_options_without_effect_are_refused_and_nothing_is_left(row, run_dir, tmp_path):
    options, words = WRONG[row]
    assert words in weakseg("pseudo", "--run", run_dir, "--output", tmp_path / "out", *options, expect=1)
    assert not [*tmp_path.iterdir()]
    assert "needs --output" in weakseg("pseudo", "--run", run_dir, expect=1)


def test_no_folder_is_replaced_but_its_own_and_only_when_asked(run_dir, folder, tmp_path):
    def pseudo(output, *options, **how):
        return weakseg("pseudo", "--run", run_dir, "--output", output, *options, **how)

    first = snapshot(folder)
    assert "replace them with --overwrite" in pseudo(folder, expect=1)
    assert snapshot(folder) == first
    pseudo(folder, "--overwrite", "--threshold", "1")
    assert json.loads((folder / "pseudo.json").read_text())["unlabeled"] > 0.9
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]
    some = sorted(folder.glob("*.png"))[3]
    for spoil in (
        lambda: Image.new("L", (40, 40)).save(some),  # somebody corrects a label
        lambda: (folder / "notes.txt").write_text("mine"),
        lambda: some.unlink(),
        lambda: (folder / "pseudo.json").unlink(),
    ):
        spoil()
        before = snapshot(folder)
        text = pseudo(folder, "--overwrite", expect=1)
        assert "choose another" in text
        assert snapshot(folder) == before
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "1.jpg").write_bytes(b"a photo")
    assert "holds files that `weakseg pseudo` has not written" in pseudo(photos, "--overwrite", expect=1)
    assert (photos / "1.jpg").read_bytes() == b"a photo"


def test_a_killed_command_leaves_no_half_a_folder_and_starts_anew(run_dir, made, tmp_path):
    words = ["pseudo", "--run", run_dir, "--output", tmp_path / "out", "--data.init_args.train"]
    process = weakseg_process(*words, 4000)
    end = time.monotonic() + 120
    while len([*tmp_path.glob(".out-*/*.png")]) < 3 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [path.name[:5] for path in tmp_path.iterdir()] == [".out-"]
    mine = tmp_path / ".another-0123456789ab"  # not this command's
    mine.mkdir()
    weakseg(*words, 12)
    assert {path.name for path in tmp_path.iterdir()} == {"out", mine.name}
    assert {n: content for n, (_, content) in snapshot(tmp_path / "out").items()} == {
        n: content for n, (_, content) in snapshot(made).items()
    }


def test_who_is_killed_replacing_a_folder_loses_neither(run_dir, folder):
    first = snapshot(folder)
    folder.rename(folder.with_name(f".{folder.name}.before"))  # between two renames
    assert "replace them with --overwrite" in weakseg("pseudo", "--run", run_dir, "--output", folder, expect=1)
    assert snapshot(folder) == first


# What is trained on ------------------------------------------------------------------------------------------------


def scenes(tmp_path, folder, **options):
    return Synthetic(**{**SCENES, "cache_dir": str(tmp_path), "pseudo_masks": str(folder), **options})


def test_training_sees_the_pseudo_masks_and_evaluation_the_masks(folder, tmp_path):
    name = "train00003"
    spoiled = labels(folder / f"{name}.png").copy()
    spoiled[:9] = 255
    Image.fromarray(spoiled).save(folder / f"{name}.png")
    data = scenes(tmp_path, folder)
    data.prepare_data()
    drawn = data.annotation_dir()
    for one in data.names("train"):
        expected = shrink_mask(labels(folder / f"{one}.png"), (32, 32), keep_strokes=False)
        assert (labels(drawn / f"{one}.png") == expected).all()
    assert data.annotation_report()["images"] == 12
    for batch in [*data.val_dataloader(), *data.test_dataloader()]:
        assert (batch["mask"][0].numpy() == data.mask(batch["name"][0])).all()
    # Other content is another annotation; the same folder elsewhere is the same.
    assert scenes(tmp_path, folder).annotation_dir() == drawn
    assert scenes(tmp_path, shutil.copytree(folder, tmp_path / "moved")).annotation_dir() == drawn
    Image.fromarray(np.full_like(spoiled, 2)).save(folder / f"{name}.png")
    assert scenes(tmp_path, folder).annotation_dir() != drawn
    assert Synthetic(**SCENES, cache_dir=str(tmp_path)).annotation_dir() != drawn
    with pytest.raises(ValueError, match="pseudo_masks is without effect for supervision kind tags"):
        scenes(tmp_path, folder, supervision=Supervision(kind="tags"))


def cut(path, length=40):
    path.write_bytes(path.read_bytes()[:length])


def edited(folder, **content):
    about = json.loads((folder / "pseudo.json").read_text())
    (folder / "pseudo.json").write_text(json.dumps({**about, **content}))


FAULTS = {
    "missing ids": (
        lambda f: [(f / f"train0000{number}.png").unlink() for number in range(5)],
        "lacks 5 of the 12 training images' pseudo-masks (train00000.png, train00001.png, train00002.png, "
        "train00003.png, ...)",
    ),
    "another class list": (
        lambda f: edited(f, classes=["background", "disc", "box", "ring", "triangle", "cross"]),
        "pseudo.json is of the classes background, disc, box, ring, triangle, cross, but the data's are background, "
        "disc, box, triangle",
    ),
    "another size": (
        lambda f: Image.new("L", (40, 39)).save(f / "train00007.png"),
        "train00007.png is 39 x 40 pixels, but its image 40 x 40",
    ),
    "id 77": (
        lambda f: Image.new("L", (40, 40), 77).save(f / "train00007.png"),
        "train00007.png holds 77 at row 0, column 0, but there are 6 classes (0..5, 255 = not sure)",
    ),
    "a photo": (
        lambda f: Image.new("RGB", (40, 40)).save(f / "train00007.png"),
        "train00007.png is a RGB image: pseudo-masks are indexed or grey PNGs",
    ),
    "a cut picture": (lambda f: cut(f / "train00007.png"), "train00007.png"),
    "a cut pseudo.json": (lambda f: cut(f / "pseudo.json"), "pseudo.json is broken"),
    "a list for pseudo.json": (lambda f: (f / "pseudo.json").write_text("[1]"), "is broken (it holds no object)"),
    "nested pseudo.json": (lambda f: (f / "pseudo.json").write_text("[" * 10**5), "pseudo.json is broken"),
    "no pseudo.json": (lambda f: (f / "pseudo.json").unlink(), "masks has no pseudo.json: give data.pseudo_masks a"),
    "no folder": (lambda f: shutil.rmtree(f), "masks does not exist: give data.pseudo_masks a folder of"),
}


@pytest.mark.parametrize("row", FAULTS)
def test_a_folder_that_does_not_fit_is_refused_by_file(row, folder, tmp_path):
    spoil, words = FAULTS[row]
    spoil(folder)
    with pytest.raises((ValueError, OSError)) as error:
        scenes(tmp_path / "cache", folder).prepare_data()
    assert words in str(error.value)
    assert str(folder) in str(error.value)
    assert not [*(tmp_path / "cache").rglob("annotation.json")]


def test_a_chain_from_a_network_to_a_network_and_its_resume(run_dir, folder, tmp_path):
    more = [*DENSE, "--data.pseudo_masks", folder, "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    text = fit_tiny(tmp_path / "run", *more)
    assert "labelled: 12 images, 12288 pixels (100.0000%" in text
    assert "val/miou" in text
    Image.open(folder / "train00002.png").save(folder / "train00002.png")
    text = fit_tiny(tmp_path / "run", *more, "--resume", "auto", expect=1)
    assert "the data have changed since the run was stopped (1 pseudo-masks changed (train00002))" in text
    assert "no problem found" in weakseg("doctor", "--config", tmp_path / "run" / "config.yaml")
    # And from that one on: its labels are compared with the true masks.
    weakseg("pseudo", "--run", tmp_path / "run", "--output", tmp_path / "second", "--which", "last")
    run = package.load_run(tmp_path / "run", "last")
    names = run.data.names("train")
    truth, found = (
        np.concatenate([one(name).ravel() for name in names])
        for one in (run.data.mask, lambda name: labels(tmp_path / "second" / f"{name}.png"))
    )
    assert json.loads((tmp_path / "second" / "pseudo.json").read_text())["miou_train"] == pytest.approx(
        miou(truth, found), abs=1e-4
    )


# From tags to a network --------------------------------------------------------------------------------------------


def killed(monkeypatch, owner, name, times, *arguments):
    """Run a command in a forked process that is killed when it calls a function for so many times."""
    calls, before = [], getattr(owner, name)

    def last(*words, **options):
        done = before(*words, **options)
        calls.append(name)
        if len(calls) == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    child = os.fork()
    if not child:
        monkeypatch.setattr(owner, name, last)
        try:
            weakseg(*arguments)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), f"{arguments[0]} was not killed: {status}"
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_tags_become_maps_masks_and_a_network_also_if_each_is_killed(tmp_path, monkeypatch):
    short = ["--trainer.max_steps", "5", "--trainer.val_check_interval", "5"]

    def stages(folder):
        cam = ["fit", "--config", TINY, "--run_dir", folder / "cam", "--model", "CAM", *SMALL["CAM"], *short]
        pseudo = ["pseudo", "--run", folder / "cam", "--output", folder / "masks", "--refine", "pamr"]
        network = ["fit", "--config", TINY, "--run_dir", folder / "net", *DENSE, *short]
        return cam, pseudo, [*network, "--data.pseudo_masks", folder / "masks"]

    for words in stages(tmp_path / "unbroken"):
        weakseg(*words)
    cam, pseudo, network = stages(tmp_path / "broken")
    killed(monkeypatch, LastCheckpoint, "_save", 2, *cam)
    weakseg(*cam, "--resume", "auto")
    killed(monkeypatch, experiments.runs.pseudo, "RowPng", 5, *pseudo)
    assert not (tmp_path / "broken" / "masks").exists()
    weakseg(*pseudo)
    killed(monkeypatch, LastCheckpoint, "_save", 2, *network)
    weakseg(*network, "--resume", "auto")
    one, two = (tmp_path / name for name in ("unbroken", "broken"))
    masks = [{path.name: path.read_bytes() for path in (each / "masks").glob("*.png")} for each in (one, two)]
    assert len(masks[0]) == 12
    assert masks[0] == masks[1]
    for stage in ("cam", "net"):
        weights = [
            torch.load(each / stage / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            for each in (one, two)
        ]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    about = json.loads((two / "masks" / "pseudo.json").read_text())
    assert (about["method"], about["refine"], about["unlabeled"]) == ("CAM", "pamr", 0)
    background = torch.load(two / "cam" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert about["threshold"] == pytest.approx(float(background["network.background"]))
    # A class is only where it is tagged.
    run, net = package.load_run(two / "cam"), package.load_run(two / "net", "last")
    data = run.data
    for name in data.names("train"):
        assert {*np.unique(labels(two / "masks" / f"{name}.png"))} <= {0, *np.unique(data.mask(name))}
    # The network is told no tags; if it were, no class without one would be found.
    alone, told = of_network(net, run, "val", 100)
    assert alone["miou"] == pytest.approx(json.loads((two / "net" / "summary.json").read_text())["last"]["val/miou"])
    truth, found = [], []
    for name in data.names("val"):
        there = sorted({0, *np.unique(data.mask(name))} - {255})
        scores = net.predict(data.image(name), probabilities=True)[1][there]
        truth.append(data.mask(name).ravel())
        found.append(np.take(there, scores.argmax(0)).ravel())
    assert told["miou"] == pytest.approx(miou(np.concatenate(truth), np.concatenate(found)), abs=1e-4)


def test_people_without_a_mask_come_from_tags_to_a_network(tmp_path):
    root = draw_tagged(tmp_path / "data")
    data = [*on_folder(root), "--data.init_args.tags", "tags.txt"]
    short = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2"]
    text = fit_tiny(tmp_path / "cam", *data, "--model", "CAM", *short)
    assert "images per tag: dog " in text
    assert "val/map" in text
    assert "miou" not in text
    told = weakseg("pseudo", "--run", tmp_path / "cam", "--output", tmp_path / "masks")
    assert "mIoU" not in told
    assert "miou_train" not in json.loads((tmp_path / "masks" / "pseudo.json").read_text())
    assert fit_tiny(tmp_path / "net", *data, *DENSE, "--data.pseudo_masks", tmp_path / "masks", *short).count("absent")
    # Nothing tells which step is best: it is the latest, not the first.
    steps = [torch.load(tmp_path / "net" / "checkpoints" / f"{w}.ckpt", weights_only=True) for w in ("best", "last")]
    assert [one["global_step"] for one in steps] == [4, 4]
    weakseg("predict", "--run", tmp_path / "net", "--images", root / "images", "--output", tmp_path / "out")
    assert len([*(tmp_path / "out").glob("*.png")]) == 12
