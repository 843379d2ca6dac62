"""Encoders: a table of families at odd sizes, the patch grid of plain vision transformers, and our decoders on them."""

import re

import pytest
import timm
import torch
from torch.nn import functional as F

from common.model.decoders import DPTDecoder
from common.model.networks import NetworkConfig, build_network

FPN = {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32}
UPERNET = {"decoder_channels": 16}
SLIM = {"features": 8, "out_channels": [8, 8, 8, 8]}
# arch, encoder, decoder, patch or stride: the smallest of each family.
TABLE = [
    ("Linear", "vit_small_patch14_dinov2", {}, 14),
    ("UniMatchDPT", "vit_small_patch14_reg4_dinov2", {}, 14),
    ("UniMatchDPT", "vit_small_patch16_dinov3", SLIM, 16),
    ("UniMatchDPT", "eva02_tiny_patch14_224", SLIM, 14),
    ("UniMatchDPT", "vit_xsmall_patch16_clip_224", {}, 16),
    (
        "DPT",
        "vit_xsmall_patch16_clip_224",
        {"decoder_fusion_channels": 8, "decoder_intermediate_channels": [8] * 4},
        32,
    ),
    ("Linear", "test_vit", {}, 16),
    ("FPN", "swin_tiny_patch4_window7_224", FPN, 32),
    ("FPN", "convnext_atto", FPN, 32),
    ("UPerNet", "sam2_hiera_tiny", UPERNET, 32),
    ("FPN", "mit_b0", FPN, 32),
]
LARGE = [
    ("UniMatchDPT", "samvit_base_patch16_224", SLIM, 16),
    ("Linear", "samvit_base_patch16_224", {}, 16),
    ("UniMatchDPT", "vit_base_patch14_dinov2", {}, 14),
    ("UniMatchDPT", "vit_large_patch14_dinov2", {}, 14),
    ("Linear", "vit_base_patch32_clip_224", {}, 32),
    ("Linear", "eva02_base_patch14_224", {}, 14),
    ("Linear", "naflexvit_base_patch16_gap", {}, 16),
    ("UPerNet", "swin_base_patch4_window7_224", UPERNET, 32),
    ("UPerNet", "convnext_base", UPERNET, 32),
]
VIT = {"arch": "UniMatchDPT", "encoder": "test_vit", "decoder": SLIM}


def build(arch, encoder, decoder, **more):
    torch.manual_seed(0)
    return build_network(NetworkConfig(arch=arch, encoder=encoder, decoder=decoder, **more), 3)


def name(row):
    return f"{row[0]}-{row[1]}"


@pytest.mark.parametrize("row", [*TABLE, *(pytest.param(one, marks=pytest.mark.slow) for one in LARGE)], ids=name)
def test_odd_sizes_give_logits_of_that_size_and_every_trained_parameter_a_gradient(row):
    arch, encoder, decoder, stride = row
    network = build(arch, encoder, decoder)
    assert network.stride == stride
    for height, width in [(33, 65), (2 * stride, 2 * stride)]:
        network.zero_grad(set_to_none=True)
        logits = network(torch.rand(2, 3, height, width))
        assert logits.shape == (2, 3, height, width)
        assert torch.isfinite(logits).all()
        logits.square().mean().backward()
        trained = {name for name, one in network.named_parameters() if one.requires_grad}
        reached = {name for name, one in network.named_parameters() if one.grad is not None}
        assert trained == reached
        assert sum(one.startswith("model.encoder.") for one in trained) > 20


def test_the_token_grid_covers_the_padded_image():
    network = build("UniMatchDPT", "vit_small_patch14_dinov2", {}).eval()
    for size, grid in [((518, 518), (37, 37)), ((266, 322), (19, 23)), ((260, 309), (19, 23))]:
        with torch.no_grad():
            maps, tokens = network.encode(torch.rand(1, 3, *size))
        assert tokens is None
        assert [one.shape for one in maps] == [(1, 384, *grid)] * 4
        assert network.padded_size(*size) == (14 * grid[0], 14 * grid[1])


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_maps_are_timms_tokens_after_the_last_norm_without_class_and_registers(name):
    network = build("Linear", name, {}).eval()
    model, patch = network.model.encoder.model, network.stride
    image = torch.rand(1, 3, 3 * patch, 5 * patch)
    with torch.no_grad():
        tokens = model.forward_features((image - network.mean) / network.std)
        (found,), _ = network.encode(image)
    assert tokens.shape[1] == 15 + model.num_prefix_tokens == 15 + 5
    torch.testing.assert_close(found, tokens[:, 5:].transpose(1, 2).unflatten(2, (3, 5)))


@pytest.mark.parametrize(
    ("name", "layers", "features", "widths"),
    [
        ("vit_small_patch14_dinov2", [2, 5, 8, 11], 64, [48, 96, 192, 384]),
        ("vit_base_patch14_dinov2", [2, 5, 8, 11], 128, [96, 192, 384, 768]),
        pytest.param("vit_large_patch14_dinov2", [4, 11, 17, 23], 256, [256, 512, 1024, 1024], marks=pytest.mark.slow),
        pytest.param("vit_giant_patch14_dinov2", [9, 19, 29, 39], 384, [1536] * 4, marks=pytest.mark.slow),
    ],
)
def test_unimatch_v2s_numbers(name, layers, features, widths):
    with torch.device("meta"):
        network = build_network(NetworkConfig("UniMatchDPT", name), 21)
    assert network.model.encoder.layers == layers
    assert [one.out_channels for one in network.model.decoder.projects] == widths
    assert {one.out_channels for one in network.model.decoder.levels} == {features} == {network.decoder_channels}


def test_the_decoder_computes_the_formula():
    """Written out as in model/semseg/dpt.py and model/util/blocks.py of UniMatch V2, from the deepest level on."""
    torch.manual_seed(0)
    decoder = DPTDecoder([6] * 4, 4, [3, 4, 5, 6]).double()
    maps = [torch.rand(2, 6, 3, 5, dtype=torch.double) for _ in range(4)]
    p, levels = decoder.get_parameter, []

    def conv(x, where, padding=0, **more):
        bias = f"{where}.bias"
        bias = p(bias) if bias in dict(decoder.named_parameters()) else None
        return F.conv2d(x, p(f"{where}.weight"), bias, padding=padding, **more)

    def unit(x, where):
        return x + conv(conv(x.relu(), f"{where}.conv1", 1).relu(), f"{where}.conv2", 1)

    for n in range(4):
        x = conv(maps[n], f"projects.{n}")
        if n < 2:
            x = F.conv_transpose2d(x, p(f"resizes.{n}.weight"), p(f"resizes.{n}.bias"), stride=4 - 2 * n)
        if n == 3:
            x = conv(x, "resizes.3", 1, stride=2)
        levels.append(conv(x, f"levels.{n}", 1))
    assert [tuple(one.shape[-2:]) for one in levels] == [(12, 20), (6, 10), (3, 5), (2, 3)]
    fused = 0
    for n in (3, 2, 1, 0):
        x = levels[n] if n == 3 else fused + unit(levels[n], f"fusions.{n}.of_level")
        size = levels[n - 1].shape[-2:] if n else (24, 40)
        x = F.interpolate(unit(x, f"fusions.{n}.of_sum"), size, mode="bilinear", align_corners=True)
        fused = conv(x, f"fusions.{n}.project")
    torch.testing.assert_close(decoder(maps), fused)


def test_linear_is_batchnorm_and_a_pointwise_map_of_the_last_tokens():
    network = build("Linear", "test_vit", {}).train()
    image = torch.rand(2, 3, 48, 33)
    head = network.model.segmentation_head[0]
    tokens = network.encode(image)[0][-1]
    mean, var = tokens.mean((0, 2, 3), keepdim=True), tokens.var((0, 2, 3), unbiased=False, keepdim=True)
    normalised = (tokens - mean) / (var + 1e-5).sqrt()
    logits = torch.einsum("kc,bchw->bkhw", head.weight[:, :, 0, 0], normalised) + head.bias[:, None, None]
    wanted = F.interpolate(logits, (48, 48), mode="bilinear", align_corners=False)[..., :33]
    torch.testing.assert_close(network(image), wanted, rtol=1e-4, atol=1e-5)
    assert {*dict(network.model.decoder.named_parameters())} == {"norm.weight", "norm.bias"}
    assert {*dict(network.model.segmentation_head.named_parameters())} == {"0.weight", "0.bias"}


@pytest.mark.parametrize(
    ("arch", "encoder", "decoder"),
    [
        ("UPerNet", "hiera_tiny_224", UPERNET),
        pytest.param("UniMatchDPT", "beit_base_patch16_224", SLIM, marks=pytest.mark.slow),
    ],
)
def test_an_encoder_of_one_size_takes_smaller_images_and_refuses_larger_ones_by_name(arch, encoder, decoder):
    network = build(arch, encoder, decoder)
    assert network.only_size == network.stride == 224
    assert network(torch.rand(2, 3, 200, 100)).shape == (2, 3, 200, 100)
    said = f"encoder '{encoder}' takes at most 224 x 224 pixels, got 225 x 100: set data.crop and model"
    with pytest.raises(ValueError, match=re.escape(said)):
        network(torch.rand(1, 3, 225, 100))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "DPT", "encoder": "eva02_tiny_patch14_224", "decoder": {}}, ["power of 2", "UniMatchDPT or Linear"]),
        ({"arch": "FPN", "decoder": {}}, ["plain vision transformer", "arch DPT, UniMatchDPT or Linear, not FPN"]),
        ({"arch": "Linear", "encoder": "convnext_atto", "decoder": {}}, ["arch Linear wants a plain", "use FPN"]),
        ({"arch": "Linear", "encoder": "mobilenet_v2", "decoder": {}}, ["unknown encoder", "timm.list_models()"]),
        ({"arch": "Linear"}, ["unknown decoder argument of Linear 'features'"]),
        ({"decoder": {"layers": [0, 1, 2, 12]}}, ["layers must be rising numbers of its 6 blocks", "[0, 1, 2, 12]"]),
        ({"decoder": {"layers": [0, 2, 1, 3]}}, ["rising numbers", "[0, 2, 1, 3]"]),
        ({"decoder": {"layers": [0, 1]}}, ["layers and out_channels are four each"]),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_with_the_way_out(changes, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        build(**{**VIT, **changes})
    for word in words[1:]:
        assert word in str(error.value)


def test_a_file_of_the_whole_timm_model_loads(tmp_path):
    full = timm.create_model("test_vit", dynamic_img_size=True).eval()
    torch.save(full.state_dict(), tmp_path / "full.pth")
    network = build("Linear", "test_vit", {}, weights=str(tmp_path / "full.pth")).eval()
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        tokens = full.forward_features((image - network.mean) / network.std)[:, full.num_prefix_tokens :]
        torch.testing.assert_close(network.encode(image)[0][0], tokens.transpose(1, 2).unflatten(2, (2, 4)))
