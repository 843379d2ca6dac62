"""Networks: sizes, normalisation, weights files and names, parameter groups, and what a wrong setting is told."""

import copy
import json
import re
from pathlib import Path

import huggingface_hub.constants
import pytest
import segmentation_models_pytorch as smp
import timm
import timm.models._builder
import torch
import torchvision
from safetensors.torch import load_file
from safetensors.torch import save_file as save_contiguous
from torch import Tensor

from common.model.networks import NetworkConfig, SegmentationNetwork, batch_norms, build_network
from common.model.pretrained import (
    COMPUTE_OTHERWISE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    check_takes_files,
    load_encoder,
)

REAL_FILE = Path(__file__).parents[4] / "shared/weights/mobilenet_v2_imagenet_fp16.safetensors"
SLIM_UNET = {"decoder_channels": [16, 16, 8, 8, 8]}
SLIM_DPT = {"decoder_fusion_channels": 16, "decoder_intermediate_channels": [8, 8, 8, 8]}
PAIRS = [
    ("Unet", "test_resnet", SLIM_UNET),
    ("Unet", "mobilenet_v2", SLIM_UNET),
    ("Unet", "test_convnext", SLIM_UNET),
    ("FPN", "test_resnet", {}),
    ("DeepLabV3Plus", "test_resnet", {"decoder_channels": 32}),
    ("PSPNet", "mobilenet_v2", {"psp_out_channels": 32}),
    ("Segformer", "test_convnext", {"decoder_segmentation_channels": 32}),
    ("UPerNet", "test_convnext", {"decoder_channels": 32}),
    ("UPerNet", "swin_tiny_patch4_window7_224", {"decoder_channels": 32}),
    ("DPT", "test_vit", SLIM_DPT),
]
IDS = [f"{arch}-{encoder}" for arch, encoder, _ in PAIRS]


def save_file(state, file, **more):
    """safetensors refuses the channels-last layout that networks have."""
    save_contiguous({name: value.contiguous() for name, value in state.items()}, file, **more)


def tiny(**changes) -> SegmentationNetwork:
    settings = {"encoder": "test_resnet", "decoder": SLIM_UNET, **changes}
    return build_network(NetworkConfig(**settings), num_classes=4).eval()


def encoder_input(network: SegmentationNetwork, image: Tensor) -> Tensor:
    """What the encoder sees of `image`."""
    seen = []
    hook = network.model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(image)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(("arch", "encoder", "decoder"), PAIRS, ids=IDS)
def test_any_size_gives_logits_at_input_size(arch, encoder, decoder):
    network = tiny(arch=arch, encoder=encoder, decoder=decoder)
    for height, width in [(33, 65), (32, 64), (97, 40)]:
        with torch.no_grad():
            logits = network(torch.rand(1, 3, height, width))
        assert logits.shape == (1, 4, height, width)
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("height", "width"), [(321, 321), (513, 321), (1, 769)])
def test_the_usual_crop_sizes(height, width):
    with torch.no_grad():
        assert tiny()(torch.rand(1, 3, height, width)).shape == (1, 4, height, width)


@pytest.mark.parametrize(("arch", "encoder", "decoder"), PAIRS, ids=IDS)
def test_every_trained_parameter_gets_a_gradient_and_has_one_group(arch, encoder, decoder):
    """DDP with find_unused_parameters=False stops at the first parameter without a gradient."""
    network = tiny(arch=arch, encoder=encoder, decoder=decoder).train()
    network(torch.rand(2, 3, 64, 64)).square().sum().backward()
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in network.named_parameters() if p.grad is not None}
    groups = [*network.encoder_parameters(), *network.decoder_parameters()]
    assert sorted(map(id, groups)) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    in_encoder = {id(p) for p in network.model.encoder.parameters()}
    assert {id(p) for p in network.encoder_parameters()} <= in_encoder
    assert network.decoder_parameters()


def scales(network):
    """The groups' learning rates, after a check that each trained parameter is in one of them, the decoder's last."""
    groups = network.parameter_groups(0.2)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    assert [*map(id, groups[-1]["params"])] == [*map(id, network.decoder_parameters())]
    return [group["lr_scale"] for group in groups]


def test_the_encoders_layers_learn_the_slower_the_earlier():
    vit = {"arch": "DPT", "encoder": "test_vit", "decoder": SLIM_DPT}
    assert scales(tiny(**vit)) == [0.2, 1.0]
    decayed = tiny(**vit, layer_decay=0.5)
    assert scales(decayed) == [*(0.2 * 0.5**n for n in range(6, -1, -1)), 1.0]  # patches and positions, six blocks
    first = {id(p) for p in decayed.parameter_groups(1.0)[0]["params"]}
    assert id(decayed.model.encoder.model.patch_embed.proj.weight) in first
    assert decayed.state_dict().keys() == tiny(**vit).state_dict().keys()


@pytest.mark.parametrize(
    ("arch", "encoder", "decoder"),
    [
        ("UPerNet", "swin_tiny_patch4_window7_224", {"decoder_channels": 32}),
        ("Segformer", "mit_b0", {"decoder_segmentation_channels": 32}),
        ("Unet", "mobilenet_v2", {"decoder_channels": [32, 16, 16, 8, 8]}),
    ],
)
def test_layers_are_found_in_timm_and_smp_encoders(arch, encoder, decoder):
    *layers, decoder_scale = scales(tiny(arch=arch, encoder=encoder, decoder=decoder, layer_decay=0.9))
    assert len(layers) > 3
    assert layers == sorted(layers)
    assert (layers[-1], decoder_scale) == (0.2, 1.0)


def test_only_parameters_that_the_forward_cannot_reach_are_frozen():
    assert all(p.requires_grad for p in tiny().parameters())
    frozen = {
        n for n, p in tiny(arch="DPT", encoder="test_vit", decoder=SLIM_DPT).named_parameters() if not p.requires_grad
    }
    assert frozen == {
        f"model.encoder.model.{name}" for name in ("norm.weight", "norm.bias", "head.weight", "head.bias")
    }


def test_building_leaves_a_fresh_network_and_draws_only_its_initial_weights():
    torch.manual_seed(0)
    network = build_network(NetworkConfig(encoder="test_resnet", decoder=SLIM_UNET), num_classes=4)
    after = torch.rand(1)
    assert network.training
    assert all(p.grad is None for p in network.parameters())
    assert all(int(m.num_batches_tracked) == 0 for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    torch.manual_seed(0)
    smp.Unet("tu-test_resnet", encoder_weights=None, classes=4, **SLIM_UNET)
    assert torch.equal(after, torch.rand(1))


def test_the_encoder_sees_the_normalised_image_and_the_mean_colour_as_padding():
    image = torch.rand(2, 3, 40, 33)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 0.125]
    seen = encoder_input(tiny(mean=mean, std=std), image)
    assert seen.shape == (2, 3, 64, 64)
    for channel in range(3):
        expected = (image[:, channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(seen[:, channel, :40, :33], expected)
    assert seen[..., 40:, :].abs().max() == 0
    assert seen[..., 33:].abs().max() == 0


def test_sizes_that_fit_are_not_padded_and_equal_plain_smp():
    network = tiny()
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        plain = network.model((image - network.mean) / network.std)
        torch.testing.assert_close(network(image), plain, rtol=0, atol=0)


def test_dpt_equals_plain_smp():
    network = tiny(arch="DPT", encoder="test_vit", decoder=SLIM_DPT)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        plain = network.model((image - network.mean) / network.std)
        torch.testing.assert_close(network(image), plain, rtol=0, atol=0)


def test_normalisation_defaults_to_imagenet_and_each_half_can_be_set():
    network = tiny(std=[0.5, 0.5, 0.5])
    assert network.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)
    assert network.std.flatten().tolist() == [0.5, 0.5, 0.5]
    assert tiny().std.flatten().tolist() == pytest.approx(IMAGENET_STD)


def test_features_feed_classify():
    network = tiny()
    image = torch.rand(1, 3, 50, 70)
    with torch.no_grad():
        maps, decoded = network.features(image)
        assert [m.shape[-2:] for m in maps[1:]] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
        assert torch.equal(network.classify(decoded, 50, 70), network(image))


@pytest.mark.parametrize("number", [0, 4, -1], ids=["Unet", "DeepLabV3Plus", "DPT"])
def test_encode_and_decode_are_the_two_halves_of_features(number):
    arch, encoder, decoder = PAIRS[number]
    network = tiny(arch=arch, encoder=encoder, decoder=decoder)
    image = torch.rand(2, 3, 50, 70)
    with torch.no_grad():
        maps, tokens = network.encode(image)
        assert (tokens is None) == (arch != "DPT")
        both_maps, both = network.features(image)
        assert all(torch.equal(a, b) for a, b in zip(maps, both_maps, strict=True))
        decoded = network.decode(maps, tokens)
        assert torch.equal(decoded, both)
        assert torch.equal(network.classify(decoded, 50, 70), network(image))
        # what is done to the maps between the two arrives
        assert not torch.allclose(network.decode([2 * one for one in maps], tokens), both)
        # maps of several batches can be put together
        more, parts = network.encode(image.flip(0))
        joined = [torch.cat(pair) for pair in zip(maps, more, strict=True)]
        if tokens is not None:
            tokens = [None if a is None else torch.cat([a, b]) for a, b in zip(tokens, parts, strict=True)]
        torch.testing.assert_close(network.decode(joined, tokens), torch.cat([both, both.flip(0)]))


def test_state_dict_round_trip_carries_the_normalisation():
    source, target = tiny(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]), tiny()
    image = torch.rand(1, 3, 33, 33)
    with torch.no_grad():
        assert not torch.equal(source(image), target(image))
        target.load_state_dict(source.state_dict())
        assert torch.equal(source(image), target(image))
    assert torch.equal(target.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


def test_a_deep_copy_is_independent():
    network = tiny()
    twin = copy.deepcopy(network)
    image = torch.rand(1, 3, 33, 33)
    with torch.no_grad():
        before = twin(image)
        for parameter in network.parameters():
            parameter.zero_()
        assert torch.equal(twin(image), before)
        assert not torch.equal(network(image), before)


@pytest.mark.parametrize(("arch", "encoder", "decoder"), [PAIRS[0], PAIRS[-1]], ids=[IDS[0], IDS[-1]])
def test_dropout_acts_on_whole_decoder_channels_in_training_only_and_adds_no_keys(arch, encoder, decoder):
    network = tiny(arch=arch, encoder=encoder, decoder=decoder, dropout=0.5)
    assert network.state_dict().keys() == tiny(arch=arch, encoder=encoder, decoder=decoder).state_dict().keys()
    image = torch.rand(2, 3, 64, 64)
    seen = []
    network.model.segmentation_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        decoded = network.features(image)[1]
        network.classify(decoded, 64, 64)
        network.dropout.train()
        network.classify(decoded, 64, 64)
    assert torch.equal(seen[0], decoded)
    dropped = (seen[1] == 0).all((2, 3))
    assert 0 < dropped.sum() < dropped.numel()
    torch.testing.assert_close(seen[1][~dropped], 2 * decoded[~dropped])


# Names ----------------------------------------------------------------------------------------------------------------


def test_encoder_names_with_and_without_prefix():
    assert type(tiny(encoder="test_resnet").model.encoder) is smp.encoders.TimmUniversalEncoder
    assert type(tiny(encoder="tu-test_resnet").model.encoder) is smp.encoders.TimmUniversalEncoder
    assert type(tiny(encoder="resnet18").model.encoder) is not smp.encoders.TimmUniversalEncoder  # both know it
    assert type(tiny(encoder="tu-resnet18").model.encoder) is smp.encoders.TimmUniversalEncoder
    assert isinstance(tiny(arch="unet").model, smp.Unet)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "Unett"}, ["unknown arch 'Unett'", "nearest: Unet", "Segformer"]),
        ({"arch": "deeplabv3+"}, ["DeepLabV3Plus"]),
        ({"arch": "zzzzzz"}, ["no similar name", "All of them: Unet, "]),
        ({"encoder": "resnt18"}, ["unknown encoder 'resnt18'", "nearest: resnet18", "timm.list_models()"]),
        ({"encoder": "mobilnet_v2"}, ["nearest: mobilenet_v2", "get_encoder_names()"]),
        ({"encoder": "tu-mobilenet_v2"}, ["unknown encoder 'tu-mobilenet_v2'", "mobilenetv2_100"]),
        ({"encoder": "resnet18.a1_in1k"}, ["encoder: resnet18", "weights: a1_in1k"]),
        ({"decoder": {"decoder_chanels": [1]}}, ["'decoder_chanels'", "nearest: decoder_channels"]),
        ({"decoder": {"classes": 7}}, ["unknown decoder argument of Unet 'classes'"]),
        ({"decoder": {"decoder_channels": [8, 8]}}, ["arch Unet with encoder test_resnet cannot be built", "depth"]),
        ({"arch": "FPN", "decoder": {"upsampling": 2}}, ["(1, 4, 64, 64)", "128 x 128"]),
        ({"encoder": "test_vit"}, ["'test_vit' is a plain vision transformer", "arch DPT"]),
        ({"arch": "DPT", "decoder": SLIM_DPT, "encoder": "mobilenet_v2"}, ["unknown encoder", "timm.list_models()"]),
        ({"arch": "DPT", "decoder": SLIM_DPT, "encoder": "vit_small_patch14_dinov2"}, ["power of 2", "14"]),
        ({"encoder": "mobilenet_v2", "weights": "imagnet"}, ["unknown weights 'imagnet'", "it has: imagenet", ".pth"]),
        ({"weights": "imagenet"}, ["'tu-test_resnet'", "it has: r160_in1k"]),
        ({"mean": [123.7, 116.3, 103.5]}, ["mean must be 3 values", "divide by 255"]),
        ({"std": [0.5]}, ["std must be 3 values"]),
        ({"std": [0.5, 0.0, 0.5]}, ["std must be positive"]),
        ({"dropout": 1.0}, ["dropout must be in [0, 1)"]),
        ({"layer_decay": 0.0}, ["layer_decay must be in (0, 1]"]),
        ({"layer_decay": 1.1}, ["layer_decay must be in (0, 1]"]),
    ],
)
def test_wrong_settings_are_told_what_is_right(changes, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        tiny(**changes)
    for word in words[1:]:
        assert word in str(error.value)


# Named weights (no test here goes to the network) ---------------------------------------------------------------------


@pytest.mark.parametrize(("encoder", "weights"), [("mobilenet_v2", "imagenet"), ("test_resnet", "r160_in1k")])
def test_a_failing_download_names_the_way_out(encoder, weights, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        RuntimeError, match=f"'{weights}' of encoder '{encoder}' could not be downloaded.*weights to null"
    ):
        tiny(encoder=encoder, weights=weights)


@pytest.mark.parametrize("scale", [1, 255])
def test_named_smp_weights_are_loaded_with_their_normalisation(scale, monkeypatch, tmp_path):
    source = tiny(encoder="mobilenet_v2").model.encoder
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    settings = {"mean": [0.25 * scale] * 3, "std": [0.5 * scale] * 3, "input_range": [0, scale], "input_space": "RGB"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(smp.encoders, "hf_hub_download", lambda repo_id, filename, revision: str(tmp_path / filename))
    network = tiny(encoder="mobilenet_v2", weights="imagenet")
    assert network.mean.flatten().tolist() == [0.25] * 3
    assert network.std.flatten().tolist() == [0.5] * 3
    assert torch.equal(network.model.encoder.features[0][0].weight, source.features[0][0].weight)

    (tmp_path / "config.json").write_text(json.dumps({**settings, "input_space": "BGR"}))
    with pytest.raises(ValueError, match="BGR"):
        tiny(encoder="mobilenet_v2", weights="imagenet")


def test_named_timm_weights_are_loaded_with_their_normalisation(monkeypatch):
    source = timm.create_model("test_vit")
    asked = []

    def answer(location, *args, **kwargs):
        asked.append(location)
        return copy.deepcopy(source.state_dict())

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", answer)
    network = tiny(arch="DPT", encoder="test_vit", decoder=SLIM_DPT, weights="r160_in1k")
    assert "test_vit.r160_in1k" in str(asked)
    assert torch.equal(network.model.encoder.model.pos_embed, source.pos_embed)
    assert network.mean.flatten().tolist() == pytest.approx(timm.get_pretrained_cfg("test_vit.r160_in1k").mean)


# Files ----------------------------------------------------------------------------------------------------------------


def mobilenet_state() -> dict[str, Tensor]:
    """A torchvision state dict with statistics that no fresh network has."""
    state = torchvision.models.mobilenet_v2().state_dict()
    for name in state:
        if name.endswith("running_mean"):
            state[name] = torch.rand_like(state[name])
    return state


def test_a_torchvision_file_loads_as_fp32_without_its_classifier(tmp_path):
    state = {name: v.half() if v.is_floating_point() else v for name, v in mobilenet_state().items()}
    assert "classifier.1.weight" in state
    save_file(state, tmp_path / "m.safetensors")
    encoder = tiny(encoder="mobilenet_v2", weights=str(tmp_path / "m.safetensors")).model.encoder
    for name, value in encoder.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64)
        torch.testing.assert_close(value, state[name].to(value.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_an_encoder_state_dict_loads_with_and_without_prefix(prefix, suffix, tmp_path):
    file = tmp_path / f"encoder.{suffix}"
    source = tiny().model.encoder.state_dict()
    (save_file if suffix == "safetensors" else torch.save)({prefix + k: v for k, v in source.items()}, file)
    loaded = tiny(weights=str(file)).model.encoder.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in source.items())


@pytest.mark.parametrize(
    ("arch", "encoder", "decoder"),
    [("Unet", "test_convnext", SLIM_UNET), ("PSPNet", "test_resnet", {}), ("DPT", "test_vit", SLIM_DPT)],
)
def test_the_file_of_a_whole_timm_model_loads(arch, encoder, decoder, tmp_path):
    """As downloaded by hand from timm: another name for some modules, a classifier, stages that smp leaves out."""
    full = timm.create_model(encoder).eval()
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    network = tiny(arch=arch, encoder=encoder, decoder=decoder, weights=str(tmp_path / "full.safetensors"))
    image = torch.rand(1, 3, 160, 160)
    normalised = (image - network.mean) / network.std
    with torch.no_grad():
        maps = network.features(image)[0]
        theirs = full.forward_intermediates(normalised, intermediates_only=True)
    theirs = [feature for feature in theirs if feature.shape == maps[-1].shape]
    assert any(torch.allclose(feature, maps[-1], atol=1e-5) for feature in theirs)


@pytest.mark.parametrize("name", ["densenet121", "dpn68", "legacy_xception", "efficientformer_l1"])
def test_every_feature_extractor_of_timm_takes_the_file_of_the_whole_model(name):
    """Each writes its names in another way: features_conv0, body.conv1, model.stem."""
    full = timm.create_model(name)
    encoder = smp.encoders.get_encoder(f"tu-{name}", weights=None)
    load_encoder(encoder, full.state_dict(), "file", full)
    weights = [value for value in encoder.parameters() if value.ndim == 4]
    assert len(weights) > 30
    theirs = {value.sum().item() for value in full.parameters()}
    assert all(value.sum().item() in theirs for value in weights)


@pytest.mark.parametrize("name", ["densenet121", "mit_b0", "mobileone_s0", "resnet18", "xception"])
def test_smps_encoders_take_a_state_dict_whatever_their_own_method_takes(name):
    encoder = smp.encoders.get_encoder(name, weights=None)
    state = {key: value + 1 for key, value in encoder.state_dict().items()}
    load_encoder(encoder, dict(state), "file", None)
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())


def test_files_from_before_the_batch_counter_load(tmp_path):
    state = {name: v for name, v in mobilenet_state().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    encoder = tiny(encoder="mobilenet_v2", weights=str(tmp_path / "old.pth")).model.encoder
    assert torch.equal(encoder.features[0][1].running_mean, state["features.0.1.running_mean"])


def test_the_stated_input_of_a_file_sets_the_normalisation_unless_the_config_does(tmp_path):
    file = str(tmp_path / "m.safetensors")
    save_file(mobilenet_state(), file, metadata={"input": "(uint8_rgb - 128) / 64"})
    network = tiny(encoder="mobilenet_v2", weights=file)
    image = torch.randint(0, 256, (1, 3, 32, 32))
    torch.testing.assert_close(encoder_input(network, image / 255), (image - 128) / 64)
    chosen = tiny(encoder="mobilenet_v2", weights=file, mean=[0.5] * 3)
    assert chosen.mean.flatten().tolist() == [0.5] * 3
    assert chosen.std.flatten().tolist() == pytest.approx([64 / 255] * 3)

    save_file(mobilenet_state(), file, metadata={"input": "bgr"})
    with pytest.raises(ValueError, match="'bgr', not understood here: set mean and std"):
        tiny(encoder="mobilenet_v2", weights=file)
    tiny(encoder="mobilenet_v2", weights=file, mean=[0.5] * 3, std=[0.5] * 3)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"no weights file nowhere/at_all\.pth"):
        tiny(weights="nowhere/at_all.pth")


def test_a_file_that_does_not_fit_names_its_keys(tmp_path):
    file = tmp_path / "m.pth"

    def message(state) -> str:
        torch.save(state, file)
        with pytest.raises(ValueError, match=r"m\.pth") as error:
            tiny(encoder="mobilenet_v2", weights=str(file))
        return str(error.value)

    state = mobilenet_state()
    missing = message({name: v for name, v in state.items() if not name.startswith("features.0.")})
    assert "missing: features.0.0.weight, features.0.1.weight, features.0.1.bias, features.0.1.running_mean" in missing
    assert "and 1 more" in missing
    assert "unexpected: decoder.x" in message({**state, "decoder.x": torch.zeros(1)})
    assert "features.0.0.weight (1, 3, 3, 3) for (32, 3, 3, 3)" in message(
        {**state, "features.0.0.weight": torch.zeros(1, 3, 3, 3)}
    )
    assert "missing" in message({"classifier.weight": torch.zeros(1)})
    assert "flat dict of names and tensors" in message({"state_dict": state})


@pytest.mark.skipif(not REAL_FILE.exists(), reason=f"needs {REAL_FILE.name} in ../shared/weights")
def test_the_real_file_gives_the_features_of_torchvision():
    network = tiny(encoder="mobilenet_v2", weights=str(REAL_FILE))
    assert network.mean.flatten().tolist() == pytest.approx([128 / 255] * 3)
    assert network.std.flatten().tolist() == pytest.approx([128 / 255] * 3)
    reference = torchvision.models.mobilenet_v2().eval()
    state = {name: v.float() if v.is_floating_point() else v for name, v in load_file(REAL_FILE).items()}
    assert reference.load_state_dict(state, strict=False).missing_keys == ["classifier.1.weight", "classifier.1.bias"]
    image = torch.randint(0, 256, (1, 3, 64, 64))
    with torch.no_grad():
        theirs = reference.features((image - 128) / 128)
        torch.testing.assert_close(network.features(image / 255)[0][-1], theirs, rtol=1e-4, atol=1e-4)
        assert theirs.std() > 0.1  # far above the tolerance


# Twins: names and shapes of a timm model, another computation --------------------------------------------------------


def random_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """Weights that keep activations in range, and statistics that no fresh network has."""
    generator, state = torch.Generator().manual_seed(0), model.state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            state[name] = 0.1 + torch.rand(value.shape, generator=generator)
        elif name.endswith("running_mean"):
            state[name] = 0.1 * torch.randn(value.shape, generator=generator)
        elif value.ndim > 1:
            state[name] = torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
    return state


@pytest.mark.parametrize(
    ("name", "twin", "deepest"),
    [
        ("timm-tf_efficientnet_lite0", "tf_efficientnet_lite0", 4),
        ("timm-efficientnet-b0", "tf_efficientnet_b0", 4),
        ("xception", "legacy_xception", 5),
        ("resnet18", "resnet18", 5),
        ("resnext50_32x4d", "resnext50_32x4d", 5),
        ("se_resnet50", "legacy_seresnet50", 5),
    ],
)
def test_what_computes_something_else_with_the_same_names_is_refused_and_nothing_else(name, twin, deepest, tmp_path):
    full = timm.create_model(twin)
    state = random_state(full)
    ours = smp.encoders.get_encoder(name, weights=None).eval()
    theirs = smp.encoders.get_encoder(f"tu-{twin}", weights=None).eval()
    load_encoder(ours, dict(state), "file", None)
    load_encoder(theirs, dict(state), "file", full)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one, two = ours(image)[deepest], theirs(image)[deepest]
    assert one.shape == two.shape
    same = float((one - two).abs().max() / two.std()) < 1e-3
    assert same == (name not in COMPUTE_OTHERWISE)
    if same:
        check_takes_files(name)
        return
    save_file(state, tmp_path / "timm.safetensors")
    with pytest.raises(ValueError, match=f"encoder '{name}' takes no weights file.*encoder: tu-{twin}"):
        tiny(encoder=name, weights=str(tmp_path / "timm.safetensors"))


def test_refused_encoders_are_smps_and_the_way_out_is_timms():
    registry = smp.encoders.encoders
    assert set(registry) > set(COMPUTE_OTHERWISE)
    assert all(timm.is_model(twin) for twin in COMPUTE_OTHERWISE.values())
    ports = {name for name, entry in registry.items() if entry["encoder"].__module__.endswith("timm_efficientnet")}
    assert ports <= set(COMPUTE_OTHERWISE)


# Switches for large encoders and small batches ---------------------------------------------------------------------


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_scale():
    network = build_network(NetworkConfig("Unet", "tu-test_resnet", decoder=SLIM_UNET, freeze_bn=True), 3).train()
    layers = batch_norms(network)
    assert layers
    before = [layer.running_mean.clone() for layer in layers]
    image = torch.rand(4, 3, 64, 64)
    network(image).sum().backward()
    assert all(torch.equal(layer.running_mean, mean) for layer, mean in zip(layers, before, strict=True))
    assert all(layer.weight.grad is not None for layer in layers)
    torch.testing.assert_close(network(image[:2]), network(image)[:2])  # an image does not see the others
    assert network.training
    assert not any(layer.training for layer in batch_norms(copy.deepcopy(network).train()))


def test_batch_norm_may_be_frozen_in_the_encoder_alone():
    network = build_network(NetworkConfig("Unet", "tu-test_resnet", decoder=SLIM_UNET, freeze_bn="encoder"), 3).train()
    of_encoder = {*batch_norms(network.model.encoder)}
    assert of_encoder
    assert {layer for layer in batch_norms(network) if not layer.training} == of_encoder
    assert {layer for layer in batch_norms(copy.deepcopy(network).train()) if layer.training}


@pytest.mark.parametrize(
    ("arch", "encoder", "decoder"),
    [
        ("UPerNet", "tu-swin_tiny_patch4_window7_224", {}),
        ("DPT", "tu-test_vit", {"decoder_fusion_channels": 16, "decoder_intermediate_channels": [8, 8, 8, 8]}),
        ("Unet", "tu-test_resnet", SLIM_UNET),
    ],
)
def test_checkpointed_activations_give_the_same_gradient_from_less_memory(arch, encoder, decoder):
    def run(switch):
        torch.manual_seed(0)
        config = NetworkConfig(arch, encoder, decoder=decoder, freeze_bn=True, checkpoint_activations=switch)
        network = build_network(config, 3)
        kept = {}

        def keep(tensor):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = network(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        out.square().mean().backward()
        return sum(kept.values()), [p.grad for p in network.parameters() if p.grad is not None]

    memory, gradients = run(False)
    less, same = run(True)
    assert less < memory
    for one, two in zip(gradients, same, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    ("encoder", "words"), [("mobilenet_v2", "needs a timm encoder"), ("tu-test_resnet", "set freeze_bn to true")]
)
def test_checkpointed_activations_are_refused_where_they_would_be_wrong(encoder, words):
    with pytest.raises(ValueError, match=words):
        build_network(NetworkConfig("Unet", encoder, checkpoint_activations=True), 3)


@pytest.mark.slow  # half a minute of compilation
def test_a_compiled_network_computes_the_same_and_its_checkpoint_is_a_plain_one():
    def build(switch):
        torch.manual_seed(0)
        return build_network(NetworkConfig("Unet", "tu-test_resnet", decoder=SLIM_UNET, compile=switch), 3).double()

    plain, compiled = build(False), build(True)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    for side in (64, 96):  # evaluation takes every image at its own size
        image = torch.rand(2, 3, side, side, dtype=torch.double)
        one, two = plain(image), compiled(image)
        torch.testing.assert_close(one, two)
        gradients = [torch.autograd.grad(out.square().mean(), net.encoder_parameters())
                     for out, net in ((one, plain), (two, compiled))]  # fmt: skip
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)
    torch.testing.assert_close(plain.eval()(image), copy.deepcopy(compiled).eval()(image))
