import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from common.model.optim import ChainedOptimizer, build_optimizer, lr_schedule
from common.ops.schedules import linear_ramp, sigmoid_ramp


def test_linear_ramp_at_its_ends():
    assert [linear_ramp(p, 0.2, 0.1) for p in (0.0, 0.2, 0.25, 0.3, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert linear_ramp(0.0, 0.0, 0.0) == 1.0
    assert linear_ramp(0.49, 0.5, 0.0) == 0.0


def test_sigmoid_ramp_at_its_ends():
    values = [sigmoid_ramp(p, 0.2) for p in (0.0, 0.1, 0.2, 1.0)]
    assert values == pytest.approx([math.exp(-5), math.exp(-1.25), 1, 1])
    assert values[2:] == [1, 1]
    assert 0.99 < sigmoid_ramp(0.2 - 1e-3, 0.2) < 1  # no jump
    assert sigmoid_ramp(0.0, 0.0) == 1.0


@pytest.mark.parametrize(
    ("name", "half", "end"), [("constant", 1.0, 1.0), ("poly", 0.5**0.9, 0.0), ("cosine", 0.5, 0.0)]
)
def test_schedule_at_its_ends(name, half, end):
    schedule = lr_schedule(SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 120, name, warmup=20 / 120)
    factor = schedule.lr_lambdas[0]
    assert factor(0) == pytest.approx(1 / 21)
    assert factor(20) == pytest.approx(1.0)
    assert factor(70) == pytest.approx(half)
    assert factor(120) == pytest.approx(end)
    assert factor(1000) == pytest.approx(end)


def test_groups_scale_the_learning_rate_and_empty_ones_are_left_out():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups = [{"params": [a], "lr_scale": 0.1}, {"params": [], "lr_scale": 7.0}, {"params": [b], "lr_scale": 1.0}]
    optimizer = build_optimizer(lambda params: SGD(params, lr=2.0), groups)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 2.0])


def two_networks():
    torch.manual_seed(0)
    return nn.Linear(3, 2), nn.Linear(2, 1)


def chained(first, second):
    return ChainedOptimizer([AdamW(first.parameters(), lr=0.1), SGD(second.parameters(), lr=0.5, momentum=0.9)])


def train(first, second, optimizer, steps=4):
    x = torch.arange(12.0).view(4, 3) / 10
    for _ in range(steps):
        optimizer.zero_grad()
        second(first(x)).square().mean().backward()
        optimizer.step()


def test_chained_steps_equal_separate_steps():
    pair, other = two_networks(), two_networks()
    train(*pair, chained(*pair))
    parts = [AdamW(other[0].parameters(), lr=0.1), SGD(other[1].parameters(), lr=0.5, momentum=0.9)]

    class Both:
        def zero_grad(self):
            [part.zero_grad() for part in parts]

        def step(self):
            [part.step() for part in parts]

    train(*other, Both())
    for one, two in zip(pair, other, strict=True):
        assert torch.equal(one.weight, two.weight)


def test_chained_state_resumes_exactly_also_under_a_schedule():
    unbroken, stopped = two_networks(), two_networks()
    train(*unbroken, chained(*unbroken), 6)
    optimizer = chained(*stopped)
    train(*stopped, optimizer, 3)
    state = optimizer.state_dict()
    fresh = chained(*stopped)
    fresh.load_state_dict(state)
    schedule = torch.optim.lr_scheduler.LambdaLR(fresh, lambda step: 1.0)
    train(*stopped, fresh, 3)
    schedule.step()
    assert torch.equal(unbroken[0].weight, stopped[0].weight)
    assert torch.equal(unbroken[1].weight, stopped[1].weight)


def test_chained_groups_are_shared_with_a_schedule_and_after_a_load():
    first, second = two_networks()
    optimizer = chained(first, second)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [part.param_groups[0]["lr"] for part in optimizer.optimizers] == [0.05, 0.25]
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[1]["lr"] = 3.0
    assert optimizer.optimizers[1].param_groups[0]["lr"] == 3.0
    assert len(optimizer.state) == 0
    train(first, second, optimizer, 1)
    assert len(optimizer.state) == 4


def test_chained_closure_runs_once():
    first, second = two_networks()
    calls = []
    assert chained(first, second).step(lambda: calls.append(1) or 7.0) == 7.0
    assert len(calls) == 1


def test_chained_refuses_nothing_and_a_shared_parameter():
    first, _ = two_networks()
    with pytest.raises(ValueError, match="at least one"):
        ChainedOptimizer([])
    with pytest.raises(ValueError, match="two of the chained"):
        ChainedOptimizer([SGD(first.parameters(), lr=math.pi), SGD([first.weight], lr=1.0)])


def test_a_group_of_constant_lr_takes_part_in_no_schedule():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = SGD([{"params": [a]}, {"params": [b], "constant_lr": True}], lr=1.0)
    schedule = lr_schedule(optimizer, 120, "poly", warmup=20 / 120)
    assert [factor(0) for factor in schedule.lr_lambdas] == pytest.approx([1 / 21, 1])
    assert [factor(70) for factor in schedule.lr_lambdas] == pytest.approx([0.5**0.9, 1])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1 / 21, 1])
