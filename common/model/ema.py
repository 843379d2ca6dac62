"""EMATeacher: a network whose weights are the exponential moving average of another's."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Student = TypeVar("Student", bound=nn.Module)


class EMATeacher(nn.Module, Generic[Student]):
    """A copy of a student that follows it: `theta <- alpha theta + (1 - alpha) theta_student`, once per optimizer step.

    All floating state moves, weights and BatchNorm statistics; the rest (batch counters) is copied. The teacher takes
    no gradient and is always in eval mode, whatever `train()` is called around it. Mean teacher (Tarvainen & Valpola,
    NeurIPS 2017, arXiv 1703.01780); statistics averaged too as in CutMix-Seg (Britefury/cutmix-semisup-seg).

        self.teacher = EMATeacher(self.network, decay=0.99)     # in the constructor, after the network
        def after_step(self): self.teacher.update(self.network)

    Args:
        student: the network to copy; call it before training, so that the two start equal.
        decay: alpha in [0, 1); the half-life is log(0.5) / log(alpha) steps, 69 for 0.99.
        warmup: in step t = 0, 1, ... use `min(1 - 1 / (t + 1), decay)` (UniMatch V2's code), so that the teacher
            starts as the student's plain average.
    """

    steps: Tensor
    network: Student

    def __init__(self, student: Student, decay: float, warmup: bool = False) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"the teacher's decay must be in [0, 1), got {decay}")
        self.decay, self.warmup = decay, warmup
        self.network = copy.deepcopy(student).requires_grad_(False).eval()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.eval()

    def train(self, mode: bool = True) -> EMATeacher[Student]:
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """The network's output, without gradient."""
        output: Tensor = self.network(image)
        return output

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move towards `student`; call it in `after_step`, which runs once per optimizer step."""
        own, other = self.network.state_dict(), student.state_dict()
        if own.keys() != other.keys():
            raise ValueError(f"the student has other tensors than the teacher: {sorted(own.keys() ^ other.keys())[:4]}")
        moving = [name for name, value in own.items() if value.is_floating_point()]
        # 1 - alpha as a tensor on the device: reading the counter on the host would make it wait.
        share = torch.full_like(self.steps, 1 - self.decay, dtype=torch.float32)
        if self.warmup:
            share = torch.maximum(share, 1 / (self.steps + 1))
        # Not `_foreach_lerp_`, which takes the share as a number and so waits for it too.
        values = [own[name] for name in moving]
        steps = torch._foreach_sub([other[name] for name in moving], values)
        torch._foreach_mul_(steps, share)
        torch._foreach_add_(values, steps)
        for name in own.keys() - set(moving):
            own[name].copy_(other[name])
        self.steps += 1
