"""`weakseg doctor` on data: leakage between splits, and its pictures."""

import shutil

from PIL import Image

from conftest import TINY, draw_folder, weakseg

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
