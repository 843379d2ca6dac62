"""Optimizers and learning-rate schedules: fractions of the run, several optimizers as one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

ScheduleName = Literal["constant", "poly", "cosine"]


def lr_schedule(optimizer: Optimizer, total_steps: int, name: ScheduleName, warmup: float) -> LambdaLR:
    """Linear warm-up over the fraction `warmup` of `total_steps`, then constant, poly (power 0.9) or cosine to 0.

    The groups of `optimizer` hold the highest rates; one with `constant_lr: True` (a discriminator's) keeps it.
    """
    rise = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        done = min(1.0, (step - rise) / max(1, total_steps - rise))
        if name == "poly":
            return float((1 - done) ** 0.9)
        return 0.5 * (1 + math.cos(math.pi * done)) if name == "cosine" else 1.0

    return LambdaLR(
        optimizer, [(lambda step: 1.0) if group.get("constant_lr") else factor for group in optimizer.param_groups]
    )


def build_optimizer(factory: Callable[[Iterable[Any]], Optimizer], groups: Sequence[dict[str, Any]]) -> Optimizer:
    """Optimizer over parameter groups; a group's `lr_scale` multiplies the factory's learning rate.

    Empty groups are left out. The scale stays in the group, so that a checkpoint tells it.
    """
    optimizer = factory([{**group, "params": list(group["params"])} for group in groups if list(group["params"])])
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group.get("lr_scale", 1.0)
    return optimizer


class ChainedOptimizer(Optimizer):
    """Several optimizers that step together, seen from outside as one.

    `param_groups` and `state` are those of the parts (shared, not copied), so schedules, clipping, precision plugins
    and checkpoints work as for a single optimizer, and Lightning's automatic optimisation counts one step. For papers
    with adversaries: one backward of L_G + L_D, in which each parameter has a gradient from its own loss alone.

    Args:
        optimizers: at least one; no parameter may belong to two of them.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        if not optimizers:
            raise ValueError("ChainedOptimizer needs at least one optimizer")
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        parameters = [parameter for group in groups for parameter in group["params"]]
        if len({id(p) for p in parameters}) != len(parameters):
            raise ValueError("a parameter belongs to two of the chained optimizers: give each its own")
        self.optimizers = list(optimizers)
        super().__init__(groups, {})
        self._share()

    def _share(self) -> None:
        # The base class copies the group dicts; schedules write into ours, the parts step with theirs: same objects.
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        states = (item for optimizer in self.optimizers for item in optimizer.state.items())
        return defaultdict(dict, states)

    @state.setter
    def state(self, value: Any) -> None:
        pass  # the parts own their state; the base class assigns an empty one

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure once (forward and backward), then every optimizer's step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._share()
