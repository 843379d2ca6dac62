"""Class activation maps of a classifier that learns from image tags (Zhou et al. 2016, arXiv 1512.04150)."""

from __future__ import annotations

from common.model.cam import image_logits
from common.model.cam_module import CamModule
from common.model.module import StepOutput
from common.ops.batch import Batch
from common.ops.losses import tag_loss


class CAM(CamModule):
    """Class activation maps: a classifier of image tags, and where it looks (Zhou et al. 2016, 1512.04150).

    The baseline of methods that learn from tags: its maps become labels (`pseudo_labels`) that a segmentation network
    learns from. Its options are those of `common.model.cam_module.CamModule`.
    """

    def compute_loss(self, batch: Batch) -> StepOutput:
        labeled = batch["labeled"]
        image, tags = labeled["image"], labeled["tags"][:, 1:]  # nobody tags the background
        logits = image_logits(self.classifier.activations(image), self.cell_cover(image, labeled["valid"]))
        right = ((logits.detach() > 0) == tags).float().mean()
        return StepOutput(tag_loss(logits, tags), {"right": right})
