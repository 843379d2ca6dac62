"""A Markov random field over labels, solved by graph cuts.

The total-variation paper compares its loss with an MRF applied after supervised training, but the kind of MRF and its
parameters are unknown to us. What is written here is this project's choice ([ours]), not a reproduction: a 4-neighbour
Potts model, with or without contrast-sensitive weights,

    E(l) = sum_i -log max(p_i(l_i), 1e-6) + mu * sum_{4-neighbour pairs} w_ij [l_i != l_j].

Energies are in nats; `mu` is what a unit of boundary (one pixel side, at weight 1) costs, and is tuned on held-out
images. It runs on the CPU, in float64, on one image at a time. Crop padding away first.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import Tensor

Weights = Literal["potts", "contrast"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Array = NDArray[Any] | Tensor
Bools = NDArray[np.bool_]

FLOOR = 1e-6
"""Smallest probability in the energy, so that an exact zero costs 13.8 nats and not infinity."""


def mrf(probabilities: Array, image: Array | None, *, mu: float, weights: Weights = "potts") -> Ints:
    """Labels of low MRF energy; kind of MRF and parameters are [ours], the paper's are unknown (see the module).

    K = 2 is the global optimum (one minimum cut; of equally good labellings, the one with the smallest class 1).
    K > 2 is alpha-expansion from the argmax: classes in turn, each move an exact cut, until none lowers the energy.
    Then no single expansion lowers it either, and it is at most the argmax's; it need not be the global optimum.
    "Exact" holds up to the integer capacities of the solver, see `_minimum_cut`. K = 1 and mu = 0 are the argmax.

    Args:
        probabilities: (K, H, W), numpy array or tensor, finite; values below 1e-6 count as 1e-6.
        image: (3, H, W), RGB in [0, 1], numpy array or tensor; read by contrast weights only, None will do for "potts".
        mu: cost in nats of a unit of boundary, at least 0.
        weights: "potts" is w = 1. "contrast" is w = exp(-|dI|^2 / s^2), |dI|^2 the squared RGB distance of the pair and
            s^2 twice its mean over the pairs of this image; 1 everywhere on a constant image.

    Returns:
        (H, W) int64 numpy array. Ties of the argmax go to the lowest class.
    """
    values, pair_weights = _prepare(probabilities, image, mu, weights)
    classes, height, width = values.shape
    labels: Ints = values.argmax(0).astype(np.int64).ravel()
    if classes == 1 or mu == 0:
        return labels.reshape(height, width)
    unary, pairs = _unary(values), _pairs(height, width)
    if classes == 2:  # all labellings are expansions of class 1 from "all 0": one cut will do
        return _expand(np.zeros_like(labels), 1, unary, pairs, pair_weights).reshape(height, width)
    energy = _energy(labels, unary, pairs, pair_weights)
    idle, alpha = 0, 0
    while idle < classes:  # the energy falls strictly, so this ends
        proposal = _expand(labels, alpha, unary, pairs, pair_weights)
        lower = _energy(proposal, unary, pairs, pair_weights)
        if lower < energy:
            labels, energy, idle = proposal, lower, 0
        idle, alpha = idle + 1, (alpha + 1) % classes  # the class that just moved has nothing left to gain: it counts
    return labels.reshape(height, width)


def check_parameters(mu: float, weights: str) -> None:
    if not (math.isfinite(mu) and mu >= 0):
        raise ValueError(f"mrf: mu must be finite and at least 0, got {mu}")
    if weights not in ("potts", "contrast"):
        raise ValueError(f"mrf: weights must be potts or contrast, got {weights!r}")


def check_shapes(probabilities: Array, image: Array | None) -> None:
    shape = tuple(probabilities.shape)
    picture = None if image is None else tuple(image.shape)
    if len(shape) != 3 or 0 in shape or picture not in (None, (3, *shape[1:])):
        raise ValueError(
            f"probabilities must be (K, H, W) and image (3, H, W) of the same size, got {shape} and {picture}"
        )


def _array(value: Array) -> Floats:
    # numpy has no bfloat16, so tensors are widened before they cross.
    return value.detach().cpu().double().numpy() if isinstance(value, Tensor) else np.asarray(value, dtype=np.float64)


def _prepare(probabilities: Array, image: Array | None, mu: float, weights: Weights) -> tuple[Floats, Floats]:
    """Checked probabilities (K, H, W), and mu * w_ij in the order of `_pairs`."""
    check_parameters(mu, weights)
    check_shapes(probabilities, image)
    values = _array(probabilities)
    if not np.isfinite(values).all():
        raise ValueError("mrf: probabilities must be finite")
    height, width = values.shape[1:]
    pair_weights = np.ones(height * (width - 1) + (height - 1) * width)
    if weights == "contrast":
        if image is None:
            raise ValueError("mrf: contrast weights need the image")
        picture = _array(image)
        squared = [(np.diff(picture, axis=axis) ** 2).sum(0).ravel() for axis in (2, 1)]
        distance = np.concatenate(squared)
        if not np.isfinite(distance).all():
            raise ValueError("mrf: image must be finite")
        if distance.any():
            pair_weights = np.exp(-distance / (2 * distance.mean()))
    return values, mu * pair_weights


def _unary(values: Floats) -> Floats:
    """(K, H * W) costs in nats."""
    return -np.log(np.maximum(values, FLOOR)).reshape(len(values), -1)


def _pairs(height: int, width: int) -> Ints:
    """(2, P) flat pixel indices of the 4-neighbour pairs: horizontal ones, then vertical ones."""
    pixel = np.arange(height * width).reshape(height, width)
    horizontal = np.stack([pixel[:, :-1].ravel(), pixel[:, 1:].ravel()])
    vertical = np.stack([pixel[:-1].ravel(), pixel[1:].ravel()])
    return np.concatenate([horizontal, vertical], axis=1)


def _energy(labels: Ints, unary: Floats, pairs: Ints, pair_weights: Floats) -> float:
    first, second = labels[pairs]
    return float(unary[labels, np.arange(labels.size)].sum() + pair_weights[first != second].sum())


def _expand(labels: Ints, alpha: int, unary: Floats, pairs: Ints, pair_weights: Floats) -> Ints:
    """The best labelling in which every pixel keeps its label (x = 0) or takes `alpha` (x = 1)."""
    stay = unary[labels, np.arange(labels.size)]
    gain = np.where(labels == alpha, -np.inf, unary[alpha] - stay)
    first, second = labels[pairs]
    # Different labels cost w unless both ends take alpha, which is w + w/2 [x_i != x_j] - w/2 (x_i + x_j).
    half = np.where(first != second, pair_weights / 2, 0.0)
    gain -= np.bincount(pairs[0], half, labels.size) + np.bincount(pairs[1], half, labels.size)
    return np.where(_minimum_cut(gain, pairs, pair_weights - half), alpha, labels)


def _minimum_cut(unary: Floats, pairs: Ints, capacity: Floats) -> Bools:
    """x in {0, 1}^N minimising sum_i unary_i x_i + sum_pairs capacity [x_i != x_j]; ties go to the fewest ones.

    An entry of `unary` may be -inf (x is 1). Pixels whose own cost outweighs all their pairs are decided first, which
    is exact and leaves the solver a small graph. It takes int32 capacities; the largest pair becomes 2^28 of them, so a
    cost is rounded by at most 2^-29 of the largest pair.
    """
    chosen = np.zeros(unary.size, dtype=np.bool_)
    nodes = np.arange(unary.size)  # the undecided ones; `unary` and `pairs` below speak of positions in this list
    while True:
        reach = np.bincount(pairs[0], capacity, nodes.size) + np.bincount(pairs[1], capacity, nodes.size)
        one = unary < -reach
        decided = one | (unary >= reach)
        chosen[nodes[one]] = True
        # A decided neighbour makes its pair a cost of one pixel alone: +c to differ from 0, -c to differ from 1.
        pull = np.where(one, -1.0, decided)
        unary = (
            unary
            + np.bincount(pairs[0], capacity * pull[pairs[1]], nodes.size)
            + np.bincount(pairs[1], capacity * pull[pairs[0]], nodes.size)
        )
        inside = ~(decided[pairs[0]] | decided[pairs[1]])
        left = ~decided
        position = np.cumsum(left) - 1
        pairs, capacity, unary = position[pairs[:, inside]], capacity[inside], unary[left]
        nodes = nodes[left]
        if decided.sum() <= 0.1 * decided.size:  # from here on the solver is faster (measured)
            break
    if nodes.size == 0:
        return chosen

    # A pair that outweighs all pixels together is never cut; the cap keeps the integers fine for any mu.
    capacity = np.minimum(capacity, np.abs(unary).sum())
    # One terminal edge per pixel: from the source (x = 1) if it gains, to the sink (x = 0) if it loses. The clip keeps
    # it in int32 and above the pixel's four pairs together (4 * 2^28), so that it still decides what it decided before.
    scale = 2.0**28 / max(float(capacity.max(initial=0.0)), 1e-200)
    link = np.rint(capacity * scale)
    terminal = np.rint(np.clip(unary * scale, -1.5 * 2**30, 1.5 * 2**30))
    sink, source = 0, 1
    pixel = np.arange(2, nodes.size + 2, dtype=np.int32)  # older SciPy solves graphs with int32 indices only
    first, second = pixel[pairs]
    to_source, to_sink = np.full_like(pixel, source), np.full_like(pixel, sink)
    # Each edge stands next to its reverse, of capacity 0 where there is none: the solver would insert it anyway.
    tail = np.concatenate([first, second, to_source, pixel, pixel, to_sink])
    head = np.concatenate([second, first, pixel, to_source, to_sink, pixel])
    nothing = np.zeros(nodes.size)
    amount = np.concatenate([link, link, np.maximum(-terminal, 0), nothing, np.maximum(terminal, 0), nothing])
    size = nodes.size + 2
    graph = csr_array((amount.astype(np.int32), (tail, head)), shape=(size, size))
    residual = graph - maximum_flow(graph, source, sink).flow
    residual.eliminate_zeros()
    reached = breadth_first_order(residual, source, return_predecessors=False)
    chosen[nodes[reached[reached >= 2] - 2]] = True
    return chosen
