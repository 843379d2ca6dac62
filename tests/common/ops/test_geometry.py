"""Geometry of views: points whose pixels are known, what is hidden, planes; the numbers of the specification."""

import math

import pytest
import torch

from common.ops.geometry import (
    Intrinsics,
    agreement,
    backproject,
    check_pose,
    exact_tolerance,
    plane,
    project,
    ransac_plane,
    ray_to_z,
    rays,
    scale_intrinsics,
    sensor_tolerance,
    splat,
    to_world,
    visible,
)

CAMERA = Intrinsics(64, 48, 100.0, 100.0, 32.0, 24.0)
HERE = torch.eye(4, dtype=torch.float64)
RIGHT = HERE.clone()
RIGHT[0, 3] = -1  # a camera 1 m to the right
POINT = torch.tensor([[0.5, -0.2, 2.0]], dtype=torch.float64)


def turned(angle, axis=(0.3, -0.8, 0.5), shift=(0.4, -1.0, 2.0)):
    x, y, z = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    pose = HERE.clone()
    pose[:3, :3] = torch.matrix_exp(angle * cross)
    pose[:3, 3] = torch.tensor(shift)
    return pose


def test_a_point_of_two_metres_is_where_two_cameras_see_it():
    at, z, inside = project(POINT, CAMERA, HERE)
    assert (at.tolist(), z.tolist(), inside.tolist()) == ([[57, 14]], [2], [True])
    assert project(POINT, CAMERA, RIGHT)[0].tolist() == [[7, 14]]
    depth = torch.full((48, 64), 2.0)
    torch.testing.assert_close(backproject(depth, CAMERA)[14, 57], POINT[0], atol=1e-12, rtol=0)
    behind = project(-POINT, CAMERA, HERE)
    assert not behind[2].any()
    assert behind[0].isfinite().all()


def test_the_frame_ends_half_a_pixel_beyond_the_outer_centres():
    for u, there in ((-0.499, True), (-0.501, False), (63.499, True), (63.501, False)):
        assert project(torch.tensor([[(u - 32) / 100, 0, 1.0]]), CAMERA, HERE)[2].item() is there
    for w, there in ((-0.499, True), (-0.501, False), (47.499, True), (47.501, False)):
        assert project(torch.tensor([[0, (w - 24) / 100, 1.0]]), CAMERA, HERE)[2].item() is there


def test_world_and_camera_are_each_others_inverse():
    points, pose = torch.randn(50, 3, dtype=torch.float64), turned(0.7)
    there = points @ pose[:3, :3].T + pose[:3, 3]
    torch.testing.assert_close(to_world(there, pose), points, atol=1e-12, rtol=0)
    check_pose(pose)


def test_the_length_of_a_ray_is_not_depth():
    assert rays(CAMERA)[0, 0].norm().item() == pytest.approx(1.077033, abs=1e-6)
    length = 2 * rays(CAMERA).norm(dim=-1)
    torch.testing.assert_close(ray_to_z(length, CAMERA), torch.full((48, 64), 2.0, dtype=torch.float64))


def test_a_smaller_image_has_the_same_rays():
    camera = Intrinsics(640, 480, 500.0, 500.0, 320.0, 240.0)
    half, quarter = scale_intrinsics(camera, 0.5), scale_intrinsics(camera, 0.25)
    assert (half.cx, quarter.cx, half.width, quarter.height) == (159.75, 79.625, 320, 120)
    assert (100 - camera.cx) / camera.fx == pytest.approx((49.75 - half.cx) / half.fx)


def test_tolerances_in_metres():
    z = torch.tensor([1.0, 2.0, 3.0, 5.0])
    torch.testing.assert_close(exact_tolerance(z), torch.tensor([0.02, 0.02, 0.03, 0.05]))
    torch.testing.assert_close(sensor_tolerance(z), torch.tensor([0.05, 0.07, 0.09, 0.13]))


def test_a_point_behind_a_surface_and_one_without_depth_are_not_seen():
    depth = torch.full((48, 64), 2.0)
    points = torch.tensor([[0.5, -0.2, z] for z in (2.0, 2.019, 2.021, 1.979, 3.0)]) * torch.tensor([1.0, 1, 1])
    assert visible(points, depth, CAMERA, HERE)[0].tolist() == [True, True, False, False, False]
    assert visible(points, depth, CAMERA, HERE, sensor_tolerance)[0].tolist() == [True, True, True, True, False]
    assert visible(points, None, CAMERA, HERE)[0].all()
    assert not visible(points, torch.zeros(48, 64), CAMERA, HERE)[0].any()


def test_depth_of_a_plane_is_recovered_from_an_affine_inverse():
    normal, d = torch.tensor([0, 0.6, 0.8], dtype=torch.float64), 2.0
    inverse = (rays(CAMERA) @ normal) / d
    assert (1 / inverse[0, 0]).item() == pytest.approx(3.048780, abs=1e-6)
    assert (1 / inverse[24, 32]).item() == pytest.approx(2.5)
    assert (inverse[0, 1] - inverse[0, 0]).item() == pytest.approx(0)
    assert (inverse[1, 0] - inverse[0, 0]).item() == pytest.approx(0.003)
    points = backproject(1 / inverse, CAMERA).reshape(-1, 3)
    found, offset = plane(points)
    assert abs(found @ normal).item() == pytest.approx(1)
    assert abs(offset) == pytest.approx(2)
    with pytest.raises(ValueError, match="needs 3 points"):
        plane(points[:2])


def test_ransac_finds_the_plane_that_most_points_are_on():
    chance = torch.Generator().manual_seed(1)
    points = torch.rand(600, 3, generator=chance, dtype=torch.float64)
    points[:350, 2] = 0.4 + 0.3 * points[:350, 0] + 0.004 * (torch.rand(350, generator=chance) - 0.5)
    normal, offset, near = ransac_plane(points, 0.01)
    assert near[:350].all()
    assert near[350:].sum() < 20
    slope = -normal[:2] / normal[2]
    assert slope.tolist() == pytest.approx([0.3, 0], abs=0.01)
    assert offset / normal[2] == pytest.approx(0.4, abs=0.01)
    again = ransac_plane(points, 0.01)
    assert torch.equal(again[2], near)


@pytest.mark.parametrize(("change", "told"), [
    (lambda p: p[:3], "4 x 4"),
    (lambda p: p * 1.01, "no rotation: R'R differs from 1 by 0.02"),
    (lambda p: p @ torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64)), "reflection"),
    (lambda p: p.T, "last row"),
    (lambda p: p * math.nan, "finite"),
])  # fmt: skip
def test_a_pose_that_is_not_rigid_is_refused(change, told):
    with pytest.raises(ValueError, match=told):
        check_pose(change(turned(0.7)))


def test_a_cloud_is_splatted_as_a_loop_over_points_would():
    chance = torch.Generator().manual_seed(2)
    camera = Intrinsics(12, 10, 20.0, 20.0, 5.5, 4.5)
    depth = 1 + torch.rand(10, 12, generator=chance).double()
    near = torch.cat([backproject(depth, camera).reshape(-1, 3)] * 3)[torch.randperm(360, generator=chance)[:150]]
    points = near + 0.01 * torch.randn(150, 3, generator=chance)
    values = torch.rand(150, 2, generator=chance).double()
    best, slow = torch.full((10, 12), math.inf), torch.full((10, 12, 2), math.nan, dtype=torch.float64)
    for (x, y, z), value in zip(points.tolist(), values, strict=True):
        u, w = math.floor(20 * x / z + 5.5 + 0.5), math.floor(20 * y / z + 4.5 + 0.5)
        if 0 <= u < 12 and 0 <= w < 10 and abs(depth[w, u] - z) < max(0.02, 0.01 * z) and z < best[w, u]:
            best[w, u], slow[w, u] = z, value
    fast = splat(points, values, depth, camera, HERE)
    torch.testing.assert_close(fast, slow, equal_nan=True)
    window = torch.stack([
        torch.stack([fast[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].reshape(-1, 2).nan_to_num(-1).amax(0)
                     for c in range(12)]) for r in range(10)
    ])  # fmt: skip
    wanted = torch.where(fast.isnan() & (window >= 0), window, fast)
    torch.testing.assert_close(splat(points, values, depth, camera, HERE, stride=2), wanted, equal_nan=True)


def test_the_right_pose_agrees_with_the_depth_and_its_inverse_does_not():
    camera, pose = Intrinsics(40, 30, 40.0, 40.0, 19.5, 14.5), turned(0.15, shift=(0.2, 0.0, 0.1))
    normal = torch.tensor([0.1, 0.6, 0.8], dtype=torch.float64)

    def seen(world_to_camera):
        centre = -world_to_camera[:3, :3].T @ world_to_camera[:3, 3]
        return (3 - normal @ centre) / (rays(camera) @ world_to_camera[:3, :3] @ normal)

    near, counted = agreement(seen(HERE), seen(pose), camera, camera, (HERE, pose), exact_tolerance)
    assert near > 0.97 * counted > 300
    near, counted = agreement(seen(HERE), seen(pose), camera, camera, (HERE, pose.inverse()), exact_tolerance)
    assert near < 0.5 * counted
