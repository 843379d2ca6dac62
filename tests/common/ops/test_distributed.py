"""What common/ops/distributed.py does in addition to what losses and runs on two processes show."""

import torch
from torch import nn

import common.ops.distributed
from common.ops.distributed import average_buffers


def test_averaged_buffers_keep_their_precision(monkeypatch):
    """Two ranks that hold the same: the mean is that, to the last bit of each type."""
    monkeypatch.setattr(common.ops.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(common.ops.distributed.dist, "all_reduce", lambda values: values.mul_(2))
    module = nn.Module()
    for dtype in (torch.float64, torch.float32, torch.float16):
        module.register_buffer(str(dtype).removeprefix("torch."), torch.full((3,), 1 / 3, dtype=dtype))
    before = {name: value.clone() for name, value in module.named_buffers()}
    average_buffers(module)
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())
