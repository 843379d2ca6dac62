"""What only AA&LR-style learning has: the affinity loss with its scale weights, label reassignment, nGWP pooling.

Shapes: B images of h x w cells, K classes, D distances, E channels of an embedding. Labels are (B, h, w) int64, class
id or 255; padding must have 255. Half types are raised to float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.batch import IGNORE
from common.ops.distributed import all_sum, global_mean
from common.ops.refine import offsets
from common.ops.tensors import at_least_fp32, check_plane, one_hot

Metric = Literal["kl_channel", "kl", "dot"]
DISTANCES, MARGIN = (1, 2, 3), 3.0  # [code] of AAF
CLIP: dict[Metric, float] = {"kl_channel": 1e-4, "kl": 1e-6, "dot": 1e-6}
TEMPERATURE, SURE, MOMENTUM = 0.1, 0.5, 0.99  # [ours]
NEVER = -1e9  # logit of a class that is no candidate


# The affinity loss -------------------------------------------------------------------------------------------------


def affinity_groups(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    metric: Metric = "kl_channel",
    distances: Sequence[int] = DISTANCES,
    margin: float = MARGIN,
) -> tuple[Tensor, Tensor]:
    """Mean losses of pairs of near cells, by class, distance and kind of pair (Ke et al. 2018, arXiv 1803.10335, AAF).

        means, present = affinity_groups(logits, labels)
        loss = affinity_loss(means, present)

    A cell i is paired with each n of the 8 cells in the corners and middles of a (2d+1) x (2d+1) window around it that
    is inside the image. With p = softmax(logits), the neighbour's distribution first:

    | metric | at an edge | elsewhere | clip of p |
    |---|---|---|---|
    | `kl_channel` [code] | `max(0, margin - kl_c)` | `kl_c = p_n log(p_n/p_i) + (1-p_n) log((1-p_n)/(1-p_i))` | 1e-4 |
    | `kl` | `max(0, margin - KL)` | `KL = sum_c p_n log(p_n/p_i)` | 1e-6 |
    | `dot` | `-log(1 - p_i.p_n)` | `-log p_i.p_n` | 1e-6 |

    `kl_channel` counts every class c of a pair: it is an edge there if exactly one of the two labels is c. The others
    count a pair once: an edge if the labels differ.

    Args:
        logits: (B, K, h, w).
        labels: (B, h, w). A pair with 255 at either end is in no mean.
        weight: (B, h, w) confidence of the labels: a pair counts by the smaller one of its ends. None: all as 1.
        metric: see above.
        distances: d, in cells.
        margin: in nats.

    Returns:
        (K, D, 2) means of the global batch by class of the centre i, distance, and edge or not, 0 for an empty group;
        and (K,) bool, classes with a pair.
    """
    check_plane("labels", labels, logits)
    count, clip = logits.shape[1], CLIP[metric]
    p = at_least_fp32(logits).softmax(1)
    q = (1 - p).clamp(clip, 1)
    p = p.clamp(clip, 1)
    log_p, log_q = p.log(), q.log()
    known, index = labels != IGNORE, labels.masked_fill(labels == IGNORE, 0)[:, None]
    weight = torch.ones_like(p[:, 0]) if weight is None else weight.to(p)
    classes = one_hot(labels, count).to(p)

    def kl(p_n: Tensor, log_p_n: Tensor, q_n: Tensor, log_q_n: Tensor, at: Tensor) -> Tensor:
        """`kl_c` with c = `at`, the class of one end."""
        n = [one.gather(1, at) for one in (p_n, log_p_n, q_n, log_q_n)]
        return (n[0] * (n[1] - log_p.gather(1, at)) + n[2] * (n[3] - log_q.gather(1, at)))[:, 0]

    totals, counts = [], []
    for distance in distances:
        planes = (p, log_p, q, log_q, index, known, weight)
        sums: list[Tensor] = []
        for p_n, log_p_n, q_n, log_q_n, at, known_n, weight_n in zip(
            *(around(one, distance) for one in planes), strict=True
        ):
            pair = torch.minimum(weight, weight_n) * (known & known_n)
            same = (index == at)[:, 0]
            # Sums over classes first: what a product needs for its gradient are views, no planes of its own.
            if metric == "kl_channel":
                whole = (p_n * log_p_n).sum(1) + (q_n * log_q_n).sum(1) - (p_n * log_p).sum(1) - (q_n * log_q).sum(1)
                ends = [kl(p_n, log_p_n, q_n, log_q_n, one) for one in (index, at)]
                edge = sum((margin - one).relu() for one in ends)
                # Of two classes none is left; the difference would be rounding.
                inner = torch.where(same, whole, whole - ends[0] - ends[1] if count > 2 else 0.0)
                number = torch.where(same, float(count), float(count - 2))
                parts = [edge * ~same, inner, 2.0 * ~same, number]
            elif metric == "kl":
                whole = (p_n * log_p_n).sum(1) - (p_n * log_p).sum(1)
                parts = [(margin - whole).relu() * ~same, whole * same, ~same, same]
            else:
                dot = (p * p_n).sum(1)
                parts = [-(1 - dot).clamp(min=clip).log() * ~same, -dot.clamp(min=clip).log() * same, ~same, same]
            found = [pair * one for one in parts]
            sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
        of_class = [(classes * one[:, None]).sum((0, 2, 3)) for one in sums]
        totals.append(torch.stack(of_class[:2], 1))
        counts.append(torch.stack(of_class[2:], 1))
    total, number = torch.stack(totals, 1), torch.stack(counts, 1)
    return global_mean(total, number), all_sum(number.sum((1, 2))) > 0


def around(maps: Tensor, distance: int) -> Iterator[Tensor]:
    """Maps (..., h, w) as each of the 8 neighbours at a distance has them; 0 (False) outside."""
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (distance,) * 4)
    for dy, dx in offsets((distance,)):
        yield padded[..., distance + dy : distance + dy + height, distance + dx : distance + dx + width]


def affinity_loss(means: Tensor, present: Tensor, table: Tensor | None = None) -> Tensor:
    """`mean over the present classes c of sum_d (w_cd+ l_cd+ + w_cd- l_cd-)`, w the softmax over distances of `table`.

    Ascent of the table, as AAF's [code], moves the weight of a class to the distance at which it is worst.

    Args:
        means: (K, D, 2) of `affinity_groups`.
        present: (K,) bool.
        table: (K, D, 2); None: all distances weigh 1/D.
    """
    weight = torch.full_like(means, 1 / means.shape[1]) if table is None else table.softmax(1)
    return ((weight * means).sum((1, 2)) * present).sum() / present.sum().clamp(min=1)


# Label reassignment ------------------------------------------------------------------------------------------------


@torch.no_grad()
def centre_sums(embedding: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sums (K, E) of the embedding (B, E, h, w) over the cells of each class, and their numbers (K,)."""
    embedding = at_least_fp32(embedding)
    planes = one_hot(labels, num_classes).to(embedding)
    with torch.autocast(embedding.device.type, enabled=False):
        return torch.einsum("bkhw,behw->ke", planes, embedding), planes.sum((0, 2, 3))


@torch.no_grad()
def moved_centres(centres: Tensor, sums: Tensor, counts: Tensor, momentum: float = MOMENTUM) -> Tensor:
    """Unit vectors (K, E) after a step towards the mean of each class; one that was 0 begins at it. A class without a
    cell, or with a sum that is not finite, keeps its own, bit for bit."""
    mean = sums / counts.clamp(min=1)[:, None]
    old = centres.any(1, keepdim=True)
    new = F.normalize(torch.where(old, momentum * centres + (1 - momentum) * mean, mean), dim=1)
    return torch.where((counts > 0)[:, None] & torch.isfinite(sums).all(1, keepdim=True), new, centres)


def similarities(embedding: Tensor, centres: Tensor) -> Tensor:
    """Cosines (B, K, h, w) of unit vectors (B, E, h, w) and (K, E). Gradient flows into the embedding alone."""
    with torch.autocast(embedding.device.type, enabled=False):
        return torch.einsum("behw,ke->bkhw", at_least_fp32(embedding), centres.detach())


def reassigned(
    cosines: Tensor,
    labels: Tensor,
    candidates: Tensor,
    fixed: Tensor | None = None,
    temperature: float = TEMPERATURE,
    sure: float = SURE,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the class centres say of labels [ours]: `q = softmax(cosines / temperature)` over the candidates.

    With r the most probable class and a its margin over the second (1 without a second): a label stays where r agrees,
    becomes r where a > `sure`, and is 255 otherwise.

    Args:
        cosines: (B, K, h, w).
        labels: (B, h, w).
        candidates: (B, K) bool, classes that an image may show and whose centre there is. Where a label's own is none,
            nobody can say: 255.
        fixed: (B, h, w) bool, labels that stay in any case: people gave them.
        temperature: of q.
        sure: the margin above which a label is reassigned.

    Returns:
        log q (B, K, h, w), with gradient; the new labels (B, h, w); a (B, h, w).
    """
    logits = (at_least_fp32(cosines) / temperature).masked_fill(~candidates[:, :, None, None], NEVER)
    log_q = logits.log_softmax(1)
    best = log_q.detach().exp().topk(2, 1)
    margin, first = best.values[:, 0] - best.values[:, 1], best.indices[:, 0]
    known = labels != IGNORE
    index = labels.masked_fill(~known, 0)
    stays = first == index if fixed is None else (first == index) | fixed
    found = torch.where(stays, index, torch.where(margin > sure, first, IGNORE))
    own = candidates.gather(1, index.flatten(1)).view_as(index)
    return log_q, found.masked_fill(~(known & own), IGNORE), margin


def reassign_loss(logits: Tensor, log_q: Tensor, labels: Tensor, margin: Tensor) -> Tensor:
    """`mean of a (-log p_label - log q_label)` over the labelled cells of the global batch [ours]: a cross entropy of
    the corrected labels, and a pull of each embedding to its centre. No gradient flows into a.

    Args:
        logits: (B, K, h, w).
        log_q: (B, K, h, w), of `reassigned`.
        labels: (B, h, w), of `reassigned`.
        margin: (B, h, w), of `reassigned`.
    """
    log_p = at_least_fp32(logits).log_softmax(1)
    error = sum(F.nll_loss(one, labels, ignore_index=IGNORE, reduction="none") for one in (log_p, log_q))
    return global_mean((margin.detach() * error).sum(), (labels != IGNORE).sum())


# The classifier ----------------------------------------------------------------------------------------------------


def mask_probabilities(activations: Tensor) -> Tensor:
    """softmax over K = C + 1 of [1; a]: (B, K, h, w), at least float32, of activations (B, C, h, w)."""
    a = at_least_fp32(activations)
    return torch.cat([torch.ones_like(a[:, :1]), a], 1).softmax(1)


def ngwp_logits(activations: Tensor, share: Tensor) -> Tensor:
    """Normalised global weighted pooling (Araslanov & Roth 2020, arXiv 2005.08104) [code]: (B, C) image logits.

    `z_c = sum(a_c p_c) / (1 + sum p_c) + (1 - m_c)^3 log(0.01 + m_c)`, p of `mask_probabilities`, m its mean over the
    image. The second term pushes masks to cover something.

    Args:
        activations: (B, C, h, w).
        share: (B, 1, h, w), how much of a cell is no padding; it counts by that [ours].
    """
    a = at_least_fp32(activations)
    p = mask_probabilities(a)[:, 1:] * share
    total = p.sum((2, 3))
    m = total / share.sum((2, 3)).clamp(min=1e-6)
    return (a * p).sum((2, 3)) / (1 + total) + (1 - m) ** 3 * (0.01 + m).log()
