"""The benchmark of boxes: what is done is not done again, and the page says what the rows say."""

import argparse
from pathlib import Path

import pytest

from experiments.benchmarks import boxes


def bed(tmp_path, **more):
    options = {"output": tmp_path, "steps": None, "shares": [0.1, 0.25], "seeds": [0, 1], "rooms": 1, "around": 4}
    return boxes.rooms(argparse.Namespace(**{**options, **more}))


def test_each_result_has_a_key_of_its_own_and_rounds_follow_their_network(tmp_path):
    keys = [boxes.of(job.key) for job in boxes.jobs(bed(tmp_path))]
    assert len(keys) == len({*keys})
    assert len(keys) == 1 + 2 + 2 * 2 * (2 + 2 + 1 + 2 * boxes.ROUNDS + 4 + 1)
    for share in ("0.1", "0.25"):
        rounds = [key[1] for key in keys if key[2:5] == (share, "1", "votes")]
        assert rounds == ["proposals", "network"] * boxes.ROUNDS


def fakes(calls, fails=None):
    def run(name):
        if name == fails:
            raise KeyboardInterrupt
        calls.append(name)
        return {"unboxed": 10.0 * len(calls), "unlabeled": 0.25}

    for seed in (0, 1):
        for way in ("votes", "GrabCut"):
            key = {"set": "rooms", "what": "proposals", "share": "0.1", "seed": seed, "way": way, "round": 0}
            yield boxes.Job(key, lambda name=f"{way}{seed}": run(name))


def test_what_has_a_row_is_not_done_again(tmp_path, monkeypatch, capsys):
    calls, file = [], tmp_path / "boxes.csv"
    monkeypatch.setattr(boxes, "jobs", lambda bed: fakes(calls, fails="votes1"))
    with pytest.raises(KeyboardInterrupt):
        boxes.work(bed(tmp_path), file, False, ["proposals"])
    assert calls == ["votes0", "GrabCut0"]
    monkeypatch.setattr(boxes, "jobs", lambda bed: fakes(calls))
    boxes.work(bed(tmp_path), file, True, ["proposals"])
    assert "rooms: 2 results to measure, about 0 core-minutes" in capsys.readouterr().out  # by the rows that are there
    boxes.work(bed(tmp_path), file, False, ["proposals"])
    assert calls == ["votes0", "GrabCut0", "votes1", "GrabCut1"]
    boxes.work(bed(tmp_path), file, False, ["proposals"])
    assert len(calls) == len(boxes.read_rows(file)) == 4
    told = boxes.page(boxes.read_rows(file))
    assert "| 10% | votes | 0 | 2 | 20.0 ± 14.1 |  | 25.0 ± 0.0 |" in told
    assert "| 10% | GrabCut | 0 | 2 | 30.0 ± 14.1 |  | 25.0 ± 0.0 |" in told


def test_the_estimate_without_rows_is_that_of_single_runs(tmp_path):
    left = [job for job in boxes.jobs(bed(tmp_path)) if job.key["what"] == "network"]
    later = sum(job.key["round"] in (1, 2) for job in left)
    assert later == 2 * 2 * (boxes.ROUNDS - 1)
    full = boxes.ABOUT["rooms", "network"]  # a later round trains for a third
    assert boxes.minutes(left, []) == pytest.approx((len(left) - later) * full + later * full / 3)


@pytest.mark.slow
def test_rooms_are_measured_from_beginning_to_end(tmp_path, monkeypatch):
    small = ["rooms", "--rooms", "1", "--around", "4", "--shares", "0.5", "--seeds", "0", "--steps", "4"]
    monkeypatch.setattr("sys.argv", ["boxes", *small, "--output", str(tmp_path)])
    boxes.main()
    rows = boxes.read_rows(tmp_path / "boxes.csv")
    assert len(rows) == 1 + 1 + (2 + 2 + 1 + 6 + 4 + 1)
    assert all(float(row["last"]) > 0 for row in rows if row["what"] == "network")
    assert "### Synthetic rooms: network" in Path(tmp_path / "boxes.md").read_text()
