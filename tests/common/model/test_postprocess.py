"""The MRF against enumeration, dynamic programming and a slow loop written from the formula; so the dense CRF."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from common.model.postprocess import PostprocessConfig, postprocess
from common.ops.crf import dense_crf
from common.ops.mrf import _energy, _pairs, _prepare, _unary, mrf

WEIGHTS = ["potts", "contrast"]


def random_case(generator: np.random.Generator, classes: int, height: int, width: int) -> tuple[Any, Any]:
    """Probabilities of random sharpness, some with exact zeros and ones, and an image."""
    logits = generator.normal(size=(classes, height, width)) * generator.choice([0.3, 1.0, 4.0])
    values = np.exp(logits) / np.exp(logits).sum(0)
    hard = generator.random((height, width)) < generator.choice([0.0, 0.2])
    values = np.where(hard, np.arange(classes)[:, None, None] == values.argmax(0), values)
    return values, generator.random((3, height, width))


def mrf_energy(labels: Any, values: Any, image: Any, mu: float, weights: Any = "potts") -> float:
    """The energy in nats that the solver lowers, of any labelling (H, W)."""
    checked, pair_weights = _prepare(values, image, mu, weights)
    return _energy(np.asarray(labels).ravel(), _unary(checked), _pairs(*checked.shape[1:]), pair_weights)


def pair_list(height: int, width: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    right = [((y, x), (y, x + 1)) for y in range(height) for x in range(width - 1)]
    return right + [((y, x), (y + 1, x)) for y in range(height - 1) for x in range(width)]


def slow_weights(image: Any, weights: str) -> list[float]:
    pairs = pair_list(*image.shape[1:])
    distance = [sum((image[c][a] - image[c][b]) ** 2 for c in range(3)) for a, b in pairs]
    if weights == "potts" or sum(distance) == 0:
        return [1.0] * len(pairs)
    scale = 2 * sum(distance) / len(distance)
    return [math.exp(-d / scale) for d in distance]


def slow_energy(labels: Any, values: Any, image: Any, mu: float, weights: str) -> float:
    _, height, width = values.shape
    data = sum(
        -math.log(max(values[labels[y, x], y, x], 1e-6)) for y, x in itertools.product(range(height), range(width))
    )
    pairs = zip(pair_list(height, width), slow_weights(image, weights), strict=True)
    return data + mu * sum(w for (a, b), w in pairs if labels[a] != labels[b])


def energies(labellings: Any, values: Any, image: Any, mu: float, weights: str) -> Any:
    """Energies of many labellings (M, H, W) at once."""
    _, height, width = values.shape
    cost = -np.log(np.maximum(values, 1e-6))
    total = np.take_along_axis(cost[None], labellings[:, None], axis=1).sum((1, 2, 3))
    for (a, b), w in zip(pair_list(height, width), slow_weights(image, weights), strict=True):
        total += mu * w * (labellings[:, a[0], a[1]] != labellings[:, b[0], b[1]])
    return total


def all_labellings(classes: int, height: int, width: int) -> Any:
    count = height * width
    return (np.arange(classes**count)[:, None] // classes ** np.arange(count) % classes).reshape(-1, height, width)


def strip_optimum(values: Any, image: Any, mu: float, weights: str, allowed: Any = True) -> float:
    """The least energy of a strip of few rows, by dynamic programming over whole columns.

    `allowed` (K, H, W) restricts the labels of each pixel.
    """
    classes, height, width = values.shape
    states = all_labellings(classes, height, 1)[:, :, 0]
    cost = np.where(allowed, -np.log(np.maximum(values, 1e-6)), np.inf)
    weight = dict(zip(pair_list(height, width), slow_weights(image, weights), strict=True))
    best = np.zeros(len(states))
    for x in range(width):
        if x:
            across = np.array([weight[(y, x - 1), (y, x)] for y in range(height)])
            jump = mu * ((states[:, None] != states[None]) * across).sum(-1)
            best = (best[:, None] + jump).min(0)
        best = best + cost[states, np.arange(height), x].sum(1)
        for y in range(height - 1):
            best = best + mu * weight[(y, x), (y + 1, x)] * (states[:, y] != states[:, y + 1])
    return float(best.min())


@pytest.mark.parametrize("weights", WEIGHTS)
def test_energy_equals_the_slow_loop(weights: Any) -> None:
    generator = np.random.default_rng(0)
    for classes, height, width in [(1, 2, 3), (2, 5, 4), (3, 1, 6), (4, 6, 1), (5, 7, 3)]:
        values, image = random_case(generator, classes, height, width)
        labels = generator.integers(0, classes, (height, width))
        for mu in (0.0, 0.7, 12.0):
            expected = slow_energy(labels, values, image, mu, weights)
            assert mrf_energy(labels, values, image, mu, weights) == pytest.approx(expected, rel=1e-12)


def test_energy_by_hand() -> None:
    values = np.array([[[0.5, 0.25]], [[0.5, 0.75]]])
    image = np.zeros((3, 1, 2))
    assert mrf_energy(np.array([[0, 1]]), values, image, 2.0) == pytest.approx(math.log(2) - math.log(0.75) + 2.0)
    image[0, 0, 1] = 0.3  # one pair: its distance is the mean, so w = exp(-1/2)
    contrast = mrf_energy(np.array([[0, 1]]), values, image, 2.0, "contrast")
    assert contrast == pytest.approx(math.log(2) - math.log(0.75) + 2.0 * math.exp(-0.5))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_two_classes_reach_the_global_optimum(weights: Any) -> None:
    generator = np.random.default_rng(1)
    labellings = all_labellings(2, 4, 4)
    moved = 0
    for mu in (0.05, 0.3, 1.0, 3.0, 10.0):
        for _ in range(10):
            values, image = random_case(generator, 2, 4, 4)
            labels = mrf(values, image, mu=mu, weights=weights)
            least = energies(labellings, values, image, mu, weights).min()
            assert mrf_energy(labels, values, image, mu, weights) == pytest.approx(least, abs=1e-7)
            moved += bool((labels != values.argmax(0)).any())
    assert moved > 20  # the cases are not all trivial


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("height", "width"), [(5, 31), (1, 200), (1, 1), (1, 2), (3, 17)])
def test_two_classes_on_strips(weights: Any, height: int, width: int) -> None:
    generator = np.random.default_rng(2)
    for mu in (0.2, 1.0, 5.0):
        values, image = random_case(generator, 2, height, width)
        least = strip_optimum(values, image, mu, weights)
        upright = mrf(values, image, mu=mu, weights=weights)
        assert upright.shape == (height, width)
        assert mrf_energy(upright, values, image, mu, weights) == pytest.approx(least, abs=1e-6)
        values, image = values.swapaxes(1, 2), image.swapaxes(1, 2)
        turned = mrf(values, image, mu=mu, weights=weights)
        assert mrf_energy(turned, values, image, mu, weights) == pytest.approx(least, abs=1e-6)


@pytest.mark.filterwarnings("error")  # of a capacity beyond int32
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_few_sure_pixels_among_many_unsure_ones(weights: Any) -> None:
    """The pixel in the middle of the cross is open when its four neighbours are decided, and then stands alone."""
    generator = np.random.default_rng(13)
    image = np.zeros((3, 5, 24)) + np.indices((5, 24)).sum(0) % 2  # expensive pairs in the cross, cheap ones elsewhere
    image[:, [1, 3, 2, 2], [10, 10, 9, 11]] = 0
    for middle in (-3.9, -0.1, 3.9):
        for signs in [(1, 1, 1, 1), (-1, -1, -1, -1), (1, -1, 1, -1), (1, 1, 1, -1), (-1, -1, -1, 1)]:
            gain = generator.normal(scale=0.1, size=(5, 24))  # log p_1 - log p_0
            gain[[1, 3, 2, 2], [10, 10, 9, 11]] = 9.0 * np.array(signs)
            gain[2, 10] = middle
            values = np.stack([1 / (1 + np.exp(gain)), 1 / (1 + np.exp(-gain))])
            energy = mrf_energy(mrf(values, image, mu=1.0, weights=weights), values, image, 1.0, weights)
            assert energy == pytest.approx(strip_optimum(values, image, 1.0, weights), abs=1e-6)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_expansion_cannot_be_improved_by_one_expansion(weights: Any) -> None:
    generator = np.random.default_rng(3)
    labellings = all_labellings(3, 3, 3)
    subsets = all_labellings(2, 3, 3).astype(bool)
    optimal = cases = moved = 0
    for mu in (0.1, 0.5, 1.0, 2.0, 5.0):
        for _ in range(12):
            values, image = random_case(generator, 3, 3, 3)
            labels = mrf(values, image, mu=mu, weights=weights)
            energy = mrf_energy(labels, values, image, mu, weights)
            assert energy <= mrf_energy(values.argmax(0), values, image, mu, weights)
            for alpha in range(3):
                moves = np.where(subsets, alpha, labels)
                assert energy <= energies(moves, values, image, mu, weights).min() + 1e-7
            least = energies(labellings, values, image, mu, weights).min()
            assert least <= energy + 1e-9
            optimal += energy <= least + 1e-7
            moved += bool((labels != values.argmax(0)).any())
            cases += 1
    assert optimal >= 0.9 * cases
    assert moved > 0.4 * cases


@pytest.mark.parametrize("weights", WEIGHTS)
def test_expansion_on_strips(weights: Any) -> None:
    generator = np.random.default_rng(4)
    for mu in (0.3, 1.0, 3.0):
        for _ in range(5):
            values, image = random_case(generator, 5, 2, 30)
            labels = mrf(values, image, mu=mu, weights=weights)
            energy = mrf_energy(labels, values, image, mu, weights)
            least = strip_optimum(values, image, mu, weights)
            assert least - 1e-6 <= energy <= 1.05 * least + 1e-6
            current = np.arange(5)[:, None, None] == labels
            for alpha in range(5):
                move = strip_optimum(values, image, mu, weights, current | (np.arange(5) == alpha)[:, None, None])
                assert energy <= move + 1e-6


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_mu_zero_is_the_argmax_and_ties_go_to_the_lowest_class(classes: int) -> None:
    values, image = random_case(np.random.default_rng(5), classes, 5, 7)
    assert np.array_equal(mrf(values, image, mu=0.0), values.argmax(0))
    for height, width in [(5, 7), (1, 1)]:
        for mu in (0.0, 1.0):
            assert not mrf(np.full((classes, height, width), 1 / classes), None, mu=mu).any()


def test_one_class() -> None:
    labels = mrf(np.ones((1, 3, 4)), np.zeros((3, 3, 4)), mu=2.0)
    assert labels.dtype == np.int64
    assert np.array_equal(labels, np.zeros((3, 4)))


@pytest.mark.parametrize("mu", [1e3, 1e9])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("size", [(9, 8), (40, 50)])
def test_huge_mu_gives_the_best_constant(classes: int, size: tuple[int, int], mu: float) -> None:
    generator = np.random.default_rng(6)
    for _ in range(4):
        values, image = random_case(generator, classes, *size)
        labels = mrf(values, image, mu=mu)
        assert (labels == (-np.log(np.maximum(values, 1e-6))).sum((1, 2)).argmin()).all()


def test_contrast_on_a_constant_image_is_potts() -> None:
    for classes in (2, 3):
        values, _ = random_case(np.random.default_rng(7), classes, 8, 9)
        gray = np.full((3, 8, 9), 0.4)
        assert np.array_equal(mrf(values, gray, mu=1.0, weights="contrast"), mrf(values, gray, mu=1.0))
        labels = values.argmax(0)
        assert mrf_energy(labels, values, gray, 1.0, "contrast") == mrf_energy(labels, values, gray, 1.0)


def test_contrast_moves_the_boundary_to_the_image_edge() -> None:
    values = np.full((2, 6, 8), 0.5)
    values[0, :, :2], values[0, :, -2:] = 0.9, 0.1
    values[1] = 1 - values[0]
    image = np.zeros((3, 6, 8))
    image[:, :, 5:] = 1.0
    labels = mrf(values, image, mu=1.0, weights="contrast")
    assert np.array_equal(labels, np.broadcast_to(np.arange(8) >= 5, (6, 8)))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_swapping_two_classes_swaps_the_result(weights: Any) -> None:
    generator = np.random.default_rng(8)
    for mu in (0.3, 1.0, 4.0):
        values, image = random_case(generator, 2, 11, 6)
        labels, swapped = (mrf(v, image, mu=mu, weights=weights) for v in (values, values[::-1]))
        one, two = mrf_energy(labels, values, image, mu, weights), mrf_energy(swapped, values[::-1], image, mu, weights)
        assert one == pytest.approx(two, abs=1e-7)
        assert mrf_energy(1 - labels, values[::-1], image, mu, weights) == pytest.approx(one, rel=1e-12)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("classes", [2, 3])
def test_noisy_disc_is_denoised(classes: int, weights: Any) -> None:
    generator = np.random.default_rng(9)
    y, x = np.mgrid[:63, :48]
    truth = ((y - 30) ** 2 + (x - 24) ** 2 < 15**2).astype(int)
    truth[:10] = classes - 1
    image = np.stack([truth / 2.0] * 3) + 0.02 * generator.random((3, 63, 48))
    logits = 1.5 * (np.arange(classes)[:, None, None] == truth) + generator.normal(size=(classes, 63, 48))
    values = np.exp(logits) / np.exp(logits).sum(0)
    before = (values.argmax(0) == truth).mean()
    after = (mrf(values, image, mu=1.5, weights=weights) == truth).mean()
    assert before < 0.9
    assert after > 0.97


@pytest.mark.parametrize("classes", [2, 3])
def test_exact_zeros_and_ones(classes: int) -> None:
    truth = np.zeros((6, 6), dtype=np.int64)
    truth[2, 2] = 1  # a lone pixel: keeping it costs 4 mu, giving it up costs -log 1e-6 = 13.8
    values = (np.arange(classes)[:, None, None] == truth).astype(float)
    image = np.zeros((3, 6, 6))
    assert mrf_energy(truth, values, image, 3.0) == pytest.approx(12.0)
    assert mrf_energy(0 * truth, values, image, 3.0) == pytest.approx(6 * math.log(10))
    assert np.array_equal(mrf(values, image, mu=3.4), truth)
    assert not mrf(values, image, mu=3.5).any()


def test_vanishing_weights_do_not_break_the_solver() -> None:
    values = np.full((2, 1, 4), 0.5)
    image = np.zeros((3, 1, 4))
    for mu in (1e-320, 1e-100):
        assert not mrf(values, image, mu=mu).any()


def test_inputs_are_not_changed() -> None:
    values, image = random_case(np.random.default_rng(10), 3, 6, 5)
    before = values.copy(), image.copy()
    mrf(values, image, mu=1.0, weights="contrast")
    assert np.array_equal(values, before[0])
    assert np.array_equal(image, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_postprocess_takes_tensors(dtype: torch.dtype) -> None:
    values, image = random_case(np.random.default_rng(11), 3, 7, 9)
    tensor, picture = torch.tensor(values, dtype=dtype, requires_grad=True), torch.tensor(image, dtype=torch.float32)
    plain = postprocess(tensor, picture, PostprocessConfig())
    assert torch.equal(plain, tensor.argmax(0))
    smooth = postprocess(tensor, picture, PostprocessConfig(kind="mrf", mu=2.0, weights="contrast"))
    assert smooth.dtype == plain.dtype == torch.int64
    assert smooth.shape == (7, 9)
    same = mrf(tensor.detach().double().numpy(), picture.double().numpy(), mu=2.0, weights="contrast")
    assert np.array_equal(smooth.numpy(), same)
    assert mrf_energy(smooth, tensor, picture, 2.0) == mrf_energy(same, tensor, picture, 2.0)
    assert not torch.equal(smooth, plain)


@pytest.mark.parametrize(
    "bad",
    [
        *({"mu": -0.1}, {"mu": math.nan}, {"mu": math.inf}, {"kind": "crf"}, {"weights": "x"}),
        *({"crf_weight": -1.0}, {"crf_smooth_weight": math.nan}, {"crf_sigma_xy": 0.0}, {"crf_sigma_rgb": math.inf}),
        *({"crf_smooth_sigma": -3.0}, {"crf_iterations": -1}, {"crf_stride": 0}),
    ],
)
def test_config_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        PostprocessConfig(**bad)


@pytest.mark.parametrize(
    ("shape", "picture"),
    [((4, 5), (3, 4, 5)), ((2, 4, 5), (3, 5, 4)), ((2, 4, 5), (1, 4, 5)), ((2, 4, 5), (4, 5)), ((0, 4, 5), (3, 4, 5))],
)
def test_wrong_shapes_are_refused(shape: tuple[int, ...], picture: tuple[int, ...]) -> None:
    values, image = torch.zeros(shape), torch.zeros(picture)
    with pytest.raises(ValueError, match="same size, got"):
        mrf(values, image, mu=1.0)
    for kind in ("none", "mrf", "dense_crf"):
        with pytest.raises(ValueError, match="same size, got"):
            postprocess(values, image, PostprocessConfig(kind=kind))


def test_other_bad_arguments() -> None:
    values, image = random_case(np.random.default_rng(12), 2, 3, 4)
    assert np.array_equal(mrf(values, None, mu=1.0), mrf(values, image, mu=1.0))
    with pytest.raises(ValueError, match="need the image"):
        mrf(values, None, mu=1.0, weights="contrast")
    with pytest.raises(ValueError, match="probabilities must be finite"):
        mrf(np.where(values > 0.5, np.nan, values), image, mu=1.0)
    with pytest.raises(ValueError, match="image must be finite"):
        mrf(values, image * np.nan, mu=1.0, weights="contrast")
    with pytest.raises(ValueError, match="at least 0"):
        mrf(values, image, mu=-1.0)


# The dense CRF -------------------------------------------------------------------------------------------------------


def slow_mean_field(values: Any, image: Any, normalise: bool, iterations: int) -> Any:
    """The iteration as its formula stands, for weights 3 and 2, sigmas 4 pixels, 60 grey levels and 1.5 pixels."""
    _, height, width = values.shape
    pixels = list(itertools.product(range(height), range(width)))
    w = np.zeros((2, len(pixels), len(pixels)))
    for (i, a), (j, b) in itertools.product(enumerate(pixels), repeat=2):
        distance = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
        color = sum((255 * image[c][a] - 255 * image[c][b]) ** 2 for c in range(3))
        w[0, i, j] = math.exp(-distance / (2 * 4.0**2) - color / (2 * 60.0**2))
        w[1, i, j] = math.exp(-distance / (2 * 1.5**2))
    if normalise:
        root = np.sqrt(w.sum(2))
        w = w / root[:, :, None] / root[:, None]
    w[:, range(len(pixels)), range(len(pixels))] = 0  # a pixel sends itself nothing
    p = values.reshape(len(values), -1)
    q = p
    for _ in range(iterations):
        logits = np.log(np.maximum(p, 1e-6)) + 3 * q @ w[0] + 2 * q @ w[1]
        q = np.exp(logits - logits.max(0)) / np.exp(logits - logits.max(0)).sum(0)
    return q.reshape(values.shape)


SLOW = {"weight": 3.0, "sigma_xy": 4.0, "sigma_rgb": 60.0, "smooth_weight": 2.0, "smooth_sigma": 1.5, "stride": 1}


@pytest.mark.parametrize("normalise", [False, True])
def test_mean_field_equals_the_slow_loop(normalise: bool) -> None:
    for seed, iterations in [(0, 1), (1, 3)]:
        values, image = random_case(np.random.default_rng(seed), 3, 5, 6)
        expected = torch.from_numpy(slow_mean_field(values, image, normalise, iterations))
        tensors = torch.from_numpy(values), torch.from_numpy(image)
        found = dense_crf(*tensors, **SLOW, normalise=normalise, iterations=iterations)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        half = dense_crf(tensors[0].float(), tensors[1].float(), **SLOW, normalise=normalise, iterations=iterations)
        torch.testing.assert_close(half.double(), expected, rtol=1e-3, atol=1e-4)


def test_two_pixels_by_hand() -> None:
    """One iteration; the kernels between the two are exp(-1/2) and 1, their row sums 1 + exp(-1/2) and 2."""
    values = torch.tensor([[[0.9, 0.5]], [[0.1, 0.5]]], dtype=torch.float64)
    image = torch.zeros(3, 1, 2, dtype=torch.float64)
    w = math.exp(-0.5)
    options: dict[str, Any] = {"sigma_xy": 1.0, "smooth_weight": 0.0, "iterations": 1, "stride": 1}
    for normalise, message in ((False, 2 * w), (True, 2 * w / (1 + w))):
        q = dense_crf(values, image, weight=2.0, normalise=normalise, **options)
        assert float(torch.logit(q[0, 0, 1])) == pytest.approx(message * 0.8)
        assert float(torch.logit(q[0, 0, 0])) == pytest.approx(math.log(9))
    q = dense_crf(values, image, weight=0.0, smooth_sigma=1e6, **(options | {"smooth_weight": 3.0}))
    assert float(torch.logit(q[0, 0, 1])) == pytest.approx(3 * 0.8 / 2)


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_dense_crf_without_weight_iteration_or_neighbours_returns_the_probabilities(classes: int) -> None:
    values, image = (torch.from_numpy(x) for x in random_case(np.random.default_rng(3), classes, 5, 7))
    values = values.clamp(min=1e-3)
    values = values / values.sum(0)
    for options in ({"weight": 0.0, "smooth_weight": 0.0}, {"iterations": 0}):
        torch.testing.assert_close(dense_crf(values, image, **options), values)
    single = values[:, :1, :1]
    torch.testing.assert_close(dense_crf(single, image[:, :1, :1]), single)


def noisy_disc(height: int = 40, width: int = 46) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(9)
    y, x = np.mgrid[:height, :width]
    truth = ((y - 20) ** 2 + (x - 24) ** 2 < 12**2).astype(int)
    image = 0.3 + np.stack([truth / 3.0] * 3) + 0.02 * generator.random((3, height, width))
    logits = 1.5 * (np.arange(2)[:, None, None] == truth) + generator.normal(size=(2, height, width))
    values = np.exp(logits) / np.exp(logits).sum(0)
    return torch.from_numpy(values).float(), torch.from_numpy(image).float(), torch.from_numpy(truth)


def test_dense_crf_denoises_and_cells_change_little() -> None:
    values, image, truth = noisy_disc()
    assert (values.argmax(0) == truth).double().mean() < 0.9
    exact = dense_crf(values, image, sigma_xy=20.0, stride=1)
    assert (exact.argmax(0) == truth).double().mean() > 0.98
    torch.testing.assert_close(exact.sum(0), torch.ones(40, 46))
    for stride in (2, 4, 7):
        cells = dense_crf(values, image, sigma_xy=20.0, stride=stride)
        assert (cells.argmax(0) == exact.argmax(0)).double().mean() > 0.98


def test_a_pixel_unlike_every_cell_is_finite() -> None:
    values, image = torch.full((2, 8, 8), 0.5), torch.zeros(3, 8, 8)
    values[0, 0, 0], values[1, 0, 0] = 0.7, 0.3
    image[:, 0, 0] = 1.0
    q = dense_crf(values, image, sigma_rgb=1.0, smooth_weight=0.0, stride=4)
    torch.testing.assert_close(q[:, 0, 0], values[:, 0, 0])


def test_odd_pixels_do_not_speak_for_their_cells() -> None:
    """One pixel of another colour in each cell: what it says of itself must not become what the cell says."""
    image, values = torch.full((3, 32, 32), 0.5), torch.empty(2, 32, 32)
    values[0], values[1] = 0.6, 0.4
    image[:, 3::8, 3::8], values[0, 3::8, 3::8], values[1, 3::8, 3::8] = 0.0, 0.05, 0.95
    options = {"weight": 10.0, "sigma_xy": 20.0, "smooth_weight": 0.0}
    exact = dense_crf(values, image, **options, stride=1)
    cells = dense_crf(values, image, **options, stride=8)
    plain = torch.ones(32, 32, dtype=torch.bool)
    plain[3::8, 3::8] = False
    assert (exact.argmax(0)[plain] == 0).all()
    assert (cells.argmax(0)[plain] == 0).all()
    torch.testing.assert_close(cells[:, plain], exact[:, plain], atol=0.02, rtol=0)


def test_dense_crf_is_chosen_by_name_and_changes_nothing_it_is_given() -> None:
    values, image, _ = noisy_disc()
    before = values.clone(), image.clone()
    config = PostprocessConfig(kind="dense_crf", crf_sigma_xy=20.0, crf_iterations=4, crf_normalise=True)
    labels = postprocess(values.requires_grad_(), image, config)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, dense_crf(values, image, sigma_xy=20.0, iterations=4).argmax(0))
    assert not torch.equal(labels, values.argmax(0))
    assert torch.equal(values, before[0])
    assert torch.equal(image, before[1])
    assert config.crf().keys() == {*SLOW, "normalise", "iterations"}
    half = postprocess(values.detach().bfloat16(), image, config)
    assert (half == labels).double().mean() > 0.99


def test_dense_crf_swaps_classes_with_its_input() -> None:
    values, image, _ = noisy_disc()
    q, swapped = dense_crf(values, image), dense_crf(values.flip(0), image)
    torch.testing.assert_close(swapped, q.flip(0), rtol=1e-3, atol=1e-4)
