"""`weakseg annotate`: draw labels on images in a browser; what it needs is imported once the command line is right."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DESCRIPTION = """\
A page on this machine to draw labels: strokes and points with the classes of the folder, saved at each stroke's end as
the masks that the data module Folder reads. It needs no account and no network, and nobody else can open it."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="weakseg annotate",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s FOLDER [options] [-- OPTIONS OF WEAKSEG FIT, for --train]",
    )
    parser.add_argument("folder", type=Path, help="with images/, and classes.txt unless --classes are given")
    parser.add_argument("--classes", help="names for a new folder: background,horse (the first is class 0)")
    parser.add_argument("--run", type=Path, help="run directory or checkpoint: its predictions are shown")
    parser.add_argument("--train", type=int, metavar="N", help="train in the background after every N images are done")
    parser.add_argument("--runs", type=Path, help="folder of these runs (runs/annotate/NAME OF FOLDER)")
    parser.add_argument("--port", type=int, default=8765, help="the first port that is tried (8765)")
    words = [*arguments]
    at = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:at])
    options.fit = words[at + 1 :]
    if options.train is None and (options.runs or options.fit):
        parser.error("--runs and options of `weakseg fit` are for --train N")
    if options.train is not None and options.train < 1:
        parser.error("--train takes a number of images, 1 or more")
    if not 0 <= options.port <= 65535:
        parser.error("--port takes a number from 0 (any free port) to 65535")
    return options


def main(arguments: Sequence[str]) -> None:
    """`weakseg annotate`.

    Raises:
        FileNotFoundError, ValueError, OSError: the folder cannot be drawn in, there is no such run, no port is free.
    """
    options = parse(arguments)
    from experiments.annotate.server import Server

    desk = open_desk(options)
    try:
        with Server(desk, options.port) as server:
            drawings = desk.drawings
            print(
                f"{len(drawings.images)} images, {len(drawings.done())} done; classes: "
                f"{', '.join(drawings.class_names)}\nOpen {server.address} in a browser on this machine; Ctrl-C ends.",
                flush=True,
            )
            server.serve_forever()
    except KeyboardInterrupt:
        print(f"\nended; what was drawn is in {options.folder / 'masks'}", flush=True)
    finally:
        desk.close()


def open_desk(options: argparse.Namespace) -> Any:
    """What the page works with. Raises what `main` does."""
    from experiments.annotate.drawings import Drawings
    from experiments.annotate.predictions import Predictions
    from experiments.annotate.server import Desk
    from experiments.annotate.training import Training

    classes = [name.strip() for name in options.classes.split(",")] if options.classes is not None else None
    drawings = Drawings(options.folder, classes)
    predictions = training = None
    if options.run or options.train:
        predictions = Predictions(drawings.images, drawings.class_names)
    if predictions and options.run:
        predictions.use(options.run)
        assert predictions.run is not None
        photos = predictions.run.photos  # it knows more kinds of images: value ranges, further bands
        drawings.read = lambda path: photos.read(path)[..., :3]
    if predictions and options.train:
        checkpoint = options.run / "checkpoints" / "best.ckpt" if options.run and options.run.is_dir() else options.run
        runs = options.runs or Path("runs", "annotate", options.folder.resolve().name)
        training = Training(options.folder, runs, options.train, options.fit, checkpoint, predictions.use)
        if not options.run and training.weights:
            predictions.use(training.weights.parents[1])
    return Desk(drawings, predictions, training)
