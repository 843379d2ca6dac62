"""Geometry shared by image and mask, and strong views."""

import math

import numpy as np
import pytest
import torch
from kornia import enhance, filters
from lightning.pytorch.utilities import move_data_to_device

from datamodules.scenes import draw_scene
from datamodules.sets.synthetic import Synthetic
from datamodules.transforms import (
    DRAWS,
    STRONG_DRAWS,
    _strong_view,
    draw_strong,
    draw_uniform,
    fit_size,
    pad_to,
    random_crop,
    resize_image,
    strong_view,
    turn_hue,
)


def scene(batch=3, height=12, width=10):
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 5, (batch, height, width), generator=generator)
    image = (mask[:, None].float() / 5).expand(-1, 3, -1, -1).contiguous()
    return image, mask


def test_identity_keeps_image_and_mask():
    image, mask = scene()
    extent = torch.tensor([[12, 10]] * 3)
    out, label, valid = random_crop(image, mask, extent, torch.full((3, 4), 0.7), (12, 10), (1.0, 1.0), True)
    assert torch.allclose(out, image, atol=1e-5)
    assert (label == mask).all()
    assert valid.all()


def test_flip_mirrors_image_and_mask_together():
    image, mask = scene()
    extent = torch.tensor([[12, 10]] * 3)
    draws = torch.tensor([[0.5, 0.5, 0.5, 0.2], [0.5, 0.5, 0.5, 0.8], [0.5, 0.5, 0.5, 0.4]])
    out, label, _ = random_crop(image, mask, extent, draws, (12, 10), (1.0, 1.0), True)
    assert (label[0] == mask[0].flip(1)).all()
    assert (label[1] == mask[1]).all()
    assert torch.allclose(out[2], image[2].flip(2), atol=1e-5)


@pytest.mark.parametrize("scale", [(0.5, 0.5), (1.0, 1.0), (0.5, 2.0), (3.0, 3.0)])
def test_image_and_mask_share_their_geometry_and_no_label_is_invented(scale):
    image, mask = scene(16)
    # large constant blocks, so that bilinear equals nearest away from their edges
    mask = mask[:, :2, :2].repeat_interleave(20, 1).repeat_interleave(20, 2)
    image = (mask[:, None].float() / 5).expand(-1, 3, -1, -1).contiguous()
    extent = torch.tensor([[40, 40]] * 16)
    draws = draw_uniform(0, torch.stack([torch.zeros(16), torch.arange(16)], 1).long())
    out, label, valid = random_crop(image, mask, extent, draws, (32, 24), scale, True)
    assert set(label.unique().tolist()) <= {*mask.unique().tolist(), 255}
    assert ((label == 255) == ~valid).all()
    agree = ((out[:, 0] * 5).round().long() == label)[valid].float().mean()
    assert agree > 0.9


def test_padding_is_neither_seen_nor_valid():
    image, mask = scene(1, 8, 8)
    image[:, :, 5:], mask[:, 5:] = -100.0, 3  # rows 5.. are padding with a poison in them
    extent = torch.tensor([[5, 8]])
    out, label, valid = random_crop(
        image, mask, extent, torch.tensor([[0.5, 0.3, 0.5, 0.9]]), (8, 8), (0.9, 0.9), False
    )
    assert out.min() >= 0
    assert not valid.all()
    assert (label[~valid] == 255).all()
    full = random_crop(image, mask, extent, torch.tensor([[0.5, 0.0, 0.0, 0.9]]), (5, 8), (1.0, 1.0), False)
    assert full[2].all()
    assert (full[1] == mask[:, :5]).all()


def test_a_sample_does_not_depend_on_its_batch():
    image, mask = scene(8)
    keys = torch.tensor([[1, position] for position in range(8)])
    extent = torch.tensor([[12, 10]] * 8)
    whole = random_crop(image, mask, extent, draw_uniform(5, keys), (9, 9), (0.5, 2.0), True)
    part = random_crop(image[4:6], mask[4:6], extent[4:6], draw_uniform(5, keys[4:6]), (9, 9), (0.5, 2.0), True)
    for one, other in zip(whole, part, strict=True):
        assert torch.equal(one[4:6], other)


def test_draws_are_uniform_and_differ_with_seed_epoch_and_position():
    draws = draw_uniform(0, torch.tensor([[0, p] for p in range(2000)]))
    assert abs(float(draws.mean()) - 0.5) < 0.02
    assert draws.unique(dim=0).shape[0] == 2000
    assert not torch.equal(draw_uniform(0, torch.tensor([[1, 0]])), draws[:1])
    assert not torch.equal(draw_uniform(1, torch.tensor([[0, 0]])), draws[:1])


@pytest.mark.parametrize(
    ("size", "box", "expected"),
    [
        ((100, 200), (50, 50), (25, 50)),
        ((200, 100), (50, 50), (50, 25)),
        ((3, 1000), (10, 10), (1, 10)),
        ((5, 5), (9, 7), (7, 7)),
    ],
)
def test_fit_size_keeps_proportions_inside_the_box(size, box, expected):
    assert fit_size(size, box) == expected


def test_resize_and_pad():
    image = np.full((10, 20, 3), 7, np.uint8)
    assert resize_image(image, (5, 10)).shape == (5, 10, 3)
    assert resize_image(image, (10, 20)) is image
    padded = pad_to(image, (12, 24), 0)
    assert padded.shape == (12, 24, 3)
    assert padded[:10, :20].min() == 7
    assert padded[10:].max() == 0


# Strong views ---------------------------------------------------------------------------------------------------------


def photos(count, side=48):
    scenes = [torch.from_numpy(draw_scene(0, number, side)[0]).permute(2, 0, 1) for number in range(count)]
    return torch.stack(scenes).float() / 255


def test_numbers_of_the_geometry_are_frozen():
    """Tables were made with them."""
    expected = [[0.77657783, 0.98955524, 0.96127689, 0.03165548], [0.60027480, 0.54927963, 0.17813541, 0.67621362]]
    assert torch.allclose(draw_uniform(7, torch.tensor([[0, 3], [2, 5]])), torch.tensor(expected), atol=1e-7, rtol=0)


def test_strong_numbers_are_the_samples_own_and_not_those_of_the_geometry():
    keys = torch.tensor([[epoch, position] for epoch in range(2) for position in range(500)])
    draws = draw_strong(3, keys, 2)
    assert draws.shape == (1000, 2, STRONG_DRAWS)
    assert np.array_equal(draw_strong(3, keys[40:41], 2)[0], draws[40])
    assert np.array_equal(draw_strong(3, keys, 3)[:, :2], draws)  # a view does not depend on how many there are
    assert abs(draws.mean() - 0.5) < 0.01
    columns = np.concatenate([draws.reshape(1000, -1), draw_uniform(3, keys).numpy(), draw_strong(4, keys, 1)[:, 0]], 1)
    assert np.abs(np.corrcoef(columns.T) - np.eye(columns.shape[1])).max() < 0.15
    assert columns.shape[1] == 3 * STRONG_DRAWS + DRAWS


def test_strong_view_stays_in_range_and_does_not_depend_on_its_batch():
    image = photos(12)
    draws = draw_strong(0, torch.tensor([[1, position] for position in range(12)]), 1)[:, 0]
    kept = image.clone()
    out = strong_view(image, draws)
    assert torch.equal(image, kept)
    assert out.shape == image.shape
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert torch.equal(strong_view(image[4:7], draws[4:7]), out[4:7])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(strong_view(image[order], draws[order.numpy()]), out[order])
    changed = (out - image).abs().mean((1, 2, 3))
    assert (changed > 0.02).sum() >= 6
    for black_or_white in (torch.zeros(1, 3, 9, 9), torch.ones(1, 3, 9, 9)):
        assert torch.isfinite(strong_view(black_or_white, draws[:1])).all()


def test_samples_at_once_equal_samples_one_by_one():
    """A GPU handles the batch at once, the CPU image by image."""
    image, draws = photos(8), draw_strong(0, torch.tensor([[0, position] for position in range(8)]), 1)[:, 0]
    assert torch.allclose(_strong_view(image, draws), strong_view(image, draws), atol=1e-6)


def step_by_step(image, draw):
    """One image, from the description."""
    jitter, brightness, contrast, saturation, hue, grey, blur, sigma = draw.tolist()
    if jitter < 0.8:
        image = enhance.adjust_brightness_accumulative(image, 0.5 + brightness)
        image = enhance.adjust_contrast_with_mean_subtraction(image, 0.5 + contrast)
        image = enhance.adjust_saturation_with_gray_subtraction(image, 0.5 + saturation)
        image = enhance.adjust_hue(image, 2 * math.pi * (0.5 * hue - 0.25))
    if grey < 0.2:
        image = (image * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    if blur < 0.5:
        image = filters.gaussian_blur2d(image, 13, (0.1 + 1.9 * sigma,) * 2, "replicate")
    return image


def test_strong_view_equals_its_steps():
    image, draws = photos(16), draw_strong(5, torch.tensor([[0, position] for position in range(16)]), 1)[:, 0]
    out = strong_view(image, draws)
    steps = torch.cat([step_by_step(image[i : i + 1], draws[i]) for i in range(16)])
    assert torch.allclose(out, steps, atol=1e-5)
    happened = {*((draws[:, [0, 5, 6]] < [0.8, 0.2, 0.5]) @ [1, 2, 4]).tolist()}
    assert len(happened) >= 4  # several combinations were seen
    nothing = np.full((16, STRONG_DRAWS), 0.9, np.float32)
    assert torch.equal(strong_view(image, nothing), image)


def test_hue_equals_kornias_and_turns_back():
    image = torch.cat([photos(4), torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))])
    image[0, :, :4] = 0.5  # grey has no hue
    turns = torch.linspace(-0.25, 0.25, 8)
    turned = turn_hue(image, turns)
    assert torch.allclose(turned, enhance.adjust_hue(image, 2 * math.pi * turns), atol=1e-5)
    assert torch.allclose(turn_hue(turned, -turns), image, atol=1e-5)
    assert torch.allclose(turned[0, :, :4], image[0, :, :4])


def unlabeled_stream(views, positions=(0, 1, 2, 3)):
    """The unlabelled stream of a training step, as a method gets it."""
    data = Synthetic(
        train=12, side=40, size=40, crop=[32, 32], batch_size=2, unlabeled_batch_size=4, strong_views=views, seed=5
    )
    images = [torch.from_numpy(data.image(f"train{position:05d}")).permute(2, 0, 1) for position in positions]
    stream = {
        "image": torch.stack(images),
        "mask": torch.full((len(positions), 40, 40), 255, dtype=torch.uint8),
        "extent": torch.full((len(positions), 2), 40),
        "key": torch.tensor([[0, position] for position in positions]),
        "name": [str(position) for position in positions],
    }
    batch = {"labeled": {name: value[:2] for name, value in stream.items()}, "unlabeled": stream}
    moved = move_data_to_device(data.on_before_batch_transfer(batch, 0), torch.device("cpu"))
    return data.on_after_batch_transfer(moved, 0)


def test_streams_with_and_without_views():
    plain, batch = unlabeled_stream(0)["unlabeled"], unlabeled_stream(2)
    strong = batch["unlabeled"].pop("strong")
    assert "strong" not in batch["labeled"]  # consistency is between views of unlabelled images
    assert batch["unlabeled"].keys() == plain.keys()
    for name in ("image", "mask", "valid"):  # the geometry and the weak view stay
        assert torch.equal(batch["unlabeled"][name], plain[name])
    assert strong.shape == (4, 2, 3, 32, 32)
    assert not torch.equal(strong[:, 0], strong[:, 1])
    some = unlabeled_stream(2, positions=(2, 3))["unlabeled"]["strong"]
    assert torch.equal(some, strong[2:])
    # same geometry: edges of the view lie where those of the image are
    edges = [(image[..., 1:] - image[..., :-1]).abs().mean(1).flatten() for image in (plain["image"], strong[:, 0])]
    assert float(torch.corrcoef(torch.stack(edges))[0, 1]) > 0.5


def test_views_need_unlabelled_images():
    with pytest.raises(ValueError, match=r"strong_views=1 .* set data.unlabeled_batch_size above 0"):
        Synthetic(strong_views=1).train_dataloader()
