"""Labels from class probabilities: argmax, a Markov random field solved by graph cuts, or a dense CRF by mean field.

The total-variation paper compares its loss with an MRF applied after supervised training, but the kind of MRF and its
parameters are unknown to us. What is written here is this project's choice ([ours]), not a reproduction: a 4-neighbour
Potts model, with or without contrast-sensitive weights,

    E(l) = sum_i -log max(p_i(l_i), 1e-6) + mu * sum_{4-neighbour pairs} w_ij [l_i != l_j].

Energies are in nats; `mu` is what a unit of boundary (one pixel side, at weight 1) costs, and is tuned on held-out
images. The MRF runs on the CPU, in float64; the dense CRF (`dense_crf`) where the probabilities are. Everything runs on
one image at a time. Crop padding away first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import Tensor
from torch.nn import functional as F

from common.affinity import gaussian_sum, position_kernel, positions, stack_modalities
from common.losses import at_least_fp32

Weights = Literal["potts", "contrast"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Array = NDArray[Any] | Tensor
Bools = NDArray[np.bool_]

FLOOR = 1e-6
"""Smallest probability in the energy, so that an exact zero costs 13.8 nats and not infinity."""


@dataclass
class PostprocessConfig:
    """What turns probabilities into labels at test and predict time.

    Args:
        kind: "none" is argmax, "mrf" is `mrf`, "dense_crf" is `dense_crf`. The parameters are [ours], those of the
            papers are unknown.
        mu: MRF: cost in nats of a unit of boundary, at least 0 (0 is the argmax).
        weights: MRF: "potts", or "contrast" for boundaries that are cheaper along image edges.
        crf_weight: dense CRF: weight in nats of the kernel over position and colour.
        crf_sigma_xy: its bandwidth of position in pixels of the original image.
        crf_sigma_rgb: its bandwidth of colour in grey levels, of RGB in 0..255.
        crf_smooth_weight: dense CRF: weight in nats of the kernel over position alone.
        crf_smooth_sigma: its bandwidth in pixels.
        crf_iterations: of the mean field; 0 leaves the probabilities as they are.
        crf_normalise: divide each kernel by the roots of its row sums, so that weights do not depend on bandwidths.
        crf_stride: the first kernel sums over cells of stride x stride pixels; 1 is exact.

    Raises:
        ValueError: unknown `kind` or `weights`; a parameter out of its range.
    """

    kind: Literal["none", "mrf", "dense_crf"] = "none"
    mu: float = 1.0
    weights: Weights = "potts"
    crf_weight: float = 5.0
    crf_sigma_xy: float = 80.0
    crf_sigma_rgb: float = 13.0
    crf_smooth_weight: float = 3.0
    crf_smooth_sigma: float = 3.0
    crf_iterations: int = 10
    crf_normalise: bool = True
    crf_stride: int = 4

    def __post_init__(self) -> None:
        if self.kind not in ("none", "mrf", "dense_crf"):
            raise ValueError(f"postprocess: kind must be none, mrf or dense_crf, got {self.kind!r}")
        _check_parameters(self.mu, self.weights)
        _check_crf(**self.crf())

    def crf(self) -> dict[str, Any]:
        """The arguments of `dense_crf`."""
        return {name.removeprefix("crf_"): value for name, value in vars(self).items() if name.startswith("crf_")}


def postprocess(probabilities: Tensor, image: Tensor, config: PostprocessConfig) -> Tensor:
    """Labels of one image.

    Args:
        probabilities: (K, H, W), any float type and device.
        image: (3, H, W), RGB in [0, 1], not normalised; read by contrast weights and the dense CRF only.
        config: argmax, MRF or dense CRF.

    Returns:
        (H, W) int64 on the device of `probabilities`.

    Raises:
        ValueError: wrong shapes, or (MRF) probabilities that are not finite.
    """
    _check_shapes(probabilities, image)
    if config.kind == "none":
        return probabilities.argmax(0)
    if config.kind == "dense_crf":
        return dense_crf(probabilities, image, **config.crf()).argmax(0)
    labels = mrf(probabilities, image, mu=config.mu, weights=config.weights)
    return torch.from_numpy(labels).to(probabilities.device)


@torch.no_grad()
def dense_crf(
    probabilities: Tensor,
    image: Tensor,
    *,
    weight: float = 5.0,
    sigma_xy: float = 80.0,
    sigma_rgb: float = 13.0,
    smooth_weight: float = 3.0,
    smooth_sigma: float = 3.0,
    iterations: int = 10,
    normalise: bool = True,
    stride: int = 4,
) -> Tensor:
    """Mean field of a dense CRF with Potts costs: `Q <- softmax(log p + w1 (W1 Q - Q) + w2 (W2 Q - Q))`, from Q = p.

    W1 is a Gaussian kernel over position and colour, W2 one over position; a pixel sends itself nothing. The iteration
    is the standard one; its parameters are [ours], to be tuned on held-out images: the papers that use it as
    post-processing take those of another, unknown to us. Time grows with the square of the number of pixels.

    Args:
        probabilities: (K, H, W), any float type; values below 1e-6 count as 1e-6. float64 is exact and slow.
        image: (3, H, W), RGB in [0, 1].
        weight: w1 in nats. Without `normalise` it weighs a sum over thousands of pixels and must be as much smaller.
        sigma_xy: of W1, in pixels of this image.
        sigma_rgb: of W1, in grey levels, of RGB in 0..255.
        smooth_weight: w2 in nats.
        smooth_sigma: of W2, in pixels.
        iterations: of the mean field; 0 returns p.
        normalise: each kernel is `D^-1/2 W D^-1/2` with D its row sums, so that weights do not depend on bandwidths.
        stride: W1 sums over cells of stride x stride pixels, at their mean position and colour, stride^2 times faster;
            1 is exact.

    Returns:
        Q (K, H, W), probabilities in at least float32.

    Raises:
        ValueError: wrong shapes, or a parameter out of its range.
    """
    _check_shapes(probabilities, image)
    _check_crf(weight, sigma_xy, sigma_rgb, smooth_weight, smooth_sigma, iterations, normalise, stride)
    p = at_least_fp32(probabilities)[None]
    unary = p.clamp(min=FLOOR).log()
    colors = 255 * image[None].to(p.dtype)
    features = stack_modalities([(positions(colors), sigma_xy), (colors, sigma_rgb)])
    cells = F.avg_pool2d(features, stride, ceil_mode=True, count_include_pad=False)

    def appearance(values: Tensor) -> Tensor:
        summed = F.avg_pool2d(values, stride, ceil_mode=True, divisor_override=1)
        f, c, v = (maps.flatten(2).mT for maps in (features, cells, summed))
        return gaussian_sum(f, c, v).mT.unflatten(2, values.shape[2:])

    one, q = torch.ones_like(p[:, :1]), p
    # What a pixel sends itself through its cell; 1 at stride 1, where cells are pixels.
    mine = cells.repeat_interleave(stride, 2).repeat_interleave(stride, 3)[..., : p.shape[2], : p.shape[3]]
    itself = (-0.5 * (features - mine).square().sum(1, keepdim=True)).exp()
    kernels = [(weight, appearance, itself), (smooth_weight, position_kernel(smooth_sigma), one)]
    used = [(w, k, own, k(one).clamp(min=1).rsqrt() if normalise else one) for w, k, own in kernels if w > 0]
    for _ in range(iterations):
        messages = [w * scale * (kernel(scale * q) - own * scale * q) for w, kernel, own, scale in used]
        q = torch.stack([unary, *messages]).sum(0).softmax(1)
    return q[0]


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

    Raises:
        ValueError: wrong shapes, probabilities or image not finite, `mu` negative, unknown `weights`.
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


def mrf_energy(
    labels: Array, probabilities: Array, image: Array | None, mu: float, weights: Weights = "potts"
) -> float:
    """Energy E(labels) in nats, as in the module's docstring; arguments and errors as in `mrf`.

    Args:
        labels: (H, W) integers in 0..K-1, numpy array or tensor.
    """
    values, pair_weights = _prepare(probabilities, image, mu, weights)
    chosen = _array(labels).astype(np.int64)
    if chosen.shape != values.shape[1:] or chosen.min() < 0 or chosen.max() >= len(values):
        raise ValueError(f"mrf: labels must be {values.shape[1:]} in 0..{len(values) - 1}, got {chosen.shape}")
    return _energy(chosen.ravel(), _unary(values), _pairs(*values.shape[1:]), pair_weights)


def _check_parameters(mu: float, weights: str) -> None:
    if not (math.isfinite(mu) and mu >= 0):
        raise ValueError(f"mrf: mu must be finite and at least 0, got {mu}")
    if weights not in ("potts", "contrast"):
        raise ValueError(f"mrf: weights must be potts or contrast, got {weights!r}")


def _check_crf(
    weight: float,
    sigma_xy: float,
    sigma_rgb: float,
    smooth_weight: float,
    smooth_sigma: float,
    iterations: int,
    normalise: bool,
    stride: int,
) -> None:
    weights, sigmas = (weight, smooth_weight), (sigma_xy, sigma_rgb, smooth_sigma)
    if not all(math.isfinite(value) for value in (*weights, *sigmas)) or min(weights) < 0 or min(sigmas) <= 0:
        raise ValueError(f"dense_crf: weights must be >= 0 and sigmas > 0, all finite, got {weights} and {sigmas}")
    if iterations < 0 or stride < 1:
        raise ValueError(f"dense_crf: iterations must be >= 0 and stride >= 1, got {iterations} and {stride}")


def _check_shapes(probabilities: Array, image: Array | None) -> None:
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
    _check_parameters(mu, weights)
    _check_shapes(probabilities, image)
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
    # Each edge stands beside its reverse, of capacity 0 where there is none: the solver would insert it anyway.
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
