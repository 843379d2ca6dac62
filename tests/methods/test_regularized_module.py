"""The wiring of methods/regularized/module.py: what its options do to the loss of one batch, and a short run."""

import pytest
import torch
from torch.nn import functional as F

from common.model.networks import NetworkConfig
from common.ops.affinity import dense_kernel, positions, stack_modalities, window_kernel
from common.ops.batch import IGNORE
from common.ops.losses import partial_cross_entropy
from conftest import fit_tiny
from methods.regularized.losses import clamp_seeds, crf, gated_crf, normalized_cut
from methods.regularized.module import Regularized

NETWORK = {
    "arch": "Unet",
    "encoder": "tu-test_resnet",
    "decoder": {"decoder_channels": [8, 8, 8, 8], "encoder_depth": 4},
}
TERMS = {  # defaults: CRF weight, cut weight, sigmas, stride, radius
    "crf": (2.0, 0.0, 100.0, 15.0, 2, None),
    "normalized_cut": (0.0, 1.6, 100.0, 15.0, 2, None),
    "kernel_cut": (2.0, 0.4, 100.0, 15.0, 2, None),
    "gated_crf": (0.1, 0.0, 24.0, 5.75, 4, 5),
}
every_term = pytest.mark.parametrize("term", TERMS)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Regularized(3, network=NetworkConfig(**NETWORK)).network


@pytest.fixture
def build(monkeypatch, network):
    """A model with the given options, all on one network (building it takes longest)."""

    def make(progress=1.0, **options):
        monkeypatch.setattr("common.model.module.build_network", lambda *_: network)
        monkeypatch.setattr(Regularized, "progress", progress)
        network.zero_grad()
        return Regularized(3, **options).eval()

    return make


def stream(labelled=True, batch=2, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 3, (batch, side, side), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) > (0.1 if labelled else -1)] = IGNORE
    valid = torch.ones(batch, side, side, dtype=torch.bool)
    valid[:, -5:] = False
    image = 0.4 + 0.2 * torch.rand(batch, 3, side, side, generator=generator)
    return {"image": image, "mask": mask, "valid": valid}


def item(value):
    return float(value.detach()) if isinstance(value, torch.Tensor) else value


def cells(labeled, stride):
    """Colours in grey levels and valid plane of cells: rows 27 ... 31 are padding."""
    valid = labeled["valid"].unfold(1, stride, stride).unfold(2, stride, stride).all(-1).all(-1)
    return 255 * F.avg_pool2d(labeled["image"], stride), valid


@every_term
def test_defaults_are_those_of_the_term(build, term):
    model = build(term=term)
    found = (model.crf_weight, model.nc_weight, model.sigma_xy, model.sigma_rgb, model.stride, model.radius)
    assert found == TERMS[term]


@every_term
def test_the_loss_is_pce_plus_the_weighted_energies(build, term):
    model, labeled = build(term=term), stream()
    logits = model.network(labeled["image"])
    p = logits.softmax(1)
    pce = partial_cross_entropy(logits, labeled["mask"], labeled["valid"])
    colors, valid = cells(labeled, model.stride)
    xy = positions(colors) / (model.sigma_xy / model.stride)
    features = torch.cat([xy, colors / model.sigma_rgb], 1)
    pooled = F.avg_pool2d(p, model.stride)
    clamped = F.avg_pool2d(clamp_seeds(p, labeled["mask"]), model.stride)
    dense = dense_kernel(features, valid)
    terms = {
        "crf": {"crf": crf(pooled, dense)},
        "normalized_cut": {"nc": normalized_cut(clamped, dense)},
        "kernel_cut": {"crf": crf(pooled, dense), "nc": normalized_cut(clamped, dense)},
        "gated_crf": {"crf": gated_crf(pooled, window_kernel(features, valid), valid)},
    }[term]
    out = model.compute_loss({"labeled": labeled})
    assert set(out.logs) == {"pce", "ramp", *terms}
    weights = dict(zip(("crf", "nc"), TERMS[term][:2], strict=True))
    expected = item(pce) + sum(weights[name] * item(value) for name, value in terms.items())
    assert min(item(value) for value in terms.values()) > 0
    for name, value in terms.items():
        assert item(out.logs[name]) == pytest.approx(item(value), rel=1e-5)
    assert item(out.loss) == pytest.approx(expected, rel=1e-5)
    out.loss.backward()
    assert all(q.grad is not None and torch.isfinite(q.grad).all() for q in model.parameters())


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.49, 0.0), (0.6, 0.5), (0.7, 1.0), (1.0, 1.0)])
def test_the_first_phase_is_pce_alone(build, progress, weight):
    model, labeled = build(progress, ramp=0.2), stream()
    out = model.compute_loss({"labeled": labeled})
    assert out.logs["ramp"] == pytest.approx(weight)
    assert ("crf" in out.logs) == (weight > 0)
    energy = 2 * item(out.logs["crf"]) if weight else 0.0
    assert item(out.loss) == pytest.approx(item(out.logs["pce"]) + weight * energy, rel=1e-6)
    out.loss.backward()
    assert all(q.grad is not None for q in model.parameters())


def test_a_single_phase(build):
    assert "crf" in build(0.0, start=0.0).compute_loss({"labeled": stream()}).logs
    assert build(0.5).compute_loss({"labeled": stream()}).logs["ramp"] == 1  # two phases by default, halves of the run


def test_options_reach_the_energy(build):
    labeled = stream()
    logits = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    values = {}
    for name, options in {
        "default": {},
        "near": {"sigma_xy": 3.0},
        "colour": {"sigma_rgb": 40.0},
        "stride": {"stride": 4},
        "window": {"radius": 3},
        "raw": {"reduction": "raw"},
    }.items():
        model = build(**options)
        values[name] = item(model.regularizer(logits, labeled["image"], labeled["mask"], labeled["valid"])["crf"])
    assert len(set(values.values())) == len(values)
    assert values.pop("raw") < 0
    assert all(0 < value < 1 for value in values.values())


def test_sigma_xy_keeps_its_meaning_at_a_stride(build):
    """Blocks of 4 x 4 equal pixels: the kernel between cells is that between their centres, whatever the stride."""
    generator = torch.Generator().manual_seed(0)
    small = {name: torch.rand(1, 3, 8, 8, generator=generator) for name in ("logits", "image")}
    big = {name: value.repeat_interleave(4, 2).repeat_interleave(4, 3) for name, value in small.items()}
    mask, valid = torch.full((1, 32, 32), IGNORE), torch.ones(1, 32, 32, dtype=torch.bool)
    found = [
        item(build(sigma_xy=16.0, sigma_rgb=60.0, stride=stride).regularizer(**big, mask=mask, valid=valid)["crf"])
        for stride in (2, 4)
    ]
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_fully_labelled_images_are_left_out_of_the_energy(build):
    labeled = stream()
    labeled["mask"][1] = 1
    logits = torch.randn(2, 3, 32, 32, requires_grad=True)
    alone = {key: value[:1] for key, value in labeled.items()}
    for term in ("kernel_cut", "gated_crf"):
        model = build(term=term)
        both = model.regularizer(logits, **labeled)
        one = model.regularizer(logits[:1], **alone)
        assert both.keys() == one.keys()
        for name in one:
            assert item(both[name]) == pytest.approx(item(one[name]), rel=1e-5)
        (slope,) = torch.autograd.grad(sum(both.values()), logits)
        assert slope[1].abs().max() == 0 < slope[0].abs().max()
        every = build(term=term, max_labelled=1.0).regularizer(logits, **labeled)
        assert item(every["crf"]) != item(both["crf"])


def test_unlabelled_images_enter_the_energy_and_not_the_cross_entropy(build):
    model, labeled, unlabeled = build(), stream(), stream(labelled=False, seed=1)
    alone = model.compute_loss({"labeled": labeled})
    both = model.compute_loss({"labeled": labeled, "unlabeled": unlabeled})
    assert item(both.logs["pce"]) == pytest.approx(item(alone.logs["pce"]), rel=1e-5)
    other = model.compute_loss({"labeled": labeled, "unlabeled": stream(labelled=False, seed=2)})
    assert len({item(out.logs["crf"]) for out in (alone, both, other)}) == 3


@every_term
def test_padding_is_in_no_energy_and_the_batch_is_not_written_to(build, term):
    """A cell with padding is padding: rows 24 ... 26 share theirs at stride 4, row 26 at stride 2."""
    model, labeled = build(term=term, sigma_xy=10.0), stream()
    copies = {key: value.clone() for key, value in labeled.items()}
    logits = torch.randn(2, 3, 32, 32, requires_grad=True)
    values = []
    for noise in (0.0, 1.0):
        image = torch.where(labeled["valid"][:, None], labeled["image"], noise)
        terms = model.regularizer(logits, image, labeled["mask"], labeled["valid"])
        values.append({name: item(value) for name, value in terms.items()})
        (slope,) = torch.autograd.grad(sum(terms.values()), logits)
        edge = 24 if term == "gated_crf" else 26
        assert slope[:, :, edge:].abs().max() == 0
        assert slope[:, :, :edge].abs().amax((1, 2, 3)).min() > 0
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert all(torch.equal(labeled[key], copies[key]) for key in copies)


@every_term
def test_no_label_and_nothing_valid_give_finite_losses(build, term):
    model = build(term=term)
    for labelled, inside in ((False, True), (False, False)):
        labeled = stream(labelled)
        labeled["valid"] &= inside
        out = model.compute_loss({"labeled": labeled})
        model.zero_grad()
        out.loss.backward()
        assert item(out.logs["pce"]) == 0
        assert all(torch.isfinite(q.grad).all() for q in model.parameters())
        if not inside:
            assert item(out.loss) == 0
            assert all(q.grad.abs().max() == 0 for q in model.parameters())


@every_term
def test_finite_in_bf16_autocast(build, term):
    model, labeled = build(term=term), stream()
    exact = model.compute_loss({"labeled": labeled})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model.compute_loss({"labeled": labeled})
    assert out.loss.dtype == torch.float32
    assert item(out.loss) == pytest.approx(item(exact.loss), rel=0.05)
    out.loss.backward()
    assert all(torch.isfinite(q.grad).all() for q in model.parameters())


def test_a_size_that_the_stride_does_not_divide(build):
    labeled = stream(side=33)
    logits = torch.randn(2, 3, 33, 33)
    assert all(torch.isfinite(value) for value in build(stride=4).regularizer(logits, **labeled).values())


def test_features_are_those_of_the_specification():
    """15 grey levels are 0.0588 on [0, 1]; 0.1 of ImageNet-normalised RGB are 5.7 to 5.8."""
    image = torch.rand(1, 3, 4, 4)
    grey, unit = stack_modalities([(255 * image, 15.0)]), stack_modalities([(image, 15 / 255)])
    torch.testing.assert_close(grey, unit)
    assert round(15 / 255, 4) == 0.0588
    for std in (0.229, 0.224, 0.225):
        assert 0.1 * std * 255 == pytest.approx(TERMS["gated_crf"][3], rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nc_weight": 0.1}, "take term kernel_cut"),
        ({"term": "normalized_cut", "crf_weight": 0.1}, "take term kernel_cut"),
        ({"term": "gated_crf", "nc_weight": 0.1}, "take term kernel_cut"),
        ({"term": "kernel_cut", "reduction": "raw"}, "set term to crf"),
        ({"crf_weight": -1.0}, "crf_weight and nc_weight must be >= 0"),
        ({"max_labelled": 1.5}, "a share in"),
        ({"sigma_xy": 0.0}, "must be positive"),
        ({"sigma_rgb": -1.0}, "must be positive"),
        ({"start": 1.5}, "fractions of the run"),
        ({"ramp": -0.5}, "fractions of the run"),
        ({"stride": 0}, "must be >= 1"),
        ({"radius": 0}, "must be >= 1"),
    ],
)
def test_options_that_contradict_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_run_on_scribbles_has_two_phases(tmp_path):
    scribbles = ("--data.init_args.supervision", "{kind: scribbles, fraction: null}")
    term = ("--model.init_args.term", "kernel_cut", "--model.init_args.sigma_xy", "10", "--trainer.max_steps", "4")
    fit_tiny(tmp_path / "run", "--model", "Regularized", *scribbles, *term)
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    columns = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    steps = [row for row in columns if row["train/pce"]]
    assert [bool(row["train/crf"]) for row in steps] == [False, False, True, True]
    assert [bool(row["train/nc"]) for row in steps] == [False, False, True, True]
