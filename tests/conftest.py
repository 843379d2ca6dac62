"""Running the real command on tiny data."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "tiny.yaml"


FOLDER_SIZES = [(31, 44), (47, 33), (29, 29), (40, 57), (53, 38), (36, 36), (25, 61), (45, 32), (30, 30), (33, 50)]


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Drawn annotations of tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEAKSEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


def weakseg(*arguments, expect: int = 0) -> str:
    """Run a command in this process (starting Python and torch again costs seconds); returns all it printed."""
    from experiments.cli import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
    assert status == expect, f"exit status {status}, expected {expect}:\n{output.getvalue()}"
    return output.getvalue()


def weakseg_process(*arguments, **environment) -> subprocess.Popen:
    """Start a command in a process of its own (to kill it, or to run several)."""
    command = [sys.executable, "-m", "experiments.cli", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


TWO_PROCESSES = """
import sys
import torch
import torch.distributed as dist

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
"""


def two_processes(script: str, folder: Path) -> None:
    """Run a script in two processes that form a gloo group; it finds its `rank` and the `folder`."""
    content = f"{TWO_PROCESSES}\n{script}\ndist.barrier()\ndist.destroy_process_group()\n"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", content, str(rank), str(folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:  # a failure ends the wait of the other
        end = time.monotonic() + 300
        while None in (codes := [rank.poll() for rank in ranks]) and not any(codes) and time.monotonic() < end:
            time.sleep(0.05)
        assert codes == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


# Defaults of a method that are not for images of 32 pixels, and labels that it learns from.
TAGS = ["--data.init_args.supervision", "{kind: tags, fraction: null}"]
MAPS = [*TAGS, "--model.init_args.scales", "[1, 1.5]"]
BOXES = ["--data.init_args.supervision", "{kind: boxes, fraction: null, inside: filled}"]
SMALL = {"RRN": ["--model.init_args.region_conv", "1"], **dict.fromkeys(("CAM", "CPN", "GroupWSSS", "AALR"), MAPS)}
SMALL["Box"] = BOXES


def fit_tiny(run_dir, *arguments, expect: int = 0) -> str:
    """Fit the method that `--model NAME` names among the arguments (default: Supervised)."""
    named = [after for word, after in itertools.pairwise(arguments) if word == "--model"]
    small = SMALL.get(named[0], []) if named else []
    return weakseg("fit", "--config", TINY, "--run_dir", run_dir, *arguments, *small, expect=expect)


# Every invariant is tested with every method; in the fast tests with a single network, a teacher and an adversary.
REPRESENTATIVE = ("Supervised", "UniMatch", "RRN")


def every_method(*fast: str) -> list[Any]:
    """Parameters of a test over all methods, which is slow but for those named."""
    from methods import CLASSES

    return slow_but_for(CLASSES, *fast)


def slow_but_for(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Parameters of a test that is slow but with those named."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


# An epoch's end, validations and steps between them.
LONG = ["--trainer.max_steps", "14", "--trainer.val_check_interval", "4"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Unbroken runs, one per method."""
    done = {}

    def run(method):
        if method not in done:
            done[method] = tmp_path_factory.mktemp(f"whole-{method}")
            fit_tiny(done[method], "--model", method, *LONG)
        return done[method]

    return run


def draw_folder(root: Path) -> Path:
    """A `Folder` data set of ten images of odd and unequal sizes: coloured rectangles, some pixels void."""
    rng = np.random.default_rng(7)
    colors = np.array([[60, 60, 60], [220, 60, 40], [40, 90, 220]])
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("ground\nred thing\nblue thing\n")
    for number, (height, width) in enumerate(FOLDER_SIZES):
        mask = np.zeros((height, width), np.uint8)
        mask[: height // 2, : rng.integers(5, width)] = 1
        mask[height // 3 :, rng.integers(0, width - 5) :] = 2
        image = colors[mask] + rng.integers(-30, 30, (height, width, 3))
        mask[:3, -4:] = 255
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    for split, names in (("train", "012345"), ("val", "67"), ("test", "89")):
        (root / f"{split}.txt").write_text("\n".join(names))
    return root


def draw_tagged(root, folders=False):
    """Twelve images without a mask: the even ones show a dog, every third a cat."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(3)
    lines = []
    for number in range(12):
        names = ["dog"] * (number % 2 == 0) + ["cat"] * (number % 3 == 0)
        place = root / "images" / ((names or ["background"])[0] if folders else "") / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (30 + number, 40, 3), np.uint8)).save(place)
        lines.append(" ".join([f"{number}.png", *names]))
    (root / "classes.txt").write_text("background\ndog\ncat\n")
    (root / "tags.txt").write_text("\n".join(lines) + "\n")
    return root


def on_folder(root: Path) -> list[str]:
    """Options that make a tiny run train on such a folder."""
    options = {"root": root, "size": "[32, 40]", "batch_size": 4, "num_workers": 0}
    return ["--data", "Folder", *(word for k, v in options.items() for word in (f"--data.init_args.{k}", str(v)))]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder, with the time of its last change and its content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
