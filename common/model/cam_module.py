"""CamModule: the base class of methods whose maps come from a classifier of image tags. It makes, scores and refines
them; a method says what its loss is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

from common.model.affinity import RADIUS
from common.model.cam import CamNetwork, at_scale, build_cam_network, image_logits, multi_scale_cam
from common.model.inference import InferenceConfig, as_float
from common.model.labeled import LabeledConfig
from common.model.metrics import CamMetrics
from common.model.module import SegmentationModule
from common.model.networks import NetworkConfig
from common.ops.batch import IGNORE, check_tags
from common.ops.cam import Normalisation, background_score, cam_labels, irn_seeds, label_crf, normalise_cam
from common.ops.distributed import all_sum
from common.ops.refine import pamr
from common.ops.walk import bilateral_affinity, random_walk

Refinement = Literal["none", "pamr", "crf", "walk"]
STRIDE = 4  # of the walk, in pixels
SIGMA, BETA = 0.1, 8.0  # of its colours; of its sharpening


class CamModule(SegmentationModule):
    """A classifier of image tags, and where it looks. A method implements `compute_loss`; one with other maps than the
    classifier's activations gives the network a `refine`, or implements `maps`.

    Validation scores the maps by the tags of each image, `val/cam_miou`, which is no mIoU of a segmentation, and the
    tags that the classifier finds, `val/map`. `pseudo_labels` makes the labels that a segmentation network learns from.

    Args:
        threshold: score of the background, in (0, 1), until a validation with masks has found the best one; for
            `val/cam_miou_fixed` always.
        scales: magnifications of an image whose maps are added up.
        flip: add the maps of the mirror image.
        normalisation: of maps to [0, 1], see `common.ops.cam.normalise_cam`.
        kwargs: see `common.model.module.SegmentationModule`.

    Raises:
        ValueError: an option out of range, or one without effect.
    """

    supervision: tuple[str, ...] = ("tags", "boxes")
    score = "val/cam_miou"
    scored_refinement: Refinement = "none"  # of the maps that are evaluated
    run_dir: Path | None = None  # of a run that is loaded to make labels: what else it has kept

    def __init__(
        self,
        num_classes: int,
        threshold: float = 0.15,
        scales: list[float] = [0.5, 1.0, 1.5, 2.0],  # noqa: B006 (never written to)
        flip: bool = True,
        normalisation: Normalisation = "max",
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        if not 0 < threshold < 1 or not scales or min(scales) <= 0:
            raise ValueError(f"threshold must be in (0, 1) and scales positive, got {threshold} and {scales}")
        if num_classes < 2:
            raise ValueError(f"{name} needs the background and at least one class of objects")
        self.threshold = threshold
        super().__init__(num_classes, **kwargs)
        if self.inference != InferenceConfig():
            raise ValueError(f"the maps of {name} are made of whole images: use scales and flip in place of inference")
        if self.labeled != LabeledConfig():
            raise ValueError(
                f"{name} learns from tags of images, not from labelled pixels: leave the options labeled out"
            )
        if self.network.only_size and max(scales) > 1:
            raise ValueError(
                f"encoder {self.network.encoder_name!r} takes images of one size alone: set data.size to "
                f"{self.network.only_size}, and model.scales to values of at most 1, such as [1.0]"
            )
        self.scales, self.flip, self.normalisation = scales, flip, normalisation
        self.classifier.normalisation = normalisation
        self.curve: Tensor | None = None  # mIoU of the maps on val at each threshold, for the run directory

    def make_network(self, config: NetworkConfig) -> CamNetwork:
        return build_cam_network(config, self.num_classes, self.threshold)

    @property
    def classifier(self) -> CamNetwork:
        """The network, as what it is."""
        return cast(CamNetwork, self.network)

    def cell_cover(self, image: Tensor, valid: Tensor) -> Tensor:
        """`valid` (B, H, W) of images as `common.model.cam.image_logits` takes it: of what the activations cover. Of a
        mask: 0 there."""
        height, width = image.shape[-2:]
        padded = self.network.padded_size(height, width)
        return F.pad(valid, (0, padded[1] - width, 0, padded[0] - height), value=False)

    # Start ---------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            check_tags(cast(Any, self.trainer).datamodule)
        objects = self.num_classes - 1
        self.metrics = nn.ModuleDict({"network": CamMetrics(self.num_classes)})
        self.precision_of_tags = MultilabelAveragePrecision(objects)
        self.f1_of_tags = MultilabelF1Score(objects)

    def on_predict_start(self) -> None:
        rank_zero_only(print)(
            f"{type(self).__name__} labels each image by the classes that it finds in it, those with sigmoid(z) > 0.5, "
            f"and a background score of {float(self.classifier.background):.2f}: a rough map, no segmentation"
        )

    # Maps ----------------------------------------------------------------------------------------------------------

    def find_tags(self, image: Tensor) -> Tensor:
        """Image logits (B, C) of the objects in (B, 3, H, W)."""
        return image_logits(self.classifier.activations(at_scale(image, 1, self.network.stride)))

    def maps(self, image: Tensor, tags: Tensor) -> Tensor:
        """Raw maps (1, K - 1, h, w) of one image (1, 3, H, W), which cover it; `tags` (K,) bool are its classes."""
        return self.classifier.maps(image)

    @torch.no_grad()
    def cam_of(self, image: Tensor, tags: Tensor, size: tuple[int, int], name: str | None = None) -> Tensor:
        """The normalised CAM of one image.

        Args:
            image: (3, H, W) RGB in [0, 1], at the training size.
            tags: (K,) bool, classes in it; the background's is not looked at.
            size: (height, width) of the result.
            name: of a training image, for methods that know more of these; None: any image.

        Returns:
            (K - 1, *size) float32 in [0, 1], 0 for classes without a tag.

        Raises:
            ValueError: the model is in training mode, in which maps would depend on chance.
        """
        if self.training:
            raise ValueError("maps are made in eval mode: call model.eval() before")
        objects = tags[1:].to(image.device).bool()
        found = image.new_zeros(len(objects), *size, dtype=torch.float32)
        if objects.any():  # only the maps of tagged classes are resized

            def maps(scaled: Tensor) -> Tensor:
                return self.maps(scaled, tags)[:, objects]

            raw = multi_scale_cam(maps, image[None], size, self.scales, self.flip, multiple=self.network.stride)
            found[objects] = normalise_cam(raw, self.normalisation)[0].float()
        return found

    @property
    def pseudo_threshold(self) -> float:
        """The threshold of `pseudo_labels` unless one is given: the best one on val, so far."""
        return float(self.classifier.background)

    @torch.no_grad()
    def pseudo_labels(
        self,
        image: Tensor,
        tags: Tensor,
        size: tuple[int, int],
        refine: Refinement,
        threshold: float,
        seeds: bool = False,
        name: str | None = None,
    ) -> Tensor:
        """Labels of one training image from its tags.

        Args:
            image: (3, H, W) RGB in [0, 1], at the training size.
            tags: (K,) bool, classes in it.
            size: (height, width) of the result.
            refine: `none`; `pamr`: the maps by `common.ops.refine.pamr`; `walk`: by a random walk, see `refined_cam`;
                `crf`: IRN's seeds, each of the two labels through a dense CRF.
            threshold: score of the background, in (0, 1).
            seeds: label only what is sure, as IRN does: objects above twice the threshold, background below a third
                of it (0.30 and 0.05 at 0.15). With `crf` always.
            name: its, see `cam_of`.

        Returns:
            (*size) int64; 255, only of seeds: not sure.
        """
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be in (0, 1), got {threshold}")
        two = (min(2 * threshold, 0.99), threshold / 3)
        if refine != "crf":
            cam = self.refined_cam(image, tags, size, refine, name)[None]
            return irn_seeds(*(labels_of(cam, t) for t in two)) if seeds else self.labels_of_maps(cam, threshold)
        cam = self.cam_of(image, tags, (image.shape[1], image.shape[2]), name)[None]
        classes = F.pad(tags[1:], (1, 0), value=True).nonzero()[:, 0].to(image.device)
        found = irn_seeds(*(label_crf(labels_of(cam, t), image[:3], classes) for t in two))
        return F.interpolate(found[None, None].float(), size, mode="nearest-exact")[0, 0].long()

    def labels_of_maps(self, cam: Tensor, threshold: float) -> Tensor:
        """(H, W) int64 labels of one image's refined maps (1, C, H, W), where no seeds are asked for."""
        return labels_of(cam, threshold)

    @torch.no_grad()
    def refined_cam(
        self, image: Tensor, tags: Tensor, size: tuple[int, int], refine: Refinement, name: str | None = None
    ) -> Tensor:
        """The CAM of one image (K - 1, *size) as `cam_of` gives it, refined at the image's own size by `pamr`, or by a
        `walk` along `walk_affinity`, after which it is normalised anew."""
        if refine == "none":
            return self.cam_of(image, tags, size, name)
        objects = tags[1:].to(image.device).bool()
        found = image.new_zeros(len(objects), *size, dtype=torch.float32)
        if not objects.any():
            return found
        if refine == "pamr":
            cam = self.cam_of(image, tags, (image.shape[1], image.shape[2]), name)[None, objects]
            refined = pamr(image[None, :3], cam)
        elif refine == "walk":
            affinity = self.walk_affinity(image[None])
            cam = self.cam_of(image, tags, (affinity.shape[2], affinity.shape[3]), name)[None, objects]
            refined = normalise_cam(random_walk(affinity, cam, RADIUS, BETA), "max")
        else:
            raise ValueError(f"refine is none, pamr, crf or walk, got {refine!r}")
        found[objects] = F.interpolate(refined, size, mode="bilinear", align_corners=False)[0].float()
        return found

    def walk_affinity(self, image: Tensor) -> Tensor:
        """Affinities (1, P, h, w) of cells that cover an image (1, 3, H, W): by colours, 4 pixels a cell."""
        return bilateral_affinity(F.avg_pool2d(at_scale(image[:, :3], 1, STRIDE), STRIDE), RADIUS, SIGMA)

    def tags_of(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Tags (B, K) bool of an evaluation batch: given, or the classes of its mask; None without either."""
        mask, tags = batch["mask"], batch.get("tags")
        empty = bool((mask == IGNORE).all())
        if tags is not None and (not empty or bool(tags.any())):  # nothing at all: nobody has looked at the image
            return cast(Tensor, tags)
        if empty:
            return None
        return torch.stack([torch.stack([(one == k).any() for k in range(self.num_classes)]) for one in mask])

    # Evaluation ----------------------------------------------------------------------------------------------------

    def predict_labels(self, network: nn.Module, batch: Mapping[str, Any], refine: bool) -> tuple[Tensor, Tensor]:
        """As the base's, by the image's tags if they are known, else by those that are found; the "probabilities" are
        the scores of background and CAMs divided by their sum."""
        image, size = as_float(batch["image"]), self.check_at_once(batch)
        tags = self.tags_of(batch)
        if tags is None:
            tags = F.pad(self.find_tags(image) > 0, (1, 0))
        how = self.scored_refinement
        cam = torch.stack([self.refined_cam(one, tag, size, how) for one, tag in zip(image, tags, strict=True)])
        scores = torch.cat([background_score(cam, float(self.classifier.background)), cam], 1)
        probabilities = scores / scores.sum(1, keepdim=True)
        if refine and self.postprocess.kind != "none":
            return self.refined(probabilities, image, size), probabilities
        return scores.argmax(1), probabilities

    def predict_strips(
        self, network: nn.Module, batch: Mapping[str, Any], refine: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As the base's, but all at once: maps are divided by the maximum of the image."""
        yield self.predict_labels(network, batch, refine)

    def _evaluate(self, batch: Mapping[str, Any], refine: bool) -> None:
        tags = self.tags_of(batch)
        if tags is None:
            return
        images = as_float(batch["image"])
        logits = self.find_tags(images)
        for metric in (self.precision_of_tags, self.f1_of_tags):
            metric.update(logits.sigmoid(), tags[:, 1:].long())
        size = (int(batch["size"][0, 0]), int(batch["size"][0, 1]))
        for image, one, mask in zip(images, tags, batch["mask"], strict=True):
            if bool((mask != IGNORE).any()):
                cam = self.refined_cam(image, one, size, self.scored_refinement)
                cast(CamMetrics, self.metrics["network"]).update(cam[None], mask[None])

    def _log_metrics(self, stage: str) -> None:
        metric = cast(CamMetrics, self.metrics["network"])
        result, curve = metric.compute(), metric.compute()["curve"]
        masks = bool(torch.isfinite(result["miou"]))
        seen = bool(all_sum(torch.tensor(float(self.f1_of_tags.update_called), device=self.device)))
        nothing = torch.tensor(torch.nan)
        found = [100 * m.compute() if seen else nothing for m in (self.precision_of_tags, self.f1_of_tags)]
        self.log(f"{stage}/map", found[0])
        self.log(f"{stage}/f1", found[1])
        if masks:
            # On val the option's threshold; on test the one that val had chosen.
            fixed = self.threshold if stage == "val" else float(self.classifier.background)
            self.log(f"{stage}/cam_miou", result["miou"], prog_bar=True)
            self.log(f"{stage}/cam_threshold", result["threshold"])
            self.log(f"{stage}/cam_miou_fixed", curve[round(fixed * metric.steps)])
            classes = self.trainer.datamodule.class_names  # type: ignore[attr-defined]
            self.log_dict({f"{stage}/cam_iou/{c}": v for c, v in zip(classes, result["iou"], strict=True)})
        self.score = type(self).score if masks else "val/map"
        if masks and stage == "val" and self.trainer.state.fn == "fit":
            # Strictly between 0 and 1, also where a map of nothing or of everything is best.
            least = 1 / metric.steps
            self.classifier.background.fill_(min(max(float(result["threshold"]), least), 1 - least))
            self.curve = curve
        for one in (metric, self.precision_of_tags, self.f1_of_tags):
            one.reset()


def labels_of(cam: Tensor, threshold: float) -> Tensor:
    """(H, W) int64 labels of one image's CAM (1, C, H, W)."""
    return cam_labels(cam, background_score(cam, threshold))[0]
