"""Group-wise semantic mining (Li et al., AAAI 2021, arXiv 2012.05007)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from common.model.cam import image_logits
from common.model.cam_module import CamModule
from common.model.module import StepOutput
from common.ops.batch import Batch, SegBatch
from common.ops.cam import Normalisation, normalise_cam
from common.ops.distributed import all_sum, joined
from common.ops.losses import tag_loss
from common.ops.mixing import key_uniform
from common.ops.tensors import at_least_fp32
from common.training.loggers import CSVLogger
from methods.group_wsss.graph import Aggregate, Graph
from methods.group_wsss.labels import OnlineMaps, labels_by_rules

ALONE = 0.4  # weight of the loss of the image by itself [code]
CELLS = 16  # height and width of a remembered state
PROBABLE = 0.1  # of a class, from which on a map is kept while training [code]
FOLDER = "online_maps"


class GroupWSSS(CamModule):
    """Groups of images that share tags, and what they tell each other about their objects (Li et al. 2021, 2012.05007).

    L = (0.4 * tags of an image by itself + tags after message passing in its group) / 2. From tags, as CAM; a map is
    the mean of both. Its other options are those of `common.model.cam_module.CamModule`.

    Args:
        group: images of a group: an anchor and partners that share a tag with it; 1: each by itself. The data give
            them, and `data.batch_size` counts groups.
        rounds: of message passing.
        aggregate: `concat`: messages side by side; `mean`.
        drop_rate: how often graph dropout hides what is most alike in a group, else it weighs; null: there is none.
        maps: of training images, for `weakseg pseudo`: `inference`: made then, with remembered partners; `online`: the
            maximum over the epochs, kept in the run directory while it trains.
        threshold: score of the background, until a validation with masks has found the best one.
        normalisation: of maps to [0, 1], see `common.ops.cam.normalise_cam`.
        kwargs: see `common.model.cam_module.CamModule`.

    Raises:
        ValueError: an option out of range.
    """

    memory: Tensor
    memory_inside: Tensor

    def __init__(
        self,
        num_classes: int,
        group: int = 3,
        rounds: int = 3,
        aggregate: Aggregate = "concat",
        drop_rate: float | None = 0.8,
        maps: Literal["inference", "online"] = "inference",
        threshold: float = 0.3,
        normalisation: Normalisation = "max8",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, threshold=threshold, normalisation=normalisation, **kwargs)
        if min(group, rounds) < 1 or not 0 <= (drop_rate or 0) <= 1:
            raise ValueError(
                f"group and rounds must be at least 1, drop_rate in [0, 1], got {group}, {rounds} and {drop_rate}"
            )
        self.group, self.rounds, self.drop_rate, self.online = group, rounds, drop_rate, maps == "online"
        objects = num_classes - 1
        if group > 1:
            self.network.graph = Graph(objects, group, rounds, aggregate)
            # For each class the states of the latest images with it: partners of images that come by themselves.
            self.register_buffer("memory", torch.zeros(objects, group - 1, objects, CELLS, CELLS))
            self.register_buffer("memory_inside", torch.zeros(objects, group - 1, 1, CELLS, CELLS, dtype=torch.bool))
        self.latest: tuple[Tensor, Tensor] | None = None  # maps and logits of the step, for `maps=online`

    @property
    def graph(self) -> Graph:
        """Of the network, so that it learns at the rate of its head."""
        return cast(Graph, self.network.graph)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.online:
            data = cast(Any, self.trainer).datamodule
            seen = (data.size, (*data.scale,), data.flip)
            if seen != ((*data.crop,), (1, 1), False):
                raise ValueError(
                    "model.maps=online keeps the maps of whole images as they are seen in training: set data.scale to "
                    "[1, 1], data.flip to false and leave data.crop out"
                )

    # Training ------------------------------------------------------------------------------------------------------

    def compute_loss(self, batch: Batch) -> StepOutput:
        labeled = batch["labeled"]
        image, tags = labeled["image"], labeled["tags"][:, 1:]
        real, member = self.members(labeled)
        cover = self.cell_cover(image, labeled["valid"])
        x = at_least_fp32(self.classifier.activations(image))
        logits = image_logits(x, cover)
        alone = tag_loss(logits, tags, real)
        logs: dict[str, Tensor | float] = {"tag": alone, "right": ((logits.detach() > 0) == tags).float().mean()}
        if self.group == 1:
            self.latest = x.detach(), logits.detach()
            return StepOutput(ALONE * alone / 2, logs)
        inside = F.adaptive_max_pool2d(cover[:, None].to(x.dtype), (x.shape[2], x.shape[3])) > 0
        coins = None
        if self.training:
            if self.drop_rate is not None:
                coins = key_uniform(labeled["key"], self.rounds, self.draw_seed()) < self.drop_rate
                coins = coins.unflatten(0, (-1, self.group))
            self.remember(x, inside, tags & real[:, None])
        states, shown = (one.unflatten(0, (-1, self.group)).unbind(1) for one in (x, inside))
        after = torch.stack(self.graph(states, shown, member, coins), 1).flatten(0, 1)
        found = image_logits(after, cover)
        grouped = (member & member[:, 1:].any(1, keepdim=True)).flatten()
        share = all_sum(grouped.sum().float()) / all_sum(real.sum().float()).clamp(min=1)
        together = share * tag_loss(found, tags, grouped)
        # The graph says nothing of an image without a partner, neither where its objects are nor which.
        shown_maps = ((x + after) / 2).where(grouped[:, None, None, None], x)
        self.latest = shown_maps.detach(), found.where(grouped[:, None], logits).detach()
        logs |= {"together": together, "grouped": share}
        return StepOutput((ALONE * alone + together) / 2, logs)

    def members(self, labeled: SegBatch) -> tuple[Tensor, Tensor]:
        """(N,) which images are no repetition of their anchor, and (B, G) which take part in their group: the anchor,
        and the others that share a tag with it.

        Raises:
            ValueError: the images are no whole groups.
        """
        tags = labeled["tags"][:, 1:]
        if len(tags) % self.group:
            raise ValueError(f"{len(tags)} images are no groups of {self.group}: set data.group to {self.group}")
        names = labeled.get("name", [*map(str, range(len(tags)))])
        real = [not at % self.group or name != names[at - at % self.group] for at, name in enumerate(names)]
        own = torch.tensor(real, device=tags.device)
        groups = tags.unflatten(0, (-1, self.group))
        member = (groups & groups[:, :1]).any(2) & own.unflatten(0, (-1, self.group))
        member[:, 0] = True
        return own, member

    @torch.no_grad()
    def remember(self, x: Tensor, inside: Tensor, tags: Tensor) -> None:
        """Keep the states of a step's images, all processes', for the classes that they are tagged with."""
        part = F.adaptive_avg_pool2d(inside.to(x.dtype), CELLS)
        states = F.adaptive_avg_pool2d(x.detach() * inside, CELLS) / part.clamp(min=1e-6)
        states, part, told = joined(states), joined(part), joined(tags.to(x.dtype)).bool().tolist()
        for state, shown, classes in zip(states, part > 0, told, strict=True):
            for number in (number for number, occurs in enumerate(classes) if occurs):
                for kept, new in ((self.memory, state), (self.memory_inside, shown)):
                    kept[number] = torch.cat([new[None].to(kept), kept[number, :-1]])

    def on_train_batch_end(self, outputs: Any, batch: Mapping[str, Any], batch_idx: int) -> None:
        if self.online and self.latest is not None:
            self.keep_online(batch["labeled"], *self.latest)
        self.latest = None

    def keep_online(self, labeled: SegBatch, maps: Tensor, logits: Tensor) -> None:
        """Keep the maps of the anchors, from the second epoch on: maps (N, C, h, w), logits (N, C)."""
        trainer = self.trainer
        an_epoch = int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        last = trainer.global_step > trainer.estimated_stepping_batches - an_epoch
        folder = next((one.save_dir for one in trainer.loggers if isinstance(one, CSVLogger)), None)
        if folder is None or (self.current_epoch < 1 and not last):
            return
        kept = OnlineMaps(Path(str(folder)) / FOLDER)
        height, width = labeled["image"].shape[-2:]
        padded = self.network.padded_size(height, width)
        for at in range(0, len(maps), self.group):
            own, valid = labeled["tags"][at, 1:], labeled["valid"][at]
            if not own.any():
                continue
            large = F.interpolate(maps[at : at + 1, own], padded, mode="bilinear", align_corners=False)
            large = large[..., :height, :width][..., valid.any(1), :][..., valid.any(0)]  # the image is a rectangle
            content = (255 * normalise_cam(large, "max8")[0]).round().byte().cpu().numpy()
            kept.add(labeled["name"][at], content, (logits[at, own].sigmoid() >= PROBABLE).cpu().numpy(), last)

    # Maps ----------------------------------------------------------------------------------------------------------

    def maps(self, image: Tensor, tags: Tensor) -> Tensor:
        x = at_least_fp32(self.classifier.activations(image))
        partners = self.partners(tags[1:]) if self.group > 1 else []
        if not partners:
            return x
        inside = torch.ones_like(x[:, :1], dtype=torch.bool)
        states, shown = zip((x, inside), *partners, strict=True)
        everyone = torch.ones(1, self.group, dtype=torch.bool, device=x.device)
        return (x + self.graph(states, shown, everyone, None)[0]) / 2

    def partners(self, tags: Tensor) -> list[tuple[Tensor, Tensor]]:
        """States and cells of the remembered images for an image with tags (C,), the classes in turn; a state comes
        again where there are too few. None where nothing is remembered."""
        filled = self.memory_inside.flatten(2).any(2).T.cpu()  # (G - 1, C)
        places = (filled & tags.bool().cpu()).nonzero().tolist()
        chosen = [places[number % len(places)] for number in range(self.group - 1)] if places else []
        return [(self.memory[c, slot][None], self.memory_inside[c, slot][None]) for slot, c in chosen]

    def cam_of(self, image: Tensor, tags: Tensor, size: tuple[int, int], name: str | None = None) -> Tensor:
        """As the base's; of a training image, which has a `name`, what was kept while training, with `maps=online`."""
        objects = tags[1:].bool().cpu()
        if name is None or not self.online or not objects.any():
            return super().cam_of(image, tags, size)
        if self.run_dir is None or not (self.run_dir / FOLDER).is_dir():
            raise ValueError(f"the maps that the run has kept are in no folder {FOLDER}: give --run, its directory")
        kept = OnlineMaps(self.run_dir / FOLDER).get(name, int(objects.sum()))
        if kept is None:  # it has never been an anchor
            return super().cam_of(image, tags, size)
        found = torch.zeros(len(objects), *size)
        large = F.interpolate(torch.from_numpy(kept)[None] / 255, size, mode="bilinear", align_corners=False)
        found[objects] = large[0]
        return found.to(image.device)

    def labels_of_maps(self, cam: Tensor, threshold: float) -> Tensor:
        """As the base's, but 255 by the rules of `labels_by_rules`, on maps whose least active position is 0."""
        return labels_by_rules(normalise_cam(cam, "minmax")[0], threshold)
