"""methods/rrn: regions, losses and discriminator against loops over regions and pixels."""

import itertools
import math

import numpy as np
import pytest
import torch

from methods.rrn.diagnostics import RegionReport
from methods.rrn.discriminator import RegionDiscriminator, class_planes
from methods.rrn.losses import (
    at_pixels,
    cell_lengths,
    discriminator_loss,
    dynamic_region_loss,
    feature_matching_loss,
    local_selection_loss,
    region_means,
    region_reliability,
    region_scores,
    region_sums,
)

CELL, SIZE = 4, (11, 9)  # 2 x 2 regions of unequal size
GRID = list(itertools.product(range(2), range(2)))


def region_of(i, j, size=SIZE, cell=CELL):
    return min(i // cell, max(1, size[0] // cell) - 1), min(j // cell, max(1, size[1] // cell) - 1)


def pixels(region, size=SIZE, cell=CELL):
    return [(i, j) for i in range(size[0]) for j in range(size[1]) if region_of(i, j, size, cell) == region]


def planes(seed=0, batch=3):
    """Errors, valid pixels (one region of the first image is padding, some others in part), and class probabilities."""
    generator = torch.Generator().manual_seed(seed)
    error = torch.rand(batch, *SIZE, generator=generator, dtype=torch.float64)
    valid = torch.rand(batch, *SIZE, generator=generator) > 0.2
    valid[0, 4:, 4:] = False
    q = torch.rand(2, batch, 3, *SIZE, generator=generator, dtype=torch.float64).softmax(2)
    return error, valid, q


# Regions --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "lengths"), [(512, [160, 160, 192]), (800, [160] * 5), (321, [160, 161]), (320, [160, 160]), (90, [90])]
)
def test_lengths_of_regions(side, lengths):
    assert cell_lengths(side, 160) == lengths


@pytest.mark.parametrize("size", [(512, 321), (333, 800)])
def test_every_pixel_lies_in_one_region_and_in_that_of_the_formula(size):
    ones = torch.ones(1, *size)
    count = region_sums(ones, 160)
    assert count.sum() == size[0] * size[1]
    number = torch.arange(count.numel()).view(count.shape)
    found = at_pixels(number, size, 160)
    for i, j in itertools.product(range(0, size[0], 53), range(0, size[1], 53)):
        row, column = region_of(i, j, size, 160)
        assert found[0, i, j] == number[0, row, column]
    assert torch.equal(found.flatten().bincount().view(count.shape).float(), count)


def test_sums_means_and_pixels_of_regions():
    error, valid, _ = planes()
    means, count = region_means(error, valid, CELL)
    back = at_pixels(means, SIZE, CELL)
    for b in range(3):
        for region in GRID:
            inside = [error[b, i, j].item() for i, j in pixels(region) if valid[b, i, j]]
            assert count[(b, *region)] == len(inside)
            assert means[(b, *region)].item() == pytest.approx(sum(inside) / max(1, len(inside)))
            assert all(back[b, i, j] == means[(b, *region)] for i, j in pixels(region))


# The discriminator ----------------------------------------------------------------------------------------------------


def test_parameters_of_the_discriminator():
    discriminator = RegionDiscriminator(21, 10)
    convs, head = (sum(p.numel() for p in part.parameters()) for part in (discriminator.convs, discriminator.head))
    assert (convs, head) == (2_774_976, 51_201)


@pytest.mark.parametrize(("crop", "conv4", "regions"), [(321, 20, 2), (512, 32, 3), (800, 50, 5), (801, 50, 5)])
def test_grid_of_a_crop(crop, conv4, regions):
    with torch.device("meta"):
        discriminator, planes = RegionDiscriminator(3, 10), torch.zeros(2, 3, crop, crop)
        logits, features = discriminator(planes)
        for conv in discriminator.convs:
            planes = conv(planes)
    assert planes.shape[-1] == conv4
    assert logits.shape == (2, regions, regions)
    assert features.shape == (2, 512, regions, regions)
    assert len(cell_lengths(crop, 160)) == regions


@pytest.mark.parametrize(("region_conv", "stride", "field"), [(10, 160, 190), (5, 80, 110), (2, 32, 62)])
def test_stride_and_receptive_field(region_conv, stride, field):
    discriminator = RegionDiscriminator(1, region_conv)
    jump, seen = 1, 1
    for conv in (*discriminator.convs, discriminator.head):
        seen, jump = seen + (conv.kernel_size[0] - 1) * jump, jump * conv.stride[0]
    assert (jump, seen) == (stride, field)
    if region_conv == 2:  # as seen by a gradient
        image = torch.rand(1, 1, 160, 160, requires_grad=True)
        discriminator(image)[0][0, 2, 2].backward()
        rows = (image.grad[0, 0].abs().sum(1) > 0).nonzero().flatten()
        assert (rows.min(), rows.max()) == (64 - 15, 64 - 15 + 61)


def test_only_the_input_takes_a_gradient_from_the_frozen_pass():
    discriminator, image = RegionDiscriminator(3, 1), torch.rand(2, 3, 32, 48, requires_grad=True)
    frozen, live = discriminator.frozen(image), discriminator(image)
    for one, other in zip(frozen, live, strict=True):
        assert torch.equal(one, other)
    (frozen[0].sum() + frozen[1].sum()).backward()
    assert image.grad.abs().max() > 0
    assert all(p.grad is None for p in discriminator.parameters())


def test_channels_are_dropped_on_demand_alone_whatever_the_mode():
    discriminator, image = RegionDiscriminator(3, 1).train(), torch.rand(2, 3, 32, 48)
    assert torch.equal(discriminator(image)[0], discriminator(image)[0])
    discriminator.eval()
    assert not torch.equal(discriminator(image, dropout=True)[0], discriminator(image, dropout=True)[0])


def test_a_region_is_judged_alone_of_the_batch():
    discriminator, image = RegionDiscriminator(6, 1), torch.rand(4, 6, 32, 32)
    torch.testing.assert_close(discriminator(image)[0][1:2], discriminator(image[1:2])[0])
    bright = torch.cat([image[:1, :3], torch.full((1, 3, 32, 32), 50.0)])
    seen = class_planes(image[:2, 3:], torch.ones(2, 32, 32, dtype=torch.bool), bright)
    assert torch.equal(seen[:1], torch.cat([image[:1, 3:], image[:1, :3]], 1))


def test_planes_of_padding_are_zero():
    valid = torch.tensor([[[True, False], [True, True]]])
    seen = class_planes(torch.full((1, 3, 2, 2), 1 / 3), valid, torch.ones(1, 3, 2, 2))
    assert seen.shape == (1, 6, 2, 2)
    assert torch.equal(seen[0, :, 0, 1], torch.zeros(6))


@pytest.mark.parametrize("seed", [0, 1])
def test_discriminator_loss_and_its_value_at_ignorance(seed):
    generator = torch.Generator().manual_seed(seed)
    fake, real = torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64)
    has_fake, has_real = torch.rand(2, 3, 2, 2, generator=generator) > 0.4
    fooled = [-math.log(1 - 1 / (1 + math.exp(-x))) for x in fake[has_fake].tolist()]
    missed = [-math.log(1 / (1 + math.exp(-x))) for x in real[has_real].tolist()]
    expected = 0.5 * (sum(fooled) / len(fooled) + sum(missed) / len(missed))
    assert discriminator_loss(fake, real, has_fake, has_real).item() == pytest.approx(expected)
    zero = torch.zeros(3, 2, 2)
    assert discriminator_loss(zero, zero, has_fake, has_real).item() == pytest.approx(0.693147, abs=1e-6)


def test_feature_matching_by_loops():
    generator = torch.Generator().manual_seed(0)
    fake, real = torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=torch.float64)
    has_fake, has_real = torch.rand(2, 3, 2, 2, generator=generator) > 0.4
    has_fake[:, 1, 0] = False
    gaps = []
    for (u, v), c in itertools.product(GRID, range(4)):
        ours = [fake[b, c, u, v].item() for b in range(3) if has_fake[b, u, v]]
        theirs = [real[b, c, u, v].item() for b in range(3) if has_real[b, u, v]]
        if ours and theirs:
            gaps.append(abs(sum(ours) / len(ours) - sum(theirs) / len(theirs)))
    assert len(gaps) < 16
    assert feature_matching_loss(fake, real, has_fake, has_real).item() == pytest.approx(sum(gaps) / len(gaps))
    real.requires_grad_()
    fake.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: feature_matching_loss(x, real, has_fake, has_real), fake)
    feature_matching_loss(fake, real, has_fake, has_real).backward()
    assert real.grad is None
    nothing = torch.zeros_like(has_fake)
    assert feature_matching_loss(fake, real, nothing, nothing).item() == 0


# Filtering ------------------------------------------------------------------------------------------------------------


def test_scores_of_the_four_rules():
    judged = torch.rand(2, 2, 3, 2, 2)
    for k, b, (u, v) in itertools.product(range(2), range(3), GRID):
        own, cross = judged[k, k, b, u, v].item(), judged[1 - k, k, b, u, v].item()
        expected = {"mean": (own + cross) / 2, "own": own, "cross": cross, "max": max(own, cross)}
        for rule, value in expected.items():
            assert region_scores(judged, rule)[k, b, u, v].item() == pytest.approx(value)


def test_selection_loss_by_loops():
    error, valid, _ = planes()
    kept = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(1)) > 0.5
    total, number = 0.0, 0
    for b, region in itertools.product(range(3), GRID):
        if kept[(b, *region)]:
            inside = [error[b, i, j].item() for i, j in pixels(region) if valid[b, i, j]]
            total, number = total + sum(inside), number + len(inside)
    assert 0 < number < valid.sum()
    assert local_selection_loss(error, valid, kept, CELL).item() == pytest.approx(total / max(1, number))


def test_nothing_kept_is_zero_with_zero_gradient_and_all_kept_is_the_plain_mean():
    error, valid, _ = planes()
    error.requires_grad_()
    nothing = local_selection_loss(error, valid, torch.zeros(3, 2, 2, dtype=torch.bool), CELL)
    nothing.backward()
    assert nothing.item() == 0
    assert torch.equal(error.grad, torch.zeros_like(error))
    everything = local_selection_loss(error, valid, torch.ones(3, 2, 2, dtype=torch.bool), CELL)
    torch.testing.assert_close(everything, error[valid].mean())


def test_a_rejected_region_has_no_gradient_and_the_others_theirs():
    error, valid, _ = planes()
    error.requires_grad_()
    everything = torch.ones(3, 2, 2, dtype=torch.bool)
    (full,) = torch.autograd.grad(local_selection_loss(error, valid, everything, CELL), error)
    kept = everything.clone()
    kept[1, 0, 1] = False
    (part,) = torch.autograd.grad(local_selection_loss(error, valid, kept, CELL), error)
    gone = at_pixels(~kept, SIZE, CELL)
    assert part[gone].abs().max() == 0
    number = int((valid & ~gone).sum())
    torch.testing.assert_close(part[~gone], full[~gone] * int(valid.sum()) / number)


# Dynamic region loss --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "q", "distance"),
    [
        ((1, 0), (0, 1), 1),
        ((0.5, 0.5), (1, 0), 0.311278),
        ((0.9, 0.1), (0.1, 0.9), 0.531004),
        ((0.9, 0.1), (0.6, 0.4), 0.091305),
        ((0.3, 0.7), (0.3, 0.7), 0),
    ],
)
def test_jensen_shannon_weights(p, q, distance):
    both = torch.tensor([p, q]).view(2, 1, 2, 1, 1).expand(2, 1, 2, *SIZE)
    valid = torch.ones(1, *SIZE, dtype=torch.bool)
    for order in (both, both.flip(0)):
        weight = region_reliability(order, valid, CELL, "js")
        torch.testing.assert_close(weight, torch.full((1, 2, 2), 1.0 - distance), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["js", "agree", "kl", "none"])
def test_reliability_by_loops(kind):
    _, valid, q = planes()
    q[:, 1, :, :4, :4] = torch.tensor([1.0, 0, 0]).view(3, 1, 1).double()  # certain and equal
    weight = region_reliability(q, valid, CELL, kind)
    for b, region in itertools.product(range(3), GRID):
        values = []
        for i, j in pixels(region):
            if valid[b, i, j]:
                p1, p2 = (q[k, b, :, i, j].tolist() for k in range(2))
                m = [(x + y) / 2 for x, y in zip(p1, p2, strict=True)]

                def kl(one, two):
                    return sum(x * math.log(x / y) for x, y in zip(one, two, strict=True) if x > 0)

                values.append(
                    {
                        "js": 0.5 * (kl(p1, m) + kl(p2, m)) / math.log(2),
                        "agree": float(np.argmax(p1) == np.argmax(p2)),
                        "kl": 0.5 * (kl(p1, p2) + kl(p2, p1)),
                        "none": 0.0,
                    }[kind]
                )
        if values:
            mean = sum(values) / len(values)
            expected = {"js": 1 - mean, "agree": mean, "kl": math.exp(-mean), "none": 1.0}[kind]
            assert weight[(b, *region)].item() == pytest.approx(expected)
    assert not weight.requires_grad


def test_an_impossible_class_gives_no_nan():
    q = torch.tensor([[1.0, 0], [0, 1.0]]).view(2, 1, 2, 1, 1).expand(2, 1, 2, *SIZE)
    valid = torch.ones(1, *SIZE, dtype=torch.bool)
    valid[:, :4, :4] = False
    for kind, expected in {"js": 0.0, "agree": 0.0, "kl": 1e-6}.items():
        weight = region_reliability(q, valid, CELL, kind)
        assert torch.isfinite(weight).all()
        assert weight[0, 1, 1].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_pixel_that_a_network_excludes_does_not_silence_its_region(dtype):
    z = torch.tensor([1e4, -1e4, -1e4], dtype=dtype).view(3, 1, 1).repeat(2, 1, 1, 4, 4)
    z[1, 0, :, 2, 1] = torch.tensor([-1e4, 1e4, -1e4], dtype=dtype)
    weight = region_reliability(z.softmax(2), torch.ones(1, 4, 4, dtype=torch.bool), 4, "kl")
    assert weight.item() == pytest.approx(1e-6 ** (1 / 16))


@pytest.mark.parametrize("norm", ["count", "sum_w"])
def test_dynamic_region_loss_by_loops(norm):
    error, valid, _ = planes()
    valid[2] = False  # an image of padding alone
    weight = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images = []
    for b in range(3):
        total, count = 0.0, 0.0
        for region in GRID:
            inside = [error[b, i, j].item() for i, j in pixels(region) if valid[b, i, j]]
            if inside:
                w = weight[(b, *region)].item()
                total, count = total + w * sum(inside) / len(inside), count + (w if norm == "sum_w" else 1)
        if count:
            images.append(total / count)
    assert len(images) == 2
    assert dynamic_region_loss(error, valid, weight, CELL, norm).item() == pytest.approx(sum(images) / 2)
    error.requires_grad_()
    small = torch.zeros_like(valid)
    small[:, 3:6, 3:6] = valid[:, 3:6, 3:6]
    assert torch.autograd.gradcheck(lambda x: dynamic_region_loss(x, small, weight, CELL, norm), error)
    dynamic_region_loss(error, valid, weight, CELL, norm).backward()
    assert error.grad[~valid].abs().max() == 0
    for nothing in ((valid & False, weight), (valid, weight * 0)):
        loss = dynamic_region_loss(error, nothing[0], nothing[1], CELL, norm)
        assert loss.item() == 0
        assert torch.autograd.grad(loss, error)[0].abs().max() == 0


def test_at_weight_one_it_is_the_mean_of_region_means_and_not_of_pixels():
    error, valid = planes()[0], torch.ones(3, *SIZE, dtype=torch.bool)
    found = dynamic_region_loss(error, valid, torch.ones(3, 2, 2), CELL)
    torch.testing.assert_close(found, region_means(error, valid, CELL)[0].mean())
    assert found.item() != pytest.approx(error.mean().item(), rel=1e-3)
    even = error[:, :8, :8], valid[:, :8, :8]
    torch.testing.assert_close(dynamic_region_loss(*even, torch.ones(3, 2, 2), CELL), even[0].mean())


def test_losses_are_finite_in_bfloat16():
    error, valid, q = planes()
    weight = region_reliability(q.bfloat16(), valid, CELL, "js")
    assert weight.dtype == torch.float32
    assert torch.isfinite(dynamic_region_loss(error.float(), valid, weight, CELL))


# Diagnostics ----------------------------------------------------------------------------------------------------------


def test_report_of_regions_by_loops():
    generator = torch.Generator().manual_seed(0)
    report, rows = RegionReport(0.5), []
    for _ in range(3):
        mask = torch.randint(0, 2, (1, *SIZE), generator=generator)
        mask[0, :4, :4] = 255
        judged, weight = torch.rand(2, 2, 1, 2, 2, generator=generator), torch.rand(1, 2, 2, generator=generator)
        wrong = torch.rand(2, 1, 2, 2, generator=generator) > 0.5
        labels = torch.stack([torch.where(at_pixels(one, SIZE, CELL), 1 - mask, mask) for one in wrong])
        scores = region_scores(judged, "mean")
        report.update(judged, scores, weight, labels, mask, CELL)
        for k, region in itertools.product(range(2), GRID[1:]):
            at = (0, *region)
            values = (judged[(k, k, *at)], judged[(1 - k, k, *at)], scores[(k, *at)], weight[at])
            rows.append([not wrong[(k, *at)], *(value.item() for value in values)])
    right, own, cross, score, weight = np.array(rows, float).T
    found = {name: value.item() for name, value in report.compute().items()}

    def auroc(values):
        pairs = [(a > b) + (a == b) / 2 for a in values[right == 1] for b in values[right == 0]]
        return sum(pairs) / len(pairs)

    assert found == pytest.approx(
        {
            "precision_all": right.mean(),
            "precision_kept": right[score > 0.5].mean(),
            "auroc": auroc(score),
            "auroc_own": auroc(own),
            "auroc_cross": auroc(cross),
            "weight_correlation": np.corrcoef(weight, right)[0, 1],
        },
        rel=1e-5,
    )


def test_a_report_of_no_region_is_nan():
    """Images smaller than a region are left out of it; a split may hold no other."""
    assert all(value.isnan() for value in RegionReport(0.5).compute().values())
