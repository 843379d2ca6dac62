"""The region discriminator of RRN (arXiv 2304.11539), as the compiled leftovers of the authors' code show it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.ops.tensors import at_least_fp32

STRIDE = 16  # pixels per cell of the last of the four convolutions


class RegionDiscriminator(nn.Module):
    """Judges per region whether class planes and image are a ground truth.

    Four convolutions (kernel 4, stride 2, padding 1; 64, 128, 256, 512 channels), each with LeakyReLU 0.2, the first
    three with channel dropout 0.5, and a head whose kernel and stride are the region's.

    Regions are `cell` = 16 region_conv pixels wide, judged from 16 region_conv + 30: 160 from 190 for 10 (the code's),
    80 from 110 for 5, 32 from 62 for 2.

    Args:
        channels: of the input, K + 3.
        region_conv: kernel and stride of the head.
    """

    def __init__(self, channels: int, region_conv: int) -> None:
        super().__init__()
        widths = (channels, 64, 128, 256, 512)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.head = nn.Conv2d(widths[-1], 1, region_conv, region_conv)

    def forward(self, planes: Tensor, dropout: bool = False) -> tuple[Tensor, Tensor]:
        """(B, channels, H, W) to the regions' logits (B, G, G'), positive for a ground truth, and the last
        convolution's features averaged over each region, (B, 512, G, G'); both at least float32.

        `dropout` says whether channels are dropped, in place of train mode: they are in its own training only.
        """
        planes = planes.to(self.head.weight.dtype)  # one-hot planes, where training is in float64
        for number, conv in enumerate(self.convs):
            planes = F.leaky_relu(conv(planes), 0.2)
            if number < 3:
                planes = F.dropout2d(planes, 0.5, training=dropout)
        logits = at_least_fp32(self.head(planes)[:, 0])
        return logits, F.adaptive_avg_pool2d(at_least_fp32(planes), (logits.shape[1], logits.shape[2]))

    def frozen(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, without gradient to the weights; one flows to `planes`, for the loss of who made them."""
        weights = {name: weight.detach() for name, weight in self.named_parameters()}
        result: tuple[Tensor, Tensor] = torch.func.functional_call(self, weights, (planes,))
        return result


def class_planes(probabilities: Tensor, valid: Tensor, image: Tensor) -> Tensor:
    """What a discriminator sees: probabilities and the image, both zero in padding [ours].

    The code scales the image by the extremes of its whole batch, so that a verdict depends on the batch; here it is not
    scaled [ours].

    Args:
        probabilities: (B, K, H, W).
        valid: (B, H, W) bool, False = padding.
        image: (B, C, H, W) in [0, 1], of which RGB is shown.

    Returns:
        (B, K + 3, H, W).
    """
    return torch.cat([at_least_fp32(probabilities), image[:, :3]], 1) * valid[:, None]
