"""`weakseg doctor`: is the installation sound, and, given a data config, are the data?"""

from __future__ import annotations

import argparse
import hashlib
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from PIL import Image

import datamodules
from common.ops.batch import IGNORE, check_batch
from common.training.discovery import import_all
from common.training.pictures import colorize, mark_pixels, save_grid
from common.training.summary import PACKAGES
from datamodules.base import SegmentationDataModule
from datamodules.supervision import Supervision, draw_annotation, shrink_mask
from datamodules.transforms import fit_size, resize_image
from experiments.cli.configs import expand_configs
from experiments.cli.messages import Parser

REGIMES = [
    Supervision("pixels", fraction=0.002),
    Supervision("points", per_class=1),
    Supervision("points"),
    Supervision("scribbles"),
    Supervision("boxes"),
    Supervision("tags"),
]
MOST = 20  # problems printed; more are counted


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


def examine(data: SegmentationDataModule) -> tuple[list[str], list[str]]:
    """Read every file of every split. Returns what was found and what is wrong, a line each."""
    found, problems = [], []
    seen: dict[bytes, str] = {}  # pixels of an image -> where it was met first
    for split in ("train", "val", "test"):
        names = data.names(split)
        sizes: Counter[tuple[int, int]] = Counter()
        counts = np.zeros(256, np.int64)
        masks = 0
        for name in names:
            try:
                image = data.image(name)
                mask = data.mask(name) if data.has_mask(name) else None
            except (OSError, ValueError) as error:
                problems.append(str(error))
                continue
            sizes[(image.shape[0], image.shape[1])] += 1
            first = seen.setdefault(hashlib.sha256(image.tobytes()).digest(), f"{split}/{name}")
            if not first.startswith(f"{split}/"):
                problems.append(f"the same picture is in two splits: {first} and {split}/{name}; remove one of them")
            if mask is None:
                continue
            masks += 1
            counts += np.bincount(mask.reshape(-1), minlength=256)
            if mask.shape != image.shape[:2]:
                problems.append(
                    f"{name}: image {image.shape[0]} x {image.shape[1]}, mask {mask.shape[0]} x {mask.shape[1]}"
                )
        smallest, largest = (min(sizes), max(sizes)) if sizes else ((0, 0), (0, 0))
        found.append(f"{split}: {len(names)} images ({masks} with a mask), sizes {smallest} to {largest}")
        total = max(1, int(counts.sum()))
        shares = {name: counts[i] / total for i, name in enumerate(data.class_names)} | {
            "no label": counts[IGNORE] / total
        }
        found.append("  " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if share))
    return found, problems


def main(arguments: Sequence[str]) -> None:
    """Print the report.

    Raises:
        ValueError: the data have problems; the message counts them, the report has named them.
    """
    if {"-h", "--help"} & set(arguments):
        parser = argparse.ArgumentParser(prog="weakseg doctor", description=__doc__)
        parser.add_argument(
            "--config", metavar="NAME", help="a regime or data set, or a file such as a run's config.yaml"
        )
        parser.add_argument("--sheet", type=Path, help="write a PNG of training images with what is labelled in them")
        parser.add_argument("--regimes", type=Path, help="write a PNG of what each kind of supervision would label")
        parser.print_help()
        return
    own = argparse.ArgumentParser(prog="weakseg doctor", add_help=False, allow_abbrev=False)
    own.add_argument("--sheet", type=Path)
    own.add_argument("--regimes", type=Path)
    options, arguments = own.parse_known_args(arguments)
    print(describe_installation())
    if not arguments:
        return
    data = load_data(arguments)
    found, problems = examine(data)
    print(f"\n{type(data).__name__}: {data.num_classes} classes ({', '.join(data.class_names)})")
    print("\n".join(found))
    for line in problems[:MOST]:
        print(f"problem: {line}")
    if problems:
        raise ValueError(f"{len(problems)} problems in the data ({min(MOST, len(problems))} are shown above)")
    data.prepare_data()
    report = data.annotation_report()
    share = report["labeled_pixels"] / report["pixels"]
    print(f"labelled for training: {report['images']} images, {report['labeled_pixels']} pixels ({share:.4%})")
    print("  " + ", ".join(f"{name} {count}" for name, count in report["per_class"].items()))
    if options.sheet:
        contact_sheet(data, options.sheet, [data.supervision])
        print(f"contact sheet: {options.sheet}")
    if options.regimes:
        contact_sheet(
            data, options.regimes, [one for one in REGIMES if one.kind != "boxes" or data.background is not None]
        )
        print(f"kinds of supervision: {options.regimes}")
    check_first_batch(data)
    print("no problem found")


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
    """Write rows of the first labelled training images: image, mask, and what each kind of supervision labels in it.

    The data's own supervision is read from its drawn annotation, so that real points and scribbles are shown too.
    """
    rows = []
    for name in data.lists()[0][:count]:
        image, mask = data.image(name), data.mask(name)
        assert mask is not None  # a labelled image
        size = fit_size(mask.shape, data.size)
        tensor = torch.from_numpy(resize_image(image, size).copy()).permute(2, 0, 1) / 255
        small = shrink_mask(mask, size, data.keep_strokes)
        row = [image, colorize(mask, data.colors)]
        for regime in regimes:
            if regime == data.supervision:
                drawn = np.asarray(Image.open(data.annotation_dir() / f"{name}.png"))
            else:
                drawn = draw_annotation(small, regime, data.annotation_seed, name, data.background)
            row.append(mark_pixels(tensor, drawn, data.colors))
        rows.append(row)
    save_grid(path, rows, ["image", "mask", *(title(one) for one in regimes)])


def title(supervision: Supervision) -> str:
    """A few words over a column."""
    if supervision.kind == "points":
        return f"points, {supervision.per_class or 'one'} per {'class' if supervision.per_class else 'component'}"
    return f"{supervision.kind} {supervision.fraction or ''}".strip()
