"""AA&LR-style losses and labels: hand values, slow formulas, what is in no mean, gradients, two processes."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from common.ops.batch import IGNORE
from common.ops.crf import dense_crf
from common.ops.refine import pamr, par
from conftest import two_processes
from methods.aalr.labels import balanced_scores, crf_labels, pamr_labels, two_pass_labels
from methods.aalr.losses import (
    affinity_groups,
    affinity_loss,
    centre_sums,
    mask_probabilities,
    moved_centres,
    ngwp_logits,
    reassign_loss,
    reassigned,
    similarities,
)

EDGE, INNER = 0, 1


def logits_of(*rows):
    """(1, K, 1, W) logits of probabilities, a list for each pixel of a row."""
    return torch.tensor(rows, dtype=torch.float64).log().T[None, :, None]


def scene(seed=0, classes=4, side=6):
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, classes, side, side + 1, dtype=torch.float64, generator=g)
    labels = torch.randint(classes, (2, side, side + 1), generator=g)
    labels[torch.rand(labels.shape, generator=g) < 0.2] = IGNORE
    weight = torch.rand(labels.shape, dtype=torch.float64, generator=g)
    return logits, labels, weight


def slow_groups(logits, labels, weight, metric, distances, margin=3.0):
    """The formula, pair by pair and class by class."""
    (count, height, width), clip = logits.shape[1:], {"kl_channel": 1e-4, "kl": 1e-6, "dot": 1e-6}[metric]
    p = logits.softmax(1)
    values = {}

    def add(key, value, w):
        values.setdefault(key, []).append((w * value, w))

    for b, y, x in itertools.product(range(len(labels)), range(height), range(width)):
        for (at, d), dy, dx in itertools.product(enumerate(distances), (-1, 0, 1), (-1, 0, 1)):
            v, u = y + d * dy, x + d * dx
            if (dy, dx) == (0, 0) or not (0 <= v < height and 0 <= u < width):
                continue
            i, n = labels[b, y, x].item(), labels[b, v, u].item()
            if IGNORE in (i, n):
                continue
            w = 1.0 if weight is None else min(weight[b, y, x], weight[b, v, u])
            p_i, p_n = p[b, :, y, x], p[b, :, v, u]
            if metric == "kl_channel":
                for c in range(count):
                    a, o = (one[c].clamp(clip, 1) for one in (p_n, p_i))
                    not_a, not_o = ((1 - one[c]).clamp(clip, 1) for one in (p_n, p_i))
                    kl = a * (a / o).log() + not_a * (not_a / not_o).log()
                    if (i == c) != (n == c):
                        add((i, at, EDGE), (margin - kl).clamp(min=0), w)
                    else:
                        add((i, at, INNER), kl, w)
                continue
            if metric == "kl":
                a, o = p_n.clamp(clip, 1), p_i.clamp(clip, 1)
                kl = (a * (a / o).log()).sum()
                edge, inner = (margin - kl).clamp(min=0), kl
            else:
                dot = sum(a.clamp(clip, 1) * o.clamp(clip, 1) for a, o in zip(p_n, p_i, strict=True))
                edge, inner = -(1 - dot).clamp(min=clip).log(), -dot.clamp(min=clip).log()
            add((i, at, EDGE if i != n else INNER), edge if i != n else inner, w)
    means = torch.zeros(count, len(distances), 2, dtype=torch.float64)
    for key, found in values.items():
        # A mean of confidences that sum to less than one pair is divided by 1, as every mean over a batch here.
        means[key] = sum(v for v, _ in found) / max(1, sum(w for _, w in found))
    return means, torch.tensor([any(key[0] == c for key in values) for c in range(count)])


# The affinity loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("metric", ["kl_channel", "kl", "dot"])
def test_the_affinity_loss_is_the_slow_formulas(metric, weighted):
    logits, labels, weight = scene()
    labels[labels == 2] = 1  # a class that there is not
    weight = weight if weighted else None
    means, present = affinity_groups(logits, labels, weight, metric, distances=(1, 3))
    wanted, there = slow_groups(logits, labels, weight, metric, (1, 3))
    torch.testing.assert_close(means, wanted, rtol=1e-9, atol=1e-9)
    assert present.tolist() == there.tolist() == [True, True, False, True]
    loss = affinity_loss(means, present)
    assert loss.item() == pytest.approx(wanted[there].mean(1).sum(1).mean().item())


def test_a_constant_prediction_has_no_loss_inside_and_the_margin_at_edges():
    labels = torch.tensor([[[0, 0, 1], [0, 2, 1]]])
    means, present = affinity_groups(torch.zeros(1, 3, 2, 3), labels, distances=(1,))
    torch.testing.assert_close(means[..., EDGE], torch.full((3, 1), 3.0))
    torch.testing.assert_close(means[..., INNER], torch.zeros(3, 1), atol=1e-6, rtol=0)
    assert present.all()


@pytest.mark.parametrize(("high", "edge"), [(0.9, 1.242220), (0.97, 0.0)])
def test_two_opposite_pixels_of_two_classes_have_their_hand_value(high, edge):
    means, _ = affinity_groups(logits_of([high, 1 - high], [1 - high, high]), torch.tensor([[[0, 1]]]), distances=(1,))
    assert means[:, 0, EDGE].tolist() == pytest.approx([edge, edge], abs=1e-6)
    assert not means[:, 0, INNER].any()


@pytest.mark.parametrize(("high", "kl"), [(0.9, 1.757780), (0.97, 3.267533)])
@pytest.mark.parametrize("metric", ["kl_channel", "kl"])
def test_the_divergence_of_opposite_pixels_of_one_class(metric, high, kl):
    rows = logits_of([high, 1 - high], [1 - high, high])
    means, _ = affinity_groups(rows, torch.tensor([[[0, 0]]]), metric=metric, distances=(1,))
    assert means[0, 0].tolist() == pytest.approx([0, kl], abs=1e-6)


def test_the_divergence_over_21_classes_and_the_clipped_one():
    rows = torch.full((2, 21), 0.1 / 20)
    rows[0, 3] = rows[1, 5] = 0.9
    same, other = torch.tensor([[[3, 3]]]), torch.tensor([[[3, 5]]])
    means, _ = affinity_groups(logits_of(*rows.tolist()), same, metric="kl", distances=(1,))
    assert means[3, 0, INNER].item() == pytest.approx(4.647696, abs=1e-5)
    means, _ = affinity_groups(logits_of(*rows.tolist()), other, metric="kl", distances=(1,))
    assert not means[..., EDGE].any()
    sure = torch.tensor([[99.0, 0.0], [0.0, 99.0]]).double().T[None, :, None]
    means, _ = affinity_groups(sure, torch.tensor([[[0, 0]]]), distances=(1,))
    assert means[0, 0, INNER].item() == pytest.approx(9.2094, abs=1e-4)


def test_a_border_is_an_edge_in_two_classes_and_none_in_the_other_19():
    """With the probabilities of both pixels chosen so that each class's share of the means can be told."""
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 21, 1, 2, generator=g).double()
    p_i, p_n = logits.softmax(1)[0, :, 0].T
    kl = p_n * (p_n / p_i).log() + (1 - p_n) * ((1 - p_n) / (1 - p_i)).log()
    means, present = affinity_groups(logits, torch.tensor([[[4, 7]]]), distances=(1,))
    edges = torch.tensor([4, 7])
    assert means[4, 0, EDGE].item() == pytest.approx((3 - kl[edges]).mean().item())
    rest = [c for c in range(21) if c not in (4, 7)]
    assert len(rest) == 19
    assert means[4, 0, INNER].item() == pytest.approx(kl[rest].mean().item())
    assert present.nonzero()[:, 0].tolist() == [4, 7]


def test_a_mirrored_scene_has_the_same_affinity_loss():
    logits, labels, weight = scene(2)
    loss = [affinity_loss(*affinity_groups(*(one.flip(-1) if flip else one for one in (logits, labels, weight))))
            for flip in (False, True)]  # fmt: skip
    torch.testing.assert_close(*loss)


def test_the_scale_weights_rise_where_the_loss_is_worst_and_the_network_descends():
    means = torch.zeros(2, 3, 2, dtype=torch.float64)
    means[0, :, INNER] = torch.tensor([1.0, 2, 6])
    present = torch.tensor([True, False])
    table = torch.zeros(2, 3, 2, dtype=torch.float64, requires_grad=True)
    loss = affinity_loss(means, present, table)
    assert loss.item() == pytest.approx(3)
    (slope,) = torch.autograd.grad(loss, table)
    assert slope[0, :, INNER].tolist() == pytest.approx([-2 / 3, -1 / 3, 1])
    table.grad = slope
    torch.optim.SGD([table], lr=0.5, momentum=0.9, maximize=True).step()
    assert affinity_loss(means, present, table) > loss
    weights = table.softmax(1)[0, :, INNER]
    assert weights[2] > 1 / 3 > weights[1] > weights[0]
    logits, labels, _ = scene(3)
    logits.requires_grad_()
    loss = affinity_loss(*affinity_groups(logits, labels), table[:1].detach().expand(4, -1, -1))
    (slope,) = torch.autograd.grad(loss, logits)
    moved = affinity_groups((logits - 0.1 * slope).detach(), labels)
    assert affinity_loss(*moved, table[:1].detach().expand(4, -1, -1)) < loss


@pytest.mark.parametrize("metric", ["kl_channel", "kl", "dot"])
def test_a_pixel_without_a_label_is_in_no_value_and_no_gradient(metric):
    logits, labels, weight = scene(4)
    logits.requires_grad_()
    loss = affinity_loss(*affinity_groups(logits, labels, weight, metric))
    (slope,) = torch.autograd.grad(loss, logits)
    known = (labels != IGNORE)[:, None]
    assert not (slope * ~known).any()
    assert (slope * known).any()
    other = torch.where(known, logits, torch.randn_like(logits))
    torch.testing.assert_close(affinity_loss(*affinity_groups(other, labels, weight, metric)), loss)
    for nothing in (torch.full_like(labels, IGNORE), labels.where(torch.arange(7) == 3, IGNORE)[..., :1]):
        none = affinity_loss(*affinity_groups(logits[..., : nothing.shape[2]], nothing, metric=metric))
        (slope,) = torch.autograd.grad(none, logits)
        assert none.item() == 0
        assert not slope.any()


@pytest.mark.parametrize("metric", ["kl_channel", "kl", "dot"])
def test_gradients_are_those_of_finite_differences(metric):
    logits, labels, weight = scene(5, classes=3, side=3)
    logits = (0.3 * logits).requires_grad_()
    torch.autograd.gradcheck(lambda x: affinity_groups(x, labels, weight, metric, (1, 2))[0], logits)


def test_half_types_and_certain_predictions_are_finite():
    logits, labels, _ = scene(6)
    for wild in (logits.bfloat16(), 1e4 * logits.float()):
        wild = wild.detach().requires_grad_()
        for metric in ("kl_channel", "kl", "dot"):
            loss = affinity_loss(*affinity_groups(wild, labels, metric=metric))
            (slope,) = torch.autograd.grad(loss, wild)
            assert loss.dtype == torch.float32
            assert torch.isfinite(loss)
            assert torch.isfinite(slope).all()


# Reassignment ------------------------------------------------------------------------------------------------------


def test_a_label_that_its_centre_denies_is_reassigned_with_its_hand_values():
    embedding = torch.tensor([0.6, 0.8], dtype=torch.float64).view(1, 2, 1, 1)
    cosines = similarities(embedding, torch.eye(2, dtype=torch.float64))
    assert cosines.flatten().tolist() == pytest.approx([0.6, 0.8])
    both = torch.ones(1, 2, dtype=torch.bool)
    log_q, found, margin = reassigned(cosines, torch.zeros(1, 1, 1, dtype=torch.int64), both)
    assert log_q.exp().flatten().tolist() == pytest.approx([0.1192, 0.8808], abs=1e-4)
    assert found.item() == 1
    assert margin.item() == pytest.approx(0.7616, abs=1e-4)
    assert -log_q[0, 1].item() == pytest.approx(0.126928, abs=1e-6)
    logits = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    wanted = margin.item() * (math.log(2) + 0.126928)
    assert reassign_loss(logits, log_q, found, margin).item() == pytest.approx(wanted, abs=1e-6)


def test_what_stays_what_is_reassigned_and_what_nobody_can_say():
    cosines = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.48, 0.0], [0.1, 0.2, 0.9], [0.9, 0.1, 0.0]]).T[None, :, None]
    labels = torch.tensor([[[1, 1, 1, IGNORE]]])
    tags = torch.ones(1, 3, dtype=torch.bool)
    _, found, margin = reassigned(cosines, labels, tags)
    assert found.tolist() == [[[0, IGNORE, 2, IGNORE]]]
    assert margin[0, 0, 1] < 0.5 < margin[0, 0, 0]
    untagged = tags & torch.tensor([True, True, False])
    assert reassigned(cosines, labels, untagged)[1].tolist() == [[[0, IGNORE, 1, IGNORE]]]
    fixed = torch.tensor([[[True, False, False, True]]])
    assert reassigned(cosines, labels, tags, fixed)[1].tolist() == [[[1, IGNORE, 2, IGNORE]]]
    alone = torch.tensor([[False, True, False]])
    _, found, margin = reassigned(cosines, labels, alone)
    assert found.tolist() == [[[1, 1, 1, IGNORE]]]
    assert margin[found == 1].tolist() == [1, 1, 1]
    no_centre = torch.tensor([[True, False, True]])
    assert (reassigned(cosines, labels, no_centre)[1] == IGNORE).all()
    assert (reassigned(cosines, labels, torch.zeros_like(tags))[1] == IGNORE).all()


def test_no_gradient_reaches_centres_and_margins_and_none_comes_from_255():
    torch.manual_seed(0)
    raw, centres = torch.randn(1, 5, 2, 3).double().requires_grad_(), torch.randn(3, 5).double().requires_grad_()
    logits = torch.randn(1, 3, 2, 3).double().requires_grad_()
    labels = torch.tensor([[[0, 1, IGNORE], [2, 1, 0]]])
    embedding, tags = F.normalize(raw, dim=1), torch.ones(1, 3, dtype=torch.bool)
    log_q, _, margin = reassigned(similarities(embedding, F.normalize(centres, dim=1)), labels, tags)
    loss = reassign_loss(logits, log_q, labels, margin)
    slopes = torch.autograd.grad(loss, (raw, logits, centres), allow_unused=True)
    assert slopes[2] is None
    assert not margin.requires_grad
    for slope in slopes[:2]:
        assert not slope[:, :, 0, 2].any()
        assert slope[:, :, 1].any()
    nothing = reassign_loss(logits, log_q, torch.full_like(labels, IGNORE), margin)
    assert nothing.item() == 0


def test_a_centre_moves_to_the_mean_of_its_class_alone():
    torch.manual_seed(1)
    embedding = F.normalize(torch.randn(2, 5, 3, 3).double(), dim=1)
    labels = torch.tensor([[0, 0, IGNORE], [3, 0, 0], [0, IGNORE, 3]]).expand(2, -1, -1)
    sums, counts = centre_sums(embedding, labels, 4)
    for c in range(4):
        at = labels == c
        torch.testing.assert_close(sums[c], embedding.movedim(1, -1)[at].sum(0))
        assert counts[c] == at.sum()
    old = F.normalize(torch.randn(4, 5).double(), dim=1)
    old[3] = 0
    new = moved_centres(old, sums, counts)
    assert torch.equal(new[1:3], old[1:3])
    torch.testing.assert_close(new[0], F.normalize(0.99 * old[0] + 0.01 * sums[0] / counts[0], dim=0))
    torch.testing.assert_close(new[3], F.normalize(sums[3], dim=0))
    torch.testing.assert_close(new.norm(dim=1), torch.ones(4).double())
    broken = sums.clone()
    broken[0, 0] = torch.nan
    assert torch.equal(moved_centres(old, broken, counts)[0], old[0])


# The classifier ----------------------------------------------------------------------------------------------------


def test_ngwp_has_its_hand_values_and_its_penalty():
    a = torch.full((1, 1, 2, 2), 2.0, dtype=torch.float64)
    share = torch.ones_like(a)
    p = mask_probabilities(a)[0, 1]
    assert p.flatten().tolist() == pytest.approx([0.731059] * 4, abs=1e-6)
    assert ngwp_logits(a, share).item() == pytest.approx(1.484517, abs=1e-6)
    m = p.mean()
    penalty = (1 - m) ** 3 * (0.01 + m).log()
    assert ngwp_logits(a, share).item() - penalty.item() == pytest.approx(1.490346, abs=1e-6)
    for level, wanted in ((-1e3, -4.605170), (1.0, -0.084168), (1e3, 0.0)):  # m = 0, 0.5, 1
        flat = torch.full_like(a, level)
        first = (flat * mask_probabilities(flat)[:, 1:]).sum() / (1 + mask_probabilities(flat)[:, 1:].sum())
        assert (ngwp_logits(flat, share) - first).item() == pytest.approx(wanted, abs=1e-6)


def test_padding_is_in_no_pooled_logit():
    torch.manual_seed(2)
    a = torch.randn(1, 3, 4, 4).double()
    share = torch.zeros(1, 1, 4, 4).double()
    share[..., :2, :3] = 1
    torch.testing.assert_close(ngwp_logits(a, share), ngwp_logits(a[..., :2, :3], share[..., :2, :3]))
    assert torch.isfinite(ngwp_logits(a, torch.zeros_like(share))).all()


# Labels ------------------------------------------------------------------------------------------------------------

RULES = {
    "pamr": lambda cam, image: pamr_labels(balanced_scores(cam), image),
    "crf": crf_labels,
    "two_pass": two_pass_labels,
}


def bright(side=32):
    """An image with a bright square, and maps of two classes: one has the square, the other a corner."""
    image = torch.full((3, side, side), 0.1)
    image[:, 8:24, 8:24] = 0.9
    image[:, 26:, 26:] = torch.tensor([0.1, 0.9, 0.1])[:, None, None]
    maps = torch.stack([image[0] > 0.5, image[1] > image[0]]).float() * torch.tensor([3.0, 2.0])[:, None, None]
    return image, F.avg_pool2d(maps, 4)


@pytest.mark.parametrize("rule", RULES)
def test_labels_are_tagged_classes_background_or_none(rule):
    image, maps = bright()
    labels, confidence = RULES[rule](maps, image)
    assert labels.dtype == torch.int64
    assert labels.shape == confidence.shape == (32, 32)
    assert {*labels.unique().tolist()} <= {0, 1, 2, IGNORE}
    assert labels[12:20, 12:20].unique().tolist() == [1]
    assert labels[:6, :6].unique().tolist() == [0]
    assert confidence.min() >= 0
    assert confidence.max() <= 1 + 1e-6
    one, _ = RULES[rule](maps[:1], image)
    assert {*one.unique().tolist()} <= {0, 1, IGNORE}


@pytest.mark.parametrize("rule", RULES)
def test_an_image_without_a_tag_is_background_and_a_flat_map_is_no_object(rule):
    image, maps = bright()
    labels, confidence = RULES[rule](maps[:0], image)
    assert (labels == 0).all()
    torch.testing.assert_close(confidence, torch.ones_like(confidence))
    flat, confidence = RULES[rule](torch.zeros_like(maps), image)
    assert {*flat.unique().tolist()} <= {0, IGNORE}
    assert torch.isfinite(confidence).all()


@pytest.mark.parametrize("rule", RULES)
def test_an_image_of_a_row_works(rule):
    image, maps = bright()
    labels, _ = RULES[rule](maps[:, 3:4], image[:, 12:13])
    assert labels.shape == (1, 32)


def test_a_pixel_that_two_classes_claim_has_no_label():
    scores = torch.tensor([0.05, 0.5, 0.45]).view(3, 1, 1).expand(3, 8, 8).clone()
    labels, _ = pamr_labels(scores, torch.rand(3, 8, 8))
    assert (labels == IGNORE).all()
    scores[2] = 0.1  # below 0.2, however high among its own
    labels, _ = pamr_labels(scores, torch.rand(3, 8, 8))
    assert (labels == 1).all()
    none, _ = pamr_labels(torch.full((3, 8, 8), 0.15), torch.rand(3, 8, 8))
    assert (none == IGNORE).all()


DILATIONS = (1, 2, 4, 8, 12, 24)
CRF = {"weight": 10.0, "sigma_xy": 80.0, "sigma_rgb": 13.0, "smooth_weight": 3.0, "smooth_sigma": 3.0, "iterations": 10}


def enlarged(maps, side=None):
    """Maps (n, h, w) at a size, that of `drawn` images."""
    return F.interpolate(maps[None], side or (48, 56), mode="bilinear", align_corners=False)[0]


def drawn(seed):
    """A smooth image, and smooth activations of two classes."""
    g = torch.Generator().manual_seed(seed)
    image, cam = (torch.rand(*size, generator=g).double() for size in ((3, 6, 7), (2, 4, 4)))
    return enlarged(image), enlarged(3 * cam - 1, (12, 14))


def slow_pamr_rule(cam, image):
    """Each pixel by itself: the one class that is above 0.2 and above its share of its own maximum."""
    cam = cam.relu() / (cam.relu().amax((1, 2), keepdim=True) + 1e-5)
    scores = torch.cat([torch.full_like(cam[:1], 0.3), cam])
    scores = pamr(image[None], (scores / scores.sum(0))[None], 10, DILATIONS)[0]
    scores = enlarged(scores)
    labels, top = torch.zeros(image.shape[1:], dtype=torch.int64), [0.7, 0.6, 0.6]
    least = [max(0.2, share * one.max()) for share, one in zip(top, scores, strict=True)]
    for y, x in itertools.product(*map(range, labels.shape)):
        passed = [k for k in range(3) if scores[k, y, x] > least[k]]
        labels[y, x] = passed[0] if len(passed) == 1 else IGNORE
    return labels, scores.amax(0)


def slow_crf_rule(cam, image):
    """RRM's: the label of PSA's seeds where the CAM and the CRF are sure of it."""
    cam = enlarged(cam).relu()
    cam = cam / (cam.amax((1, 2), keepdim=True) + 1e-5)
    cautious, generous = (torch.cat([(1 - cam.amax(0, keepdim=True)) ** alpha, cam]) for alpha in (4, 32))
    best, sure = generous.argmax(0), torch.zeros(image.shape[1:], dtype=torch.bool)
    sure[(best == 0) & (generous[0] > 0.8)] = True
    for k in (1, 2):
        own = generous[k][(best == k) & (generous[k] > 0.1)].sort().values
        sure[(best == k) & (generous[k] > own[int(0.6 * len(own))])] = True
    cautious, generous = (dense_crf(one / one.sum(0), image, stride=4, **CRF) for one in (cautious, generous))
    labels = torch.full(image.shape[1:], IGNORE)
    for y, x in itertools.product(*map(range, labels.shape)):
        k = int(cautious[:, y, x].argmax())
        if generous[:, y, x].argmax() == 0:
            labels[y, x] = 0 if sure[y, x] and generous[0, y, x] >= 0.8 else IGNORE
        elif k:
            labels[y, x] = k if sure[y, x] and cautious[k, y, x] >= 0.8 else IGNORE
    return labels, torch.cat([generous[:1], cautious[1:]]).amax(0)


def slow_two_pass_rule(cam, image):
    """AFA's: objects of the pass with 0.55, background of that with 0.35."""
    cam = enlarged(cam, (24, 28)).relu()
    low, high = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
    cam = (cam - low - 1e-5).relu() / (high - low + 1e-5)
    passes = []
    for background in (0.55, 0.35):
        scores = torch.cat([torch.full_like(cam[:1], background), cam]).softmax(0)
        passes.append(enlarged(par(image[None], scores[None], 10, DILATIONS)[0]))
    first, second = (one.argmax(0) for one in passes)
    labels = torch.where(first > 0, first, torch.where(second > 0, IGNORE, 0))
    return labels, passes[0].amax(0)


SLOW = {"pamr": slow_pamr_rule, "crf": slow_crf_rule, "two_pass": slow_two_pass_rule}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("rule", RULES)
def test_labels_are_those_of_the_rule_pixel_by_pixel(rule, seed):
    image, cam = drawn(seed)
    labels, confidence = RULES[rule](cam, image)
    wanted, score = SLOW[rule](cam, image)
    assert {*wanted.unique().tolist()} == {0, 1, 2, IGNORE}
    assert torch.equal(labels, wanted)
    torch.testing.assert_close(confidence, score)


def test_each_constant_of_the_pamr_rule_has_its_side(monkeypatch):
    monkeypatch.setattr("methods.aalr.labels.pamr", lambda image, maps: maps)

    def labels(*rows):
        scores = torch.tensor(rows)[:, None]
        return pamr_labels(scores, torch.zeros(3, 1, scores.shape[2]))[0][0].tolist()

    assert labels([0.9, 0.64, 0.62], [0.0, 0.0, 0.0]) == [0, 0, IGNORE]  # 0.7 of 0.9 is 0.63
    assert labels([0.0, 0.0, 0.0], [0.8, 0.49, 0.47]) == [1, 1, IGNORE]  # 0.6 of 0.8 is 0.48
    assert labels([0.0, 0.0, 0.0], [0.3, 0.21, 0.19]) == [1, 1, IGNORE]  # 0.6 of 0.3 is less than 0.2


def test_balanced_scores_are_shares_of_the_background_and_the_maps():
    cam = torch.tensor([[[0.0, 2.0]], [[1.0, 0.0]]])
    scores = balanced_scores(cam)
    torch.testing.assert_close(scores.sum(0), torch.ones(1, 2))
    assert scores[:, 0, 0].tolist() == pytest.approx([0.3 / 1.3, 0, 1 / 1.3], abs=1e-4)
    assert (balanced_scores(cam[:0]) == 1).all()


# Two processes -----------------------------------------------------------------------------------------------------

RANKS = """
import torch
from methods.aalr.losses import affinity_groups, affinity_loss, reassign_loss
logits, labels, weight, log_q, table = torch.load(folder + "/scene.pt")
mine = slice(rank, rank + 1)
part, table = logits[mine].clone().requires_grad_(), table.requires_grad_()
loss = affinity_loss(*affinity_groups(part, labels[mine], weight[mine]), table)
loss = loss + reassign_loss(part, log_q[mine], labels[mine], weight[mine])
slopes = torch.autograd.grad(loss / 2, (part, table))  # DDP takes the mean over ranks
torch.save((*slopes, loss.detach()), f"{folder}/slopes{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path):
    logits, labels, weight = scene(7)
    labels[1, 2:] = IGNORE  # unequal parts
    labels[0][labels[0] == 3] = 1
    log_q = torch.randn_like(logits).log_softmax(1)
    table = torch.randn(4, 3, 2, dtype=torch.float64)
    torch.save([logits, labels, weight, log_q, table], tmp_path / "scene.pt")
    logits.requires_grad_()
    table.requires_grad_()
    loss = affinity_loss(*affinity_groups(logits, labels, weight), table) + reassign_loss(logits, log_q, labels, weight)
    slopes = torch.autograd.grad(loss, (logits, table))
    two_processes(RANKS, tmp_path)
    found = [torch.load(tmp_path / f"slopes{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(torch.cat([one[0] for one in found]), slopes[0])
    torch.testing.assert_close(found[0][1] + found[1][1], slopes[1])
    torch.testing.assert_close((found[0][2] + found[1][2]) / 2, loss.detach())
