"""Gaussian kernels: against loops written from the formula, symmetry, padding, accuracy, gradients, memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common.ops import affinity
from common.ops.affinity import (
    Kernel,
    attention_sum,
    chunked_sum,
    dense_kernel,
    gaussian_sum,
    position_kernel,
    positions,
    stack_modalities,
    window_kernel,
    window_offsets,
)

Build = Callable[[Tensor, Tensor | None], Kernel]
KERNELS: dict[str, Build] = {
    "dense": dense_kernel,
    "window": lambda f, v: window_kernel(f, v, radius=2),
    "position": lambda f, v: position_kernel(1.7, v),
}
every_kernel = pytest.mark.parametrize("name", KERNELS)


def example(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Image (2, 3, 5, 6) in [0, 1], values (2, 4, 5, 6) and a ragged valid plane."""
    g = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 3, 5, 6, generator=g, dtype=torch.float64).to(dtype)
    values = torch.randn(2, 4, 5, 6, generator=g, dtype=torch.float64).to(dtype)
    valid = torch.rand(2, 5, 6, generator=g) < 0.8
    valid[0, :, -1] = False
    return image, values, valid


def features_of(image: Tensor) -> Tensor:
    return stack_modalities([(positions(image), 2.5), (255 * image, 90.0)])


def slow_weight(name: str, image: Tensor, a: tuple[int, int], b: tuple[int, int]) -> float:
    """W of two pixels of an image (3, H, W), from the formula."""
    dy, dx = abs(a[0] - b[0]), abs(a[1] - b[1])
    if name == "position":
        return math.exp(-(dy**2 + dx**2) / (2 * 1.7**2))
    if name == "window" and ((dy, dx) == (0, 0) or max(dy, dx) > 2):
        return 0.0
    color = sum((255 * float(image[c][a]) - 255 * float(image[c][b])) ** 2 for c in range(3))
    return math.exp(-(dy**2 + dx**2) / (2 * 2.5**2) - color / (2 * 90.0**2))


def slow(name: str, image: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    out = torch.zeros_like(values)
    pixels = [(i, j) for i in range(values.shape[2]) for j in range(values.shape[3])]
    for n in range(len(values)):
        for a in pixels:
            for b in pixels:
                if valid[n][a] and valid[n][b]:
                    out[(n, slice(None), *a)] += slow_weight(name, image[n], a, b) * values[(n, slice(None), *b)]
    return out


# ---------------------------------------------------------------------------------------------- features


def test_positions_are_pixel_coordinates() -> None:
    found = positions(torch.zeros(2, 3, 4, 5))
    assert found.shape == (2, 2, 4, 5)
    assert found[1, :, 3, 2].tolist() == [3.0, 2.0]
    assert positions(torch.zeros(1, 1, 2, 2, dtype=torch.float64)).dtype == torch.float64
    assert positions(torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)).dtype == torch.float32


def test_features_are_maps_over_their_sigmas_constant_and_copied() -> None:
    image = torch.rand(1, 3, 4, 5, requires_grad=True)
    before = image.detach().clone()
    features = stack_modalities([(positions(image), 4.0), (255 * image, 15.0)])
    assert features.shape == (1, 5, 4, 5)
    assert not features.requires_grad
    torch.testing.assert_close(features[:, :2], positions(image) / 4)
    torch.testing.assert_close(features[:, 2:], image.detach() / 0.0588, rtol=1e-3, atol=0)  # 15 grey levels
    features.zero_()
    assert torch.equal(image, before)


@pytest.mark.parametrize("sigmas", [[], [0.0], [-1.0], [1.0, math.inf], [math.nan]])
def test_bad_sigmas_are_refused(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="positive sigmas"):
        stack_modalities([(torch.zeros(1, 2, 3, 3), sigma) for sigma in sigmas])


# ---------------------------------------------------------------------------------------------- kernels


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kernels_equal_the_loop(name: str, dtype: torch.dtype) -> None:
    image, values, valid = example(dtype)
    found = KERNELS[name](features_of(image), valid)(values)
    expected = slow(name, image.double(), values.double(), valid)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    whole = KERNELS[name](features_of(image), None)(values)
    expected = slow(name, image.double(), values.double(), torch.ones_like(valid))
    torch.testing.assert_close(whole.double(), expected, rtol=tolerance, atol=tolerance)


@every_kernel
def test_kernels_are_symmetric_and_their_gradient_is_themselves(name: str) -> None:
    image, values, valid = example()
    kernel = KERNELS[name](features_of(image), valid)
    other = torch.randn(values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close((other * kernel(values)).sum(), (kernel(other) * values).sum(), rtol=1e-12, atol=0)
    v = values.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad((other * kernel(v)).sum(), v)[0], kernel(other))
    # Row by row: the matrix itself.
    basis = torch.eye(30, dtype=torch.float64).reshape(30, 1, 5, 6)
    matrix = torch.stack([kernel(one.expand(2, 1, 5, 6)).flatten(1) for one in basis], 1)
    torch.testing.assert_close(matrix, matrix.mT, rtol=1e-12, atol=1e-15)
    assert matrix.min() >= 0
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    assert torch.equal(diagonal, (valid.flatten(1) * (0.0 if name == "window" else 1.0)).double())


@every_kernel
def test_gradcheck(name: str) -> None:
    image, values, valid = example()
    kernel = KERNELS[name](features_of(image)[:1, :, :3, :4], valid[:1, :3, :4])
    values = values[:1, :2, :3, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: (kernel(v) * v).sum(), (values,))
    assert torch.autograd.gradgradcheck(lambda v: (kernel(v) * v.square()).sum(), (values,))


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_is_neither_read_nor_written(name: str, dtype: torch.dtype) -> None:
    image, values, valid = example(dtype)
    valid[1] = False  # nothing at all
    noise = torch.full_like(image, math.nan)
    spoiled = features_of(torch.where(valid[:, None], image, noise))
    kernel, same = KERNELS[name](features_of(image), valid), KERNELS[name](spoiled, valid)
    v = values.clone().requires_grad_()
    other = torch.where(valid[:, None], values, math.nan).requires_grad_()
    assert torch.equal(kernel(v), same(other))
    assert (kernel(v).movedim(1, -1)[~valid] == 0).all()
    gradients = [torch.autograd.grad(k(x).square().sum(), x)[0] for k, x in ((kernel, v), (same, other))]
    assert torch.equal(*gradients)
    assert (gradients[0].movedim(1, -1)[~valid] == 0).all()
    assert (gradients[0][0].movedim(0, -1)[valid[0]] != 0).any()


@every_kernel
def test_a_padded_image_has_the_sums_of_the_image(name: str) -> None:
    image, values, valid = example()
    valid[:] = True

    def padded(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x.double(), (1, 3, 2, 1))

    plane = padded(valid) > 0
    found = KERNELS[name](features_of(padded(image)), plane)(padded(values))
    torch.testing.assert_close(found[..., 2:7, 1:7], KERNELS[name](features_of(image), valid)(values))


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision_under_autocast(name: str, dtype: torch.dtype) -> None:
    image, values, valid = example(dtype)
    kernel = KERNELS[name](features_of(image), valid)
    v = values.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = kernel(v)
        (gradient,) = torch.autograd.grad(found.sum(), v)
    raised = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.dtype == raised
    assert gradient.dtype == dtype
    exact = KERNELS[name](features_of(image).double(), valid)(values.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@every_kernel
def test_arguments_are_not_written_to_and_shapes_are_checked(name: str) -> None:
    image, values, valid = example()
    features = features_of(image)
    copies = features.clone(), values.clone(), valid.clone()
    v = values.clone().requires_grad_()
    KERNELS[name](features, valid)(v).sum().backward()
    assert all(torch.equal(one, other) for one, other in zip(copies, (features, v, valid), strict=True))
    strided = features.mT.contiguous().mT, values.mT.contiguous().mT
    torch.testing.assert_close(
        KERNELS[name](strided[0], valid)(strided[1]), KERNELS[name](features, valid)(values), rtol=1e-12, atol=1e-14
    )
    with pytest.raises(ValueError, match="valid must be"):
        KERNELS[name](features, valid[:, None])(values)
    with pytest.raises(ValueError, match="valid must be"):
        KERNELS[name](features, valid)(values[..., 1:])


# ---------------------------------------------------------------------------------------------- dense


@pytest.mark.parametrize(("sigma_rgb", "limit"), [(15.0, 3e-5), (5.0, 3e-4)])
@pytest.mark.parametrize("channels", [1, 2, 21])
def test_attention_against_float64(sigma_rgb: float, limit: float, channels: int) -> None:
    """The stated error: 1e-7 (10 + max |f|^2) of the sum; random colours reach the corners of the cube."""
    g = torch.Generator().manual_seed(0)
    image, values = torch.rand(1, 3, 20, 24, generator=g), torch.rand(1, channels, 20, 24, generator=g)
    features = stack_modalities([(positions(image), 10.0), (255 * image, sigma_rgb)])
    exact = dense_kernel(features.double())(values.double())
    error = (dense_kernel(features)(values) / exact - 1).abs().max()
    centred = features - features.mean((2, 3), keepdim=True)
    assert error < 2e-7 * (10 + centred.square().sum(1).max())
    assert error < limit


def test_attention_on_a_smooth_image() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    image = 0.5 + 0.2 * torch.stack([y, x, y * x])[None]
    features = stack_modalities([(positions(image), 40.0), (255 * image, 15.0)])
    values = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exact = dense_kernel(features.double())(values.double())
    assert (dense_kernel(features)(values) / exact - 1).abs().max() < 3e-6


def test_sums_need_no_common_length_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, n, d, generator=g) for n, d in ((7, 3), (11, 3), (11, 4)))
    expected = torch.zeros(2, 7, 4, dtype=torch.float64)
    for b in range(2):
        for i in range(7):
            for j in range(11):
                distance = float((queries[b, i] - keys[b, j]).double().square().sum())
                expected[b, i] += math.exp(-distance / 2) * values[b, j].double()
    for found in (gaussian_sum(queries, keys, values), attention_sum(queries, keys, values)):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    exact = chunked_sum(queries.double(), keys.double(), values.double())
    torch.testing.assert_close(exact, expected, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(affinity, "CHUNK", 50)
    assert torch.equal(chunked_sum(queries.double(), keys.double(), values.double()), exact)


@pytest.mark.parametrize(("dimensions", "channels"), [(1, 1), (5, 7), (6, 7), (6, 8), (40, 3), (3, 40)])
def test_any_widths(dimensions: int, channels: int) -> None:
    g = torch.Generator().manual_seed(0)
    f, v = torch.randn(1, 9, dimensions, generator=g), torch.randn(1, 9, channels, generator=g)
    torch.testing.assert_close(gaussian_sum(f, f, v), chunked_sum(f, f, v), rtol=1e-5, atol=1e-5)


def test_far_features_do_not_matter_nor_does_their_origin() -> None:
    """Two clusters 1000 sigmas apart: each sees itself; float32 neither overflows nor loses the sink."""
    image, values, _ = example(torch.float32)
    near = features_of(image)
    found = dense_kernel(near + 1000)(values)
    torch.testing.assert_close(found, dense_kernel(near)(values), rtol=1e-3, atol=1e-3)
    apart = near.clone()
    apart[..., 3:] += 100
    found = dense_kernel(apart)(values)
    assert torch.isfinite(found).all()
    left = dense_kernel(near[..., :3])(values[..., :3])
    torch.testing.assert_close(found[..., :3], left, rtol=2e-3, atol=2e-3)


def test_the_attention_never_falls_back_to_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(*arguments: Tensor, **options: float) -> Tensor:
        calls.append(arguments)
        assert not torch.backends.cuda.math_sdp_enabled()
        return original(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    image, values, valid = example(torch.float32)
    kernel = dense_kernel(features_of(image), valid)
    kernel(values.requires_grad_()).sum().backward()
    assert len(calls) == 2
    assert {one.shape[-1] for one in calls[0]} == {8}
    assert torch.backends.cuda.math_sdp_enabled()


# ---------------------------------------------------------------------------------------------- window


@pytest.mark.parametrize(("radius", "count"), [(5, 60), (1, 4), (2, 12)])
def test_offsets_are_half_a_window(radius: int, count: int) -> None:
    half = window_offsets(radius)
    assert len(half) == count
    every = {*half, *((-dy, -dx) for dy, dx in half)}
    steps = range(-radius, radius + 1)
    assert every == {(dy, dx) for dy in steps for dx in steps} - {(0, 0)}


def unfolded(features: Tensor, valid: Tensor, values: Tensor, radius: int) -> Tensor:
    """The window by unfold, as the official code has it."""
    b, _, h, w = values.shape

    def windows(x: Tensor) -> Tensor:
        return torch.nn.functional.unfold(x, 2 * radius + 1, padding=radius).view(b, x.shape[1], -1, h, w)

    inside = valid[:, None].to(values.dtype)
    weights = (-0.5 * (windows(features) - features[:, :, None]).square().sum(1)).exp()
    weights[:, weights.shape[1] // 2] = 0
    return (weights[:, None] * windows(inside) * windows(values)).sum(2) * inside


def test_t8_offset_loop_equals_unfold() -> None:
    for seed in range(3):
        image, values, valid = example(seed=seed)
        features = features_of(image)
        found = window_kernel(features, valid, radius=2)(values)
        torch.testing.assert_close(found, unfolded(features, valid, values, 2), rtol=1e-13, atol=1e-14)


def test_t7_kernel_mass_of_the_position_window() -> None:
    one = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    mass = window_kernel(positions(one) / 6.0, radius=5)(one)[0, 0]
    assert [round(float(mass[i, j]), 4) for i, j in ((8, 8), (0, 8), (0, 0))] == [92.0086, 50.3264, 27.3242]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1), (2, 2)])
@pytest.mark.parametrize("radius", [9, 10**11])
def test_a_window_larger_than_the_image(shape: tuple[int, int], radius: int) -> None:
    values = torch.rand(1, 2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = positions(values) / 3
    found = window_kernel(features, radius=radius)(values)
    torch.testing.assert_close(found, dense_kernel(features)(values) - values, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("radius", [0, -1])
def test_bad_windows_are_refused(radius: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        window_kernel(torch.zeros(1, 2, 3, 3), radius=radius)


def test_position_kernel_is_the_dense_kernel_of_positions() -> None:
    _, values, valid = example()
    expected = dense_kernel(positions(values) / 3.0, valid)(values)
    torch.testing.assert_close(position_kernel(3.0, valid)(values), expected, rtol=1e-12, atol=1e-14)
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="must be positive"):
            position_kernel(sigma)
