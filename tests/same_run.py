"""Are two runs the same, bit for bit?"""

import csv

import torch


def load(run_dir, which="last"):
    return torch.load(run_dir / "checkpoints" / f"{which}.ckpt", weights_only=True)


def metrics(run_dir):
    """Rows without the measured speed; rows that held nothing else are left out."""
    with (run_dir / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(file)]
    return [row for row in rows if any(v for k, v in row.items() if k not in ("step", "epoch"))]


def assert_equal(one, two, path=""):
    if isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one:
            assert_equal(one[key], two[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), path
        for index, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_equal(a, b, f"{path}/{index}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), path
    else:
        assert one == two, path


def assert_same_run(one, two):
    for which in ("last", "best"):
        first, second = load(one, which), load(two, which)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
            assert_equal(first[part], second[part], f"{which}/{part}")
    assert metrics(one) == metrics(two)
