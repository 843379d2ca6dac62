"""The wiring of methods/rrn/module.py: what the networks and discriminators see, whose gradient goes where."""

import csv
import itertools
import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from common.model.module import SegmentationModule
from common.model.networks import NetworkConfig
from common.model.optim import ChainedOptimizer
from common.model.pairs import mixed_pseudo_labels
from common.ops.batch import IGNORE
from common.ops.losses import partial_cross_entropy
from common.ops.mixing import box_masks
from common.ops.tensors import one_hot
from conftest import fit_tiny, two_processes
from methods.cps.module import CPS
from methods.rrn.diagnostics import RegionReport
from methods.rrn.discriminator import class_planes
from methods.rrn.losses import (
    discriminator_loss,
    dynamic_region_loss,
    feature_matching_loss,
    local_selection_loss,
    region_reliability,
    region_scores,
    region_sums,
)
from methods.rrn.module import RRN

UNET = {
    "arch": "Unet",
    "encoder": "tu-test_resnet",
    "decoder": {"decoder_channels": [8, 8, 8, 8], "encoder_depth": 4},
}
# without batch statistics
PLAIN = {**UNET, "encoder": "tu-test_convnext", "decoder": {**UNET["decoder"], "decoder_use_norm": False}}
SIZE = (40, 56)  # 2 x 3 regions of 16 pixels, the last ones larger


@pytest.fixture(autouse=True)
def _second_epoch(monkeypatch):
    """No trainer here: the discriminators have learned for an epoch."""
    monkeypatch.setattr(RRN, "current_epoch", 1)


def build(network=UNET, **options):
    """Two networks that differ, in eval mode, where images do not depend on each other."""
    torch.manual_seed(0)
    model = RRN(3, network=NetworkConfig(**network), **{"region_conv": 1, **options})
    with torch.no_grad():
        for one in model.networks:
            for parameter in one.model.segmentation_head.parameters():
                parameter.copy_(torch.randn_like(parameter))
    return model.eval()


def stream(labelled, batch, size, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 3, (batch, *size), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) > (0.5 if labelled else -1)] = IGNORE
    valid = torch.ones(batch, *size, dtype=torch.bool)
    valid[0, 16:], valid[1, :, :3] = False, False  # a row of regions of the first image is padding
    image = torch.rand(batch, 3, *size, generator=generator)
    key = torch.tensor([[4, position] for position in range(batch)])
    return {"image": image, "mask": mask, "valid": valid, "key": key}


def batch(count=4, size=SIZE):
    return {"labeled": stream(True, 2, size, 0), "unlabeled": stream(False, count, size, 1)}


def mixed_by_hand(model, unlabeled):
    """Image, valid, probabilities of both networks: the partner's pixels inside three boxes."""
    box = box_masks(unlabeled["key"], unlabeled["image"].shape[-2:], area=(0.25, 0.5), boxes=3, seed=model.draw_seed())
    with torch.no_grad():
        q = torch.stack([network(unlabeled["image"]).softmax(1) for network in model.networks])
    found = [unlabeled["image"].clone(), unlabeled["valid"].clone(), q.clone()]
    for n, i, j in box.nonzero().tolist():
        found[0][n, :, i, j] = unlabeled["image"][n ^ 1, :, i, j]
        found[1][n, i, j] = unlabeled["valid"][n ^ 1, i, j]
        found[2][:, n, :, i, j] = q[:, n ^ 1, :, i, j]
    return found


def parameters(*modules):
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def apart(model, out):
    """L_G and L_D1 + L_D2 of an output."""
    weights = {
        "dynamic": model.dynamic_weight,
        "selection": model.selection_weight,
        "matching": model.matching_weight,
    }
    terms = out.logs
    players = terms["pce"] + sum(weight * terms[name] for name, weight in weights.items())
    judges = terms["discriminator1"] + terms["discriminator2"]
    torch.testing.assert_close(players + judges, out.loss)
    return players, judges


# The loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("diversity", ["js", "none"])
def test_the_loss_of_a_batch(monkeypatch, diversity):
    monkeypatch.setattr(F, "dropout2d", lambda planes, *_, **__: planes)
    model = build(selection_weight=0.7, dynamic_weight=0.6, matching_weight=0.3, diversity=diversity)
    given = batch()
    labeled = given["labeled"]
    image, valid, q = mixed_by_hand(model, given["unlabeled"])
    judges, cell = model.discriminators, 16
    judged = torch.stack([torch.stack([d(class_planes(one, valid, image))[0].sigmoid() for one in q]) for d in judges])
    scores, found = region_scores(judged.detach(), "mean"), region_sums(valid, cell) > 0
    model.threshold = float(scores[:, found].median())  # half of them
    weight = region_reliability(q, valid, cell, "js")
    labels = q.argmax(2)
    truth = labeled["mask"].masked_fill(~labeled["valid"], IGNORE)
    real_found = region_sums(truth != IGNORE, cell) > 0
    real = class_planes(one_hot(truth, 3), labeled["valid"], labeled["image"])
    expected = dict.fromkeys(("pce", "dynamic", "selection", "matching"), 0.0)
    for k, (network, judge) in enumerate(zip(model.networks, judges, strict=True)):
        expected["pce"] += partial_cross_entropy(network(labeled["image"]), labeled["mask"], labeled["valid"])
        z = network(image)
        error = F.cross_entropy(z, labels[1 - k], reduction="none")
        plain = error[valid].mean()
        expected["dynamic"] += plain if diversity == "none" else dynamic_region_loss(error, valid, weight, cell)
        kept = scores[1 - k] > model.threshold
        expected["selection"] += local_selection_loss(error, valid, kept, cell)
        fake = judge(class_planes(z.softmax(1), valid, image))
        expected["matching"] += feature_matching_loss(fake[1], judge(real)[1], found, real_found)
        expected[f"discriminator{k + 1}"] = discriminator_loss(fake[0], judge(real)[0], found, real_found)
    out = model.compute_loss(given)
    for name, value in expected.items():
        assert out.logs[name].item() == pytest.approx(value.item(), rel=1e-4), name
        assert value.item() > 1e-3, name
    one_to_one = expected["pce"] + expected["discriminator1"] + expected["discriminator2"]
    weighted = 0.6 * expected["dynamic"] + 0.7 * expected["selection"] + 0.3 * expected["matching"]
    assert out.loss.item() == pytest.approx((one_to_one + weighted).item(), rel=1e-4)
    kept = (scores > model.threshold) & found
    assert out.logs["kept"].item() == pytest.approx(kept.sum().item() / (2 * found.sum().item()))
    assert out.logs["score"].item() == pytest.approx(scores[:, found].mean().item(), rel=1e-4)
    if diversity == "js":
        assert out.logs["weight"].item() == pytest.approx(weight[found].mean().item(), rel=1e-4)
    assert set(out.logs) == {*expected, "kept", "score"} | ({"weight"} if diversity == "js" else set())


@pytest.mark.parametrize("diversity", ["js", "none"])
def test_where_nothing_is_kept_and_the_networks_agree_it_is_cps(monkeypatch, diversity):
    """On regions of equal size and without padding, where the mean of region means is the mean of the pixels."""
    given = batch(size=(32, 48))
    for one in given.values():
        one["valid"][:] = True
    torch.manual_seed(0)
    cps = CPS(3, network=NetworkConfig(**UNET)).eval()
    model = build(threshold=1.0, matching_weight=0.0, diversity=diversity)
    if diversity == "js":  # equal networks, so that w = 1
        model.network2.load_state_dict(model.network.state_dict())
    for one, other in zip(cps.networks, model.networks, strict=True):
        one.load_state_dict(other.state_dict())
    players, _ = apart(model, model.compute_loss(given))
    assert players.item() == pytest.approx(cps.compute_loss(given).loss.item(), rel=1e-5)


def test_nothing_is_kept_in_the_first_epoch(monkeypatch):
    model, given = build(threshold=0.0), batch()
    assert model.compute_loss(given).logs["kept"].item() == 1
    monkeypatch.setattr(RRN, "current_epoch", 0)
    logs = model.compute_loss(given).logs
    assert logs["kept"].item() == logs["selection"].item() == 0
    assert logs["dynamic"].item() > 0
    gradients = torch.autograd.grad(logs["selection"], parameters(*model.networks), allow_unused=True)
    assert all(one is None or not one.any() for one in gradients)


def test_equal_networks_agree_and_an_ignorant_discriminator_rejects():
    model, given = build(), batch()
    model.network2.load_state_dict(model.network.state_dict())
    model.discriminators[1].load_state_dict(model.discriminators[0].state_dict())
    truth = model.compute_loss(given)
    assert truth.logs["weight"].item() == 1
    image, valid, _ = mixed_pseudo_labels(model.networks, given["unlabeled"], model.draw_seed())
    logits = torch.stack([network(image) for network in model.networks])
    features = []
    for k in range(2):
        real = class_planes(one_hot(given["labeled"]["mask"], 3), given["labeled"]["valid"], given["labeled"]["image"])
        fake = model.judges[k].frozen(class_planes(logits[k].softmax(1), valid, image))[1]
        found = torch.ones(fake.shape[0], *fake.shape[2:], dtype=torch.bool)
        features.append(feature_matching_loss(fake, model.judges[k](real)[1], found, found[:2]))
    assert torch.equal(*features)
    for one in model.judges:
        for parameter in one.head.parameters():
            torch.nn.init.zeros_(parameter)
    logs = model.compute_loss(given).logs
    assert logs["score"].item() == 0.5
    assert logs["kept"].item() == logs["selection"].item() == 0
    assert logs["discriminator1"].item() == pytest.approx(0.693147, abs=1e-6)
    assert logs["discriminator2"].item() == pytest.approx(0.693147, abs=1e-6)


def test_hidden_labels_and_what_padding_holds_are_irrelevant():
    model, given = build(), batch()
    torch.manual_seed(0)
    before = model.compute_loss(given)
    del given["unlabeled"]["mask"]
    torch.manual_seed(0)
    assert torch.equal(model.compute_loss(given).loss, before.loss)
    unlabeled = given["unlabeled"]
    q, outside = torch.rand(2, 4, 3, *SIZE).softmax(2), ~unlabeled["valid"]
    verdicts = model.judge(q, unlabeled["image"], unlabeled["valid"])
    q.masked_fill_(outside[None, :, None], 9.0)
    assert torch.equal(model.judge(q, unlabeled["image"] + 7 * outside[:, None], unlabeled["valid"]), verdicts)


def test_images_below_two_by_two_regions_are_refused_with_the_way_out():
    given = batch()
    with pytest.raises(ValueError, match=r"40 x 56 pixels have less than 2 x 2 regions of 160: set region_conv to 1"):
        build(region_conv=10).compute_loss(given)
    with pytest.raises(ValueError, match=r"set data\.size to 32 or more"):
        build().compute_loss(batch(size=(24, 24)))


# Gradients ------------------------------------------------------------------------------------------------------------


def test_each_loss_has_gradients_of_its_own_players_alone():
    model, given = build(threshold=0.0).train(), batch()
    generator, discriminators = apart(model, model.compute_loss(given))
    players, judges = parameters(*model.networks), parameters(*model.discriminators)
    assert all(one is None for one in torch.autograd.grad(generator, judges, retain_graph=True, allow_unused=True))
    assert all(
        one is None for one in torch.autograd.grad(discriminators, players, retain_graph=True, allow_unused=True)
    )
    assert all(one is not None for one in torch.autograd.grad(generator, players, retain_graph=True))
    for loss, judge in zip(("discriminator1", "discriminator2"), model.discriminators, strict=True):
        torch.manual_seed(0)
        value = model.compute_loss(given).logs[loss]
        assert all(one.abs().sum() > 0 for one in torch.autograd.grad(value, parameters(judge)))


def test_feature_matching_reaches_its_own_network():
    model, given = build(), batch()
    matching = model.compute_loss(given).logs["matching"]
    for network in model.networks:
        gradients = torch.autograd.grad(matching, parameters(network), retain_graph=True)
        assert max(one.abs().max() for one in gradients) > 0


@pytest.mark.parametrize("part", [0, 1])
def test_a_step_of_one_player_leaves_the_other_bit_identical(part):
    model, given = build(threshold=0.0).train(), batch()
    optimizer = model.make_optimizer()
    assert isinstance(optimizer, ChainedOptimizer)
    before = [[p.detach().clone() for p in parameters(*one)] for one in (model.networks, model.discriminators)]
    apart(model, model.compute_loss(given))[part].backward()
    optimizer.step()
    after = [parameters(*one) for one in (model.networks, model.discriminators)]
    for number in range(2):
        pairs = list(zip(before[number], after[number], strict=True))
        if number == part:  # some weights have no gradient at first, behind a normalisation that starts at zero
            assert sum(torch.equal(*pair) for pair in pairs) < len(pairs) / 2
        else:
            assert all(torch.equal(*pair) for pair in pairs)


def test_pseudo_labels_scores_and_weights_are_constants():
    model, given = build(), batch()
    image, valid, q = mixed_pseudo_labels(model.networks, given["unlabeled"], model.draw_seed())
    assert not q.requires_grad
    judged = model.judge(q.requires_grad_(), image, valid)
    assert not judged.requires_grad
    assert not region_reliability(q, valid, 16, "js").requires_grad


def test_bfloat16_autocast_is_close_to_float32_and_has_every_gradient():
    """The networks and discriminators run without gradient first, under the same autocast."""
    model, given = build(), batch()
    model.threshold = 0.0
    torch.manual_seed(0)
    exact = model.compute_loss(given)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.compute_loss(given)
    assert rounded.loss.dtype == torch.float32
    for name, value in exact.logs.items():
        assert rounded.logs[name].item() == pytest.approx(value.item(), rel=0.1, abs=5e-3), name
    wanted = torch.autograd.grad(exact.loss, parameters(model))
    found = torch.autograd.grad(rounded.loss, parameters(model))
    assert all(torch.isfinite(one).all() for one in found)
    flat = [torch.cat([one.flatten() for one in gradients]) for gradients in (wanted, found)]
    assert F.cosine_similarity(*flat, dim=0) > 0.98


# Optimizers, networks -------------------------------------------------------------------------------------------------


def test_two_networks_start_apart_and_are_evaluated_apart_and_together():
    model, image = build(), torch.rand(2, 3, *SIZE)
    first, second, ensemble = model.eval_networks().values()
    assert list(model.eval_networks()) == ["branch1", "branch2", "ensemble"]
    assert (first, second) == (model.network, model.network2)
    heads = [one.model.segmentation_head[0].weight for one in (first, second)]
    assert not torch.equal(*heads)
    torch.testing.assert_close(ensemble(image), (first(image) + second(image)) / 2)
    optimized = [p for group in model.make_optimizer().param_groups for p in group["params"]]
    assert {*map(id, optimized)} == {*map(id, parameters(model))}
    assert len(optimized) == len({*map(id, optimized)})


def test_the_report_of_an_image_is_the_same_in_bytes(monkeypatch):
    monkeypatch.setattr(SegmentationModule, "validation_step", lambda *_: None)
    model, rows = build(), []
    image = torch.randint(256, (1, 3, *SIZE), dtype=torch.uint8)
    for one in (image, image.float() / 255):
        model.report = RegionReport(0.5)
        model.validation_step({"image": one, "mask": torch.ones(1, *SIZE, dtype=torch.long)}, 0)
        rows.append(torch.cat(model.report.rows))
    torch.testing.assert_close(*rows)


def test_clipping_of_the_networks_does_not_depend_on_the_discriminators(monkeypatch):
    model = build()
    optimizer, clipped = model.make_optimizer(), []
    monkeypatch.setattr(model, "clip_gradients", lambda part, value, algorithm: clipped.append((part, value)))
    model.configure_gradient_clipping(optimizer, 0.5, "norm")
    assert clipped == [(part, 0.5) for part in optimizer.optimizers]
    assert clipped[1][0].param_groups[0]["betas"] == (0.9, 0.99)


@pytest.mark.slow
def test_a_run_with_accumulation_clipping_and_bfloat16(tmp_path):
    half = ["--trainer.accumulate_grad_batches", "2", "--trainer.gradient_clip_val", "0.5"]
    fit_tiny(tmp_path / "run", "--model", "RRN", *half, "--trainer.precision", "bf16-mixed")
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    networks, discriminators = checkpoint["optimizer_states"][0]["optimizers"]
    assert [group["lr"] for group in discriminators["param_groups"]] == [1e-4]
    assert all(group["lr"] < group["initial_lr"] for group in networks["param_groups"])
    assert all(int(state["step"]) == 8 for part in (networks, discriminators) for state in part["state"].values())
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    epochs = {row["epoch"]: float(row["train/selection"]) for row in rows if row["train/selection"]}
    assert epochs["0"] == 0
    last = json.loads((tmp_path / "run" / "summary.json").read_text())["last"]
    miou = {"val/miou", "val/miou_branch2", "val/miou_ensemble"}
    regions = {"precision_all", "precision_kept", "auroc", "auroc_own", "auroc_cross", "weight_correlation"}
    assert miou | {f"val/{name}" for name in regions} <= last.keys()
    assert 0 <= last["val/precision_all"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection_weight": -1.0}, "weights and discriminator_lr must be >= 0"),
        ({"discriminator_lr": -1.0}, "discriminator_lr must be >= 0"),
        ({"encoder_lr_scale": -1.0}, "encoder_lr_scale must be >= 0"),
        ({"warmup": 500.0}, "warmup a fraction of the run"),
        ({"region_conv": 0}, "region_conv >= 1"),
        ({"threshold": 1.1}, "threshold is a score"),
        ({"selection_weight": 0.0, "matching_weight": 0.0, "diversity": "none"}, "use method CPS"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


# Two processes --------------------------------------------------------------------------------------------------------

GRADIENTS = """
import torch
from torch.nn import functional as F

from common.model.networks import NetworkConfig
from methods.rrn.module import RRN


def gradients(model, batch):
    F.dropout2d = lambda planes, *_, **__: planes  # drawn per process
    RRN.current_epoch = 1
    model.compute_loss(batch).loss.backward()
    return [p.grad for p in model.parameters() if p.requires_grad]
"""
TWO_RANKS = """
network, state, batch = torch.load(f"{folder}/given.pt")
model = RRN(3, network=NetworkConfig(**network), region_conv=1, threshold=0.47).double().eval()
model.load_state_dict(state)
half = {}
for name, stream in batch.items():
    count = len(stream["image"]) // 2
    half[name] = {key: value[rank * count : (rank + 1) * count] for key, value in stream.items()}
found = gradients(model, half)
for one in found:
    dist.all_reduce(one)
    one /= 2
if rank == 0:
    torch.save(found, f"{folder}/found.pt")
"""


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path, monkeypatch):
    """Regions, valid pixels and labels fall unevenly on the ranks."""
    monkeypatch.setattr(F, "dropout2d", F.dropout2d)
    model = build(PLAIN, threshold=0.47).double()
    given = {"labeled": stream(True, 4, SIZE, 0), "unlabeled": stream(False, 4, SIZE, 1)}
    for one in given.values():
        one["image"] = one["image"].double()
    torch.save((PLAIN, model.state_dict(), given), tmp_path / "given.pt")
    scope = {}
    exec(GRADIENTS, scope)
    expected = scope["gradients"](model, given)
    two_processes(GRADIENTS + TWO_RANKS, tmp_path)
    found = torch.load(tmp_path / "found.pt")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    for name, one, other in itertools.zip_longest(names, expected, found):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-10, msg=name)
        assert one.abs().max() > 0 or "bias" in name, name
