"""Every wrong input ends in one line that names what, where and the way out, and leaves nothing half-written."""

import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import common.model.labeled
import methods.tv.module
from common.training.nonfinite import NonFiniteGuard
from conftest import draw_folder, fit_tiny, on_folder, snapshot, weakseg
from datamodules.scenes import draw_scene, seed_and_index
from datamodules.sets.synthetic import Synthetic


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A directory with a run in it; never written to."""
    run_dir = tmp_path_factory.mktemp("used") / "run"
    fit_tiny(run_dir, "--model", "TV", "--trainer.max_steps", "3")
    return run_dir


def message(text, status_line="weakseg: error: "):
    """The one line that tells of the error; what is printed before it are plain statements."""
    lines = [line for line in text.splitlines() if line.startswith(status_line)]
    assert len(lines) == 1, text
    assert text.splitlines()[-1] == lines[0], f"something follows the error:\n{text}"
    for noise in ("Traceback", "usage:", "Namespace(", "<class ", "Union subtypes", "Caught "):
        assert noise not in text, text
    return lines[0]


def refused(arguments, words, status, used, tmp_path):
    """The error in a new directory and, with `--overwrite`, in a used one, which stays as it is."""
    text = fit_tiny(tmp_path / "new", *arguments, expect=status)
    missing = [word for word in words if word not in message(text)]
    assert not missing, f"{missing} not in: {message(text)}"
    assert not (tmp_path / "new").exists(), sorted((tmp_path / "new").rglob("*"))
    copy = shutil.copytree(used, tmp_path / "used")
    before = snapshot(copy)
    again = fit_tiny(copy, *arguments, "--overwrite", expect=status)
    assert message(again) == message(text).replace(str(tmp_path / "new"), str(copy))
    assert snapshot(copy) == before


# Options -----------------------------------------------------------------------------------------------------------

FRACTION, ENCODER = "--data.init_args.supervision.fraction", "--model.init_args.network.encoder"
UNLABELED, TV = "--data.init_args.unlabeled_batch_size", "--model.init_args"
OPTIONS = {
    "fraction of nothing": ([FRACTION, "0"], ["supervision.fraction", "above 0", "got 0.0"], 1),
    "fraction above all": ([FRACTION, "1.5"], ["supervision.fraction", "at most 1", "got 1.5"], 1),
    "unknown kind of labels": (
        ["--data.init_args.supervision.kind", "pixel"],
        ["data.init_args.supervision.kind", "'pixels', 'points'", "got pixel"],
        2,
    ),
    "unknown encoder": ([ENCODER, "resnet19"], ["'resnet19'", "nearest", "resnet18", "list_models"], 1),
    "unknown architecture": (["--model.init_args.network.arch", "Unett"], ["'Unett'", "nearest: Unet"], 1),
    "missing weights": (["--model.init_args.network.weights", "none.pth"], ["no weights file", "none.pth"], 1),
    "unknown option": (
        ["--trainer.max_stepz", "3"],
        ["'--trainer.max_stepz 3'", "nearest", "trainer.max_steps", "weakseg fit --help-all"],
        2,
    ),
    "shortened option": (
        ["--trainer.max_step", "3"],
        ["'--trainer.max_step 3'", "nearest", "trainer.max_steps", "weakseg fit --help-all"],
        2,
    ),
    "unknown option of the method": (
        ["--model", "TV", "--model.init_args.tv_wieght", "3"],
        ["TV has no option 'tv_wieght'", "nearest: tv_weight", "--model.help TV"],
        2,
    ),
    "wrong type": (["--model", "TV", f"{TV}.tv_weight", "much"], ["model.init_args.tv_weight", "float", "got much"], 2),
    "unknown method": (["--model", "TVV"], ["'TVV' is no method", "Supervised, TV"], 2),
    "something that is no method": (["--model", "torch.nn.Conv2d"], ["'torch.nn.Conv2d' is no method", "TV"], 2),
    "unknown data set": (["--data", "Horses"], ["'Horses' is no data set", "WeizmannHorse"], 2),
    "a data set without its folder": (["--data", "Folder"], ["Folder needs root", "--data.init_args.root"], 2),
    "unknown optimizer": (
        ["--model.init_args.optimizer", "AdamX"],
        ["model.init_args.optimizer", "'AdamX'", "import path"],
        2,
    ),
    "batch that cannot be accumulated": (
        ["--trainer.accumulate_grad_batches", "3"],
        ["batch of 4", "3 accumulated parts", "data.batch_size", "trainer.accumulate_grad_batches"],
        1,
    ),
    "unlabelled batch that cannot be accumulated": (
        [
            *("--data.init_args.supervision", "{kind: image_subset, number: 4, fraction: null}"),
            *(UNLABELED, "3", "--trainer.accumulate_grad_batches", "2"),
        ],
        ["batch of 3", "2 accumulated parts", "data.unlabeled_batch_size"],
        1,
    ),
    "unlabelled batch without unlabelled images": (
        [UNLABELED, "4", "--data.init_args.unlabeled_pool", "rest"],
        ["every training image is labelled", "set data.unlabeled_pool=all"],
        1,
    ),
    "a method without its unlabelled images": (
        ["--model", "SCL", UNLABELED, "0"],
        ["SCL learns from unlabelled images", "leave data.unlabeled_batch_size out"],
        1,
    ),
    "a method without its strong views": (
        ["--model", "UniMatch", "--data.init_args.strong_views", "1"],
        ["UniMatch learns from strong views", "set data.strong_views to 2"],
        1,
    ),
    "strong views of no image": (
        ["--data.init_args.strong_views", "1"],
        ["data.strong_views=1", "set data.unlabeled_batch_size above 0"],
        1,
    ),
    "a method without its labels": (
        ["--data.init_args.supervision", "{kind: none, fraction: null}", UNLABELED, "4"],
        ["Supervised learns from labels", "another supervision.kind than none"],
        1,
    ),
    "no label and no unlabelled image": (
        ["--data.init_args.supervision", "{kind: none, fraction: null}", UNLABELED, "0"],
        ["supervision kind none labels no image", "data.unlabeled_batch_size above 0"],
        1,
    ),
    "labels of a set without classes": (
        [
            *("--data", "BSDS500", "--data.init_args.root", "none"),
            *("--data.init_args.supervision", "{kind: dense, fraction: null}"),
        ],
        ["BSDS500 has no class labels", "data.supervision.kind=none"],
        1,
    ),
    "SCL with a share above all": (["--model", "SCL", f"{TV}.ramp", "2"], ["ramp"], 1),
    "more labelled images than there are": (
        ["--data.init_args.supervision", "{kind: image_subset, number: 13, fraction: null}"],
        ["supervision.number", "13 of 12"],
        1,
    ),
    "no validation image": (["--data.init_args.val", "0"], ["val split of Synthetic has no image"], 1),
    "negative learning rate": (["--model.init_args.optimizer.init_args.lr", "-1"], ["learning rate", "-1.0"], 1),
    "no such accelerator": (["--trainer.accelerator", "abacus"], ["abacus", "cpu"], 1),
    "a group of options that is null": (
        ["--data.init_args.supervision", "null"],
        ["data.supervision is null: leave it out for the default, or give it a value"],
        1,
    ),
    "a group of the network that is null": (["--model.network.decoder", "null"], ["model.network.decoder is null"], 1),
    "a number that is null": (["--data.init_args.scale", "null"], ["data.scale is null"], 1),
    "an optimizer that is null": (["--model.optimizer", "null"], ["model.optimizer is null"], 1),
    "options that are null": (["--model.init_args", "null"], ["model.init_args is null: name options below it"], 2),
    "no part of a batch": (["--trainer.accumulate_grad_batches", "0"], ["accumulate_grad_batches must be above 0"], 1),
    "no side": (["--data.init_args.side", "0"], ["data.side is a number of pixels"], 1),
    "no step between rows": (["--trainer.log_every_n_steps", "0"], ["trainer.log_every_n_steps must be above 0"], 1),
    "no step between checkpoints": (["--checkpoint_every", "0"], ["--checkpoint_every is a number of steps"], 1),
    "no time to wait": (["--rank_timeout", "0"], ["--rank_timeout is in minutes, above 0"], 1),
    "devices that are no number": (["--trainer.devices", "all"], ["trainer.devices is a number, auto, or a list"], 1),
    "GPUs that are not there": (
        ["--trainer.devices", "[1, 2]", "--trainer.accelerator", "cpu"],
        ["trainer.devices: ", "a list of their numbers"],
        1,
    ),
    "no step": (["--trainer.max_steps", "0"], ["nothing is trained", "trainer.max_steps"], 1),
    "--config without a file": (["--config"], ["--config needs the name of a config", "regimes: ", "quickstart"], 1),
    "unknown config": (["--config", "quikstart"], ["no config 'quikstart'", "nearest: quickstart", "methods: "], 1),
    "missing config file": (["--config", "none.yaml"], ["none.yaml", "does not exist", "quickstart"], 1),
}  # fmt: skip


@pytest.mark.parametrize("row", OPTIONS)
def test_wrong_option(row, used, tmp_path):
    arguments, words, status = OPTIONS[row]
    if arguments == ["--config"]:  # it must be the last word
        assert all(word in message(weakseg("fit", "--config", expect=status)) for word in words)
        return
    refused(arguments, words, status, used, tmp_path)


FILES = {
    "unknown key": ("trainer: {max_stepz: 3}", ["'trainer.max_stepz'", "trainer.max_steps"], 2),
    "unknown section": ("modle: {class_path: TV}", ["'modle.class_path'", "nearest: model"], 2),
    "unknown key of the method": (
        "model: {class_path: TV, init_args: {tv_wieght: 3}}",
        ["TV has no option 'tv_wieght'", "tv_weight"],
        2,
    ),
    "unknown key of the network": (
        "model: {class_path: TV, init_args: {network: {encode: resnet18}}}",
        ["TV has no option 'encode'", "network.encoder"],
        2,
    ),
    "unknown method": ("model: {class_path: TVV}", ["'TVV'", "is no method", "Supervised, TV"], 2),
    "not YAML": ("data: [", ["not valid YAML", "line 1"], 1),
    "no mapping": ("[data]", ["key: value", "list"], 1),
    "missing part": ("compose: [none.yaml]", ["none.yaml", "does not exist"], 1),
}


@pytest.mark.parametrize("row", FILES)
def test_wrong_config_file(row, used, tmp_path):
    content, words, status = FILES[row]
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    named = tmp_path / "none.yaml" if row == "missing part" else path
    refused(["--config", path], [str(named), *words], status, used, tmp_path)


# Files -------------------------------------------------------------------------------------------------------------


def rewrite(path, change):
    array = change(np.asarray(Image.open(path)))
    Image.fromarray(array).save(path)


def wrong_class(mask):
    mask = mask.copy()
    mask[5, 7] = 3
    return mask


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


# Name of an image per split: 2 is for training, 6 for validation, 8 for test.
BROKEN = {
    "no folder": (shutil.rmtree, ["data", "does not exist", "check data.root"]),
    "no folder of images": (lambda d: shutil.rmtree(d / "images"), ["images", "does not exist", "check the path"]),
    "empty folder of images": (lambda d: empty(d / "images"), ["images", "has no image", ".png"]),
    "empty folder of masks": (lambda d: empty(d / "masks"), ["masks", "has no image", ".png"]),
    "mask without image": (lambda d: (d / "images" / "2.png").unlink(), ["masks without an image", "2"]),
    "listed image that is missing": (
        lambda d: [(d / part / "2.png").unlink() for part in ("images", "masks")],
        ["train.txt lists 2", "not in images/"],
    ),
    "missing list": (
        lambda d: [(d / "val.txt").unlink(), (d / "train.txt").write_text("\n".join("01234567"))],
        ["no val.txt", "too few images with a mask are in no list", "lines moved from another list"],
    ),
    "image in two lists": (lambda d: (d / "val.txt").write_text("2\n6\n"), ["'2'", "both train and val", "one of"]),
    "validation image without mask": (lambda d: (d / "masks" / "6.png").unlink(), ["val images need a mask", "6"]),
    "test image without mask": (lambda d: (d / "masks" / "8.png").unlink(), ["test images need a mask", "8"]),
    "mask of another size": (
        lambda d: rewrite(d / "masks" / "2.png", lambda mask: mask[:-1]),
        ["image '2'", "29 x 29", "28 x 29", "replace"],
    ),
    "validation mask of another size": (
        lambda d: rewrite(d / "masks" / "6.png", lambda mask: mask[:-1]),
        ["image '6'", "25 x 61", "24 x 61", "replace"],
    ),
    "class that is not listed": (
        lambda d: rewrite(d / "masks" / "2.png", wrong_class),
        ["masks/2.png", "holds 3 at row 5, column 7", "3 classes", "correct the mask"],
    ),
    "class that is not listed, in validation": (
        lambda d: rewrite(d / "masks" / "6.png", wrong_class),
        ["masks/6.png", "holds 3 at row 5, column 7", "3 classes", "correct the mask"],
    ),
    "RGB mask without colours": (
        lambda d: rewrite(d / "masks" / "2.png", lambda mask: np.stack([mask] * 3, -1)),
        ["masks/2.png", "RGB mask", "classes.txt", "name r g b"],
    ),
    "truncated image": (lambda d: truncate(d / "images" / "2.png"), ["images/2.png", "truncated", "replace it"]),
    "truncated mask": (lambda d: truncate(d / "masks" / "2.png"), ["masks/2.png", "cannot be read", "replace it"]),
    "truncated validation image": (lambda d: truncate(d / "images" / "6.png"), ["images/6.png", "truncated"]),
    "truncated image without a mask": (
        lambda d: [(d / "masks" / "2.png").unlink(), truncate(d / "images" / "2.png")],
        ["images/2.png", "truncated"],
    ),
    "no mask for training": (
        lambda d: [(d / "masks" / f"{number}.png").unlink() for number in range(6)],
        ["none of the 6 training images has a mask", "label some"],
    ),
    "masks without a label": (
        lambda d: [rewrite(d / "masks" / f"{n}.png", lambda mask: np.full_like(mask, 255)) for n in range(6)],
        ["no pixel of the 6 labelled images has a label", "check the masks"],
    ),
    "one class": (lambda d: (d / "classes.txt").write_text("ground\n"), ["classes.txt", "1 classes", "at least 2"]),
}


@pytest.mark.parametrize("way", ["option", "variable"])
def test_a_cache_that_cannot_be_written_is_told_with_the_way_out(way, used, tmp_path, monkeypatch):
    """Here because a file is in its place; root, who runs some tests, may write everywhere."""
    data = draw_folder(tmp_path / "data")
    (tmp_path / "file").touch()
    words = ["cannot write into the cache folder", str(tmp_path / "file"), "set WEAKSEG_CACHE or --data.cache_dir"]
    cache = str(tmp_path / "file" / "cache")
    monkeypatch.setenv("WEAKSEG_CACHE", cache if way == "variable" else str(tmp_path / "other"))
    option = ["--data.init_args.cache_dir", cache] if way == "option" else []
    refused([*on_folder(data), *option], words, 1, used, tmp_path)


@pytest.mark.parametrize("row", BROKEN)
def test_broken_files(row, used, tmp_path):
    change, words = BROKEN[row]
    data = draw_folder(tmp_path / "data")
    change(data)
    cache = tmp_path / "cache"
    refused([*on_folder(data), "--data.init_args.cache_dir", cache], words, 1, used, tmp_path)
    assert not list(cache.rglob("*")), "half an annotation is left"


# Checkpoints -------------------------------------------------------------------------------------------------------


def test_checkpoint_of_another_method(used, tmp_path):
    arguments = ["--resume", used / "checkpoints" / "last.ckpt"]  # of TV, the run is Supervised
    text = fit_tiny(tmp_path / "new", *arguments, expect=1)
    for words in (str(arguments[1]), "checkpoint of TV", "this run is Supervised", "give a checkpoint of Supervised"):
        assert words in message(text)
    assert not (tmp_path / "new").exists()


def test_checkpoint_of_another_network(used, tmp_path):
    arguments = ["--resume", used / "checkpoints" / "last.ckpt", "--model.init_args.network.decoder.decoder_channels"]
    text = fit_tiny(tmp_path / "new", "--model", "TV", *arguments, "[16, 16, 8, 4]", expect=1)
    assert "does not fit the network" in message(text)
    assert "size mismatch for network.model.decoder" in message(text)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", ["--resume", "--init_from"])
@pytest.mark.parametrize("file", ["missing", "no checkpoint", "another program's"])
def test_file_that_is_no_checkpoint(file, option, tmp_path):
    path = tmp_path / "file.ckpt"
    if file == "no checkpoint":
        path.write_text("no checkpoint")
    if file == "another program's":
        torch.save({"state_dict": {}}, path)
    words = {
        "missing": "there is no checkpoint",
        "no checkpoint": "cannot be read as a checkpoint",
        "another program's": "was not written by `weakseg fit`",
    }
    text = fit_tiny(tmp_path / "new", option, path, expect=1)
    assert words[file] in message(text)
    assert str(path) in message(text)
    assert not (tmp_path / "new").exists()


def test_directory_in_use(used, tmp_path):
    copy = shutil.copytree(used, tmp_path / "run")
    before = snapshot(copy)
    text = message(fit_tiny(copy, expect=1))
    for words in (str(copy), "holds a run already", "--resume auto", "--overwrite", "--run_dir"):
        assert words in text
    assert snapshot(copy) == before


# Trained models ----------------------------------------------------------------------------------------------------

IMAGES = ["--images, an image or a folder", "--output FOLDER"]
AFTER = {
    "no model": (["test"], ["--run RUN_DIR", "--ckpt FILE"]),
    "two models": (["test", "--run", "USED", "--ckpt", "USED/checkpoints/last.ckpt"], ["either --run", "or --ckpt"]),
    "no run": (["validate", "--run", "NEW"], ["NEW/checkpoints/best.ckpt", "run directory"]),
    "no checkpoint": (["test", "--ckpt", "USED/config.yaml"], ["USED/config.yaml", "cannot be read as a checkpoint"]),
    "no images": (
        ["predict", "--run", "USED", "--output", "NEW"],
        IMAGES,
    ),
    "no output": (
        ["predict", "--run", "USED", "--images", "USED"],
        IMAGES,
    ),
    "no such folder": (["predict", "--run", "USED", "--images", "NEW", "--output", "NEW"], ["NEW", "does not exist"]),
    "folder without images": (
        ["predict", "--run", "USED", "--images", "USED/checkpoints", "--output", "NEW"],
        ["USED", "has no image"],
    ),
}


@pytest.mark.parametrize("row", AFTER)
def test_wrong_use_of_a_trained_model(row, used, tmp_path):
    def filled(word):
        return word.replace("USED", str(used)).replace("NEW", str(tmp_path / "new"))

    before = snapshot(used)
    arguments, words = AFTER[row]
    text = message(weakseg(*map(filled, arguments), expect=1))
    missing = [word for word in map(filled, words) if word not in text]
    assert not missing, text
    assert snapshot(used) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_test_image_is_named_also_from_a_worker_process(workers, tmp_path):
    data = draw_folder(tmp_path / "data")
    fit_tiny(tmp_path / "run", *on_folder(data), "--trainer.max_steps", "3")
    before = snapshot(tmp_path / "run")
    truncate(data / "images" / "8.png")
    text = message(weakseg("test", "--run", tmp_path / "run", "--data.init_args.num_workers", workers, expect=1))
    assert f"{data / 'images' / '8.png'} cannot be read as an image" in text
    assert "replace it" in text
    assert snapshot(tmp_path / "run") == before


# Non-finite gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "module", "function", "bad", "good"),
    [
        ("Supervised", common.model.labeled, "partial_cross_entropy", ["loss"], []),
        ("TV", common.model.labeled, "partial_cross_entropy", ["loss", "pce"], ["tv"]),
        ("TV", methods.tv.module, "total_variation", ["loss", "tv"], ["pce"]),
    ],
)
def test_non_finite_loss_stops_before_the_step(method, module, function, bad, good, tmp_path, monkeypatch):
    seen = []
    original, check = getattr(module, function), NonFiniteGuard.on_before_optimizer_step

    def break_at_step_two(*arguments, **options):
        value = original(*arguments, **options)
        return value * float("nan") if len(seen) == 2 else value

    def remember(self, trainer, module, optimizer):
        seen.append((module, {name: p.detach().clone() for name, p in module.named_parameters()}))
        check(self, trainer, module, optimizer)

    monkeypatch.setattr(module, function, break_at_step_two)
    monkeypatch.setattr(NonFiniteGuard, "on_before_optimizer_step", remember)
    start = ["--model.init_args.start", "0"] if method == "TV" else []
    run_dir = tmp_path / "run"
    text = message(fit_tiny(run_dir, "--model", method, *start, "--checkpoint_every", "1", expect=1))

    path = run_dir / "nonfinite_rank0.pt"
    named = text.split("the terms ")[1].split(" are not finite")[0].split(", ")
    assert set(bad) <= set(named)
    assert not set(good) & set(named)
    for words in ("step 2", "before the optimizer step", str(path), "learning rate"):
        assert words in text
    assert len(seen) == 3
    model, before = seen[-1]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    assert any(not torch.equal(seen[0][1][name], before[name]) for name in before)  # the first two steps were made
    saved = torch.load(path, weights_only=False)
    assert saved["step"] == 2
    assert saved["batch"]["labeled"]["image"].shape == (4, 3, 32, 32)
    assert len(saved["batch"]["labeled"]["name"]) == 4
    assert saved["seed"] == model.step_seed
    assert all(torch.isfinite(saved["terms"][name]) for name in good)
    last = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert all(torch.equal(last["state_dict"][name], before[name]) for name in before)


def test_infinite_gradient_of_a_finite_loss_stops_too(tmp_path, monkeypatch):
    original = common.model.labeled.partial_cross_entropy

    def steep(logits, mask, valid, weights):
        return (
            original(logits, mask, valid, weights) + (logits.flatten()[0] * 0).abs().sqrt()
        )  # value 0, gradient infinite

    monkeypatch.setattr(common.model.labeled, "partial_cross_entropy", steep)
    text = message(fit_tiny(tmp_path / "run", expect=1))
    assert "step 0" in text
    assert "every term is finite, a gradient is not" in text
    assert (tmp_path / "run" / "nonfinite_rank0.pt").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


# Machines ----------------------------------------------------------------------------------------------------------


def dies_of(error):
    """An image whose reading ends in what a machine that is too small does to a loader process."""

    def image(self, name):
        if error == "killed" and torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        if error == "shared memory":
            raise RuntimeError("unable to write to file </torch_123_4>: No space left on device (28)")
        if error == "memory":
            raise MemoryError
        return draw_scene(*seed_and_index(name), self.side)[0]

    return image


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("killed", ["a loader process was killed", "data.num_workers"]),
        ("shared memory", ["/dev/shm", "--shm-size", "data.num_workers"]),
        ("memory", ["not enough memory", "data.batch_size"]),
    ],
)
def test_a_machine_that_is_too_small(error, words, tmp_path, monkeypatch):
    monkeypatch.setattr(Synthetic, "image", dies_of(error))
    monkeypatch.setattr(Synthetic, "prepare_data", lambda self: None)
    fake = {"images": 1, "labeled_pixels": 1, "pixels": 1, "per_class": {}, "images_without_label": 0}
    monkeypatch.setattr(Synthetic, "annotation_report", lambda self: fake)
    text = message(fit_tiny(tmp_path / "run", "--data.init_args.num_workers", int(error != "memory"), expect=1))
    assert not [word for word in words if word not in text], text


def test_batch_norm_of_one_value(tmp_path):
    network = "{arch: DeepLabV3Plus, encoder: tu-test_resnet, decoder: {encoder_depth: 4}}"
    arguments = ["--model.init_args.network", network, "--data.init_args.batch_size", "1"]
    text = message(fit_tiny(tmp_path / "run", *arguments, expect=1))
    assert "BatchNorm cannot learn from one value a channel" in text
    assert "model.network.freeze_bn=true" in text


def test_an_error_that_nobody_has_foreseen_is_a_line_and_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("WEAKSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Synthetic, "image", lambda self, name: {}["missing"])
    text = message(fit_tiny(tmp_path / "run", expect=1))
    (log,) = (tmp_path / "cache" / "errors").iterdir()
    assert text == f"weakseg: error: unexpected KeyError: 'missing'; please report it with {log}"
    assert "Traceback" in log.read_text()
    monkeypatch.setenv("WEAKSEG_TRACEBACK", "1")
    with pytest.raises(KeyError, match="missing"):
        fit_tiny(tmp_path / "run")
