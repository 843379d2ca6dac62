"""The wiring of methods/level_set/module.py: what its options do to the loss of one batch, and its evaluation."""

import math
import re

import pytest
import torch

from common.model.metrics import MatchedMetrics
from common.model.networks import NetworkConfig
from common.ops.batch import IGNORE
from common.ops.losses import partial_cross_entropy, total_variation
from conftest import fit_tiny
from methods.level_set.losses import closed_form_field, head_field, reduce, region_variance, roughness_sum
from methods.level_set.module import LevelSet

NETWORK = {
    "arch": "Unet",
    "encoder": "tu-test_resnet",
    "decoder": {"decoder_channels": [8, 8, 8, 8], "encoder_depth": 4},
}
MODES = ("semi", "supervised", "unsupervised")


def build(monkeypatch, progress=1.0, network=NETWORK, **options):
    torch.manual_seed(0)
    model = LevelSet(3, network=NetworkConfig(**network), **options).eval()
    monkeypatch.setattr(LevelSet, "progress", progress)
    return model


def stream(labelled=True, batch=2, size=(36, 44), seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 3, (batch, *size), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) > (0.1 if labelled else -1)] = IGNORE
    valid = torch.ones(batch, *size, dtype=torch.bool)
    valid[:, -5:] = False
    return {"image": torch.rand(batch, 3, *size, generator=generator), "mask": mask, "valid": valid}


def item(value):
    return float(value.detach()) if isinstance(value, torch.Tensor) else value


def energy(model, logs):
    return (
        item(logs["data"])
        + model.length_weight * item(logs["length"])
        + model.bias_smoothness * item(logs["roughness"])
    )


def test_the_loss_is_pce_plus_beta_times_the_energy(monkeypatch):
    model, labeled = build(monkeypatch, beta=0.5, length_weight=0.02), stream()
    logits = model.network(labeled["image"])
    pce = partial_cross_entropy(logits, labeled["mask"], labeled["valid"])
    data = region_variance(logits.softmax(1), labeled["image"], labeled["valid"])
    length = total_variation(logits.softmax(1), labeled["valid"])
    out = model.compute_loss({"labeled": labeled})
    assert item(out.loss) == pytest.approx(item(pce + 0.5 * (data + 0.02 * length)), rel=1e-6)
    assert {"pce", "data", "length", "roughness", "ramp"} == set(out.logs)
    assert item(out.logs["roughness"]) == 0
    assert min(item(data), item(length)) > 0


def test_defaults_are_the_codes_balance_at_its_batch(monkeypatch):
    """beta 1e-6 on plain sums of 4 images of 256 x 256 pixels is beta 0.262 on means."""
    by_default = build(monkeypatch).beta
    assert by_default == pytest.approx(1e-6 * 4 * 256 * 256, rel=1e-3)
    labeled = stream(batch=4, size=(32, 32))
    labeled["valid"][:] = True
    mean = build(monkeypatch, beta=1e-6 * 4 * 32 * 32).compute_loss({"labeled": labeled})
    plain = build(monkeypatch, beta=1e-6, reduction="sum").compute_loss({"labeled": labeled})
    assert item(mean.loss) == pytest.approx(item(plain.loss), rel=1e-6)
    assert item(plain.logs["data"]) == pytest.approx(4 * 32 * 32 * item(mean.logs["data"]), rel=1e-5)


@pytest.mark.parametrize("bias", ["none", "head", "closed_form"])
@pytest.mark.parametrize(("progress", "ramp"), [(0.0, 0.0), (0.09, 0.0), (0.1, 1.0), (1.0, 1.0)])
def test_the_level_set_loss_sets_in_after_its_start_and_keeps_its_gradient_path(monkeypatch, progress, ramp, bias):
    model, labeled = build(monkeypatch, progress, start=0.1, bias=bias), stream()
    model.train()
    out = model.compute_loss({"labeled": labeled})
    assert out.logs["ramp"] == ramp
    assert item(out.loss) == pytest.approx(item(out.logs["pce"]) + ramp * 0.262 * energy(model, out.logs), rel=1e-5)
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("mode", MODES)
def test_every_parameter_is_in_a_group_and_gets_a_gradient(monkeypatch, mode):
    model = build(monkeypatch, mode=mode, bias="head")
    model.compute_loss({"labeled": stream()}).loss.backward()
    grouped = [id(p) for group in model.parameter_groups() for p in group["params"]]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trained)
    assert {id(p) for p in model.bias_head.parameters()} <= {*grouped}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.bias_head.weight.grad.abs().max() > 0


def test_semi_takes_unlabelled_images_into_the_energy_only_and_supervised_leaves_them_out(monkeypatch):
    labeled, unlabeled = stream(), stream(labelled=False, seed=1)
    both, alone = {"labeled": labeled, "unlabeled": unlabeled}, {"labeled": labeled}
    semi, supervised = build(monkeypatch), build(monkeypatch, mode="supervised")
    assert item(semi.compute_loss(alone).loss) == item(supervised.compute_loss(alone).loss)
    assert item(supervised.compute_loss(both).loss) == item(supervised.compute_loss(alone).loss)
    out = semi.compute_loss(both)
    assert item(out.logs["pce"]) == pytest.approx(item(semi.compute_loss(alone).logs["pce"]), rel=1e-5)
    image, valid = (torch.cat([labeled[key], unlabeled[key]]) for key in ("image", "valid"))
    expected = region_variance(semi.network(image).softmax(1), image, valid)
    assert item(out.logs["data"]) == pytest.approx(item(expected), rel=1e-5)


def test_unsupervised_looks_at_no_label_and_needs_no_labelled_stream(monkeypatch):
    model, labeled, unlabeled = build(monkeypatch, mode="unsupervised", beta=0.5), stream(), stream(seed=1)
    assert model.streams == ()
    assert LevelSet.streams == build(monkeypatch).streams == ("labeled",)
    out = model.compute_loss({"labeled": labeled, "unlabeled": unlabeled})
    hidden = [{**s, "mask": torch.full_like(s["mask"], IGNORE)} for s in (labeled, unlabeled)]
    assert item(out.loss) == item(model.compute_loss({"labeled": hidden[0], "unlabeled": hidden[1]}).loss)
    assert item(out.loss) == pytest.approx(0.5 * energy(model, out.logs), rel=1e-6)
    only = model.compute_loss({"unlabeled": unlabeled})
    assert item(only.loss) == pytest.approx(item(model.compute_loss({"labeled": unlabeled}).loss))
    assert "pce" not in only.logs


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bias", ["none", "head", "closed_form"])
def test_padding_is_in_no_term(monkeypatch, mode, bias):
    model, labeled = build(monkeypatch, mode=mode, bias=bias), stream()
    logits = torch.randn(2, 3, 36, 44, requires_grad=True)
    decoded = torch.randn(2, 8, 48, 48)
    values = []
    for noise in (0.0, 1.0):
        image = torch.where(labeled["valid"][:, None], labeled["image"], noise)
        terms = model.level_set(logits, decoded, image, labeled["valid"])
        values.append([item(terms[name]) for name in ("data", "length", "roughness")])
        (gradient,) = torch.autograd.grad(terms["data"] + terms["length"], logits)
        assert gradient[:, :, -5:].abs().max() == 0
        assert gradient[:, :, :-5].abs().max() > 0
    assert values[0] == values[1]


def test_fields_are_those_of_the_losses(monkeypatch):
    labeled = stream()
    image, valid = labeled["image"], labeled["valid"]
    for bias in ("head", "closed_form"):
        model = build(monkeypatch, bias=bias, bias_smoothness=3.0, beta=1.0, length_weight=0.0, mode="unsupervised")
        if bias == "head":
            torch.nn.init.normal_(model.bias_head.weight)
        decoded = model.network.features(image)[1]
        y = model.network.classify(decoded, 36, 44).softmax(1)
        if bias == "head":
            field = head_field(model.bias_head(decoded)[..., :36, :44], valid)
            rough = reduce(roughness_sum(field, valid), valid, "mean")
            assert item(rough) > 1e-4
        else:
            field, rough = closed_form_field(y, image, valid), torch.zeros(())
        expected = region_variance(y, image, valid, bias=field) + 3.0 * rough
        assert item(model.compute_loss({"labeled": labeled}).loss) == pytest.approx(item(expected), rel=1e-5)


def test_a_new_head_is_even_light(monkeypatch):
    labeled = stream()
    head, none = (build(monkeypatch, bias=bias).compute_loss({"labeled": labeled}) for bias in ("head", "none"))
    assert item(head.loss) == pytest.approx(item(none.loss), rel=1e-5)


@pytest.mark.parametrize("arch", ["Unet", "FPN", "DeepLabV3Plus", "Segformer"])
def test_heads_and_features_of_any_decoder_come_to_the_images_size(monkeypatch, arch):
    network = {"arch": arch, "encoder": "mobilenet_v2"} if arch != "Unet" else NETWORK
    labeled = stream(batch=1, size=(70, 90))
    for options in ({"bias": "head"}, {"target": "features"}):
        model = build(monkeypatch, network=network, **options)
        decoded = model.network.features(labeled["image"])[1]
        assert model.at_image_size(decoded, labeled["image"]).shape == (1, decoded.shape[1], 70, 90)
        model.compute_loss({"labeled": labeled}).loss.backward()
        if "bias" in options:
            assert model.bias_head.weight.grad.abs().max() > 0


def test_decoded_maps_are_cropped_as_logits_are(monkeypatch):
    """A map that knows its place: the padding at the bottom and right is cut off, the rest stays where it was."""
    model, image = build(monkeypatch), torch.zeros(1, 3, 36, 44)
    rows = torch.arange(48.0)[:, None].expand(1, 1, 48, 48)
    torch.testing.assert_close(model.at_image_size(rows, image), rows[..., :36, :44])
    halved = torch.nn.functional.avg_pool2d(rows, 2)
    torch.testing.assert_close(model.at_image_size(halved, image)[..., 1:, :], rows[..., 1:36, :44])


def test_target_features_takes_unit_vectors_without_gradient(monkeypatch):
    model, labeled = build(monkeypatch, target="features", mode="unsupervised"), stream()
    logits, decoded = torch.randn(2, 3, 36, 44), torch.randn(2, 8, 48, 48, requires_grad=True)
    terms = model.level_set(logits.requires_grad_(), decoded, labeled["image"], labeled["valid"])
    unit = torch.nn.functional.normalize(decoded.detach(), dim=1)[..., :36, :44]
    expected = region_variance(logits.softmax(1), unit, labeled["valid"])
    assert item(terms["data"]) == pytest.approx(item(expected), rel=1e-5)
    assert 0 < item(terms["data"]) <= 1
    assert torch.autograd.grad(terms["data"], decoded, allow_unused=True)[0] is None


def test_finite_in_bf16_autocast(monkeypatch):
    labeled = stream()
    for options in ({"bias": "head"}, {"bias": "closed_form"}, {"target": "features"}):
        model = build(monkeypatch, **options)
        exact = model.compute_loss({"labeled": labeled}).logs["data"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model.compute_loss({"labeled": labeled})
        assert out.loss.dtype == torch.float32
        assert item(out.logs["data"]) == pytest.approx(item(exact), rel=0.05)
        out.loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "features", "bias": "head"}, "set target to image"),
        ({"mode": "unsupervised", "start": 0.1}, "set start to 0"),
        ({"beta": -1.0}, "beta, length_weight and bias_smoothness must be >= 0"),
        ({"length_weight": -1.0}, "must be >= 0"),
        ({"bias_smoothness": -1.0}, "must be >= 0"),
        ({"start": 1.5}, "fraction of the run"),
    ],
)
def test_options_that_contradict_are_refused(monkeypatch, options, message):
    with pytest.raises(ValueError, match=message):
        build(monkeypatch, **options)


def test_without_a_length_term(monkeypatch):
    out = build(monkeypatch, length_weight=0.0, mode="unsupervised", beta=1.0).compute_loss({"labeled": stream()})
    assert item(out.loss) == pytest.approx(item(out.logs["data"]), rel=1e-6)


def test_phases_are_matched_in_unsupervised_evaluation_only(monkeypatch):
    for mode in MODES:
        model = build(monkeypatch, mode=mode, match="image")
        model.setup("validate")
        assert isinstance(model._metric("network"), MatchedMetrics) == (mode == "unsupervised")
    assert model._metric("network").match == "image"
    batch = {
        "image": torch.rand(1, 3, 32, 32),
        "mask": torch.full((1, 32, 32), IGNORE),
        "size": torch.tensor([[32, 32]]),
    }
    model._evaluate(batch, refine=False)
    assert math.isnan(float(model._metric("network").compute()["miou"]))


def test_a_run_without_any_label(tmp_path):
    options = {
        "data.init_args.supervision": "{kind: none, fraction: null}",
        "data.init_args.unlabeled_batch_size": "4",
        "model.init_args.mode": "unsupervised",
        "model.init_args.bias": "head",
        "trainer.max_steps": "3",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    fit_tiny(tmp_path / "run", "--model", "LevelSet", *words)
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert "train/pce" not in header
    assert "train/roughness" in header
    assert re.search(r"val/miou", header)
    assert rows
