import numpy as np
import pytest
import torch

from datamodules.transforms import draw_uniform, fit_size, pad_to, random_crop, resize_image


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
