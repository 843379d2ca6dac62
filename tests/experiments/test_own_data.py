"""`weakseg fit --data FOLDER`: what is chosen, and that it is said, kept and overridden."""

import os
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from common.model.networks import NetworkConfig, build_network
from common.model.postprocess import PostprocessConfig
from conftest import ROOT, draw_folder, weakseg
from datamodules import Folder
from experiments.cli import own_data

# Options that make it a matter of seconds; the choices around them stay.
TINY = ["--model.network.encoder", "tu-test_resnet", "--trainer.max_steps", "2", "--data.num_workers", "0",
        "--trainer.enable_progress_bar", "false"]  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return draw_folder(tmp_path / "my_data")


def config_of(run_dir):
    content = yaml.safe_load((run_dir / "config.yaml").read_text())
    del content["data"]["init_args"]["cache_dir"]
    return content


def printed(text):
    [line] = [line for line in text.splitlines() if line.startswith("  weakseg fit ")]
    return shlex.split(line)[2:]


def test_a_folder_is_enough_and_the_command_that_is_printed_is_the_same_run(root, tmp_path):
    text = weakseg("fit", "--data", root, *TINY)
    assert "all pixels labelled; 6 training images (6 with a mask), 2 for val, 2 for test; 3 classes" in text
    assert "chosen: supervised_ema" in text
    words = printed(text)
    first = tmp_path / "runs" / "my_data" / "supervised_ema" / "seed0"
    assert words[words.index("--run_dir") + 1] == str(first.relative_to(tmp_path))
    words[words.index("--run_dir") + 1] = "again"
    weakseg("fit", *words)
    assert config_of(first) == config_of(tmp_path / "again")
    data = config_of(first)["data"]["init_args"]
    assert (data["size"], data["crop"], data["batch_size"]) == (64, [64, 64], 4)  # the longer sides' median is 44
    assert config_of(first)["trainer"]["max_steps"] == 2
    assert config_of(first)["model"]["init_args"]["ema_decay"] == 0.99


def test_every_choice_can_be_overridden_and_a_class_is_no_folder(root):
    said = ["--config", "tv", "--data.size", "32", "--data.batch_size=2", "--model.network.arch", "FPN"]
    text = weakseg("fit", "--data=./my_data", *TINY, *said, "--run_dir", "mine")
    assert "chosen: tv" in text
    config = config_of(root.parent / "mine")
    assert config["model"]["class_path"].endswith("TV")
    assert config["model"]["init_args"]["network"]["arch"] == "FPN"
    assert (config["data"]["init_args"]["size"], config["data"]["init_args"]["batch_size"]) == (32, 2)
    assert "chosen" not in weakseg("fit", "--data", "Folder", "--data.root", root, expect=2)


def test_a_config_and_a_size_of_two_sides_are_heard(root):
    (root.parent / "mine.yaml").write_text(
        "data: {init_args: {mask_values: {0: ground, 1: red thing, 2: blue thing, 255: ignore}}}"
    )
    words = ["--config", "mine.yaml", "--data.size", "[96, 64]", "--run_dir", "mine"]
    text = weakseg("fit", "--data", "my_data", *TINY, *words)
    assert "chosen: " in text
    data = config_of(root.parent / "mine")["data"]["init_args"]
    assert (data["size"], data["crop"]) == ([96, 64], [64, 64])  # three quarters of the longer one
    assert data["mask_values"]["255"] == "ignore"


def test_a_resumed_run_takes_its_choices_and_measures_nothing(root, monkeypatch):
    weakseg("fit", "--data", "my_data", *TINY)
    run_dir = root.parent / "runs" / "my_data" / "supervised_ema" / "seed0"
    before = config_of(run_dir)
    monkeypatch.setattr(own_data, "choose", None)
    weakseg("fit", "--data", "my_data", *TINY, "--resume", "auto", "--trainer.max_steps", "4")
    after = config_of(run_dir)
    assert after["trainer"].pop("max_steps") == 4
    assert before["trainer"].pop("max_steps") == 2
    assert before == after


def test_the_kind_of_labels_says_the_method(root):
    assert own_data.kind_of(Folder(str(root))) == "all pixels labelled"
    for number in (2, 3, 4):
        (root / "masks" / f"{number}.png").unlink()
    assert own_data.kind_of(Folder(str(root))) == "some images labelled"
    for file in (root / "masks").iterdir():
        mask = np.array(Image.open(file))
        mask[5:] = 255
        Image.fromarray(mask).save(file)
    for number in (2, 3, 4):
        shutil.copy(root / "masks" / "0.png", root / "masks" / f"{number}.png")
        shutil.copy(root / "images" / "0.png", root / "images" / f"{number}.png")
    assert own_data.kind_of(Folder(str(root))) == "strokes, much left open"
    for file in (root / "masks").iterdir():
        mask = np.array(Image.open(file))
        mask[-2:] = mask[-4:-2] = 0
        Image.fromarray(mask).save(file)
    assert own_data.kind_of(Folder(str(root))) == "strokes"
    for kind, dots in (("clicks", 1), ("few pixels", 5)):  # of each of two classes
        for file in (root / "masks").iterdir():
            height, width = np.array(Image.open(file)).shape
            mask = np.full((height, width), 255, np.uint8)
            for label in range(2):
                mask[4 * label + 2, 3 : 3 + 4 * dots : 4] = label
            Image.fromarray(mask).save(file)
        assert own_data.kind_of(Folder(str(root))) == kind


def test_some_labelled_images_get_scl_where_the_encoder_is_pretrained(root, monkeypatch):
    for number in (2, 3, 4):
        (root / "masks" / f"{number}.png").unlink()
    words = ["--data", str(root), "--model.network.encoder", "tu-test_resnet", "--model.network.weights", "x"]
    monkeypatch.setattr(own_data, "_check_at_hand", lambda *_: None)
    monkeypatch.setattr("os.environ", {**os.environ})
    chosen = own_data.with_choices(words)
    assert "scl" in chosen
    monkeypatch.delenv(own_data.CHOSEN)
    assert "supervised_ema" in own_data.with_choices([*words[:-1], "null"])


def test_strokes_on_some_images_are_strokes(root):
    for number in (2, 3, 4):
        (root / "masks" / f"{number}.png").unlink()
    for file in (root / "masks").iterdir():
        mask = np.array(Image.open(file))
        mask[5:-2] = 255
        mask[-2:] = 0
        Image.fromarray(mask).save(file)
    assert own_data.kind_of(Folder(str(root))) == "strokes"
    for number in (0, 1, 5):
        (root / "masks" / f"{number}.png").unlink()
    assert own_data.kind_of(Folder(str(root))) == "some images labelled"  # none of train


@pytest.mark.parametrize("word", ["-1", "1e4", "many"])
def test_a_length_that_is_no_number_is_named(root, word):
    said = weakseg("fit", "--data", root, *TINY, "--trainer.max_steps", word, expect=1)
    assert f"--trainer.max_steps is '{word}': with --data FOLDER give a number, 1 or more" in said


def test_a_broad_brush_makes_dots_and_a_thin_one_strokes():
    mask = np.full((400, 600), 255, np.uint8)
    mask[100:109, 50:59] = 0
    mask[200:209, 50:59] = 1
    assert own_data.dots_of(mask) == (1, 1)
    mask[300, 50:80] = 1
    assert own_data.dots_of(mask) == (pytest.approx(2 / 3), 1.5)


def test_strokes_that_leave_most_of_an_image_open_get_tv_of_a_weight_unless_a_method_is_named(root):
    for file in (root / "masks").iterdir():
        mask = np.array(Image.open(file))
        mask[5:] = 255
        Image.fromarray(mask).save(file)
    text = weakseg("fit", "--data", root, *TINY)
    assert "my_data: strokes, much left open;" in text
    assert "chosen: tv" in text
    assert "may gain" not in text
    assert config_of(root.parent / "runs" / "my_data" / "tv" / "seed0")["model"]["init_args"]["tv_weight"] == 1
    weakseg("fit", "--data", root, *TINY, "--name", "mine", "--model.tv_weight", "0.5")
    assert config_of(root.parent / "runs" / "my_data" / "tv" / "mine")["model"]["init_args"]["tv_weight"] == 0.5
    assert "chosen: supervised." in weakseg("fit", "--data", root, *TINY, "--config", "supervised")
    weakseg("fit", "--data", root, *TINY, "--name", "mine", "--resume", "auto", "--trainer.max_steps", "4")
    after = config_of(root.parent / "runs" / "my_data" / "tv" / "mine")
    assert (after["model"]["init_args"]["tv_weight"], after["trainer"]["max_steps"]) == (0.5, 4)


@pytest.mark.parametrize("size", [(60, 80), (1200, 1601)])
def test_what_is_far_from_every_stroke_is_counted(size):
    mask = np.full(size, 255, np.uint8)
    mask[:, 0] = 0
    diagonal = np.hypot(*size)
    assert own_data.open_share(mask) == pytest.approx(1 - 0.2 * diagonal / size[1], abs=0.02)


# README's words for each kind of labels, method and post-processing.
SAID = {
    "some images labelled, many without labels": ("some images labelled", "pretrained"),
    "the same, and no pretrained encoder": ("some images labelled", "from scratch"),
    "strokes in every part of an image": ("strokes", None),
    "a click per object": ("clicks", None),
    "a few pixels per image": ("few pixels", None),
    "everything labelled": ("all pixels labelled", None),
    "a box around each object": ("boxes", None),
    "the classes of each image, no pixel": ("tags", None),
}
METHODS = {
    "scl": "SCL",
    "supervised": "Supervised",
    "supervised_ema": "Supervised",
    "cam": "CAM",
    "box": "Box",
}


def test_readme_and_the_table_that_fit_goes_by_say_the_same():
    from experiments.cli.configs import shipped_configs

    rows = yaml.safe_load(own_data.TABLE.read_text())
    section = (ROOT / "README.md").read_text().split("## Which method for which labels")[1].split("\n## ")[0]
    cells = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    said = {have: (take, why) for have, take, why in cells if have not in ("you have", "---")}
    # Of the studies' methods `fit` takes one that needs no other weight for each set.
    open_background = "strokes on an object and beside it, most of the background without one"
    assert said.keys() == {*SAID, open_background}
    much_open = rows.pop("strokes, much left open")
    assert much_open == {
        "pretrained": "tv",
        "from scratch": "tv",
        "options": {"tv": {"model.tv_weight": 1.0}},
        "postprocess": {},
    }
    assert "it takes `TV` of weight 1" in section
    assert {kind for kind, _ in SAID.values()} == rows.keys()
    for words, (kind, encoder) in SAID.items():
        take, why = said[words]
        row = rows[kind]
        for name in {row[encoder]} if encoder else {row["pretrained"], row["from scratch"]}:
            assert name in shipped_configs()
            assert f"`{METHODS[name]}`" in re.findall("`[A-Z][A-Za-z]+`", take)[:1], words  # what README names first
        post = row["postprocess"].get("kind")
        assert (post == "dense_crf") == ("post-processing" in take), words
        assert (post == "mrf") == ("MRF" in take + why), words
        PostprocessConfig(**row["postprocess"])


def test_what_is_kept_for_the_backward_pass_is_counted_without_memory(root):
    network = {"arch": "DeepLabV3Plus", "encoder": "tu-test_resnet"}
    counted = own_data.saved_bytes(network, Folder(str(root)), 64)
    built = build_network(NetworkConfig(**network, freeze_bn=True), 3)
    own, held = {p.data_ptr() for p in built.parameters()}, {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # alive, or its place is taken again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        built(torch.zeros(1, 3, 64, 64))
    slow = sum(storage.nbytes() for place, storage in held.items() if place not in own)
    assert counted == pytest.approx(slow, rel=0.05)


def test_the_batch_fits_the_memory(root, monkeypatch):
    data, said = Folder(str(root)), [*TINY]
    for free, batch in ((2**40, "4"), (1, "2")):
        monkeypatch.setattr(own_data, "free_memory", lambda free=free: free)
        assert own_data.choose(data, said, own_data.kind_of(data))["--data.batch_size"] == batch


def test_a_container_and_a_job_may_have_less_memory_than_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine, group, limits = own_data.free_memory(), tmp_path / "cgroup", tmp_path / "limits"
    monkeypatch.setattr(own_data, "GROUPS", group)
    monkeypatch.setattr(own_data, "LIMITS", limits)
    assert own_data.free_memory() == pytest.approx(machine, rel=0.2)  # of a kernel without them
    (limits / "jobs" / "7").mkdir(parents=True)
    group.write_text("1:cpu:/other\n0::/jobs/7\n")
    (limits / "jobs" / "7" / "memory.max").write_text("max\n")
    assert own_data.free_memory() == pytest.approx(machine, rel=0.2)
    (limits / "jobs" / "memory.max").write_text("200000000\n")  # of all that is in it
    assert own_data.free_memory() == 200_000_000
    group.write_text("0::/\n")  # in a container, whose own limit it is
    (limits / "memory.max").write_text("100000000\n")
    assert own_data.free_memory() == 100_000_000


def test_without_a_pretrained_encoder_the_way_out_is_named(root, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("could not be downloaded")

    monkeypatch.setattr(own_data, "build_network", refuse)
    text = weakseg("fit", "--data", "my_data", expect=1)
    assert "--model.network.weights tf_efficientnet_lite0.safetensors" in text
    assert "--model.network.weights null" in text
    assert not (root.parent / "runs").exists()
