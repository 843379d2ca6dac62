"""SegmentationModule: the base class. It trains, evaluates and logs; a method says what its loss is."""

from __future__ import annotations

import inspect
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from lightning import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from common.model.inference import InferenceConfig, as_float, predict_probabilities, predict_rows
from common.model.labeled import LabeledConfig, given_weights, labeled_loss, weights_for
from common.model.metrics import SegmentationMetrics
from common.model.networks import NetworkConfig, SegmentationNetwork, build_network, normalise_by
from common.model.optim import ChainedOptimizer, ScheduleName, build_optimizer, lr_schedule
from common.model.options import given_options
from common.model.postprocess import PostprocessConfig, postprocess
from common.ops.batch import PIXELS, Batch, check_streams
from common.ops.distributed import average_buffers
from common.ops.seeds import mixed

STREAMED = 2**27  # probabilities of an image above which labels are made strip by strip (512 MiB in float32)
AT_ONCE = 2**29  # probabilities of the largest image whose labels need them all at once


@dataclass
class StepOutput:
    """What `compute_loss` returns: the loss to minimise and named scalars to log as `train/<name>`."""

    loss: Tensor
    logs: Mapping[str, Tensor | float] = field(default_factory=dict)


class SegmentationModule(LightningModule):
    """Base of every method. A method implements `compute_loss` and, only if its paper needs it, `after_step`,
    `eval_networks` and `parameter_groups`.

    Args:
        num_classes: K; the CLI takes it from the data.
        network: architecture, encoder and weights, see `common.model.networks.NetworkConfig`.
        optimizer: optimizer and its settings; the learning rate is the decoder's.
        encoder_lr_scale: the encoder's learning rate is this times the decoder's.
        schedule: learning rate over the run, per optimizer step, see `common.model.optim.lr_schedule`.
        warmup: fraction of the run in which the learning rate rises.
        inference: whole images or sliding window, flips.
        postprocess: refinement of `test` and `predict` results (never of `val`).
        labeled: the loss on labelled pixels, see `common.model.labeled.LabeledConfig`.

    Raises:
        ValueError: an option out of range.
    """

    streams: tuple[str, ...] = ("labeled",)  # what a method's batches must hold
    strong_views = 0  # and how many strongly augmented views of each unlabelled image
    superpixels = 0  # superpixels asked for of each labelled image; 0: none are needed
    group = 0  # images of a group whose tags they share; 0: they come by themselves
    supervision: tuple[str, ...] = PIXELS  # kinds of labels that it can learn from
    score = "val/miou"  # the metric by which `best.ckpt` is chosen; may change in a validation

    def __init__(
        self,
        num_classes: int,
        network: NetworkConfig = NetworkConfig(),  # noqa: B008 (never written to)
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=1e-3, weight_decay=1e-4),
        encoder_lr_scale: float = 0.1,
        schedule: ScheduleName = "poly",
        warmup: float = 0.05,
        inference: InferenceConfig = InferenceConfig(),  # noqa: B008
        postprocess: PostprocessConfig = PostprocessConfig(),  # noqa: B008
        labeled: LabeledConfig = LabeledConfig(),  # noqa: B008
    ) -> None:
        super().__init__()
        if encoder_lr_scale < 0 or not 0 <= warmup < 1:
            raise ValueError(
                "encoder_lr_scale must be >= 0, and warmup a fraction of the run in [0, 1), "
                f"got {encoder_lr_scale} and {warmup}"
            )
        self.given = given_options(inspect.currentframe())  # for `config.yaml` of runs made in Python
        self.num_classes = num_classes
        self.network: SegmentationNetwork = self.make_network(network)
        self.optimizer_factory = optimizer
        self.encoder_lr_scale, self.schedule, self.warmup = encoder_lr_scale, schedule, warmup
        self.inference, self.postprocess = inference, postprocess
        self.labeled, self.class_weights = labeled, given_weights(labeled, num_classes)
        self.last_step: tuple[Batch, StepOutput] | None = None  # for the report of a non-finite step

    def make_network(self, config: NetworkConfig) -> SegmentationNetwork:
        """The network; a method that needs another one than a segmentation network makes it."""
        return build_network(config, self.num_classes)

    def compute_loss(self, batch: Batch) -> StepOutput:
        """The paper: the loss of one batch."""
        raise NotImplementedError

    def labeled_loss(self, logits: Tensor, mask: Tensor, valid: Tensor) -> Tensor:
        """The labelled term of `compute_loss`: partial cross entropy, as the options `labeled` have it; logits
        (B, K, H, W), mask (B, H, W) with 255 where there is no label, valid (B, H, W) bool."""
        return labeled_loss(logits, mask, valid, self.labeled, self.class_weights)

    def after_step(self) -> None:
        """Called once after each optimizer step (EMA teacher, queues)."""

    def eval_networks(self) -> dict[str, nn.Module]:
        """Networks to validate, each (B, C, H, W) in [0, 1] to logits; the first is `val/miou`."""
        return {"network": self.network}

    @property
    def scored_network(self) -> nn.Module:
        """The one of `val/miou` (of a method with a teacher, the teacher), which predicts."""
        return next(iter(self.eval_networks().values()))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups; `lr_scale` multiplies the learning rate. The last one learns at the full rate."""
        return self.network.parameter_groups(self.encoder_lr_scale)

    @property
    def progress(self) -> float:
        """Finished fraction of the run's optimizer steps, for the schedules of loss weights."""
        return self.trainer.global_step / max(1, self.trainer.estimated_stepping_batches)

    def draw_seed(self, number: int = 0) -> int:
        """The run's seed for what is drawn from a sample's key (`common.ops.mixing`); draw `number` of at most 64."""
        return 64 * int(os.environ.get("PL_GLOBAL_SEED", "0")) + number

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout and the like are reseeded in each step, so that a resumed run continues as the unbroken one.
        self.step_seed = mixed(self.draw_seed(), self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(self.step_seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        out = self.compute_loss(batch)
        self.last_step = (batch, out)
        self.log("train/loss", out.loss.detach(), prog_bar=True)
        for name, value in out.logs.items():
            self.log(f"train/{name}", value.detach() if isinstance(value, Tensor) else value)
        return out.loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.after_step()

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer; an adversarial method chains its own to it (`common.model.optim.ChainedOptimizer`)."""
        return build_optimizer(self.optimizer_factory, self.parameter_groups())

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # The norm of an adversary's gradient must not decide how far the network's is cut.
        for part in optimizer.optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]:
            self.clip_gradients(part, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        if not math.isfinite(steps := self.trainer.estimated_stepping_batches):
            raise ValueError(
                "the learning rate falls until the last step: give trainer.max_steps or trainer.max_epochs"
            )
        schedule = lr_schedule(optimizer, int(steps), self.schedule, self.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def setup(self, stage: str) -> None:
        if stage == "fit":
            data = cast(Any, self.trainer).datamodule
            check_streams(self, data)
            normalise_by(self, data)
            self.class_weights = weights_for(self.labeled, self.class_weights, data)
        self.metrics = nn.ModuleDict({name: SegmentationMetrics(self.num_classes) for name in self.eval_networks()})

    def _metric(self, name: str) -> SegmentationMetrics:
        return cast(SegmentationMetrics, self.metrics[name])

    def predict_labels(self, network: nn.Module, batch: Mapping[str, Any], refine: bool) -> tuple[Tensor, Tensor]:
        """Labels (B, H, W) int64 and probabilities (B, K, H, W) of an evaluation batch at its original size.

        Raises:
            ValueError: more probabilities than `AT_ONCE`.
        """
        size = self.check_at_once(batch)
        probabilities = predict_probabilities(network, batch["image"], self.inference, size)
        if not refine or self.postprocess.kind == "none":
            return probabilities.argmax(1), probabilities
        return self.refined(probabilities, batch["image"], size), probabilities

    def check_at_once(self, batch: Mapping[str, Any]) -> tuple[int, int]:
        """The original size of an evaluation batch. Raises ValueError if all its probabilities are too many to hold."""
        height, width = int(batch["size"][0, 0]), int(batch["size"][0, 1])
        if self.num_classes * height * width > AT_ONCE:
            kind = self.postprocess.kind
            what = f"postprocess.kind={kind}" if kind != "none" else type(self).__name__
            raise ValueError(
                f"image '{batch['name'][0]}' has {height} x {width} pixels and {self.num_classes} classes, and {what} "
                f"needs the probabilities of all of them at once, of which up to {AT_ONCE // 10**6} million are held: "
                + ("set --model.postprocess.kind none, or cut" if kind != "none" else "cut")
                + " the image into tiles"
            )
        return height, width

    def predict_strips(
        self, network: nn.Module, batch: Mapping[str, Any], refine: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What `predict_labels` gives, in strips from top to bottom, labels (B, rows, W) and probabilities (B, K, rows,
        W): one of a small image or with post-processing, many of a large one, see `common.model.inference`."""
        size = (int(batch["size"][0, 0]), int(batch["size"][0, 1]))
        small = self.num_classes * size[0] * size[1] <= STREAMED and batch["image"].dtype != torch.uint8
        if small or (refine and self.postprocess.kind != "none"):
            yield self.predict_labels(network, batch, refine)
            return

        def seen(image: Tensor) -> Tensor:
            # Strips are made when the step, and with it the trainer's autocast, has ended.
            if self._trainer is None:
                return cast(Tensor, network(image))
            precision = self._trainer.precision_plugin
            with precision.forward_context():
                return cast(Tensor, network(precision.convert_input(image)))

        for probabilities in predict_rows(seen, batch["image"], self.inference, size):
            yield probabilities.argmax(1), probabilities

    def refined(self, probabilities: Tensor, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Labels (B, H, W) of probabilities at `size`, after the post-processing."""
        image = nn.functional.interpolate(as_float(image[:, :3]), size, mode="bilinear", align_corners=False)
        pairs = zip(probabilities, image, strict=True)
        return torch.stack([postprocess(p, i, self.postprocess) for p, i in pairs])

    def found(self, network: nn.Module, batch: Mapping[str, Any], refine: bool) -> dict[str, Any]:
        """Of a small image `labels` and `probabilities`, of a large one `strips` of both (`predict_strips`), which are
        computed as they are asked for."""
        strips = self.predict_strips(network, batch, refine)
        first = next(strips)
        if first[0].shape[1] < int(batch["size"][0, 0]):
            return {"strips": itertools.chain([first], strips)}
        return {"labels": first[0], "probabilities": first[1]}

    def _evaluate(self, batch: Mapping[str, Any], refine: bool) -> dict[str, Tensor] | None:
        """Count a batch; `labels` and `probabilities` of the scored network, for callbacks (a large image: None)."""
        scored = None
        for name, network in self.eval_networks().items():
            found = self.found(network, batch, refine)
            strips = (labels for labels, _ in found["strips"]) if "strips" in found else [found["labels"]]
            self._metric(name).update_strips(strips, batch["mask"])
            scored = scored or (None if "strips" in found else found)
        return scored

    def _log_metrics(self, stage: str) -> None:
        classes = self.trainer.datamodule.class_names  # type: ignore[attr-defined]
        for number, name in enumerate(self.eval_networks()):
            result = self._metric(name).compute()
            suffix = f"_{name}" if number else ""
            self.log(f"{stage}/miou{suffix}", result["miou"], prog_bar=not number)
            if not number:
                self.log(f"{stage}/accuracy", result["accuracy"])
                self.log_dict({f"{stage}/iou/{c}": v for c, v in zip(classes, result["iou"], strict=True)})
            self._metric(name).reset()

    def on_validation_epoch_start(self) -> None:
        average_buffers(self)

    def on_test_epoch_start(self) -> None:
        average_buffers(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        average_buffers(self)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self._evaluate(batch, refine=False)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor] | None:
        return self._evaluate(batch, refine=True)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """`name` and what `found` says."""
        return {"name": batch["name"], **self.found(self.scored_network, batch, refine=True)}
