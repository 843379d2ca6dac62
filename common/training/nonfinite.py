"""Non-finite losses and gradients: stop before the optimizer step, or leave out a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning import Callback, LightningModule, Trainer

from common.model.module import SegmentationModule, StepOutput
from common.ops.batch import Batch
from common.ops.distributed import all_sum
from common.training.files import written_whole


class NonFiniteGuard(Callback):
    """Stops before a step whose gradient is not finite, and writes `nonfinite_rank*.pt` into the run directory: the
    batch, the loss terms, the step, and the seed that `torch.manual_seed` had at its start.

    Checked once a step, after the all-reduce, so that all ranks see the same gradient and do the same. Under the fp16
    scaler the loss is looked at instead: infinite gradients are its normal course, it skips them and lowers its scale.

    Args:
        folder: run directory.
        skip: leave out up to so many steps of the run instead (their gradients are dropped; schedules go on).

    Raises:
        FloatingPointError: at the step after those.
    """

    def __init__(self, folder: Path, skip: int = 0) -> None:
        self.folder, self.skip = folder, skip
        self.skipped = 0

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert isinstance(pl_module, SegmentationModule)
        assert pl_module.last_step is not None
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            loss = pl_module.last_step[1].loss
            finite = not all_sum((~torch.isfinite(loss)).float())
        else:
            finite = not parameters or bool(
                torch.isfinite(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
            )
        if finite:
            return
        if self.skipped >= self.skip:
            self._stop(pl_module, *pl_module.last_step)
        self.skipped += 1
        for parameter in parameters:
            parameter.grad = None
        pl_module.log("perf/skipped_steps", float(self.skipped))

    def _stop(self, pl_module: SegmentationModule, batch: Batch, out: StepOutput) -> NoReturn:
        terms = {"loss": out.loss.detach(), **{k: torch.as_tensor(v).detach() for k, v in out.logs.items()}}
        bad = [name for name, value in terms.items() if not torch.isfinite(value).all()]
        path = self.folder / f"nonfinite_rank{pl_module.global_rank}.pt"
        report = {"batch": batch, "terms": terms, "step": pl_module.global_step, "seed": pl_module.step_seed}
        with written_whole(path) as scratch:
            torch.save(report, scratch)
        what = f"the terms {', '.join(bad)} are not finite" if bad else "every term is finite, a gradient is not"
        skipped = f" ({self.skipped} steps were left out before)" if self.skipped else ""
        raise FloatingPointError(
            f"non-finite gradient at step {pl_module.global_step}{skipped}: {what}. Stopped before the optimizer step; "
            f"the batch is in {path}. Lower the learning rate or the term's weight, clip gradients, use fp32, or leave "
            "out such steps with --skip_nonfinite"
        )
