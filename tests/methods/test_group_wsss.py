"""Group-WSSS: messages, dropout, loss and rules by the properties T1 ... T12 of its specification, and runs of it. T11
is in tests/datamodules/test_samplers.py."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import methods
import weakseg as package
from common.model.cam import image_logits
from common.model.networks import NetworkConfig
from common.ops.batch import IGNORE
from common.ops.mixing import key_uniform
from common.training.loggers import CSVLogger
from conftest import fit_tiny, two_processes, weakseg
from methods.group_wsss.graph import Graph, graph_dropout, message
from methods.group_wsss.labels import OnlineMaps, labels_by_rules

NETWORK = NetworkConfig("Unet", "tu-test_resnet", freeze_bn=True)
TAGS = [[0, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 1, 0]]


def batch(names="abcdef", tags=TAGS, side=64):
    g, count = torch.Generator().manual_seed(0), len(names)
    return {"labeled": {
        "image": torch.rand(count, 3, side, side, generator=g),
        "valid": torch.ones(count, side, side, dtype=torch.bool),
        "tags": torch.tensor(tags[:count]).bool(),
        "key": torch.stack([torch.zeros(count).long(), torch.arange(count)], 1),
        "name": [*names],
    }}  # fmt: skip


def build(**options):
    torch.manual_seed(0)
    model = methods.GroupWSSS(4, network=NETWORK, scales=[1.0], **options)
    weight = model.network.model.segmentation_head[0].weight
    weight.data = 10 * weight.data.abs()  # untrained maps may be nowhere positive, and all alike
    return model


def inside(*shape):
    return torch.ones(shape[0], 1, *shape[2:], dtype=torch.bool)


# Messages ----------------------------------------------------------------------------------------------------------


def states(seed=0, size=(3, 4), classes=5, count=2):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, classes, *size, generator=g).double()


def test_a_message_is_a_mix_of_the_senders_positions_at_the_receivers_size():
    q, k, x = states(0, (3, 4)), states(1, (2, 5)), states(2, (2, 5))
    shown = inside(2, 1, 2, 5)
    shown[1, :, 0] = False
    found = message(q, k, x, shown)
    assert found.shape == (2, 5, 3, 4)
    for b in range(2):
        weights = q[b].flatten(1).T @ k[b].flatten(1)
        weights[:, ~shown[b].flatten()] = -math.inf
        weights = weights.softmax(1)
        np.testing.assert_allclose(weights.sum(1), 1)
        np.testing.assert_allclose(found[b].flatten(1), (weights @ x[b].flatten(1).T).T)
    assert torch.isfinite(message(q, k, x, torch.zeros_like(shown))).all()


def test_without_projections_each_position_gets_the_senders_mean():
    x = states(2)
    found = message(torch.zeros(2, 3, 6, 2).double(), torch.zeros(2, 3, 3, 4).double(), x, inside(2, 1, 3, 4))
    torch.testing.assert_close(found, x.mean((2, 3), keepdim=True).expand(-1, -1, 6, 2))


def test_the_order_of_positions_matters_at_the_receiver_alone():
    q, k, x = states(0), states(1), states(2)
    order = torch.randperm(12)
    mixed = [one.flatten(2)[..., order].unflatten(2, (3, 4)) for one in (q, k, x)]
    shown = inside(2, 1, 3, 4)
    torch.testing.assert_close(message(q, mixed[1], mixed[2], shown), message(q, k, x, shown))
    wanted = message(q, k, x, shown).flatten(2)[..., order].unflatten(2, (3, 4))
    torch.testing.assert_close(message(mixed[0], k, x, shown), wanted)


def test_graph_dropout_has_its_hand_values_and_its_gradients():
    def row(*values):
        return torch.tensor(values).view(1, 1, 1, -1)

    shown, drop, weigh = inside(1, 1, 1, 4), torch.tensor([True]), torch.tensor([False])
    x = row(1, 0.5, 0, -1)
    assert graph_dropout(x, shown, drop).flatten().tolist() == pytest.approx([0.5, 0.5, 0, -1])
    wanted = [0.865529, 0.405615, 0, -0.634471]
    assert graph_dropout(x, shown, weigh).flatten().tolist() == pytest.approx(wanted, abs=1e-6)
    negative = row(-1, -0.5, -0.2, -2)
    torch.testing.assert_close(graph_dropout(negative, shown, drop), negative)
    # Padding is never the largest.
    assert graph_dropout(row(1, 0.5, 0, 9), torch.tensor([1, 1, 1, 0]).bool().view(1, 1, 1, 4), drop)[..., 0] == 0.5

    def slopes(coin):
        one = x.clone().requires_grad_()
        graph_dropout(one, shown, coin).sum().backward()
        return one.grad.flatten()

    assert slopes(drop).tolist() == [0.5, 1, 1, 1]  # of (w + 1) / 2 alone
    s = x.flatten().sigmoid()
    torch.testing.assert_close(slopes(weigh), (s + x.flatten() * s * (1 - s) + 1) / 2)


def graph(**options):
    torch.manual_seed(3)
    found = Graph(**{"classes": 5, "group": 3, "rounds": 2, "aggregate": "concat", **options}).double()
    for parameter in found.parameters():  # wide enough for all terms to be seen
        torch.nn.init.normal_(parameter, std=0.5)
    return found


def run(found, nodes, member=None, dropped=None):
    count = len(nodes[0])
    member = torch.ones(count, len(nodes), dtype=torch.bool) if member is None else member
    return found(nodes, [inside(*one.shape) for one in nodes], member, dropped)


def slow_round(found, nodes):
    """One round of one group, written out: nodes (C, h, w) without padding."""
    conv = torch.nn.functional.conv2d

    def layer(name, x, padding=0):
        module = getattr(found, name)
        return conv(x[None], module.weight, module.bias, padding=padding)[0]

    new = []
    for i, x in enumerate(nodes):
        messages = []
        for j, y in enumerate(nodes):
            if i != j:
                e = layer("receive", x).flatten(1).T @ layer("send", y).flatten(1)
                m = (y.flatten(1) @ e.softmax(1).T).unflatten(1, x.shape[1:])
                messages.append(m * layer("gate", m).sigmoid())
        told = torch.cat(messages) if found.aggregate == "concat" else sum(messages) / len(messages)
        told = layer("merge", told, padding=1)
        u, r = (layer(name, torch.cat([told, x])).sigmoid() for name in ("update", "reset"))
        new.append((1 - u) * x + u * layer("candidate", torch.cat([told, r * x])).tanh())
    return new


@pytest.mark.parametrize("aggregate", ["concat", "mean"])
def test_the_rounds_equal_the_formulas_and_groups_are_independent(aggregate):
    found, nodes = graph(aggregate=aggregate), [states(k, count=3) for k in range(3)]
    after = run(found, nodes)
    for b in range(3):
        slow = slow_round(found, slow_round(found, [one[b] for one in nodes]))
        for one, two in zip(after, slow, strict=True):
            torch.testing.assert_close(one[b], two)
        for one, two in zip(after, run(found, [each[b : b + 1] for each in nodes]), strict=True):
            torch.testing.assert_close(one[b : b + 1], two)


def test_only_the_mean_of_messages_is_free_of_the_partners_order():
    nodes = [states(k) for k in range(3)]
    for aggregate in ("concat", "mean"):
        found = graph(aggregate=aggregate, rounds=1)
        one, two = run(found, nodes)[0], run(found, [nodes[0], nodes[2], nodes[1]])[0]
        assert torch.allclose(one, two) == (aggregate == "mean")


def test_the_update_gate_closed_keeps_the_state_and_open_replaces_it():
    nodes = [states(k) for k in range(3)]
    found = graph()
    for name in ("update", "candidate"):
        torch.nn.init.zeros_(getattr(found, name).weight)
        torch.nn.init.zeros_(getattr(found, name).bias)
    torch.nn.init.constant_(found.update.bias, -1e9)
    assert all(torch.equal(a, b) for a, b in zip(run(found, nodes), nodes, strict=True))
    torch.nn.init.constant_(found.update.bias, 1e9)
    assert all((a == 0).all() for a in run(found, nodes))


def test_who_takes_no_part_and_padding_tell_nothing():
    found, nodes = graph(aggregate="mean"), [states(k) for k in range(3)]
    member = torch.tensor([[True, True, False], [True, True, True]])
    one = run(found, nodes, member)
    two = run(found, [nodes[0], nodes[1], 9 * nodes[2]], member)
    torch.testing.assert_close(one[0][0], two[0][0])
    assert not torch.allclose(one[0][1], two[0][1])
    pair = run(found, [each[:1] for each in nodes[:2]])  # a third that takes no part is as none, in the mean
    torch.testing.assert_close(one[0][:1], pair[0])
    pads = [torch.nn.functional.pad(each, (0, 2), value=9.0) for each in nodes]
    shown = [torch.nn.functional.pad(inside(*each.shape), (0, 2)) for each in nodes]
    wide = found(pads, shown, torch.ones(2, 3, dtype=torch.bool), None)
    for a, b in zip(wide, run(found, nodes), strict=True):
        torch.testing.assert_close(a[..., :4], b)


# The loss ----------------------------------------------------------------------------------------------------------


def test_the_loss_at_zero_logits(monkeypatch):
    model = build()
    monkeypatch.setattr(model.network, "activations", lambda image: torch.zeros(len(image), 3, 4, 4))
    assert model.compute_loss(batch("abc")).loss.item() == pytest.approx(0.485203, abs=1e-6)
    # One image three times has no partner: the loss of the image by itself alone.
    assert model.compute_loss(batch("aaa")).loss.item() == pytest.approx(0.4 * math.log(2) / 2)
    one = build(group=1)
    monkeypatch.setattr(one.network, "activations", lambda image: torch.zeros(len(image), 3, 4, 4))
    assert one.compute_loss(batch("a")).loss.item() == pytest.approx(0.4 * math.log(2) / 2)
    assert not any("graph" in name for name, _ in one.named_parameters())


def test_groups_are_of_images_that_share_a_tag_and_of_no_repetitions():
    model = build()
    real, member = model.members(batch("abcdef")["labeled"])
    assert real.tolist() == [True] * 6
    assert member.tolist() == [[True, True, True], [True, True, True]]
    real, member = model.members(batch("abadde")["labeled"])
    assert real.tolist() == [True, True, False, True, False, True]
    assert member.tolist() == [[True, True, False], [True, False, True]]
    strange = [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]]
    assert model.members(batch(tags=strange)["labeled"])[1].tolist() == [[True, False, False]] * 2
    with pytest.raises(ValueError, match="5 images are no groups of 3"):
        model.members(batch("abcde")["labeled"])


@pytest.mark.parametrize("aggregate", ["concat", "mean"])
def test_images_that_share_no_tag_or_show_nothing_give_every_parameter_a_gradient_and_no_nan(aggregate):
    model = build(aggregate=aggregate).train()
    one = batch(tags=[[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    one["labeled"]["valid"][1, :, 16:] = False
    out = model.compute_loss(one)
    assert out.logs["together"] == 0
    with torch.no_grad():
        image, valid = one["labeled"]["image"], one["labeled"]["valid"]
        x = model.classifier.activations(image)
    torch.testing.assert_close(model.latest[0], x)
    torch.testing.assert_close(model.latest[1], image_logits(x, model.cell_cover(image, valid)))
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    assert all((p.grad == 0).all() for name, p in model.named_parameters() if "graph" in name)
    model.zero_grad()
    model.compute_loss(batch()).loss.backward()
    assert all(p.grad.any() for name, p in model.named_parameters() if "graph" in name and "receive.bias" not in name)


def test_each_image_is_scored_by_its_own_tags_and_dropout_is_of_training_alone():
    model = build()
    one = batch("abc")
    model.eval()
    with torch.no_grad():
        first, again = (model.compute_loss(one).loss for _ in range(2))
        one["labeled"]["tags"][1, 2] = True
        other = model.compute_loss(one).loss
        one["labeled"]["tags"][1, 2] = False
        model.train()
        trained = model.compute_loss(one).loss
    assert first == again
    assert first != other
    assert first != trained


def slow_dropout(x, coin):
    a = x.mean(0, keepdim=True)
    w = (a < 0.7 * a.max()).to(x) if coin else a.sigmoid()
    return (x * w + x) / 2


def exact(**options):
    """A model in float64 whose graph changes much."""
    model = build(**options).double()
    for name, parameter in model.graph.named_parameters():
        torch.manual_seed(len(name))
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def seen(labeled):
    """A batch's images in float64."""
    return {"labeled": {**labeled, "image": labeled["image"].double()}}


def test_a_step_has_the_loss_of_the_formulas_with_a_coin_of_each_image_in_each_round():
    model, labeled = exact().train(), batch()["labeled"]
    labeled["valid"][1, :, 40:] = False  # the third of four columns of cells shows half
    labeled["valid"][5, :12] = False
    labeled["key"][:, 0] = 7  # an epoch in which the coins differ
    out = model.compute_loss(seen(labeled))
    with torch.no_grad():
        x = model.classifier.activations(labeled["image"].double())
    coins = key_uniform(labeled["key"], 3, model.draw_seed()) < 0.8
    assert {*coins[:, :2].flatten().tolist()} == {False, True}  # both before the last round
    assert {*coins[:, 2].tolist()} == {False, True}
    maps, cover = [*x], [labeled["valid"][k].double().view(4, 16, 4, 16).mean((1, 3)) for k in range(6)]
    maps[1], cover[1] = maps[1][:, :, :3], cover[1][:, :3]

    def image_loss(one, k):
        score = ((one * cover[k]).sum((1, 2)) / cover[k].sum()).sigmoid()
        return -torch.where(labeled["tags"][k, 1:], score.log(), (1 - score).log()).mean()

    wanted = 0.0
    for group in ([0, 1, 2], [3, 4, 5]):
        nodes = [maps[k] for k in group]
        for turn in range(3):
            told = slow_round(model.graph, nodes)
            nodes = [slow_dropout(one, coins[k, turn]) for one, k in zip(told, group, strict=True)]
        for one, k in zip(nodes, group, strict=True):
            wanted += (0.4 * image_loss(maps[k], k) + image_loss(one, k)) / 2 / 6
            at = (k, ..., slice(one.shape[2]))
            torch.testing.assert_close(model.latest[0][at], ((maps[k] + one) / 2).detach())
    torch.testing.assert_close(out.loss, wanted, rtol=1e-9, atol=0)


def test_new_layers_of_the_graph_begin_as_in_the_released_code():
    weights = torch.cat([p.flatten() for name, p in build().graph.named_parameters() if name.endswith("weight")])
    assert weights.std().item() == pytest.approx(0.01, rel=0.2)
    assert not any(p.any() for name, p in build().graph.named_parameters() if name.endswith("bias"))


def test_half_precision_is_close_to_single():
    model = build().eval()
    with torch.no_grad():
        single = model.compute_loss(batch()).loss
        with torch.autocast("cpu", torch.bfloat16):
            half = model.compute_loss(batch()).loss
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(single.item(), rel=0.05)


# Maps --------------------------------------------------------------------------------------------------------------


def test_an_image_by_itself_gets_partners_of_its_class_from_memory():
    model = build(normalisation="max").train()
    tags, image = torch.tensor([0, 1, 0, 1]).bool(), torch.rand(3, 48, 64)
    assert model.partners(tags[1:]) == []
    before = model.eval().cam_of(image, tags, (48, 64))
    model.train().compute_loss(batch())
    assert model.memory_inside.flatten(2).any(2).sum(1).tolist() == [2, 2, 2]
    assert len(model.partners(tags[1:])) == 2
    after = model.eval().cam_of(image, tags, (48, 64))
    assert not torch.equal(before, after)
    assert torch.equal(after, model.cam_of(image, tags, (48, 64)))
    assert (after[1] == 0).all()
    # The last images of the first class were b, then a before it.
    with torch.no_grad():
        x = model.classifier.activations(batch()["labeled"]["image"])
    torch.testing.assert_close(model.memory[0, :, :, ::4, ::4], x[[1, 0]], atol=1e-5, rtol=1e-4)
    model.memory_inside[:, 1] = False  # too few: one comes twice
    a, b = model.partners(tags[1:])
    assert not torch.equal(a[0], b[0])
    a, b = model.partners(torch.tensor([True, False, False]))
    assert torch.equal(a[0], b[0])


def test_a_map_is_the_mean_of_before_and_after_the_rounds_and_nothing_is_dropped():
    model, labeled, tags = exact(), batch()["labeled"], torch.tensor([0, 0, 1, 1]).bool()
    with torch.no_grad():
        model.train().compute_loss(seen(labeled))
        image = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(1)).double()
        x = model.eval().classifier.activations(image)
        nodes = [x[0], *(state[0].double() for state, _ in model.partners(tags[1:]))]
        assert [one.shape[1:] for one in nodes] == [(3, 4), (16, 16), (16, 16)]
        for _ in range(3):
            nodes = slow_round(model.graph, nodes)
        assert (nodes[0] - x[0]).abs().max() > 0.1
        torch.testing.assert_close(model.maps(image, tags)[0], (x[0] + nodes[0]) / 2)


def test_pseudo_labels_follow_the_rules_on_maps_in_steps_of_1_255_without_their_least_value(monkeypatch):
    model, tags = build(flip=False).eval(), torch.tensor([0, 1, 0, 1]).bool()
    raw = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(3)) * torch.tensor([2, 1, 5])[:, None, None]
    raw = raw + torch.tensor([1, 0, 0.5])[:, None, None]
    monkeypatch.setattr(model, "maps", lambda image, tags: raw)
    image = torch.zeros(3, 32, 32)
    x = raw[0].double() / raw[0].amax((1, 2), keepdim=True)
    x = (255 * x).round() / 255
    np.testing.assert_allclose(model.cam_of(image, tags, (24, 40))[[0, 2]], x[[0, 2]], atol=1e-6)
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    x = (x - low - 1e-5).relu() / (high - low + 1e-5)
    x[1] = 0  # has no tag
    for threshold in (0.3, 0.85):
        wanted = torch.zeros(24, 40, dtype=torch.int64)
        for at in itertools.product(range(24), range(40)):
            one = x[(slice(None), *at)].tolist()
            if max(one) > threshold:
                wanted[at] = 1 + one.index(max(one))
            if sum(each > 0.9 for each in one) > 1 or (max(one) > 0.8 and wanted[at] == 0):
                wanted[at] = IGNORE
        assert {*wanted.unique().tolist()} == {0, 1, 3, IGNORE}
        assert torch.equal(model.pseudo_labels(image, tags, (24, 40), "none", threshold), wanted)


RULES = [((0, 0.95), IGNORE), ((40, 0.1), IGNORE), ((10, 0.5), 0), ((10, 0.85), IGNORE), ((200, 0.5), 1)]


def test_labels_by_saliency_follow_the_rules():
    saliency = torch.tensor([[float(s) for (s, _), _ in RULES]])
    cam = torch.tensor([[c for (_, c), _ in RULES]])[None]
    assert labels_by_rules(cam, 0.3, saliency).tolist() == [[wanted for _, wanted in RULES]]
    assert (labels_by_rules(torch.zeros(1, 20, 20), 0.3) == IGNORE).all()
    few = torch.zeros(1, 20, 20)
    few[0, 0, :3] = 1
    assert (labels_by_rules(few, 0.3) == IGNORE).all()
    few[0, 0, :4] = 1
    assert labels_by_rules(few, 0.3).unique().tolist() == [0, 1]


def test_each_constant_of_the_rules_has_its_side():
    def label(cam, background=0.3, saliency=None):
        cam = torch.tensor(cam).view(-1, 1, 1)
        return labels_by_rules(
            cam, background, None if saliency is None else torch.full((1, 1), float(saliency))
        ).item()

    assert label([0.91, 0.92]) == IGNORE  # two above 0.9
    assert [label([0.89, 0.92]), label([0.92, 0.89])] == [2, 1]
    assert label([0.9, 0.92]) == 2  # above it, not at it
    rest = [0.0] * 50
    for cam, wanted in ((0.79, 0), (0.81, IGNORE)):  # an object above 0.8 that the background beats
        maps = torch.tensor([1.0, cam, *rest]).view(1, 1, -1)
        assert labels_by_rules(maps, 0.85)[0, 1] == wanted
    for shade, wanted in ((31, 0), (32, IGNORE)):
        maps, saliency = torch.tensor([1.0, 0.1, *rest]).view(1, 1, -1), torch.zeros(1, 52)
        saliency[0, :2] = torch.tensor([200, shade])
        assert labels_by_rules(maps, 0.3, saliency)[0, 1] == wanted
    for width, wanted in ((100, 0), (101, IGNORE)):  # one pixel shows an object: 1 %, and less
        maps = torch.zeros(1, 1, width)
        maps[..., 0] = 1
        assert labels_by_rules(maps, 0.3)[0, 1] == wanted


def test_labels_without_saliency_are_those_above_a_constant():
    cam = torch.tensor([[[0.2, 0.4, 0.95, 0.95]], [[0.1, 0.5, 0.5, 0.92]]])
    assert labels_by_rules(cam, 0.3).tolist() == [[0, 2, 1, IGNORE]]


def test_online_maps_are_a_maximum_by_image_and_a_repeated_step_changes_nothing(tmp_path):
    kept = OnlineMaps(tmp_path / "maps")
    g = np.random.default_rng(0)
    one, two = g.integers(1, 255, (2, 2, 4, 5), np.uint8)
    assert kept.get("a/b", 2) is None
    kept.add("a/b", one, np.array([True, False]), False)
    np.testing.assert_array_equal(kept.get("a/b", 2), [one[0], 0 * one[1]])
    kept.add("a/b", two, np.array([False, False]), True)  # only what is missing
    np.testing.assert_array_equal(kept.get("a/b", 2), [one[0], two[1]])
    for _ in range(2):
        kept.add("a/b", one, np.array([True, True]), False)
        np.testing.assert_array_equal(kept.get("a/b", 2), [one[0], np.maximum(one[1], two[1])])
    Image.new("L", (4, 7)).save(tmp_path / "maps" / "c.png")
    with pytest.raises(ValueError, match=r"c.png does not hold 2 maps of 'c'"):
        kept.get("c", 2)


def test_maps_of_probable_classes_are_kept_from_the_second_epoch_on_and_others_in_the_last_one(tmp_path, monkeypatch):
    model, labeled = build(maps="online"), batch("abc")["labeled"]
    maps = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    logits = torch.tensor([0.11, 0.5, 0.09]).logit().expand(3, -1)  # of the tagged classes one is above 0.1
    large = F.interpolate(maps[:1], (64, 64), mode="bilinear", align_corners=False)[0, [0, 2]]
    wanted = (255 * large / large.amax((1, 2), keepdim=True)).round()

    def kept(epoch, step):
        """After a step of a run of three epochs of four steps."""
        trainer = SimpleNamespace(
            num_training_batches=4, accumulate_grad_batches=1, estimated_stepping_batches=12, global_step=step,
            loggers=[CSVLogger(tmp_path)],
        )  # fmt: skip
        monkeypatch.setattr(methods.GroupWSSS, "trainer", trainer)
        monkeypatch.setattr(methods.GroupWSSS, "current_epoch", epoch)
        model.keep_online(labeled, maps, logits)
        return OnlineMaps(tmp_path / "online_maps").get("a", 2)

    assert kept(0, 4) is None
    one = kept(1, 5)
    np.testing.assert_allclose(one[0], wanted[0], atol=1)  # a half is rounded up or down
    assert not one[1].any()
    assert not kept(1, 8)[1].any()
    np.testing.assert_allclose(kept(2, 9), wanted, atol=1)
    assert len([*(tmp_path / "online_maps").glob("*.png")]) == 1  # of the anchor alone


def test_without_graph_dropout_training_passes_the_messages_of_evaluation():
    def loss(drop_rate, training):
        return build(drop_rate=drop_rate).train(training).compute_loss(batch()).loss

    torch.testing.assert_close(loss(None, True), loss(0.8, False))
    assert loss(0.0, True) != loss(0.8, False)  # then maps are weighed in each round


@pytest.mark.parametrize("options", [{"group": 0}, {"rounds": 0}, {"drop_rate": 1.5}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="group and rounds must be at least 1"):
        build(**options)


RANKS = """
import methods
from common.model.networks import NetworkConfig
torch.manual_seed(0)
network = NetworkConfig("Unet", "tu-test_resnet", freeze_bn=True)
model = methods.GroupWSSS(4, network=network).train()
streams, state = torch.load(f"{folder}/scene.pt")
model.load_state_dict(state)
labeled = {name: value[3 * rank : 3 * rank + 3] for name, value in streams["labeled"].items()}
loss = model.compute_loss({"labeled": labeled}).loss
loss.backward()
for p in model.parameters():
    if p.grad is not None:
        dist.all_reduce(p.grad)
        p.grad /= 2
dist.all_reduce(loss)
torch.save([loss.detach() / 2, [p.grad for p in model.parameters()], model.memory], f"{folder}/rank{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_have_the_loss_the_gradients_and_the_memory_of_one(tmp_path):
    model, streams = build().train(), batch("abcdde")  # the second group is smaller
    torch.save([streams, model.state_dict()], tmp_path / "scene.pt")
    loss = model.compute_loss(streams).loss
    loss.backward()
    two_processes(RANKS, tmp_path)
    for rank in range(2):
        found, gradients, memory = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(found, loss.detach())
        torch.testing.assert_close(memory, model.memory, atol=1e-5, rtol=1e-4)
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            if p.grad is not None:
                torch.testing.assert_close(gradient, p.grad, atol=1e-6, rtol=1e-4)


# Through the command -----------------------------------------------------------------------------------------------

SHORT = ["--model", "GroupWSSS", "--trainer.max_steps", "7", "--checkpoint_every", "1"]
ONLINE = ["--model.init_args.maps", "online", "--data.init_args.scale", "[1, 1]", "--data.init_args.flip", "false"]


def pictures(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "online_maps").glob("*.png"))}


def test_maps_kept_while_training_are_resumed_exactly_and_become_labels(tmp_path):
    from common.training.checkpoints import LastCheckpoint

    fit_tiny(tmp_path / "whole", *SHORT, *ONLINE)
    maps = pictures(tmp_path / "whole")
    assert len(maps) == json.loads((tmp_path / "whole" / "summary.json").read_text())["annotation"]["groups"]["anchors"]
    with pytest.MonkeyPatch.context() as patch:
        save = LastCheckpoint._save

        def save_and_die(self, trainer):
            if trainer.global_step == 6:  # two steps after the last one of which there is a checkpoint
                raise ValueError("the power is gone")
            if trainer.global_step < 5:
                save(self, trainer)

        patch.setattr(LastCheckpoint, "_save", save_and_die)
        fit_tiny(tmp_path / "cut", *SHORT, *ONLINE, expect=1)
    fit_tiny(tmp_path / "cut", *SHORT, *ONLINE, "--resume", "auto")
    assert pictures(tmp_path / "cut") == maps
    weakseg("pseudo", "--run", tmp_path / "whole", "--output", tmp_path / "labels", "--threshold", "0.3")
    run = package.load_run(tmp_path / "whole")
    name = next(iter(maps)).removesuffix(".png")
    kept = np.asarray(Image.open(tmp_path / "whole" / "online_maps" / f"{name}.png"))
    tags = run.data.tags(name, run.data.mask(name))
    kept = kept.reshape(int(tags.sum()), -1, kept.shape[1])
    assert kept.shape[1:] == (32, 32)
    assert kept.max() == 255
    run.model.run_dir = tmp_path / "whole"
    cam = run.model.cam_of(torch.zeros(3, 32, 32), torch.tensor(tags), (32, 32), name)
    np.testing.assert_allclose(cam[torch.tensor(tags[1:])], kept / 255, atol=1e-6)
    run.model.run_dir = tmp_path
    with pytest.raises(ValueError, match="are in no folder online_maps"):
        run.model.cam_of(torch.zeros(3, 32, 32), torch.tensor(tags), (32, 32), name)
    about = json.loads((tmp_path / "labels" / "pseudo.json").read_text())
    assert (about["method"], about["images"]) == ("GroupWSSS", 12)
    assert about["unlabeled"] < 1


def test_what_the_data_must_give_is_said(tmp_path):
    words = ["--model", "GroupWSSS", "--trainer.max_steps", "1"]
    said = fit_tiny(tmp_path / "one", *words, *ONLINE[:2], expect=1)
    assert "set data.scale to [1, 1], data.flip to false" in said
    said = fit_tiny(tmp_path / "two", *words, "--data.init_args.group", "2", expect=1)
    assert "GroupWSSS learns from groups of 3 images: set data.group to 3" in said
    fit_tiny(tmp_path / "three", *words)
    assert "group: 3" in (tmp_path / "three" / "config.yaml").read_text()
    weakseg("pseudo", "--run", tmp_path / "three", "--output", tmp_path / "labels")
