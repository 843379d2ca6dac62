"""Synthetic rooms: the same bytes each time, and masks, depth, boxes and poses that belong together."""

import hashlib

import numpy as np
import pytest
import torch

from common.ops.geometry import backproject, project, splat, to_world, visible
from datamodules.rooms import make_room, render
from datamodules.sets.rooms import Rooms
from methods.guided_3d.votes import Voter, box_planes, labels, objectness, probabilities, view_votes

EXACT = Rooms(2, 1, 1, around=8, width=128, noise="none")
NAMES = EXACT.names("train")[:8]


def test_rooms_are_frozen():
    """Tables compare runs on them. Depth in centimetres, colours without their last bits: floating point numbers may
    differ in the last digit between machines."""
    digest = hashlib.sha256()
    for room in range(2):
        made = make_room(0, room, 6)
        seen = render(made, made.poses[1], 80, 1, (0, room, 1))
        for part in (seen.image // 16, (seen.depth * 100).round().astype(np.int32), seen.mask):
            digest.update(np.ascontiguousarray(part).tobytes())
    assert digest.hexdigest()[:16] == "c994ea0fb964ee1c"


def test_a_view_is_the_same_each_time_and_others_are_others():
    made = make_room(1, 3, 4)
    one, two = (render(made, made.poses[0], 64, 1, (1, 3, 0)) for _ in range(2))
    for key in ("image", "depth", "mask", "instances"):
        assert getattr(one, key).tobytes() == getattr(two, key).tobytes()
    assert one.image.tobytes() != render(made, made.poses[1], 64, 1, (1, 3, 1)).image.tobytes()


def test_boxes_are_tight_around_what_is_visible():
    for name in NAMES:
        seen = EXACT.rendered(name)
        assert seen.boxes
        for x0, y0, x1, y1, label in seen.boxes:
            inside = seen.mask[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1]
            assert (inside == label).any()
        for instance in np.unique(seen.instances[seen.instances > 0]):
            rows, columns = np.nonzero(seen.instances == instance)
            box = [columns.min(), rows.min(), columns.max(), rows.max(), seen.mask[rows[0], columns[0]]]
            assert (box in seen.boxes) == (len(rows) >= 30 * 128**2 / 160**2)


def test_a_sensor_misses_pixels_and_is_noisy_far_away():
    noisy = Rooms(1, 1, 1, around=4, width=128)
    seen = noisy.rendered(noisy.names("train")[0])
    made = make_room(0, 0, 4)
    truth = render(made, made.poses[0], 128, 0, (0, 0, 0)).depth
    there = seen.depth > 0
    assert 0.02 < 1 - there.mean() < 0.3
    error = (seen.depth - truth)[there] / truth[there] ** 2
    assert 0.0013 < error.std() < 0.0017


def test_depth_and_poses_agree_and_inverse_poses_are_refused():
    group = NAMES[0][:-3]
    found = EXACT.agreement(group, NAMES)
    assert found > 0.9
    wrong = Rooms(1, 1, 1, around=8, width=128, noise="none")
    wrong.views = {name: view._replace(pose=view.pose.inverse()) for name, view in wrong.views.items()}
    with pytest.raises(ValueError, match=rf"group {group}: .* camera to world \(give their inverse\)"):
        wrong.agreement(group, NAMES)


def test_a_view_comes_back_from_its_own_points():
    name = NAMES[0]
    view, depth = EXACT.views[name], EXACT.depth(name)
    points = to_world(backproject(depth, view.camera), view.pose).reshape(-1, 3)
    at, z, inside = project(points, view.camera, view.pose)
    assert inside.all()
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
    torch.testing.assert_close(at, torch.stack([columns, rows], -1).reshape(-1, 2).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(z, depth.reshape(-1), atol=1e-12, rtol=0)
    mask = torch.from_numpy(EXACT.mask(name)).double()
    for stride, least in ((1, 1.0), (2, 0.99), (4, 0.9)):
        keep = torch.zeros(96, 128, dtype=torch.bool)
        keep[::stride, ::stride] = True
        found = splat(points[keep.reshape(-1)], mask[keep][:, None], depth, view.camera, view.pose, stride=stride)[
            ..., 0
        ]
        filled = ~found.isnan()
        assert filled.double().mean() >= least
        assert (found[filled] == mask[filled]).double().mean() > (0.9999 if stride == 1 else 0.9)


def votes_of(data, names, boxed, **how):
    """Objectness by boxes, whether anybody voted, and truth, of the pixels of views."""
    voters = []
    for name in boxed:
        view = data.views[name]
        planes = box_planes(data.boxes(name), view.camera, 3)
        voters.append(Voter(data.depth(name), view.camera, view.pose, planes, torch.ones(3)))
    for name in names:
        view = data.views[name]
        found = view_votes((data.depth(name), view.camera, view.pose), voters, **how)
        yield objectness(found), found.seen, torch.from_numpy(data.mask(name)).reshape(-1).long()


def test_hidden_points_get_fewer_votes_from_boxes_and_labels_are_mostly_right():
    means, right = {}, {}
    for hidden in (True, False):
        s, seen, truth = (
            torch.cat(part) for part in zip(*votes_of(EXACT, NAMES, NAMES[::2], hidden=hidden), strict=True)
        )
        known = (seen > 0).any(1)
        means[hidden] = s.amax(1)[known & (truth == 0)].mean().item()
        said = torch.where(s.amax(1) > 0.6, s.argmax(1) + 1, 0)
        right[hidden] = (said == truth)[known].double().mean().item()
    assert means[True] < means[False]
    assert right[True] > right[False]
    assert right[True] > 0.75


def test_perfect_predictions_give_the_masks_where_they_were_seen():
    voters = {}
    for name in NAMES:
        view = EXACT.views[name]
        planes = torch.nn.functional.one_hot(torch.from_numpy(EXACT.mask(name)).long(), 4)[..., 1:].permute(2, 0, 1)
        voters[name] = Voter(EXACT.depth(name), view.camera, view.pose, planes, torch.ones(3))
    same = total = 0
    for name in NAMES[:3]:
        view = EXACT.views[name]
        votes = view_votes((EXACT.depth(name), view.camera, view.pose), [v for one, v in voters.items() if one != name])
        s = objectness(votes)
        made = labels(probabilities(s, votes.seen, (96, 128)), s.T.reshape(3, 96, 128))
        known = made != 255
        same += (made == torch.from_numpy(EXACT.mask(name)))[known].sum().item()
        total += known.sum().item()
    assert total > 0.5 * 3 * 96 * 128
    assert same > 0.97 * total


def test_another_world_changes_no_vote():
    name, other = NAMES[0], NAMES[1]
    angle = torch.tensor(0.9)
    moved = torch.eye(4, dtype=torch.float64)
    moved[:2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    moved[:3, 3] = torch.tensor([3.0, -2.0, 0.5])
    found = []
    for world in (torch.eye(4, dtype=torch.float64), moved):
        here, there = EXACT.views[name], EXACT.views[other]
        planes = box_planes(EXACT.boxes(other), there.camera, 3)
        voter = Voter(EXACT.depth(other), there.camera, there.pose @ world, planes, torch.ones(3))
        found.append(objectness(view_votes((EXACT.depth(name), here.camera, here.pose @ world), [voter])))
    assert (found[0] != found[1]).double().mean() < 1e-3  # a coordinate on the border of two pixels may round elsewhere


@pytest.mark.parametrize(("options", "told"), [({"width": 30}, "multiple of 4"), ({"around": 1}, "at least 2")])
def test_rooms_that_cannot_be_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        Rooms(**options)


def test_no_point_is_seen_without_depth():
    view = EXACT.views[NAMES[0]]
    points = to_world(backproject(EXACT.depth(NAMES[0]), view.camera), view.pose).reshape(-1, 3)
    assert not visible(points, torch.zeros(96, 128), view.camera, view.pose)[0].any()
