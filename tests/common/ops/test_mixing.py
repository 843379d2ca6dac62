import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.ops.batch import IGNORE
from common.ops.mixing import box_masks, class_masks, cow_masks, key_uniform, mix, partners, swap_pairs

quick = settings(max_examples=25, deadline=None)
sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
seeds = st.integers(0, 2**32)


def keys(count, epoch=0):
    return torch.tensor([[epoch, position] for position in range(count)])


def stream(seed, batch, size, classes=5):
    """Every entry tells the pixel it came from: its value is a function of (image, row, column)."""
    generator = torch.Generator().manual_seed(seed)
    origin = torch.arange(batch * size[0] * size[1], dtype=torch.float64).view(batch, *size)
    valid = torch.rand(batch, *size, generator=generator) < 0.8
    labels = torch.randint(0, classes, (batch, *size), generator=generator)
    unlabeled = torch.rand(batch, *size, generator=generator) < 0.3
    return {
        "image": torch.stack([origin, origin + 0.25, origin + 0.5], 1),
        "mask": labels.masked_fill(unlabeled | ~valid, IGNORE),
        "valid": valid,
        "weight": origin,
        "probabilities": torch.stack([origin] * classes, 1),
        "strong": origin[:, None, None].expand(-1, 2, 3, -1, -1),
        "key": keys(batch),
        "name": [str(number) for number in range(batch)],
        "size": torch.tensor([size] * batch),
        "tags": torch.ones(batch, classes, dtype=torch.bool),
    }


def random_mask(seed, batch, size):
    return torch.rand(batch, *size, generator=torch.Generator().manual_seed(seed)) < 0.5


PLANES = {"image", "mask", "valid", "weight", "probabilities", "strong"}


# Mixing ---------------------------------------------------------------------------------------------------------------


@quick
@given(seed=seeds, pairs=st.integers(1, 3), size=sizes)
def test_all_entries_are_mixed_by_the_same_mask(seed, pairs, size):
    one = stream(seed, 2 * pairs, size)
    mask = random_mask(seed + 1, 2 * pairs, size)
    mixed = mix(one, mask, partners(one))
    assert mixed.keys() == PLANES  # a mixed image has no name, size, key or tags
    origin = torch.where(mask, one["weight"], one["weight"].view(-1, 2, *size).flip(1).view(-1, *size))
    assert torch.equal(mixed["weight"], origin)
    assert torch.equal(mixed["image"], torch.stack([origin, origin + 0.25, origin + 0.5], 1))
    assert (mixed["probabilities"] == origin[:, None]).all()
    assert (mixed["strong"] == origin[:, None, None]).all()
    for name in ("mask", "valid"):  # look up where each pixel came from
        assert torch.equal(mixed[name], one[name].flatten()[origin.long()])
        assert mixed[name].dtype == one[name].dtype


@quick
@given(seed=seeds, pairs=st.integers(1, 3), size=sizes)
def test_no_label_is_invented_and_padding_stays_unlabelled(seed, pairs, size):
    one = stream(seed, 2 * pairs, size)
    mixed = mix(one, random_mask(seed + 1, 2 * pairs, size), partners(one))
    for index, labels in enumerate(mixed["mask"]):
        both = {*one["mask"][index].unique().tolist(), *one["mask"][index ^ 1].unique().tolist()}
        assert {*labels.unique().tolist()} <= both | {IGNORE}
    assert (mixed["mask"][~mixed["valid"]] == IGNORE).all()


@quick
@given(seed=seeds, pairs=st.integers(1, 3), size=sizes)
def test_mixing_twice_by_a_mask_that_a_pair_shares_undoes_it(seed, pairs, size):
    one = stream(seed, 2 * pairs, size)
    mask = random_mask(seed + 1, pairs, size).repeat_interleave(2, 0)
    once = mix(one, mask, partners(one))
    twice = mix(once, mask, partners(once))
    assert all(torch.equal(twice[name], one[name]) for name in PLANES)


@quick
@given(seed=seeds, size=sizes)
def test_full_mask_is_the_image_and_empty_mask_its_partner(seed, size):
    one = stream(seed, 4, size)
    other = partners(one)
    full = torch.ones(4, *size, dtype=torch.bool)
    assert all(torch.equal(value, one[name]) for name, value in mix(one, full, other).items())
    assert all(torch.equal(value, other[name]) for name, value in mix(one, ~full, other).items())
    # the complement swaps the sources
    mask = random_mask(seed, 4, size)
    forth, back = mix(one, mask, other), mix(other, ~mask, one)
    assert all(torch.equal(forth[name], back[name]) for name in PLANES)


def test_a_pair_does_not_depend_on_its_batch():
    one = stream(0, 8, (6, 5))
    mask = random_mask(1, 8, (6, 5))
    part = {name: value[2:6] for name, value in one.items()}
    whole, some = mix(one, mask, partners(one)), mix(part, mask[2:6], partners(part))
    assert all(torch.equal(whole[name][2:6], some[name]) for name in PLANES)


def test_partners_are_2i_and_2i_plus_1():
    assert swap_pairs(torch.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]
    with pytest.raises(ValueError, match=r"3 images at once: make the batch .* even"):
        swap_pairs(torch.zeros(3, 1, 2, 2))


def test_gradients_flow_to_the_pixels_that_were_taken():
    image = torch.rand(2, 3, 4, 4, requires_grad=True)
    mask = random_mask(0, 1, (4, 4)).expand(2, -1, -1)
    mixed = mix({"image": image}, mask, partners({"image": image}))
    mixed["image"][0].sum().backward()
    assert torch.equal(image.grad[0], mask[:1].expand(3, -1, -1).float())
    assert torch.equal(image.grad[1], (~mask[:1]).expand(3, -1, -1).float())


@pytest.mark.parametrize(
    ("mask", "other", "message"),
    [
        (torch.ones(2, 4, 4), {}, "bool"),
        (torch.ones(2, 1, 4, 4, dtype=torch.bool), {}, "bool"),
        (torch.ones(2, 4, 5, dtype=torch.bool), {}, "'image' .* do not fit"),
        (torch.ones(2, 4, 4, dtype=torch.bool), {"image": torch.zeros(2, 3, 4, 5)}, "'image' .* do not fit"),
        (torch.ones(2, 4, 4, dtype=torch.bool), {"valid": torch.zeros(2, 4, 4)}, "same entries"),
    ],
)
def test_what_does_not_fit_is_named(mask, other, message):
    one = {"image": torch.zeros(2, 3, 4, 4)}
    with pytest.raises(ValueError, match=message):
        mix(one, mask, {**one, **other})


# Masks ----------------------------------------------------------------------------------------------------------------

KINDS = {
    "box": lambda key, seed=0: box_masks(key, (33, 20), seed=seed),
    "boxes": lambda key, seed=0: box_masks(key, (33, 20), boxes=3, area=(0.1, 0.6), probability=0.7, seed=seed),
    "class": lambda key, seed=0: class_masks(
        (torch.arange(33 * 20).view(1, 33, 20) // 47 % 6).expand(len(key), -1, -1), key, 6, seed=seed
    ),
    "cow": lambda key, seed=0: cow_masks(key, (33, 20), sigma=(1, 4), share=(0.2, 0.8), seed=seed),
}


@pytest.mark.parametrize("kind", KINDS)
def test_masks_depend_on_the_sample_and_the_seed_alone(kind):
    key = keys(12, epoch=3)
    masks = KINDS[kind](key)
    assert masks.shape == (12, 33, 20)
    assert masks.dtype == torch.bool
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(KINDS[kind](key[shuffled]), masks[shuffled])
    assert torch.equal(KINDS[kind](key[5:6]), masks[5:6])
    assert not torch.equal(KINDS[kind](key, seed=1), masks)
    assert not torch.equal(KINDS[kind](keys(12, epoch=4)), masks)
    assert len({mask.numpy().tobytes() for mask in masks}) > 4


def test_one_box_of_half_the_area_has_it():
    masks = box_masks(keys(1000), (90, 120))
    shares = masks.float().mean((1, 2))
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.002)
    assert float((shares - 0.5).abs().max()) < 0.02  # rounded to pixels
    for mask in masks[:50]:  # a full rectangle, no side shorter than half the image's
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)
        assert int(rows.sum()) >= 45
        assert int(columns.sum()) >= 60
    # log-uniform between a and 1: half of the heights above sqrt(a)
    tall = (masks.any(2).sum(1) / 90 > math.sqrt(0.5)).float().mean()
    assert float(tall) == pytest.approx(0.5, abs=0.06)


@quick
@given(
    low=st.floats(0.01, 1), high=st.floats(0.01, 1), aspect=st.none() | st.tuples(st.floats(0.1, 1), st.floats(1, 9))
)
def test_a_box_keeps_to_its_ranges(low, high, aspect):
    low, high = sorted((low, high))
    masks = box_masks(keys(40), (200, 100), area=(low, high), aspect=aspect)
    height, width = masks.any(2).sum(1) / 200, masks.any(1).sum(1) / 100
    rounding = 0.0026 * width + 0.0051 * height + 1e-4  # half a pixel on each side
    assert (height * width >= low - rounding).all()
    assert (height * width <= high + rounding).all()
    if aspect is not None:
        assert (height - 0.0026 <= aspect[1] * (width + 0.0051)).all()
        assert (height + 0.0026 >= aspect[0] * (width - 0.0051)).all()


def test_boxes_at_the_ends_of_their_ranges():
    assert box_masks(keys(5), (7, 9), area=(1, 1)).all()
    assert not box_masks(keys(5), (7, 9), area=(1e-6, 1e-6)).any()
    assert not box_masks(keys(5), (7, 9), probability=0).any()
    present = box_masks(keys(2000), (40, 40), area=(0.02, 0.4), aspect=(0.3, 1 / 0.3), probability=0.5).any(2).any(1)
    assert float(present.float().mean()) == pytest.approx(0.5, abs=0.04)
    # sides times sqrt(1/n), exclusive or: never more than the sum of the boxes
    shares = box_masks(keys(200), (60, 60), boxes=4).float().mean((1, 2))
    assert 0.2 < float(shares.mean()) < 0.5
    assert float(shares.max()) <= 0.55


@pytest.mark.parametrize("bad", [{"area": (0, 0.5)}, {"area": (0.6, 0.5)}, {"area": (0.5, 1.1)}, {"aspect": (2, 1)}])
def test_impossible_ranges_are_refused(bad):
    with pytest.raises(ValueError, match="low <= high"):
        box_masks(keys(2), (8, 8), **bad)


@quick
@given(seed=seeds, size=sizes, classes=st.integers(1, 8))
def test_class_masks_take_whole_classes_half_of_them_and_never_unlabelled_pixels(seed, size, classes):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes + 1, (3, *size), generator=generator)
    labels[labels == classes] = IGNORE
    masks = class_masks(labels, keys(3), classes, seed=seed)
    for mask, label in zip(masks, labels, strict=True):
        inside, outside = ({*label[part].tolist()} for part in (mask, ~mask))
        assert not inside & outside
        assert IGNORE not in inside
        assert len(inside) == len((inside | outside) - {IGNORE}) // 2


def test_every_class_is_chosen_as_often():
    labels = torch.arange(4).view(1, 2, 2).expand(3000, -1, -1)
    chosen = class_masks(labels, keys(3000), 4).float().mean(0)
    assert (chosen - 0.5).abs().max() < 0.04


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_cow_masks_have_about_the_drawn_share(share):
    found = cow_masks(keys(32), (128, 128), share=(share, share), sigma=(4, 8)).float().mean((1, 2))
    assert float(found.mean()) == pytest.approx(share, abs=0.02)
    assert float((found - share).abs().max()) < 0.1


def test_cow_masks_are_blotches_whose_size_grows_with_sigma():
    def borders(sigma):
        masks = cow_masks(keys(16), (128, 128), sigma=(sigma, sigma))
        return float((masks[:, 1:] != masks[:, :-1]).float().mean())

    # chance that neighbours differ, for Gaussian noise blurred by sigma and cut in half: acos(exp(-1/(4 sigma^2))) / pi
    for sigma in (2, 4, 8):
        assert borders(sigma) == pytest.approx(math.acos(math.exp(-1 / (4 * sigma**2))) / math.pi, rel=0.1)


# Numbers --------------------------------------------------------------------------------------------------------------


def reference_uniform(key, count, seed):
    """SplitMix64 in Python's own whole numbers."""
    top, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def scramble(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & top
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & top
        return z ^ (z >> 31)

    state = seed & top
    for number in key:
        state = (scramble((state + golden) & top) + number) & top
    state = scramble(state)
    return [(scramble((state + step * golden) & top) >> 40) / 2**24 for step in range(1, count + 1)]


@quick
@given(epoch=st.integers(0, 10**6), position=st.integers(0, 10**9), seed=st.integers(-(2**63), 2**64 - 1))
def test_numbers_are_those_of_the_published_hash(epoch, position, seed):
    drawn = key_uniform(torch.tensor([[epoch, position]]), 5, seed)
    assert drawn[0].tolist() == reference_uniform((epoch, position), 5, seed)
    assert torch.equal(key_uniform(torch.tensor([[epoch, position]]), 3, seed), drawn[:, :3])


def test_numbers_are_uniform_and_independent():
    grid = torch.cartesian_prod(torch.arange(20), torch.arange(200))
    drawn = torch.cat([key_uniform(grid, 4), key_uniform(grid, 4, seed=1)], 1)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = torch.histc(drawn, 16, 0, 1)
    expected = drawn.numel() / 16
    assert float(((counts - expected) ** 2 / expected).sum()) < 40  # chi-square, 15 degrees: 1 in 2000
    along = torch.cat([drawn.T, drawn.roll(1, 0).T, drawn.roll(200, 0).T])  # next position, next epoch
    assert (torch.corrcoef(along) - torch.eye(24)).abs().max() < 0.07
    assert drawn.unique(dim=0).shape[0] == 4000
