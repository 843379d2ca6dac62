"""The labelled term: class weights, OHEM, Dice and focal against slow references, and through the real command."""

import ast
import json

import pytest
import torch
import yaml
from torch.nn import functional as F

from common.model.labeled import LabeledConfig, balanced_weights, given_weights, labeled_loss, weights_for
from common.model.networks import NetworkConfig
from common.ops.batch import IGNORE
from common.ops.losses import hard_pixels, partial_cross_entropy
from common.training.checkpoints import LastCheckpoint
from conftest import ROOT, fit_tiny, two_processes
from methods import CAM, SCL, LevelSet, Supervised
from same_run import assert_same_run

K = 3
WEIGHTS = torch.tensor([0.5, 2.0, 0.0])


def scene(seed=0, labelled=0.5, batch=2):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, K, 9, 7, generator=g, dtype=torch.float64)
    mask = torch.randint(K, (batch, 9, 7), generator=g)
    mask[torch.rand(mask.shape, generator=g) >= labelled] = IGNORE
    valid = torch.rand(mask.shape, generator=g) < 0.8
    return logits.requires_grad_(), mask, valid


def labelled_pixels(logits, mask, valid):
    """(logits, label) of each labelled pixel, one by one."""
    where = ((mask != IGNORE) & valid).nonzero().tolist()
    return [(logits[b, :, y, x], int(mask[b, y, x])) for b, y, x in where]


def test_the_defaults_are_the_partial_cross_entropy_bit_for_bit():
    logits, mask, valid = scene()
    expected = partial_cross_entropy(logits, mask, valid)
    assert torch.equal(labeled_loss(logits, mask, valid, LabeledConfig()), expected)
    assert not [key for key in Supervised(K, network=TINY).state_dict() if "weight" in key and "class" in key]


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_class_weights_match_the_formula_and_only_their_ratios_count(scale):
    logits, mask, valid = scene()
    pixels = labelled_pixels(logits, mask, valid)
    total = sum(float(WEIGHTS[label]) * -one.log_softmax(0)[label].item() for one, label in pixels)
    expected = total / sum(float(WEIGHTS[label]) for _, label in pixels)
    config = LabeledConfig(class_weights=(scale * WEIGHTS).tolist())
    loss = labeled_loss(logits, mask, valid, config, given_weights(config, K))
    assert loss.item() == pytest.approx(expected)
    theirs = F.cross_entropy(logits, mask.masked_fill(~valid, IGNORE), WEIGHTS.double(), ignore_index=IGNORE)
    assert loss.item() == pytest.approx(theirs.item())


def test_one_pixel_of_a_small_weight_has_its_whole_cross_entropy_and_none_is_zero():
    logits, mask, _ = scene()
    mask, weight = torch.full_like(mask, IGNORE), torch.tensor([1e-6, 1.0, 0.0])
    mask[0, 3, 3] = 0
    loss = partial_cross_entropy(logits, mask, weight=weight)
    assert loss.item() == pytest.approx(-logits[0, :, 3, 3].log_softmax(0)[0].item())
    mask[0, 3, 3] = 2
    (slope,) = torch.autograd.grad(partial_cross_entropy(logits, mask, weight=weight), logits)
    assert not slope.any()


def test_balanced_weights_are_those_of_scikit_learn():
    assert balanced_weights([60, 30, 10]).tolist() == pytest.approx([100 / 180, 100 / 90, 100 / 30])
    assert torch.isfinite(balanced_weights([5, 0])).all()


def official_ohem(logits, mask, threshold, kept):
    """Step by step as `ProbOhemCrossEntropy2d` does it."""
    labels, p = mask.flatten(), logits.softmax(1).transpose(0, 1).reshape(K, -1)
    counted = labels != IGNORE
    if kept > counted.sum():
        return mask
    right = [float(p[label, i]) if label != IGNORE else 1.0 for i, label in enumerate(labels.tolist())]
    limit = max(threshold, sorted(right)[kept - 1])
    easy = torch.tensor([one > limit for one in right])
    return labels.masked_fill(easy, IGNORE).view_as(mask)


@pytest.mark.parametrize("kept", [1, 10, 40, 63, 64, 65, 10_000])
@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.7])
def test_ohem_keeps_the_pixels_that_the_official_code_keeps(threshold, kept):
    logits, mask, valid = scene(3)
    mask = mask.masked_fill(~valid, IGNORE)
    found = hard_pixels(logits, mask, threshold, kept)
    assert torch.equal(found, official_ohem(logits, mask, threshold, kept))
    assert (found != IGNORE).sum() >= min(kept, int((mask != IGNORE).sum()))
    loss = labeled_loss(logits, mask, valid, LabeledConfig(ohem=threshold, ohem_kept=kept))
    assert loss.item() == pytest.approx(F.cross_entropy(logits, found, ignore_index=IGNORE).item())


def test_dice_and_focal_match_their_formulas():
    logits, mask, valid = scene(1)
    pixels = labelled_pixels(logits, mask, valid)
    p = [one.softmax(0).tolist() for one, _ in pixels]
    labels = [label for _, label in pixels]
    dice = 0.0
    for k in range(K):
        both = sum(one[k] for one, label in zip(p, labels, strict=True) if label == k)
        dice += 1 - 2 * both / (sum(one[k] for one in p) + labels.count(k))
    focal = 0.0
    for (one, label), k in ((pixel, k) for pixel in pixels for k in range(K)):
        right = torch.sigmoid(one[k] if label == k else -one[k]).item()
        focal -= (1 - right) ** 2 * torch.tensor(right).double().log().item()
    pce = partial_cross_entropy(logits, mask, valid).item()
    for config, expected in (
        (LabeledConfig(dice=0.5), pce + 0.5 * dice / K),
        (LabeledConfig(focal=2.0), pce + 2 * focal / K / len(pixels)),
    ):
        assert labeled_loss(logits, mask, valid, config).item() == pytest.approx(expected, rel=1e-5)


EVERYTHING = {"class_weights": [1.0, 2.0, 3.0], "ohem": 0.3, "ohem_kept": 20, "dice": 1.0, "focal": 1.0}


def test_padding_and_unlabelled_pixels_change_nothing_and_no_label_is_zero():
    config, (logits, mask, valid) = LabeledConfig(**EVERYTHING), scene(2)
    weights = given_weights(config, K)
    loss = labeled_loss(logits, mask, valid, config, weights)
    other = torch.where(((mask != IGNORE) & valid)[:, None], logits, torch.randn_like(logits))
    assert labeled_loss(other, mask, valid, config, weights).item() == pytest.approx(loss.item())
    nothing = labeled_loss(logits, torch.full_like(mask, IGNORE), valid, config, weights)
    (slope,) = torch.autograd.grad(nothing, logits)
    assert nothing.item() == 0
    assert not slope.any()


RANKS = """
import torch
from common.ops.losses import hard_pixels, partial_cross_entropy
logits, mask, weights = torch.load(folder + "/scene.pt")
part, own = logits[rank : rank + 1].clone().requires_grad_(), mask[rank : rank + 1]
loss = partial_cross_entropy(part, hard_pixels(part, own, 0.3, 20), weight=weights)
(slope,) = torch.autograd.grad(loss / 2, part)  # DDP takes the mean over ranks
torch.save(slope, f"{folder}/slope{rank}.pt")
"""


def test_two_processes_have_the_gradient_of_one(tmp_path):
    logits, mask, valid = scene(5)
    mask, weights = mask.masked_fill(~valid, IGNORE), torch.tensor([1.0, 2.0, 3.0])
    mask[1, 2:] = IGNORE  # unequal parts
    config = LabeledConfig(class_weights=weights.tolist(), ohem=0.3, ohem_kept=20)
    (slope,) = torch.autograd.grad(labeled_loss(logits, mask, valid, config, weights), logits)
    torch.save([logits.detach(), mask, weights], tmp_path / "scene.pt")
    two_processes(RANKS, tmp_path)
    found = torch.cat([torch.load(tmp_path / f"slope{rank}.pt") for rank in range(2)])
    torch.testing.assert_close(found, slope)


# Through methods and the command -----------------------------------------------------------------------------------

TINY = NetworkConfig("Unet", "tu-test_resnet", decoder={"decoder_channels": [8, 8, 8, 8], "encoder_depth": 4})


@pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("*/module.py")), ids=lambda path: path.parent.name)
def test_a_methods_labelled_term_is_the_shared_one(path):
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert "partial_cross_entropy" not in names
    assert "labeled_loss" in called or "CamModule" in names


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        (CAM, {}, "CAM learns from tags"),
        (SCL, {"relaxation": 1}, "relaxation is a labelled loss of its own"),
        (LevelSet, {"mode": "unsupervised"}, "mode unsupervised has no loss on labels"),
        (Supervised, {"labeled": LabeledConfig(class_weights=[1.0, 2.0])}, "2 numbers for 3 classes"),
    ],
)
def test_options_that_contradict_a_method_are_refused_by_name(method, options, words):
    with pytest.raises(ValueError, match=words):
        method(K, **{"network": TINY, "labeled": LabeledConfig(dice=1.0), **options})


@pytest.mark.parametrize(
    "options",
    [
        {"class_weights": [1.0, -1.0]}, {"class_weights": [0.0, 0.0]}, {"class_weights": "median"},
        {"ohem": 0.0}, {"ohem": 1.0}, {"ohem_kept": 0}, {"dice": -1.0}, {"focal": -1.0},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(ValueError, match=f"labeled.{next(iter(options))}"):
        LabeledConfig(**options)


def test_balanced_needs_counts():
    logits, mask, valid = scene()
    with pytest.raises(ValueError, match="balanced needs the data's counts"):
        labeled_loss(logits, mask, valid, LabeledConfig(class_weights="balanced"))


def test_balanced_weights_of_a_run_count_the_drawn_labels_alone(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("common.model.module.weights_for", lambda *given: seen.append(weights_for(*given)) or seen[-1])
    label = ["--model.labeled.class_weights", "balanced", "--model.labeled.dice", "0.5", "--model.labeled.ohem", "0.7"]
    label += ["--model.labeled.ohem_kept", "30"]
    fit_tiny(tmp_path / "run", *label, "--trainer.max_steps", "2", "--data.class_sampling", "0.05")
    counts = json.loads((tmp_path / "run" / "summary.json").read_text())["annotation"]["per_class"]
    assert sum(counts.values()) < 12 * 32 * 32 / 10  # 5 % are drawn
    torch.testing.assert_close(seen[0], balanced_weights([*counts.values()]))
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["model"]["init_args"]["labeled"]["class_weights"] == "balanced"
    assert config["data"]["init_args"]["class_sampling"] == 0.05
    text = fit_tiny(tmp_path / "no", "--model.labeled.ohem", "0.7", expect=1)
    assert "labeled.ohem is without effect: a batch has 4096 pixels" in text


def test_stopped_and_resumed_it_is_the_unbroken_run(tmp_path, monkeypatch):
    options = ["--model.labeled.class_weights", "balanced", "--model.labeled.focal", "1", "--checkpoint_every", "1"]
    options += ["--data.class_sampling", "0.05", "--trainer.max_steps", "6"]
    fit_tiny(tmp_path / "whole", *options)
    save = LastCheckpoint._save

    def save_and_die(self, trainer):
        save(self, trainer)
        if trainer.global_step == 4:  # in the middle of the second epoch
            raise ValueError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "_save", save_and_die)
        fit_tiny(tmp_path / "cut", *options, expect=1)
    fit_tiny(tmp_path / "cut", *options, "--resume", "auto")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
