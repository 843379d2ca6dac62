"""Multiphase level-set (Mumford-Shah) loss on softmax maps (Kim & Ye 2019, arXiv 1904.02872)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from common.model.labeled import LabeledConfig
from common.model.metrics import MatchedMetrics
from common.model.module import SegmentationModule, StepOutput
from common.ops.batch import Batch, all_images
from common.ops.losses import total_variation_sum
from common.ops.schedules import linear_ramp
from common.ops.tensors import at_least_fp32
from methods.level_set.losses import closed_form_field, head_field, reduce, region_variance_sum, roughness_sum


class LevelSet(SegmentationModule):
    """Level-set loss: pCE + beta * (variance inside regions + length_weight * boundary) (Kim & Ye 2019, 1904.02872).

    Known of the paper are its abstract and the code of one experiment; see README.md of this folder for what is ours.

    Args:
        mode: `semi`: cross entropy on labelled images, the level-set loss on all; `supervised`: both on labelled images
            only; `unsupervised`: no label is looked at, regions are phases without a name.
        beta: weight of the level-set loss; 1 is natural for `unsupervised`, 1e-6 the code's for `reduction: sum`.
        length_weight: lambda, of the boundary's length within it; 0 is allowed.
        reduction: the loss is the mean over valid pixels, or the plain sum of the official code.
        target: regions are even in the `image`, or in the decoder's `features`, constant and of unit length.
        bias: field that multiplies the tones, for uneven light: `none`, `head` (a 1x1 convolution on the decoder's
            features) or `closed_form` (from image and prediction).
        bias_smoothness: gamma, weight of the field's squared differences; with `bias: head`.
        start: fraction of the run before the level-set loss sets in.
        match: with `unsupervised`, phases are matched to classes, to the best IoU, for a whole `dataset` or each
            `image`; only for evaluation.
        kwargs: see `common.model.module.SegmentationModule`.

    Raises:
        ValueError: options that contradict each other.
    """

    def __init__(
        self,
        num_classes: int,
        mode: Literal["semi", "supervised", "unsupervised"] = "semi",
        beta: float = 0.262,
        length_weight: float = 1e-3,
        reduction: Literal["mean", "sum"] = "mean",
        target: Literal["image", "features"] = "image",
        bias: Literal["none", "head", "closed_form"] = "none",
        bias_smoothness: float = 10.0,
        start: float = 0.0,
        match: Literal["dataset", "image"] = "dataset",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if target == "features" and bias != "none":
            raise ValueError("bias is a field of the image's light: set target to image, or bias to none")
        if mode == "unsupervised" and self.labeled != LabeledConfig():
            raise ValueError("mode unsupervised has no loss on labels: leave the options labeled out")
        if mode == "unsupervised" and start > 0:
            raise ValueError("mode unsupervised has no other loss to start with: set start to 0, or another mode")
        if min(beta, length_weight, bias_smoothness) < 0 or not 0 <= start <= 1:
            raise ValueError(
                "beta, length_weight and bias_smoothness must be >= 0, start a fraction of the run in [0, 1]"
            )
        self.mode, self.beta, self.length_weight, self.start, self.match = mode, beta, length_weight, start, match
        self.reduction, self.target, self.bias, self.bias_smoothness = reduction, target, bias, bias_smoothness
        self.streams = () if mode == "unsupervised" else ("labeled",)
        if bias == "head":
            self.bias_head = nn.Conv2d(self.network.decoder_channels, 1, 1)
            for parameter in self.bias_head.parameters():
                nn.init.zeros_(parameter)  # even light to begin with

    def parameter_groups(self) -> list[dict[str, Any]]:
        head = [{"params": list(self.bias_head.parameters()), "lr_scale": 1.0}] if self.bias == "head" else []
        return super().parameter_groups() + head

    def compute_loss(self, batch: Batch) -> StepOutput:
        unlabeled = None if self.mode == "supervised" else batch.get("unlabeled")
        image, mask, valid = all_images(batch.get("labeled"), unlabeled)
        decoded = self.network.features(image)[1]
        logits = self.network.classify(decoded, *image.shape[-2:])
        terms = self.level_set(logits, decoded, image, valid)
        energy = terms["data"] + self.length_weight * terms["length"] + self.bias_smoothness * terms["roughness"]
        if self.mode == "unsupervised":
            return StepOutput(self.beta * energy, terms)
        pce = self.labeled_loss(logits, mask, valid)
        ramp = linear_ramp(self.progress, self.start, 0)
        return StepOutput(pce + ramp * self.beta * energy, {"pce": pce, **terms, "ramp": ramp})

    def level_set(self, logits: Tensor, decoded: Tensor, image: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """`data`, `length` and `roughness` (0 unless there is a bias head), before their weights."""
        y = at_least_fp32(logits).softmax(1)
        x, field, roughness = image, None, y.new_zeros(())
        if self.target == "features":
            x = self.at_image_size(F.normalize(at_least_fp32(decoded.detach()), dim=1), image)
        elif self.bias == "head":
            field = head_field(self.at_image_size(self.bias_head(decoded), image), valid)
            roughness = roughness_sum(field, valid)
        elif self.bias == "closed_form":
            field = closed_form_field(y, image, valid)
        data = region_variance_sum(y, x, valid, bias=field)
        sums = {"data": data, "length": total_variation_sum(y, valid), "roughness": roughness}
        return {name: reduce(total, valid, self.reduction) for name, total in sums.items()}

    def at_image_size(self, decoded: Tensor, image: Tensor) -> Tensor:
        """Maps of the decoder's size, which cover the padded image (`SegmentationNetwork.features`), on its pixels."""
        height, width = image.shape[-2:]
        padded = self.network.padded_size(height, width)
        return F.interpolate(decoded, padded, mode="bilinear", align_corners=False)[..., :height, :width]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.mode == "unsupervised":
            names = self.eval_networks()
            self.metrics = nn.ModuleDict({name: MatchedMetrics(self.num_classes, self.match) for name in names})
