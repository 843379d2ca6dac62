"""`weakseg propose`: labels for training images by boxes of some of them, their depth and poses."""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from common.training.summary import git_commit
from datamodules.base import SegmentationDataModule
from experiments.cli.doctor import load_data
from experiments.cli.lightning import run
from experiments.cli.trained import TrainedCLI, from_run, trained_parser
from experiments.runs.checkpoint import read_checkpoint
from experiments.runs.propose import Cloud, How, Predict, Refine, Round, check_data, picture
from experiments.runs.pseudo import check_output
from methods.guided_3d.votes import Vote


class Propose(TrainedCLI):
    """A later round: the network that learned from the proposals of one votes in the next."""

    verb = "predict"  # Lightning's

    def predict(self, **kwargs: Any) -> None:
        options, data = self.options, self.datamodule
        if self.trainer.world_size > 1:
            raise ValueError("weakseg propose works on one device: leave trainer.devices out")
        if data.pseudo is None:
            raise ValueError(
                f"{options.ckpt} was not trained on proposals: the first round takes --config and no --run, the next "
                "ones a run with --data.pseudo_masks of the one before"
            )
        before = data.pseudo.about
        known = {*data.names("train")}
        boxed = before.get("boxed")
        if not isinstance(boxed, list) or not boxed or not {*map(str, boxed)} <= known & {*(data.boxed or ())}:
            raise ValueError(
                f"{data.pseudo_folder} does not say which of these training views have boxes: make it with "
                "weakseg propose"
            )
        self.model.load_state_dict(read_checkpoint(options.ckpt)["state_dict"])
        self.model.to(self.trainer.strategy.root_device).eval()

        @torch.inference_mode()
        def predicted(name: str) -> Tensor:
            batch = data.evaluation_batch(data.image(name), name=name, device=self.trainer.strategy.root_device)
            found: Tensor = self.model.predict_labels(self.model.scored_network, batch, refine=False)[1][0]
            return found.float().cpu()

        number = before.get("round")
        source = hashlib.sha256(options.ckpt.read_bytes()).hexdigest()
        after = number + 1 if isinstance(number, int) else 1
        propose(data, [*map(str, boxed)], options, after, lambda name: predicted(name).clone(), source)
        if isinstance(old := before.get("miou_unboxed"), int | float):
            print(f"round {after - 1} had {old:.2f} on views without boxes: stop where a round gains less than 0.3")


def propose(
    data: SegmentationDataModule,
    boxed: Sequence[str],
    options: argparse.Namespace,
    number: int,
    predict: Predict | None = None,
    source: str = "",
) -> None:
    """Make a round, and say what came of it."""
    since, viewed = time.perf_counter(), check_data(data)
    how = How(options.vote, options.refine, options.cloud, not options.through)
    about = {
        "method": "Guided3D",
        "run": None if options.run is None else str(options.run),
        "round": number,
        "classes": [*data.class_names],
        "commit": git_commit(),
        "version": version("weakseg"),
    }
    report = Round(viewed, boxed, how, predict, source).write(options.output, options.overwrite, about)
    named = ", ".join(f"{name} {share:.1%}" for name, share in report["per_class"].items() if share)
    print(f"round {number}: {report['images']} views, {len(boxed)} of them with boxes, in "
          f"{time.perf_counter() - since:.1f} s: {named}")  # fmt: skip
    print(f"without a label (255): {report['unlabeled']:.1%} of the pixels")
    for group, share in report["agreement"].items():
        print(f"group {group}: " + ("no overlap" if share is None else f"{share:.0%} of the depth agrees"))
    for what, groups in report["groups"].items():
        print(f"groups {what}: {', '.join(groups[:8])}{', ...' if len(groups) > 8 else ''} ({len(groups)})")
    for kind, words in (("unboxed", "without boxes"), ("boxed", "with boxes")):
        if f"miou_{kind}" in report:
            print(
                f"mIoU of views {words} against their masks, which are used for nothing else: "
                f"{report[f'miou_{kind}']:.2f} where there is a label, {report[f'miou_all_{kind}']:.2f} with 255 as "
                "background"
            )
    if options.picture:
        names = [name for name in data.names("train") if name not in boxed][:: max(1, len(data.names("train")) // 6)]
        picture(options.picture, viewed, options.output, names[:6] or boxed[:6])
    print(f"train on them: weakseg fit ... --config guided_3d --data.pseudo_masks {options.output}")


def main(arguments: Sequence[str]) -> None:
    parser = trained_parser("propose")
    parser.description = __doc__
    parser.epilog = (
        "The first round takes --config and --data options; a later one --run or --ckpt of a network that learned."
    )
    parser.add_argument("--output", type=Path, help="folder for the labels; written whole, and gone on with if stopped")
    parser.add_argument(
        "--vote", choices=get_args(Vote), default="mean", help="how boxes vote: their mean, or any one against (mean)"
    )
    parser.add_argument("--refine", choices=get_args(Refine), default="none", help="by colours, afterwards (none)")
    parser.add_argument(
        "--cloud", choices=get_args(Cloud), default="pixels", help="points: the pixels of each view, or voxels (pixels)"
    )
    parser.add_argument("--through", action="store_true", help="let views vote for what they do not see, to compare")
    parser.add_argument("--picture", type=Path, help="draw some proposals into this PNG")
    parser.add_argument("--overwrite", action="store_true", help="replace what propose wrote there before")
    options, rest = parser.parse_known_args(arguments)
    if options.output is None:
        raise ValueError("weakseg propose needs --output, a folder for the labels")
    check_output(options.output, options.overwrite)
    if options.run or options.ckpt:
        words, options = from_run(parser, arguments)
        run(Propose, words, options)
        return
    data = load_data(rest)
    check_data(data)
    if data.supervision.kind != "boxes" or not data.supervision.real:
        raise ValueError(
            "the first round starts from boxes: set data.supervision to {kind: boxes, real: true, inside: filled}, "
            "with fraction or number if only some views have them"
        )
    propose(data, data.lists()[0], options, 0)
