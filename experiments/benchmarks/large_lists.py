"""Folders of very many images: what the start of a run costs, and what each of its processes keeps of the lists.

    python -m experiments.benchmarks.large_lists --images 20000 200000 1000000 --output FILE

The images are hard links to eight pictures, a tenth of them (20,000 at most) with a mask. Each number is of a process
of its own, and less what the same costs with a list of 400 images. Memory is what the process itself holds (its private
pages), after twenty batches also that of its loader processes together.
"""

from __future__ import annotations

import argparse
import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.training.files import write_csv

FEW = 400
PICTURES, SIDE, MASKS, WORKERS, BATCHES = 8, 64, 20_000, 2, 20
COLUMNS = ("images", "masks", "first_drawing_s", "start_s", "cpu_s", "bytes_per_image", "loader_bytes_per_image")


def make_folder(root: Path, images: int) -> Path:
    """A folder for `datamodules.sets.folder.Folder`, if it is not there yet."""
    folder = root / str(images)
    if (folder / "classes.txt").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    for kind, every in (("images", range(images)), ("masks", range(0, images, max(10, images // MASKS)))):
        (folder / kind).mkdir(parents=True)
        pictures = []
        for number in range(PICTURES):
            content = rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)
            content = content if kind == "images" else (content[..., 0] % 2)
            pictures.append(folder / f"{kind}{number}.png")
            Image.fromarray(content).save(pictures[-1])
        for number in every:
            link(pictures[number % PICTURES], folder / kind / f"frame_{number:07d}.png")
    (folder / "classes.txt").write_text("background\nthing\n")
    return folder


def link(picture: Path, place: Path) -> None:
    """A hard link; where a file system allows no more of them, the first of a new copy."""
    try:
        os.link(picture, place)
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
        shutil.copy(picture, place)
        os.replace(shutil.copy(picture, f"{picture}.new"), picture)


def private(process: int | str = "self") -> int:
    """Bytes that a process shares with no other."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def measure(folder: Path, cache: Path) -> dict[str, float]:
    """A start in this process, up to the loaders, and batches from them."""
    from datamodules.sets.folder import Folder

    gc.collect()
    before, since, cpu = private(), time.perf_counter(), time.process_time()
    data = Folder(
        root=str(folder), size=SIDE, batch_size=8, unlabeled_batch_size=8, num_workers=WORKERS, cache_dir=str(cache)
    )
    data.prepare_data()
    data.setup("fit")
    found = {"start_s": time.perf_counter() - since, "cpu_s": time.process_time() - cpu}
    gc.collect()
    found["bytes"] = private() - before
    batches = iter(data.train_dataloader())
    for _ in range(BATCHES):
        next(batches)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return found | {"loader_bytes": sum(map(private, children))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 200_000, 1_000_000])
    parser.add_argument("--folder", type=Path, default=Path("runs/large_lists"))
    parser.add_argument("--output", type=Path, default=Path("large_lists.csv"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cache = options.folder / "cache"
    if options.measure:
        print("\n" + json.dumps(measure(options.measure, cache)))
        return
    rows: list[dict[str, Any]] = []
    few: dict[str, float] = {}
    for images in (FEW, *options.images):
        folder = make_folder(options.folder, images)
        command = [sys.executable, "-m", "experiments.benchmarks.large_lists", "--folder", str(options.folder)]
        shutil.rmtree(cache, ignore_errors=True)
        first, found = (
            json.loads(
                subprocess.run([*command, "--measure", str(folder)], check=True, stdout=subprocess.PIPE, text=True)
                .stdout.splitlines()[-1]
            )
            for _ in range(2)
        )  # fmt: skip
        few = few or found
        rows.append({
            "images": images, "masks": len(os.listdir(folder / "masks")), "first_drawing_s": round(first["start_s"], 1),
            "start_s": round(found["start_s"], 1), "cpu_s": round(found["cpu_s"] - few["cpu_s"], 1),
            "bytes_per_image": round((found["bytes"] - few["bytes"]) / images),
            "loader_bytes_per_image": round((found["loader_bytes"] - few["loader_bytes"]) / images),
        })  # fmt: skip
        print(rows[-1], flush=True)
    write_csv(options.output, rows[1:])


if __name__ == "__main__":
    main()
