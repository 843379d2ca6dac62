"""Which images form which batch: a function of (seed, epoch, position), never of rank, worker or batch composition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from lightning import Trainer


Order = Callable[[int, int, int], NDArray[np.int64]]


class Draw(NamedTuple):
    """What a training data set is asked for: image number `image` of its list, at `position` of `epoch`."""

    epoch: int
    position: int
    image: int


def epoch_order(length: int, count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Image indices of one epoch: whole permutations of range(length), one after the other, cut to `count`.

    A list that is shorter than the epoch (the labelled one, usually) is so repeated with a new order each time, and
    every image occurs floor or ceil of count/length times.
    """
    rounds = -(-count // length)
    orders = [np.random.default_rng([seed, epoch, turn]).permutation(length) for turn in range(rounds)]
    return np.concatenate(orders)[:count]


def class_chances(counts: NDArray[np.int64], temperature: float) -> NDArray[np.float64]:
    """How often each class is drawn: `P(c) ~ exp((1 - f_c) / T)`, f_c the share of class c among the labelled pixels.

    The rare class sampling of Hoyer et al., CVPR 2022 (DAFormer, arXiv 2111.14887), with T = 0.01 there. A class that
    no image has is never drawn.

    Args:
        counts: (N, K) labelled pixels of each class in each image.
        temperature: T, above 0.

    Returns:
        (K,), with sum 1.
    """
    pixels = counts.sum(0)
    exponent = np.where(pixels > 0, (1 - pixels / pixels.sum()) / temperature, -np.inf)
    chances: NDArray[np.float64] = np.exp(exponent - exponent.max())
    return chances / chances.sum()


def class_order(counts: NDArray[np.int64], temperature: float, count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Image indices of one epoch by rare-class sampling: for each position a class is drawn by `class_chances`, then
    one of the images with a labelled pixel of it, all alike. Ours: one pixel suffices, where the paper's code asks for
    3000."""
    draws = np.random.default_rng([seed, epoch, 0, 1]).random((count, 2))  # no `turn` of epoch_order has these words
    limits = class_chances(counts, temperature).cumsum()
    classes = np.searchsorted(limits / limits[-1], draws[:, 0], side="right")
    order = np.empty(count, np.int64)
    for number in np.unique(classes):
        images, chosen = np.flatnonzero(counts[:, number]), classes == number
        order[chosen] = images[(draws[chosen, 1] * len(images)).astype(np.int64)]
    return order


def group_order(tags: NDArray[np.bool_], group: int, count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Image indices (count, group) of one epoch: an anchor, and partners that share a tag with it.

    Anchors are the images with a tag, in the order of `epoch_order`. As in the code of Group-WSSS (Li et al., AAAI
    2021), partners have the anchor's tags exactly, as long as there are such, then one of its tags, drawn at random.
    Ours: by an index instead of random tries; from all other images, none twice where there are enough; a function of
    (seed, epoch, position) alone. An anchor without a partner fills its group itself.

    Args:
        tags: (N, C) bool, objects in each image; one at least has a tag.
        group: images of a group, at least 1.
    """
    tagged = np.flatnonzero(tags.any(1))
    anchors = tagged[epoch_order(len(tagged), count, seed, epoch)]
    sets, holders = tag_sets(tags), [np.flatnonzero(column) for column in tags.T]
    order = np.empty((count, group), np.int64)
    for position, anchor in enumerate(anchors.tolist()):
        rng = np.random.default_rng([seed, epoch, position, 2])  # no other draw has these words
        chosen: list[int] = []
        pools = [sets[tags[anchor].tobytes()]]
        pools += [holders[number] for number in rng.permutation(np.flatnonzero(tags[anchor]))]
        for pool in pools:
            if len(chosen) < group - 1:
                some = rng.choice(pool, min(len(pool), group), replace=False).tolist()
                chosen += [one for one in some if one != anchor and one not in chosen]
        chosen = chosen or [anchor]
        order[position] = [anchor, *(chosen[number % len(chosen)] for number in range(group - 1))]
    return order


def tag_sets(tags: NDArray[np.bool_]) -> dict[bytes, NDArray[np.int64]]:
    """The images of each set of tags that occurs, by the bytes of its row of (N, C) bool."""
    found: dict[bytes, list[int]] = {}
    for number, row in enumerate(tags):
        found.setdefault(row.tobytes(), []).append(number)
    return {row: np.array(numbers) for row, numbers in found.items()}


def group_counts(tags: NDArray[np.bool_]) -> dict[str, int]:
    """For the run's summary: `anchors`, those of them `alone` (no other image has one of their tags), and images
    `without_tags`, which are in no group; of tags (N, C)."""
    alone = tags.any(1) & ~(tags & (tags.sum(0) > 1)).any(1)
    return {"anchors": int(tags.any(1).sum()), "alone": int(alone.sum()), "without_tags": int((~tags.any(1)).sum())}


class EpochSampler(Sampler[list[Draw]]):
    """Batch sampler of one stream, sharded over ranks, which starts where an interrupted epoch stopped.

    A global batch is the run of positions [step * batch, (step + 1) * batch); each rank takes its contiguous part of
    it, so that images 2i and 2i+1 (mixing partners) stay together when the part is even.

    Args:
        length: number of images in the list.
        batch: images per step over all ranks.
        steps: batches per epoch.
        seed: of the order.
        trainer: tells epoch, rank and, after a resume, the batch to start at. None: one process, and the next
            epoch after each whole iteration.
        order: gives the image indices of an epoch by (count, seed, epoch); None: `epoch_order`. Of groups it gives a
            row each: `batch` counts groups, which stay whole.
    """

    def __init__(
        self, length: int, batch: int, steps: int, seed: int, trainer: Trainer | None = None, order: Order | None = None
    ) -> None:
        ranks = trainer.world_size if trainer else 1
        if length < 1:
            raise ValueError("the list of images is empty: check the folder, the split and `supervision`")
        if batch % ranks:
            raise ValueError(f"a batch of {batch} cannot be shared by {ranks} devices: choose a multiple of {ranks}")
        self.length, self.batch, self.steps, self.seed, self.trainer = length, batch, steps, seed, trainer
        self.order: Order = order or partial(epoch_order, length)
        self.finished = 0  # epochs

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Draw]]:
        # Read here, not at the first `next`: loader workers run ahead of the loop's counters.
        epoch, start = self._progress()
        return self._batches(epoch, start)

    def _progress(self) -> tuple[int, int]:
        if self.trainer is None:
            return self.finished, 0
        loop = self.trainer.fit_loop
        epoch: int = loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        # Lightning restores the counters but not the position in the loader. `processed`, not `ready`: a batch that
        # was fetched but not trained on must come again.
        done: int = loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        start = done if loop.restarting else 0
        epoch, start = (epoch + 1, 0) if start >= self.steps else (epoch, start)
        return (0 if self.trainer.overfit_batches else epoch), start  # type: ignore[attr-defined]  # the same ones again

    def _batches(self, epoch: int, start: int) -> Iterator[list[Draw]]:
        order = self.order(self.steps * self.batch, self.seed, epoch).reshape(self.steps * self.batch, -1)
        group = order.shape[1]
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        share = self.batch // ranks
        for step in range(start, self.steps):
            first = step * self.batch + rank * share
            # Counted with the last batch: of two streams, one is never asked for more.
            self.finished += step + 1 == self.steps
            yield [
                Draw(epoch, position * group + place, int(image))
                for position in range(first, first + share)
                for place, image in enumerate(order[position])
            ]
