"""The wiring of methods/cps/module.py: two networks, each other's labels on mixed images, one optimizer."""

import itertools
import json

import pytest
import torch
from torch.nn import functional as F

from common.model.networks import NetworkConfig
from common.model.optim import ChainedOptimizer
from common.ops.batch import IGNORE
from common.ops.losses import partial_cross_entropy
from common.ops.mixing import box_masks
from conftest import fit_tiny, two_processes
from methods.cps.module import CPS

UNET = {
    "arch": "Unet",
    "encoder": "tu-test_resnet",
    "decoder": {"decoder_channels": [8, 8, 8, 8], "encoder_depth": 4},
}
# without batch statistics
PLAIN = {**UNET, "encoder": "tu-test_convnext", "decoder": {**UNET["decoder"], "decoder_use_norm": False}}
SIZE = (40, 56)


def build(network=UNET, **options):
    """Two networks that differ, in eval mode, where images do not depend on each other."""
    torch.manual_seed(0)
    model = CPS(3, network=NetworkConfig(**network), **options)
    with torch.no_grad():
        for one in model.networks:
            for parameter in one.model.segmentation_head.parameters():
                parameter.copy_(torch.randn_like(parameter))
    return model.eval()


def stream(labelled, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 3, (batch, *SIZE), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) > (0.5 if labelled else -1)] = IGNORE
    valid = torch.ones(batch, *SIZE, dtype=torch.bool)
    valid[0, 16:], valid[1, :, :3] = False, False
    image = torch.rand(batch, 3, *SIZE, generator=generator)
    key = torch.tensor([[4, position] for position in range(batch)])
    return {"image": image, "mask": mask, "valid": valid, "key": key}


def batch(count=4):
    return {"labeled": stream(True, 2, 0), "unlabeled": stream(False, count, 1)}


def test_the_loss_of_a_batch():
    """Everything again, pixel by pixel where images are mixed."""
    model, given = build(cps_weight=0.3), batch()
    labeled, unlabeled = given["labeled"], given["unlabeled"]
    box = box_masks(unlabeled["key"], SIZE, area=(0.25, 0.5), boxes=3, seed=model.draw_seed())
    with torch.no_grad():
        q = torch.stack([network(unlabeled["image"]).softmax(1) for network in model.networks])
    image, valid, mixed = unlabeled["image"].clone(), unlabeled["valid"].clone(), q.clone()
    for n, i, j in box.nonzero().tolist():
        image[n, :, i, j] = unlabeled["image"][n ^ 1, :, i, j]
        valid[n, i, j] = unlabeled["valid"][n ^ 1, i, j]
        mixed[:, n, :, i, j] = q[:, n ^ 1, :, i, j]
    pce = cps = 0.0
    for network, other in zip(model.networks, mixed.flip(0), strict=True):
        pce += partial_cross_entropy(network(labeled["image"]), labeled["mask"], labeled["valid"])
        labels = other.argmax(1).masked_fill(~valid, IGNORE)
        cps += F.cross_entropy(network(image), labels, ignore_index=IGNORE)
    out = model.compute_loss(given)
    assert set(out.logs) == {"pce", "cps"}
    assert out.logs["pce"].item() == pytest.approx(pce.item(), rel=1e-5)
    assert out.logs["cps"].item() == pytest.approx(cps.item(), rel=1e-5)
    assert out.loss.item() == pytest.approx((pce + 0.3 * cps).item(), rel=1e-5)
    del given["unlabeled"]["mask"]  # is looked at by nobody
    assert torch.equal(model.compute_loss(given).loss, out.loss)


def test_both_networks_learn():
    model, given = build().train(), batch()
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    out = model.compute_loss(given)
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(network.training for network in model.networks)
    assert not any(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_nothing_valid_leaves_the_labelled_loss():
    model, given = build(), batch()
    given["unlabeled"]["valid"][:] = False
    out = model.compute_loss(given)
    assert torch.equal(out.loss, out.logs["pce"])
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_bfloat16_autocast_is_close_to_float32():
    model, given = build(), batch()
    exact = model.compute_loss(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model.compute_loss(given)
    assert rounded.loss.dtype == torch.float32
    for name, value in exact.logs.items():
        assert rounded.logs[name].item() == pytest.approx(value.item(), rel=0.1), name


def test_two_networks_start_apart_and_are_evaluated_apart_and_together():
    model, image = build(), torch.rand(2, 3, *SIZE)
    assert list(model.eval_networks()) == ["branch1", "branch2", "ensemble"]
    first, second, ensemble = model.eval_networks().values()
    assert (first, second) == (model.network, model.network2)
    assert model.scored_network is first
    assert not torch.equal(*(one.model.segmentation_head[0].weight for one in (first, second)))
    torch.testing.assert_close(ensemble(image), (first(image) + second(image)) / 2)
    assert {name.split(".")[0] for name in model.state_dict()} == {"network", "network2"}
    optimizer = model.make_optimizer()
    assert not isinstance(optimizer, ChainedOptimizer)
    optimized = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(optimized) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_pretrained_encoders_are_the_same_and_heads_are_not(tmp_path):
    torch.save(build().network.model.encoder.state_dict(), tmp_path / "encoder.pt")
    torch.manual_seed(1)
    model = CPS(3, network=NetworkConfig(**UNET, weights=str(tmp_path / "encoder.pt")))
    first, second = (dict(network.model.named_parameters()) for network in model.networks)
    for name, parameter in first.items():
        if parameter.ndim > 1:
            assert torch.equal(parameter, second[name]) == name.startswith("encoder."), name


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="cps_weight must be >= 0, got -1"):
        build(cps_weight=-1.0)


def test_a_run_names_its_networks(tmp_path):
    fit_tiny(tmp_path / "run", "--model", "CPS", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2")
    last = json.loads((tmp_path / "run" / "summary.json").read_text())["last"]
    assert {"val/miou", "val/miou_branch2", "val/miou_ensemble"} <= last.keys()


# Two processes --------------------------------------------------------------------------------------------------------

TWO_RANKS = """
from common.model.networks import NetworkConfig
from methods.cps.module import CPS

network, state, batch = torch.load(f"{folder}/given.pt")
model = CPS(3, network=NetworkConfig(**network)).double().eval()
model.load_state_dict(state)
half = {}
for name, stream in batch.items():
    count = len(stream["image"]) // 2
    half[name] = {key: value[rank * count : (rank + 1) * count] for key, value in stream.items()}
model.compute_loss(half).loss.backward()
found = [p.grad for p in model.parameters() if p.requires_grad]
for one in found:
    dist.all_reduce(one)
    one /= 2
if rank == 0:
    torch.save(found, f"{folder}/found.pt")
"""


def test_gradients_of_two_processes_are_those_of_one(tmp_path):
    """Valid pixels and labels fall unevenly on the ranks."""
    model = build(PLAIN).double()
    given = {"labeled": stream(True, 4, 0), "unlabeled": stream(False, 4, 1)}
    for one in given.values():
        one["image"] = one["image"].double()
    torch.save((PLAIN, model.state_dict(), given), tmp_path / "given.pt")
    model.compute_loss(given).loss.backward()
    two_processes(TWO_RANKS, tmp_path)
    found = torch.load(tmp_path / "found.pt")
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for (name, p), other in itertools.zip_longest(trained, found):
        torch.testing.assert_close(p.grad, other, rtol=1e-6, atol=1e-10, msg=name)
