"""Folders of very many images: what the start of a run costs, and what each of its processes keeps of the lists.

The images are hard links to eight pictures, a tenth of them (20,000 at most) with a mask. Each number is of a process
of its own, less what the same costs with a list of 400 images.
"""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.annotation import LOOKED_AT
from datamodules.parallel import processors
from datamodules.sets.folder import Folder
from experiments.benchmarks.measure import machine, options
from experiments.compare.columns import markdown

FEW = 400
PICTURES, SIDE, MASKS, WORKERS, BATCHES = 8, 64, 20_000, 2, 20


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
    multiprocessing.set_start_method(None, force=True)  # of the loaders, as in a training: this one was spawned
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


def in_a_process(folder: Path, cache: Path) -> dict[str, float]:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, folder, cache).result()


def main() -> None:
    args = options(__doc__, images=[20_000, 200_000, 1_000_000], folder="runs/large_lists")
    root = Path(args.folder)
    rows, few = [], dict[str, float]()
    for images in (FEW, *args.images):
        folder, cache = make_folder(root, images), root / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        first, found = (in_a_process(folder, cache) for _ in range(2))
        few = few or found
        held, loaders = ((found[name] - few[name]) / images for name in ("bytes", "loader_bytes"))
        cells = [images, len(os.listdir(folder / "masks")), f"{first['start_s']:.0f}", f"{found['start_s']:.1f}"]
        rows.append([*map(str, cells), f"{found['cpu_s'] - few['cpu_s']:.1f}", f"{held:.0f}", f"{loaders:.0f}"])
        print(*rows[-1], file=sys.stderr, flush=True)
    head = "images, with a mask, first drawing (s), start (s), CPU (s), bytes an image, in loader processes"
    print(f"""# Very many images

A start up to the loaders, of a folder of hard links to {PICTURES} pictures of {SIDE} px. Memory: the private pages of
the training process, and after {BATCHES} batches those of its {WORKERS} loader processes together. CPU time and bytes
are less those of {FEW} images. The first drawing reads every image with a label and up to {LOOKED_AT} without, on all
processors. {processors()} cores; {machine()}. Made by `python -m experiments.benchmarks.large_lists`.

{markdown(head.split(", "), rows[1:])}""")


if __name__ == "__main__":
    main()
