"""What is labelled: which images, which of their pixels, and what a stream then holds."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.ops.batch import IGNORE
from datamodules.sets.synthetic import Synthetic
from datamodules.supervision import Supervision, draw_annotation, shrink_mask, split_images

SHARED = Path(__file__).parents[2] / ".." / "shared"
quick = settings(max_examples=40, deadline=None)
names = st.lists(st.text("abcdef0123456789_", min_size=1, max_size=8), min_size=1, max_size=40, unique=True)
seeds = st.integers(0, 2**32)


@st.composite
def masks(draw, max_side=20):
    """Masks of few classes, with void, also all of one value."""
    values = draw(st.lists(st.sampled_from([0, 1, 2, 7, 254, IGNORE]), min_size=1, max_size=4))
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    return rng.choice(np.array(values, np.uint8), (height, width))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "polygons"}, ["supervision.kind", "polygons", "use one of", "points"]),
        ({"kind": "pixels"}, ["pixels", "needs", "fraction", "none"]),
        ({"kind": "image_subset"}, ["image_subset", "needs", "fraction", "number", "list_file"]),
        ({"kind": "image_subset", "fraction": 0.5, "number": 3}, ["needs one of", "'fraction'", "'number'"]),
        ({"kind": "dense", "fraction": 0.5}, ["supervision.fraction=0.5", "dense", "leave it out"]),
        ({"kind": "pixels", "fraction": 0.5, "number": 3}, ["supervision.number=3", "pixels", "leave it out"]),
        ({"kind": "points", "list_file": "x.txt"}, ["supervision.list_file=x.txt", "points", "leave it out"]),
        ({"kind": "pixels", "fraction": 0.0}, ["supervision.fraction", "0.0", "above 0", "at most 1"]),
        ({"kind": "pixels", "fraction": -0.1}, ["supervision.fraction", "-0.1", "above 0"]),
        ({"kind": "pixels", "fraction": 1.5}, ["supervision.fraction", "1.5", "at most 1"]),
        ({"kind": "pixels", "fraction": float("nan")}, ["supervision.fraction", "nan"]),
        ({"kind": "image_subset", "number": 0}, ["supervision.number", "0", "at least 1"]),
        ({"kind": "points", "per_class": -2}, ["supervision.per_class", "-2", "at least 1"]),
        ({"kind": "none", "fraction": 0.5}, ["supervision.fraction=0.5", "none", "leave it out"]),
        ({"kind": "none", "dense_images": 2}, ["supervision.dense_images=2", "none", "leave it out"]),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match="supervision") as caught:
        Supervision(**options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_dense_is_the_default_and_points_default_to_one_click():
    assert Supervision() == Supervision(kind="dense")
    mask = np.repeat(np.array([[0, 1, 2]], np.uint8), 5, 0)
    drawn = draw_annotation(mask, Supervision(kind="points"), 0, "a")
    assert np.bincount(drawn[drawn != IGNORE]).tolist() == [1, 1, 1]


@quick
@given(names, seeds, st.floats(0.001, 1), st.randoms(use_true_random=False))
def test_split_is_a_partition_whatever_the_order(ids, seed, fraction, shuffler):
    supervision = Supervision(kind="image_subset", fraction=fraction)
    labeled, unlabeled = split_images(ids, supervision, seed)
    assert sorted(labeled + unlabeled) == sorted(ids)
    assert len(labeled) == max(1, int(fraction * len(ids) + 0.5))
    mixed = list(ids)
    shuffler.shuffle(mixed)
    assert split_images(mixed, supervision, seed) == (labeled, unlabeled)


@quick
@given(names, seeds, st.floats(0.001, 1), st.floats(0.001, 1))
def test_a_smaller_share_lies_in_a_larger_one(ids, seed, one, two):
    small, large = (
        split_images(ids, Supervision(kind="image_subset", fraction=share), seed)[0] for share in sorted((one, two))
    )
    assert {*small} <= {*large}


def test_split_by_number_halves_up_and_seeds_differ():
    ids = [f"{number:03d}" for number in range(100)]
    draws = [split_images(ids, Supervision(kind="image_subset", number=10), seed)[0] for seed in range(5)]
    assert {len(draw) for draw in draws} == {10}
    assert len({tuple(draw) for draw in draws}) == 5
    assert len(split_images(ids[:10], Supervision(kind="image_subset", fraction=0.25), 0)[0]) == 3  # 2.5
    with pytest.raises(ValueError, match=r"supervision.number asks for 101 of 100 training images: ask for fewer"):
        split_images(ids, Supervision(kind="image_subset", number=101), 0)


def video(name):
    return name.split("_")[0]


def test_by_sequence_one_video_is_labelled_from_its_start_before_the_next():
    ids = [f"{sequence}_{frame:03d}" for sequence in "abc" for frame in range(10)]
    firsts = set()
    for seed in range(20):
        five, fifteen = (
            split_images(ids, Supervision(kind="image_subset", number=number, by_sequence=True), seed, video)[0]
            for number in (5, 15)
        )
        first = video(five[0])
        firsts.add(first)
        assert five == [f"{first}_{frame:03d}" for frame in range(5)]
        others = {*fifteen} - {f"{first}_{frame:03d}" for frame in range(10)}
        assert len({*map(video, others)}) == 1
        assert {name.split("_")[1] for name in others} == {f"{frame:03d}" for frame in range(5)}
    assert firsts == {*"abc"}


def test_evenly_each_video_is_labelled_at_equal_intervals():
    ids = [
        f"{sequence}_{frame:03d}" for sequence, frames in (("a", 40), ("b", 20), ("c", 60)) for frame in range(frames)
    ]
    starts = set()
    for seed in range(20):
        chosen = split_images(ids, Supervision(kind="image_subset", fraction=0.1, evenly=True), seed, video)[0]
        assert [*map(video, chosen)] == ["a"] * 4 + ["b"] * 2 + ["c"] * 6
        frames = [int(name.split("_")[1]) for name in chosen]
        gaps = {b - a for a, b in pairwise(frames) if b > a}
        assert gaps == {10}
        starts.add(frames[0])
    assert len(starts) > 5


def test_by_sequence_needs_sequences_and_a_number():
    with pytest.raises(ValueError, match="Synthetic does not say which images are of one video"):
        Synthetic(train=8, supervision=Supervision(kind="image_subset", number=2, by_sequence=True)).lists()
    with pytest.raises(ValueError, match=r"supervision.by_sequence=True is without effect for kind pixels"):
        Supervision(kind="pixels", fraction=0.1, by_sequence=True)
    with pytest.raises(ValueError, match="by_sequence is without effect together with list_file"):
        Supervision(kind="image_subset", list_file="list.txt", by_sequence=True)
    with pytest.raises(ValueError, match="by_sequence is without effect together with evenly"):
        Supervision(kind="image_subset", number=2, by_sequence=True, evenly=True)


@pytest.mark.parametrize(
    "supervision",
    [Supervision(), Supervision(kind="pixels", fraction=0.1), Supervision(kind="points", per_class=2)],
    ids=lambda supervision: supervision.kind,
)
def test_other_kinds_label_every_image(supervision):
    assert split_images(["b", "a"], supervision, 0) == (["a", "b"], [])


def split_by_file(path, content, ids=("one", "two", "three")):
    path.write_text(content)
    return split_images(ids, Supervision(kind="image_subset", list_file=str(path)), 0)


def test_list_file_of_ids_and_of_pairs(tmp_path):
    path = tmp_path / "list.txt"
    assert split_by_file(path, "two\n\none\n") == (["one", "two"], ["three"])
    assert split_by_file(path, "JPEGImages/two.jpg Masks/two.png\n") == (["two"], ["one", "three"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("one\nfour\n", ["1 ids that are not training images", "four", "another data set"]),
        ("one\ntwo\none\n", ["one", "more than once"]),
        ("\n \n", ["empty"]),
    ],
)
def test_bad_list_files_are_named(tmp_path, content, words):
    with pytest.raises(ValueError, match="list") as caught:
        split_by_file(tmp_path / "list.txt", content)
    assert all(word in str(caught.value) for word in ["list.txt", *words]), str(caught.value)


def test_missing_list_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.txt does not exist"):
        split_images(["one"], Supervision(kind="image_subset", list_file=str(tmp_path / "nothing.txt")), 0)


@pytest.mark.parametrize(
    ("path", "count", "first"),
    [
        ("pascal/92/labeled.txt", 92, "2007_000733"),
        ("cityscapes/1_16/labeled.txt", 186, "jena_000078_000019_leftImg8bit"),
    ],
)
def test_published_lists(path, count, first):
    path = SHARED / "data" / "splits" / path
    if not path.exists():
        pytest.skip(f"no {path}")
    ids = [Path(line.split()[0]).stem for line in path.read_text().split("\n") if line]
    assert ids[0] == first
    labeled, unlabeled = split_images([*ids, "other"], Supervision(kind="image_subset", list_file=str(path)), 0)
    assert (len(labeled), unlabeled) == (count, ["other"])


@quick
@given(masks(), seeds, st.floats(0.0001, 1))
def test_pixels_are_counted_true_and_of_every_class(mask, seed, fraction):
    before = mask.copy()
    drawn = draw_annotation(mask, Supervision(kind="pixels", fraction=fraction), seed, "a")
    assert (mask == before).all()
    assert drawn.dtype == np.uint8
    assert ((drawn == mask) | (drawn == IGNORE)).all()
    known = mask[mask != IGNORE]
    classes = np.unique(known)
    assert (drawn != IGNORE).sum() == max(round(fraction * known.size), classes.size)
    assert (np.setdiff1d(np.unique(drawn), [IGNORE]) == classes).all()


@quick
@given(masks(), seeds, st.integers(1, 5))
def test_points_are_per_class(mask, seed, per_class):
    drawn = draw_annotation(mask, Supervision(kind="points", per_class=per_class), seed, "a")
    assert ((drawn == mask) | (drawn == IGNORE)).all()
    for label in np.setdiff1d(np.unique(mask), [IGNORE]):
        assert (drawn == label).sum() == min(per_class, (mask == label).sum())


@pytest.mark.parametrize("kind", ["dense", "image_subset"])
def test_dense_is_a_copy(kind):
    mask = np.array([[0, 1], [IGNORE, 2]], np.uint8)
    drawn = draw_annotation(mask, Supervision(kind=kind, number=1 if kind == "image_subset" else None), 0, "a")
    assert (drawn == mask).all()
    assert not np.shares_memory(drawn, mask)


def test_the_draw_depends_on_seed_and_name_alone():
    mask = np.zeros((40, 40), np.uint8)
    supervision = Supervision(kind="pixels", fraction=0.01)
    draws = {
        (seed, name): draw_annotation(mask, supervision, seed, name).tobytes() for seed in (0, 1) for name in "abc"
    }
    assert len({*draws.values()}) == 6
    for (seed, name), drawn in reversed(draws.items()):
        assert draw_annotation(mask, supervision, seed, name).tobytes() == drawn


def test_the_draw_is_the_same_on_every_machine():
    """The cache holds drawn annotations, and tables compare runs on them: a change here makes old runs unrepeatable.

    If it must be, raise `annotation.VERSION`, so that nobody trains on the old drawings unknowingly.
    """
    mask = np.repeat(np.arange(4, dtype=np.uint8), 16).reshape(8, 8)
    drawn = draw_annotation(mask, Supervision(kind="pixels", fraction=0.1), 3, "horse001")
    assert np.flatnonzero(drawn != IGNORE).tolist() == [7, 16, 19, 38, 49, 51]
    ids = [f"{number:03d}" for number in range(20)]
    assert split_images(ids, Supervision(kind="image_subset", number=3), 3)[0] == ["009", "011", "013"]


def test_pixels_are_uniform():
    mask = np.zeros((8, 8), np.uint8)
    supervision = Supervision(kind="pixels", fraction=0.25)
    counts = sum((draw_annotation(mask, supervision, 0, str(name)) == 0).astype(int) for name in range(800))
    # 800 draws of probability 1/4: mean 200, deviation 12
    assert counts.min() > 200 - 60
    assert counts.max() < 200 + 60


@quick
@given(masks(), st.integers(1, 30), st.integers(1, 30))
def test_resize_takes_the_nearest_pixel(mask, height, width):
    small = shrink_mask(mask, (height, width), keep_strokes=False)
    assert (small.shape, small.dtype) == ((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            assert (
                small[y, x]
                == mask[(2 * y + 1) * mask.shape[0] // (2 * height), (2 * x + 1) * mask.shape[1] // (2 * width)]
            )


def test_resize_agrees_with_torch():
    torch = pytest.importorskip("torch")
    mask = np.random.default_rng(0).integers(0, 9, (37, 50)).astype(np.uint8)
    for size in [(20, 30), (37, 50), (12, 12), (64, 96)]:
        wanted = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None], size, mode="nearest-exact")
        assert (shrink_mask(mask, size, keep_strokes=False) == wanted[0, 0].numpy()).all()


@quick
@given(masks(), st.integers(1, 30), st.integers(1, 30))
def test_strokes_fill_only_empty_cells_and_only_when_shrinking(mask, height, width):
    before = mask.copy()
    plain, kept = (shrink_mask(mask, (height, width), keep_strokes=keep) for keep in (False, True))
    assert (mask == before).all()
    assert (kept[plain != IGNORE] == plain[plain != IGNORE]).all()
    if height >= mask.shape[0] and width >= mask.shape[1]:
        assert (kept == plain).all()
    if height <= mask.shape[0] and width <= mask.shape[1]:
        # by hand: the labels of the pixels whose centre is in the cell
        cell_of = [
            (2 * np.arange(old) + 1) * new // (2 * old) for old, new in zip(mask.shape, plain.shape, strict=True)
        ]
        for y, x in np.argwhere(plain == IGNORE):
            cell = mask[np.ix_(cell_of[0] == y, cell_of[1] == x)]
            counts = np.bincount(cell[cell != IGNORE], minlength=1)
            assert kept[y, x] == (counts.argmax() if counts.any() else IGNORE)


def test_a_thin_stroke_survives_and_ties_go_to_the_lowest_id():
    mask = np.full((40, 40), IGNORE, np.uint8)
    mask[:, 8] = 3
    assert (shrink_mask(mask, (8, 8), keep_strokes=False) == IGNORE).all()
    assert (shrink_mask(mask, (8, 8), keep_strokes=True)[:, 1] == 3).all()
    cell = np.full((5, 5), IGNORE, np.uint8)
    cell[0, :2], cell[4, :2] = 4, 1
    assert shrink_mask(cell, (1, 1), keep_strokes=True).tolist() == [[1]]
    assert shrink_mask(np.asfortranarray(cell), (1, 1), keep_strokes=True).tolist() == [[1]]


# Streams ------------------------------------------------------------------------------------------------------------


def streams(tmp_path, **options):
    """A tiny data module, set up to train, and the names that each stream of its first epoch holds."""
    data = Synthetic(train=8, val=1, side=16, size=16, batch_size=2, num_workers=0, cache_dir=str(tmp_path), **options)
    data.prepare_data()
    data.setup("fit")
    seen = {}
    for batch, _, _ in data.train_dataloader():
        assert tuple(batch) == data.streams
        for stream, part in batch.items():
            assert ((part["mask"] != IGNORE).flatten(1).any(1) == (stream == "labeled")).all()
            seen.setdefault(stream, set()).update(part["name"])
    lists = dict(zip(("labeled", "unlabeled"), data.lists(), strict=True))
    assert all(names == {*lists[stream]} for stream, names in seen.items())
    return lists


@pytest.mark.parametrize("pool", ["rest", "all"])
def test_the_unlabelled_stream_holds_the_rest_or_all_and_never_a_label(tmp_path, pool):
    some = Supervision(kind="image_subset", number=4)
    lists = streams(tmp_path, supervision=some, unlabeled_batch_size=2, unlabeled_pool=pool)
    everything = {f"train{number:05d}" for number in range(8)}
    assert len(lists["labeled"]) == 4
    assert {*lists["unlabeled"]} == (everything if pool == "all" else everything - {*lists["labeled"]})
    assert lists["unlabeled"] == sorted(lists["unlabeled"])


def test_weak_labels_on_every_image_leave_no_rest_but_all(tmp_path):
    points = Supervision(kind="points")
    with pytest.raises(ValueError, match=r"every training image is labelled.*data.unlabeled_pool=all"):
        streams(tmp_path, supervision=points, unlabeled_batch_size=2)
    lists = streams(tmp_path, supervision=points, unlabeled_batch_size=2, unlabeled_pool="all")
    assert lists["labeled"] == lists["unlabeled"]
    assert len(lists["labeled"]) == 8


def test_kind_none_labels_no_image(tmp_path):
    none = Supervision(kind="none")
    lists = streams(tmp_path / "one", supervision=none, unlabeled_batch_size=2)
    assert (lists["labeled"], len(lists["unlabeled"])) == ([], 8)
    drawn = sorted(path.name for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert drawn == ["annotation.json", "findings.json"]
    with pytest.raises(ValueError, match=r"kind none labels no image: set data.unlabeled_batch_size above 0"):
        streams(tmp_path / "two", supervision=none)
