"""Two networks that label each other's images: their groups, mixed pseudo-labels and losses."""

import pytest
import torch
from torch.nn import functional as F

from common.model.networks import NetworkConfig, build_network
from common.model.pairs import MeanLogits, cross_entropies, joint_groups, mixed_pseudo_labels, pixel_mean
from common.ops.mixing import box_masks

UNET = {
    "arch": "Unet",
    "encoder": "tu-test_resnet",
    "decoder": {"decoder_channels": [8, 8, 8, 8], "encoder_depth": 4},
}
SIZE = (40, 56)


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return [build_network(NetworkConfig(**UNET, dropout=0.5), 3) for _ in range(2)]


@pytest.fixture
def unlabeled():
    generator = torch.Generator().manual_seed(1)
    valid = torch.ones(4, *SIZE, dtype=torch.bool)
    valid[0, 16:], valid[1, :, :3] = False, False
    key = torch.tensor([[4, position] for position in range(4)])
    return {"image": torch.rand(4, 3, *SIZE, generator=generator), "valid": valid, "key": key}


def test_the_ensemble_is_the_mean_of_the_logits(networks):
    image = torch.rand(2, 3, *SIZE)
    first, second = (network.eval() for network in networks)
    torch.testing.assert_close(MeanLogits(first, second)(image), (first(image) + second(image)) / 2)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_groups_are_those_of_one_network_with_the_parameters_of_both(networks, decay):
    for network in networks:
        network.layer_decay = decay
    one, both = networks[0].parameter_groups(0.2), joint_groups(networks, 0.2)
    assert [group["lr_scale"] for group in both] == [group["lr_scale"] for group in one]
    assert len(both) == 2 if decay == 1 else len(both) > 2
    found = [id(p) for group in both for p in group["params"]]
    assert sorted(found) == sorted(id(p) for network in networks for p in network.parameters() if p.requires_grad)


def test_answers_to_whole_images_are_mixed_as_the_images(networks, unlabeled):
    image, valid, q = mixed_pseudo_labels(networks, unlabeled, seed=5)
    box = box_masks(unlabeled["key"], SIZE, area=(0.25, 0.5), boxes=3, seed=5)
    with torch.no_grad():
        answers = torch.stack([network.eval()(unlabeled["image"]).softmax(1) for network in networks])
    for n in range(4):
        for found, given in ((image[n], unlabeled["image"]), (q[0, n], answers[0]), (q[1, n], answers[1])):
            assert torch.equal(found, torch.where(box[n], given[n ^ 1], given[n]))
        assert torch.equal(valid[n], torch.where(box[n], unlabeled["valid"][n ^ 1], unlabeled["valid"][n]))
    assert not q.requires_grad


def test_pseudo_labels_move_no_statistics_and_leave_the_mode(networks, unlabeled):
    networks[1].eval()
    before = [{name: value.clone() for name, value in network.state_dict().items()} for network in networks]
    mixed_pseudo_labels(networks, unlabeled, seed=0)
    assert [network.training for network in networks] == [True, False]
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_half_precision_answers_are_raised(networks, unlabeled):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, _, q = mixed_pseudo_labels(networks, unlabeled, seed=0)
    assert q.dtype == torch.float32


def test_boxes_cover_what_the_code_s_do():
    key = torch.tensor([[0, position] for position in range(3000)])
    area = box_masks(key, (64, 64), area=(0.25, 0.5), boxes=3).float().mean((1, 2))
    assert area.mean().item() == pytest.approx(0.25, abs=0.02)
    assert area.quantile(torch.tensor([0.05, 0.95])).tolist() == pytest.approx([0.14, 0.37], abs=0.03)


def test_cross_entropies_and_their_mean():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, *SIZE, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (2, 3, *SIZE), generator=generator)
    valid = torch.rand(3, *SIZE, generator=generator) > 0.3
    error = cross_entropies(list(logits), labels)
    for n in range(2):
        log_p = logits[n].log_softmax(1)
        expected = -log_p.gather(1, labels[n][:, None])[:, 0]
        torch.testing.assert_close(error[n], expected)
        torch.testing.assert_close(pixel_mean(error[n], valid), expected[valid].mean())
    one = F.one_hot(labels[0], 4).movedim(-1, 1) * 1000.0
    assert pixel_mean(cross_entropies([one], labels[:1])[0], valid).item() == 0
    nothing = error[0].requires_grad_()
    loss = pixel_mean(nothing, torch.zeros_like(valid))
    loss.backward()
    assert loss.item() == nothing.grad.abs().max() == 0
