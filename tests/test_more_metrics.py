"""`weakseg test --metrics`: what is logged, written and compared, and what is refused."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from common.model.measures import overlap_scores
from common.model.metrics import MatchedMetrics
from common.training.test_metrics import METRICS, TestMetrics, grouped
from conftest import fit_tiny, weakseg
from experiments.cli.compare import main as compare

WITHOUT_MONAI = [name for name in METRICS if name not in ("hd95", "assd")]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A tested run, its summary before and after `--metrics`, and what the command printed."""
    folder = tmp_path_factory.mktemp("run") / "run"
    fit_tiny(folder)
    weakseg("test", "--run", folder)
    before = json.loads((folder / "summary.json").read_text())["test"]["best"]
    text = weakseg("test", "--run", folder, "--metrics", *WITHOUT_MONAI)
    return SimpleNamespace(folder=folder, before=before, text=text)


def of_best(run_dir):
    return json.loads((run_dir.folder / "summary.json").read_text())["test"]["best"]


def test_metrics_are_added_to_the_summary_and_change_no_other(run_dir):
    found, classes = of_best(run_dir), [name.split("/")[2] for name in run_dir.before if "/iou/" in name]
    assert {**found, **run_dir.before} == found
    per_class = ("dice", "precision", "recall", "dice_groups", "boundary_iou")
    more = {f"test/{name}" for name in [*per_class, "ece", "miou_unimatch"]}
    more |= {f"test/{name}/{c}" for name in per_class for c in classes}
    assert found.keys() - run_dir.before.keys() == more
    for c in classes:
        iou = found[f"test/iou/{c}"]
        if iou is not None:
            assert found[f"test/dice/{c}"] == pytest.approx(200 * iou / (100 + iou), abs=1e-3)
    known = [found[f"test/dice/{c}"] for c in classes if found[f"test/dice/{c}"] is not None]
    assert found["test/dice"] == pytest.approx(np.mean(known), abs=1e-3)
    assert 0 < found["test/ece"] < 100
    assert found["test/miou_unimatch"] <= found["test/miou"] + 1e-6
    line = next(line for line in run_dir.text.splitlines() if line.startswith("test/dice "))
    assert float(line.split()[1]) == pytest.approx(found["test/dice"], abs=5.1e-3)


def test_the_confusion_matrix_is_written_as_counts_and_as_a_picture(run_dir):
    with np.load(run_dir.folder / "test_best_images.npz") as content:
        images = content["confusion"]
    rows = list(csv.reader((run_dir.folder / "confusion_best.csv").open()))
    assert rows[0][0] == "true"
    assert [row[0] for row in rows[1:]] == rows[0][1:]
    assert np.array_equal(np.array([row[1:] for row in rows[1:]], int), images.sum(0))
    assert min(Image.open(run_dir.folder / "pictures" / "confusion_best.png").size) > 200
    groups = overlap_scores(torch.from_numpy(images))["dice"].nanmean(0)
    assert of_best(run_dir)["test/dice_groups"] == pytest.approx(groups.nanmean().item(), abs=1e-3)


def test_compare_shows_the_columns_that_are_asked_for(run_dir, tmp_path):
    compare([str(run_dir.folder), "--output", str(tmp_path), "--columns", "test/dice", "train/loss", "--images", "0"])
    head, _, row = (line.split("|") for line in (tmp_path / "report.md").read_text().splitlines() if "|" in line)
    assert float(row[[cell.strip() for cell in head].index("test/dice, best")]) == round(
        of_best(run_dir)["test/dice"], 1
    )
    assert "train/loss" in [cell.strip() for cell in head]
    [numbers] = csv.DictReader((tmp_path / "table.csv").open())
    assert float(numbers["test_dice_best"]) == pytest.approx(of_best(run_dir)["test/dice"])
    with pytest.raises(ValueError, match="there is no column 'dise'"):
        compare([str(run_dir.folder), "--output", str(tmp_path), "--columns", "dise"])


def test_distances_are_those_of_the_predicted_labels(run_dir):
    pytest.importorskip("monai")
    weakseg(
        "test",
        "--run",
        run_dir.folder,
        "--which",
        "last",
        "--metrics",
        "hd95",
        "assd",
    )
    found = json.loads((run_dir.folder / "summary.json").read_text())["test"]["last"]
    assert "test/hd95/background" not in found
    values = [value for name, value in found.items() if name.startswith("test/hd95/") and value is not None]
    assert found["test/hd95"] == pytest.approx(np.mean(values), abs=1e-3)
    assert 0 <= found["test/assd"] <= found["test/hd95"] <= np.hypot(40, 40)


def test_images_of_a_sequence_are_one_group():
    found = {"b_1": 1, "a_2": 2, "b_0": 3}
    data = SimpleNamespace(scored_with=lambda name: name[0])
    assert grouped(data, found) == [[2], [3, 1]]
    assert grouped(SimpleNamespace(scored_with=str), found) == [[2], [3], [1]]


def test_what_has_no_such_metrics_is_refused(run_dir):
    text = weakseg("test", "--run", run_dir.folder, "--metrics", "dise", expect=2)
    assert "invalid choice: 'dise'" in text
    checkpoint = run_dir.folder / "checkpoints" / "best.ckpt"
    text = weakseg("test", "--ckpt", checkpoint, "--metrics", "confusion", expect=1)
    assert "give --run DIR in place of --ckpt" in text
    phases = SimpleNamespace(metrics={"network": MatchedMetrics(3)})
    with pytest.raises(ValueError, match="those of a segmentation with named classes"):
        TestMetrics(["dice"]).on_test_start(None, phases)


def test_a_checkpoint_file_is_measured_too_and_writes_nothing(run_dir):
    checkpoint, before = run_dir.folder / "checkpoints" / "best.ckpt", of_best(run_dir)
    text = weakseg("test", "--ckpt", checkpoint, "--metrics", "dice")
    line = next(line for line in text.splitlines() if line.startswith("test/dice "))
    assert float(line.split()[1]) == pytest.approx(before["test/dice"], abs=5.1e-3)
    assert of_best(run_dir) == before
