"""The wiring of methods/tv/module.py: what its options do to the loss of one batch; and T14 of the specification, how
strokes spread (T1 ... T13 of the loss itself are in tests/common/ops/test_losses.py)."""

import pytest
import torch
from torch import Tensor

from common.model.networks import NetworkConfig
from common.ops.batch import IGNORE
from common.ops.losses import contrast_weights, partial_cross_entropy, total_variation
from methods.tv.module import TV

NETWORK = {
    "arch": "Unet",
    "encoder": "tu-test_resnet",
    "decoder": {"decoder_channels": [8, 8, 8, 8], "encoder_depth": 4},
}


def build(monkeypatch, progress=1.0, **options):
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


@pytest.mark.parametrize("weighting", ["none", "contrast"])
def test_the_loss_is_pce_plus_weighted_total_variation(monkeypatch, weighting):
    model, labeled = build(monkeypatch, tv_weight=0.3, weighting=weighting), stream()
    logits = model.network(labeled["image"])
    pce = partial_cross_entropy(logits, labeled["mask"], labeled["valid"])
    weights = contrast_weights(labeled["image"], labeled["valid"]) if weighting == "contrast" else None
    variation = total_variation(logits.softmax(1), labeled["valid"], pair_weights=weights)
    out = model.compute_loss({"labeled": labeled})
    assert out.loss.item() == pytest.approx((pce + 0.3 * variation).item(), rel=1e-6)
    assert variation.item() > 0
    assert {"pce", "tv", "ramp"} == set(out.logs)


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
    variation = build(monkeypatch).variation(logits, labeled["image"], labeled["valid"])
    torch.testing.assert_close(variation, total_variation(logits.softmax(1), labeled["valid"]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("weighting", ["none", "contrast"])
def test_padding_is_in_no_term(monkeypatch, weighting):
    model, labeled = build(monkeypatch, weighting=weighting), stream()
    logits = torch.randn(2, 3, 32, 32, requires_grad=True)
    variation = model.variation(logits, labeled["image"], labeled["valid"])
    (gradient,) = torch.autograd.grad(variation, logits)
    assert gradient[:, :, -5:].abs().max() == 0
    assert gradient[:, :, :-5].abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tv_weight": -0.1}, "tv_weight must be >= 0"), ({"start": 1.5}, "fractions of the run")],
)
def test_options_out_of_range_are_refused(monkeypatch, options, message):
    with pytest.raises(ValueError, match=message):
        build(monkeypatch, **options)


# Behaviour ------------------------------------------------------------------------------------------------------------


def trained_accuracy(weight: float) -> Tensor:
    """Pixel accuracy of free logits, one value per seed: three vertical regions, one stroke of six pixels in each."""
    seeds, classes = 3, 3
    truth = (torch.arange(32) * classes // 32).expand(seeds, 32, 32)
    mask = torch.full((seeds, 32, 32), 255)
    logits = []
    for seed in range(seeds):
        g = torch.Generator().manual_seed(seed)
        for k in range(classes):
            row = int(torch.randint(3, 23, (), generator=g))
            column = 11 * k + int(torch.randint(2, 8, (), generator=g))
            mask[seed, row : row + 6, column] = k
        logits.append(torch.randn(classes, 32, 32, generator=g))
    assert (mask[mask != 255] == truth[mask != 255]).all()
    z = torch.stack(logits).requires_grad_()
    valid = torch.ones(seeds, 32, 32, dtype=torch.bool)
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(600):
        loss = partial_cross_entropy(z, mask, valid) + weight * total_variation(z.softmax(1), valid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (z.argmax(1) == truth).double().mean((1, 2))


def test_t14_total_variation_spreads_strokes_over_regions() -> None:
    with_tv, without = trained_accuracy(0.5), trained_accuracy(0.0)
    assert ((without > 0.25) & (without < 0.45)).all()  # chance, and the strokes
    assert (with_tv - without > 0.05).all()
    assert (with_tv - without).mean() > 0.1
