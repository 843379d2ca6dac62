"""Slow: does a method learn? On the frozen synthetic scenes of the quick start."""

import json

import pytest

from conftest import weakseg

CHANCE = 12.5  # mIoU of calling everything background: one class of six at three quarters


@pytest.mark.slow
@pytest.mark.parametrize("method", ["supervised", "tv"])
def test_the_quick_start_learns_from_eight_pixels_an_image(method, tmp_path):
    words = ["--config", "quickstart", "--config", method, "--trainer.enable_progress_bar", "false"]
    weakseg("fit", *words, "--run_dir", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["last"]["val/miou"] > CHANCE + 5
