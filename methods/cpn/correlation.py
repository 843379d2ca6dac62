"""Maps refined by what their pixels look like (PCM, as in SEAM) and by the regions of the classes (PRCM)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.ops.cam import EPS
from common.ops.tensors import at_least_fp32
from methods.cpn.losses import with_background

WIDTHS = (64, 128)  # that the encoder's last two maps are reduced to
QUERY = 192


def guide(activations: Tensor, inside: Tensor) -> Tensor:
    """g (B, K, h, w): the activations divided by their largest one, background `1 - max`, and of the objects only the
    largest at each position. No gradient; `inside` (B, 1, h, w) bool, 0 elsewhere."""
    x = at_least_fp32(activations.detach()).relu() * inside
    x = (x - EPS).relu() / (x.amax((2, 3), keepdim=True) + EPS)
    g = with_background(x)
    g[:, 1:] = torch.where(x == x.amax(1, keepdim=True), x, 0)
    return g * inside


def pixel_correlation(g: Tensor, query: Tensor, inside: Tensor) -> Tensor:
    """PCM (B, K, N): each position gathers g (B, K, N) from those that look like it. The affinity is `relu(q'q)` of
    queries (B, D, N) of unit length, each column divided by its sum; `inside` (B, 1, N) bool."""
    q = query / (query.norm(dim=1, keepdim=True) + EPS)
    affinity = (q.mT @ q).relu() * inside.mT
    return g @ (affinity / (affinity.sum(1, keepdim=True) + EPS))


def region_correlation(query: Tensor, regions: Tensor, inside: Tensor, as_released: bool = False) -> Tensor:
    """PRCM (B, K, N): how much each position is like each class's region, a softmax over the positions.

    Args:
        query: (B, D, N), >= 0.
        regions: (B, D, K), what the key layer makes of the regions' features, >= 0.
        inside: (B, 1, N) bool; 0 elsewhere.
        as_released: the keys as the released code has them, which by a missing transpose mix all classes; for tests.
    """
    classes = regions.shape[2]
    key = regions.reshape(len(regions), classes, -1) if as_released else regions.mT
    similarity = key @ query / classes**0.5
    return similarity.masked_fill(~inside, -torch.inf).softmax(2).nan_to_num(0)


class Correlation(nn.Module):
    """R = PCM + PRCM g: the `refine` of a `CamNetwork`. Its input has no gradient, so R trains these layers alone.

    Args:
        channels: of the image and of the encoder's last two maps, or one where it has no more.
        prcm: with PRCM.
    """

    def __init__(self, channels: Sequence[int], prcm: bool) -> None:
        super().__init__()
        widths = WIDTHS[1 - len(channels) :]
        self.reduce = nn.ModuleList(nn.Conv2d(i, o, 1, bias=False) for i, o in zip(channels[1:], widths, strict=True))
        width = channels[0] + sum(widths)
        self.query = nn.Conv2d(width, QUERY, 1, bias=False)  # theta
        self.key = nn.Conv2d(width, QUERY, 1, bias=False) if prcm else None  # psi
        for weight in self.reduce.parameters():
            nn.init.kaiming_normal_(weight)
        for layer in (self.query, self.key):
            if layer is not None:
                nn.init.xavier_uniform_(layer.weight, gain=4)

    def forward(self, activations: Tensor, features: Sequence[Tensor], valid: Tensor | None) -> Tensor:
        """Activations (B, C, h, w), the normalised image and the encoder's maps, valid pixels -> R (B, C, h, w)."""
        size = activations.shape[2:]
        colors, *maps = (one.detach() for one in features)
        reduced = [layer(one).relu() for layer, one in zip(self.reduce, maps, strict=True)]
        resized = [F.interpolate(one, size, mode="bilinear", align_corners=True) for one in (colors, *reduced)]
        f = torch.cat([one.to(reduced[0].dtype) for one in resized], 1)
        inside = torch.ones_like(f[:, :1], dtype=torch.bool)
        if valid is not None:  # a cell with any valid pixel
            inside = F.adaptive_max_pool2d(valid[:, None].float(), size) > 0
        g, theta = guide(activations, inside).flatten(2), at_least_fp32(self.query(f)).flatten(2)
        inside = inside.flatten(2)
        with torch.autocast(g.device.type, enabled=False):
            refined = pixel_correlation(g, theta, inside)
            share = g.masked_fill(~inside, -torch.inf).softmax(2).nan_to_num(0)
            regions = at_least_fp32(f).flatten(2) @ share.mT
        if self.key is not None:
            key = at_least_fp32(self.key(regions[..., None])).relu()[..., 0]
            with torch.autocast(g.device.type, enabled=False):
                refined = refined + region_correlation(theta.relu(), key, inside) * g
        return (refined * inside).unflatten(2, size)[:, 1:]
