"""The benchmark of faults in poses and boxes puts in what it says."""

import numpy as np
import torch

from datamodules.sets.rooms import Rooms
from experiments.benchmarks.box_faults import spoil, turned


def rooms():
    return Rooms(1, 1, 1, 3, 32)


def test_poses_are_off_by_what_is_said_and_stay_rigid():
    pose = rooms().views["train000_00"].pose
    rng = np.random.default_rng(0)
    errors = [turned(pose, 2, 1, rng) @ torch.linalg.inv(pose) for _ in range(300)]
    for error in errors:
        assert torch.allclose(error[:3, :3] @ error[:3, :3].T, torch.eye(3, dtype=torch.float64), atol=1e-12)
    moved = torch.stack([error[:3, 3] for error in errors])
    assert abs(moved.std() - 0.02) < 0.002
    angles = [torch.rad2deg(torch.arccos((error[:3, :3].trace() - 1) / 2)) for error in errors]
    assert abs(torch.stack(angles).square().mean().sqrt() - 3**0.5) < 0.1  # one degree about each axis
    assert torch.equal(turned(pose, 0, 0, rng), pose)


def test_boxes_are_moved_or_lost_and_nothing_else_changes():
    before = rooms()
    data = rooms()
    spoil(data, 0)
    assert data.boxed == before.boxed
    assert all(torch.equal(view.pose, before.views[name].pose) for name, view in data.views.items())
    spoil(data, 0, pixels=2)
    assert data.boxed != before.boxed
    for boxes in data.boxed.values():
        for x0, y0, x1, y1, _ in boxes:
            assert 0 <= x0 <= x1 <= 31
            assert 0 <= y0 <= y1 <= 23
    spoil(data, 0, missing=1)
    assert data.boxed.keys() == before.boxed.keys()
    assert not any(data.boxed.values())
