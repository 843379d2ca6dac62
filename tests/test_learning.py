"""Slow: does a method learn? On the frozen drawn scenes, through the quick-start recipes."""

import json

import pytest

from conftest import ROOT, weakseg

RECIPES = ROOT / "experiments" / "configs" / "recipes"
CHANCE = 12.5  # mIoU of calling everything background: one class of six at three quarters


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("quickstart_*.yaml")), ids=lambda path: path.stem)
def test_a_quick_start_learns_from_eight_pixels_an_image(recipe, tmp_path):
    weakseg("fit", "--config", recipe, "--run_dir", tmp_path / "run", "--trainer.enable_progress_bar", "false")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["last"]["val/miou"] > CHANCE + 5
