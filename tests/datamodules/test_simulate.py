"""Simulated weak annotations: what they may say, whatever the mask."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from common.ops.batch import IGNORE
from conftest import fit_tiny
from datamodules.scenes import draw_scene
from datamodules.simulate import (
    AROUND,
    DEPTHS,
    EIGHT,
    components,
    draw_boxes,
    draw_clicks,
    draw_human_scribbles,
    draw_scribbles,
)
from datamodules.supervision import Supervision, dense_names, draw_annotation, known_protocol

masks = arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.sampled_from([0, 1, 2, 255]))
KINDS = [
    Supervision("points"),
    Supervision("points", per_class=2),
    Supervision("scribbles", length=0.7, width=2),
    Supervision("human_scribbles"),
    Supervision("pixels", fraction=0.3),
]


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("supervision", KINDS, ids=lambda one: f"{one.kind}{one.per_class or ''}")
@settings(max_examples=60, deadline=None)
@given(mask=masks, seed=st.integers(0, 1000), background=st.sampled_from([0, None]))
def test_labels_are_true_and_every_class_present_is_touched(supervision, mask, seed, background):
    before = mask.copy()
    drawn = draw_annotation(mask, supervision, seed, "name", background)
    labelled = drawn != IGNORE
    assert (mask == before).all()
    assert (drawn[labelled] == mask[labelled]).all()
    assert set(np.unique(drawn)) - {IGNORE} == set(np.unique(mask)) - {IGNORE}
    assert (drawn == draw_annotation(mask, supervision, seed, "name", background)).all()


def test_components_leave_out_specks_only_where_their_class_has_more():
    mask = np.zeros((20, 20), np.uint8)
    mask[2:8, 2:8], mask[15, 15] = 1, 1
    mask[12, 3] = 2
    assert [(label, int(region.sum())) for label, _, region in components(mask)] == [(0, 362), (1, 36), (2, 1)]


@pytest.mark.parametrize("draw", [draw_clicks, lambda *how: draw_scribbles(how[0], 0.5, 3, how[1])])
def test_a_large_mask_of_many_cells_is_drawn_on_in_little_memory(draw):
    mask = np.ones((800, 800), np.uint8)
    mask[::40], mask[:, ::40] = IGNORE, IGNORE  # 400 cells that do not touch
    tracemalloc.start()
    try:
        drawn = draw(mask, generator())
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ndimage.label(drawn != IGNORE, EIGHT)[1] == 400
    assert most < 40 * mask.nbytes  # not a picture for each cell


def test_one_click_well_inside_each_component():
    mask = np.zeros((40, 40), np.uint8)
    mask[2:12, 2:12], mask[20:36, 20:36] = 1, 1
    for seed in range(20):
        drawn = draw_clicks(mask, generator(seed))
        assert (drawn == 1).sum() == 2
        assert (drawn == 0).sum() == 1
        depth = ndimage.distance_transform_edt(mask == 1)
        assert depth[drawn == 1].min() >= 2  # never on the outline


@settings(max_examples=40, deadline=None)
@given(index=st.integers(0, 200), length=st.sampled_from([0.2, 0.5, 1.0]), width=st.integers(1, 5))
def test_a_stroke_is_connected_inside_its_component_and_grows_with_length_and_width(index, length, width):
    mask = draw_scene(3, index, 48)[1]
    drawn = draw_scribbles(mask, length, width, generator(index))
    for label, place, region in components(mask):
        stroke = (drawn[place] == label) & region
        assert stroke.any()
        if width == 1:
            assert ndimage.label(stroke, EIGHT)[1] == 1
    longer = draw_scribbles(mask, 1.0, width, generator(index))
    assert (longer != IGNORE).sum() >= 0.8 * (drawn != IGNORE).sum()


def test_a_bar_gets_a_stroke_along_its_length():
    mask = np.zeros((21, 60), np.uint8)
    mask[8:13, 5:55] = 1
    drawn = draw_scribbles(mask, 1.0, 1, generator())
    columns = np.flatnonzero((drawn == 1).any(0))
    assert columns[-1] - columns[0] >= 40
    assert set(np.flatnonzero((drawn == 1).any(1))) <= {9, 10, 11}


def test_people_draw_inside_each_object_and_around_all_of_them():
    y, x = np.mgrid[:300, :300]
    mask = np.zeros((300, 300), np.uint8)
    mask[(y - 150) ** 2 + (x - 120) ** 2 < 20**2], mask[(y - 150) ** 2 + (x - 180) ** 2 < 16**2] = 1, 2
    deep = [ndimage.distance_transform_edt(mask == label) for label in (1, 2)]
    far = ndimage.distance_transform_edt(mask == 0)
    root = (mask > 0).sum() ** 0.5
    found = []
    for seed in range(40):
        drawn = draw_human_scribbles(mask, 0, None, generator(seed))
        for label, depth in zip((1, 2), deep, strict=True):
            assert ndimage.label(drawn == label, EIGHT)[1] == 1
            assert DEPTHS[0] * depth.max() - 2 <= depth[drawn == label].min()
            assert depth[drawn == label].max() <= DEPTHS[1] * depth.max() + 2
        around = far[drawn == 0]
        assert AROUND[0] * root - 2 <= around.min() <= around.max() <= AROUND[1] * root + 2
        assert np.ptp(around) < 4  # one line, two pixels wide
        found.append(around.mean() / root)
    assert min(found) < 0.15 < 0.35 < max(found)
    # Most of the background is far from each of its strokes: `scribbles` goes right through it.
    assert (ndimage.distance_transform_edt(drawn != 0)[mask == 0] > 20).mean() > 0.7


def test_people_draw_in_the_background_where_there_is_no_object_or_no_room_around():
    for objects in (np.zeros((30, 40), bool), np.pad(np.ones((26, 36), bool), 2)):
        drawn = draw_human_scribbles(objects.astype(np.uint8), 0, None, generator())
        assert (drawn == 0).sum() >= 2
        assert (drawn[objects] != 0).all()


def test_boxes_say_background_outside_and_nothing_inside():
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 5:12], mask[6, 20:25] = 1, 2
    mask[0, 0] = IGNORE
    drawn = draw_boxes(mask, background=0)
    expected = np.zeros_like(mask)
    expected[4:9, 5:12] = expected[6:7, 20:25] = IGNORE
    expected[0, 0] = IGNORE
    assert (drawn == expected).all()
    with pytest.raises(ValueError, match="background"):
        draw_annotation(mask, Supervision("boxes"), 0, "name", background=None)


def two_boxes():
    """A disc in class 1, a bar in class 2 over the corner of its box; another disc at the border."""
    y, x = np.mgrid[:40, :50]
    mask = np.zeros((40, 50), np.uint8)
    mask[(y - 15) ** 2 + (x - 18) ** 2 < 100] = mask[(y - 39) ** 2 + (x - 40) ** 2 < 60] = 1
    mask[8:11, 22:34] = 2
    image = np.array([[40, 60, 90], [210, 180, 60], [60, 200, 90]])[mask]
    return mask, (image + np.random.default_rng(0).integers(-9, 10, image.shape)).astype(np.uint8)


def test_filled_boxes_say_their_class_and_the_smaller_one_lies_on_top():
    mask, _ = two_boxes()
    mask[0, 0] = mask[6, 9] = IGNORE
    drawn = draw_annotation(mask, Supervision("boxes", inside="filled"), 0, "name", background=0)
    wanted = np.zeros_like(mask)
    wanted[6:25, 9:28] = wanted[32:40, 33:48] = 1
    wanted[8:11, 22:34] = 2
    wanted[0, 0] = IGNORE
    np.testing.assert_array_equal(drawn, wanted)


def test_grabcut_finds_objects_in_their_boxes_and_nothing_outside():
    pytest.importorskip("cv2")
    mask, image = two_boxes()
    drawn = draw_boxes(mask, 0, "grabcut", image)
    filled = draw_boxes(mask, 0, "filled")
    assert (drawn == draw_boxes(mask, 0, "grabcut", image)).all()
    assert (drawn[filled == 0] == 0).all()
    assert (drawn == mask).mean() > 0.97 > (filled == mask).mean()
    flat = np.full_like(image, 90)  # colours tell nothing: a box may lose its object
    assert {*np.unique(draw_boxes(mask, 0, "grabcut", flat)[filled != 0])} <= {0, 1, 2, IGNORE}
    everywhere = np.ones_like(mask)  # and a box that is the image has no background
    assert (draw_boxes(everywhere, 0, "grabcut", image) == IGNORE).all()
    assert (draw_boxes(mask[:1, :1] + 1, 0, "grabcut", image[:1, :1]) == IGNORE).all()


def test_grabcut_without_opencv_says_what_to_install(monkeypatch):
    monkeypatch.setattr("datamodules.simulate.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs OpenCV: pip install -e '.\[boxes\]'"):
        draw_boxes(*two_boxes()[:1], 0, "grabcut", two_boxes()[1])


def test_a_run_learns_from_boxes_by_each_way_to_label_their_inside(tmp_path):
    pytest.importorskip("cv2")
    pixels = {}
    for inside in ("null", "filled", "grabcut"):
        options = f"{{kind: boxes, fraction: null, inside: {inside}}}"
        words = ["--data.init_args.supervision", options, "--trainer.max_steps", "1"]
        fit_tiny(tmp_path / inside, *words)
        summary = json.loads((tmp_path / inside / "summary.json").read_text())
        pixels[inside] = summary["annotation"]["labeled_pixels"]
    assert pixels["null"] < pixels["grabcut"] <= pixels["filled"]


@settings(max_examples=60, deadline=None)
@given(mask=masks)
def test_boxes_never_call_an_object_background(mask):
    drawn = draw_boxes(mask, background=0)
    big = np.zeros(mask.shape, bool)
    for label, place, region in components(mask):
        big[place] |= region if label else False
    assert not ((drawn == 0) & big).any()
    assert set(np.unique(drawn)) <= {0, IGNORE}


def test_dense_images_are_chosen_by_name_and_nested():
    names = [f"n{i}" for i in range(20)]
    few, more = (dense_names(names, Supervision("points", dense_images=k), 0) for k in (3, 8))
    assert len(few) == 3
    assert few < more
    assert few == dense_names(names[::-1], Supervision("points", dense_images=3), 0)
    with pytest.raises(ValueError, match="dense_images=21, but there are 20"):
        dense_names(names, Supervision("points", dense_images=21), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "scribbles", "length": 1.5}, "length must be above 0"),
        ({"kind": "scribbles", "width": 0}, "width must be at least 1"),
        ({"kind": "scribbles", "real": True, "width": 3}, "people's annotations"),
        ({"kind": "boxes", "fraction": 0.5, "number": 3}, "takes fraction or number"),
        ({"kind": "boxes", "length": 0.5}, "length=0.5 is without effect"),
        ({"kind": "boxes", "inside": "crf"}, "inside is filled, grabcut or null"),
        ({"kind": "tags", "inside": "filled"}, "inside=filled is without effect for kind tags"),
        ({"kind": "dense", "dense_images": 3}, "dense_images=3 is without effect"),
        ({"kind": "tags", "dense_images": -1}, "dense_images"),
    ],
)
def test_options_out_of_place_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Supervision(**options)


def test_an_unpublished_list_is_no_protocol():
    assert known_protocol(["a", "b"]) is None


@pytest.mark.parametrize("kind", ["points", "scribbles", "boxes", "tags"])
def test_every_kind_trains_and_reports_what_is_labelled(kind, tmp_path):
    options = f"{{kind: {kind}, fraction: null, dense_images: 1}}"
    fit_tiny(tmp_path / "run", "--data.init_args.supervision", options, "--trainer.max_steps", "2")
    report = json.loads((tmp_path / "run" / "summary.json").read_text())["annotation"]
    assert report["images"] == 12
    assert sum(report["per_class"].values()) == report["labeled_pixels"] >= 32 * 32  # the dense image
    shares = [share for share in report["share_per_class"].values() if share is not None]
    assert max(shares) <= 1
    assert min(shares) >= 0


def test_real_annotations_are_asked_for_by_name(tmp_path):
    output = fit_tiny(
        tmp_path / "run", "--data.init_args.supervision", "{kind: scribbles, real: true, fraction: null}", expect=1
    )
    assert "Synthetic has no scribbles drawn by people" in output
    assert not (tmp_path / "run").exists()
