"""Losses of bounding boxes: hand values, slow formulas, what is in no mean, gradients."""

import itertools
import math

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from common.ops.batch import IGNORE
from common.ops.boxes import class_boxes, pairwise_loss, projection_loss, rgb_to_lab

generator = torch.Generator().manual_seed(0)


def scene(classes=3):
    logits = torch.randn(2, classes, 7, 9, generator=generator).double()
    image = torch.rand(2, 3, 7, 9, generator=generator).double()
    image[:, :, 2:6, 2:7] = 0.02 * image[:, :, 2:6, 2:7] + 0.4
    mask = torch.zeros(2, 7, 9, dtype=torch.int64)
    mask[0, 1:5, 2:6], mask[1, 3:, 3:9] = 1, 2
    valid = torch.ones(2, 7, 9, dtype=torch.bool)
    valid[1, :, 7:] = False
    return logits, image, mask, valid


def test_colours_in_lab_are_scikit_images():
    image = torch.rand(2, 3, 5, 6, generator=generator).double()
    image[0, :, 0, :3] = torch.eye(3)
    image[1, :, 0, :2] = torch.tensor([[0.0, 1.0]]).expand(3, 2)
    wanted = rgb2lab(image.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(rgb_to_lab(image).permute(0, 2, 3, 1).numpy(), wanted, atol=1e-4)
    assert rgb_to_lab(image.bfloat16()).dtype == torch.float32


def test_a_mask_that_touches_all_sides_of_its_box_has_no_projection_loss():
    box = torch.zeros(1, 6, 8, dtype=torch.bool)
    box[0, 1:5, 2:6] = True
    diagonal = torch.zeros(1, 6, 8)
    diagonal[0, range(1, 5), range(2, 6)] = 1
    for p in (box.float(), diagonal):
        assert projection_loss(p, box).item() == pytest.approx(0, abs=1e-5)
    assert projection_loss(torch.zeros_like(diagonal), box).item() == pytest.approx(2)
    everywhere = 2 - 2 * 4 / (8 + 4) - 2 * 4 / (6 + 4)  # columns, then rows
    assert projection_loss(torch.ones_like(diagonal), box).item() == pytest.approx(everywhere, abs=1e-5)
    half = torch.full_like(diagonal, 0.5) * box
    assert projection_loss(half, box).item() == pytest.approx(2 * (1 - 2 * 2 / (1 + 4)), abs=1e-5)


def test_the_projection_loss_is_a_mean_over_masks_and_zero_without_one():
    logits, _, mask, _ = scene()
    p = logits.requires_grad_().softmax(1)
    planes, chosen = class_boxes(mask, p)
    assert planes.shape == chosen.shape == (2, 7, 9)
    assert torch.equal(planes[0], mask[0] == 1)
    torch.testing.assert_close(chosen[1], p[1, 2])
    alone = [projection_loss(chosen[n : n + 1], planes[n : n + 1]) for n in range(2)]
    torch.testing.assert_close(projection_loss(chosen, planes), sum(alone) / 2)
    nothing = projection_loss(*class_boxes(torch.zeros_like(mask), p)[::-1])
    (slope,) = torch.autograd.grad(nothing, logits, allow_unused=True)
    assert nothing.item() == 0
    assert slope is None or not slope.any()
    mask[0, :, 0] = IGNORE
    assert not class_boxes(mask, p)[1][0, :, 0].any()
    with pytest.raises(ValueError, match=r"p and boxes must be \(N, H, W\)"):
        projection_loss(p, planes)


def slow_pairs(logits, image, inside, valid, threshold, dilation):
    """The formula, pair by pair."""
    lab = torch.from_numpy(rgb2lab(image.permute(0, 2, 3, 1).numpy()))
    p, losses = logits.softmax(1), []
    (count, _, height, width), steps = logits.shape, (-dilation, 0, dilation)
    for b, y, x, dy, dx in itertools.product(range(count), range(height), range(width), steps, steps):
        v, u = y + dy, x + dx
        if (dy, dx) == (0, 0) or not (0 <= v < height and 0 <= u < width):
            continue
        alike = math.exp(-float((lab[b, y, x] - lab[b, v, u]).norm()) / 2) >= threshold
        if alike and inside[b, y, x] and valid[b, y, x] and valid[b, v, u]:
            losses.append(-(p[b, :, y, x] * p[b, :, v, u]).sum().log())
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize(("threshold", "dilation"), [(0.3, 2), (0.1, 1), (0.0, 3)])
def test_the_pairwise_loss_is_the_slow_formulas(threshold, dilation):
    logits, image, mask, valid = scene()
    wanted, count = slow_pairs(logits, image, mask > 0, valid, threshold, dilation)
    assert count > 10
    found = pairwise_loss(logits, image, mask > 0, valid, threshold, dilation)
    assert found.item() == pytest.approx(wanted.item())


def test_two_classes_have_the_papers_probability_of_being_alike():
    p = torch.tensor([0.9, 0.2, 0.5]).double()
    logits = torch.stack([(1 - p).log(), p.log()])[None, :, None]
    plane = torch.ones(1, 1, 3, dtype=torch.bool)
    image = torch.full((1, 3, 1, 3), 0.5)
    wanted = -(math.log(0.9 * 0.2 + 0.1 * 0.8) + math.log(0.2 * 0.5 + 0.8 * 0.5)) / 2
    assert pairwise_loss(logits, image, plane, plane, dilation=1).item() == pytest.approx(wanted)


def test_padding_is_in_no_pair_and_no_pair_is_no_loss():
    logits, image, mask, valid = scene()
    logits.requires_grad_()
    loss = pairwise_loss(logits, image, mask > 0, valid)
    (slope,) = torch.autograd.grad(loss, logits)
    assert not slope[1, :, :, 7:].any()
    assert slope.any()
    other = torch.where(valid[:, None], logits, torch.randn_like(logits))
    torch.testing.assert_close(pairwise_loss(other, image, mask > 0, valid), loss)
    for inside, there in ((mask > 9, valid), (mask > 0, valid & False)):
        nothing = pairwise_loss(logits, image, inside, there)
        (slope,) = torch.autograd.grad(nothing, logits)
        assert nothing.item() == 0
        assert not slope.any()
    row = pairwise_loss(logits[:, :, :1, :2], image[:, :, :1, :2], mask[:, :1, :2] >= 0, valid[:, :1, :2])
    assert row.item() == 0


def test_gradients_are_those_of_finite_differences_and_half_types_are_raised():
    logits, image, mask, valid = scene()
    logits.requires_grad_()
    torch.autograd.gradcheck(lambda x: pairwise_loss(x, image, mask > 0, valid), logits)
    torch.autograd.gradcheck(lambda x: projection_loss(*class_boxes(mask, x.softmax(1))[::-1]), logits)
    half = logits.detach().bfloat16().requires_grad_()
    planes, p = class_boxes(mask, half.softmax(1))
    loss = projection_loss(p, planes) + pairwise_loss(1e4 * half, image.bfloat16(), mask > 0, valid)
    (slope,) = torch.autograd.grad(loss, half)
    assert loss.dtype == torch.float32
    assert torch.isfinite(slope).all()
