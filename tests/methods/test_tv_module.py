"""The wiring of methods/tv/module.py: what its options do to the loss of one batch."""

import pytest
import torch

from common.ops.batch import IGNORE
from common.ops.losses import partial_cross_entropy, total_variation
from methods.tv.losses import directional_variation
from methods.tv.module import TV

NETWORK = {
    "arch": "Unet",
    "encoder": "tu-test_resnet",
    "decoder": {"decoder_channels": [8, 8, 8, 8], "encoder_depth": 4},
}


def build(monkeypatch, progress=1.0, **options):
    from common.model.networks import NetworkConfig

    torch.manual_seed(0)
    model = TV(3, network=NetworkConfig(**NETWORK), **options).eval()
    monkeypatch.setattr(TV, "progress", progress)
    return model


def stream(labelled=True, batch=2, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 3, (batch, side, side), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) > (0.1 if labelled else -1)] = IGNORE
    valid = torch.ones(batch, side, side, dtype=torch.bool)
    valid[:, -5:] = False
    return {"image": torch.rand(batch, 3, side, side, generator=generator), "mask": mask, "valid": valid}


def test_the_loss_is_pce_plus_weighted_total_variation(monkeypatch):
    model, labeled = build(monkeypatch, tv_weight=0.3), stream()
    logits = model.network(labeled["image"])
    pce = partial_cross_entropy(logits, labeled["mask"], labeled["valid"])
    variation = total_variation(logits.softmax(1), labeled["valid"])
    out = model.compute_loss({"labeled": labeled})
    assert out.loss.item() == pytest.approx((pce + 0.3 * variation).item(), rel=1e-6)
    assert variation.item() > 0
    assert {"pce", "tv", "directional", "ramp"} == set(out.logs)


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.2, 0.0), (0.25, 0.5), (0.3, 1.0), (1.0, 1.0)])
def test_the_penalty_sets_in_after_its_start_and_keeps_its_gradient_path(monkeypatch, progress, weight):
    model, labeled = build(monkeypatch, progress, tv_weight=0.3), stream()
    out = model.compute_loss({"labeled": labeled})
    assert out.logs["ramp"] == pytest.approx(weight)
    assert out.loss.item() == pytest.approx((out.logs["pce"] + weight * 0.3 * out.logs["tv"]).item(), rel=1e-6)
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_unlabelled_images_enter_the_penalty_and_not_the_cross_entropy(monkeypatch):
    model, labeled, unlabeled = build(monkeypatch), stream(), stream(labelled=False, seed=1)
    alone = model.compute_loss({"labeled": labeled})
    both = model.compute_loss({"labeled": labeled, "unlabeled": unlabeled})
    assert both.logs["pce"].item() == pytest.approx(alone.logs["pce"].item(), rel=1e-5)
    other = model.compute_loss({"labeled": labeled, "unlabeled": stream(labelled=False, seed=2)})
    assert both.logs["tv"].item() != other.logs["tv"].item()


def test_float64_stays(monkeypatch):
    labeled = stream()
    logits = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    variation, _ = build(monkeypatch).regularizer(logits, labeled["image"], labeled["mask"], labeled["valid"])
    torch.testing.assert_close(variation, total_variation(logits.softmax(1), labeled["valid"]), rtol=1e-12, atol=0)


def test_padding_is_in_no_term(monkeypatch):
    model, labeled = build(monkeypatch), stream()
    logits = torch.randn(2, 3, 32, 32, requires_grad=True)
    variation, _ = model.regularizer(logits, labeled["image"], labeled["mask"], labeled["valid"])
    (gradient,) = torch.autograd.grad(variation, logits)
    assert gradient[:, :, -5:].abs().max() == 0
    assert gradient[:, :, :-5].abs().max() > 0


def test_where_weighting_stride_and_variant_change_the_penalty(monkeypatch):
    labeled = stream()
    labeled["mask"][:, :10, :10] = 1
    logits = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    values = {}
    for name, options in {
        "default": {},
        "unlabelled": {"where": "unlabelled"},
        "contrast": {"weighting": "contrast"},
        "both": {"where": "unlabelled", "weighting": "contrast"},
        "iso": {"variant": "iso", "eps": 1e-3},
        "vector": {"variant": "vector", "eps": 1e-3},
        "stride": {"stride": 2},
    }.items():
        model = build(monkeypatch, **options)
        values[name] = model.regularizer(logits, labeled["image"], labeled["mask"], labeled["valid"])[0].item()
    assert values["unlabelled"] < values["default"]
    assert values["both"] < values["contrast"] < values["default"]
    assert values["vector"] < values["iso"] < values["default"]
    assert len(set(values.values())) == len(values)


def test_a_cell_with_padding_is_padding_at_a_stride(monkeypatch):
    model = build(monkeypatch, stride=2)
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    valid[:, 5:] = False  # row 4 shares its cell with padding
    mask = torch.full((1, 8, 8), IGNORE)
    variation, _ = model.regularizer(logits, torch.rand(1, 3, 8, 8), mask, valid)
    (gradient,) = torch.autograd.grad(variation, logits)
    assert gradient[:, :, 4:].abs().max() == 0
    p = torch.nn.functional.avg_pool2d(logits.softmax(1), 2)
    inside = torch.zeros(1, 4, 4, dtype=torch.bool)
    inside[:, :2] = True
    assert variation.item() == pytest.approx(total_variation(p, inside).item(), rel=1e-6)


def test_directional_adds_its_own_term_beside_the_anisotropic_one(monkeypatch):
    model = build(monkeypatch, variant="directional", directional_weight=0.5, tv_weight=0.02)
    labeled = stream()
    out = model.compute_loss({"labeled": labeled})
    p = model.network(labeled["image"]).softmax(1)
    assert out.logs["directional"].item() == pytest.approx(directional_variation(p, labeled["valid"]).item(), rel=1e-6)
    expected = out.logs["pce"] + 0.02 * out.logs["tv"] + 0.5 * out.logs["directional"]
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "iso"}, "needs eps > 0"),
        ({"variant": "directional"}, "directional_weight go together"),
        ({"directional_weight": 0.1}, "directional_weight go together"),
        ({"variant": "directional", "directional_weight": 0.1, "where": "unlabelled"}, "neither where nor weighting"),
        ({"stride": 2, "where": "unlabelled"}, "set stride to 1"),
        ({"tv_weight": -0.1}, "tv_weight must be >= 0"),
        ({"start": 1.5}, "fractions of the run"),
    ],
)
def test_options_that_contradict_are_refused(monkeypatch, options, message):
    with pytest.raises(ValueError, match=message):
        build(monkeypatch, **options)
