"""Published recipes: their settings are those of the papers and codes, and each of them runs."""

import functools
import json
import re

import pytest
import torch
import yaml
from official_layouts import draw_cityscapes, draw_voc, scribble
from test_configs import command_in, parsed

from common.model.networks import NetworkConfig, build_network
from common.model.optim import build_optimizer, lr_schedule
from common.model.options import plain
from conftest import ROOT, slow_but_for, weakseg
from experiments.cli.configs import find_config

PAGE = ROOT / "docs" / "reproduce.md"
VOC, CITIES = 10_582, 2_975  # training images
# Rates of encoder and decoder, decay, labelled and unlabelled images a step, side of the crop, epochs over the
# unlabelled images or else steps, and a list's length with the steps that it comes to. Sources: the configs' headers.
SGD, ADAMW = {"momentum": 0.9, "weight_decay": 1e-4}, {"weight_decay": 0.01}
RECIPES = {
    "voc_unimatch": (1e-3, 1e-2, SGD, 8, 321, 80, (VOC, 92, 104_880)),
    "cityscapes_unimatch": (5e-3, 5e-3, SGD, 8, 801, 240, (CITIES, 186, 83_520)),
    "voc_unimatch_v2": (5e-6, 40 * 5e-6, ADAMW, 16, 518, 60, (VOC, 92, 39_300)),
    "cityscapes_unimatch_v2": (5e-6, 40 * 5e-6, ADAMW, 8, 798, 180, (CITIES, 186, 62_640)),
    "voc_cps": (2.5e-3, 2.5e-3, SGD, 8, 512, 32, (VOC, 662, 39_680)),
    "cityscapes_cps": (0.02, 0.02, SGD, 8, 800, 128, (CITIES, 186, 44_544)),
    "voc_cutmix_seg": (1e-5, 1e-5, {}, 10, 321, 40_000, None),
    "voc_scribbles": (7e-3, 7e-3, SGD, 12, 513, 90_000, None),
    "voc_scribbles_dfr": (6e-5, 6e-4, ADAMW, 16, 512, 40_000, None),
}
OF_METHODS = {  # what the papers set of a method in these runs, beyond the variant
    "voc_unimatch": {"variant": "v1", "threshold": 0.95, "feature_dropout": 0.5},
    "cityscapes_unimatch": {"variant": "v1", "threshold": 0, "feature_dropout": 0.5},
    "voc_unimatch_v2": {"variant": "v2", "threshold": 0.95, "ema_decay": 0.996},
    "cityscapes_unimatch_v2": {"variant": "v2", "threshold": 0.95, "ema_decay": 0.996},
    "voc_cps": {"cps_weight": 1},
    "cityscapes_cps": {"cps_weight": 5},
    "voc_cutmix_seg": {"threshold": 0.97, "confidence": "batch", "ema_decay": 0.99, "ema_warmup": False, "ramp": 0},
    "voc_scribbles": {"term": "gated_crf", "start": 0.005},
    "voc_scribbles_dfr": {"dfr_weight": 0.1, "start": 0.005, "sigma_xy": 24, "radius": 5, "confident_start": 0.1},
}


OHEM = {"cityscapes_unimatch": 4 * 200_000, "cityscapes_unimatch_v2": 4 * 200_000, "cityscapes_cps": 8 * 50_000}


def factor(name, step, steps):
    """The schedule, from the formulas of papers and codes."""
    if name == "voc_cutmix_seg":
        return 1  # no schedule
    rise = 1500 if name == "voc_scribbles_dfr" else 0  # linear from 0, which a first step would be lost at
    return (step + 1) / (rise + 1) if step < rise else (1 - (step - rise) / (steps - rise)) ** 0.9


@functools.cache
def settings(name):
    """What the command of a recipe comes to."""
    return parsed(command_in(find_config(name))).settings


@functools.cache
def without_memory(config):
    """The real network on a device that holds nothing; `config` is YAML."""
    with torch.device("meta"):
        return build_network(NetworkConfig(**{**yaml.safe_load(config), "weights": None}), 21)


def header(name):
    """The comment that opens a recipe, without the command."""
    lines = find_config(name).read_text().split("compose:")[0].splitlines()[1:]
    return " ".join(line.removeprefix("# ") for line in lines)


@pytest.mark.parametrize("name", slow_but_for(RECIPES, "voc_cps", "voc_unimatch_v2"))
def test_a_recipe_has_the_values_of_its_source(name):
    encoder, decoder, of_optimizer, batch, crop, length, steps = RECIPES[name]
    trainer, data, model = settings(name).trainer, settings(name).data.init_args, settings(name).model.init_args
    assert data.batch_size == batch
    assert data.unlabeled_batch_size in ((batch,) if data.supervision.kind == "image_subset" else (None,))
    assert data.crop == [crop, crop]
    assert data.official_val
    assert (trainer.max_epochs, trainer.max_steps) == ((length, -1) if steps else (-1, length))
    total = length
    if steps:
        images, labelled, total = steps
        assert total == length * ((images - labelled) // batch)
        assert f"; {labelled} labelled: {total:,} steps" in find_config(name).read_text()
    options = {**model.optimizer.init_args}
    assert of_optimizer.items() <= options.items()
    assert {option: model[option] for option in OF_METHODS[name]} == OF_METHODS[name]

    assert model.labeled.ohem == (0.7 if name in OHEM else None)
    assert model.labeled.ohem_kept == OHEM.get(name, model.labeled.ohem_kept)

    # The rates of the groups of the real network through the run.
    network = without_memory(yaml.safe_dump(plain(vars(model.network))))
    kind = getattr(torch.optim, model.optimizer.class_path.rsplit(".", 1)[-1])
    groups = network.parameter_groups(model.encoder_lr_scale)
    optimizer = build_optimizer(lambda groups: kind(groups, **options), groups)
    schedule = lr_schedule(optimizer, total, model.schedule, model.warmup)
    for step in (0, 1, total // 2, total - 1):
        found = [base * at(step) for base, at in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
        assert found == pytest.approx([rate * factor(name, step, total) for rate in (encoder, decoder)], rel=1e-12)
    assert schedule.lr_lambdas[0](total) == (1 if name == "voc_cutmix_seg" else 0)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_header_says_all_and_the_page_says_the_same(name):
    text = header(name)
    assert "Not run by us." in text
    assert text.endswith("GPU memory:     hours:")
    number = r"(\d+)(?: \+ \d+)?"
    rule = re.search(rf"the batch stays {number} .*?; with {number} the rate becomes ([\d.e-]+?)\. ", text)
    _, decoder, _, batch, *_ = RECIPES[name]
    assert int(rule[1]) == batch
    share = int(rule[2]) / batch
    share = share if settings(name).model.init_args.optimizer.class_path.endswith("SGD") else share**0.5
    assert float(rule[3]) == pytest.approx(share * decoder, rel=1e-3)
    numbers = re.findall(r"\d\d\.\d+", re.search(r"Published.*?(?=Settings:)", text)[0])
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith("|") and f"`{name}`" in line)
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert re.findall(r"\d\d\.\d+", cells[2]) == numbers
    command = find_config(name).read_text().splitlines()[0].removeprefix("# weakseg fit ")
    assert cells[1].strip("`") == re.sub(r" --data\.(root|supervision\.list_file) [A-Z]+", "", command)
    assert row.endswith("|  |"), "ours is blank until somebody has run it"
    assert numbers or "not at hand" in row


TINY_NETWORK = """
trainer: {max_epochs: -1, max_steps: 2, val_check_interval: 2, limit_val_batches: 1, log_every_n_steps: 1,
  enable_progress_bar: false}
data: {init_args: {size: [48, 64], crop: [48, 48], batch_size: 4, num_workers: 0}}
model: {init_args: {network: {encoder: ENCODER, weights: null}}}
"""


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in RECIPES])
def test_a_recipe_runs_two_steps(name, tmp_path):
    root = (draw_cityscapes if name.startswith("cityscapes") else draw_voc)(tmp_path / "data")
    if name.startswith("cityscapes"):
        labelled = [f"leftImg8bit/train/jena/jena_{number:06d}_000019_leftImg8bit.png x.png" for number in range(2)]
    else:
        labelled = [f"JPEGImages/2007_{number:06d}.jpg SegmentationClass/x.png" for number in (0, 1)]
    (tmp_path / "list.txt").write_text("\n".join(labelled))
    (root / "pascal_2012").mkdir()
    for number in range(25):
        text = scribble(("person", [(5, 10), (20, 10)]), ("background", [(30, 5), (30, 20)]))
        (root / "pascal_2012" / f"2007_{number:06d}.xml").write_text(text)
    encoder = "test_vit" if name.endswith("unimatch_v2") else "tu-test_resnet"
    (tmp_path / "tiny.yaml").write_text(TINY_NETWORK.replace("ENCODER", encoder))
    places = {"DIR": root, "LIST": tmp_path / "list.txt"}
    words = find_config(name).read_text().splitlines()[0].split()[3:]
    words = [str(places.get(word, word)) for word in words]
    small = ["--config", tmp_path / "tiny.yaml", "--data.unlabeled_batch_size", "4"]
    small += ["--model.inference.window", "[48, 48]", "--run_dir", tmp_path / "run"]
    if "scribbles" in name:
        small = [*small[:2], *small[4:]]
    small += ["--model.labeled.ohem_kept", "100"] if name in OHEM else []
    weakseg("fit", *words, *small)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    cities = name.startswith("cityscapes")
    images = 20 if "scribbles" in name else 2
    assert (summary["steps"], summary["annotation"]["images"]) == (2, images)
    state = yaml.safe_load((tmp_path / "run" / "data.json").read_text())
    assert state["splits"]["val"] == state["splits"]["test"], "the official val scores, and nothing is held out"
    assert len(state["splits"]["train"]) == (10 if cities else 20)


def test_a_run_may_last_so_many_epochs_of_the_unlabelled_images(tmp_path):
    root = draw_voc(tmp_path / "data")
    (tmp_path / "list.txt").write_text("2007_000000\n2007_000001\n")
    (tmp_path / "tiny.yaml").write_text(TINY_NETWORK.replace("ENCODER", "tu-test_resnet"))
    words = ["--config", "voc_unimatch", "--config", "supervised", "--config", tmp_path / "tiny.yaml"]
    words += ["--data.root", root, "--data.supervision.list_file", tmp_path / "list.txt"]
    words += ["--trainer.max_steps", "-1", "--trainer.max_epochs", "2", "--trainer.val_check_interval", "9"]
    weakseg("fit", *words, "--data.unlabeled_batch_size", "6", "--run_dir", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 2 * (18 // 6)
