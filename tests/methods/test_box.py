"""Bounding boxes as a method: hand values, who is refused, and that it learns what is in the boxes."""

import math

import pytest
import torch
import yaml

import methods
from conftest import fit_tiny
from methods.box.losses import absent_loss


def test_a_pixel_in_a_box_is_background_or_of_a_class_that_has_one():
    p = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25], [0.2, 0.3, 0.5], [0.3, 0.3, 0.4]]).double()
    logits = p.log().T.reshape(1, 3, 2, 2)
    mask, tags = torch.tensor([[[1, 1], [0, 255]]]), torch.tensor([[False, True, False]])
    wanted = -(math.log(0.3) + math.log(0.75)) / 2
    assert absent_loss(logits, mask, tags).item() == pytest.approx(wanted)
    assert absent_loss(logits, mask, torch.tensor([[False, True, True]])).item() == pytest.approx(0, abs=1e-12)
    free = logits.clone().requires_grad_()
    absent_loss(free, torch.full_like(mask, 255), tags).backward()
    assert free.grad.abs().max() == 0
    assert torch.autograd.gradcheck(lambda z: absent_loss(z, mask, tags), free)


def test_the_step_is_the_sum_of_its_terms(monkeypatch):
    monkeypatch.setattr(methods.Box, "progress", 0.05, raising=False)
    model = methods.Box(3, projection_weight=2.0, pairwise_weight=3.0, ramp=0.1)
    mask = torch.zeros(2, 32, 32, dtype=torch.int64)
    mask[0, 4:20, 6:28] = 2
    mask[:, -3:] = 255
    valid = torch.ones_like(mask, dtype=torch.bool)
    tags = torch.tensor([[False, False, True], [False, False, False]])
    image = torch.rand(2, 3, 1, 1).expand(2, 3, 32, 32)
    out = model.compute_loss({"labeled": {"image": image, "mask": mask, "valid": valid, "tags": tags}})
    terms = out.logs
    assert {*terms} == {"outside", "projection", "absent", "pairwise"}
    whole = terms["outside"] + 2 * terms["projection"] + terms["absent"] + 1.5 * terms["pairwise"]
    assert out.loss.item() == pytest.approx(whole.item())
    assert all(float(value) > 0 for value in terms.values())


@pytest.mark.parametrize(("words", "told"), [
    ({"kind": "boxes", "fraction": None}, "set data.supervision to {kind: boxes, inside: filled}"),
    ({"kind": "dense", "fraction": None}, "Box does not learn from supervision.kind dense: choose one of boxes"),
])  # fmt: skip
def test_other_labels_are_refused(words, told, tmp_path, monkeypatch):
    monkeypatch.setattr("conftest.SMALL", {})
    options = ["--data.init_args.supervision", yaml.safe_dump(words, default_flow_style=True).strip()]
    assert told in fit_tiny(tmp_path / "run", "--model", "Box", *options, expect=1)


@pytest.mark.parametrize("words", [{"projection_weight": -1}, {"threshold": 2}, {"dilation": 0}])
def test_options_out_of_range_are_named(words):
    with pytest.raises(ValueError, match=next(iter(words))):
        methods.Box(2, **words)


def test_a_share_of_the_images_may_have_boxes(tmp_path, monkeypatch):
    monkeypatch.setattr("conftest.SMALL", {})
    some = ["--data.init_args.supervision", "{kind: boxes, fraction: 0.5, inside: filled}"]
    fit_tiny(tmp_path / "run", "--model", "Box", *some)
    report = yaml.safe_load((tmp_path / "run" / "summary.json").read_text())["annotation"]
    assert report["images"] == 6
