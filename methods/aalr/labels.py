"""Labels of the pixels of one image, made within a training step from the maps of the classes that it is tagged with.

Each function takes the image (3, H, W), RGB in [0, 1] and not jittered, without padding, and maps of its n tagged
classes at any size, and returns labels (H, W) int64 (0 the background, 1 to n the classes in the order of the maps, 255
not sure) and the score (H, W) of the best class in [0, 1]. No function here has a gradient. n may be 0.

    labels, confidence = pamr_labels(balanced_scores(cam), image)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.batch import IGNORE
from common.ops.cam import IRN_CRF, background_score, irn_seeds, normalise_cam, psa_seeds
from common.ops.crf import dense_crf
from common.ops.refine import pamr, par

BACKGROUND = 0.3  # beside the CAMs of `balanced_scores` [ours]
TOP_BACKGROUND, TOP, LEAST = 0.7, 0.6, 0.2  # of 1-stage-wseg [code]
RRM_CRF: dict[str, Any] = {**IRN_CRF, "sigma_xy": 80.0, "sigma_rgb": 13.0}  # [code]; stride 4 is ours
CAUTIOUS, GENEROUS = 0.55, 0.35  # of AFA [code]


@torch.no_grad()
def balanced_scores(cam: Tensor) -> Tensor:
    """`[0.3; CAM]` divided by their sum [ours]: (n + 1, h, w) in [0, 1] of activations (n, h, w)."""
    cam = normalise_cam(cam[None])[0]
    scores = torch.cat([cam.new_full((1, *cam.shape[1:]), BACKGROUND), cam])
    return scores / scores.sum(0)


@torch.no_grad()
def pamr_labels(scores: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """1-stage-wseg's rule (Araslanov & Roth 2020, arXiv 2005.08104) [code]: scores (n + 1, h, w), refined by `pamr` and
    enlarged; a pixel is of a class whose score is above 0.6 of its own maximum in the image (background: 0.7 of its
    own) and above 0.2. If two are, or none is: 255."""
    refined = resized(pamr(image[None], scores[None]), image)[0]
    top = refined.new_tensor([TOP_BACKGROUND, *[TOP] * (len(refined) - 1)])
    passed = refined > (top * refined.amax((1, 2))).clamp(min=LEAST)[:, None, None]
    labels = torch.where(passed.sum(0) == 1, passed.int().argmax(0), IGNORE)
    return labels, refined.amax(0)


@torch.no_grad()
def crf_labels(cam: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """RRM's rule (Zhang et al. 2020, arXiv 1911.08039) [code] on activations (n, h, w).

    Objects are those of a dense CRF whose background scores `(1 - m)^4`, background is that of one with `(1 - m)^32`, m
    being the largest CAM. A label stays where the CRF gives it at least 0.8 and the CAM is sure too: of a class above
    0.1 and above its own 60th percentile where it is the largest, of background `(1 - m)^32 > 0.8`.
    """
    if not len(cam):
        return image.new_zeros(image.shape[1:], dtype=torch.int64), torch.ones_like(image[0])
    cam = normalise_cam(resized(cam[None], image))
    few, many = (torch.cat([background_score(cam, alpha, "power"), cam], 1)[0] for alpha in (4, 32))
    winner = many.argmax(0)
    sure = (winner == 0) & (many[0] > 0.8)
    for number, one in enumerate(cam[0], 1):
        own = one.masked_fill(winner != number, 0)
        ordered = own[own > 0.1].sort().values
        if len(ordered):
            sure |= own > ordered[int(0.6 * len(ordered))]
    few, many = (dense_crf(scores / scores.sum(0), image, **RRM_CRF) for scores in (few, many))
    confidence = torch.cat([many[:1], few[1:]]).amax(0)
    labels = psa_seeds(few, many)
    return labels.masked_fill(~sure | (confidence < 0.8), IGNORE), confidence


@torch.no_grad()
def two_pass_labels(cam: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """AFA's rule (Ru et al. 2022, arXiv 2203.02664) [code] on activations (n, h, w): twice a softmax of a background
    score and the CAMs, refined by `par` at half the image's size. Objects are those under 0.55, background is what is
    left under 0.35, and what lies between is 255."""
    size = [-(-side // 2) for side in image.shape[1:]]
    if not len(cam):
        return image.new_zeros(image.shape[1:], dtype=torch.int64), torch.ones_like(image[0])
    cam = normalise_cam(F.interpolate(cam[None], size, mode="bilinear", align_corners=False), "minmax")
    passes = [
        resized(par(image[None], torch.cat([background_score(cam, score), cam], 1).softmax(1)), image)[0]
        for score in (CAUTIOUS, GENEROUS)
    ]
    return irn_seeds(*(one.argmax(0) for one in passes)), passes[0].amax(0)


def resized(maps: Tensor, image: Tensor) -> Tensor:
    """Maps (1, C, h, w) at the size of an image (3, H, W)."""
    return F.interpolate(maps, image.shape[1:], mode="bilinear", align_corners=False)
