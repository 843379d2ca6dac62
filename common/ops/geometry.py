"""Views of one scene: pixels with depth to points and back, what is hidden from a view, planes.

Everything is computed in float64 and without gradient. An integer coordinate is the centre of a pixel; cameras look
along z, x points right and y down; a pose is world to camera, `X_c = R X + t`. Depth is the z coordinate in metres, not
the length of the ray; 0 where it was not measured. Formulas are ours, after the idea of Sun et al. (ACCV 2020, arXiv
2012.00242), of which only the abstract is known.

    points = to_world(backproject(depth, camera), pose)
    seen = visible(points.reshape(-1, 3), other_depth, camera, other_pose, sensor_tolerance)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Tolerance = Callable[[Tensor], Tensor]


class Intrinsics(NamedTuple):
    """A pinhole camera of images width x height: focal lengths and centre in pixels."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float


def exact_tolerance(z: Tensor) -> Tensor:
    """Depth differences in metres below which a point is the surface, of rendered depth: max(0.02, 0.01 z) [ours]."""
    return (0.01 * z).clamp(min=0.02)


def sensor_tolerance(z: Tensor) -> Tensor:
    """The same of Kinect-like sensors with estimated poses: 0.03 + 0.02 z [ours, measured on SUN3D]."""
    return 0.03 + 0.02 * z


def scale_intrinsics(camera: Intrinsics, scale: float) -> Intrinsics:
    """The camera of images that were resized by `scale`, corners to corners: `f s`, `(c + 0.5) s - 0.5`."""
    width, height, fx, fy, cx, cy = camera
    return Intrinsics(
        round(width * scale), round(height * scale), fx * scale, fy * scale,
        (cx + 0.5) * scale - 0.5, (cy + 0.5) * scale - 0.5,
    )  # fmt: skip


def rays(camera: Intrinsics) -> Tensor:
    """(H, W, 3) directions of the pixels, with z = 1."""
    u = (torch.arange(camera.width, dtype=torch.float64) - camera.cx) / camera.fx
    w = (torch.arange(camera.height, dtype=torch.float64) - camera.cy) / camera.fy
    w, u = torch.meshgrid(w, u, indexing="ij")
    return torch.stack([u, w, torch.ones_like(u)], -1)


@torch.no_grad()
def backproject(depth: Tensor, camera: Intrinsics) -> Tensor:
    """(H, W, 3) points in metres, in the camera's frame, of depth (H, W).

    Raises:
        ValueError: depth of another size than the camera's.
    """
    if tuple(depth.shape) != (camera.height, camera.width):
        raise ValueError(f"depth is {tuple(depth.shape)}, but the camera has {camera.height} x {camera.width} pixels")
    return rays(camera).to(depth.device) * depth.double()[..., None]


@torch.no_grad()
def ray_to_z(length: Tensor, camera: Intrinsics) -> Tensor:
    """(H, W) depth of data that store the length of the ray."""
    return length.double() / rays(camera).to(length.device).norm(dim=-1)


@torch.no_grad()
def to_world(points: Tensor, pose: Tensor) -> Tensor:
    """Points (..., 3) of a camera's frame in the world's: `R' (X - t)` of the pose (4, 4)."""
    pose = pose.double()
    return (points.double() - pose[:3, 3]) @ pose[:3, :3]


@torch.no_grad()
def project(points: Tensor, camera: Intrinsics, pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where points of the world (N, 3) are seen: pixel coordinates x, y (N, 2), depth (N,), and whether they are in
    front of the camera and inside the image, bool (N,)."""
    pose = pose.double()
    x, y, z = (points.double() @ pose[:3, :3].T + pose[:3, 3]).unbind(-1)
    ahead = z > 0
    safe = torch.where(ahead, z, 1.0)
    u, w = camera.fx * x / safe + camera.cx, camera.fy * y / safe + camera.cy
    inside = ahead & (u >= -0.5) & (u < camera.width - 0.5) & (w >= -0.5) & (w < camera.height - 0.5)
    return torch.stack([u, w], -1), z, inside


def pixels(at: Tensor, camera: Intrinsics) -> tuple[Tensor, Tensor]:
    """Row and column int64 (N,) of pixel coordinates x, y (N, 2); those outside the image come out as its nearest."""
    nearest = (at + 0.5).floor().long()
    return nearest[:, 1].clamp(0, camera.height - 1), nearest[:, 0].clamp(0, camera.width - 1)


@torch.no_grad()
def visible(
    points: Tensor, depth: Tensor | None, camera: Intrinsics, pose: Tensor, tolerance: Tolerance = exact_tolerance
) -> tuple[Tensor, Tensor, Tensor]:
    """Which points (N, 3) of the world a view sees: bool (N,), and the pixels' rows and columns int64 (N,).

    A point is seen where it is within the tolerance of the depth (H, W) that the view measured in its pixel; where
    nothing was measured it is not. Without `depth` every point in the frame is seen, also behind others.
    """
    at, z, inside = project(points, camera, pose)
    rows, columns = pixels(at, camera)
    if depth is None:
        return inside, rows, columns
    measured = depth.double()[rows, columns]
    near = (measured - z).abs() < tolerance(z)
    return inside & (measured > 0) & near, rows, columns


def check_pose(pose: Tensor) -> None:
    """Raise ValueError unless a pose (4, 4) is a rotation and a shift: `R'R` is 1 to 1e-3, its determinant positive."""
    if tuple(pose.shape) != (4, 4) or not bool(pose.isfinite().all()):
        raise ValueError("a pose is a matrix of 4 x 4 finite numbers")
    rotation = pose[:3, :3].double()
    error = (rotation.T @ rotation - torch.eye(3, dtype=torch.float64)).abs().max().item()
    if error > 1e-3:
        raise ValueError(f"its 3 x 3 part is no rotation: R'R differs from 1 by {error:.3g}")
    if torch.linalg.det(rotation) < 0:
        raise ValueError("its 3 x 3 part is a reflection (determinant -1): an axis points the other way")
    if (pose[3] - torch.tensor([0, 0, 0, 1])).abs().max() > 1e-6:
        raise ValueError("its last row is not 0 0 0 1: is it transposed?")


@torch.no_grad()
def agreement(
    depth: Tensor, other: Tensor, camera: Intrinsics, others: Intrinsics, poses: tuple[Tensor, Tensor],
    tolerance: Tolerance = sensor_tolerance,
) -> tuple[int, int]:  # fmt: skip
    """Of the pixels of a view that lie in the frame of another one: how many are at the depth that it measured, and
    how many there are that it does not hide. Points behind a surface prove nothing; points in front of it do."""
    points = to_world(backproject(depth, camera), poses[0])[depth > 0]
    at, z, inside = project(points, others, poses[1])
    rows, columns = pixels(at, others)
    measured = other.double()[rows, columns]
    counted = inside & (measured > 0) & (z < measured + tolerance(z))
    near = counted & ((measured - z).abs() < tolerance(z))
    return int(near.sum()), int(counted.sum())


@torch.no_grad()
def splat(
    points: Tensor, values: Tensor, depth: Tensor, camera: Intrinsics, pose: Tensor,
    tolerance: Tolerance = exact_tolerance, stride: int = 1,
) -> Tensor:  # fmt: skip
    """Values (N, C) of points (N, 3) in a view, (H, W, C), NaN where there is none.

    Of the points that the view sees in a pixel the nearest one counts; then holes, as a cloud of every `stride`th pixel
    leaves them, take the maximum of a window of `2 floor(stride / 2) + 1`.
    """
    seen, rows, columns = visible(points, depth, camera, pose, tolerance)
    z = project(points, camera, pose)[1]
    index = seen.nonzero()[:, 0]
    index = index[z[index].argsort(descending=True, stable=True)]  # the nearest is written last
    flat = torch.full((camera.height * camera.width,), -1, dtype=torch.int64)
    flat = last_write(flat, rows[index] * camera.width + columns[index], index)
    found = torch.full((camera.height * camera.width, values.shape[1]), torch.nan, dtype=torch.float64)
    found[flat >= 0] = values.double()[flat[flat >= 0]]
    plane = found.reshape(camera.height, camera.width, -1)
    window = 2 * (stride // 2) + 1
    if window == 1:
        return plane
    filled = torch.nn.functional.max_pool2d(
        plane.nan_to_num(-1).permute(2, 0, 1)[None], window, stride=1, padding=window // 2
    )[0].permute(1, 2, 0)
    filled = torch.where(filled < 0, torch.nan, filled)
    return torch.where(plane.isnan() & (depth > 0)[..., None], filled, plane)


def last_write(into: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """`into` with values written at positions, of several at one position the last."""
    order = at.argsort(stable=True)
    at, values = at[order], values[order]
    last = torch.ones_like(at, dtype=torch.bool)
    last[:-1] = at[1:] != at[:-1]
    into[at[last]] = values[last]
    return into


@torch.no_grad()
def plane(points: Tensor) -> tuple[Tensor, float]:
    """Normal (3,) and offset d of the least squares plane `n X = d` through points (N, 3), N >= 3."""
    if len(points) < 3:
        raise ValueError(f"a plane needs 3 points, got {len(points)}")
    points = points.double()
    centre = points.mean(0)
    normal = torch.linalg.svd(points - centre, full_matrices=False)[2][-1]
    return normal, float(normal @ centre)


@torch.no_grad()
def ransac_plane(points: Tensor, tolerance: float, draws: int = 200, seed: int = 0) -> tuple[Tensor, float, Tensor]:
    """The plane `n X = d` with most of the points (N, 3) within `tolerance` metres: normal (3,), d, and bool (N,).

    Each draw takes three points; the best one is fitted again to its points by least squares. The same each time.
    """
    points = points.double()
    chance = torch.Generator().manual_seed(seed)
    a, b, c = points[torch.randint(0, len(points), (3, draws), generator=chance)]
    normals = torch.linalg.cross(b - a, c - a)
    length = normals.norm(dim=1, keepdim=True)  # 0 of a point drawn twice, or three on a line
    normals = torch.where(length > 1e-12, normals / length, torch.nan)
    counts = ((points @ normals.T - (normals * a).sum(1)).abs() < tolerance).sum(0)
    best = int(counts.argmax())
    near = (points @ normals[best] - normals[best] @ a[best]).abs() < tolerance
    if near.sum() < 3:
        raise ValueError(f"no plane passes within {tolerance:g} m of three of {len(points)} points")
    normal, offset = plane(points[near])
    return normal, offset, (points @ normal - offset).abs() < tolerance
