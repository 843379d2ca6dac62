"""The script for whoever has a GPU, tried without one."""

import sys

import pytest
import torch

import methods
from common.model.module import SegmentationModule
from experiments.benchmarks import gpu


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["gpu", *map(str, words)])
    gpu.main()


def rows(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_method_has_a_row_and_trains(monkeypatch, tmp_path):
    assert {method for method, _ in gpu.METHODS.values()} == methods.CLASSES.keys()
    tiny = ["--device", "cpu", "--network", "tiny", "--side", 64, "--batch", 2, "--steps", 1]
    run(monkeypatch, *tiny, "--output", tmp_path / "gpu.md")
    found = rows(tmp_path / "gpu.md")
    of_methods = {row[0]: row[1:] for row in found if len(row) == 4}
    assert {name: of_methods[name][0] for name in gpu.METHODS} == dict.fromkeys(gpu.METHODS, "trains")
    assert all(float(of_methods[name][1]) > 0 and of_methods[name][2] == "" for name in gpu.METHODS)
    assert min(float(cell) for cell in found[2][2:4]) > 0
    # Later runs of this process go through their phases.
    assert not any("progress" in vars(one) for name in methods.CLASSES for one in getattr(methods, name).__mro__[:-1]
                   if one is not SegmentationModule)  # fmt: skip


def test_what_the_minutes_do_not_reach_stays_blank(monkeypatch, tmp_path):
    run(monkeypatch, "--device", "cpu", "--network", "tiny", "--minutes", 0, "--output", tmp_path / "gpu.md")
    found = {row[0]: row[1:] for row in rows(tmp_path / "gpu.md")}
    assert [found[name] for name in gpu.METHODS] == [["", "", ""]] * len(gpu.METHODS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_line(monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--output", tmp_path / "gpu.md")
    assert str(stop.value).startswith("gpu: torch sees no GPU here")
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "gpu.md").exists()
