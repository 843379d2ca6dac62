"""Class activation maps (CAMs): their normalisation, a score for the background, labels and seeds.

A CAM of C object classes is (B, C, H, W); labels are K = C + 1 classes with 0 the background, and 255 where it is not
sure. The channels of classes that an image is not tagged with are 0 throughout. No function here has a gradient.

    cam = normalise_cam(activations, "max") * tags[:, 1:, None, None]
    labels = cam_labels(cam, background_score(cam, 0.15))
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from common.ops.batch import IGNORE
from common.ops.crf import dense_crf
from common.ops.tensors import at_least_fp32

Normalisation = Literal["max", "minmax", "max8"]
EPS = 1e-5
# Of IRN's label CRF [code], as far as they are not dense_crf's own; stride 4 is ours.
IRN_CRF = {
    "weight": 10.0,
    "sigma_xy": 50.0,
    "sigma_rgb": 5.0,
    "smooth_weight": 3.0,
    "smooth_sigma": 3.0,
}


@torch.no_grad()
def normalise_cam(cam: Tensor, kind: Normalisation = "max") -> Tensor:
    """Activations to [0, 1], each image and class by itself. x is `relu(cam)`.

    | kind | formula | used by [code] |
    |---|---|---|
    | `max` | x / (max x + 1e-5) | PSA, IRN, RRM |
    | `minmax` | relu(x - min x - 1e-5) / (max x - min x + 1e-5) | SEAM, CPN |
    | `max8` | x / max x, rounded to 1/255 | Group-WSSS |

    `max` keeps the response of the least active position, `minmax` sends it to 0, and a constant map with it. A map
    that is nowhere positive is 0.

    Args:
        cam: (B, C, H, W), any float type.

    Returns:
        (B, C, H, W), at least float32.
    """
    x = at_least_fp32(cam).relu()
    high = x.amax((2, 3), keepdim=True)
    if kind == "max":
        return x / (high + EPS)
    if kind == "minmax":
        low = x.amin((2, 3), keepdim=True)
        return (x - low - EPS).relu() / (high - low + EPS)
    if kind == "max8":
        return (255 * torch.where(high > 0, x / high, 0)).round() / 255
    raise ValueError(f"the normalisation of a CAM is max, minmax or max8, got {kind!r}")


@torch.no_grad()
def background_score(cam: Tensor, value: float, kind: Literal["constant", "power"] = "constant") -> Tensor:
    """What the background scores at each pixel, (B, 1, H, W): `value`, or (1 - m)^value with m the largest CAM.

    The power is PSA's [code]: 4 leaves little to the objects, 32 much. By itself it decides as a constant does; it
    differs once a CRF or a walk mixes the scores.
    """
    if kind == "constant":
        return torch.full_like(cam[:, :1], value)
    if kind == "power":
        return (1 - cam.amax(1, keepdim=True)) ** value
    raise ValueError(f"the background's score is constant or power, got {kind!r}")


def cam_labels(cam: Tensor, background: Tensor) -> Tensor:
    """(B, H, W) int64: the highest of the background's score (B, 1, H, W) and the CAM (B, C, H, W); of equal ones the
    background, then the lower class."""
    return torch.cat([background, cam], 1).argmax(1)  # the first of equal ones, as torch documents


@torch.no_grad()
def label_crf(
    labels: Tensor, image: Tensor, classes: Tensor | None = None, confidence: float = 0.7, **parameters: Any
) -> Tensor:
    """A label map through a dense CRF, in which each pixel's label is right with probability `confidence` (IRN [code]).

    The other classes share the rest. Time grows with the square of the number of pixels: `stride` 1 is the
    reference, for small images.

    Args:
        labels: (H, W) int64 without 255.
        image: (3, H, W), RGB in [0, 1].
        classes: (n,) ids that there may be, ascending: of IRN those of the image, also if they win nowhere in the map.
            None: those of the map.
        confidence: of each label.
        parameters: of `common.ops.crf.dense_crf`, in place of IRN's and of its stride 4.

    Returns:
        (H, W) int64, of these classes.
    """
    classes = labels.unique() if classes is None else classes
    index = torch.searchsorted(classes, labels)
    if len(classes) == 1:  # nothing to decide
        return labels.clone()
    other = (1 - confidence) / (len(classes) - 1)
    p = other + (confidence - other) * F.one_hot(index, len(classes)).movedim(2, 0).to(at_least_fp32(image).dtype)
    return classes[dense_crf(p, image, **{**IRN_CRF, **parameters}).argmax(0)]


def irn_seeds(cautious: Tensor, generous: Tensor) -> Tensor:
    """IRN's seeds of two label maps, one with a high background score (its objects are sure), one with a low one (its
    background is sure) [code]: an object of the cautious map; 0 where both say background; 255 elsewhere."""
    return torch.where((cautious == 0) & (generous != 0), IGNORE, cautious)


def psa_seeds(cautious: Tensor, generous: Tensor) -> Tensor:
    """PSA's seeds of CRF probabilities (..., K, H, W) under the background's powers 4 and 32 [code]: the class that
    wins under 4, background where it wins under 32 (also against a class), 255 elsewhere. int64 (..., H, W)."""
    sure, maybe = cautious.argmax(-3), generous.argmax(-3)
    return torch.where(maybe == 0, 0, torch.where(sure == 0, IGNORE, sure))
