"""`weakseg doctor` on data: leakage between splits, and its pictures."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from conftest import TINY, draw_folder, fit_tiny, on_folder, weakseg
from experiments.cli import main

FOLDER = ["--config", "base", "--data", "Folder"]


def test_the_same_picture_in_two_splits_is_found_under_another_name(tmp_path):
    root = draw_folder(tmp_path / "data")
    options = [*FOLDER, "--data.root", root]
    assert "no problem found" in weakseg("doctor", *options)
    for kind in ("images", "masks"):
        shutil.copy(root / kind / "0.png", root / kind / "8.png")  # 0 is for training, 8 for test
    output = weakseg("doctor", *options, expect=1)
    assert "the same picture is in two splits: train/0 and test/8" in output
    assert "1 problems in the data" in output


def test_sheets_show_what_is_labelled(tmp_path):
    sheet, regimes = tmp_path / "sheet.png", tmp_path / "regimes.png"
    output = weakseg("doctor", "--config", TINY, "--sheet", sheet, "--regimes", regimes)
    assert str(sheet) in output
    assert str(regimes) in output
    assert Image.open(regimes).width > 2 * Image.open(sheet).width  # eight columns and three
    assert len(Image.open(sheet).convert("RGB").getcolors(2**24)) > 100  # pictures, not a blank page


FAULTS = {
    "val without a label": ("67", 255, "no pixel of val has a label"),
    "one class": ("012345", 0, "every labelled pixel of train is ground"),
    "test without a label": ("89", 255, "no pixel of test has a label"),
}


@pytest.mark.parametrize("row", FAULTS)
def test_a_fault_is_a_problem_for_doctor_and_the_end_of_fit_before_a_step(row, tmp_path):
    names, value, words = FAULTS[row]
    root = draw_folder(tmp_path / "data")
    for name in names:
        path = root / "masks" / f"{name}.png"
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), value)).save(path)
    output = weakseg("doctor", *FOLDER, "--data.root", root, expect=1)
    assert f"problem: {words}" in output
    assert "no problem found" not in output
    assert output.endswith("problems in the data\n")
    found = json.loads(weakseg("doctor", *FOLDER, "--data.root", root, "--json", expect=1))
    assert found["errors"] >= 1
    assert any(words in one["text"] for one in found["findings"])
    if row != "test without a label":  # training does not look at test
        text = fit_tiny(tmp_path / "run", *on_folder(root), expect=1)
        assert f"weakseg: error: {words}" in text
        assert not (tmp_path / "run").exists()


def test_fit_surveys_once_and_tells_at_each_start(tmp_path, monkeypatch):
    root = draw_folder(tmp_path / "data")
    for name in "012345":
        path = root / "masks" / f"{name}.png"
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == 2, 255, mask).astype(np.uint8)).save(path)
    options = [*on_folder(root), "--data.init_args.cache_dir", str(tmp_path / "cache")]
    with pytest.warns(UserWarning, match="no pixel of train is blue thing"):
        fit_tiny(tmp_path / "one", *options)
    monkeypatch.setattr("datamodules.annotation.Survey", None)
    with pytest.warns(UserWarning, match="no pixel of train is blue thing"):
        fit_tiny(tmp_path / "two", *options)


def test_machines_get_json_and_nothing_else(tmp_path):
    found = json.loads(weakseg("doctor", "--config", TINY, "--json"))
    assert found["splits"]["train"]["images"] == 12
    assert found["errors"] == 0


def test_json_stands_alone_where_some_of_very_many_images_are_looked_at(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datamodules.annotation.LOOKED_AT", 2)
    few = ["--data.supervision", "{kind: image_subset, fraction: null, number: 4}"]
    assert main(["doctor", "--config", str(TINY), *few, "--data.cache_dir", str(tmp_path), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["errors"] == 0
    assert "of 8 unlabelled images 2 are looked at" in told.err


def test_two_shares_of_labels_are_named_as_such():
    output = weakseg("doctor", "--config", TINY)
    assert "% of those at the training size); of the masks as they are 100.0000%" in output


def test_other_options_than_those_of_data_are_refused():
    text = weakseg("doctor", "--config", TINY, "--model", "TV", expect=1)
    assert "weakseg doctor looks at data: it takes --config and --data options, not --model" in text
