"""UniMatch: its loss from single pixels, its perturbations, and what its two versions add up."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.model.networks import NetworkConfig
from common.ops.batch import IGNORE
from common.ops.losses import partial_cross_entropy
from common.ops.mixing import box_masks
from conftest import two_processes
from methods.unimatch.losses import complementary_channels, dropped_channels, pseudo_label_loss
from methods.unimatch.module import UniMatch

UNET = {
    "arch": "Unet",
    "encoder": "tu-test_resnet",
    "decoder": {"decoder_channels": [8, 8, 8, 8], "encoder_depth": 4},
}
DPT = {
    "arch": "DPT",
    "encoder": "tu-test_vit",
    "decoder": {"decoder_fusion_channels": 8, "decoder_intermediate_channels": [8, 8, 8, 8]},
}


def keys(count: int, epoch: int = 0) -> Tensor:
    return torch.tensor([[epoch, position] for position in range(count)])


def planes(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, pseudo-labels, their confidence, and valid pixels."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 4, 5, generator=g, dtype=torch.float64)
    confidence, labels = (2 * torch.randn(2, 3, 4, 5, generator=g, dtype=torch.float64)).softmax(1).max(1)
    return logits, labels, confidence, torch.rand(2, 4, 5, generator=g) < 0.8


def gradient(logits: Tensor, *arguments: Any) -> Tensor:
    z = logits.clone().requires_grad_()
    return torch.autograd.grad(pseudo_label_loss(z, *arguments), z)[0]


# The loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.8, 1.0])
def test_pseudo_labels_count_where_confident_and_are_averaged_over_all_valid_pixels(threshold: float) -> None:
    logits, labels, confidence, valid = planes()
    total, kept = 0.0, 0
    for n, i, j in itertools.product(range(2), range(4), range(5)):
        if valid[n, i, j] and confidence[n, i, j] >= threshold:
            z = logits[n, :, i, j].tolist()
            total += math.log(sum(map(math.exp, z))) - z[int(labels[n, i, j])]
            kept += 1
    value = pseudo_label_loss(logits, labels, confidence, valid, threshold)
    assert float(value) == pytest.approx(total / int(valid.sum()), rel=1e-12)
    assert kept == {0.0: int(valid.sum()), 1.0: 0}.get(threshold, kept)
    assert 0 < kept < int(valid.sum()) or threshold != 0.8
    slope = gradient(logits, labels, confidence, valid, threshold).movedim(1, -1)
    counted = valid & (confidence >= threshold)
    assert ((slope != 0).any(-1) == counted).all()


def test_a_pixel_at_the_threshold_counts() -> None:
    logits, labels, _, valid = planes()
    confidence = torch.full(valid.shape, 0.5)
    assert float(pseudo_label_loss(logits, labels, confidence, valid, 0.5)) > 0
    assert float(pseudo_label_loss(logits, labels, confidence - 1e-6, valid, 0.5)) == 0


def test_pseudo_label_loss_gradcheck_and_nothing_valid() -> None:
    logits, labels, confidence, valid = planes(1)
    assert torch.autograd.gradcheck(
        lambda z: pseudo_label_loss(z, labels, confidence, valid, 0.6), (logits.clone().requires_grad_(),)
    )
    nothing = torch.zeros_like(valid)
    assert float(pseudo_label_loss(logits, labels, confidence, nothing, 0.6)) == 0
    assert (gradient(logits, labels, confidence, nothing, 0.6) == 0).all()
    for wrong in ((labels[:, None], confidence, valid), (labels, confidence[0], valid), (labels, confidence, valid[0])):
        with pytest.raises(ValueError, match=r"\(B, H, W\)"):
            pseudo_label_loss(logits, *wrong, 0.6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pseudo_label_loss_of_half_types(dtype: torch.dtype) -> None:
    logits, labels, confidence, valid = planes(2)
    z = (10 * logits).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = pseudo_label_loss(z, labels, confidence, valid, 0.6)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(pseudo_label_loss(z.double(), labels, confidence, valid, 0.6)), rel=1e-5)


TWO_RANKS = """
from methods.unimatch.losses import pseudo_label_loss

averaged = []
for weight, features, *planes in torch.load(f"{folder}/data.pt"):
    part = slice(rank, rank + 1)
    w = weight.clone().requires_grad_()
    value = pseudo_label_loss(torch.einsum("kc,bchw->bkhw", w, features[part]), *(p[part] for p in planes), 0.6)
    value.backward()
    averaged.append(torch.cat([value.detach().reshape(1), w.grad.flatten()]))
    dist.all_reduce(averaged[-1])
    averaged[-1] /= 2
if rank == 0:
    torch.save(averaged, f"{folder}/out.pt")
"""


def test_two_processes_average_to_the_gradient_of_one(tmp_path: Path) -> None:
    cases = []
    for seed in range(2):
        features, labels, confidence, valid = planes(seed)
        valid[0, 2:] = False
        if seed:
            valid[0], confidence[0] = False, 0  # rank 0 has nothing
        g = torch.Generator().manual_seed(seed)
        weight = torch.randn(3, 3, generator=g, dtype=torch.float64)
        cases.append((weight, features, labels, confidence, valid))
    torch.save(cases, tmp_path / "data.pt")
    two_processes(TWO_RANKS, tmp_path)
    for found, (weight, features, *arguments) in zip(torch.load(tmp_path / "out.pt"), cases, strict=True):
        w = weight.clone().requires_grad_()
        value = pseudo_label_loss(torch.einsum("kc,bchw->bkhw", w, features), *arguments, 0.6)
        value.backward()
        assert value > 0.1
        expected = torch.cat([value.detach().reshape(1), w.grad.flatten()])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


# Feature perturbations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_dropped_channels_have_their_share_and_keep_the_mean(share: float) -> None:
    masks = dropped_channels(keys(300), 64, share, seed=1)
    assert masks.shape == (300, 64, 1, 1)
    assert masks.unique().tolist() == pytest.approx([0, 1 / (1 - share)] if share else [1])
    assert float((masks == 0).float().mean()) == pytest.approx(share, abs=0.015)
    assert float(masks.mean()) == pytest.approx(1, abs=0.03)


def test_complementary_masks_add_up_to_two_and_half_of_the_samples_are_left_alone() -> None:
    first, second = complementary_channels(keys(1000), 32, seed=1)
    assert first.shape == second.shape == (1000, 32, 1, 1)
    assert torch.equal(first + second, torch.full_like(first, 2))
    alone = (first == 1).all(1).flatten()
    assert float(alone.float().mean()) == pytest.approx(0.5, abs=0.06)
    assert {*first[~alone].unique().tolist()} == {0, 2}
    assert float(first[~alone].mean()) == pytest.approx(1, abs=0.04)
    assert 4 < float((first[~alone] == 0).float().sum(1).std()) ** 2 < 12  # binomial: 32 / 4 = 8


def test_perturbations_depend_on_the_key_and_the_seed_alone() -> None:
    for draw in (
        lambda key, seed=1: dropped_channels(key, 16, 0.5, seed),
        lambda key, seed=1: complementary_channels(key, 16, seed)[0],
    ):
        masks = draw(keys(8))
        assert torch.equal(draw(keys(8)[3:5]), masks[3:5])
        assert not torch.equal(draw(keys(8), seed=2), masks)
        assert not torch.equal(draw(keys(8, epoch=1)), masks)


# The module -----------------------------------------------------------------------------------------------------------


def build(network: dict[str, Any] = UNET, **options: Any) -> UniMatch:
    """In eval mode, where images do not depend on each other; the teacher of v2 is another network than the student."""
    torch.manual_seed(0)
    model = UniMatch(3, network=NetworkConfig(**network), **{"threshold": 0.6, **options})
    with torch.no_grad():
        for one in (model.network, *([] if model.teacher is None else [model.teacher.network])):
            head = list(one.model.segmentation_head.parameters())
            for parameter in head:
                parameter.copy_(torch.randn_like(parameter))
            spread = one.eval()(torch.rand(1, 3, 32, 32)).std()
            for parameter in head:
                parameter.mul_(1.5 / spread)
    return model.eval()


def batch(size: tuple[int, int] = (32, 32), count: int = 4) -> dict[str, Any]:
    g = torch.Generator().manual_seed(5)
    streams: dict[str, Any] = {}
    for name, images in (("labeled", 2), ("unlabeled", count)):
        mask = torch.randint(0, 3, (images, *size), generator=g)
        if name == "unlabeled":
            mask[:] = IGNORE
        valid = torch.ones(images, *size, dtype=torch.bool)
        valid[0, -6:], valid[1, :, :3] = False, False
        image = torch.rand(images, 3, *size, generator=g)
        streams[name] = {"image": image, "mask": mask, "valid": valid, "key": keys(images, epoch=2)}
    streams["unlabeled"]["strong"] = torch.rand(count, 2, 3, *size, generator=g)
    return streams


def mixed_view(model: UniMatch, unlabeled: dict[str, Any], pseudo: dict[str, Tensor], view: int) -> dict[str, Tensor]:
    """A strong view and its pseudo-labels: the partner's where the box is, pixel by pixel."""
    size = unlabeled["image"].shape[-2:]
    box = box_masks(
        unlabeled["key"],
        (size[0], size[1]),
        area=(0.02, 0.4),
        aspect=(0.3, 1 / 0.3),
        probability=0.5,
        seed=model.draw_seed(view),
    )
    own = {"image": unlabeled["strong"][:, view], **pseudo}
    found = {name: value.clone() for name, value in own.items()}
    for n, i, j in box.nonzero().tolist():
        for name, value in own.items():
            found[name][n, ..., i, j] = value[n ^ 1, ..., i, j]
    return found


def perturb(model: UniMatch, image: Tensor, masks: list[Tensor]) -> Tensor:
    maps, tokens = model.network.encode(image)
    decoded = model.network.decode([one * mask for one, mask in zip(maps, masks, strict=True)], tokens)
    return model.network.classify(decoded, *image.shape[-2:])


def widths(model: UniMatch, image: Tensor) -> list[int]:
    return [one.shape[1] for one in model.network.encode(image)[0]]


def pseudo_labels(logits: Tensor, valid: Tensor) -> dict[str, Tensor]:
    confidence, labels = logits.softmax(1).max(1)
    return {"labels": labels, "confidence": confidence, "valid": valid}


@pytest.mark.parametrize("network", [UNET, DPT], ids=["Unet", "DPT"])
@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_the_loss_of_a_batch(network: dict[str, Any], variant: Any) -> None:
    """1/2 [L_x + 1/4 L_s1 + 1/4 L_s2 + 1/2 L_fp] of v1, 1/2 [L_x + 1/2 (L_s1 + L_s2)] of v2."""
    model, given = build(network, variant=variant), batch()
    labeled, unlabeled = given["labeled"], given["unlabeled"]
    key, image = unlabeled["key"], unlabeled["image"]
    with torch.no_grad():
        pce = partial_cross_entropy(model.network(labeled["image"]), labeled["mask"], labeled["valid"])
        weak = (model.network if model.teacher is None else model.teacher.network)(image)
        pseudo = pseudo_labels(weak, unlabeled["valid"])
        # in the widest gap of the middle of the confidences, so that rounding moves none across
        ranked = pseudo["confidence"].flatten().sort().values
        ranked = ranked[len(ranked) // 4 : 3 * len(ranked) // 4]
        gap = int(ranked.diff().argmax())
        model.threshold = float(ranked[gap : gap + 2].mean())
        share = float((pseudo["confidence"] >= model.threshold)[unlabeled["valid"]].float().mean())
        assert 0.1 < share < 0.9
        channels = widths(model, image)
        strong = []
        for view in range(2):
            one = mixed_view(model, unlabeled, pseudo, view)
            strong_image = one.pop("image")
            if variant == "v1":
                logits = model.network(strong_image)
            else:
                masks = [complementary_channels(key, width, model.draw_seed(2))[view] for width in channels]
                logits = perturb(model, strong_image, masks)
            strong.append(pseudo_label_loss(logits, **one, threshold=model.threshold))
        out = model.compute_loss(given)
        assert float(out.logs["pce"]) == pytest.approx(float(pce), rel=1e-4)
        assert float(out.logs["strong"]) == pytest.approx(float(sum(strong) / 2), rel=1e-4)
        assert float(out.logs["confident"]) == pytest.approx(share, rel=1e-4)
        expected = pce / 2 + sum(strong) / 4
        if variant == "v1":
            masks = [dropped_channels(key, width, 0.5, model.draw_seed(2 + n)) for n, width in enumerate(channels)]
            feature = pseudo_label_loss(perturb(model, image, masks), **pseudo, threshold=model.threshold)
            assert float(out.logs["feature"]) == pytest.approx(float(feature), rel=1e-4)
            expected = pce / 2 + sum(strong) / 8 + feature / 4
        assert float(out.loss) == pytest.approx(float(expected), rel=1e-4)
        assert set(out.logs) == {"pce", "strong", "confident", *(["feature"] if variant == "v1" else [])}
        assert float(strong[0]) != pytest.approx(float(strong[1]), rel=1e-3)


def test_a_sample_is_left_alone_at_every_level_or_at_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = build(variant="v2"), batch(count=8)
    seen: dict[str, list[list[Tensor]]] = {"encode": [], "decode": []}
    encode, decode = model.network.encode, model.network.decode

    def look_at_encode(image: Tensor) -> Any:
        found = encode(image)
        seen["encode"].append(found[0])
        return found

    def look_at_decode(maps: list[Tensor], tokens: Any = None) -> Tensor:
        seen["decode"].append(maps)
        return decode(maps, tokens)

    monkeypatch.setattr(model.network, "encode", look_at_encode)
    monkeypatch.setattr(model.network, "decode", look_at_decode)
    model.compute_loss(given)
    clean, perturbed = seen["encode"][-1], seen["decode"][-1]
    assert len(clean[0]) == 16
    levels = [(a, b) for a, b in zip(clean, perturbed, strict=True) if a.shape[1]]
    alone = torch.stack([(a == b).flatten(1).all(1) for a, b in levels])
    assert (alone == alone[0]).all()
    assert torch.equal(alone[0][:8], alone[0][8:])  # the two views of a sample together
    assert 0 < int(alone[0][:8].sum()) < 8
    for a, b in levels:
        one, two = (b[part] == 2 * a[part] for part in (slice(8), slice(8, None)))  # doubled
        gone, gone_too = (b[part] == 0 for part in (slice(8), slice(8, None)))
        for number in (~alone[0][:8]).nonzero().flatten().tolist():
            for channel in range(a.shape[1]):
                kept = bool(one[number, channel].all()) and bool(gone_too[number, channel].all())
                dropped = bool(gone[number, channel].all()) and bool(two[number, channel].all())
                assert kept or dropped


@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("counts", [True, False])
def test_gradients_reach_the_student_alone_also_where_no_pixel_counts(variant: Any, counts: bool) -> None:
    model, given = build(variant=variant, threshold=0.4).train(), batch(size=(40, 56))
    given["unlabeled"]["valid"] &= counts
    state = {} if model.teacher is None else {n: v.clone() for n, v in model.teacher.state_dict().items()}
    out = model.compute_loss(given)
    out.loss.backward()
    assert all(p.grad is not None for p in model.network.parameters() if p.requires_grad)
    assert all(torch.isfinite(p.grad).all() for p in model.network.parameters() if p.requires_grad)
    assert (out.logs["strong"].item() > 0) == counts
    assert counts or torch.equal(out.loss, out.logs["pce"] / 2)
    if model.teacher is None:
        assert list(model.eval_networks()) == ["network"]
        model.after_step()
        return
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.teacher.state_dict().items())
    assert list(model.eval_networks().items()) == [("teacher", model.teacher.network), ("student", model.network)]
    model.after_step()  # the first step copies, see the warm-up
    for name, value in model.network.state_dict().items():
        torch.testing.assert_close(model.teacher.network.state_dict()[name], value)
    assert model.teacher.decay == 0.996


def test_pseudo_labels_of_v1_are_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = build(threshold=0.0), batch()
    streams = model.weak_streams(given["labeled"]["image"], given["unlabeled"])
    monkeypatch.setattr(model, "weak_streams", lambda image, unlabeled: streams)
    out = model.compute_loss(given)
    labelled, weak, perturbed = torch.autograd.grad(out.loss, streams, allow_unused=True)
    assert weak is None
    assert labelled.abs().max() > 0
    assert perturbed.abs().max() > 0


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_bfloat16_autocast_is_close_to_float32(variant: Any) -> None:
    model, given = build(variant=variant, threshold=0.0), batch()
    exact = model.compute_loss(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.compute_loss(given)
    assert rounded.loss.dtype == torch.float32
    for name, value in exact.logs.items():
        assert rounded.logs[name].item() == pytest.approx(value.item(), rel=0.1), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.1}, "threshold must lie in"),
        ({"feature_dropout": 1.0}, "feature_dropout in"),
        ({"variant": "v2", "ema_decay": 1.0}, "decay must be in"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
