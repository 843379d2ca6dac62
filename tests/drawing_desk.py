"""A folder to draw in and its server, in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from common.ops.batch import IGNORE
from datamodules.scenes import draw_scene
from experiments.annotate import server as serving

NAME = "day0/scene 0"


def photos(root: Path, count: int = 6, side: int = 64) -> Path:
    """A new folder: synthetic scenes, and nothing else."""
    for number in range(count):
        path = root / "images" / f"day{number % 2}" / f"scene {number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_scene(3, number, side)[0]).save(path)
    return root


def scribble(drawings, name: str = NAME, label: int = 1) -> np.ndarray:
    mask = np.full(drawings.size(name), IGNORE, np.uint8)
    mask[3:6, 4:20] = label
    return mask


@contextmanager
def served(desk, port: int = 0, token: str | None = None) -> Iterator[serving.Server]:
    with serving.Server(desk, port) as server:
        server.token = token or server.token
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
