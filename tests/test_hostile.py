"""Fifty files that somebody sends: checkpoints, run directories, configs, images. Each ends in one line; nothing is
written, nothing is run, no memory is taken that was not checked. (Seventy annotation files have a table of their own,
tests/datamodules/test_hostile_annotations.py.)
"""

import io
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from common.training.memory import resident_gb
from conftest import TINY, draw_folder, fit_tiny, on_folder, snapshot, weakseg


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    fit_tiny(root / "run", *on_folder(draw_folder(root / "data")), "--trainer.max_steps", "2")
    return root / "run"


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty working directory, watched."""
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


def one_line(text):
    lines = [line for line in text.splitlines() if line.startswith("weakseg: error: ")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    assert "unexpected" not in lines[0], text
    assert "weights_only" not in text
    return lines[0]


# Checkpoints -------------------------------------------------------------------------------------------------------


def content_of(trained):
    return torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)


def changed(trained, path, change):
    content = content_of(trained)
    change(content)
    torch.save(content, path)


def configured(change):
    """A checkpoint whose config was changed."""

    def make(trained, path):
        def in_config(content):
            config = yaml.safe_load(content["weakseg"]["config"])
            change(config)
            content["weakseg"]["config"] = yaml.safe_dump(config)

        changed(trained, path, in_config)

    return make


def text_config(text):
    return lambda trained, path: changed(trained, path, lambda content: content["weakseg"].update(config=text))


def bytes_of(make):
    return lambda trained, path: path.write_bytes(make((trained / "checkpoints" / "last.ckpt").read_bytes()))


def network(**options):
    return configured(lambda config: config["model"]["init_args"]["network"].update(options))


def packed(**files):
    def make(trained, path):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in files.items():
                file.writestr(f"archive/{name}", content)

    return make


BILLION = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{two}: &{two} [{', '.join([f'*{one}'] * 9)}]\n" for one, two in zip("abcdefgh", "bcdefghi", strict=True)
)
MANY: list = ["x"] * 9
for _ in range(8):
    MANY = [MANY] * 9  # written as aliases
CHECKPOINTS = {
    "nothing": lambda trained, path: path.write_bytes(b""),
    "text": lambda trained, path: path.write_text("a checkpoint"),
    "half a file": bytes_of(lambda content: content[: len(content) // 2]),
    "a flipped header": bytes_of(lambda content: b"XX" + content[2:]),
    "a zip of something": packed(readme="hello"),
    "a zip with a pickle of nothing": packed(**{"data.pkl": b"", "version": "3"}),
    "a folder": lambda trained, path: path.mkdir(),
    "a list": lambda trained, path: torch.save([1, 2], path),
    "a tensor": lambda trained, path: torch.save(torch.ones(3), path),
    "weights alone": lambda trained, path: torch.save(content_of(trained)["state_dict"], path),
    "no config": lambda trained, path: changed(trained, path, lambda content: content["weakseg"].pop("config")),
    "a number for a config": text_config("7"),
    "a config that is no YAML": text_config("model: ["),
    "a deep config": text_config("[" * 5000),
    "a billion laughs": text_config(BILLION),
    "a billion laughs in an option": configured(lambda config: config["model"]["init_args"].update(schedule=MANY)),
    "merged mappings": configured(lambda config: config["model"]["init_args"].update(schedule="<<")),
    "a size of gigapixels": lambda trained, path: changed(
        trained, path, lambda content: content["weakseg"].update(size=[2**16, 2**16])
    ),
    "a config without a model": configured(lambda config: config.pop("model")),
    "a config without data": configured(lambda config: config.pop("data")),
    "a model that is a list": configured(lambda config: config.update(model=[1])),
    "a method of nowhere": configured(lambda config: config["model"].update(class_path="os.system")),
    "a data set of nowhere": configured(lambda config: config["data"].update(class_path="subprocess.Popen")),
    "an option that there is not": configured(lambda config: config["model"]["init_args"].update(command="rm -r /")),
    "a negative seed": configured(lambda config: config.update(seed_everything=-1)),
    "an unknown precision": configured(lambda config: config["trainer"].update(precision="8-true")),
    "an encoder of nowhere": network(encoder="resnet9000"),
    "an architecture of nowhere": network(arch="__class__"),
    "channels for all the memory": network(decoder={"decoder_channels": [2**30, 2**30, 8, 8], "encoder_depth": 4}),
    "negative channels": network(decoder={"decoder_channels": [-1, 16, 8, 8], "encoder_depth": 4}),
    "another network": network(decoder={"decoder_channels": [16, 16, 8, 4], "encoder_depth": 4}),
    "no weights": lambda trained, path: changed(trained, path, lambda content: content.update(state_dict={})),
    "weights that are words": lambda trained, path: changed(
        trained, path, lambda content: content["state_dict"].update(dict.fromkeys(content["state_dict"], "x"))
    ),
    "weights that are a list": lambda trained, path: changed(
        trained, path, lambda content: content.update(state_dict=[1])
    ),
    "a class too many": lambda trained, path: changed(
        trained,
        path,
        lambda content: content["weakseg"].update(classes=["a", "b", "c", "d"], colors=[[0, 0, 0]] * 4),
    ),
}


@pytest.mark.parametrize("row", CHECKPOINTS)
def test_hostile_checkpoint(row, trained, desk, tmp_path):
    path = tmp_path / "sent.ckpt"
    CHECKPOINTS[row](trained, path)
    (desk / "photos").mkdir()
    Image.new("RGB", (20, 20)).save(desk / "photos" / "a.png")
    before, memory = snapshot(tmp_path), resident_gb("VmRSS")
    one_line(weakseg("predict", "--ckpt", path, "--images", "photos", "--output", "out", expect=1))
    if "weights" in row:
        one_line(weakseg("fit", "--config", TINY, "--run_dir", "run", "--init_from", path, expect=1))
    assert snapshot(tmp_path) == before
    assert resident_gb("VmRSS") - memory < 0.5


# Run directories, which `compare` reads ----------------------------------------------------------------------------


def zip_bomb():
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("confusion.npy", b"\0" * 2**20)
    content = bytearray(made.getvalue())
    place = content.rindex(b"PK\x01\x02")  # the central directory promises 3 GiB
    content[place + 24 : place + 28] = struct.pack("<I", 3 * 2**30)
    return bytes(content)


RUNS = {
    "an empty summary": lambda run: (run / "summary.json").write_text(""),
    "a summary of nothing": lambda run: (run / "summary.json").write_text("{}"),
    "a summary that is a list": lambda run: (run / "summary.json").write_text("[]"),
    "half a summary": lambda run: (run / "summary.json").write_text('{"steps": 2, "last": {'),
    "words for steps": lambda run: (run / "summary.json").write_text('{"steps": "2", "last": {}, "best": {}}'),
    "a deep summary": lambda run: (run / "summary.json").write_text("[" * 100_000),
    "an empty config": lambda run: (run / "config.yaml").write_text(""),
    "a config with code": lambda run: (run / "config.yaml").write_text("!!python/object/apply:os.system [touch mark]"),
    "a config without labels": lambda run: (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("supervision:", "supervisions:")
    ),
    "a config without a seed": lambda run: (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("seed_everything:", "seed:")
    ),
    "images of unknown making": lambda run: np.savez(
        run / "test_best_images.npz", names=np.array(["a"]), confusion=np.zeros((1, 3, 3)), evaluation="{"
    ),
    "metrics that are words": lambda run: (run / "metrics.csv").write_text("step,val/miou\na,b\n"),
    "no metrics": lambda run: (run / "metrics.csv").unlink(),
    "images that are no zip": lambda run: (run / "test_best_images.npz").write_bytes(b"no zip"),
    "images with a pickle": lambda run: np.savez(
        run / "test_best_images.npz", names=np.array([{}], object), confusion=np.zeros(1), evaluation="{}"
    ),
    "images of 3 GiB": lambda run: (run / "test_best_images.npz").write_bytes(zip_bomb()),
    "images without names": lambda run: np.savez(run / "test_best_images.npz", other=np.zeros(3)),
}


@pytest.mark.parametrize("row", RUNS)
def test_a_hostile_run_directory_is_left_out_by_name(row, trained, desk):
    good, bad = (shutil.copytree(trained, desk / "runs" / name) for name in ("good", "bad"))
    RUNS[row](bad)
    memory = resident_gb("VmRSS")
    text = weakseg("compare", "runs", "--output", "report", "--images", "0")
    assert "runs/bad: cannot be read (" in text
    assert "Supervised" in text  # the other one is compared
    assert not (desk / "mark").exists()
    assert resident_gb("VmRSS") - memory < 0.5
    shutil.rmtree(good)
    one_line(weakseg("compare", "runs", "--output", "report", "--images", "0", expect=1))


# Configs and studies -----------------------------------------------------------------------------------------------

CONFIGS = {
    "one that composes itself": "compose: [sent.yaml]",
    "a part that is a number": "compose: 7",
    "a part of parts": "compose: [[a]]",
    "a deep one": "a: " + "[" * 5000,
    "not text": "\udcff",
    "a list": "- a",
}


@pytest.mark.parametrize("row", CONFIGS)
def test_hostile_config(row, desk):
    (desk / "sent.yaml").write_bytes(CONFIGS[row].encode(errors="surrogateescape"))
    assert "sent.yaml" in one_line(weakseg("fit", "--config", "./sent.yaml", "--run_dir", "run", expect=1))
    assert [path.name for path in desk.iterdir()] == ["sent.yaml"]


def test_configs_that_compose_each_other(desk):
    (desk / "a.yaml").write_text("compose: [b.yaml]")
    (desk / "b.yaml").write_text("compose: [a.yaml]")
    assert "composes itself, through" in one_line(weakseg("fit", "--config", "./a.yaml", expect=1))


@pytest.mark.parametrize("text", ["", "[]", "title: [", "rows: 7", "a: " + "[" * 5000, None])
def test_hostile_study(text, desk):
    if text is not None:
        (desk / "sent.yaml").write_text(text)
    assert "sent.yaml" in one_line(weakseg("study", "./sent.yaml", expect=1))


# Images ------------------------------------------------------------------------------------------------------------


def png(width, height):
    """A PNG whose header promises a size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


PHOTOS = {
    "a million by a million": png(10**6, 10**6),
    "above the limit": png(2**15, 2**15),
    "no pixel": png(0, 10),
    "no content": png(40, 40),
    "nothing": b"",
    "text": b"a photo",
}


@pytest.mark.parametrize("row", PHOTOS)
def test_hostile_photo(row, trained, desk):
    (desk / "photos").mkdir()
    (desk / "photos" / "sent.png").write_bytes(PHOTOS[row])
    memory = resident_gb("VmRSS")
    text = weakseg("predict", "--run", trained, "--images", "photos", "--output", "out", expect=1)
    assert "1 of 1 images could not be read" in one_line(text)
    assert "photos/sent.png" in text
    assert resident_gb("VmRSS") - memory < 0.5
    assert not [path for path in desk.rglob("*") if path.is_file() and "out" in path.parts]


def test_there_are_fifty_of_them():
    assert sum(map(len, (CHECKPOINTS, RUNS, CONFIGS, PHOTOS))) >= 50
