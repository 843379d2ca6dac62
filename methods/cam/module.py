"""Class activation maps of a classifier that learns from image tags (Zhou et al. 2016, arXiv 1512.04150)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from common.model.affinity import RADIUS, AffinityNetwork, add_affinity
from common.model.cam import at_scale, image_logits
from common.model.cam_module import CamModule
from common.model.module import StepOutput
from common.ops.batch import IGNORE, PIXELS, Batch
from common.ops.losses import tag_loss
from common.ops.walk import affinity_loss


class CAM(CamModule):
    """Class activation maps: a classifier of image tags, and where it looks (Zhou et al. 2016, 1512.04150).

    The baseline of methods that learn from tags: its maps become labels (`pseudo_labels`) that a segmentation network
    learns from.

    Args:
        affinity: learn which neighbours are of one class, from seeds (`data.pseudo_masks`), and nothing else: the
            classifier of `--init_from` stays as it is, and its maps are scored after the walk along the learned
            affinities (AffinityNet, Ahn & Kwak 2018, 1803.10464).
        kwargs: see `common.model.cam_module.CamModule`.

    Raises:
        ValueError: an option out of range, or one without effect.
    """

    def __init__(self, num_classes: int, affinity: bool = False, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        if affinity:
            if self.network.freeze != "none":
                raise ValueError("affinity trains a second encoder of its own: leave network.freeze and lora out")
            self.supervision, self.scored_refinement = PIXELS, "walk"
            self.untrained = self.head.detach().clone()
            add_affinity(self.classifier)

    @property
    def affinity(self) -> AffinityNetwork | None:
        return cast("AffinityNetwork | None", self.classifier.affinity)

    @property
    def head(self) -> Tensor:
        """The classifier's last layer."""
        return cast(Tensor, self.network.model.segmentation_head[0].weight)

    def make_optimizer(self) -> Optimizer:
        # A run that is resumed has its weights by now, and nothing is written yet.
        if self.affinity and torch.equal(self.head, self.untrained.to(self.head.device)):
            raise ValueError("model.affinity spreads the maps of a trained classifier: give it with --init_from")
        return super().make_optimizer()

    def compute_loss(self, batch: Batch) -> StepOutput:
        labeled = batch["labeled"]
        image = labeled["image"]
        if self.affinity:
            distance = self.affinity(self.network.prepared(image))
            mask, valid = (self.cell_cover(image, labeled[key]) for key in ("mask", "valid"))
            sure = mask.masked_fill(~valid, IGNORE)[:, None].float()
            cells = F.interpolate(sure, distance.shape[2:], mode="nearest-exact")[:, 0].long()
            return StepOutput(affinity_loss(distance, cells, RADIUS))
        tags = labeled["tags"][:, 1:]  # nobody tags the background
        logits = image_logits(self.classifier.activations(image), self.cell_cover(image, labeled["valid"]))
        right = ((logits.detach() > 0) == tags).float().mean()
        return StepOutput(tag_loss(logits, tags), {"right": right})

    def walk_affinity(self, image: Tensor) -> Tensor:
        if not self.affinity:
            return super().walk_affinity(image)
        return (-self.affinity(self.network.prepared(at_scale(image, 1, self.network.stride)))).exp()
