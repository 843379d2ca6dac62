"""Synthetic rooms with depth, instances and poses, cast ray by ray in NumPy. Metres, z up; cameras look along z, x
points right and y down. A function of (seed, room, view); rooms are frozen, a test holds their hash."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CLASSES = ("background", "box", "cylinder", "table")
LEAST = 30  # pixels of 160 x 120 that an instance needs to get a box
SIDE = (160, 120)
WOOD, METAL, WALL, FLOOR = (150, 110, 70), (110, 125, 150), (175, 170, 160), (140, 120, 95)
COLORS = {1: WOOD, 2: METAL, 3: WOOD}  # boxes and tables share a colour, near to the floor's
LIGHT = np.array([0.4, -0.3, 0.87])
Floats = NDArray[np.float64]


class Solid(NamedTuple):
    """A box (lower and upper corner) or a vertical cylinder (centre, radius, height), of an instance of a class."""

    kind: str
    at: Floats
    size: Floats
    label: int
    instance: int
    color: Floats


class Room(NamedTuple):
    half: Floats  # half of width and depth, and the height
    solids: list[Solid]
    poses: list[Floats]  # world to camera


class Rendered(NamedTuple):
    image: NDArray[np.uint8]  # (H, W, 3)
    depth: Floats  # (H, W) metres, 0 = missing
    mask: NDArray[np.uint8]
    instances: NDArray[np.int64]
    boxes: list[list[float]]  # x0, y0, x1, y1, class; the last pixels included


def make_room(seed: int, room: int, views: int) -> Room:
    """A room of 4 to 6 m with up to 8 objects, and a camera that goes round it."""
    rng = np.random.default_rng([seed, room])
    half = np.array([rng.uniform(2, 3), rng.uniform(2, 3), 2.6])
    solids: list[Solid] = []
    taken: list[tuple[Floats, float]] = []
    for _ in range(60):
        if len(taken) == 8:
            break
        label, centre, radius = int(rng.integers(1, 4)), rng.uniform(-1.2, 1.2, 2), rng.uniform(0.2, 0.45)
        if any(np.hypot(*(centre - other)) < radius + r for other, r in taken):
            continue
        taken.append((centre, radius))
        solids += object_of(label, centre, radius, len(taken), rng)
    poses = []
    start, circle = rng.uniform(0, 2 * np.pi), min(rng.uniform(1.7, 2.5), half[:2].min() - 0.2)
    for view in range(views):
        angle = start + 2 * np.pi * view / views + rng.uniform(-0.1, 0.1)
        eye = np.array([circle * np.cos(angle), circle * np.sin(angle), rng.uniform(1.2, 1.8)])
        poses.append(look(eye, np.array([*rng.uniform(-0.3, 0.3, 2), rng.uniform(0.2, 0.5)])))
    return Room(half, solids, poses)


def object_of(label: int, centre: Floats, radius: float, instance: int, rng: np.random.Generator) -> list[Solid]:
    """A box, a cylinder, or a table: a slab at 0.7 m on four legs."""
    color = np.array(COLORS[label]) + rng.uniform(-25, 25, 3)
    if label == 2:
        size = np.array([min(radius, 0.4), rng.uniform(0.4, 1.0), 0])
        return [Solid("cylinder", np.array([*centre, 0]), size, label, instance, color)]
    sides = radius * rng.uniform(0.55, 0.7, 2) if label == 1 else radius * rng.uniform(0.6, 0.7, 2) + 0.05

    def block(low: Floats, high: Floats) -> Solid:
        return Solid("box", low, high, label, instance, color)

    if label == 1:
        return [block(np.array([*(centre - sides), 0]), np.array([*(centre + sides), rng.uniform(0.3, 0.9)]))]
    legs = [centre + sides * np.array([i, j]) * 0.85 for i in (-1, 1) for j in (-1, 1)]
    top = block(np.array([*(centre - sides), 0.66]), np.array([*(centre + sides), 0.72]))
    return [top, *(block(np.array([*(leg - 0.025), 0]), np.array([*(leg + 0.025), 0.66])) for leg in legs)]


def look(eye: Floats, target: Floats) -> Floats:
    """The pose (4, 4) of a camera that looks at a target, the world's z upwards."""
    ahead = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(ahead, [0, 0, 1])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(ahead, right), ahead])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, -rotation @ eye
    return pose


def render(room: Room, pose: Floats, width: int, noise: int, chance: tuple[int, ...]) -> Rendered:
    """A view of a room. `noise`: of the depth, as a sensor has it (1) or none (0); colours have noise always."""
    height, focal = width * SIDE[1] // SIDE[0], 140.0 * width / SIDE[0]
    u, w = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    rays = np.stack([u / focal, w / focal, np.ones_like(u)], -1) @ pose[:3, :3]
    eye = -pose[:3, :3].T @ pose[:3, 3]
    depth = np.full((height, width), np.inf)
    normal, color = np.zeros((height, width, 3)), np.zeros((height, width, 3))
    mask, instances = np.zeros((height, width), np.uint8), np.zeros((height, width), np.int64)

    def see(z: Floats, normals: Floats, tint: Floats, label: int, instance: int) -> None:
        nearer = (z > 1e-6) & (z < depth)
        depth[nearer], mask[nearer], instances[nearer] = z[nearer], label, instance
        normal[nearer], color[nearer] = np.broadcast_to(normals, normal.shape)[nearer], tint

    with np.errstate(divide="ignore", invalid="ignore"):
        for axis in range(3):
            for sign in (-1, 1):
                wall = room.half[axis] * (sign if axis < 2 else sign > 0)
                tint = np.array(FLOOR if axis == 2 and sign < 0 else WALL) * (0.9 + 0.05 * axis)
                see((wall - eye[axis]) / rays[..., axis], -sign * np.eye(3)[axis], tint, 0, 0)
        for solid in room.solids:
            z, normals = (box_hit if solid.kind == "box" else cylinder_hit)(eye, rays, solid.at, solid.size)
            see(np.nan_to_num(z, nan=-1), normals, solid.color, solid.label, solid.instance)
    points = eye + rays * depth[..., None]
    checker = np.where(np.sin(9 * points + 0.7).prod(-1) > 0, 1.0, 0.88)
    rng = np.random.default_rng(chance)
    shade = 0.55 + 0.45 * np.clip(normal @ LIGHT, 0, 1)
    image = color * (shade * checker)[..., None] + rng.normal(0, 4, color.shape)
    boxes = []
    for instance in np.unique(instances[instances > 0]):
        where = instances == instance
        if where.sum() >= LEAST * width**2 / SIDE[0] ** 2:
            rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
            label = int(mask[where][0])
            boxes.append([float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1]), float(label)])
    if noise:
        depth = sensor_noise(depth, rng)
    return Rendered(np.clip(image.round(), 0, 255).astype(np.uint8), depth, mask, instances, boxes)


def box_hit(eye: Floats, rays: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Depth of the first hit of each ray, NaN where there is none, and normals."""
    one, two = (low - eye) / rays, (high - eye) / rays
    near, far = np.minimum(one, two), np.maximum(one, two)
    axis = near.argmax(-1)
    z = near.max(-1)
    normals = -np.sign(np.take_along_axis(rays, axis[..., None], -1)) * np.eye(3)[axis]
    return np.where(z < far.min(-1), z, np.nan), normals


def cylinder_hit(eye: Floats, rays: Floats, at: Floats, size: Floats) -> tuple[Floats, Floats]:
    """The same for a vertical cylinder with a lid."""
    radius, height = size[:2]
    x, y = eye[:2] - at[:2]
    a = (rays[..., :2] ** 2).sum(-1)
    b, c = rays[..., 0] * x + rays[..., 1] * y, x * x + y * y - radius**2
    side = (-b - np.sqrt(b * b - a * c)) / a
    at_height = eye[2] + side * rays[..., 2]
    side = np.where((at_height >= 0) & (at_height <= height), side, np.nan)
    lid = (height - eye[2]) / rays[..., 2]
    flat = (eye[:2] + lid[..., None] * rays[..., :2] - at[:2]) / radius
    lid = np.where((flat**2).sum(-1) <= 1, lid, np.nan)
    normals = np.zeros_like(rays)
    normals[..., :2] = (eye[:2] + side[..., None] * rays[..., :2] - at[:2]) / radius
    upper = np.isnan(side) | (lid < side)
    return np.where(upper, lid, side), np.where(upper[..., None], [0, 0, 1.0], normals)


def sensor_noise(depth: Floats, rng: np.random.Generator) -> Floats:
    """Depth as a Kinect-like sensor measures it: noise of 0.0015 z^2 metres, 2 % of the pixels missing, half of those
    beside a jump of more than 5 cm too."""
    noisy = depth + rng.normal(0, 1, depth.shape) * 0.0015 * depth**2
    jump = np.zeros(depth.shape, bool)
    for axis in (0, 1):
        edge = np.abs(np.diff(depth, axis=axis)) > 0.05
        low = [slice(None)] * 2
        high = [slice(None)] * 2
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        jump[tuple(low)] |= edge
        jump[tuple(high)] |= edge
    missing = (rng.random(depth.shape) < 0.02) | (jump & (rng.random(depth.shape) < 0.5))
    return np.where(missing, 0, noisy)
