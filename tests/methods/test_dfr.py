"""DFR: T1 to T9 of its specification, slow formulas, the head, what its options do to a batch, and short runs."""

from __future__ import annotations

import csv
import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import methods.dfr.module
from common.model.networks import NetworkConfig
from common.ops.affinity import positions, stack_modalities, window_kernel
from common.ops.batch import IGNORE
from common.ops.losses import partial_cross_entropy
from common.ops.mixing import key_uniform
from common.ops.tensors import valid_cells
from conftest import fit_tiny
from methods.dfr.head import FeatureConsistencyHead, resize
from methods.dfr.losses import (
    cell_labels,
    draw_cells,
    dynamic_kernel,
    feature_regularizer,
    pair_consistency,
)
from methods.dfr.module import DFR

KINDS = ("product", "sum", "shallow", "deep")
every_kind = pytest.mark.parametrize("kind", KINDS)
SLIM = {"decoder_fusion_channels": 64, "decoder_intermediate_channels": [32, 64, 64, 64]}
VIT = {
    "arch": "DPT",
    "encoder": "test_vit",
    "decoder": {"decoder_fusion_channels": 16, "decoder_intermediate_channels": [8, 8, 8, 8]},
}


def example(height: int = 6, width: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """float64: probabilities (2, 3, h, w), grey levels, embedding (2, 5, h, w), and a ragged valid plane."""
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(2, 3, height, width, generator=g, dtype=torch.float64).softmax(1)
    colors = 40 * torch.rand(2, 3, height, width, generator=g, dtype=torch.float64)
    embedding = F.normalize(torch.randn(2, 5, height, width, generator=g, dtype=torch.float64), dim=1)
    valid = torch.rand(2, height, width, generator=g) < 0.85
    valid[1, :, -2:] = False
    return p, colors, embedding, valid


def slow(p, colors, f, valid, kind, sigma_xy=6.0, sigma_rgb=15.0, sigma_f=0.5, eta=0.5, radius=2):
    """Sum and mass of the regularised loss by image, pair by pair from the formula; differentiable."""
    sums, masses = [], []
    for image in range(len(p)):
        total, mass = 0.0, 0.0
        cells = list(itertools.product(range(p.shape[2]), range(p.shape[3])))
        for (y, x), (v, u) in itertools.product(cells, cells):
            inside = max(abs(y - v), abs(x - u)) <= radius and (y, x) != (v, u)
            if not inside or not valid[image, y, x] or not valid[image, v, u]:
                continue
            k_xy = math.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * sigma_xy**2))
            far = (colors[image, :, y, x] - colors[image, :, v, u]).square().sum()
            k_s = k_xy * torch.exp(-far / (2 * sigma_rgb**2))
            k_d = torch.exp(-(1 - f[image, :, y, x] @ f[image, :, v, u]) / sigma_f**2)
            k = {"product": k_s * k_d, "sum": (1 - eta) * k_s + eta * k_xy * k_d, "shallow": k_s, "deep": k_xy * k_d}
            weight = k[kind]
            mass = mass + weight
            total = total + weight * (1 - p[image, :, y, x] @ p[image, :, v, u])
        sums.append(total)
        masses.append(mass)
    return torch.stack(sums), torch.stack(masses)


# Kernel and regularised loss ------------------------------------------------------------------------------------------


@every_kind
def test_t6_the_loss_and_its_gradient_are_those_of_the_formula(kind: str) -> None:
    p, colors, f, valid = example()
    z = p.log().requires_grad_()
    for norm in ("pixels", "mass"):
        kernel = dynamic_kernel(colors, f, valid, kind=kind, radius=2)
        loss, mass = feature_regularizer(z.softmax(1), kernel, valid, norm)
        sums, masses = slow(z.softmax(1), colors, f, valid, kind)
        expected = sums.sum() / valid.sum() if norm == "pixels" else (sums / masses).mean()
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mass, masses.sum() / valid.sum(), rtol=1e-12, atol=1e-12)
        found, wanted = (torch.autograd.grad(one, z, retain_graph=True)[0] for one in (loss, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert 0 < item(loss) < 1  # of the mass


@every_kind
def test_gradcheck(kind: str) -> None:
    p, colors, f, valid = example(3, 4)
    kernel = dynamic_kernel(colors, f, valid, kind=kind, radius=2)
    z = p.log().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: feature_regularizer(z.softmax(1), kernel, valid)[0], z)


def test_t1_shallow_is_gated_crf_and_product_is_one_gaussian() -> None:
    p, colors, f, valid = example()
    shallow = dynamic_kernel(colors, None, valid, kind="shallow", radius=5)
    gated = window_kernel(stack_modalities([(positions(colors), 6.0), (colors, 15.0)]), valid, radius=5)
    torch.testing.assert_close(shallow(p), gated(p), rtol=0, atol=1e-12)
    one = torch.cat([positions(colors) / 6, colors / 15, f / 0.5], 1)
    product = dynamic_kernel(colors, f, valid, radius=5)
    torch.testing.assert_close(product(p), window_kernel(one, valid, radius=5)(p), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("cosine", "expected"), [(1, 1), (0.9, 0.6703), (0.75, 0.3679), (0.5, 0.1353), (0, 0.0183), (-1, 0.0003)]
)
def test_t2_the_deep_kernel_by_cosine(cosine: float, expected: float) -> None:
    f = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64).T[None, :, None]
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    kernel = dynamic_kernel(torch.zeros(1, 3, 1, 2, dtype=torch.float64), f, valid, kind="deep", sigma_xy=1e6)
    assert float(kernel(torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64))[..., 1]) == pytest.approx(
        expected, abs=5e-5
    )


def test_t6_t7_masses_and_values_by_hand() -> None:
    flat = torch.zeros(1, 3, 30, 30, dtype=torch.float64)
    valid = torch.ones(1, 30, 30, dtype=torch.bool)
    kernel = dynamic_kernel(flat, None, valid, kind="shallow")
    mass = kernel(torch.ones(1, 1, 30, 30, dtype=torch.float64))[0, 0]
    assert [float(mass[at]) for at in ((15, 15), (0, 15), (0, 0))] == pytest.approx(
        [92.0086, 50.3264, 27.3242], abs=5e-5
    )
    hard = F.one_hot(torch.ones(1, 30, 30, dtype=torch.int64), 2).movedim(-1, 1).double()
    assert float(feature_regularizer(hard, kernel, valid)[0]) == 0
    uniform = torch.full((1, 2, 30, 30), 0.5, dtype=torch.float64)
    ties = 0.5 * mass  # 1 - p.p = 1/2 at every pair
    assert float(feature_regularizer(uniform, kernel, valid)[0]) == pytest.approx(float(ties.mean()), abs=1e-12)
    assert float(ties[15, 15]) == pytest.approx(46.0043, abs=5e-5)
    assert float(feature_regularizer(uniform, kernel, valid, "mass")[0]) == pytest.approx(0.5, abs=1e-12)


def test_t8_the_embedding_separates_what_colour_does_not() -> None:
    colors, valid = torch.full((1, 3, 6, 8), 90.0, dtype=torch.float64), torch.ones(1, 6, 8, dtype=torch.bool)
    halves = torch.zeros(1, 2, 6, 8, dtype=torch.float64)
    halves[:, 0, :, :4], halves[:, 1, :, 4:] = 1, 1
    alike = torch.zeros_like(halves)
    alike[:, 0] = 1
    spot = torch.zeros(1, 1, 6, 8, dtype=torch.float64)
    spot[..., 3, 4] = 1  # right of the border
    shallow = dynamic_kernel(colors, None, valid, kind="shallow")(spot)[0, 0, 3, 3]
    found = [dynamic_kernel(colors, f, valid)(spot)[0, 0, 3, 3] for f in (halves, alike)]
    assert float(shallow / found[0]) == pytest.approx(math.exp(4), rel=1e-12)
    assert float(found[1]) == pytest.approx(float(shallow), rel=1e-12)


@every_kind
def test_t4_the_kernel_takes_no_gradient(kind: str) -> None:
    p, colors, f, valid = example()
    z, f = p.log().requires_grad_(), f.requires_grad_()
    feature_regularizer(z.softmax(1), dynamic_kernel(colors, f, valid, kind=kind), valid)[0].backward()
    assert f.grad is None
    assert z.grad.abs().max() > 0


def test_t5_with_a_gradient_through_the_kernel_the_features_would_drift_apart() -> None:
    g = torch.Generator().manual_seed(0)
    f = torch.randn(1, 8, 6, 6, generator=g, dtype=torch.float64)
    p, colors = torch.full((1, 2, 6, 6), 0.5, dtype=torch.float64), torch.zeros(1, 3, 6, 6, dtype=torch.float64)
    valid, masses = torch.ones(1, 6, 6, dtype=torch.bool), []
    for _ in range(4):
        f = f.detach().requires_grad_()
        sums, mass = slow(p, colors, F.normalize(f, dim=1), valid, "product")
        sums.sum().backward()
        f = f - 0.5 * f.grad
        masses.append(float(mass))
    assert all(after < 0.99 * before for before, after in itertools.pairwise(masses))


@every_kind
def test_t9_padding_changes_nothing_inputs_stay_and_autocast_does_not_matter(kind: str) -> None:
    p, colors, f, valid = (one.float() if one.is_floating_point() else one for one in example())
    junk = [torch.where(valid[:, None], one, 9 * torch.rand_like(one)) for one in (p, colors, f)]
    given = [one.clone() for one in (*junk, valid)]
    values = []
    for precise, (q, c, e) in ((True, (p, colors, f)), (True, junk), (False, junk)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not precise):
            loss, mass = feature_regularizer(q, dynamic_kernel(c, e, valid, kind=kind), valid)
        assert loss.dtype == torch.float32
        values.append([float(loss), float(mass)])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert values[1] == pytest.approx(values[2], rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(given, (*junk, valid), strict=True))
    nothing = torch.zeros_like(valid)
    z = p.log().requires_grad_()
    loss, mass = feature_regularizer(z.softmax(1), dynamic_kernel(colors, f, nothing, kind=kind), nothing)
    loss.backward()
    assert float(loss) == float(mass) == z.grad.abs().max() == 0


def test_wrong_settings_are_refused() -> None:
    p, colors, _, valid = example()
    with pytest.raises(ValueError, match="kernel product needs an embedding"):
        dynamic_kernel(colors, None, valid)
    kernel = dynamic_kernel(colors, None, valid, kind="shallow")
    with pytest.raises(ValueError, match="norm must be pixels or mass"):
        feature_regularizer(p, kernel, valid, "cells")
    with pytest.raises(ValueError, match=r"valid must be \(B, H, W\)"):
        feature_regularizer(p, kernel, valid[:1])


# Labels of cells, drawing, pairs --------------------------------------------------------------------------------------


def test_a_cell_has_the_label_of_its_labelled_pixels_if_they_agree() -> None:
    g = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 3, (2, 13, 18), generator=g)
    mask[torch.rand(mask.shape, generator=g) < 0.85] = IGNORE
    valid = torch.rand(2, 13, 18, generator=g) < 0.99
    cells = valid_cells(valid, 4)
    found = cell_labels(mask, cells, 4)
    assert found.shape == cells.shape == (2, 3, 4)  # the incomplete cells at the border are none
    kinds = set()
    for b, y, x in itertools.product(range(2), range(3), range(4)):
        at = (b, slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4))
        assert bool(cells[b, y, x]) == bool(valid[at].all())
        classes = set(mask[at].unique().tolist()) - {IGNORE}
        expected = classes.pop() if len(classes) == 1 and valid[at].all() else IGNORE
        assert int(found[b, y, x]) == expected
        kinds.add((len(classes), expected == IGNORE, bool(valid[at].all())))
    assert len(kinds) >= 3


def test_cells_are_drawn_in_turns_the_preferred_ones_first() -> None:
    g = torch.Generator().manual_seed(0)
    key = torch.tensor([[0, 3], [1, 5], [1, 6]])
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, IGNORE, IGNORE]).repeat(12)[torch.randperm(120, generator=g)]
    labels = torch.stack([labels, labels.flip(0), torch.full_like(labels, IGNORE)])
    first = (torch.rand(labels.shape, generator=g) < 0.3) & (labels != IGNORE)
    for count in (7, 40, 500):
        index, drawn = draw_cells(key, labels, first, count, seed=4)
        assert index.shape == drawn.shape == (3, min(count, 120))
        for b in range(3):
            order = key_uniform(key, 120, 4)[b].argsort().tolist()
            expected: list[int] = []
            for wanted in (True, False):
                queues = [[i for i in order if labels[b, i] == k and bool(first[b, i]) == wanted] for k in range(3)]
                for turn in range(120):
                    expected += [queue[turn] for queue in queues if turn < len(queue)]
            known = drawn[b] != IGNORE
            assert index[b][known].tolist() == expected[:count]
            assert drawn[b][known].tolist() == labels[b, index[b][known]].tolist()
            assert len(set(index[b].tolist())) == index.shape[1]


def test_a_draw_depends_on_the_sample_and_the_seed_alone() -> None:
    key, labels = torch.tensor([[0, 0], [0, 1]]), torch.randint(0, 3, (2, 50))
    first = torch.zeros_like(labels, dtype=torch.bool)
    index, _ = draw_cells(key, labels, first, 20, 0)
    assert torch.equal(draw_cells(key[1:], labels[1:], first[1:], 20, 0)[0], index[1:])
    assert not torch.equal(draw_cells(key, labels, first, 20, 1)[0], index)
    assert not torch.equal(draw_cells(key + 1, labels, first, 20, 0)[0], index)


def pair(cosine: float) -> Tensor:
    return torch.tensor([[[1.0, cosine], [0.0, math.sqrt(1 - cosine**2)]]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("margin", "cosine", "positive", "negative"),
    [
        (0.5, 1.0, 0.00672, 5.00672),
        (0.5, 0.5, 0.69315, 0.69315),
        (0.5, 0.0, 5.00672, 0.00672),
        (0.0, 1.0, 0.00005, None),
        (0.0, 0.0, 0.69315, 0.69315),
    ],
)
def test_t3_terms_of_the_pair_loss(margin: float, cosine: float, positive: float, negative: float | None) -> None:
    loss, logs = pair_consistency(pair(cosine), torch.tensor([[1, 1]]), margin)
    assert float(2 * loss) == pytest.approx(positive, abs=5e-6)
    assert float(logs["cos_pos"]) == pytest.approx(cosine)
    assert float(logs["cos_neg"]) == 0
    if negative is not None:
        loss, logs = pair_consistency(pair(cosine), torch.tensor([[1, 0]]), margin)
        assert float(2 * loss) == pytest.approx(negative, abs=5e-6)
        assert float(logs["cos_neg"]) == pytest.approx(cosine)


def test_the_pair_loss_is_that_of_the_formula() -> None:
    g = torch.Generator().manual_seed(0)
    f = F.normalize(torch.randn(2, 4, 9, generator=g, dtype=torch.float64), dim=1).requires_grad_()
    labels = torch.tensor([[0, 1, 2, 0, 1, 255, 0, 0, 255], [2, 2, 1, 255, 255, 255, 255, 0, 255]])
    terms: dict[bool, list[Tensor]] = {True: [], False: []}
    cosines: dict[bool, list[float]] = {True: [], False: []}
    for b, i, j in itertools.product(range(2), range(9), range(9)):
        if i < j and IGNORE not in (int(labels[b, i]), int(labels[b, j])):
            same, cosine = bool(labels[b, i] == labels[b, j]), f[b, :, i] @ f[b, :, j]
            s = torch.sigmoid((cosine - 0.4) / 0.2)
            terms[same].append(-torch.log(s if same else 1 - s))
            cosines[same].append(float(cosine))
    expected = (torch.stack(terms[True]).mean() + torch.stack(terms[False]).mean()) / 2
    loss, logs = pair_consistency(f, labels, 0.4, 0.2)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    assert float(logs["cos_pos"]) == pytest.approx(sum(cosines[True]) / len(cosines[True]))
    assert float(logs["cos_neg"]) == pytest.approx(sum(cosines[False]) / len(cosines[False]))
    found, wanted = (torch.autograd.grad(one, f)[0] for one in (loss, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda f: pair_consistency(f, labels)[0], f)


def test_no_pair_is_a_zero_with_a_gradient_and_autocast_does_not_matter() -> None:
    f = F.normalize(torch.randn(1, 16, 40), dim=1).requires_grad_()
    loss, _ = pair_consistency(f, torch.full((1, 40), IGNORE))
    loss.backward()
    assert float(loss) == f.grad.abs().max() == 0
    labels = torch.randint(0, 3, (1, 40))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = pair_consistency(f, labels)[0]
    assert low.dtype == torch.float32
    assert float(low) == pytest.approx(float(pair_consistency(f, labels)[0]), rel=1e-5)


# The head -------------------------------------------------------------------------------------------------------------


def test_the_head_gives_unit_vectors_in_float32_at_the_size_of_the_cells() -> None:
    head = FeatureConsistencyHead(12)
    for stride in (1, 2, 4, 8):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = head(torch.randn(2, 12, 24 // stride, 16 // stride), (6, 4))
        assert (found.shape, found.dtype) == ((2, 128, 6, 4), torch.float32)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(2, 6, 4))
    assert [tuple(p.shape) for p in head.parameters()] == [(256, 12, 1, 1), (256,), (256,), (128, 256, 1, 1), (128,)]
    fine = torch.randn(2, 12, 24, 16)
    torch.testing.assert_close(resize(fine, (6, 4)), F.avg_pool2d(fine, 4))


# The method on a batch ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return DFR(3, network=NetworkConfig(**VIT)).network


@pytest.fixture
def build(monkeypatch, network):
    """A model with the given options, all on one vision transformer (building it takes longest)."""

    def make(progress=1.0, **options):
        monkeypatch.setattr("common.model.module.build_network", lambda *_: network)
        monkeypatch.setattr(DFR, "progress", progress)
        network.zero_grad()
        torch.manual_seed(1)
        return DFR(3, **options).eval()

    return make


def stream(labelled=True, height=45, width=70, seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 3, (2, height, width), generator=g)
    mask[torch.rand(mask.shape, generator=g) > (0.03 if labelled else -1)] = IGNORE
    valid = torch.ones(2, height, width, dtype=torch.bool)
    valid[:, -6:] = False
    image = 0.4 + 0.2 * torch.rand(2, 3, height, width, generator=g)
    return {"image": image, "mask": mask, "valid": valid, "key": torch.tensor([[0, 0], [0, 1]])}


def item(value):
    return float(value.detach()) if isinstance(value, Tensor) else value


def loss_of(model, labeled=None, **more):
    out = model.compute_loss({"labeled": labeled or stream(), **more})
    return out, {name: item(value) for name, value in out.logs.items()}


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_the_loss_is_the_weighted_sum_of_its_terms(build) -> None:
    model, labeled = build(confidence=0.4), stream()
    copies = {key: value.clone() for key, value in labeled.items()}
    out, logs = loss_of(model, labeled)
    _, decoded = model.network.features(labeled["image"])
    logits = model.network(labeled["image"])
    assert logs["pce"] == pytest.approx(
        item(partial_cross_entropy(logits, labeled["mask"], labeled["valid"])), rel=1e-5
    )
    # From the parts, at stride 4: 11 x 17 cells, the last row of them with padding.
    p, colors = F.avg_pool2d(logits.softmax(1), 4), F.avg_pool2d(255 * labeled["image"], 4)
    cells = valid_cells(labeled["valid"], 4)
    assert cells.shape == (2, 11, 17)
    assert cells.sum() == 2 * 9 * 17
    f = model.head(decoded, (16, 24))[..., :11, :17]
    regularizer, mass = feature_regularizer(p, dynamic_kernel(colors, f, cells), cells)
    labels = cell_labels(labeled["mask"], cells, 4)
    sure = (p.amax(1) > 0.4) & (labels == IGNORE) & cells
    assert 0 < sure.sum() < cells.sum()
    every = torch.where(sure, p.argmax(1), labels)  # fewer cells than are drawn: all of them
    consistency, cosines = pair_consistency(f.flatten(2), every.flatten(1))
    expected = {"dfr": regularizer, "mass": mass, "fch": consistency, **cosines, "confident": sure.sum() / cells.sum()}
    assert logs == pytest.approx({"pce": logs["pce"], **{k: item(v) for k, v in expected.items()}}, rel=1e-4)
    assert item(out.loss) == pytest.approx(logs["pce"] + 0.1 * logs["dfr"] + 0.1 * logs["fch"], rel=1e-5)
    out.loss.backward()
    assert all(g is not None and torch.isfinite(g).all() for g in gradients(model).values())
    assert all(torch.equal(labeled[key], copies[key]) for key in copies)


def test_the_run_decides_which_terms_there_are(build) -> None:
    early, middle, late = ({*loss_of(build(progress))[1]} for progress in (0.0, 0.05, 0.2))
    assert early == {"pce", "fch", "cos_pos", "cos_neg"}
    assert middle == early | {"dfr", "mass"}
    assert late == middle | {"confident"}


def test_confident_cells_are_never_labelled_ones_or_padding_and_fill_what_labels_leave(build) -> None:
    labeled = stream()
    low, high = (loss_of(build(confidence=value), labeled)[1] for value in (0.0, 1.0))
    assert high["confident"] == 0
    labels = cell_labels(labeled["mask"], valid_cells(labeled["valid"], 4), 4)
    cells = valid_cells(labeled["valid"], 4)
    assert low["confident"] == pytest.approx(float(((labels == IGNORE) & cells).sum() / cells.sum()))
    # With no more cells than the labelled ones are drawn, the confident ones change nothing.
    count = int((labels != IGNORE).sum((1, 2)).min())
    few = [loss_of(build(confidence=value, fch_pixels=count), labeled)[1]["fch"] for value in (0.0, 1.0)]
    assert few[0] == few[1] != low["fch"]


def test_t4_what_each_loss_trains(build) -> None:
    def reached(**options):
        model = build(**options)
        out, _ = loss_of(model)
        pce = partial_cross_entropy(model.network(stream()["image"]), stream()["mask"], stream()["valid"])
        model.zero_grad()
        (out.loss - pce).backward()
        largest = {name: float(g.abs().max()) for name, g in gradients(model).items() if g is not None}
        parts = ("head.", "network.model.encoder", "network.model.segmentation_head")
        return [max([v for n, v in largest.items() if n.startswith(part)], default=0) > 1e-6 for part in parts]

    assert reached(fch_weight=0) == [False, True, True]  # the regularised loss
    assert reached(dfr_weight=0) == [True, True, False]  # the pair loss


def test_a_frozen_head_has_a_kernel_and_no_parameter_to_train(build) -> None:
    model = build(fch_weight=0)
    logs = loss_of(model)[1]
    assert {*logs} == {"pce", "dfr", "mass"}
    assert all(not p.requires_grad for p in model.head.parameters())
    trained = [id(p) for group in model.parameter_groups() for p in group["params"]]
    assert not {id(p) for p in model.head.parameters()} & {*trained}
    shallow = build(kernel="shallow", fch_weight=0)
    assert shallow.head is None
    assert loss_of(shallow)[1]["mass"] > logs["mass"]
    assert build(kernel="shallow").head is not None


def test_options_reach_the_loss(build) -> None:
    options = {
        "default": {}, "sum": {"kernel": "sum"}, "deep": {"kernel": "deep"},
        "shallow": {"kernel": "shallow"}, "radius": {"radius": 2}, "stride": {"stride": 8}, "near": {"sigma_xy": 8.0},
        "colour": {"sigma_rgb": 3.0}, "feature": {"sigma_f": 2.0},
        "weight": {"dfr_weight": 1.0}, "fch": {"fch_weight": 1.0}, "few": {"fch_pixels": 9},
    }  # fmt: skip
    values = {name: item(loss_of(build(**given))[0].loss) for name, given in options.items()}
    assert all(math.isfinite(value) for value in values.values())
    assert len({round(value, 6) for value in values.values()}) == len(values)


def test_the_kernel_is_float32_under_bf16_and_follows_the_embedding_of_the_step(build, monkeypatch) -> None:
    seen = []

    def spy(colors, embedding, cells, **options):
        seen.append(embedding)
        assert colors.dtype == torch.float32
        kernel = dynamic_kernel(colors, embedding, cells, **options)
        return lambda values: out if (out := kernel(values)).dtype == torch.float32 else None

    monkeypatch.setattr(methods.dfr.module, "dynamic_kernel", spy)
    model = build()
    exact, _ = loss_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = loss_of(model)
    assert out.loss.dtype == torch.float32
    assert all(one.dtype == torch.float32 for one in seen)
    assert item(out.loss) == pytest.approx(item(exact.loss), rel=0.05)
    out.loss.backward()
    assert all(torch.isfinite(g).all() for g in gradients(model).values())
    with torch.no_grad():
        model.head.layers[-1].weight.mul_(-1)
    loss_of(model)
    assert not torch.equal(seen[0], seen[-1])


def test_unlabelled_images_are_in_the_kernel_and_give_confident_pairs(build) -> None:
    labeled, unlabeled = stream(), stream(labelled=False, seed=1)
    model = build(confidence=0.3)
    alone, both = loss_of(model, labeled)[1], loss_of(model, labeled, unlabeled=unlabeled)[1]
    assert both["pce"] == pytest.approx(alone["pce"], rel=1e-5)
    assert both["dfr"] != pytest.approx(alone["dfr"], rel=1e-4)
    assert both["fch"] != pytest.approx(alone["fch"], rel=1e-4)


def test_no_label_and_nothing_valid_give_finite_losses(build) -> None:
    model = build(confidence=1.0)
    for inside in (True, False):
        labeled = stream(labelled=False)
        labeled["valid"] &= inside
        out, logs = loss_of(model, labeled)
        model.zero_grad()
        out.loss.backward()
        assert logs["pce"] == logs["fch"] == 0
        assert (logs["dfr"] > 0) == inside
        assert all(torch.isfinite(g).all() for g in gradients(model).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dfr_weight": -1.0}, "must be >= 0"),
        ({"dfr_weight": 0.0, "fch_weight": 0.0}, "method Supervised"),
        ({"sigma_xy": 0.0}, "must be positive"),
        ({"stride": 5}, "stride must divide the network's 32"),
        ({"radius": 0}, "radius be >= 1"),
        ({"fch_pixels": 1}, "fch_pixels >= 2"),
        ({"confidence": 1.5}, "lie in"),
        ({"start": -0.1}, "lie in"),
    ],
)
def test_options_that_contradict_are_refused(build, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("arch", "encoder", "decoder"),
    [
        ("DPT", "vit_tiny_patch16_224", SLIM),
        ("UPerNet", "swin_tiny_patch4_window7_224", {"decoder_channels": 32}),
        ("Segformer", "mit_b0", {"decoder_segmentation_channels": 32}),
        ("Unet", "mobilenet_v2", {"decoder_channels": [32, 16, 16, 8, 8]}),
    ],
)  # fmt: skip
def test_transformers_and_a_convolutional_network_at_an_odd_size(arch, encoder, decoder, monkeypatch) -> None:
    monkeypatch.setattr(DFR, "progress", 1.0)
    torch.manual_seed(0)
    model = DFR(3, network=NetworkConfig(arch, encoder, decoder=decoder, layer_decay=0.9))
    out, _ = loss_of(model, stream(height=70, width=90))
    out.loss.backward()
    assert all(g is not None and torch.isfinite(g).all() for g in gradients(model).values())
    found = [id(p) for group in model.parameter_groups() for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)


# Runs -----------------------------------------------------------------------------------------------------------------


def rows_of(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_of_a_vision_transformer_on_scribbles(tmp_path) -> None:
    options = {
        "network": "{arch: DPT, encoder: test_vit, decoder: {decoder_fusion_channels: 16, "
        "decoder_intermediate_channels: [8, 8, 8, 8]}, layer_decay: 0.9}",
        "start": "0.4", "confident_start": "0.7", "confidence": "0.25",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--model.init_args.{name}", value)]
    scribbles = ["--data.init_args.supervision", "{kind: scribbles, fraction: null}"]
    fit_tiny(tmp_path / "run", "--model", "DFR", *words, *scribbles, "--trainer.max_steps", "6")
    rows = rows_of(tmp_path / "run")
    steps, measured = [r for r in rows if r["train/pce"]], [r for r in rows if r["val/miou"]]
    assert [bool(r["train/dfr"]) for r in steps] == [False] * 3 + [True] * 3
    assert [bool(r["train/confident"]) for r in steps] == [False] * 5 + [True]
    assert all(0 < float(r["val/confident"]) <= 100 for r in measured)
    assert all(0 <= float(r["val/confident_precision"]) <= 100 for r in measured)


def test_the_precision_of_confident_pixels_is_that_of_the_definition(build) -> None:
    model = build(confidence=0.4)
    model.setup("validate")
    seen = {}
    model.log = lambda name, metric: seen.update({name: metric})
    right = sure = known = 0
    for seed in range(3):
        one = {key: value[:1] for key, value in stream(seed=seed).items()}
        one["mask"] = torch.randint(0, 3, (1, 45, 70), generator=torch.Generator().manual_seed(seed))
        one["mask"][:, :5] = IGNORE
        p = model.network(one["image"]).softmax(1)
        confident = (p.amax(1) > 0.4) & (one["mask"] != IGNORE)
        right += int((confident & (p.argmax(1) == one["mask"])).sum())
        sure, known = sure + int(confident.sum()), known + int((one["mask"] != IGNORE).sum())
        model.validation_step({**one, "size": torch.tensor([[45, 70]])}, seed)
    assert 0 < sure < known
    assert float(seen["val/confident"].compute()) == pytest.approx(100 * sure / known, rel=1e-4)
    assert float(seen["val/confident_precision"].compute()) == pytest.approx(100 * right / sure, rel=1e-4)
    assert float(model.metrics["network"].compute()["miou"]) > 0
