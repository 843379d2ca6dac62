"""The dynamic kernel, the loss over it, and the pairs that train its features.

*Dynamic Feature Regularized Loss for Weakly Supervised Semantic Segmentation* (Zhang et al. 2021, arXiv 2108.01296) is
known to us by its abstract: a regularised loss whose kernel takes shallow and deep features, recomputed in each step,
and a feature consistency head trained with it. Every formula here is [ours], built of Gated CRF (arXiv 1906.04651)
and the pair-wise heads in the same first author's public code.

Shapes: B images of h x w cells (pixels of the loss resolution), K classes, D channels of the embedding, n drawn cells.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.affinity import Kernel, positions, potts, stack_modalities, window_kernel
from common.ops.batch import IGNORE
from common.ops.distributed import global_mean
from common.ops.mixing import key_uniform
from common.ops.tensors import at_least_fp32, check_plane

KernelName = Literal["product", "sum", "shallow", "deep"]
EPS = 1e-6  # of the kernel's mass in an image without a related pair


def dynamic_kernel(
    colors: Tensor,
    embedding: Tensor | None,
    valid: Tensor,
    *,
    kind: KernelName = "product",
    sigma_xy: float = 6.0,
    sigma_rgb: float = 15.0,
    sigma_f: float = 0.5,
    eta: float = 0.5,
    radius: int = 5,
) -> Kernel:
    """The kernel in a window, centre excluded, constant (its gradient is stopped).

        kernel = dynamic_kernel(colors, head(decoded, colors.shape[-2:]), cells, sigma_xy=6.0)

    With `K_xy = exp(-|x_i - x_j|^2 / (2 sigma_xy^2))`, `K_s = K_xy exp(-|I_i - I_j|^2 / (2 sigma_rgb^2))` and
    `K_d = exp(-|f_i - f_j|^2 / (2 sigma_f^2)) = exp(-(1 - cos_ij) / sigma_f^2)`:

    - `product`: `K_s K_d`, one Gaussian over position, colour and embedding;
    - `sum`: `(1 - eta) K_s + eta K_xy K_d`;
    - `shallow`: `K_s`; `deep`: `K_xy K_d`.

    Args:
        colors: (B, C, h, w), in the unit of `sigma_rgb`.
        embedding: (B, D, h, w) of unit length in D; None where `kind` has no use for it.
        valid: (B, h, w) bool, False = padding: a pair with such an end counts for nothing.
        kind: see above.
        sigma_xy: bandwidth of position in cells.
        sigma_rgb: bandwidth of colour.
        sigma_f: bandwidth of the embedding's distance, in [0, 2].
        eta: share of the deep kernel with `sum`.
        radius: of the window, in cells.

    Raises:
        ValueError: no embedding, or a setting that `common.ops.affinity` refuses.
    """
    if embedding is None and kind != "shallow":
        raise ValueError(f"kernel {kind} needs an embedding")
    place = (positions(colors), sigma_xy)
    deep = [] if embedding is None else [(embedding, sigma_f)]

    def gaussian(*modalities: tuple[Tensor, float]) -> Kernel:
        return window_kernel(stack_modalities(modalities), valid, radius=radius)

    if kind == "product":
        return gaussian(place, (colors, sigma_rgb), *deep)
    if kind == "deep":
        return gaussian(place, *deep)
    shallow = gaussian(place, (colors, sigma_rgb))
    if kind == "shallow":
        return shallow
    relation = gaussian(place, *deep)
    return lambda values: (1 - eta) * shallow(values) + eta * relation(values)


def feature_regularizer(
    p: Tensor, kernel: Kernel, valid: Tensor, norm: Literal["pixels", "mass"] = "pixels"
) -> tuple[Tensor, Tensor]:
    """`sum_i sum_{j != i} v_i v_j K_ij (1 - p_i . p_j)`, over the cells or over the mass of the kernel.

        loss, mass = feature_regularizer(p, dynamic_kernel(colors, embedding, cells), cells)

    Args:
        p: (B, K, h, w) probabilities.
        kernel: see `dynamic_kernel`, with the same `valid`.
        valid: (B, h, w) bool.
        norm: `pixels`: divided by `sum_i v_i` of the global batch, as in Gated CRF. `mass`: by `sum_ij v_i v_j K_ij` of
            each image, so the share of disagreement in [0, 1]; then the mean over images with a related pair.

    Returns:
        The loss, zero with zero gradient without a valid cell; and the mass of the kernel per valid cell, for the logs.

    Raises:
        ValueError: unknown `norm`, or `valid` does not have the shape of the plane of `p`.
    """
    if norm not in ("pixels", "mass"):
        raise ValueError(f"norm must be pixels or mass, got {norm!r}")
    check_plane("valid", valid, p)
    cost, mass = potts(p, kernel)
    per_cell = global_mean(mass.sum(), valid.sum())
    if norm == "pixels":
        return global_mean(cost.sum(), valid.sum()), per_cell
    return global_mean((cost / mass.clamp(min=EPS)).sum(), (mass > 0).sum()), per_cell


def cell_labels(mask: Tensor, cells: Tensor, stride: int) -> Tensor:
    """The label of each cell: that of its labelled pixels if they agree, else none.

    Args:
        mask: (B, H, W) int64, class id or 255.
        cells: (B, h, w) bool, see `common.ops.tensors.valid_cells`; h = H // stride.
        stride: pixels per cell and direction.

    Returns:
        (B, h, w) int64, class id or 255; 255 in padding.
    """
    ids = mask[:, None].float()  # 255 = no label is above all ids
    lowest = -F.max_pool2d(-ids, stride)[:, 0]
    highest = F.max_pool2d(ids.masked_fill(ids == IGNORE, -1), stride)[:, 0]
    return lowest.long().masked_fill((lowest != highest) | ~cells, IGNORE)


def draw_cells(key: Tensor, labels: Tensor, first: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw up to `count` labelled cells of each image: those of `first` before the others, classes in turn.

    A function of (seed, key) alone. Each class gives one cell after the other in random order until it has no more, so
    that rare classes are drawn as often as frequent ones.

    Args:
        key: (B, 2) int64, (epoch, position) of each sample.
        labels: (B, N) int64, class id or 255 = not to be drawn.
        first: (B, N) bool.
        count: of cells per image, at most.
        seed: draws of different seeds are independent.

    Returns:
        Indices (B, n) with n = min(count, N), and their labels (B, n), 255 where an image has fewer cells.
    """
    number = labels.shape[1]
    order = key_uniform(key, number, seed).argsort(1)
    groups = (2 * labels + ~first).masked_fill(labels == IGNORE, 2 * IGNORE).gather(1, order)
    groups, by_group = groups.sort(dim=1, stable=True)
    place = torch.arange(number, device=labels.device).expand_as(groups)
    begins = torch.ones_like(groups, dtype=torch.bool)
    begins[:, 1:] = groups[:, 1:] != groups[:, :-1]
    turn = place - place.masked_fill(~begins, 0).cummax(1).values  # 0 for a group's first cell, 1 for its second, ...
    late = number * (groups % 2) + 2 * number * (groups == 2 * IGNORE)
    chosen = (turn + late).argsort(dim=1, stable=True)[:, :count]
    index = order.gather(1, by_group.gather(1, chosen))
    return index, labels.gather(1, index)


def pair_consistency(
    embedding: Tensor, labels: Tensor, margin: float = 0.5, tau: float = 0.1
) -> tuple[Tensor, dict[str, Tensor]]:
    """Binary cross entropy of "the same class?" over all pairs i < j of an image's drawn cells.

        loss, cosines = pair_consistency(embedding.flatten(2), labels.flatten(1))

    `s_ij = sigmoid((cos_ij - margin) / tau)`, and half of the mean of `-log s` over the pairs of one class plus half of
    the mean of `-log(1 - s)` over the others, each over the global batch; an empty group counts 0. At a margin of 0 a
    negative pair of cosine 0 would still cost log 2, and K classes cannot all have negative cosines.

    Args:
        embedding: (B, D, n) of unit length in D.
        labels: (B, n) int64, class id or 255 = no cell.
        margin: cosine at which s is 1/2.
        tau: temperature, in units of cosine.

    Returns:
        The loss in nats, and the mean cosines `cos_pos` and `cos_neg` of this rank's pairs (0 without one).
    """
    embedding = at_least_fp32(embedding)
    with torch.autocast(embedding.device.type, enabled=False):
        cosine = embedding.mT @ embedding
        drawn = labels != IGNORE
        pair = (drawn[:, :, None] & drawn[:, None]).triu(1)
        same = labels[:, :, None] == labels[:, None]
        logit = (cosine - margin) / tau
        cost = F.softplus(torch.where(same, -logit, logit))
        loss, logs = torch.zeros((), dtype=cosine.dtype, device=cosine.device), {}
        for name, group in (("cos_pos", pair & same), ("cos_neg", pair & ~same)):
            counted, number = group.to(cosine.dtype).flatten(), group.sum()
            loss = loss + global_mean(torch.dot(cost.flatten(), counted), number) / 2
            logs[name] = torch.dot(cosine.detach().flatten(), counted) / number.clamp(min=1)
    return loss, logs
