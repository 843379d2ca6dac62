"""What only CPN has (Zhang et al., ICCV 2021, arXiv 2108.03852, as in the code Ferenas/CPN): complementary parts of an
image, and the losses between its maps and theirs.

Maps are (B, T, H, W) of the objects that `looked_at` names out of C = K - 1. Those of the others are 0 in every loss
[code], and are not made. `valid` (B, H, W) bool is False at padding, which is in no mean and no extreme value [ours;
the code has it in all].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.cam import EPS
from common.ops.distributed import global_mean
from common.ops.mixing import key_uniform
from common.ops.tensors import at_least_fp32


def hidden_segments(superpixels: Tensor, key: Tensor, seed: int = 0) -> Tensor:
    """Which segments of each image are hidden: of the ids 1..n, n its highest one, the `floor((n + 1) / 2)` that are
    drawn with replacement from 0..n, where 0 stands for none [code]: 39 % of them.

    Args:
        superpixels: (B, H, W) int64 from 1 on, 0 at padding.
        key: (B, 2) int64, (epoch, position) of each sample.
        seed: draws of different seeds are independent.

    Returns:
        (B, n + 1) bool of the batch's highest n, False for 0. An image of one segment hides none.
    """
    n = superpixels.flatten(1).amax(1)[:, None]
    most = int(n.max())
    draws = (most + 1) // 2
    drawn = (key_uniform(key, draws, seed) * (n + 1)).long()
    counts = (torch.arange(draws, device=n.device) < (n + 1) // 2) & (n > 1)
    table = torch.zeros(len(n), most + 1, dtype=torch.bool, device=n.device)
    table.scatter_(1, drawn.masked_fill(~counts, 0), True)
    table[:, 0] = False
    return table


def hidden_pixels(superpixels: Tensor, key: Tensor, seed: int = 0) -> Tensor:
    """The pixels (B, H, W) bool of `hidden_segments`."""
    table = hidden_segments(superpixels, key, seed)
    return table.gather(1, superpixels.flatten(1)).view(superpixels.shape)


def hidden_cells(size: tuple[int, int], cell: int, key: Tensor, seed: int = 0) -> Tensor:
    """The same by a grid: cells of `cell` x `cell` pixels, each hidden with probability 1/2 [code]. (B, *size) bool."""
    rows, columns = (torch.arange(side, device=key.device) // cell for side in size)
    across = -(-size[1] // cell)
    hidden = key_uniform(key, -(-size[0] // cell) * across, seed) < 0.5
    return hidden[:, rows[:, None] * across + columns]


def looked_at(tags: Tensor) -> tuple[Tensor, Tensor]:
    """The objects of each image that the losses look at: those with a tag, and one without, which stands for all of
    these in a maximum; more where another image of the batch has more.

    Args:
        tags: (B, C) bool.

    Returns:
        Their indices (B, T), and which of them have a tag (B, T).
    """
    most = min(int(tags.sum(1).max()) + 1, tags.shape[1])
    objects = tags.long().argsort(dim=1, descending=True, stable=True)[:, :most]
    return objects, tags.gather(1, objects)


def resized_mean(maps: Tensor, valid: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C) the means over the valid pixels of maps (B, C, h, w) resized to `size`, of which `valid` is the upper left
    part. Resizing is linear, so each cell has a weight, and no map is resized for this."""
    with torch.autocast(maps.device.type, enabled=False):
        rows, columns = (
            F.interpolate(torch.eye(n).to(maps)[None], to, mode="linear", align_corners=True)
            for n, to in zip(maps.shape[2:], size, strict=True)
        )
        height, width = valid.shape[1:]
        weight = rows[..., :height] @ valid.to(maps.dtype) @ columns[..., :width].mT
    counts = valid.flatten(1).sum(1).clamp(min=1)
    return (maps * (weight / counts[:, None, None])[:, None]).sum((2, 3))


def complementary(image: Tensor, hidden: Tensor, valid: Tensor, blank: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two images that show together what the first one shows: without the hidden pixels, and they alone.

    Args:
        image: (B, 3, H, W).
        hidden: (B, H, W) bool.
        valid: (B, H, W) bool.
        blank: what a hidden pixel is, broadcasting to the image: the colour that normalises to 0.

    Returns:
        Both images, and (B,) the visible share of the first one's valid pixels. Where all or nothing is hidden there is
        no pair: the share is then 1, and the second image blank.
    """
    shown = (~hidden & valid).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
    pair = (shown > 0) & (shown < 1)
    hidden = hidden & pair[:, None, None]
    first = torch.where(hidden[:, None], blank, image)
    return first, torch.where(hidden[:, None], image, blank), torch.where(pair, shown, 1)


def normalised(maps: Tensor, valid: Tensor) -> Tensor:
    """N: `relu(relu(a) - min - e) / (max - min + e)` of each image and class over its valid positions, e = 1e-5; 0 at
    padding, and where a map is constant. Gradient flows through the extreme values too [code]."""
    x, inside = at_least_fp32(maps).relu(), valid[:, None]
    high = x.masked_fill(~inside, 0).amax((2, 3), keepdim=True)
    low = torch.where(inside, x, high).amin((2, 3), keepdim=True)
    return (x - low - EPS).relu() / (high - low + EPS) * inside


def with_background(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, K, H, W): before the objects `1 - max` of them."""
    return torch.cat([1 - maps.amax(1, keepdim=True), maps], 1)


def keep_max(x: Tensor) -> Tensor:
    """The largest channel of each pixel with its value, all of equal ones, and 0 in the others; background included."""
    return torch.where(x == x.amax(1, keepdim=True), x, 0)


def top_mean(x: Tensor, valid: Tensor, share: float, channels: int, largest: bool = True) -> Tensor:
    """(B,) the mean of the `share` largest (or smallest) values of each image's valid pixels, rounded down, at least
    one; 0 without a valid pixel. Of `channels` channels x (B, <= channels, H, W) may lack some that are 0 and change no
    maximum."""
    counts = (share * channels * valid.flatten(1).sum(1)).long().clamp(min=1).tolist()
    inside = x.masked_fill(~valid[:, None], -torch.inf if largest else torch.inf).flatten(1)
    chosen = [
        one.topk(min(n, len(one)), largest=largest, sorted=False).values
        for one, n in zip(inside, counts, strict=True)
    ]  # fmt: skip
    return torch.stack([torch.where(one.isfinite(), one, 0).sum() / n for one, n in zip(chosen, counts, strict=True)])


def minimum_pool(refined: Tensor, tags: Tensor, valid: Tensor) -> Tensor:
    """(B,) the mean of `relu` of the lowest quarter of the positions of `max over objects of R t`, R before N [code].

    Args:
        refined: (B, T, H, W) maps R.
        tags: (B, T).
    """
    highest = (at_least_fp32(refined) * tags[:, :, None, None]).amax(1, keepdim=True).relu()
    return top_mean(highest, valid, 0.25, 1, largest=False)


def triplet_loss(a: list[Tensor], r: list[Tensor], valid: Tensor, pair: Tensor, objects: int) -> Tensor:
    """L_tcp: the maps of the parts add up to the image's. `mean |sg(A1 + A2) - A| + mean |R - R1 - R2|`.

        loss = triplet_loss([a, a1, a2], [r, r1, r2], valid, pair, 20)

    Args:
        a: A, A1, A2 (B, T, H, W): normalised activations, 0 without a tag, those of the parts times their share.
        r: R, R1, R2, the same of the refined maps.
        valid: (B, H, W) bool.
        pair: (B,) which images have parts.
        objects: C.

    Returns:
        Scalar, the mean over images, all C objects (also the absent ones) and valid pixels of the global batch.
    """
    inside = valid * pair[:, None, None]
    gap = ((a[1] + a[2]).detach() - a[0]).abs() + (r[0] - r[1] - r[2]).abs()
    return global_mean((gap.sum(1) * inside).sum(), inside.sum() * objects)


def gaps(whole: Tensor, part: Tensor, other: Tensor) -> Tensor:
    """`|D - R'|` (B, 1 + T, H, W) with background: what the map A of the image has and that of a part lacks, against
    the refined map R' of the other part. D has no gradient."""
    lacks = keep_max((with_background(whole) - with_background(part)).detach())
    return (lacks - with_background(other)).abs()


def region_loss(a: list[Tensor], r: list[Tensor], valid: Tensor, pair: Tensor, objects: int) -> Tensor:
    """L_cpcr: the mean over the highest fifth of `|D1 - R2|`, and of `|D2 - R1|`, of each image, absent objects too.

    D is no map but a difference, with a background near 0 where that of R is `1 - max`. So the loss lifts R to the gap
    and never lowers it (derived, see README.md).

        loss = region_loss([a, a1, a2], [r, r1, r2], valid, pair, 20)

    Args:
        a: A, A1, A2, see `triplet_loss`.
        r: R, R1, R2, the same.
        valid: (B, H, W) bool.
        pair: (B,) which images have parts.
        objects: C.

    Returns:
        Scalar, the mean over the images with parts of the global batch.
    """
    first, second = (top_mean(gaps(a[0], a[k], r[3 - k]), valid, 0.2, 1 + objects) for k in (1, 2))
    return global_mean(((first + second) * pair).sum(), pair.sum())
