"""A round of proposals: boxes of some views, their depth and poses become labels of all views of a data set.

Labels are written one by one into a folder beside the output, which becomes the output when the round is whole: who is
stopped goes on where he was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from common.model.metrics import SegmentationMetrics
from common.ops.array import Array
from common.ops.batch import IGNORE
from common.ops.crf import dense_crf
from common.ops.geometry import backproject, splat, to_world
from common.training.files import read_json, write_json, written_whole
from common.training.pictures import colorize, save_grid
from common.training.png import RowPng
from datamodules.base import SegmentationDataModule
from datamodules.simulate import LIKELY, LIKELY_NOT, SURELY, SURELY_NOT, cut_by_color
from datamodules.views import TOLERANCES, Views
from experiments.runs.pseudo import check_output, palette_of, pseudo_folder, shares, write_about
from methods.guided_3d.votes import (
    BOXED,
    FAR,
    NEAR,
    Tally,
    Vote,
    Voter,
    alone,
    box_planes,
    keep_boxes_filled,
    labels,
    objectness,
    probabilities,
    tally,
    view_votes,
    with_own_boxes,
)

Refine = Literal["none", "crf", "grabcut"]
Cloud = Literal["pixels", "voxel"]
ROUND = "round.json"
OBJECT, BACKGROUND = 0.7, 0.2  # seeds of GrabCut
VOXEL, STRIDE = 0.02, 4  # metres; every how many pixels make a cloud
Predict = Callable[[str], Tensor]  # probabilities (K, H, W) of an image, by its id


class How(NamedTuple):
    """Options of a round."""

    vote: Vote = "mean"
    refine: Refine = "none"
    cloud: Cloud = "pixels"
    hidden: bool = True  # whether a view votes for what it sees only


class Data(Views, SegmentationDataModule):
    """What a round needs of a data set, for the eyes of type checkers."""


def check_data(data: SegmentationDataModule) -> Data:
    """The data set, if proposals can be made of it.

    Raises:
        ValueError: it has no depth, or no boxes that people drew.
    """
    if not isinstance(data, Views) or data.boxed is None:
        raise ValueError(
            f"{type(data).__name__} has no depth, cameras and boxes: `weakseg propose` takes data such as RGBD or Rooms"
        )
    return cast(Data, data)


class Round:
    """Proposals for the training images of a data set.

    Args:
        data: with depth.
        boxed: ids of the views whose boxes may be seen.
        how: options.
        predict: probabilities by the network of the round before; None: the first round, boxes vote.
        source: what tells this round's network from another's.

    Raises:
        ValueError: no view with a box.
    """

    def __init__(
        self, data: Data, boxed: Sequence[str], how: How, predict: Predict | None = None, source: str = ""
    ) -> None:
        self.data, self.boxed, self.how, self.predict = data, {*boxed}, how, predict
        self.tolerance = TOLERANCES[data.sensor]
        self.classes = data.num_classes - 1
        content = [how, sorted(boxed), data.digest(), data.source(), data.reading(), source]
        self.print = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        if not any(data.boxes(name) for name in boxed):
            raise ValueError(f"none of the {len(boxed)} boxed views has a box: there is nothing to carry to others")
        self.notes: dict[str, list[str]] = {"without boxes": [], "single views": []}
        self.agreement: dict[str, float | None] = {}

    def write(self, output: Path, overwrite: bool, about: dict[str, Any]) -> dict[str, Any]:
        """Make the labels and their folder; returns what `pseudo.json` then says."""
        check_output(output, overwrite)
        work = output.with_name(f".{output.name}.unfinished")
        self.begin(work)
        names = self.data.names("train")
        groups = self.data.groups(names)
        posed = {name for members in groups.values() if len(members) > 1 for name in members}
        for group, members in groups.items():
            if len(members) > 1:
                self.agreement[group] = self.data.agreement(group, members)
                self.group(group, members, work)
            else:
                self.notes["single views"].append(group)
        for name in sorted({*names} - posed):
            self.one(name, work, None)
        report = self.report(work, names)
        if not report["labeled"]:
            raise ValueError("no proposal has come of any view: give more views boxes, or look at the poses")
        with pseudo_folder(output, overwrite) as folder:
            for name in names:
                (folder / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(work / f"{name}.png", folder / f"{name}.png")
            write_about(folder, {**about, **report})
        shutil.rmtree(work)
        return report

    def begin(self, work: Path) -> None:
        """Raise FileExistsError if another round was left unfinished there."""
        if (work / ROUND).is_file():
            if read_json(work / ROUND).get("print") == self.print:
                return
            raise FileExistsError(
                f"{work} holds an unfinished round of other settings: finish that one with its own command, remove it, "
                "or choose another --output"
            )
        work.mkdir(parents=True, exist_ok=True)
        write_json(work / ROUND, {"print": self.print})

    def planes(self, name: str) -> Tensor:
        return box_planes(self.data.boxes(name), self.data.views[name].camera, self.classes)

    def voter(self, name: str) -> Voter:
        """What a view says to others: its boxes, or in later rounds the prediction, in boxes where it has such."""
        view, weight = self.data.views[name], 1.0
        assert view.pose is not None
        if self.predict is None:
            planes = self.planes(name)
        else:
            planes = self.predict(name)[1:].double()
            if name in self.boxed:
                planes, weight = planes * self.planes(name), BOXED
            planes = F.adaptive_avg_pool2d(planes, (-(-planes.shape[1] // 4), -(-planes.shape[2] // 4)))  # as `tally`
        return Voter(self.data.depth(name), view.camera, view.pose, planes, torch.ones(self.classes), weight)

    def group(self, group: str, members: list[str], work: Path) -> None:
        """The labels of the views of a group."""
        open_ = [name for name in members if not (work / f"{name}.png").exists()]
        voting = [name for name in members if name in self.boxed or self.predict is not None]
        if not any(self.data.boxes(name) for name in members if name in self.boxed):
            self.notes["without boxes"].append(group)
            if self.predict is None:
                voting = []
        voters = {name: self.voter(name) for name in voting} if open_ else {}
        points = self.cloud(members) if self.how.cloud == "voxel" and voters and open_ else None
        said = None if points is None else torch.stack([self.said(points, one) for one in voters.values()]).sum(0)
        for name in open_:
            view = self.data.views[name]
            assert view.pose is not None
            # A boxed view's boxes are votes for its own pixels, a prediction is not.
            others = [voter for one, voter in voters.items() if one != name]
            depth = self.data.depth(name)
            if not others:
                votes = None
            elif points is not None and said is not None:
                theirs = said - self.said(points, voters[name]) if name in voters else said
                found = splat(points, theirs, depth, view.camera, view.pose, self.tolerance, STRIDE)
                found = found.flatten(0, 1)
                inside, seen, against = found.nan_to_num(0).tensor_split(3, 1)
                votes = Tally(inside, seen, against > 0)
            else:
                votes = view_votes((depth, view.camera, view.pose), others, self.tolerance, self.how.hidden)
            self.one(name, work, votes)

    def said(self, points: Tensor, voter: Voter) -> Tensor:
        """The votes (N, 3 C) of a view for points (N, 3)."""
        votes = tally(points, [voter], self.tolerance, self.how.hidden)
        return torch.cat([votes.inside, votes.seen, votes.against.double()], 1)

    def cloud(self, members: list[str]) -> Tensor:
        """Points (N, 3) of every few pixels of all views, one for each voxel."""
        found = []
        for name in members:
            view, depth = self.data.views[name], self.data.depth(name)
            assert view.pose is not None
            good = (depth > NEAR) & (depth < FAR)
            keep = torch.zeros_like(good)
            keep[::STRIDE, ::STRIDE] = True
            found.append(to_world(backproject(depth, view.camera), view.pose)[good & keep])
        points = torch.cat(found)
        cells, index = torch.unique((points / VOXEL).floor().long(), dim=0, return_inverse=True)
        sums = torch.zeros(len(cells), 3, dtype=torch.float64).index_add_(0, index, points)
        counts = torch.bincount(index, minlength=len(cells)).double()
        return sums / counts[:, None]

    def one(self, name: str, work: Path, votes: Tally | None) -> None:
        """The labels of a view; without votes of others its own boxes and depth have to do, or it stays unknown."""
        path = work / f"{name}.png"
        if path.exists():
            return
        view = self.data.views[name]
        shape = (view.camera.height, view.camera.width)
        image = self.data.image(name)
        if image.shape[:2] != shape:
            raise ValueError(
                f"image {name} is {image.shape[0]} x {image.shape[1]}, but its camera {shape[0]} x {shape[1]}"
            )
        boxes = self.data.boxes(name) if name in self.boxed else None
        planes = None if boxes is None else self.planes(name)
        found = torch.full(shape, IGNORE)
        if votes is None and planes is not None and boxes is not None:
            s = alone(self.data.depth(name), view.camera, boxes, self.classes).flatten(1).T
            found = self.refined(s, torch.ones_like(s), shape, planes, image)
        elif votes is not None:
            if planes is not None:
                votes = with_own_boxes(votes, planes, torch.ones(self.classes))
            found = self.refined(objectness(votes, self.how.vote), votes.seen, shape, planes, image)
        if boxes is not None:
            found = keep_boxes_filled(found, boxes, view.camera)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as scratch, scratch.open("wb") as file:
            RowPng(file, *shape, palette_of(self.data)).write(found.byte().numpy())

    def refined(self, s: Tensor, seen: Tensor, shape: tuple[int, int], planes: Tensor | None, image: Array) -> Tensor:
        """Labels (H, W) of objectness s (N, C)."""
        p = probabilities(s, seen, shape, planes)
        maps = s.T.reshape(-1, *shape)
        maps = maps if planes is None else maps * (planes > 0.5)
        if self.how.refine == "crf":
            colors = torch.from_numpy(image[..., :3].copy()).permute(2, 0, 1) / 255
            flat = torch.where(p.isnan(), 1 / len(p), p)
            q = dense_crf(flat.float(), colors).double()
            if planes is not None:
                q[1:] *= planes > 0.5
            return labels(q / q.sum(0))
        if self.how.refine == "grabcut":
            return cut(maps.masked_fill(p.isnan().any(0), 0.5), labels(p, maps), image)
        return labels(p, maps)

    def report(self, folder: Path, names: Sequence[str]) -> dict[str, Any]:
        """Of `pseudo.json`: shares, and mIoU in per cent where there are masks, of views with and without boxes, over
        pixels that have a label (`miou`), and with 255 as background (`miou_all`)."""
        counts = np.zeros(256, np.int64)
        metrics: dict[str, SegmentationMetrics] = {}
        for name in names:
            with Image.open(folder / f"{name}.png") as picture:
                found = np.asarray(picture)
            counts += np.bincount(found.ravel(), minlength=256)
            mask = self.data.mask(name) if self.data.has_mask(name) else None
            if mask is None:
                continue
            kind = "boxed" if name in self.boxed else "unboxed"
            made, truth = torch.from_numpy(found.astype(np.int64))[None], torch.from_numpy(mask.astype(np.int64))[None]
            for key, values, true in (
                (f"miou_{kind}", made.clamp(max=self.classes), truth.masked_fill(made == IGNORE, IGNORE)),
                (f"miou_all_{kind}", made.masked_fill(made == IGNORE, 0), truth),
            ):
                metrics.setdefault(key, SegmentationMetrics(self.data.num_classes)).update(values, true)
        scores = {key: float(metric.compute()["miou"]) for key, metric in sorted(metrics.items())}
        return {
            "images": len(names),
            "labeled": int(counts[:IGNORE].sum()),
            **shares(counts, self.data.class_names),
            **{key: round(value, 4) for key, value in scores.items() if np.isfinite(value)},
            "boxed": sorted(self.boxed),
            "agreement": {k: None if v is None else round(v, 4) for k, v in self.agreement.items()},
            "groups": {what: found for what, found in self.notes.items() if found},
            **self.how._asdict(),
        }


def cut(s: Tensor, found: Tensor, image: Array) -> Tensor:
    """Labels (H, W) that GrabCut makes of objectness (C, H, W): above 0.7 is object, below 0.2 is not, colours decide
    the rest. A class without both seeds stays as `found` has it, unknown pixels too unless another class takes them."""
    best, labeled = torch.zeros_like(s[0]), torch.zeros_like(found)
    unknown = torch.zeros_like(found, dtype=torch.bool)
    for number, plane in enumerate(s, 1):
        part = np.where(plane > 0.5, LIKELY, LIKELY_NOT).astype(np.uint8)
        part[plane.numpy() > OBJECT], part[plane.numpy() < BACKGROUND] = SURELY, SURELY_NOT
        seeded = (part == SURELY).any() and (part == SURELY_NOT).any()
        here = torch.from_numpy(cut_by_color(image, part)) if seeded else found == number
        better = here & (plane >= best)
        labeled = labeled.masked_fill(better, number)
        best = torch.where(better, plane, best)
        if not seeded:
            unknown |= (found == IGNORE) & (plane >= BACKGROUND)
    return labeled.masked_fill(unknown & (labeled == 0), IGNORE)


def picture(path: Path, data: Data, folder: Path, names: Sequence[str]) -> None:
    """Images, depth, boxes, proposals and masks of some views, as one PNG."""
    rows = []
    for name in names:
        image, depth = data.image(name), data.depth(name)
        drawn = data.boxes(name) if name in (data.boxed or ()) else ()
        boxes = np.zeros(image.shape[:2], np.int64)
        for number, plane in enumerate(box_planes(drawn, data.views[name].camera, data.num_classes - 1), 1):
            boxes[plane.numpy() > 0] = number
        with Image.open(folder / f"{name}.png") as file:
            made = np.asarray(file)
        grey = (255 * (1 - depth / FAR)).clamp(0, 255).where(depth > 0, 0).byte().numpy()
        mask = data.mask(name) if data.has_mask(name) else None
        truth = np.full(made.shape, IGNORE) if mask is None else mask
        shown = [image[..., :3], np.repeat(grey[..., None], 3, -1)]
        rows.append([*shown, *(colorize(one, [*data.colors]) for one in (boxes, made, truth))])
    save_grid(path, rows, ["image", "depth", "boxes", "proposal", "mask"], colors=128)
