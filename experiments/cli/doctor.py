"""`weakseg doctor`: is the installation sound, and, given a data config, are the data?"""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

import datamodules
from common.ops.batch import IGNORE, check_batch, check_tags
from common.training.discovery import import_all
from common.training.pictures import colorize, mark_pixels, save_grid
from common.training.summary import PACKAGES
from datamodules.annotation import told_tags
from datamodules.base import SegmentationDataModule
from datamodules.decode import read_drawn
from datamodules.images import check_sizes
from datamodules.parallel import mapped
from datamodules.splits import SPLITS, Split
from datamodules.supervision import Supervision, draw_annotation, shrink_mask
from datamodules.survey import Finding, Look, Survey, look
from datamodules.transforms import fit_size, resize_image
from experiments.cli.configs import expand_configs
from experiments.cli.messages import Parser

REGIMES = [
    Supervision("pixels", fraction=0.002),
    Supervision("points", per_class=1),
    Supervision("points"),
    Supervision("scribbles"),
    Supervision("human_scribbles"),
    Supervision("boxes"),
    Supervision("tags"),
]
MOST = 20  # findings printed; more are counted
DATA_OPTION = re.compile(r"--(data|seed_everything)\b")


def describe_installation() -> str:
    """Versions and devices, a line each."""
    lines = [f"{'python':27} {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for name in (*PACKAGES, "torchvision", "wandb"):
        try:
            lines.append(f"{name:27} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name:27} not installed: pip install {name}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines.append(f"{'devices':27} {', '.join(gpus) or 'no GPU'}; {torch.get_num_threads()} CPU threads")
    return "\n".join(lines)


def load_data(arguments: list[str]) -> SegmentationDataModule:
    """The data module of `--config FILE ...` and `--data...` options; everything else in the files is left aside."""
    import_all(datamodules)
    parser = Parser(prog="weakseg doctor")
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_lightning_class_args(SegmentationDataModule, "data", subclass_mode=True)
    parser.add_argument("--seed_everything", type=int, default=0)
    parser.link_arguments("seed_everything", "data.init_args.seed")
    words = []
    for word, before in pairwise(reversed(["", *expand_configs(arguments)])):
        if before == "--config":
            word = yaml.safe_dump({k: v for k, v in yaml.safe_load(word).items() if k in ("data", "seed_everything")})
        words.append(word)
    data: SegmentationDataModule = parser.instantiate(parser.parse_args(words[::-1])).data
    return data


def examine(data: SegmentationDataModule) -> Survey:
    """Read every file of every split."""
    survey = Survey(data)
    for split in SPLITS:
        names = data.names(split)
        for name, seen in zip(names, mapped(partial(seen_of, data, split), names, split), strict=True):
            if isinstance(seen, Finding):
                survey.faults.append(seen)
            else:
                survey.add(split, name, seen)
    return survey


def seen_of(data: SegmentationDataModule, split: Split, name: str) -> Look | Finding:
    """What is seen of an image, or what is wrong with it."""
    try:
        image = data.image(name)
        if split == "train" and data.pseudo is not None:
            mask = data.training_mask(name, image.shape)
        else:
            mask = data.mask(name) if data.has_mask(name) else None
        check_sizes(name, image.shape, mask)
        if name in (data.boxed or ()):
            data.boxes(name)
    except (OSError, ValueError) as error:
        return Finding("stop", str(error))
    return look(data, name, image, mask)


def describe(survey: Survey) -> list[str]:
    """What is in each split, a few lines each."""
    lines = []
    for split, seen in survey.seen.items():
        smallest, largest = (f"{size[0]} x {size[1]}" for size in (min(seen.sizes), max(seen.sizes)))
        sizes = smallest if smallest == largest else f"{smallest} to {largest}"
        boxed = sum(name in (survey.data.boxed or ()) for name in seen.thumbs)
        boxes = f", {boxed} with boxes" if boxed else ""
        lines.append(f"{split}: {seen.images} images ({seen.masks} with a mask{boxes}), {sizes} pixels")
        total = max(1, int(seen.pixels.sum()))
        named = [*zip(survey.data.class_names, seen.pixels, strict=False), ("no label", seen.pixels[IGNORE])]
        if seen.masks:
            lines.append("  " + ", ".join(f"{name} {count / total:.1%}" for name, count in named if count))
        if survey.data.supervision.kind == "tags" and seen.tagged:
            tags = {name: int(n) for name, n in zip(survey.data.class_names, seen.tags, strict=False) if n}
            lines.append(f"  images per tag: {told_tags(tags)}")
    return lines


def labelled(data: SegmentationDataModule, survey: Survey) -> list[str]:
    """What training sees, in two shares: of the masks as they are, and of what is drawn from them."""
    report, seen = data.annotation_report(), survey.seen["train"]
    share = report["labeled_pixels"] / max(1, report["pixels"])
    return [
        f"labelled for training: {report['images']} images, {report['labeled_pixels']} pixels ({share:.4%} of those at "
        f"the training size); of the masks as they are {seen.labeled / max(1, int(seen.pixels.sum())):.4%}",
        "  " + ", ".join(f"{name} {count}" for name, count in report["per_class"].items()),
    ]


def main(arguments: Sequence[str]) -> int:
    """Print the report; 1 if there are errors.

    Raises:
        ValueError, OSError: the data cannot be looked at.
    """
    parser = argparse.ArgumentParser(prog="weakseg doctor", description=__doc__, allow_abbrev=False)
    told = "a regime or data set, or a file such as a run's config.yaml; --data options lie over it"
    parser.add_argument("--config", metavar="NAME", action="append", default=[], help=told)
    parser.add_argument("--sheet", type=Path, help="write a PNG of training images with what is labelled in them")
    parser.add_argument("--regimes", type=Path, help="write a PNG of what each kind of supervision would label")
    parser.add_argument("--json", action="store_true", help="print the report for machines")
    options, rest = parser.parse_known_args(arguments)
    if foreign := [word for word in rest if word.startswith("--") and not DATA_OPTION.match(word)]:
        raise ValueError(f"weakseg doctor looks at data: it takes --config and --data options, not {foreign[0]}")
    words = [word for config in options.config for word in ("--config", config)] + rest
    if not options.json:
        print(describe_installation())
    if not words:
        return 0
    data = load_data(words)
    survey = examine(data)
    findings = survey.findings()
    if data.supervision.kind == "tags":
        try:
            check_tags(data)
        except ValueError as error:
            findings.insert(0, Finding("stop", str(error)))
    lines = describe(survey)
    if not any(one.level == "stop" for one in findings):
        try:
            data.prepare_data()
            lines += labelled(data, survey)
            check_first_batch(data)
        except (OSError, ValueError) as error:
            findings.insert(0, Finding("stop", str(error)))
    errors = sum(one.level != "warning" for one in findings)
    if options.json:
        splits = {
            split: {"images": seen.images, "masks": seen.masks, "labeled_pixels": seen.labeled}
            for split, seen in survey.seen.items()
        }
        found = [{"level": "warning" if one.level == "warning" else "error", "text": one.text} for one in findings]
        print(json.dumps({"classes": [*data.class_names], "splits": splits, "findings": found, "errors": errors}))
        return int(errors > 0)
    print(f"\n{type(data).__name__}: {data.num_classes} classes ({', '.join(data.class_names)})")
    print("\n".join(lines))
    for one in findings[:MOST]:
        print(f"{'warning' if one.level == 'warning' else 'problem'}: {one.text}")
    if len(findings) > MOST:
        print(f"and {len(findings) - MOST} more")
    if not errors:
        draw_sheets(data, options.sheet, options.regimes)
    warnings = f" ({len(findings)} warnings)" if findings else ""
    print(f"{errors} problems in the data" if errors else f"no problem found{warnings}")
    return int(errors > 0)


def draw_sheets(data: SegmentationDataModule, sheet: Path | None, regimes: Path | None) -> None:
    """The pictures that were asked for."""
    if sheet:
        contact_sheet(data, sheet, [data.supervision])
        print(f"contact sheet: {sheet}")
    if regimes:
        contact_sheet(data, regimes, [one for one in REGIMES if one.kind != "boxes" or data.background is not None])
        print(f"kinds of supervision: {regimes}")


def check_first_batch(data: SegmentationDataModule) -> None:
    """Build one training batch as a run would.

    Raises:
        ValueError: it breaks the contract of `common.ops.batch`, or a stream has no image.
    """
    data.num_workers = 0
    for batch, _, _ in data.train_dataloader() if data.streams else ():
        for stream in data.ready(batch).values():
            check_batch(stream, data.num_classes)
        break


def contact_sheet(data: SegmentationDataModule, path: Path, regimes: list[Supervision], count: int = 6) -> None:
    """Write rows of labelled training images, spread over the list: image, mask, and what each kind of supervision
    labels in it.

    The data's own supervision is read from its drawn annotation, so that real points and scribbles are shown too.
    """
    rows = []
    names = data.lists()[0]
    for place in np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int):
        name = names[place]
        image = data.image(name)
        mask = data.training_mask(name, image.shape)
        if mask is None:  # people have tagged it
            mask = np.full(image.shape[:2], IGNORE, np.uint8)
        size = fit_size(mask.shape, data.size)
        colors = resize_image(image, size)
        tensor = torch.from_numpy(colors.copy()).permute(2, 0, 1) / 255
        small = shrink_mask(mask, size, data.keep_strokes)
        row = [image, colorize(mask, data.colors)]
        for regime in regimes:
            if regime == data.supervision:
                drawn = read_drawn(data.annotation_dir() / f"{name}.png")
            else:
                drawn = draw_annotation(small, regime, data.annotation_seed, name, data.background, colors)
            row.append(mark_pixels(tensor, drawn, data.colors))
        rows.append(row)
    save_grid(path, rows, ["image", "mask", *(title(one) for one in regimes)])


def title(supervision: Supervision) -> str:
    """A few words over a column."""
    if supervision.kind == "points":
        return f"points, {supervision.per_class or 'one'} per {'class' if supervision.per_class else 'component'}"
    return f"{supervision.kind} {supervision.fraction or ''}".strip()
