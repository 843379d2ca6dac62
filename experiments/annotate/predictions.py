"""Predictions for the page: computed one by one in a thread of their own, when somebody asks for them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from experiments.annotate.drawings import to_runs
from experiments.annotate.suggestion import uncertainty
from experiments.runs.load import Run, load_run

KEPT = 32  # label maps; of the others only the uncertainty is


class Prediction(NamedTuple):
    """Runs of the label map (`drawings.to_runs`), the map's size, and how uncertain the model is."""

    runs: list[int]
    size: tuple[int, ...]
    uncertainty: float


class Predictions:
    """What a model makes of the images.

    Args:
        images: file of each image, by its id.
        class_names: those that the model must have.
    """

    def __init__(self, images: Mapping[str, Path], class_names: Sequence[str]) -> None:
        self.images, self.class_names = images, [*class_names]
        self.run: Run | None = None
        self.generation = 0  # of the model: the page asks again when it changes
        self.kept: OrderedDict[str, Prediction] = OrderedDict()
        self.scores: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.wanted: list[str] = []  # the last one first
        self.change = threading.Condition()
        self.ending = False
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def use(self, place: Any) -> None:
        """Take the model of a run directory or checkpoint from now on.

        Raises:
            FileNotFoundError, ValueError: there is none, or it knows other classes.
        """
        run = load_run(place)
        if [*run.class_names] != self.class_names:
            raise ValueError(
                f"{place} was trained on the classes {', '.join(run.class_names)}, but those of the folder are "
                f"{', '.join(self.class_names)}: give a run of the same classes in the same order"
            )
        if torch.cuda.is_available():
            run.model.to("cuda")
        with self.change:
            self.run, self.generation = run, self.generation + 1
            self.kept.clear()
            self.scores.clear()
            self.failed.clear()

    def ask(self, name: str) -> Prediction | None:
        """The prediction of an image; None: it is not there yet, and is next. Raises ValueError if it cannot be."""
        with self.change:
            if name in self.failed:
                raise ValueError(self.failed[name])
            if name in self.kept:
                self.kept.move_to_end(name)
                return self.kept[name]
            self.wanted = [one for one in self.wanted if one != name] + [name]
            self.change.notify()
            return None

    def score(self, names: Sequence[str]) -> dict[str, float]:
        """The uncertainty of those images for which it is known; the others' are computed, after what else is wanted.
        An image that cannot be read has none, 0."""
        with self.change:
            missing = [name for name in names if name not in self.scores and name not in self.wanted]
            self.wanted = missing[::-1] + self.wanted
            self.change.notify()
            return {name: self.scores[name] for name in names if name in self.scores}

    def stop(self) -> None:
        """End after the image at hand: Python cannot end while a thread computes."""
        with self.change:
            self.ending = True
            self.change.notify()
        self.thread.join()

    def _work(self) -> None:
        while True:
            with self.change:
                while not (self.ending or (self.wanted and self.run)):
                    self.change.wait()
                if self.ending or self.run is None:
                    return
                name, run, generation = self.wanted.pop(), self.run, self.generation
            try:
                labels, probabilities = run.predict(self.images[name], probabilities=True)
                found, reason = Prediction(to_runs(labels), labels.shape, uncertainty(probabilities)), ""
            except Exception as error:  # of this image; the thread goes on for the others
                found, reason = None, " ".join(str(error).split()) or type(error).__name__
            with self.change:
                if generation != self.generation:  # of a model of before
                    self.wanted.append(name)
                    continue
                self.scores[name] = found.uncertainty if found else 0.0
                if found is None:
                    self.failed[name] = reason
                    continue
                self.kept[name] = found
                while len(self.kept) > KEPT:
                    self.kept.popitem(last=False)
