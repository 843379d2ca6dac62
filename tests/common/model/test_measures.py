"""Further metrics of a segmentation, each against its formula pixel by pixel."""

import math
import sys

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from common.model.measures import (
    boundary_counts,
    calibration_counts,
    calibration_error,
    miou_absent_zero,
    overlap_scores,
    surface_distances,
)
from common.model.metrics import SegmentationMetrics, scores
from common.ops.batch import IGNORE

K = 4


def scene(seed, height=19, width=23, void=0.1):
    """Blobs that agree in part: (labels, mask), both (H, W), with classes 0..2 of 4."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 3, 5, 6, generator=g)
    coarse[1] = 0.6 * coarse[0] + 0.4 * coarse[1]
    labels, mask = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").argmax(1)
    return labels, mask.masked_fill(torch.rand(mask.shape, generator=g) < void, IGNORE)


def confusion(labels, mask):
    metric = SegmentationMetrics(K)
    metric.update(labels[None], mask[None])
    return metric.confusion


def test_overlap_scores_match_their_formulas_and_torchmetrics():
    labels, mask = scene(0)
    found = overlap_scores(confusion(labels, mask))
    pairs = [(a, b) for a, b in zip(mask.flatten().tolist(), labels.flatten().tolist(), strict=True) if a != IGNORE]
    for k in range(3):
        both = sum(a == b == k for a, b in pairs)
        true, guessed = sum(a == k for a, _ in pairs), sum(b == k for _, b in pairs)
        assert found["dice"][k].item() == pytest.approx(200 * both / (true + guessed))
        assert found["precision"][k].item() == pytest.approx(100 * both / guessed)
        assert found["recall"][k].item() == pytest.approx(100 * both / true)
    assert all(one[3].isnan() for one in found.values())
    theirs = {"dice": multiclass_f1_score, "precision": multiclass_precision, "recall": multiclass_recall}
    for name, function in theirs.items():
        expected = 100 * function(labels.flatten(), mask.flatten(), K, average="none", ignore_index=IGNORE)
        torch.testing.assert_close(found[name][:3], expected[:3].double(), rtol=1e-5, atol=1e-4)


def test_a_class_that_occurs_and_is_never_found_has_precision_0():
    found = overlap_scores(torch.tensor([[5, 0, 0], [3, 0, 0], [0, 0, 0]]))
    assert found["precision"][:2].tolist() == [62.5, 0]
    assert found["recall"][:2].tolist() == [100, 0]
    assert all(one[2].isnan() for one in found.values())


def test_an_absent_class_counts_0_in_unimatchs_miou_only():
    counts = torch.tensor([[6, 2, 0], [0, 4, 0], [0, 0, 0]])
    assert scores(counts)["miou"].item() == pytest.approx(100 * (6 / 8 + 4 / 6) / 2)
    assert miou_absent_zero(counts).item() == pytest.approx(100 * (6 / 8 + 4 / 6) / 3)
    assert miou_absent_zero(counts[:2, :2]).item() == pytest.approx(scores(counts)["miou"].item())


def boundary(plane, steps):
    """Pixels of an object (H, W) with a pixel outside of it, or of the image, within `steps` rows and columns."""
    height, width = plane.shape
    return {
        (y, x)
        for y, x in np.argwhere(plane).tolist()
        if any(
            not (0 <= i < height and 0 <= j < width) or not plane[i, j]
            for i in range(y - steps, y + steps + 1)
            for j in range(x - steps, x + steps + 1)
        )
    }


@pytest.mark.parametrize(("seed", "ratio"), [(0, 0.02), (1, 0.07), (2, 0.12)])
def test_boundary_counts_match_the_formula(seed, ratio):
    labels, mask = scene(seed, void=0.02)
    steps = max(1, round(ratio * math.hypot(*mask.shape)))
    counts = boundary_counts(labels, mask, K, ratio)
    seen = labels.masked_fill(mask == IGNORE, IGNORE)
    for k in range(K):
        truth, found = boundary((mask == k).numpy(), steps), boundary((seen == k).numpy(), steps)
        assert counts[:, k].tolist() == [len(truth & found), len(truth | found)]
    assert 0 < counts[0].sum() < counts[1].sum()


def test_boundary_hand_values():
    """A square of 10 x 10 and one shifted by a column: the rings of width 1 share 9 pixels of two rows, no column."""
    mask = torch.zeros(20, 20, dtype=torch.int64)
    labels = mask.clone()
    mask[5:15, 4:14], labels[5:15, 5:15] = 1, 1
    assert boundary_counts(labels, mask, 2)[:, 1].tolist() == [18, 36 + 36 - 18]


@pytest.mark.parametrize("sharpness", [1.0, 200.0])  # 200: confidences of 1
def test_calibration_error_matches_the_formula_and_torchmetrics(sharpness):
    g = torch.Generator().manual_seed(1)
    probabilities = (sharpness * torch.randn(3, K, 9, 8, generator=g)).softmax(1)
    mask = torch.randint(K, (3, 9, 8), generator=g)
    mask[torch.rand(mask.shape, generator=g) < 0.2] = IGNORE
    counts = sum(calibration_counts(probabilities[i : i + 1], mask[i : i + 1]) for i in range(3))
    error = calibration_error(counts).item()
    theirs = multiclass_calibration_error(
        probabilities.movedim(1, -1).reshape(-1, K), mask.flatten(), K, n_bins=15, ignore_index=IGNORE
    )
    assert error == pytest.approx(100 * theirs.item(), rel=1e-4)
    bins = [[] for _ in range(16)]
    for b, y, x in (mask != IGNORE).nonzero().tolist():
        best = probabilities[b, :, y, x].max().item()
        right = probabilities[b, :, y, x].argmax().item() == mask[b, y, x].item()
        bins[math.floor(best * 15)].append((best, right))
    whole = sum(map(len, bins))
    expected = sum(abs(sum(r for _, r in one) - sum(c for c, _ in one)) / whole for one in bins)
    assert error == pytest.approx(100 * expected, rel=1e-4)


def border(plane):
    height, width = plane.shape
    around = ((-1, 0), (1, 0), (0, -1), (0, 1))
    return [
        (y, x)
        for y, x in np.argwhere(plane).tolist()
        if any(not (0 <= y + i < height and 0 <= x + j < width) or not plane[y + i, x + j] for i, j in around)
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_surface_distances_match_their_formulas(seed):
    pytest.importorskip("monai")
    labels, mask = scene(seed)
    found = surface_distances(labels, mask, K)
    seen = labels.masked_fill(mask == IGNORE, IGNORE)
    for k in range(3):
        truth, guess = border((mask == k).numpy()), border((seen == k).numpy())
        there = [min(math.dist(a, b) for b in truth) for a in guess]
        back = [min(math.dist(a, b) for b in guess) for a in truth]
        assert found[0, k].item() == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)
        assert found[1, k].item() == pytest.approx(np.mean([*there, *back]), rel=1e-5)
    assert found[:, 3].isnan().all()


def test_a_missed_class_has_the_images_diagonal():
    pytest.importorskip("monai")
    mask = torch.zeros(3, 4, dtype=torch.int64)
    mask[1, 1] = 1
    assert surface_distances(torch.zeros_like(mask), mask, 3)[:, 1].tolist() == [5.0, 5.0]


def test_without_monai_the_way_out_is_told(monkeypatch):
    for name in ["monai", *(name for name in sys.modules if name.startswith("monai."))]:
        monkeypatch.setitem(sys.modules, name, None)
    mask = torch.zeros(3, 4, dtype=torch.int64)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[medical\]', or leave hd95 and assd out"):
        surface_distances(mask, mask, 2)
