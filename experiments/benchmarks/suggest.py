"""`weakseg suggest` against drawing at random: test mIoU after each round of labelling.

    python -m experiments.benchmarks.suggest --data CamVid --options "{root: data/camvid, size: 256}" -- \\
        --config base --config supervised --model.network.weights imagenet --trainer.max_steps 2000

The training split of a data set is a pool without labels at first. Each seed draws the first images, which both arms
label; then one arm draws further ones at random, and the other asks the network of the round before. The dense masks of
the data set play the person who labels. Each round trains anew, with the options behind `--`, and tests `best`. All
that is written is below `--output`; a study that was broken off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

import datamodules
from common.training.files import write_csv, write_text
from datamodules.base import SegmentationDataModule
from experiments.benchmarks.measure import spread
from experiments.cli import main as weakseg
from experiments.compare.columns import markdown
from experiments.compare.runs import read_images
from experiments.compare.tables import DRAWS, bootstrap

ARMS = ("random", "suggest")


def command(*words: Any) -> None:
    """Run a command; end with its error."""
    if status := weakseg([str(word) for word in words]):
        sys.exit(status)


def write_pool(data: SegmentationDataModule, root: Path) -> None:
    """The images of a data set as a `Folder` without training masks: the pool in `images/pool`, the others in
    `images/held`."""
    if (root / "classes.txt").exists():
        return
    for split in ("train", "val", "test"):
        place = "pool" if split == "train" else "held"
        for name in data.names(split):
            write(root / "images" / place / f"{name}.png", data.image(name)[..., :3])
            if split != "train":
                write(root / "masks" / place / f"{name}.png", data.mask(name))
        if split != "train":
            write_text(root / f"{split}.txt", "".join(f"held/{name}\n" for name in data.names(split)))
    lines = [f"{name} {' '.join(map(str, color))}\n" for name, color in zip(data.class_names, data.colors, strict=True)]
    write_text(root / "classes.txt", "".join(lines))


def write(path: Path, picture: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def arm_folder(pool: Path, arm: Path) -> Path:
    """The pool's images and held masks, and no other mask."""
    if not arm.exists():
        (arm / "masks" / "pool").mkdir(parents=True)
        (arm / "images").symlink_to((pool / "images").resolve())
        (arm / "masks" / "held").symlink_to((pool / "masks" / "held").resolve())
        for name in ("classes.txt", "val.txt", "test.txt"):
            (arm / name).symlink_to((pool / name).resolve())
    return arm


def label(data: SegmentationDataModule, folder: Path, names: Sequence[str]) -> None:
    """Put the masks of some of the pool into a folder."""
    for name in names:
        write(folder / "masks" / "pool" / f"{name}.png", data.mask(name))


def trained(run_dir: Path, folder: Path, seed: int, fit: Sequence[str]) -> float:
    """Train on what is labelled in a folder, once; the test mIoU."""
    summary = run_dir / "summary.json"
    if not summary.exists() or "test" not in json.loads(summary.read_text()):
        data = ["--data", "Folder", "--data.init_args.root", folder.resolve()]
        command("fit", *fit, *data, "--seed_everything", seed, "--run_dir", run_dir, "--resume", "auto")
        command("test", "--run", run_dir)
    return float(json.loads(summary.read_text())["test"]["best"]["test/miou"])


def suggested(run_dir: Path, folder: Path, count: int, by: str) -> list[str]:
    """The names of what a run asks for, the first time that it is asked."""
    output = run_dir / "next"
    if not (output / "suggest.csv").exists():
        images = folder / "images" / "pool"
        command(
            "suggest", "--run", run_dir, "--images", images, "-n", count, "--by", by, "--output", output, "--overwrite"
        )
    with (output / "suggest.csv").open(newline="") as file:
        return [row["file"].removesuffix(".png") for row in csv.DictReader(file)]


def study(data: SegmentationDataModule, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each seed, arm and round: the number of labelled images and the test mIoU."""
    pool, rows = options.output / "pool", []
    write_pool(data, pool)
    for seed in options.seeds:
        order = [*data.names("train")]
        random.Random(seed).shuffle(order)
        first = options.output / f"seed{seed}" / "first"
        start = arm_folder(pool, first / "data")  # of its own: what the other arm labels later is not known to its run
        for arm in ARMS:
            place = options.output / f"seed{seed}" / arm
            folder, labelled = arm_folder(pool, place / "data"), order[: options.each]
            for number in range(options.rounds):
                label(data, folder if number else start, labelled)
                run_dir = run_of(options.output, seed, arm, number)
                miou = trained(run_dir, folder if number else start, seed, options.fit)
                rows.append({"seed": seed, "arm": arm, "round": number, "labelled": len(labelled), "test_miou": miou})
                print(rows[-1], flush=True)
                if number + 1 < options.rounds and arm == "random":
                    labelled = order[: options.each * (number + 2)]
                elif number + 1 < options.rounds:
                    labelled = labelled + suggested(run_dir, folder, options.each, options.by)
    return rows


def run_of(output: Path, seed: int, arm: str, number: int) -> Path:
    """The run of a round; the first one is that of both arms."""
    place = output / f"seed{seed}"
    return place / arm / f"round{number}" if number else place / "first" / "run"


def table(rows: Sequence[dict[str, Any]], output: Path) -> str:
    """Mean and standard deviation over the seeds, their differences, and the interval of the mean difference over other
    test images, with the networks as they are."""
    seeds, cells = sorted({row["seed"] for row in rows}), []
    for number in sorted({row["round"] for row in rows}):
        mine = [row for row in rows if row["round"] == number]
        one, other = ([row["test_miou"] for row in mine if row["arm"] == arm] for arm in ARMS)
        gains = [b - a for a, b in zip(one, other, strict=True)]
        images = [
            [read_images(run_of(output, seed, arm, number) / "test_best_images.npz").confusion for seed in seeds]
            for arm in ARMS
        ]
        low, high = bootstrap(images[1], images[0], DRAWS)
        shown = [", ".join(f"{gain:+.1f}" for gain in gains), f"{low:+.1f} to {high:+.1f}"] if number else ["", ""]
        cells.append([str(mine[0]["labelled"]), spread(one), spread(other), *shown])
    return markdown(["labelled images", "random", "suggest", "gain, seed by seed", "95 % over images"], cells)


def main() -> None:
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="Synthetic", choices=sorted(datamodules.CLASSES))
    parser.add_argument("--options", type=yaml.safe_load, default={}, help="of the data set, in YAML")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", type=int, default=10, help="images labelled in a round")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--by", default="entropy", choices=("entropy", "margin", "disagreement"))
    parser.add_argument("--output", type=Path, default=Path("runs/suggest"))
    options = parser.parse_args(words[:at])
    options.fit = words[at + 1 :]
    rows = study(getattr(datamodules, options.data)(**options.options), options)
    write_csv(options.output / "suggest.csv", rows)
    print(table(rows, options.output))


if __name__ == "__main__":
    main()
