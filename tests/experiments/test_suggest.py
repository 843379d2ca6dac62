"""`weakseg suggest`: scores and spread by their formulas, polygons that are read back, nobody's files lost."""

import csv
import itertools
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import weakseg as package
from common.ops.uncertainty import disagreement, entropy, margin, spread_out
from common.training.predictions import Written
from conftest import draw_folder, fit_tiny, on_folder, snapshot, weakseg
from datamodules.drawn import labelme as reader
from datamodules.drawn.paint import render
from datamodules.sets.folder import Folder
from datamodules.supervision import Supervision
from experiments.suggest.outlines import labelme, polygons, without_small
from experiments.suggest.scoring import SuggestionWriter, labelled_images

NAMES = ["ground", "red thing", "blue thing"]


def test_a_name_that_is_no_utf8_stands_in_the_list_with_its_bytes(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    files = {name: tmp_path / "images" / f"{name}.png"}
    writer = SuggestionWriter(Written(tmp_path / "out", "suggest"), files, tmp_path / "images", {name: 0.5}, "entropy")
    writer.rows = [[np.zeros((4, 4, 3), np.uint8)] * 3]
    writer.on_predict_end(None, None)
    assert b"1,caf\xe9.png,0.500000" in (tmp_path / "out" / "suggest.csv").read_bytes()


# Formulas ----------------------------------------------------------------------------------------------------------


def drawn_probabilities(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).softmax(-3)


def shannon(values):
    return -sum(float(value) * math.log(float(value)) for value in values if value > 0)


def test_entropy_and_margin_are_those_of_each_pixel():
    p = drawn_probabilities(4, 3, 5)
    p[:, 0, 0] = torch.tensor([0.0, 1, 0, 0])
    for y, x in itertools.product(range(3), range(5)):
        ordered = sorted(p[:, y, x].tolist())
        assert entropy(p)[y, x] == pytest.approx(shannon(ordered) / math.log(4))
        assert margin(p)[y, x] == pytest.approx(1 - (ordered[-1] - ordered[-2]))
    assert entropy(p)[0, 0] == margin(p)[0, 0] == 0


def test_disagreement_is_the_mean_divergence_from_the_mean():
    p = drawn_probabilities(3, 4, 2, 3)
    for y, x in itertools.product(range(2), range(3)):
        members = p[:, :, y, x].tolist()
        mean = np.mean(members, 0)
        divergences = [sum(v * math.log(v / m) for v, m in zip(one, mean, strict=True)) for one in members]
        assert disagreement(p)[y, x] == pytest.approx(np.mean(divergences) / math.log(3))
    opposite = torch.eye(2)[:, :, None, None]
    assert disagreement(opposite).item() == pytest.approx(1)
    unsure = torch.full((2, 3, 1, 1), 1 / 3)
    assert disagreement(unsure).item() == pytest.approx(0, abs=1e-6)


def slow_spread(features, weights, count, known):
    chosen = []
    while len(chosen) < min(count, len(features)):
        best, number = -1.0, None
        for i in range(len(features)):
            if i in chosen:
                continue
            centers = [features[j] for j in chosen] + known
            nearest = min((math.dist(features[i], center) for center in centers), default=1.0)
            if weights[i] * nearest > best:
                best, number = weights[i] * nearest, i
        chosen.append(number)
    return chosen


@pytest.mark.parametrize("known", [0, 3])
def test_the_spread_is_that_of_the_slow_loop(known):
    draw = torch.Generator().manual_seed(5)
    features, weights = torch.rand(12, 4, generator=draw), torch.rand(12, generator=draw)
    others = torch.rand(known, 4, generator=draw)
    expected = slow_spread(features.tolist(), weights.tolist(), 7, others.tolist())
    assert spread_out(features, weights, 7, others) == expected
    assert sorted(spread_out(features, weights, 99, others)) == [*range(12)]


def test_a_copy_of_what_is_chosen_or_known_comes_last():
    features, weights = torch.tensor([[1.0, 0], [1, 0], [0, 1]]), torch.tensor([0.9, 0.8, 0.1])
    assert spread_out(features, weights, 3) == [0, 2, 1]
    assert spread_out(features, weights, 1, torch.tensor([[1.0, 0]])) == [2]


# Polygons ----------------------------------------------------------------------------------------------------------


def blobs(height=120, width=160):
    """Nested and touching shapes: a ring with a disc in it, boxes at the border, specks."""
    canvas = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    draw.ellipse((20, 20, 100, 100), fill=1)
    draw.ellipse((40, 40, 80, 80), fill=0)
    draw.ellipse((52, 52, 68, 68), fill=2)
    draw.rectangle((110, 0, 159, 50), fill=2)
    draw.rectangle((110, 51, 159, 119), fill=1)
    draw.point([(5, 5), (130, 20), (60, 60)], fill=1)
    return np.asarray(canvas).copy()


def read_back(labels, folder):
    path = folder / "one.json"
    path.write_text(json.dumps(labelme(labels, NAMES, "one.png")))
    Image.new("L", labels.shape[::-1]).save(folder / "one.png")
    return render(reader.read(path, NAMES), folder / "one.png", None)


def iou(one, other, value):
    return ((one == value) & (other == value)).sum() / ((one == value) | (other == value)).sum()


def test_polygons_are_read_back_as_the_label_map(tmp_path):
    labels = blobs()
    found = read_back(labels, tmp_path)
    for value in range(3):
        assert iou(labels, found, value) > 0.97
    assert (found != 255).mean() > 0.99
    assert sum(len(points) for _, points in polygons(labels)) < 150  # not one a pixel
    # Without what is simplified and dropped, box for box the same.
    boxes = np.kron(np.array([[0, 1, 0], [2, 2, 1], [0, 1, 1]], np.uint8), np.ones((20, 30), np.uint8))
    assert (read_back(boxes, tmp_path) == boxes).all()
    assert [(value, len(points)) for value, points in polygons(np.full((9, 9), 1, np.uint8))] == [(1, 4)]


def test_small_regions_become_their_neighbours_by_the_slow_way():
    rng = np.random.default_rng(2)
    labels = np.kron(rng.integers(0, 3, (4, 5)), np.ones((6, 6), int)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.03] = 2
    seen, small = np.zeros(labels.shape, int), np.zeros(labels.shape, bool)
    for start in np.ndindex(*labels.shape):
        if seen[start]:
            continue
        region, wait = {start}, [start]
        while wait:
            y, x = wait.pop()
            for other in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= other[0] < labels.shape[0] and 0 <= other[1] < labels.shape[1]
                if inside and other not in region and labels[other] == labels[start]:
                    region.add(other)
                    wait.append(other)
        for place in region:
            seen[place], small[place] = 1, len(region) < 16
    found = without_small(labels, 16)
    assert small.any()
    assert (found[~small] == labels[~small]).all()
    large = np.argwhere(~small)
    for y, x in np.argwhere(small):
        far = ((large - (y, x)) ** 2).sum(1)
        assert found[y, x] in {labels[tuple(place)] for place in large[far == far.min()]}


# The command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder whose images 4 and 5 have no mask, and a run on it with a moving average."""
    root = draw_folder(tmp_path_factory.mktemp("suggest") / "data")
    for name in "45":
        (root / "masks" / f"{name}.png").unlink()
    more = ["--model", "Supervised", "--model.init_args.ema_decay", "0.5", "--trainer.max_steps", "6"]
    fit_tiny(root.parent / "run", *on_folder(root), *more)
    return root, root.parent / "run"


def suggest(run, images, output, *options, **how):
    return weakseg("suggest", "--run", run, "--images", images, "--output", output, *options, **how)


def rows_of(output):
    with (output / "suggest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_suggested_has_no_label_and_its_prediction_is_read_back(trained, tmp_path):
    root, run = trained
    text = suggest(run, root / "images", tmp_path / "out")
    assert "2 of 2 images without labels, by entropy" in text
    rows = rows_of(tmp_path / "out")
    assert {row["file"] for row in rows} == {"4.png", "5.png"}
    assert [row["rank"] for row in rows] == ["1", "2"]
    model = package.load_run(run)
    for row in rows:
        image = root / "images" / row["file"]
        small = model.photos.evaluation_batch(model.photos.read(image))
        own = {**small, "size": torch.tensor([small["image"].shape[-2:]])}
        with torch.inference_mode():
            p = model.model.predict_labels(model.network, own, refine=False)[1][0].double()
        assert float(row["score"]) == pytest.approx(float(-(p * p.log()).sum(0).mean()) / math.log(3), abs=1e-5)
        drawing = tmp_path / "out" / "labelme" / f"{image.stem}.json"
        assert (drawing.parent / json.loads(drawing.read_text())["imagePath"]).resolve() == image.resolve()
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.height > 2 * 160
    # Put among the masks, they are those of the folder.
    copy = shutil.copytree(root, tmp_path / "copy")
    for drawing in (tmp_path / "out" / "labelme").glob("*.json"):
        shutil.copy(drawing, copy / "masks")
    data = Folder(root=str(copy))
    for name in "45":
        labels, found = model.predict(root / "images" / f"{name}.png"), data.mask(name)
        kept = without_small(labels, 16)
        assert (found != 255).mean() > 0.9
        assert (found == kept)[found != 255].mean() > 0.95


def test_labels_are_skipped_wherever_they_lie(trained, tmp_path):
    root, run = trained
    photos = shutil.copytree(root / "images", tmp_path / "photos")  # other files than the run's: they have no label
    assert "3 of 10 images without labels, by margin" in suggest(
        run, photos, tmp_path / "all", "-n", 3, "--by", "margin"
    )
    (photos / "0.json").write_text("{}")
    (tmp_path / "drawn").mkdir()
    shutil.copy(root / "masks" / "1.png", tmp_path / "drawn")
    (tmp_path / "drawn" / "2.png.json").write_text("{}")
    text = suggest(run, photos, tmp_path / "some", "--masks", tmp_path / "drawn", "--by", "disagreement")
    assert "7 of 7 images without labels, by disagreement" in text
    assert {row["file"] for row in rows_of(tmp_path / "some")} == {f"{number}.png" for number in range(3, 10)}
    assert all(0 <= float(row["score"]) <= 1 for row in rows_of(tmp_path / "some"))
    for number in range(10):
        (tmp_path / "drawn" / f"{number}.json").write_text("{}")
    text = suggest(run, photos, tmp_path / "none", "--masks", tmp_path / "drawn", expect=1)
    assert "have labels: there is nothing to suggest" in text
    assert not (tmp_path / "none").exists()


def test_boxes_that_training_learned_from_are_labels(tmp_path):
    root = draw_folder(tmp_path)
    (root / "classes.txt").write_text("background\nred thing\nblue thing\n")
    (root / "masks" / "4.png").unlink()
    (root / "boxes").mkdir()
    corners = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), "3499", strict=True)
    )
    drawn = f"<annotation><object><name>red thing</name><bndbox>{corners}</bndbox></object></annotation>"
    (root / "boxes" / "4.xml").write_text(drawn)
    for supervision, labelled in (Supervision("boxes", real=True), True), (Supervision("dense"), False):
        data = Folder(str(root), supervision=supervision)
        assert ("4" in labelled_images(data.images, None, data)) == labelled


def test_nobodys_files_are_replaced_and_a_bad_photo_is_named(trained, tmp_path):
    root, run = trained
    photos, out = shutil.copytree(root / "images", tmp_path / "photos"), tmp_path / "out"
    (photos / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"no")
    text = suggest(run, photos, out, "-n", 2, expect=1)
    assert "not read: " in text
    assert "bad.png" in text
    assert "1 of 11 images could not be read" in text
    assert len(rows_of(out)) == 2
    before = snapshot(out)
    assert "exists: choose another --output, or replace it with --overwrite" in suggest(run, photos, out, expect=1)
    drawing = next((out / "labelme").glob("*.json"))
    drawing.write_text(drawing.read_text() + " ")  # somebody goes on
    text = suggest(run, photos, out, "-n", 10, "--overwrite", expect=1)
    assert f"{drawing} was not written by suggest, or was changed since" in text
    del before[f"labelme/{drawing.name}"]
    assert before.items() <= snapshot(out).items()


def test_wrong_options_are_refused_before_anything_is_loaded(trained, tmp_path):
    root, run = trained
    assert "needs --images FOLDER" in weakseg("suggest", "--run", run, expect=1)
    assert "is no folder: check --images" in suggest(run, root / "nowhere", tmp_path / "out", expect=1)
    assert "1 or more" in suggest(run, root / "images", tmp_path / "out", "-n", 0, expect=1)
    assert "is in the folder of images" in suggest(run, root / "images", root / "images" / "out", expect=1)
    assert "check --masks" in suggest(run, root / "images", tmp_path / "out", "--masks", root / "no", expect=1)
    assert "is a file" in suggest(run, root / "images", root / "classes.txt", expect=1)


def test_a_run_whose_data_are_gone_suggests_all_and_says_so(trained, tmp_path):
    root, run = trained
    moved = shutil.copytree(root, tmp_path / "moved")
    root.rename(root.with_name("away"))
    try:
        text = suggest(run, moved / "images", tmp_path / "out", "-n", 1)
    finally:
        root.with_name("away").rename(root)
    assert "the run's data are not here" in text
    assert "1 of 10 images without labels" in text
