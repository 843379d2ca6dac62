"""Images per second of loader and augmentation, against the usual pipeline in the loader's workers.

    python -m experiments.benchmarks.data_pipeline > experiments/results/data_pipeline.md

Both read the same JPEG images and PNG masks (synthetic scenes in a temporary folder), and give the same: a random
magnification, a crop, a flip, of image and mask alike, and one strong view where it says so. The usual pipeline does it
in the workers with Pillow and torchvision and sends floats. Ours sends the decoded bytes and does the rest on the
device, here the CPU of the training process. The pipelines take turns; a figure is the median of the rounds.
"""

from __future__ import annotations

import itertools
import os
import platform
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_tensor

from datamodules.images import TrainingImages
from datamodules.loaders import loader as make_loader
from datamodules.loaders import reader
from datamodules.samplers import EpochSampler
from datamodules.scenes import CLASSES, draw_scene
from datamodules.sets.folder import Folder
from datamodules.transforms import draw_strong, strong_view
from experiments.benchmarks.measure import alternate, machine, options, ratio
from experiments.compare.columns import markdown

SETS = {"camvid": (480, 360), "voc": (500, 375)}  # width and height
SCALE = (0.5, 2.0)
BATCH = 8
CACHES = ("none", "ram", "disk")
Loader = tuple[Iterable[Any], Callable[[Any], Any]]  # batches, and what the training process does to one


class Figures(NamedTuple):
    """What one pass over the loader cost."""

    images_per_s: float
    worker_ms: float  # CPU time of the workers per image
    main_ms: float  # CPU time of the training process per image


class UsualImages(Dataset[tuple[Tensor, ...]]):
    """The pipeline of most repositories: everything in the worker, on Pillow images."""

    def __init__(self, root: Path, names: list[str], crop: int, strong: bool) -> None:
        self.root, self.names, self.crop, self.strong = root, names, crop, strong
        self.jitter = transforms.RandomApply([transforms.ColorJitter(0.5, 0.5, 0.5, 0.25)], p=0.8)
        self.grey = transforms.RandomGrayscale(p=0.2)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        name = self.names[index]
        image: Image.Image = Image.open(self.root / "images" / f"{name}.jpg").convert("RGB")
        mask: Image.Image = Image.open(self.root / "masks" / f"{name}.png")
        zoom = SCALE[0] * (SCALE[1] / SCALE[0]) ** random.random()
        size = (round(image.width * zoom), round(image.height * zoom))
        image, mask = image.resize(size, Image.Resampling.BILINEAR), mask.resize(size, Image.Resampling.NEAREST)
        left, top = (random.randint(min(0, side - self.crop), max(0, side - self.crop)) for side in size)
        image = image.crop((left, top, left + self.crop, top + self.crop))
        mask = Image.eval(mask, lambda value: value + 1)  # so that what `crop` adds, 0, can become 255
        mask = mask.crop((left, top, left + self.crop, top + self.crop))
        if random.random() < 0.5:
            image, mask = (one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for one in (image, mask))
        label = torch.from_numpy((np.asarray(mask) - np.uint8(1)).astype(np.int64))
        if not self.strong:
            return to_tensor(image), label
        view = self.grey(self.jitter(image))
        if random.random() < 0.5:
            view = view.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2)))
        return to_tensor(image), label, to_tensor(view)


def write_set(root: Path, size: tuple[int, int], count: int) -> list[str]:
    """A `Folder` data set of `count` training scenes; returns their names."""
    names = [f"{number:04d}" for number in range(count + 2)]
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    for number, name in enumerate(names):
        image, mask = draw_scene(0, number, size[0])
        Image.fromarray(image[: size[1]]).save(root / "images" / f"{name}.jpg", quality=92)
        Image.fromarray(mask[: size[1]]).save(root / "masks" / f"{name}.png")
    for split, part in (("train", names[2:]), ("val", names[:1]), ("test", names[1:2])):
        (root / f"{split}.txt").write_text("\n".join(part))
    return names[2:]


def usual_pipeline(root: Path, names: list[str], crop: int, workers: int, strong: bool, steps: int) -> Loader:
    images = UsualImages(root, names, crop, strong)
    # as many images as we read in `steps`: the list again and again
    order = [index for _ in range(-(-steps * BATCH // len(names))) for index in torch.randperm(len(names)).tolist()]
    return DataLoader(images, BATCH, sampler=order[: steps * BATCH], num_workers=workers), lambda batch: batch


def our_pipeline(data: Folder, strong: bool, steps: int) -> Loader:
    images = TrainingImages(data.names("train"), reader(data), data.size, data.annotation_dir())
    loader = make_loader(data, images, batch_sampler=EpochSampler(len(images), BATCH, steps, data.seed))

    def finish(batch: Any) -> Any:
        ready = data.ready({"labeled": batch})["labeled"]
        return strong_view(ready["image"], draw_strong(0, ready["key"], 1)[:, 0]) if strong else ready

    return loader, finish


def sent_kb(loader: Loader) -> float:
    """Kilobytes that an image takes from worker to training process."""
    batch = next(iter(loader[0]))
    values = batch.values() if isinstance(batch, dict) else batch
    return sum(value.nbytes for value in values if isinstance(value, Tensor)) / BATCH / 1000


def cpu_seconds(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def measure(loader: Loader, steps: int) -> Figures:
    """One pass; the clock starts at the first batch, when the workers run."""
    workers, main = cpu_seconds(resource.RUSAGE_CHILDREN), cpu_seconds(resource.RUSAGE_SELF)
    batches, finish = loader
    start = 0.0
    for batch in batches:
        finish(batch)
        start = start or time.perf_counter()
    seconds, images = time.perf_counter() - start, steps * BATCH
    cast(Any, batches)._iterator = None  # ends workers that would stay: their CPU time is known once they are gone
    return Figures(
        (images - BATCH) / seconds,
        1000 * (cpu_seconds(resource.RUSAGE_CHILDREN) - workers) / images,
        1000 * (cpu_seconds(resource.RUSAGE_SELF) - main) / images,
    )


def pipelines(
    root: Path, names: list[str], size: tuple[int, int], workers: int, strong: bool, args: Any
) -> dict[str, Loader]:
    """By name: the usual one, and ours with each cache."""
    found = {"usual": usual_pipeline(root, names, args.crop, workers, strong, args.steps)}
    for cache in CACHES:
        data = Folder(
            str(root), size=[size[1], size[0]], crop=[args.crop] * 2, batch_size=BATCH, num_workers=workers,
            scale=list(SCALE), cache=cast(Any, cache), cache_dir=str(root.parent / "cache"),
        )  # fmt: skip
        data.prepare_data()
        found[f"weakseg, cache: {cache}"] = our_pipeline(data, strong, args.steps)
    return found


def run_set(title: str, args: Any, root: Path) -> None:
    size = SETS[title]
    names = write_set(root, size, args.images)
    files = [sum(f.stat().st_size for f in (root / kind).iterdir()) / (args.images + 2) for kind in ("images", "masks")]
    pixels = size[0] * size[1]
    print(f"""
## {title}-like images, {size[0]} x {size[1]}

{args.images} images; a file has {files[0] / 1000:.0f} kB (JPEG), its mask {files[1] / 1000:.1f} kB (PNG);
decoded, {3 * pixels / 1000:.0f} and {pixels / 1000:.0f} kB.
""")
    rows = []
    for strong, workers in itertools.product((False, True), args.workers):
        loaders = pipelines(root, names, size, workers, strong, args)
        sent = {name: sent_kb(loader) for name, loader in loaders.items()}
        forms = {name: partial(measure, loader, args.steps) for name, loader in loaders.items()}
        alternate(forms, 1)  # fills the caches
        times = alternate(forms, args.rounds)
        for name, found in times.items():
            speed, worker, main = (median(column) for column in zip(*found, strict=True))
            faster = ratio([one.images_per_s for one in found], [one.images_per_s for one in times["usual"]])[0]
            cells = ["yes" if strong else "no", str(workers), name, f"{speed:.0f}", faster]
            rows.append([*cells, f"{worker:.2f}", f"{main:.2f}", f"{sent[name]:.0f}"])
    head = "strong view, workers, pipeline, images/s, ratio, CPU ms/image: workers, training process, kB sent"
    print(markdown(head.split(", "), rows), flush=True)


def main() -> None:
    args = options(__doc__, images=160, steps=40, crop=321, rounds=3, sets=[*SETS], workers=[1, 2])
    print(f"""# Speed of the data pipeline

Crops of {args.crop} px, batch {BATCH}, magnification {SCALE[0]} to {SCALE[1]}; medians of {args.rounds} alternating
rounds of {args.steps} steps. {platform.machine()} CPU, {os.cpu_count()} cores; {machine()},
torchvision {torchvision.__version__}, Pillow {PIL.__version__}; one thread in a worker. Made by
`python -m experiments.benchmarks.data_pipeline`. Nothing is trained: the training process only augments (ours) or waits
(usual). CPU time does not depend on what else the machine does, images/s does. A cache is warm: its first epoch is as
slow as without.""")
    for title in args.sets:
        with tempfile.TemporaryDirectory() as folder:
            run_set(title, args, Path(folder) / "set")


if __name__ == "__main__":
    main()
