"""Labels from class probabilities: argmax, a Markov random field (`common.ops.mrf`), or a dense CRF by mean field.

Everything runs on one image at a time: the MRF on the CPU, the dense CRF where the probabilities are. Crop padding away
first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from common.ops.crf import check_parameters as check_crf
from common.ops.crf import dense_crf
from common.ops.mrf import Weights, check_parameters, check_shapes, mrf


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
        check_parameters(self.mu, self.weights)
        sigmas = (self.crf_sigma_xy, self.crf_sigma_rgb, self.crf_smooth_sigma)
        check_crf((self.crf_weight, self.crf_smooth_weight), sigmas, self.crf_iterations, self.crf_stride)

    def crf(self) -> dict[str, Any]:
        """The arguments of `dense_crf`."""
        return {name.removeprefix("crf_"): value for name, value in vars(self).items() if name.startswith("crf_")}


def postprocess(probabilities: Tensor, image: Tensor, config: PostprocessConfig) -> Tensor:
    """Labels (H, W) int64 of one image, on the device of its probabilities (K, H, W).

    `image` is (3, H, W), RGB in [0, 1], not normalised; contrast weights and the dense CRF read it.
    """
    check_shapes(probabilities, image)
    if config.kind == "none":
        return probabilities.argmax(0)
    if config.kind == "dense_crf":
        return dense_crf(probabilities, image, **config.crf()).argmax(0)
    labels = mrf(probabilities, image, mu=config.mu, weights=config.weights)
    return torch.from_numpy(labels).to(probabilities.device)
