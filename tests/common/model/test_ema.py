"""The moving-average teacher: which tensors move, by how much, and when."""

import copy

import pytest
import torch
from torch import nn

from common.model.ema import EMATeacher
from common.model.module import SegmentationModule
from conftest import fit_tiny


def student(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))


def fill(network, value):
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.fill_(value)


def other(network):
    """A copy in which every tensor has another value."""
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in changed.state_dict().values():
            tensor.add_(torch.rand_like(tensor.double()).add(1).to(tensor.dtype))
    return changed


def floating(network):
    return {name: value for name, value in network.state_dict().items() if value.is_floating_point()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_t9_from_zero_to_one_after_100_steps(dtype):
    network = student().to(dtype)
    fill(network, 0)
    teacher = EMATeacher(network, decay=0.99)
    fill(network, 1)
    for _ in range(100):
        teacher.update(network)
    for name, value in floating(teacher.network).items():
        assert value.flatten()[0].item() == pytest.approx(0.633968, abs=1e-6), name
    assert value.dtype == dtype
    assert int(teacher.steps) == 100


def test_it_starts_as_a_copy_of_its_own():
    network = student()
    teacher = EMATeacher(network, decay=0.9)
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    fill(network, 7)
    assert all(torch.equal(teacher.network.state_dict()[name], value) for name, value in before.items())


def test_weights_and_batch_statistics_move_and_counters_are_copied():
    network = student()
    teacher = EMATeacher(network, decay=0.75)
    before = copy.deepcopy(teacher.network.state_dict())
    changed = other(network)
    kept = copy.deepcopy(changed.state_dict())
    teacher.update(changed)
    after = teacher.network.state_dict()
    assert {"1.running_mean", "1.running_var", "0.weight", "1.weight", "4.bias"} <= floating(network).keys()
    for name in floating(network):
        torch.testing.assert_close(after[name], 0.75 * before[name] + 0.25 * kept[name])
        assert not torch.equal(after[name], before[name])
    assert int(after["1.num_batches_tracked"]) == int(kept["1.num_batches_tracked"]) > 0
    assert all(torch.equal(changed.state_dict()[name], value) for name, value in kept.items())


def test_a_teacher_of_an_equal_student_stays_bit_for_bit():
    network = student()
    teacher = EMATeacher(network, decay=0.9)
    teacher.update(network)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in teacher.network.state_dict().items())


def test_warm_up_is_the_plain_average_until_the_decay():
    network = student()
    fill(network, 5)
    teacher = EMATeacher(network, decay=0.75, warmup=True)
    expected = 5.0
    for step, value in enumerate((1.0, 2.0, 6.0, 7.0, 9.0, 0.0)):
        fill(network, value)
        teacher.update(network)
        alpha = min(1 - 1 / (step + 1), 0.75)  # 0, 1/2, 2/3, 3/4, 3/4, ...
        expected = alpha * expected + (1 - alpha) * value
        if step < 4:
            assert expected == pytest.approx(sum((1.0, 2.0, 6.0, 7.0)[: step + 1]) / (step + 1))
        for tensor in floating(teacher.network).values():
            assert tensor.flatten()[0].item() == pytest.approx(expected, rel=1e-6)


def test_it_stays_in_eval_mode_and_takes_no_gradient():
    network = student()
    teacher = EMATeacher(network, decay=0.9)
    nn.ModuleDict({"teacher": teacher, "student": network}).train()
    assert network[3].training
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in network.parameters())
    before = copy.deepcopy(teacher.state_dict())
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    output = teacher(image)
    assert not output.requires_grad
    assert torch.equal(output, teacher(image))  # no dropout
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    teacher.update(other(network))
    assert not any(p.requires_grad for p in teacher.parameters())


def test_the_state_dict_carries_the_step_of_the_warm_up():
    networks = [other(student()) for _ in range(5)]
    unbroken = EMATeacher(student(), decay=0.99, warmup=True)
    for network in networks:
        unbroken.update(network)
    stopped = EMATeacher(student(), decay=0.99, warmup=True)
    for network in networks[:2]:
        stopped.update(network)
    state = copy.deepcopy(stopped.state_dict())
    assert int(state["steps"]) == 2
    resumed = EMATeacher(student(1), decay=0.99, warmup=True)
    resumed.load_state_dict(state)
    for network in networks[2:]:
        resumed.update(network)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in unbroken.state_dict().items())


@pytest.mark.parametrize("warmup", [False, True])
def test_an_update_does_not_wait_for_the_device(warmup):
    """No number of the meta device can be read on the host: a wait would raise."""
    with torch.device("meta"):
        network = student()
        EMATeacher(network, decay=0.9, warmup=warmup).update(network)


def test_another_student_is_refused():
    teacher = EMATeacher(student(), decay=0.9)
    with pytest.raises(ValueError, match=r"other tensors than the teacher: \['5.bias', '5.weight'\]"):
        teacher.update(nn.Sequential(*student(), nn.Conv2d(2, 2, 1)))


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        EMATeacher(student(), decay=decay)


def test_it_moves_once_per_optimizer_step_also_under_accumulation(tmp_path, monkeypatch):
    seen, batches = [], []
    update, start = EMATeacher.update, SegmentationModule.on_train_batch_start

    def count(self, network):
        before = {name: value.clone() for name, value in floating(self.network).items()}
        update(self, network)
        moved = [name for name, value in floating(self.network).items() if not torch.equal(value, before[name])]
        seen.append((len(batches), moved, [name for name, module in self.named_modules() if module.training]))

    def look(self, batch, batch_idx):
        batches.append(batch_idx)
        start(self, batch, batch_idx)

    monkeypatch.setattr(EMATeacher, "update", count)
    monkeypatch.setattr(SegmentationModule, "on_train_batch_start", look)
    accumulate = ("--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "3", "--checkpoint_every", "1")
    fit_tiny(tmp_path / "run", "--model", "SCL", *accumulate)
    assert [number for number, _, _ in seen] == [2, 4, 6]  # after every second batch, validation between them
    assert not [training for _, _, training in seen if training]
    for _, moved, _ in seen:
        assert any("running_mean" in name for name in moved)
        assert any(name.endswith("weight") for name in moved)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert int(state["teacher.steps"]) == 3
    own, of_student = (
        {k.removeprefix(p): v for k, v in state.items() if k.startswith(p)} for p in ("teacher.network.", "network.")
    )
    assert own.keys() == of_student.keys()
    assert not torch.equal(own["model.segmentation_head.0.weight"], of_student["model.segmentation_head.0.weight"])
