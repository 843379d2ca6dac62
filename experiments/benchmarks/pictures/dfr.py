"""What the kernel of DFR relates a pixel to, at the start, in the middle and at the end of training.

    python -m experiments.benchmarks.pictures.dfr runs/dfr_picture docs/dfr.png

Trains DFR on textures as `weakseg study textures_dfr` does, into the run directory, unless the three checkpoints are
there, and draws for three cells of a test scene (one deep in either texture, one at their border) the shallow kernel
and the dynamic one. Further words go to `weakseg fit`. The maps reach over the whole scene; the loss sees a window of
them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from common.ops.array import Array
from common.training.pictures import colorize, save_grid, to_uint8
from experiments.cli import main as weakseg
from experiments.runs.load import Run, load_run
from methods.dfr.losses import dynamic_kernel

WORDS = ["--config", "textures_points", "--config", "dfr", "--model.dfr_weight=0.1", "--model.start=0.5",
         "--model.confident_start=0.5"]  # fmt: skip
MOMENTS = ("start", "middle", "end")


class SaveMoments(Callback):
    """Saves the model before the first step, after half of the steps and after the last one.

    Args:
        folder: of `start.ckpt`, `middle.ckpt` and `end.ckpt`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / "start.ckpt")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        moments = {trainer.max_steps // 2: "middle", trainer.max_steps: "end"}
        if trainer.global_step in moments:
            trainer.save_checkpoint(self.folder / f"{moments[trainer.global_step]}.ckpt")


def train(run_dir: Path, more: list[str]) -> None:
    callback = f"[{{class_path: {SaveMoments.__module__}.SaveMoments, init_args: {{folder: {run_dir / 'moments'}}}}}]"
    callback = callback.replace("__main__", "experiments.benchmarks.pictures.dfr")
    words = ["fit", *WORDS, "--run_dir", str(run_dir), "--resume", "auto", "--trainer.callbacks", callback]
    if weakseg([*words, *more]):
        raise RuntimeError("training failed")


def choose(mask: Array) -> list[tuple[int, int]]:
    """Pixels (y, x): the innermost of either class, and the one at a border that is farthest from the scene's edge."""
    frame = np.pad(np.ones(np.array(mask.shape) - 2), 1)
    inner = [distance_transform_edt((mask == label) & (frame > 0)) for label in (0, 1)]
    border = (distance_transform_edt(mask == 0) == 1) * distance_transform_edt(frame)
    places = [np.unravel_index(int(np.argmax(one)), mask.shape) for one in (*inner, border)]
    return [(int(y), int(x)) for y, x in places]


@torch.no_grad()
def affinity(run: Run, image: Tensor, places: list[tuple[int, int]], kind: str) -> list[Array]:
    """Per pixel its kernel to all cells, (H, W, 3) uint8 from black 0 to white 1."""
    model: Any = run.model
    height, width = image.shape[-2:]
    colors = F.avg_pool2d(255 * image, model.stride)
    h, w = colors.shape[-2:]
    embedding = model.embed(model.head, *model.network.features(image), image)
    kernel = dynamic_kernel(
        colors,
        None if kind == "shallow" else embedding,
        torch.ones(1, h, w, dtype=torch.bool),
        kind=kind,  # type: ignore[arg-type]
        sigma_xy=model.sigma_xy / model.stride,
        sigma_rgb=model.sigma_rgb,
        sigma_f=model.sigma_f,
        eta=model.eta,
        radius=max(h, w) - 1,
    )
    pictures = []
    for y, x in places:
        spot = torch.zeros(1, 1, h, w)
        spot[0, 0, min(y // model.stride, h - 1), min(x // model.stride, w - 1)] = 1
        map_ = F.interpolate(kernel(spot) + spot, (height, width))  # a cell with itself: 1
        pictures.append(to_uint8(map_[0].expand(3, -1, -1)))
    return pictures


def marked(picture: Array, place: tuple[int, int]) -> Array:
    """A copy with a red square of 3 x 3 pixels."""
    picture, (y, x) = picture.copy(), place
    picture[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = (230, 30, 30)
    return picture


def main(run_dir: Path, path: Path, more: list[str]) -> None:
    files = {moment: run_dir / "moments" / f"{moment}.ckpt" for moment in MOMENTS}
    if not all(file.exists() for file in files.values()):
        train(run_dir, more)
    found = {moment: load_run(file) for moment, file in files.items()}
    data = found["end"].data
    name = data.names("test")[0]
    image = torch.from_numpy(data.image(name)).permute(2, 0, 1)[None].float() / 255
    mask = data.mask(name)
    assert mask is not None
    places = choose(mask)
    columns = [affinity(found["end"], image, places, "shallow")]
    columns += [affinity(run, image, places, found["end"].model.kernel) for run in found.values()]  # type: ignore[arg-type]
    rows = [
        [marked(one, place) for one in (to_uint8(image[0]), colorize(mask, data.colors), *(c[i] for c in columns))]
        for i, place in enumerate(places)
    ]
    save_grid(path, rows, ["image", "truth", "shallow kernel", *(f"dynamic, {moment}" for moment in MOMENTS)])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
