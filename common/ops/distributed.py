"""One way to run on many processes: the DDP strategy, losses normalised over ranks, buffers averaged over ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of processes that train together (1 without a process group)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_sum(value: Tensor) -> Tensor:
    """`value` summed over ranks, without gradient: for counts and shares that all ranks must agree on."""
    value = value.detach()
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def joined(value: Tensor) -> Tensor:
    """Every rank's `value`, of one shape on all of them, one after the other in dimension 0, without gradient."""
    value = value.detach().contiguous()
    if world_size() == 1:
        return value
    parts = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(parts, value)
    return torch.cat(parts)


def gather(value: Any) -> list[Any]:
    """Every rank's `value` (anything that can be pickled), on all ranks."""
    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """`total / max(1, count)` with `count` taken over all ranks: the one way a loss is normalised.

    DDP averages gradients over ranks, so the count is summed over ranks and divided by their number; the averaged
    gradient then equals that of one process which sees the whole batch, however the labels fall on the ranks.

    Args:
        total: this rank's sum, with gradient; a scalar, or several sums that have each a mean of their own.
        count: this rank's number of pixels (pairs, regions, ...) in each, of a shape that broadcasts to that of
            `total`; no gradient flows into it.

    Returns:
        As `total`. Its mean over ranks is the loss of the global batch; an empty global set gives zero, not NaN.
    """
    return total / (all_sum(count.to(total.dtype)).clamp(min=1) / world_size())


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Replace each floating buffer by its mean over ranks, in one all-reduce (a no-op on one process).

    Call it on all ranks before the buffers are used or stored: validation, test, checkpoint.
    """
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    if world_size() == 1 or not buffers:
        return
    flat = torch.cat([b.reshape(-1).to(torch.promote_types(b.dtype, torch.float32)) for b in buffers])
    dist.all_reduce(flat)
    flat /= world_size()
    for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))
