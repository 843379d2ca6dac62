"""`weakseg review`: counts and regions by the slow way, a planted label error found first, a page that is sound."""

import base64
import csv
import io
import itertools
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from test_compare import Page

import weakseg as package
from browser import PROGRAM, Browser
from common.training.predictions import Written
from conftest import draw_folder, fit_tiny, on_folder, snapshot, weakseg
from experiments.review.errors import Best, Review, disagreements, drawn, seen
from experiments.review.page import write_review

NAMES = ["ground", "red thing", "blue thing"]

# Regions -----------------------------------------------------------------------------------------------------------


def slow_regions(mask, labels, probabilities, confidence, share):
    """By flooding from each wrong pixel."""
    height, width = mask.shape
    seen, found = set(), []
    least = max(1, share * (mask != 255).sum())
    for start in np.ndindex(height, width):
        if start in seen or mask[start] in (255, labels[start]):
            continue
        pair, region, wait = (mask[start], labels[start]), {start}, [start]
        while wait:
            y, x = wait.pop()
            for other in itertools.product((y - 1, y, y + 1), (x - 1, x, x + 1)):
                inside = 0 <= other[0] < height and 0 <= other[1] < width
                if inside and other not in region and (mask[other], labels[other]) == pair:
                    region.add(other)
                    wait.append(other)
        seen |= region
        sure = [probabilities[(pair[1], *place)] for place in region]
        given = [probabilities[(pair[0], *place)] for place in region]
        if len(region) >= least and np.mean(sure) >= confidence:
            rows, columns = zip(*region, strict=True)
            box = (min(rows), min(columns), max(rows) + 1, max(columns) + 1)
            found.append(((sum(sure) - sum(given)) / mask.size, *pair, len(region), np.mean(sure), box))
    return sorted(found, key=lambda one: -one[0])


def drawn_case():
    rng = np.random.default_rng(4)
    probabilities = np.kron(rng.dirichlet([0.4] * 3, (5, 6)).transpose(2, 0, 1), np.ones((1, 4, 4)))
    mask = np.kron(rng.integers(0, 3, (10, 12)), np.ones((2, 2))).astype(np.uint8)
    mask[rng.random(mask.shape) < 0.2] = 255
    return mask, probabilities.argmax(0).astype(np.uint8), probabilities


def counted(mask, labels, classes=3):
    """The confusion matrix."""
    matrix = np.zeros((classes, classes), np.int64)
    for true, found in zip(mask.ravel(), labels.ravel(), strict=True):
        if true != 255:
            matrix[true, found] += 1
    return matrix


@pytest.mark.parametrize(("confidence", "share"), [(0.0, 0.0), (0.8, 0.01), (1.0, 0.0)])
def test_regions_are_those_of_the_slow_flood(confidence, share):
    mask, labels, probabilities = drawn_case()
    expected = slow_regions(mask, labels, probabilities, confidence, share)
    found = disagreements("one", seen(mask, labels, probabilities), confidence, share)
    assert len(found) == len(expected)
    assert confidence == 1 or len(found) > 3
    by_box = {(one.box, one.mask, one.prediction): one for one in found}
    for weight, given, predicted, area, confident, box in expected:
        one = by_box[(box, given, predicted)]
        assert (one.area, one.name) == (area, "one")
        assert one.weight == pytest.approx(weight)
        assert one.confidence == pytest.approx(confident)
    assert [one.weight for one in found] == pytest.approx([one[0] for one in expected])


def test_pixels_without_a_label_are_no_error():
    mask, labels, probabilities = drawn_case()
    assert disagreements("one", seen(np.full_like(mask, 255), labels, probabilities), 0, 0) == []
    assert disagreements("one", seen(labels, labels, probabilities), 0, 0) == []


def test_only_the_best_are_shown():
    best, made = Best(2), []
    for weight in (3.0, 1, 2, 0, 5):
        best.add(weight, weight, lambda weight=weight: made.append(weight) or weight)
    assert best.items == [(5, 5), (3, 3)]
    assert made == [3, 1, 2, 5]


def test_the_picture_of_a_region_shows_it_framed():
    mask = np.zeros((100, 200), np.uint8)
    image = np.full((50, 100, 3), 90, np.uint8)  # as the network sees it
    whole = drawn(image, mask, mask, [(9, 9, 9), (1, 1, 1)], None)
    assert [one.shape for one in whole] == [(100, 200, 3)] * 4
    part = drawn(image, mask, mask, [(9, 9, 9), (1, 1, 1)], (90, 190, 100, 200))
    assert {one.shape for one in part} == {(150, 300, 3)}  # half a side each, three times as large
    assert (part[1] == 255).all(-1).any()
    assert not (whole[1] == 255).all(-1).any()


# The command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A folder, and a run on it."""
    root = draw_folder(tmp_path_factory.mktemp("review") / "data")
    fit_tiny(root.parent / "run", *on_folder(root), "--trainer.max_steps", "6", "--trainer.val_check_interval", "6")
    return root, root.parent / "run"


def review(run, output, *options, **how):
    return weakseg("review", "--run", run, "--output", output, *options, **how)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def plant(mask, probabilities, height, width):
    """Give the block of one class of which a model is surest the next class; the block, and by how much."""
    found = []
    for y, x in itertools.product(range(2, mask.shape[0] - height), range(mask.shape[1] - width)):
        block, predicted = np.s_[y : y + height, x : x + width], mask[y, x]
        if (mask[block] == predicted).all():
            margin = probabilities[predicted] - probabilities[(predicted + 1) % 3]
            found.append((margin[block].sum() / mask.size, y, x))
    weight, y, x = max(found)
    block = np.s_[y : y + height, x : x + width]
    mask[block] = (mask[block] + 1) % 3
    return block, weight


def test_planted_label_errors_are_found_and_the_larger_one_is_first(learned, tmp_path):
    root, run = learned
    model, copy = package.load_run(run), shutil.copytree(root, tmp_path / "copy")
    expected = []
    for name in "012345":  # the model is right, but for what is planted
        mask, probabilities = model.predict(root / "images" / f"{name}.png", probabilities=True)
        mask = mask.copy()
        if name in "14":
            predicted = mask.copy()
            block, weight = plant(mask, probabilities, *{"1": (3, 3), "4": (7, 5)}[name])
            given, found = int(mask[block][0, 0]), int(predicted[block][0, 0])
            expected.append((weight, name, given, found, probabilities[found][block].mean(), block))
        mask[:2] = 255 if name != "1" else mask[:2]  # partial labels
        Image.fromarray(mask).save(copy / "masks" / f"{name}.png")
    text = review(run, tmp_path / "out", "--split", "train", "--data.init_args.root", copy, "--confidence", 0.34)
    assert "6 images in " in text
    assert "2 possible label errors" in text
    rows = rows_of(tmp_path / "out" / "label_errors.csv")
    expected.sort(key=lambda one: -one[0])
    assert expected[0][1] == "4"
    for row, (weight, name, given, found, confidence, block) in zip(rows, expected, strict=True):
        assert (row["file"], row["mask"], row["prediction"]) == (name, NAMES[given], NAMES[found])
        box = [block[0].start, block[1].start, block[0].stop, block[1].stop]
        assert [int(row[edge]) for edge in ("top", "left", "bottom", "right")] == box
        assert float(row["weight"]) == pytest.approx(weight, abs=1e-5)
        assert float(row["confidence"]) == pytest.approx(confidence, abs=1e-3)
    assert [row["file"] for row in rows_of(tmp_path / "out" / "images.csv") if float(row["miou"]) < 100] == [
        row["file"] for row in rows_of(tmp_path / "out" / "images.csv")[:2]
    ]
    # A surer model is asked for than this one: nothing is found, and the page is written anew.
    text = review(
        run, tmp_path / "out", "--split", "train", "--data.init_args.root", copy, "--confidence", 1, "--overwrite"
    )
    assert "0 possible label errors" in text


def test_numbers_are_those_of_the_pixels_and_of_test(learned, tmp_path):
    root, run = learned
    review(run, tmp_path / "out", "--split", "test")
    weakseg("test", "--run", run)
    score = json.loads((run / "summary.json").read_text())["test"]["best"]["test/miou"]
    assert f"mIoU\n{score:.1f} %" in (tmp_path / "out" / "review.html").read_text()
    model = package.load_run(run)
    expected = []
    for name in "89":
        mask, labels = model.data.mask(name), model.predict(root / "images" / f"{name}.png")
        ious = [
            (((mask == k) & (labels == k)).sum() / ((mask == k) | ((labels == k) & (mask != 255))).sum())
            for k in range(3)
        ]
        wrong = ((mask != labels) & (mask != 255)).sum() / (mask != 255).sum()
        expected.append((100 * np.mean(ious), wrong, (mask != 255).sum(), name))
    for row, (miou, wrong, pixels, name) in zip(
        rows_of(tmp_path / "out" / "images.csv"), sorted(expected), strict=True
    ):
        assert row["file"] == name
        assert float(row["miou"]) == pytest.approx(miou, abs=1e-3)
        assert float(row["wrong_share"]) == pytest.approx(wrong, abs=1e-5)
        assert int(row["labelled_pixels"]) == pixels


def test_the_page_is_sound_and_needs_no_network(tmp_path):
    names = ["ground", "<b>red & thing", "blue thing"]
    found = Review([(60, 60, 60), (220, 60, 40), (40, 90, 220)], 0, 0)
    mask, labels, probabilities = drawn_case()
    image = np.full((*mask.shape, 3), 80, np.uint8)
    found.look_at("day1/<i>", image, seen(mask, labels, probabilities), counted(mask, labels))
    bare = np.full_like(mask, 255)
    found.look_at("bare", image, seen(bare, labels, probabilities), counted(bare, labels))
    write_review(
        Written(tmp_path, "review"), found, {"run": "x<y", "method": "TV", "checkpoint": "best", "split": "val"}, names
    )
    content = (tmp_path / "review.html").read_text()
    page = Page()
    page.feed(content)
    assert page.open == []
    assert not re.search(r"https?:|@import|url\(", content)
    shown = 1 + min(60, len(found.regions))
    assert len(page.fetched) == 4 * shown
    for source in page.fetched:
        head, _, data = source.partition(",")
        assert head in ("data:image/png;base64", "data:image/jpeg;base64")
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    for word in ("x<y", "day1/<i>", "<b>red & thing", "1 images without a label are left out", "label error 1"):
        assert word in page.seen
    assert 'name="viewport"' in content
    assert "prefers-color-scheme: dark" in content


def test_without_an_error_there_is_a_page(tmp_path):
    found = Review([(60, 60, 60), (220, 60, 40)], 0.9, 0)
    mask = np.array([[0, 1, 255]], np.uint8)
    labels = np.array([[0, 1, 0]], np.uint8)
    found.look_at(
        "one", np.zeros((1, 3, 3), np.uint8), seen(mask, labels, np.zeros((2, 1, 3))), counted(mask, labels, 2)
    )
    write_review(Written(tmp_path, "review"), found, {"run": "r", "method": "m", "checkpoint": "c", "split": "s"}, "ab")
    assert "no error" in (tmp_path / "review.html").read_text()
    assert rows_of(tmp_path / "label_errors.csv") == []


def test_nothing_of_others_is_replaced_and_wrong_options_are_refused(learned, tmp_path):
    _, run = learned
    out = tmp_path / "out"
    out.mkdir()
    (out / "review.html").write_text("mine")
    before = snapshot(out)
    assert "was not written by review" in review(run, out, "--overwrite", expect=1)
    assert snapshot(out) == before
    assert "needs --output" in weakseg("review", "--run", run, expect=1)
    assert "--confidence is from 0 to 1" in review(run, out, "--confidence", 2, expect=1)


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="no Chromium")
def test_the_filter_shows_what_is_asked_for_at_a_phones_width(tmp_path):
    found = Review([(60, 60, 60), (220, 60, 40), (40, 90, 220)], 0, 0)
    mask, labels, probabilities = drawn_case()
    image = np.full((*mask.shape, 3), 80, np.uint8)
    found.look_at("one", image, seen(mask, labels, probabilities), counted(mask, labels))
    about = {"run": "r", "method": "m", "checkpoint": "c", "split": "s"}
    write_review(Written(tmp_path, "review"), found, about, ["a", "b", "c"])
    browser = Browser(tmp_path, 390, 800)
    try:
        browser.open((tmp_path / "review.html").as_uri())
        shown = "[...document.querySelectorAll('.card')].filter(one => one.offsetHeight).length"
        count = browser.until(shown)
        assert count == 1 + min(60, len(found.regions))
        choose = "(id, value) => { const one = document.getElementById(id); one.value = value; "
        choose += "one.dispatchEvent(new Event('change')) }"
        browser.value(f"({choose})('kind', 'image')")
        assert browser.value(shown) == 1
        browser.value(f"({choose})('kind', 'label')")
        browser.value(f"({choose})('class', '2')")
        assert browser.value(shown) == sum(2 in (one.mask, one.prediction) for one in found.regions)
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        assert browser.errors == []
    finally:
        browser.close()
