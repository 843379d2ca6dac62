"""The wiring of methods/cutmix_seg/module.py: what teacher and student see, what enters the loss, what options do."""

import itertools

import pytest
import torch

from common.model.networks import NetworkConfig
from common.ops.batch import IGNORE
from common.ops.losses import partial_cross_entropy, pixel_consistency
from common.ops.mixing import box_masks
from common.ops.schedules import sigmoid_ramp
from methods.cutmix_seg.module import CutMixSeg

UNET = {
    "arch": "Unet",
    "encoder": "tu-test_resnet",
    "decoder": {"decoder_channels": [8, 8, 8, 8], "encoder_depth": 4},
}
every_mixing = pytest.mark.parametrize("mixing", ["cutmix", "classmix", "cowmask", "cutout"])


@pytest.fixture(autouse=True)
def _late(monkeypatch):
    """No trainer here: the run is at its end."""
    monkeypatch.setattr(CutMixSeg, "progress", 1.0)


def build(**options):
    """A student that has moved away from its teacher; both in eval mode, where images do not depend on each other."""
    torch.manual_seed(0)
    model = CutMixSeg(3, network=NetworkConfig(**UNET), **{"confidence": "none", **options})
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


@pytest.mark.parametrize("confidence", ["batch", "pixel", "none"])
def test_the_loss_of_a_cutmix_batch(confidence):
    """Everything again, pixel by pixel where images are mixed."""
    model, given = build(confidence=confidence, consistency_weight=0.7, threshold=0.6), batch()
    labeled, unlabeled = given["labeled"], given["unlabeled"]
    box = box_masks(unlabeled["key"], (32, 32), area=(0.5, 0.5), seed=model.draw_seed())
    p = model.teacher.network(unlabeled["image"]).softmax(1)
    image, target, valid = unlabeled["image"].clone(), p.clone(), unlabeled["valid"].clone()
    for n, i, j in itertools.product(range(4), range(32), range(32)):
        if not box[n, i, j]:
            image[n, :, i, j] = unlabeled["image"][n ^ 1, :, i, j]
            target[n, :, i, j] = p[n ^ 1, :, i, j]
            valid[n, i, j] = unlabeled["valid"][n ^ 1, i, j]
    pce = partial_cross_entropy(model.network(labeled["image"]), labeled["mask"], labeled["valid"])
    consistency, share = pixel_consistency(model.network(image), target, valid, confidence, 0.6)
    out = model.compute_loss(given)
    assert set(out.logs) == {"pce", "consistency", "confident"}
    for name, value in (("pce", pce), ("consistency", consistency), ("confident", share)):
        assert out.logs[name].item() == pytest.approx(value.item(), rel=1e-4), name
        assert value.item() > 0.01, name
    assert 0.2 < share.item() < 0.98
    assert out.loss.item() == pytest.approx((pce + 0.7 * consistency).item(), rel=1e-4)


@pytest.mark.parametrize("confidence", ["batch", "pixel", "none"])
def test_the_loss_of_cutout_is_a_mean_over_all_pixels(confidence):
    """The code's cut mode: the student sees the box, the error is masked by it, the mean is over all pixels."""
    model, given = build(mixing="cutout", confidence=confidence, threshold=0.6), batch()
    unlabeled = given["unlabeled"]
    unlabeled["valid"][:] = True
    box = box_masks(unlabeled["key"], (32, 32), area=(1e-3, 1.0), seed=model.draw_seed())[:, None].float()
    assert 0.1 < box.mean() < 0.9
    mean = model.network.mean
    student = model.network((unlabeled["image"] - mean) * box + mean).softmax(1)
    teacher = model.teacher.network(unlabeled["image"]).softmax(1)
    sure = (teacher.amax(1, keepdim=True) >= 0.6).float()
    factor = {"batch": sure.mean(), "pixel": sure, "none": 1.0}[confidence]
    expected = ((student - teacher).square().sum(1, keepdim=True) * box * factor).mean()
    logs = model.compute_loss(given).logs
    assert logs["consistency"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert logs["confident"].item() == pytest.approx(sure.mean().item())


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0067379), (0.1, 0.2865048), (0.2, 1.0), (0.7, 1.0)])
def test_the_ramp_holds_the_consistency_back(monkeypatch, progress, weight):
    monkeypatch.setattr(CutMixSeg, "progress", progress)
    out = build(ramp=0.2, consistency_weight=0.7).compute_loss(batch())
    assert sigmoid_ramp(progress, 0.2) == pytest.approx(weight, rel=1e-5)
    pce, consistency = out.logs["pce"].item(), out.logs["consistency"].item()
    assert out.loss.item() == pytest.approx(pce + weight * 0.7 * consistency, rel=1e-5)
    assert min(pce, consistency) > 0.01


def test_the_threshold_decides_what_is_confident():
    given = batch()
    out = build(confidence="batch", threshold=1.0).compute_loss(given)
    assert out.logs["confident"].item() == out.logs["consistency"].item() == 0
    assert float(build(confidence="pixel", threshold=0.0).compute_loss(given).logs["confident"]) == 1


# Teacher and student --------------------------------------------------------------------------------------------------


@every_mixing
@pytest.mark.parametrize("strong", [False, True])
def test_the_teacher_sees_whole_images_and_the_student_mixed_ones(mixing, strong):
    model, given = build(mixing=mixing).train(), batch(strong=strong)
    unlabeled = given["unlabeled"]
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    by_teacher, by_student = look_at_inputs(model.teacher.network), look_at_inputs(model.network)
    out = model.compute_loss(given)
    torch.testing.assert_close(by_teacher[0], unlabeled["image"])
    assert len(by_teacher) == len(by_student) == 1
    torch.testing.assert_close(by_student[0][:2], given["labeled"]["image"])
    mask = model.mixing_mask(unlabeled, model.teacher(unlabeled["image"]).softmax(1))
    own = unlabeled["strong"][:, 0] if strong else unlabeled["image"]
    other = model.network.mean.expand_as(own) if mixing == "cutout" else partner(own)
    expected = torch.where(mask[:, None], own, other)
    torch.testing.assert_close(by_student[0][2:], expected)
    assert 0.05 < float(mask.float().mean()) < 0.95
    # nothing of the teacher has moved or takes a gradient, everything of the student does
    out.loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.teacher.state_dict().items())
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.network.parameters() if p.requires_grad)
    assert torch.isfinite(out.loss)


@every_mixing
def test_what_is_mixed_stays_together(mixing):
    model, unlabeled = build(mixing=mixing), batch()["unlabeled"]
    origin = torch.arange(4 * 32 * 32, dtype=torch.float32).view(4, 32, 32)
    unlabeled["image"] = origin[:, None].expand(-1, 3, -1, -1)
    target = (origin + 0.5)[:, None]
    mask = model.mixing_mask(unlabeled, torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    view, mixed, valid = model.mixed(unlabeled, target, mask)
    if mixing == "cutout":
        assert torch.equal(mixed, target)
        assert torch.equal(valid, unlabeled["valid"])
        assert torch.equal(view[:, 0][mask], origin[mask])
        return
    at = torch.where(mask, origin, partner(origin))
    assert torch.equal(view[:, 0], at)
    assert torch.equal(mixed[:, 0], at + 0.5)
    assert torch.equal(valid, unlabeled["valid"].flatten()[at.long()])


def test_classmix_pastes_whole_classes_of_the_teacher_and_no_padding():
    model, unlabeled = build(mixing="classmix"), batch()["unlabeled"]
    p = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = model.mixing_mask(unlabeled, p)
    assert not mask[~unlabeled["valid"]].any()
    for labels, chosen, valid in zip(p.argmax(1), mask, unlabeled["valid"], strict=True):
        assert len(labels[chosen].unique()) == 1  # half of three classes, rounded down
        assert not {*labels[chosen].tolist()} & {*labels[~chosen & valid].tolist()}


@every_mixing
def test_a_pair_of_images_does_not_depend_on_its_batch(mixing):
    model = build(mixing=mixing)
    large = batch(6, positions=[7, 3, 12, 5, 9, 8])["unlabeled"]
    small = {name: value[2:4] for name, value in large.items()}
    results = []
    for one in (large, small):
        target = model.teacher(one["image"]).softmax(1)
        mask = model.mixing_mask(one, target)
        at = slice(2, 4) if one is large else slice(None)
        results.append([value[at] for value in (mask, *model.mixed(one, target, mask))])
    for large_one, small_one in zip(*results, strict=True):
        torch.testing.assert_close(large_one, small_one)


def test_an_odd_batch_is_refused_where_images_have_partners():
    given = batch()
    given["unlabeled"] = {name: value[:3] for name, value in given["unlabeled"].items()}
    with pytest.raises(ValueError, match="3 images at once"):
        build().compute_loss(given)
    assert torch.isfinite(build(mixing="cutout").compute_loss(given).loss)


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


def test_bfloat16_autocast_is_close_to_float32():
    model, given = build(), batch()
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
        ({"consistency_weight": -1.0}, "consistency_weight must be >= 0"),
        ({"threshold": 1.1}, "threshold a probability"),
        ({"ramp": 1.5}, "ramp a share of the run"),
        ({"ramp": 0.2, "confidence": "batch"}, "set confidence to none"),
        ({"ema_decay": 1.0}, "decay must be in"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
