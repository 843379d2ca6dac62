"""What the tables of experiments/results are made with: scores by seed, gains of equal seeds, cells."""

import json

import pytest

from experiments.results.tables import TRAINED, cell, differences, folders, gains, scores


@pytest.fixture
def runs(tmp_path):
    """Two methods; the baseline has no seed 0, and evaluates a moving average beside what it trains; seed 1 of the
    other is not tested."""
    tests = {
        "base": (None, {"test/miou": 50.0, "test/miou_network": 49.0}, {"test/miou": 60.0, "test/miou_network": 58.0}),
        "ours": ({"test/miou": 41.0}, {}, {"test/miou": 61.5}),
    }
    for name, found in tests.items():
        for seed, test in enumerate(found):
            if test is not None:
                folder = tmp_path / f"{name}{seed}"
                folder.mkdir()
                (folder / "summary.json").write_text(json.dumps({"test": {"best": test} if test else {}}))
    return tmp_path


def test_a_missing_score_keeps_its_place_so_gains_are_those_of_equal_seeds(runs):
    base, ours = (scores(folders(runs, f"{name}{{}}"), "best") for name in ("base", "ours"))
    assert base == [None, 50, 60]
    assert ours == [41, None, 61.5]
    assert differences(ours, base) == [1.5]
    assert gains(ours, base) == "+1.5"


def test_the_trained_network_is_scored_where_another_is_evaluated(runs):
    assert scores(folders(runs, "base{}"), "best", *TRAINED) == [None, 49, 58]
    assert scores(folders(runs, "ours{}"), "best", *TRAINED) == [41, None, 61.5]
    assert scores(folders(runs, "base{}"), "best", "miou_branch2") == [None, None, None]


def test_a_cell_says_how_many_values_it_has_if_some_are_missing():
    assert cell([50.0, 60.0, 70.0]) == "60.0 ± 10.0"
    assert cell([None, 50.0, 60.0]) == "55.0 ± 7.1 (n=2)"
    assert cell([None, 50.0, None]) == "50.0 (n=1)"
    assert cell([50.0]) == "50.0"
    assert cell([None, None, None]) == cell([]) == ""
