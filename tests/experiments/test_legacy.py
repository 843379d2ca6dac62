"""Checkpoints of earlier versions: a stored one, and the configs of all methods as they were."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import methods
from conftest import ROOT, weakseg
from experiments.runs.legacy import translate
from experiments.runs.load import load_run

# Written at commit 8bdb7bd7c601 by four steps of RRN with the settings of CPS: tests/tiny.yaml, dynamic_weight 0.3.
STORED = ROOT / "tests" / "data" / "rrn_as_cps.ckpt"
# What that version's `weakseg test` found.
SCORES = {"test/miou": 3.8695, "test/accuracy": 10.5417, "test/miou_branch2": 4.2207, "test/miou_ensemble": 2.9329}

RRN = {
    "selection_weight": 1.0, "dynamic_weight": 1.0, "matching_weight": 0.1, "threshold": 0.6, "score": "mean",
    "target": "partner", "diversity": "js", "norm": "count", "correct": "partner", "margin": 0.1, "region_conv": 10,
    "d_input": "prob_image", "d_fake": "softmax", "discriminator_lr": 1e-4, "pseudo_mode": "eval",
}  # fmt: skip
SCL = {
    "consistency_weight": 1.0, "structured_weight": 1.0, "mixing": "cutmix", "confidence": "batch", "threshold": 0.97,
    "feature": "prob", "pairs": "inside", "mode": "gram", "samples": 512, "stride": 1, "detach_norm": False,
    "relaxation": 0, "ramp_up": 0.0, "decay": 0.99, "decay_warmup": True,
}  # fmt: skip
DFR = {
    "dfr_weight": 0.1, "fch_weight": 0.1, "kernel": "product", "deep_source": "online", "decay": 0.99, "stride": 4,
    "radius": 5, "sigma_xy": 24.0, "sigma_rgb": 15.0, "sigma_f": 0.5, "eta": 0.5, "norm": "pixels", "gate": "none",
    "fch_input": "decoder", "fch_detach_input": False, "fch_targets": "scribble+confident", "fch_pixels": 512,
    "margin": 0.5, "tau": 0.1, "confidence": 0.9, "confident_start": 0.1, "start": 0.005, "layer_decay": 1.0,
}  # fmt: skip
TV = {
    "tv_weight": 0.1, "variant": "aniso", "eps": 0.0, "where": "all", "weighting": "none", "directional_weight": 0.0,
    "softmin_temperature": None, "stride": 1, "start": 0.2, "ramp": 0.1,
}  # fmt: skip
LEVEL_SET = {
    "mode": "semi", "beta": 0.262, "length_weight": 1e-3, "channel_reduce": "sum", "reduction": "mean",
    "target": "image", "bias": "none", "bias_smoothness": 10.0, "start": 0.0, "match": "dataset",
}  # fmt: skip
REGULARIZED = {
    "term": "gated_crf", "crf_weight": None, "nc_weight": None, "sigma_xy": None, "sigma_rgb": None, "stride": None,
    "radius": None, "dilation": 1, "reduction": "normalised", "missing_weight": 0.0, "max_labelled": 0.5, "start": 0.5,
    "ramp": 0.0,
}  # fmt: skip
UNIMATCH = {"variant": "v2", "threshold": 0.95, "feature_dropout": 0.5, "decay": 0.996}
CPS = {"selection_weight": 0.0, "matching_weight": 0.0, "diversity": "none"}


def stored(name, options, data="datamodules.Synthetic"):
    init_args = {**options, "network": {"arch": "Unet", "encoder": "resnet18", "weights": None}}
    return {"model": {"class_path": name, "init_args": init_args}, "data": {"class_path": data, "init_args": {}}}


# The stored checkpoint ---------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path):
    """A run directory around the stored checkpoint."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(STORED, tmp_path / "run" / "checkpoints" / "best.ckpt")
    (tmp_path / "run" / "config.yaml").write_text(torch.load(STORED, weights_only=True)["weakseg"]["config"])
    (tmp_path / "run" / "summary.json").write_text('{"steps": 4, "last": {}, "best": {}}')
    return tmp_path / "run"


def test_it_is_small_and_has_no_optimizer():
    assert STORED.stat().st_size < 2 * 2**20
    assert "optimizer_states" not in torch.load(STORED, weights_only=True)


def test_it_loads_as_cps_and_scores_as_it_did(old):
    run = load_run(old)
    assert type(run.model).__name__ == "CPS"
    assert run.model.cps_weight == 0.3
    weakseg("test", "--run", old, "--trainer.enable_progress_bar", "false")
    found = json.loads((old / "summary.json").read_text())["test"]["best"]
    assert {name: found[name] for name in SCORES} == pytest.approx(SCORES, abs=0.02)  # another CPU rounds otherwise


def test_it_predicts(old, tmp_path):
    (tmp_path / "photos").mkdir()
    photo = np.random.default_rng(0).integers(0, 255, (40, 52, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photos" / "a.png")
    weakseg("predict", "--ckpt", STORED, "--images", tmp_path / "photos", "--output", tmp_path / "labels")
    labels = np.asarray(Image.open(tmp_path / "labels" / "a.png"))
    assert (labels == load_run(old).predict(photo)).all()


# Configs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "now", "expected"), [
    ("methods.RRN", RRN, "RRN", {"region_conv": 10}),
    ("methods.RRN", RRN | CPS, "CPS", {"cps_weight": 1.0}),
    ("methods.RRN", RRN | {"diversity": "none"}, "RRN", {"diversity": "none", "dynamic_weight": 1.0}),
    ("methods.scl.module.SCL", SCL, "SCL", {"samples": None, "ema_decay": 0.99, "ramp": 0.0, "ema_warmup": True}),
    ("methods.SCL", SCL | {"mode": "sampled"}, "SCL", {"samples": 512}),
    ("methods.SCL", SCL | {"structured_weight": 0, "decay": 0.9, "mixing": "classmix", "confidence": "pixel"},
     "CutMixSeg", {"ema_decay": 0.9, "mixing": "classmix", "confidence": "pixel"}),
    ("methods.DFR", DFR, "DFR", {"sigma_f": 0.5}),
    ("TV", TV, "TV", {"tv_weight": 0.1}),
    ("methods.LevelSet", LEVEL_SET, "LevelSet", {"beta": 0.262}),
    ("methods.Regularized", REGULARIZED, "Regularized", {"term": "gated_crf"}),
    ("methods.UniMatch", UNIMATCH, "UniMatch", {"ema_decay": 0.996}),
    ("methods.Supervised", {"ema_decay": None}, "Supervised", {"ema_decay": None}),
])  # fmt: skip
def test_every_method_as_it_was_becomes_one_of_today(name, options, now, expected):
    config = translate(stored(name, options, "datamodules.weizmann.WeizmannHorse"))
    assert config["data"]["class_path"] == "datamodules.WeizmannHorse"
    assert config["model"]["class_path"] == f"methods.{now}"
    found = config["model"]["init_args"]
    assert {key: found[key] for key in expected} == expected
    found.pop("network")
    getattr(methods, now)(6, **found)  # no option is unknown, none is refused


def test_layer_decay_belongs_to_the_network():
    config = translate(stored("methods.DFR", DFR | {"layer_decay": 0.9}))
    assert config["model"]["init_args"]["network"]["layer_decay"] == 0.9


@pytest.mark.parametrize(("name", "options", "option"), [
    ("RRN", RRN | {"correct": "winner"}, "correct=winner"),
    ("RRN", RRN | CPS | {"pseudo_mode": "train"}, "pseudo_mode=train"),
    ("SCL", SCL | {"mixing": "cutout"}, "mixing=cutout"),
    ("SCL", SCL | {"structured_weight": 0.0, "relaxation": 1}, "relaxation=1"),
    ("DFR", DFR | {"gate": "labelled"}, "gate=labelled"),
    ("TV", TV | {"variant": "iso", "eps": 1e-3}, "variant=iso"),
])  # fmt: skip
def test_a_dropped_option_that_was_used_is_refused_by_name(name, options, option):
    with pytest.raises(ValueError, match=rf"trained with {option}.*no longer"):
        translate(stored(f"methods.{name}", options))


def test_todays_configs_stay_as_they_are():
    today = stored("methods.CutMixSeg", {"ema_decay": 0.9, "mixing": "cutout"})
    assert translate(yaml.safe_load(yaml.safe_dump(today))) == today
