"""CAM head, maps of several scales, the network, and the score of maps."""

import pytest
import torch
from torch.nn import functional as F

import methods
from common.model.affinity import add_affinity
from common.model.cam import CamHead, build_cam_network, image_logits, multi_scale_cam
from common.model.metrics import CamMetrics, scores
from common.model.networks import NetworkConfig
from common.ops.walk import bilateral_affinity
from conftest import two_processes


def test_pooling_and_head_can_be_swapped():
    torch.manual_seed(0)
    head, features = CamHead(7, 4).double(), torch.rand(2, 7, 5, 6).double()
    pooled = F.conv2d(features.mean((2, 3), keepdim=True), head[0].weight).flatten(1)
    torch.testing.assert_close(image_logits(head(features)), pooled, rtol=0, atol=1e-12)


def test_padding_is_in_no_logit():
    a, valid = torch.rand(2, 3, 4, 4).double(), torch.zeros(2, 8, 8, dtype=torch.bool)
    valid[:, :4, :6] = True
    torch.testing.assert_close(image_logits(a, valid), a[:, :, :2, :3].mean((2, 3)))
    assert (image_logits(a, torch.zeros_like(valid)) == 0).all()


def stub(image):
    """Symmetric: what it finds in a mirror image is the mirror image of what it finds."""
    return F.avg_pool2d(torch.cat([image, 1 - image], 1), 4) - 0.3


def test_the_map_of_the_mirror_image_is_the_mirror_image_of_the_map():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 24, 32).double()
    scales = (0.5, 1, 1.5, 2)
    one, other = (multi_scale_cam(stub, x, (30, 41), scales, True, 4) for x in (image, image.flip(-1)))
    torch.testing.assert_close(other, one.flip(-1))
    assert one.min() >= 0
    assert one.shape == (1, 6, 30, 41)


def test_scales_and_flip_add_up():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 16, 24)
    resized = lambda x: F.interpolate(stub(x).relu(), (16, 24), mode="bilinear", align_corners=False)  # noqa: E731
    double = F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
    both = [(resized(x), resized(x.flip(-1)).flip(-1)) for x in (image, double)]
    torch.testing.assert_close(multi_scale_cam(stub, image, (16, 24), (1, 2), True), sum(a + b for a, b in both))
    torch.testing.assert_close(multi_scale_cam(stub, image, (16, 24), (1,), False), both[0][0])


@pytest.mark.parametrize(
    ("method", "normalisation"), [(methods.CAM, "max"), (methods.CAM, "minmax"), (methods.CPN, "minmax")]
)
def test_the_network_alone_labels_as_the_method_does_at_one_scale(method, normalisation):
    """It is what is exported."""
    torch.manual_seed(0)
    model = method(4, network=NetworkConfig("Unet", "tu-test_resnet"), scales=[1.0], flip=False, threshold=0.45,
                   normalisation=normalisation).eval()  # fmt: skip
    weight = model.classifier.model.segmentation_head[0].weight
    weight.data = weight.data.abs()
    image = F.interpolate(torch.rand(1, 3, 5, 6), (160, 192), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        cam = model.cam_of(image[0], F.pad(model.find_tags(image)[0] > 0, (1, 0)), (160, 192))
        labels = torch.cat([torch.full((1, 160, 192), 0.45), cam]).argmax(0)
        alone = model.network(image)[0].argmax(0)
    assert 0.05 < (labels > 0).float().mean() < 0.95
    assert (labels != alone).float().mean() < 1e-3


def test_cells_of_the_walk_cover_the_image_where_its_sides_do_not_divide():
    model = methods.CAM(3, network=NetworkConfig("Unet", "tu-test_resnet"))
    image = torch.linspace(0, 1, 45).expand(1, 3, 30, 45)
    affinity = model.walk_affinity(image)
    assert affinity.shape[2:] == (8, 11)
    ramp = F.avg_pool2d(F.interpolate(image, (32, 44), mode="bilinear"), 4)
    torch.testing.assert_close(affinity, bilateral_affinity(ramp, 5, 0.1))


# The network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["tu-test_resnet", "tu-test_vit"])
def test_a_network_has_stride_16_where_its_encoder_can(encoder):
    network = build_cam_network(NetworkConfig("Unet", encoder), 4, 0.2).eval()
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert network.activations(image).shape == (2, 3, 4, 6)
        scores = network(image[..., :50, :70])
    assert scores.shape == (2, 4, 50, 70)
    assert torch.isfinite(scores).all()
    groups = network.parameter_groups(0.1)
    assert groups[-1]["params"] == [network.model.segmentation_head[0].weight]
    trained = [p for p in network.parameters() if p.requires_grad]
    torch.autograd.grad(image_logits(network.activations(image)).sum(), trained)  # raises where one has no part in it


def test_the_logits_are_the_scores_of_the_classes_that_it_finds():
    network = build_cam_network(NetworkConfig("Unet", "tu-test_resnet"), 3, 0.2).eval()
    torch.nn.init.constant_(network.model.segmentation_head[0].weight[1], -1)  # features are >= 0: never found
    torch.nn.init.constant_(network.model.segmentation_head[0].weight[0], 1)
    with torch.no_grad():
        scores = network(torch.rand(1, 3, 32, 48)).exp()
    assert scores[:, 0].unique().tolist() == pytest.approx([0.2])
    assert scores[:, 1].max() > 0.99
    assert scores[:, 2].max().item() == pytest.approx(1e-6)


def test_it_is_built_where_gradients_are_off():
    with torch.no_grad():
        network = build_cam_network(NetworkConfig("Unet", "tu-test_resnet"), 3, 0.2)
    assert network.model.segmentation_head[0].weight.requires_grad


def test_a_wrong_encoder_is_told_as_everywhere():
    with pytest.raises(ValueError, match="unknown encoder 'mobilenet_v9'"):
        build_cam_network(NetworkConfig(encoder="mobilenet_v9"), 4, 0.2)


# The score ---------------------------------------------------------------------------------------------------------


def test_the_sweep_of_four_pixels_has_its_hand_values():
    metric = CamMetrics(2)
    metric.update(
        torch.tensor([0.1, 0.4, 0.6, 0.3], dtype=torch.float64).view(1, 1, 1, 4), torch.tensor([[[0, 0, 1, 1]]])
    )
    found = metric.compute()
    for threshold, miou in ((5, 0.25), (20, 0.583333), (35, 0.333333), (50, 0.583333), (70, 0.25)):
        assert found["curve"][threshold].item() == pytest.approx(100 * miou, abs=1e-4)
    assert found["miou"].item() == pytest.approx(58.3333, abs=1e-3)
    assert found["threshold"].item() == 0.1  # the lowest with the best value


def random_maps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    cam = torch.rand(3, 4, 11, 9, generator=generator)
    cam[:, :, :4] = (100 * cam[:, :, :4]).round() / 100  # on thresholds, as float32 has them
    cam[0, 1:] = 0
    mask = torch.randint(0, 5, (3, 11, 9), generator=generator)
    mask[torch.rand(3, 11, 9, generator=generator) < 0.2] = 255
    return cam, mask


def test_it_is_brute_force_at_every_threshold():
    cam, mask = random_maps()
    metric = CamMetrics(5)
    metric.update(cam, mask)
    curve = metric.compute()["curve"]
    high, winner = cam.double().max(1)
    for j in range(101):
        labels = torch.where(high > j / 100, winner + 1, 0)
        confusion = torch.zeros(5, 5, dtype=torch.int64)
        for truth, found in zip(mask[mask != 255].tolist(), labels[mask != 255].tolist(), strict=True):
            confusion[truth, found] += 1
        torch.testing.assert_close(curve[j], scores(confusion)["miou"], rtol=1e-12, atol=0)


def test_a_mask_in_bytes_counts_as_any_other():
    cam, mask = torch.rand(1, 20, 4, 5), torch.full((1, 4, 5), 20)  # 20 * 20 is more than a byte holds
    one, two = CamMetrics(21), CamMetrics(21)
    one.update(cam, mask)
    two.update(cam, mask.byte())
    assert torch.equal(one.counts, two.counts)


def test_halves_add_up_and_a_mask_without_labels_is_no_number():
    cam, mask = random_maps()
    whole, parts = CamMetrics(5), CamMetrics(5)
    whole.update(cam, mask)
    for one in range(3):
        parts.update(cam[one : one + 1], mask[one : one + 1])
    assert torch.equal(whole.counts, parts.counts)
    empty = CamMetrics(5)
    empty.update(cam, torch.full_like(mask, 255))
    assert all(torch.isnan(empty.compute()[name]) for name in ("miou", "threshold"))
    with pytest.raises(ValueError, match="differ in shape or classes"):
        empty.update(cam[:, :3], mask)
    with pytest.raises(ValueError, match="mask holds class 9"):
        empty.update(cam, torch.full_like(mask, 9))


SPLIT = """
sys.path.insert(0, "tests/common/model"); sys.path.insert(0, "tests")
from test_cam_network import CamMetrics, random_maps
cam, mask = random_maps()
metric = CamMetrics(5)
metric.update(cam[rank::2], mask[rank::2])
whole = CamMetrics(5)
whole.update(cam, mask)
whole._to_sync = False
assert torch.equal(metric.compute()["curve"], whole.compute()["curve"])
"""


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path):
    two_processes(SPLIT, tmp_path)


@pytest.mark.parametrize("encoder", ["tu-test_resnet", "tu-test_vit"])
def test_a_network_with_affinities_trains_them_and_nothing_else(encoder):
    torch.manual_seed(0)
    network = build_cam_network(NetworkConfig("Unet", encoder), 4, 0.2)
    frozen = {name: value.clone() for name, value in network.state_dict().items()}
    add_affinity(network)
    image = torch.rand(2, 3, 160, 160)
    distance = network.affinity(network.prepared(image))
    cells = 20 if encoder == "tu-test_resnet" else 10  # stride 8, or the patches'
    assert distance.shape == (2, 34, cells, cells)
    groups = network.parameter_groups(0.1)
    assert [group["lr_scale"] for group in groups] == [0.1, 1.0]
    assert {id(p) for p in groups[0]["params"]} <= {id(p) for p in network.affinity.encoder.parameters()}
    distance[distance.isfinite()].sum().backward()
    trained = [p for group in groups for p in group["params"]]
    assert all(p.grad is not None for p in trained)
    torch.optim.SGD(trained, 0.1).step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, frozen.get(name, value))}
    assert not changed
