"""The wiring of methods/scl/module.py: what teacher and student see, what enters the loss, what the options do."""

import itertools
from pathlib import Path

import pytest
import torch

from common.model.networks import NetworkConfig
from common.ops.batch import IGNORE
from common.ops.losses import partial_cross_entropy, pixel_consistency
from common.ops.mixing import box_masks
from common.ops.schedules import sigmoid_ramp
from conftest import two_processes
from methods.cutmix_seg.module import CutMixSeg
from methods.scl.losses import relaxed_cross_entropy, structured_consistency
from methods.scl.module import SCL

UNET = {
    "arch": "Unet",
    "encoder": "tu-test_resnet",
    "decoder": {"decoder_channels": [8, 8, 8, 8], "encoder_depth": 4},
}
FPN = {"arch": "FPN", "encoder": "tu-test_resnet", "decoder": {"decoder_segmentation_channels": 32}}
DEEPLAB = {"arch": "DeepLabV3Plus", "encoder": "tu-test_resnet", "decoder": {"decoder_channels": 16}}
every_samples = pytest.mark.parametrize("samples", [None, 40])
every_arch = pytest.mark.parametrize("network", [UNET, FPN, DEEPLAB], ids=["Unet", "FPN", "DeepLabV3Plus"])


@pytest.fixture(autouse=True)
def _late(monkeypatch):
    """No trainer here: the run is at its end."""
    monkeypatch.setattr(SCL, "progress", 1.0)


def build(network=UNET, **options):
    """A student that has moved away from its teacher; both in eval mode, where images do not depend on each other."""
    torch.manual_seed(0)
    model = SCL(3, network=NetworkConfig(**network), **{"threshold": 0.6, **options})
    with torch.no_grad():
        for one, scale in ((model.teacher.network, 2.0), (model.network, 1.0)):
            for parameter in one.model.segmentation_head.parameters():
                parameter.copy_(scale * torch.randn_like(parameter))
    return model.eval()


def stream(labelled, batch=2, size=(32, 32), seed=0, strong=False, positions=None):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 3, (batch, *size), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) > (0.1 if labelled else -1)] = IGNORE
    valid = torch.ones(batch, *size, dtype=torch.bool)
    valid[0, -5:], valid[1, :, :3] = False, False
    found = {"image": torch.rand(batch, 3, *size, generator=generator), "mask": mask, "valid": valid}
    found["key"] = torch.tensor([[4, position] for position in (positions or range(batch))])
    if strong:
        found["strong"] = torch.rand(batch, 1, 3, *size, generator=generator)
    return found


def batch(count=4, size=(32, 32), **options):
    return {"labeled": stream(True, 2, size), "unlabeled": stream(False, count, size, seed=1, **options)}


def partner(planes):
    return torch.stack([planes[number ^ 1] for number in range(len(planes))])


def look_at_inputs(network):
    """What its encoder sees from now on, in units of RGB."""
    seen = []
    network.model.encoder.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0] * network.std + network.mean)
    )
    return seen


# The loss -------------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_batch():
    """Everything again, pixel by pixel where images are mixed."""
    model, given = build(consistency_weight=0.7, structured_weight=0.3, threshold=0.6), batch()
    labeled, unlabeled = given["labeled"], given["unlabeled"]
    box = box_masks(unlabeled["key"], (32, 32), area=(0.5, 0.5), seed=model.draw_seed())
    p = model.teacher.network(unlabeled["image"]).softmax(1)
    image, target, valid = unlabeled["image"].clone(), p.clone(), unlabeled["valid"].clone()
    for n, i, j in itertools.product(range(4), range(32), range(32)):
        if not box[n, i, j]:
            image[n, :, i, j] = unlabeled["image"][n ^ 1, :, i, j]
            target[n, :, i, j] = p[n ^ 1, :, i, j]
            valid[n, i, j] = unlabeled["valid"][n ^ 1, i, j]
    logits, z = model.network(labeled["image"]), model.network(image)
    pce = partial_cross_entropy(logits, labeled["mask"], labeled["valid"])
    consistency, share = pixel_consistency(z, target, valid, "batch", 0.6)
    flat = (z.softmax(1).flatten(2), target.flatten(2), valid.flatten(1), box.flatten(1))
    structured = structured_consistency(*flat, "inside")
    out = model.compute_loss(given)
    assert set(out.logs) == {"pce", "consistency", "confident", "structured"}
    for name, value in (("pce", pce), ("consistency", consistency), ("confident", share), ("structured", structured)):
        assert out.logs[name].item() == pytest.approx(value.item(), rel=1e-4), name
        assert value.item() > 0.01, name
    assert 0.2 < share.item() < 0.98
    assert out.loss.item() == pytest.approx((pce + 0.7 * consistency + 0.3 * structured).item(), rel=1e-4)


def test_without_the_structured_term_it_is_cutmix_seg(monkeypatch):
    monkeypatch.setattr(CutMixSeg, "progress", 1.0)
    model, given = build(structured_weight=0.0, threshold=0.6).train(), batch()
    plain = CutMixSeg(3, network=NetworkConfig(**UNET), threshold=0.6).train()
    plain.load_state_dict(model.state_dict())
    found, expected = model.compute_loss(given), plain.compute_loss(given)
    assert torch.equal(found.loss, expected.loss)
    assert all(torch.equal(found.logs[name], value) for name, value in expected.logs.items())
    for one, other in zip(model.network.parameters(), plain.network.parameters(), strict=True):
        first, second = (
            torch.autograd.grad(out.loss, p, retain_graph=True)[0] for out, p in ((found, one), (expected, other))
        )
        assert torch.equal(first, second)


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.2, 0.7])
def test_the_ramp_holds_the_structured_term_back(monkeypatch, progress):
    monkeypatch.setattr(SCL, "progress", progress)
    out = build(ramp=0.2, consistency_weight=0.7, structured_weight=0.5).compute_loss(batch())
    weight = {0.0: 0.0067379, 0.1: 0.2865048, 0.2: 1.0, 0.7: 1.0}[progress]
    assert sigmoid_ramp(progress, 0.2) == pytest.approx(weight, rel=1e-5)
    terms = {name: value.item() for name, value in out.logs.items()}
    expected = terms["pce"] + 0.7 * terms["consistency"] + weight * 0.5 * terms["structured"]
    assert out.loss.item() == pytest.approx(expected, rel=1e-5)
    assert min(terms.values()) > 0.01


def test_relaxation_replaces_the_cross_entropy():
    model, given = build(relaxation=2), batch()
    labeled = given["labeled"]
    logits = model.network(labeled["image"])
    out = model.compute_loss(given)
    relaxed = relaxed_cross_entropy(logits, labeled["mask"], labeled["valid"], 2)
    assert out.logs["pce"].item() == pytest.approx(relaxed.item(), rel=1e-4)
    assert relaxed.item() < 0.99 * float(partial_cross_entropy(logits, labeled["mask"], labeled["valid"]))


def test_the_threshold_decides_what_is_confident():
    given = batch()
    out = build(threshold=1.0).compute_loss(given)
    assert out.logs["confident"].item() == out.logs["consistency"].item() == 0
    assert float(build(threshold=0.0).compute_loss(given).logs["confident"]) == 1


# Teacher and student --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strong", [False, True])
def test_the_teacher_sees_whole_images_and_the_student_mixed_ones(strong):
    model, given = build().train(), batch(strong=strong)
    unlabeled = given["unlabeled"]
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    by_teacher, by_student = look_at_inputs(model.teacher.network), look_at_inputs(model.network)
    out = model.compute_loss(given)
    torch.testing.assert_close(by_teacher[0], unlabeled["image"])
    assert len(by_teacher) == len(by_student) == 1
    torch.testing.assert_close(by_student[0][:2], given["labeled"]["image"])
    box = box_masks(unlabeled["key"], (32, 32), seed=model.draw_seed())
    own = unlabeled["strong"][:, 0] if strong else unlabeled["image"]
    torch.testing.assert_close(by_student[0][2:], torch.where(box[:, None], own, partner(own)))
    # nothing of the teacher has moved or takes a gradient, everything of the student does
    out.loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.teacher.state_dict().items())
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.network.parameters() if p.requires_grad)
    assert torch.isfinite(out.loss)


def test_what_is_mixed_stays_together():
    model, unlabeled = build(feature="logit"), batch()["unlabeled"]
    origin = torch.arange(4 * 32 * 32, dtype=torch.float32).view(4, 32, 32)
    unlabeled["image"] = origin[:, None].expand(-1, 3, -1, -1)
    target = {name: (origin + shift)[:, None] for name, shift in (("logit", 0.25), ("prob", 0.5))}
    box = box_masks(unlabeled["key"], (32, 32))
    view, mixed, valid = model.mixed(unlabeled, target, box)
    at = torch.where(box, origin, partner(origin))
    assert torch.equal(view[:, 0], at)
    assert torch.equal(mixed["logit"][:, 0], at + 0.25)
    assert torch.equal(mixed["prob"][:, 0], at + 0.5)
    assert torch.equal(valid, unlabeled["valid"].flatten()[at.long()])


@every_samples
def test_a_pair_of_images_does_not_depend_on_its_batch(samples):
    model = build(samples=samples)
    large = batch(6, positions=[7, 3, 12, 5, 9, 8])["unlabeled"]
    small = {name: value[2:4] for name, value in large.items()}
    results = []
    for one in (large, small):
        with torch.no_grad():
            target = model.outputs(model.teacher.network, one["image"])
            box = box_masks(one["key"], (32, 32))
            view, target, valid = model.mixed(one, target, box)
            answer = model.outputs(model.network, view)["prob"]
        at = slice(2, 4) if one is large else slice(None)
        loss = model.structured(*(x[at] for x in (answer, target["prob"], valid, box, one["key"])))
        results.append([view[at], valid[at], target["prob"][at], loss])
    for large_one, small_one in zip(*results, strict=True):
        torch.testing.assert_close(large_one, small_one)
    assert float(results[0][-1]) > 0


def test_an_odd_batch_is_refused():
    given = batch()
    given["unlabeled"] = {name: value[:3] for name, value in given["unlabeled"].items()}
    with pytest.raises(ValueError, match="3 images at once"):
        build().compute_loss(given)


def test_the_teacher_follows_and_comes_first():
    model = build(ema_decay=0.75, ema_warmup=False)
    assert list(model.eval_networks().items()) == [("teacher", model.teacher.network), ("student", model.network)]
    name = "model.segmentation_head.0.weight"
    own, other = (one.state_dict()[name].clone() for one in (model.teacher.network, model.network))
    model.after_step()
    torch.testing.assert_close(model.teacher.network.state_dict()[name], 0.75 * own + 0.25 * other)
    warm = build(ema_decay=0.75)
    warm.after_step()  # the first step of the warm-up takes the student over
    torch.testing.assert_close(warm.teacher.network.state_dict()[name], other)
    groups = [parameter for group in model.parameter_groups() for parameter in group["params"]]
    assert {*map(id, groups)} == {id(p) for p in model.network.parameters() if p.requires_grad}


def test_nothing_valid_leaves_the_labelled_loss():
    model, given = build(), batch()
    given["unlabeled"]["valid"][:] = False
    out = model.compute_loss(given)
    assert torch.equal(out.loss, out.logs["pce"])
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.network.parameters() if p.requires_grad)


# Features, sampling, precision ----------------------------------------------------------------------------------------


@every_arch
@pytest.mark.parametrize("feature", ["prob", "logit", "embed"])
@every_samples
def test_every_feature_on_sizes_off_the_stride(network, feature, samples):
    model = build(network, feature=feature, samples=samples).train()
    out = model.compute_loss(batch(size=(40, 72)))
    assert 0 < out.logs["structured"].item() <= 4
    out.loss.backward()
    gradients = [p.grad for p in model.network.parameters() if p.requires_grad]
    assert all(torch.isfinite(one).all() for one in gradients)


@every_arch
@pytest.mark.parametrize("size", [(40, 72), (64, 64)])
def test_a_cell_of_the_feature_is_the_pixel_at_its_middle(network, size):
    model = build(network, feature="embed")
    _, feature = model.network.features(torch.rand(2, 3, *size))
    plane = torch.rand(2, *size, generator=torch.Generator().manual_seed(0)) < 0.5
    found = model.at_feature(plane, feature)
    padded = [-(-side // model.network.stride) * model.network.stride for side in size]
    step = padded[0] // feature.shape[-2]
    assert step == (1 if network is UNET else 4)
    assert [found.shape[1] * step, found.shape[2] * step] == padded
    for n, i, j in itertools.product(range(2), *map(range, found.shape[1:])):
        u, v = i * step + step // 2, j * step + step // 2
        assert bool(found[n, i, j]) == (u < size[0] and v < size[1] and bool(plane[n, u, v]))


@every_arch
def test_embeddings_are_mixed_as_the_images_and_padding_is_left_out(network):
    model, unlabeled = build(network, feature="embed"), batch(size=(40, 72))["unlabeled"]
    with torch.no_grad():
        target = model.outputs(model.teacher.network, unlabeled["image"])
    box = box_masks(unlabeled["key"], (40, 72))
    _, mixed, valid = model.mixed(unlabeled, target, box)
    own, at = target["embed"], model.at_feature(box, target["embed"])
    assert torch.equal(mixed["embed"], torch.where(at[:, None], own, partner(own)))
    student = torch.randn(own.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model.structured(student, mixed["embed"], valid, torch.ones_like(box), unlabeled["key"]).backward()
    touched = student.grad.abs().sum(1) > 0
    assert torch.equal(touched, model.at_feature(valid, own))
    assert touched.any()
    assert not touched.all()


def test_sampled_pixels_are_the_teacher_s_too_and_lie_inside_the_box():
    model, given = build(samples=30), stream(False, 4)
    inside = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.5
    student = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    planes = (given["valid"], inside, given["key"])
    assert float(model.structured(student, student, *planes)) == 0
    assert float(model.structured(student, student.roll(1, -1), *planes)) > 0.1
    student.requires_grad_()
    model.structured(student, torch.randn(4, 3, 32, 32), *planes).backward()
    touched = student.grad.abs().sum(1) > 0
    assert not (touched & ~(given["valid"] & inside)).any()
    assert touched.sum((1, 2)).tolist() == [30] * 4
    few = inside & (torch.arange(1024).view(32, 32) < 200)  # fewer candidates than samples: all of them
    values = []
    for samples in (500, None):
        model.samples = samples
        values.append(model.structured(student, student.roll(1, -1), given["valid"], few, given["key"]))
    torch.testing.assert_close(*values)


def test_a_stride_takes_every_so_many_th_pixel():
    model, given = build(stride=3), stream(False, 2)
    student, teacher = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).unbind()
    student.requires_grad_()
    everywhere = torch.ones(2, 32, 32, dtype=torch.bool)
    value = model.structured(student, teacher, everywhere, everywhere, given["key"])
    value.backward()
    touched = student.grad.abs().sum(1) > 0
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[::3, ::3] = True
    assert torch.equal(touched, expected.expand(2, -1, -1))


def test_options_of_the_structured_term_reach_it():
    given, values = batch(), {}
    for name, options in {
        "default": {},
        "logit": {"feature": "logit"},
        "embed": {"feature": "embed"},
        "sampled": {"samples": 20},
        "stride": {"stride": 2},
    }.items():
        values[name] = round(build(**options).compute_loss(given).logs["structured"].item(), 6)
    assert len({*values.values()}) == len(values), values


@pytest.mark.parametrize("feature", ["prob", "embed"])
def test_bfloat16_autocast_is_close_to_float32(feature):
    model, given = build(feature=feature), batch()
    exact = model.compute_loss(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.compute_loss(given)
    assert rounded.loss.dtype == torch.float32
    for name, value in exact.logs.items():
        assert rounded.logs[name].item() == pytest.approx(value.item(), rel=0.05, abs=2e-3), name
    rounded.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.network.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"consistency_weight": -1.0}, "weights and relaxation must be >= 0"),
        ({"structured_weight": -1.0}, "weights and relaxation must be >= 0"),
        ({"relaxation": -1}, "weights and relaxation must be >= 0"),
        ({"stride": 0}, "stride >= 1"),
        ({"samples": 1}, "samples must be >= 2"),
        ({"threshold": 1.1}, "threshold is a probability"),
        ({"ramp": 1.5}, "ramp a share of the run"),
        ({"ema_decay": 1.0}, "decay must be in"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


# Two processes --------------------------------------------------------------------------------------------------------

TWO_RANKS = """
from common.ops.distributed import average_buffers
from common.model.networks import NetworkConfig
from methods.scl.module import SCL

torch.manual_seed(0)
SCL.progress = 1.0
model = SCL(3, network=NetworkConfig(**torch.load(f"{folder}/network.pt")), ema_decay=0.9, threshold=0.4)
optimizer = torch.optim.SGD(model.network.parameters(), lr=0.05, momentum=0.9)
images = torch.Generator().manual_seed(rank)  # other data on each rank
model.train()
losses = []
for step in range(50):
    streams = {}
    for name in ("labeled", "unlabeled"):
        mask = torch.randint(0, 3, (2, 32, 32), generator=images)
        streams[name] = {"image": torch.rand(2, 3, 32, 32, generator=images), "mask": mask, "valid": mask < 3}
        streams[name]["key"] = torch.tensor([[step, 4 * rank], [step, 4 * rank + 1]])
    loss = model.compute_loss(streams).loss
    optimizer.zero_grad()
    loss.backward()
    flat = torch.cat([p.grad.flatten() for p in model.network.parameters() if p.requires_grad]) / 2
    dist.all_reduce(flat)
    torch.nn.utils.vector_to_parameters(flat, [p.grad for p in model.network.parameters() if p.requires_grad])
    optimizer.step()
    model.after_step()
    losses.append(float(loss))


def snapshot():
    return {name: value.clone() for name, value in model.state_dict().items()}


before = snapshot()
average_buffers(model)
torch.save((before, snapshot(), losses), f"{folder}/rank{rank}.pt")
"""


@pytest.mark.slow
def test_teachers_are_the_same_on_two_ranks(tmp_path: Path):
    torch.save(UNET, tmp_path / "network.pt")
    two_processes(TWO_RANKS, tmp_path)
    (before, after, losses), (before2, after2, losses2) = (torch.load(tmp_path / f"rank{n}.pt") for n in range(2))
    assert losses != losses2
    assert int(after["teacher.steps"]) == 50
    statistics = {name for name in before if name.endswith(("running_mean", "running_var"))}
    assert any(name.startswith("teacher.") for name in statistics)
    for name, value in before.items():
        assert torch.equal(value, before2[name]) == (name not in statistics), name
        assert torch.equal(after[name], after2[name]), name
        if name in statistics:
            torch.testing.assert_close(after[name], (value + before2[name]) / 2)
    for name in ("model.segmentation_head.0.weight", "model.encoder.model.conv1.weight"):
        if f"network.{name}" in before:
            assert not torch.equal(before[f"teacher.network.{name}"], before[f"network.{name}"])
