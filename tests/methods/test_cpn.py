"""CPN: its pair, its losses and its correlations by the properties T1 ... T13 of its specification, and runs of it."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import methods
from common.model.networks import NetworkConfig
from common.ops.batch import check_streams
from common.ops.mixing import key_uniform
from conftest import ROOT, fit_tiny, two_processes, weakseg
from methods.cpn.correlation import Correlation, guide, pixel_correlation, region_correlation
from methods.cpn.losses import (
    complementary,
    gaps,
    hidden_cells,
    hidden_pixels,
    hidden_segments,
    keep_max,
    looked_at,
    minimum_pool,
    normalised,
    region_loss,
    resized_mean,
    top_mean,
    triplet_loss,
    with_background,
)

NETWORK = NetworkConfig("Unet", "tu-test_resnet")
ALL = torch.ones(2, 8, 10, dtype=torch.bool)


def batch(count=3, side=64, seed=0, segments=40):
    g = torch.Generator().manual_seed(seed)
    return {"labeled": {
        "image": torch.rand(count, 3, side, side, generator=g),
        "valid": torch.ones(count, side, side, dtype=torch.bool),
        "tags": torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()[:count],
        "key": torch.stack([torch.zeros(count).long(), torch.arange(count)], 1),
        "superpixels": torch.randint(1, segments + 1, (count, side // 8, side // 8), generator=g)
        .repeat_interleave(8, 1).repeat_interleave(8, 2),
    }}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return methods.CPN(4, network=NETWORK, scales=[1.0])


# The pair ----------------------------------------------------------------------------------------------------------


def test_parts_add_up_to_the_image_and_the_share_is_that_of_visible_pixels():
    one = batch()["labeled"]
    blank = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1)
    valid = one["valid"].clone()
    valid[0, :, 40:] = False
    hidden = hidden_pixels(one["superpixels"].masked_fill(~valid, 0), one["key"])
    first, second, share = complementary(one["image"], hidden, valid, blank)
    torch.testing.assert_close((first - blank) + (second - blank), one["image"] - blank)
    assert not ((first != blank).any(1) & (second != blank).any(1)).any()
    for k in range(3):
        shown = (first[k] == one["image"][k]).all(0) & valid[k]
        assert share[k].item() == pytest.approx((shown.sum() / valid[k].sum()).item())
    assert not hidden[0, :, 40:].any()


def test_the_share_of_hidden_segments_is_that_of_the_released_code():
    keys = torch.stack([torch.zeros(2000).long(), torch.arange(2000)], 1)
    shares = hidden_segments(torch.full((2000, 1, 1), 300), keys)[:, 1:].float().mean(1)
    assert shares.mean().item() == pytest.approx(0.3935, abs=1.5e-3)
    assert shares.std().item() == pytest.approx(0.0135, abs=1.5e-3)
    # Against the draw as it is written in the specification.
    drawn = (key_uniform(keys[:20], 150) * 301).long()
    for k in range(20):
        assert shares[k].item() == pytest.approx(len({*drawn[k].tolist()} - {0}) / 300)


def test_a_hidden_part_depends_on_the_samples_key_alone():
    one = batch()["labeled"]
    both = hidden_pixels(one["superpixels"], one["key"], 5)
    for k in range(3):  # also where another image of the batch has more segments
        assert torch.equal(hidden_pixels(one["superpixels"][k : k + 1], one["key"][k : k + 1], 5)[0], both[k])
    assert not torch.equal(hidden_pixels(one["superpixels"], one["key"], 6), both)


def test_cells_are_hidden_whole_and_half_of_the_time():
    keys = torch.stack([torch.zeros(500).long(), torch.arange(500)], 1)
    hidden = hidden_cells((10, 7), 4, keys)
    assert hidden.shape == (500, 10, 7)
    for rows, columns in ((slice(0, 4), slice(0, 4)), (slice(4, 8), slice(4, 7)), (slice(8, 10), slice(0, 4))):
        part = hidden[:, rows, columns].flatten(1)
        assert (part == part[:, :1]).all()
        assert part[:, 0].float().mean().item() == pytest.approx(0.5, abs=0.07)


def test_an_image_of_one_colour_has_no_pair_and_no_nan(model):
    one = batch()
    one["labeled"]["superpixels"][0] = 1  # SLIC finds one segment
    one["labeled"]["superpixels"][1] = 7  # a crop of one of several: it is hidden or not
    first, second, share = complementary(
        one["labeled"]["image"], model.hidden(one["labeled"]), one["labeled"]["valid"], model.network.mean
    )
    assert share[:2].tolist() == [1, 1]
    assert torch.equal(first[:2], one["labeled"]["image"][:2])
    assert (second[:2] == model.network.mean).all()
    alone = {"labeled": {key: value[:2] for key, value in one["labeled"].items()}}
    out = model.compute_loss(alone)
    assert out.logs["tcp"] == out.logs["cpcr"] == 0
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    model.zero_grad()


# Losses ------------------------------------------------------------------------------------------------------------


def slow_norm(a):
    x = np.maximum(a, 0)
    return np.maximum(x - x.min() - 1e-5, 0) / (x.max() - x.min() + 1e-5)


def test_the_norm_has_its_hand_values_and_padding_is_in_no_extreme():
    row = torch.tensor([-1.0, 0, 1, 3]).view(1, 1, 1, 4)
    valid = torch.ones(1, 1, 4, dtype=torch.bool)
    assert normalised(row, valid).flatten().tolist() == pytest.approx([0, 0, 0.333329, 0.999993], abs=1e-6)
    assert (normalised(torch.full((1, 1, 3, 3), 2.0), torch.ones(1, 3, 3, dtype=torch.bool)) == 0).all()
    maps = torch.randn(2, 3, 4, 5).double()
    for b in range(2):
        for c in range(3):
            found = normalised(maps, torch.ones(2, 4, 5, dtype=torch.bool))[b, c]
            np.testing.assert_allclose(found, slow_norm(maps[b, c].numpy()), atol=1e-12)
    padded = F.pad(maps, (0, 3), value=9.0)
    valid = F.pad(torch.ones(2, 4, 5, dtype=torch.bool), (0, 3))
    torch.testing.assert_close(normalised(padded, valid)[..., :5], normalised(maps, valid[..., :5]))
    assert (normalised(padded, valid)[..., 5:] == 0).all()
    assert (normalised(maps, torch.zeros(2, 4, 5, dtype=torch.bool)) == 0).all()
    x = torch.tensor([1.0, 2, 3]).double().view(1, 1, 1, 3).requires_grad_()
    normalised(x, torch.ones(1, 1, 3, dtype=torch.bool))[..., 1].sum().backward()
    assert x.grad.flatten().tolist() == pytest.approx([-0.25, 0.5, -0.25], abs=1e-4)  # through minimum and maximum too


def test_the_largest_channel_keeps_its_value_also_the_background():
    def column(*values):
        return torch.tensor(values).view(1, -1, 1, 1)

    assert keep_max(column(0.2, 0.8) - column(0.5, 0.5)).flatten().tolist() == pytest.approx([0, 0.3])
    assert keep_max(column(0.7, 0.3) - column(0.5, 0.5)).flatten().tolist() == pytest.approx([0.2, 0])
    assert keep_max(column(0.3, 0.3)).flatten().tolist() == pytest.approx([0.3, 0.3])
    assert with_background(column(0.2, 0.7)).flatten().tolist() == pytest.approx([0.3, 0.2, 0.7])


def test_the_gap_pulls_up_and_never_down():
    a, part = (torch.tensor(value).double().view(1, 1, 1, 1) for value in (0.6, 0.3))  # D = .3
    for r, wanted, slope in (
        (0, 1.3, -2),
        (0.1, 1.1, -2),
        (0.2, 0.9, -2),
        (0.3001, 0.7, 0),
        (0.4, 0.7, 0),
        (0.6, 0.7, 0),
    ):
        other = torch.tensor(float(r)).double().view(1, 1, 1, 1).requires_grad_()
        value = gaps(a, part, other).sum()
        value.backward()
        assert value.item() == pytest.approx(wanted, abs=1e-3)
        assert other.grad.item() == pytest.approx(slope)
    a, part = (torch.tensor(value).view(1, 1, 1, 1) for value in (0.3, 0.5))  # the part has more: background is kept
    assert [gaps(a, part, torch.full((1, 1, 1, 1), r)).sum().item() for r in (0.1, 0.5)] == pytest.approx([0.8, 0.8])


def maps(seed, count=2, classes=3):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(count, classes, 8, 10, generator=g).double()


def test_maps_that_add_up_cost_nothing_and_stop_gradients_are_where_the_paper_has_them():
    a1, a2, r1, r2 = (maps(k).requires_grad_() for k in range(4))
    pair = torch.ones(2)
    assert triplet_loss([a1 + a2, a1, a2], [r1 + r2, r1, r2], ALL, pair, 3) < 1e-15
    a = maps(5).requires_grad_()
    r = maps(6).requires_grad_()
    triplet_loss([a, a1, a2], [r, r1, r2], ALL, pair, 3).backward()
    assert a1.grad is None
    assert a2.grad is None
    assert all(one.grad.abs().sum() > 0 for one in (a, r, r1, r2))
    every = [one.detach().requires_grad_() for one in (a, a1, a2, r, r1, r2)]
    region_loss(every[:3], every[3:], ALL, pair, 3).backward()
    assert [one.grad is not None and bool(one.grad.any()) for one in every] == [False] * 4 + [True] * 2


def test_losses_equal_the_formulas():
    a, r = [maps(k) for k in range(3)], [maps(k) for k in range(3, 6)]
    pair = torch.tensor([1.0, 0.0])
    gap = np.abs((a[1] + a[2] - a[0])[0].numpy()).mean() + np.abs((r[0] - r[1] - r[2])[0].numpy()).mean()
    assert triplet_loss(a, r, ALL, pair, 3).item() == pytest.approx(gap)
    total = 0.0
    for part, other in ((1, 2), (2, 1)):
        lists = [[1 - m.max(0), *m] for m in (one[0].numpy() for one in (a[0], a[part], r[other]))]
        whole, seen, target = (np.array(one) for one in lists)
        d = whole - seen
        d = np.where(d == d.max(0), d, 0)
        entries = np.sort(np.abs(d - target).ravel())[::-1]
        total += entries[: int(0.2 * entries.size)].mean()
    assert region_loss(a, r, ALL, pair, 3).item() == pytest.approx(total)


def test_losses_of_the_objects_looked_at_are_those_of_all():
    a, r = [maps(k, classes=20).requires_grad_() for k in range(3)], [maps(k, classes=20) for k in range(3, 6)]
    pair, tags = torch.ones(2), torch.zeros(2, 20, dtype=torch.bool)
    tags[0, 7] = tags[1, 3] = tags[1, 12] = True
    objects, t = looked_at(tags)
    assert objects.shape == (2, 3)
    assert t.tolist() == [[True, False, False], [True, True, False]]
    for image in range(2):
        assert {*objects[image, : t[image].sum()].tolist()} == {*tags[image].nonzero().flatten().tolist()}
    whole = [[one * tags[:, :, None, None] for one in each] for each in (a, r)]
    some = [[one.take_along_dim(objects[:, :, None, None], 1) for one in each] for each in whole]
    for loss in (triplet_loss, region_loss):
        torch.testing.assert_close(loss(*some, ALL, pair, 20), loss(*whole, ALL, pair, 20))
    assert looked_at(torch.ones(2, 4).bool())[0].shape == (2, 4)  # no object is absent
    assert looked_at(torch.zeros(2, 4).bool())[1].tolist() == [[False], [False]]


def test_the_mean_of_a_resized_map_needs_no_resized_map():
    cells = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    valid = torch.rand(2, 60, 90) > 0.3
    valid[1] = False
    large = F.interpolate(cells, (64, 96), mode="bilinear", align_corners=True)[..., :60, :90]
    found = resized_mean(cells, valid, (64, 96))
    torch.testing.assert_close(found[0], large[0][:, valid[0]].mean(1))
    assert (found[1] == 0).all()


def test_minimum_pooling():
    row = torch.tensor([0, 0.2, 0.4, 0.8]).view(1, 1, 1, 4)
    valid = torch.ones(1, 1, 4, dtype=torch.bool)
    assert minimum_pool(row, torch.ones(1, 1), valid).item() == 0
    assert minimum_pool(row + 0.1, torch.ones(1, 1), valid).item() == pytest.approx(0.1)
    assert minimum_pool(row + 0.1, torch.zeros(1, 1), valid).item() == 0  # an absent tag
    assert minimum_pool(-row, torch.ones(1, 1), valid).item() == 0
    assert top_mean(row, valid, 0.5, 1).item() == pytest.approx(0.6)
    assert top_mean(row, torch.zeros_like(valid), 0.5, 1).item() == 0


def test_padding_changes_no_loss():
    a, r = [maps(k) for k in range(3)], [maps(k) for k in range(3, 6)]
    tags, pair = torch.tensor([[1, 0, 1], [0, 1, 0]]).double(), torch.ones(2)
    wide = [[F.pad(one, (0, 64), value=7.0) for one in each] for each in (a, r)]
    valid = F.pad(ALL, (0, 64))
    for loss in (triplet_loss, region_loss):
        torch.testing.assert_close(loss(*wide, valid, pair, 3), loss(a, r, ALL, pair, 3))
    torch.testing.assert_close(minimum_pool(wide[1][0], tags, valid), minimum_pool(r[0], tags, ALL))


# Correlation -------------------------------------------------------------------------------------------------------


def test_the_guide_keeps_the_largest_object_and_the_background():
    a = torch.tensor([[4.0, 1.0, -1.0], [2.0, 3.0, -2.0]]).view(1, 2, 1, 3)
    g = guide(a, torch.ones(1, 1, 1, 3, dtype=torch.bool))[0, :, 0]
    np.testing.assert_allclose(g, [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-4)


def test_a_constant_map_stays_constant_and_region_maps_add_up_to_one():
    torch.manual_seed(0)
    query, inside = torch.rand(2, 6, 20).double(), torch.ones(2, 1, 20, dtype=torch.bool)
    inside[1, :, 15:] = False
    found = pixel_correlation(torch.full((2, 4, 20), 0.7).double() * inside, query, inside)
    np.testing.assert_allclose(found, 0.7, rtol=1e-4)
    g = torch.rand(2, 4, 20).double() * inside
    # The sum over sources, written out.
    q = (query / (query.norm(dim=1, keepdim=True) + 1e-5)).numpy()
    affinity = np.maximum(np.einsum("bdi,bdj->bij", q, q), 0) * inside.numpy().swapaxes(1, 2)
    wanted = np.einsum("bki,bij->bkj", g.numpy(), affinity / (affinity.sum(1, keepdims=True) + 1e-5))
    np.testing.assert_allclose(pixel_correlation(g, query, inside), wanted)
    regions = region_correlation(query, torch.rand(2, 6, 4).double(), inside)
    np.testing.assert_allclose(regions.sum(2), 1)
    assert (regions[1, :, 15:] == 0).all()


@pytest.mark.parametrize("as_released", [False, True])
def test_a_permutation_of_the_classes_permutes_the_maps_but_not_in_the_released_code(as_released):
    torch.manual_seed(0)
    order, inside = torch.tensor([2, 0, 3, 1]), torch.ones(1, 1, 20, dtype=torch.bool)
    query, regions = torch.rand(1, 6, 20).double(), 9 * torch.rand(1, 6, 4).double()
    one = region_correlation(query, regions, inside, as_released)[:, order]
    two = region_correlation(query, regions[..., order], inside, as_released)
    assert torch.allclose(one, two) is not as_released


def correlation(prcm=True):
    torch.manual_seed(1)
    return Correlation([3, 5, 7], prcm)


def inputs(width=6):
    torch.manual_seed(2)
    return torch.randn(2, 3, 4, width), [torch.rand(2, 3, 64, 16 * width), torch.rand(2, 5, 8, 2 * width),
                                         torch.rand(2, 7, 4, width)]  # fmt: skip


@pytest.mark.parametrize("prcm", [True, False])
def test_refined_maps_of_a_mirror_image_are_mirror_images(prcm):
    refine = correlation(prcm)
    a, features = inputs()
    one, two = refine(a, features, None), refine(a.flip(-1), [each.flip(-1) for each in features], None)
    assert one.shape == a.shape
    torch.testing.assert_close(two, one.flip(-1), atol=1e-5, rtol=1e-4)


def test_padded_cells_are_in_no_refined_map():
    refine = correlation()
    a, features = inputs()
    valid = torch.ones(2, 64, 96, dtype=torch.bool)
    mean = [F.interpolate(one, (4, 6), mode="bilinear", align_corners=True) for one in features]
    same = [F.pad(one, (0, 4), value=3.0) for one in mean]  # at the map's size, so that nothing is resized
    padded = refine(F.pad(a, (0, 4), value=9.0), same, F.pad(valid, (0, 64)))
    torch.testing.assert_close(padded[..., :6], refine(a, mean, valid))
    assert (padded[..., 6:] == 0).all()


def test_refined_maps_train_their_own_layers_alone():
    torch.manual_seed(0)
    model = methods.CPN(4, network=NETWORK)
    model.classifier.both(torch.rand(2, 3, 64, 64))[1].sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert with_gradient
    assert all(name.startswith("network.refine.") for name in with_gradient)
    assert {name.split(".")[2] for name in with_gradient} == {"reduce", "query", "key"}


# The whole step, written out ----------------------------------------------------------------------------------------


E = 1e-5


def slow_maps(network, x, valid):
    """a and R = PCM + PRCM g, (C, h, w), of one normalised image (3, H, W). Cells without a valid pixel are left out of
    everything, and 0 in R."""
    refine = network.refine
    conv4, conv5 = network.model.encoder(x[None])[-2:]
    a = F.conv2d(conv5, network.model.segmentation_head[0].weight)[0]
    height, width = a.shape[1:]
    reduced = [
        F.conv2d(one.detach(), layer.weight).relu() for one, layer in zip((conv4, conv5), refine.reduce, strict=True)
    ]
    planes = [
        F.interpolate(one, (height, width), mode="bilinear", align_corners=True)[0] for one in (x[None], *reduced)
    ]
    shown = valid.view(height, x.shape[1] // height, width, x.shape[2] // width).any(3).any(1).flatten()
    f, g = torch.cat(planes).flatten(1)[:, shown], a.detach().flatten(1)[:, shown].relu()
    g = (g - E).relu() / (g.amax(1, keepdim=True) + E)
    g = torch.cat([1 - g.amax(0, keepdim=True), torch.where(g == g.amax(0, keepdim=True), g, 0)])
    query = refine.query.weight[:, :, 0, 0] @ f
    q = query / (query.norm(dim=0) + E)
    affinity = (q.T @ q).relu()
    refined = g @ (affinity / (affinity.sum(0) + E))
    if refine.key is not None:
        regions = g.softmax(1) @ f.T
        key = (regions @ refine.key.weight[:, :, 0, 0].T).relu()
        refined = refined + (key @ query.relu() / math.sqrt(len(g))).softmax(1) * g
    r = torch.zeros_like(a).flatten(1)
    r[:, shown] = refined[1:]
    return a, r.view_as(a)


def slow_loss(model, labeled, tcp_weight, cpcr_weight):
    """L_cls + tcp_weight L_tcp + cpcr_weight L_cpcr, image by image over its valid pixels alone."""
    network, terms = model.network, {name: [] for name in ("tag", "least", "tcp", "cpcr")}
    mean, std = ((one[0] if one.ndim == 4 else one).double() for one in (network.mean, network.std))
    for image, valid, tags, key, segments in zip(
        *(labeled[name] for name in ("image", "valid", "tags", "key", "superpixels")), strict=True
    ):
        n, t = int(segments.max()), tags[1:, None].double()
        drawn = (key_uniform(key[None], (n + 1) // 2, model.draw_seed())[0] * (n + 1)).long()
        hidden = torch.isin(segments, drawn[drawn > 0])
        c = (~hidden[valid]).double().mean()
        assert 0.2 < c < 0.8
        x = (image - mean) / std  # what is hidden is 0 here
        a, r = [], []
        for part in (x, x * ~hidden, x * hidden):
            both = [
                F.interpolate(one[None], image.shape[1:], mode="bilinear", align_corners=True)[0][:, valid]
                for one in slow_maps(network, part, valid)
            ]
            score = both[0].mean(1).sigmoid()
            terms["tag"].append(-torch.where(tags[1:], score.log(), (1 - score).log()).mean())
            lowest = (both[1] * t).amax(0).sort().values[: int(valid.sum()) // 4]
            terms["least"].append(lowest.relu().mean())
            for found, one in zip((a, r), both, strict=True):
                low, high = one.relu().amin(1, keepdim=True), one.relu().amax(1, keepdim=True)
                found.append((one.relu() - low - E).relu() / (high - low + E) * t)
        a, r = ([one[0], c * one[1], (1 - c) * one[2]] for one in (a, r))
        terms["tcp"].append(((a[1] + a[2]).detach() - a[0]).abs() + (r[0] - r[1] - r[2]).abs())
        both = 0.0
        for part, other in ((1, 2), (2, 1)):
            whole, seen, target = (torch.cat([1 - one.amax(0, keepdim=True), one]) for one in (a[0], a[part], r[other]))
            gap = (whole - seen).detach()
            gap = torch.where(gap == gap.amax(0), gap, 0)
            entries = (gap - target).abs().flatten().sort(descending=True).values
            both = both + entries[: len(entries) // 5].mean()
        terms["cpcr"].append(both)
    terms = {
        name: torch.cat([one.flatten() for one in values]).mean() if name == "tcp" else torch.stack(values).mean()
        for name, values in terms.items()
    }
    return terms["tag"] + terms["least"] + tcp_weight * terms["tcp"] + cpcr_weight * terms["cpcr"], terms


def exact(classes=4, **options):
    """A model in float64 whose maps differ, and a batch of which one image has a padded part; classes from the fifth on
    occur in no image."""
    torch.manual_seed(0)
    model = methods.CPN(classes, network=NETWORK, **options).double().eval()
    labeled = batch(2)["labeled"]
    labeled["tags"] = F.pad(labeled["tags"], (0, classes - 4))
    labeled["image"] = labeled["image"].double()
    labeled["valid"][0, :, 40:] = False  # the third of four columns of cells shows half
    labeled["superpixels"][0, :, 40:] = 0
    with torch.no_grad():
        mean = model.network.encode(labeled["image"])[0][-1].mean((0, 2, 3))
        weight = torch.randn(classes - 1, len(mean), dtype=torch.float64)
        weight += (0.2 - weight @ mean)[:, None] * mean / mean.square().sum()  # 0.2 is the mean activation
        model.network.model.segmentation_head[0].weight.copy_(weight[:, :, None, None])
        a = model.network.activations(labeled["image"])
    assert (a.amax((2, 3)) > 0.1).all()
    assert (a.amin((2, 3)) < 0).any()
    return model, labeled


@pytest.mark.parametrize(("classes", "prcm"), [(4, True), (4, False), (21, True)])
def test_a_step_has_the_loss_and_the_gradient_of_the_formulas(classes, prcm):
    model, labeled = exact(classes, tcp_weight=0.7, cpcr_weight=0.3, prcm=prcm)
    out = model.compute_loss({"labeled": labeled})
    wanted, terms = slow_loss(model, labeled, 0.7, 0.3)
    for name, value in terms.items():
        assert value > 1e-3, name
        torch.testing.assert_close(out.logs[name], value, rtol=1e-6, atol=0)  # shares are float32
    torch.testing.assert_close(out.loss, wanted, rtol=1e-6, atol=0)
    network = model.network
    encoder = [p for p in network.model.encoder.parameters() if p.ndim == 4][-1]
    layers = [encoder, network.model.segmentation_head[0].weight, *network.refine.parameters()]
    for one, two in zip(torch.autograd.grad(out.loss, layers), torch.autograd.grad(wanted, layers), strict=True):
        assert two.abs().max() > 1e-6
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-9)


def test_parts_are_hidden_in_the_mean_colour_and_add_up_once_normalised(monkeypatch):
    model, labeled = exact()
    seen = []
    both = model.network.both
    monkeypatch.setattr(model.network, "both", lambda image, valid: (seen.append(image), both(image, valid))[1])
    model.compute_loss({"labeled": labeled})
    prepared = [model.network.prepared(one) for one in seen]
    assert len(prepared) == 3
    torch.testing.assert_close(prepared[1] + prepared[2], prepared[0])
    assert all((one == 0).any() for one in prepared[1:])
    assert (prepared[1] * prepared[2] == 0).all()


def test_maps_at_inference_are_the_refined_ones_without_their_least_value():
    model, labeled = exact(scales=[1.0], flip=False)
    image, whole = labeled["image"][1], torch.ones(64, 64, dtype=torch.bool)
    mean, std = ((one[0] if one.ndim == 4 else one).double() for one in (model.network.mean, model.network.std))
    with torch.no_grad():
        a, r = slow_maps(model.network, (image - mean) / std, whole)
        torch.testing.assert_close(model.maps(image[None], torch.ones(4).bool())[0], r)
    assert (a - r).abs().max() > 0.1
    found = model.cam_of(image, torch.tensor([0, 1, 1, 0]).bool(), (31, 40))
    large = F.interpolate(r[None].relu(), (31, 40), mode="bilinear", align_corners=False)[0]
    for k in range(2):
        np.testing.assert_allclose(found[k], slow_norm(large[k].numpy()), atol=1e-6)
    assert not found[2].any()


def test_new_layers_begin_as_in_the_released_code():
    torch.manual_seed(0)
    network = methods.CPN(4, network=NETWORK).network
    head = network.model.segmentation_head[0].weight
    for weight, gain in ((network.refine.query.weight, 4), (network.refine.key.weight, 4), (head, 1)):  # xavier
        limit = gain * math.sqrt(6 / (weight.shape[0] + weight.shape[1]))
        assert 0.95 * limit < weight.abs().max() <= limit
    for layer in network.refine.reduce:  # kaiming
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / layer.weight.shape[1]), rel=0.1)


# The method --------------------------------------------------------------------------------------------------------


def test_every_parameter_gets_a_gradient_and_frozen_ones_stay_as_they_are():
    torch.manual_seed(0)
    network = NetworkConfig("Unet", "tu-test_resnet", freeze_bn=True, freeze=2)
    model = methods.CPN(4, network=network).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = model.make_optimizer()
    model.compute_loss(batch()).loss.backward()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert all(p.grad is not None for _, p in trained)
    optimizer.step()
    now, names = model.state_dict(), {name for name, _ in trained}
    assert any(not torch.equal(now[name], value) for name, value in before.items() if name in names)
    for name, value in before.items():
        if name not in names:
            assert torch.equal(now[name], value), name


def test_an_encoder_of_one_map_is_refined_by_that_and_images_without_a_tag_have_a_loss():
    torch.manual_seed(0)
    model = methods.CPN(4, network=NetworkConfig("Linear", "tu-test_vit"), scales=[1.0])
    one = batch()
    assert model.compute_loss(one).logs["tcp"] > 0
    one["labeled"]["tags"][:] = False
    out = model.compute_loss(one)
    out.loss.backward()
    assert len(model.network.refine.reduce) == 1
    assert out.logs["tcp"] == out.logs["least"] == 0
    assert out.logs["cpcr"] > 0  # a constant: the background of R is 1, and its target 0
    assert not any(p.grad is not None and p.grad.any() for p in model.network.refine.parameters())


def test_parts_of_images_leave_the_running_statistics_to_the_whole_ones():
    torch.manual_seed(0)
    one, two = (methods.CPN(4, network=NETWORK).train() for _ in range(2))
    two.load_state_dict(one.state_dict())
    one.compute_loss(batch())
    two.network.activations(batch()["labeled"]["image"])
    for (name, a), b in zip(one.named_buffers(), two.buffers(), strict=True):
        assert name.endswith("num_batches_tracked") or torch.equal(a, b), name


@pytest.mark.parametrize(
    "options", [{"segments": 1}, {"segments": 70000}, {"cell": 0}, {"tcp_weight": -1.0}, {"cpcr_weight": -0.1}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="segments must be 2 to 65535"):
        methods.CPN(4, network=NETWORK, **options)


def test_half_precision_is_close_to_single(model):
    model.eval()
    with torch.no_grad():
        single = model.compute_loss(batch()).loss
        with torch.autocast("cpu", torch.bfloat16):
            half = model.compute_loss(batch()).loss
    model.train()
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(single.item(), rel=0.05)


RANKS = """
import methods
from common.model.networks import NetworkConfig
model = methods.CPN(4, network=NetworkConfig("Unet", "tu-test_resnet"))
state, streams = torch.load(f"{folder}/scene.pt")
model.load_state_dict(state)
model.eval()
labeled = {name: value[2 * rank : 2 * rank + 2] for name, value in streams["labeled"].items()}
loss = model.compute_loss({"labeled": labeled}).loss
loss.backward()
for p in model.parameters():
    if p.grad is not None:
        dist.all_reduce(p.grad)
        p.grad /= 2
dist.all_reduce(loss)
torch.save([loss.detach() / 2, [p.grad for p in model.parameters()]], f"{folder}/rank{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_have_the_loss_and_the_gradients_of_one(model, tmp_path):
    one = batch(3)["labeled"]
    streams = {"labeled": {name: torch.cat([value, value[:1]]) for name, value in one.items()}}
    streams["labeled"]["key"][3, 1] = 3
    streams["labeled"]["superpixels"][1] = 1  # no pair on the first process
    model.eval()
    torch.save([model.state_dict(), streams], tmp_path / "scene.pt")
    loss = model.compute_loss(streams).loss
    model.zero_grad()
    loss.backward()
    two_processes(RANKS, tmp_path)
    found, gradients = torch.load(tmp_path / "rank0.pt")
    torch.testing.assert_close(found, loss.detach())
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        if p.grad is not None:
            torch.testing.assert_close(gradient, p.grad, atol=1e-6, rtol=1e-4)
    model.zero_grad()
    model.train()


# Through the command -----------------------------------------------------------------------------------------------


def test_a_run_gets_its_superpixels_and_its_maps_become_labels(tmp_path):
    fit_tiny(tmp_path / "run", "--model", "CPN", "--trainer.max_steps", "3")
    assert "superpixels: 300" in (tmp_path / "run" / "config.yaml").read_text()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "val/cam_miou" in summary["last"]
    said = weakseg("pseudo", "--run", tmp_path / "run", "--output", tmp_path / "labels", "--refine", "pamr")
    assert "12 images" in said
    assert json.loads((tmp_path / "labels" / "pseudo.json").read_text())["method"] == "CPN"


def test_another_number_of_superpixels_than_the_methods_is_refused(model):
    tags = SimpleNamespace(kind="tags", dense_images=0)
    data = SimpleNamespace(supervision=tags, streams=("labeled",), strong_views=0, superpixels=300, group=0)
    check_streams(model, data)
    data.superpixels = 100
    with pytest.raises(ValueError, match=r"learns from 300 superpixels of an image.*leave it out"):
        check_streams(model, data)


def test_cells_need_no_superpixels_and_too_large_ones_are_refused(tmp_path):
    words = ["--model", "CPN", "--trainer.max_steps", "1"]
    fit_tiny(tmp_path / "run", *words, "--model.init_args.cell", "16")
    assert "superpixels: 0" in (tmp_path / "run" / "config.yaml").read_text()
    said = fit_tiny(tmp_path / "two", *words, "--model.init_args.cell", "20", expect=1)
    assert "set model.cell to at most 16" in said
    assert (ROOT / "experiments" / "configs" / "methods" / "cpn.yaml").exists()
