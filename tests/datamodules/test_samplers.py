"""The order of the images: by seed and epoch, shared by ranks, resumed where it stopped."""

from collections import Counter
from functools import partial
from math import exp
from types import SimpleNamespace

import numpy as np
import pytest

from datamodules.samplers import EpochSampler, class_chances, class_order, epoch_order, group_counts, group_order


def fake_trainer(rank=0, ranks=1, epoch=0, processed=0, restarting=False, overfit_batches=0):
    progress = SimpleNamespace(current=SimpleNamespace(processed=processed))
    loop = SimpleNamespace(
        epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=epoch)),
        epoch_loop=SimpleNamespace(batch_progress=progress),
        restarting=restarting,
    )
    return SimpleNamespace(world_size=ranks, global_rank=rank, fit_loop=loop, overfit_batches=overfit_batches)


def test_an_epoch_repeats_a_short_list_evenly_and_reshuffles_each_round():
    order = epoch_order(length=5, count=13, seed=3, epoch=2)
    assert sorted(order[:5]) == list(range(5)) == sorted(order[5:10])
    assert list(order[:5]) != list(order[5:10])
    assert set(Counter(order.tolist()).values()) <= {2, 3}


def test_order_depends_on_seed_and_epoch_only():
    assert (epoch_order(50, 50, 0, 1) == epoch_order(50, 50, 0, 1)).all()
    assert (epoch_order(50, 50, 0, 1) != epoch_order(50, 50, 0, 2)).any()
    assert (epoch_order(50, 50, 0, 1) != epoch_order(50, 50, 1, 1)).any()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_each_global_batch_in_whole_pairs(ranks):
    one = list(EpochSampler(10, batch=8, steps=3, seed=0))
    shards = [list(EpochSampler(10, 8, 3, 0, fake_trainer(rank, ranks))) for rank in range(ranks)]
    for step in range(3):
        assert [draw for shard in shards for draw in shard[step]] == one[step]
        for shard in shards:
            assert [draw.position % 2 for draw in shard[step]] == [0, 1] * (len(shard[step]) // 2)


def test_resume_starts_at_the_first_batch_that_was_not_processed_and_keeps_its_length():
    whole = list(EpochSampler(7, 4, 5, 0, fake_trainer(epoch=2)))
    resumed = EpochSampler(7, 4, 5, 0, fake_trainer(epoch=2, processed=3, restarting=True))
    assert list(resumed) == whole[3:]
    assert len(resumed) == 5


def test_resume_after_the_last_batch_of_an_epoch_starts_the_next_one():
    resumed = EpochSampler(7, 4, 5, 0, fake_trainer(epoch=2, processed=5, restarting=True))
    assert list(resumed) == list(EpochSampler(7, 4, 5, 0, fake_trainer(epoch=3)))


def test_without_a_trainer_an_epoch_follows_each_whole_iteration():
    sampler = EpochSampler(7, 4, 5, 0)
    for epoch in range(3):
        next(iter(sampler))  # one that is given up does not count
        assert list(sampler) == list(EpochSampler(7, 4, 5, 0, fake_trainer(epoch=epoch)))


def test_batches_to_overfit_are_the_same_in_every_epoch():
    epochs = [list(EpochSampler(7, 4, 5, 0, fake_trainer(epoch=epoch, overfit_batches=2))) for epoch in (0, 3)]
    assert epochs[0] == epochs[1] == list(EpochSampler(7, 4, 5, 0, fake_trainer()))


def test_bad_lists_and_batches_are_refused():
    with pytest.raises(ValueError, match="empty"):
        EpochSampler(0, 4, 1, 0)
    with pytest.raises(ValueError, match="batch of 6 cannot be shared by 4"):
        EpochSampler(10, 6, 1, 0, fake_trainer(ranks=4))


# Rare classes ------------------------------------------------------------------------------------------------------

COUNTS = np.array(
    [[90, 0, 0, 0], [50, 40, 0, 0], [0, 10, 5, 0], [0, 0, 0, 0]]
)  # nothing in the last image, or of the last class


def test_class_chances_match_the_formula_and_an_absent_class_has_none():
    shares, temperature = [140 / 195, 50 / 195, 5 / 195], 0.3
    terms = [exp((1 - share) / temperature) for share in shares]
    expected = [*(term / sum(terms) for term in terms), 0.0]
    assert class_chances(COUNTS, temperature).tolist() == pytest.approx(expected)
    assert class_chances(COUNTS, 1e-5).tolist() == pytest.approx([0, 0, 1, 0])  # no overflow


def test_rare_classes_are_drawn_as_often_as_their_chances_say():
    order = class_order(COUNTS, 0.3, 20_000, seed=1, epoch=4)
    of_class = class_chances(COUNTS, 0.3)
    expected = [of_class[0] / 2, of_class[0] / 2 + of_class[1] / 2, of_class[1] / 2 + of_class[2], 0]
    found = np.bincount(order, minlength=4) / len(order)
    assert found.tolist() == pytest.approx(expected, abs=0.015)


def test_the_order_by_classes_depends_on_seed_epoch_and_position_only():
    order = class_order(COUNTS, 0.3, 50, 0, 1)
    assert (order == class_order(COUNTS, 0.3, 80, 0, 1)[:50]).all()
    assert (order != class_order(COUNTS, 0.3, 50, 0, 2)).any()
    assert (order != class_order(COUNTS, 0.3, 50, 1, 1)).any()


def test_ranks_share_and_a_resume_continues_the_order_by_classes():
    order = partial(class_order, COUNTS, 0.3)
    one = list(EpochSampler(4, 8, 3, 0, order=order))
    shards = [list(EpochSampler(4, 8, 3, 0, fake_trainer(rank, 2), order)) for rank in range(2)]
    assert [[*shards[0][step], *shards[1][step]] for step in range(3)] == one
    resumed = EpochSampler(4, 8, 3, 0, fake_trainer(processed=2, restarting=True), order)
    assert list(resumed) == one[2:]
    assert [draw.image for batch in one for draw in batch] == class_order(COUNTS, 0.3, 24, 0, 0).tolist()


# Groups ------------------------------------------------------------------------------------------------------------

TAGS = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0],
                 [1, 0, 0, 0], [0, 1, 0, 1]]).astype(bool)  # fmt: skip


def test_partners_share_a_tag_are_others_and_have_the_same_tags_where_they_can():
    for epoch in range(20):
        order = group_order(TAGS, 3, 16, 0, epoch)
        assert sorted(order[:8, 0]) == [0, 1, 2, 4, 5, 6, 7, 8]  # all but the one without a tag
        for anchor, *partners in order.tolist():
            if anchor == 5:  # nobody shares its tag
                assert partners == [5, 5]
                continue
            assert anchor not in partners
            assert len({*partners}) == 2
            assert all((TAGS[anchor] & TAGS[one]).any() for one in partners)
            if anchor in (0, 1, 4, 7):  # three others have these tags
                assert {*partners} <= {0, 1, 4, 7}
            if anchor in (2, 6):  # one other has, it comes first
                assert partners[0] == 8 - anchor
    assert {*group_order(TAGS, 3, 400, 0, 0)[:, 1:].ravel().tolist()} == {0, 1, 2, 4, 5, 6, 7, 8}
    assert group_counts(TAGS) == {"anchors": 8, "alone": 1, "without_tags": 1}


def test_a_partner_comes_twice_where_there_are_no_more():
    order = group_order(np.array([[1, 0], [1, 0], [0, 1]], dtype=bool), 4, 3, 0, 0).tolist()
    assert sorted(order) == [[0, 1, 1, 1], [1, 0, 0, 0], [2, 2, 2, 2]]


def test_groups_depend_on_seed_epoch_and_position_only_and_stay_whole_on_ranks_and_after_a_resume():
    order = partial(group_order, TAGS, 3)
    assert (order(20, 0, 1) == order(40, 0, 1)[:20]).all()
    assert (order(20, 0, 1) != order(20, 0, 2)).any()
    assert (order(20, 0, 1) != order(20, 1, 1)).any()
    one = list(EpochSampler(9, 4, 3, 0, order=order))
    shards = [list(EpochSampler(9, 4, 3, 0, fake_trainer(rank, 2), order)) for rank in range(2)]
    assert [[*shards[0][step], *shards[1][step]] for step in range(3)] == one
    assert list(EpochSampler(9, 4, 3, 0, fake_trainer(processed=2, restarting=True), order)) == one[2:]
    flat = [draw for step in one for draw in step]
    assert [draw.position for draw in flat] == list(range(36))  # each sample has an augmentation of its own
    assert [draw.image for draw in flat] == order(12, 0, 0).ravel().tolist()
    assert all(len(shard[step]) == 6 for shard in shards for step in range(3))
