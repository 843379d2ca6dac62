"""Frozen encoders, low-rank updates and checkpointed activations: what moves, what is kept for the gradient, errors."""

import copy
import re
import sys

import pytest
import torch
from torch import nn

import methods
from common.model import adapt
from common.model.adapt import LoRAConfig, batch_norms, merged
from common.model.ema import EMATeacher
from common.model.networks import NetworkConfig, build_network
from common.model.optim import build_optimizer
from common.training.checkpoints import LastCheckpoint
from conftest import fit_tiny, weakseg
from experiments.runs.load import load_run
from same_run import assert_same_run, load

SLIM = {"features": 8, "out_channels": [8, 8, 8, 8]}
VIT = {"arch": "UniMatchDPT", "encoder": "test_vit", "decoder": SLIM}
UNET = {"arch": "Unet", "encoder": "tu-test_resnet", "decoder": {"decoder_channels": [16, 16, 8, 8, 8]}}
SEGFORMER = {"arch": "Segformer", "encoder": "mit_b0", "decoder": {"decoder_segmentation_channels": 16}}  # drops paths
LARGER = pytest.mark.slow  # seconds
SWIN = {"arch": "UPerNet", "encoder": "swin_tiny_patch4_window7_224", "decoder": {"decoder_channels": 16}}
DINOV3 = {"arch": "Linear", "encoder": "vit_small_patch16_dinov3"}


def lora(**options):
    pytest.importorskip("peft")
    return LoRAConfig(**{"rank": 4, **options})


def build(settings, **more):
    torch.manual_seed(0)
    return build_network(NetworkConfig(**settings, **more), 3)


def step(network, seed=0):
    """One step of SGD with a large rate on random images, in training mode."""
    groups = network.parameter_groups(1.0)
    optimizer = build_optimizer(lambda params: torch.optim.SGD(params, lr=0.5), groups)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    network.train()
    network(image).square().mean().backward()
    trained = {name for name, one in network.named_parameters() if one.requires_grad}
    assert trained == {name for name, one in network.named_parameters() if one.grad is not None}  # as DDP wants it
    assert len(trained) == sum(len(group["params"]) for group in optimizer.param_groups)
    optimizer.step()


def kept(network, side=64):
    """Bytes that one forward in training mode keeps for the backward pass, beside the parameters."""
    own, found = {one.data_ptr() for one in network.parameters()}, {}

    def keep(tensor):
        if tensor.data_ptr() not in own:
            found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    image = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = network.train().encode(image)[0]
    assert all(torch.isfinite(one).all() for one in out)
    return sum(found.values())


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(before, after, prefix):
    """Which entries below `prefix` are bit-identical."""
    names = [name for name in before if name.startswith(prefix)]
    return {name: torch.equal(before[name], after[name]) for name in names}


# Frozen ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [VIT, UNET, SEGFORMER, pytest.param(SWIN, marks=LARGER)])
def test_a_frozen_encoder_is_bit_identical_after_a_step_and_keeps_nothing_for_the_gradient(settings):
    network = build(settings, freeze="encoder")
    teacher = EMATeacher(network, 0.5)
    before = state(network)
    step(network)
    teacher.update(network)
    for after in (network.state_dict(), teacher.network.state_dict()):
        assert all(same(before, after, "model.encoder.").values())
        assert not all(same(before, after, "model.decoder.").values())
        assert not all(same(before, after, "model.segmentation_head.").values())
    assert kept(network) == 0 < kept(build(settings))
    assert not any(part.training for part in network.model.encoder.modules())
    assert network.model.decoder.training
    assert len(network.parameter_groups(0.1)) == 2
    assert not network.encoder_parameters()


@pytest.mark.parametrize(
    ("settings", "count", "of"), [(VIT, 3, 7), (UNET, 2, 4), (SEGFORMER, 2, 4), pytest.param(SWIN, 2, 5, marks=LARGER)]
)
def test_the_first_layers_are_frozen_and_the_others_learn(settings, count, of):
    whole = build(settings)
    layers = whole.encoder_layers()
    assert len(layers) == of
    names = {id(one): name for name, one in whole.named_parameters()}
    frozen = {names[id(one)] for layer in layers[:count] for one in layer}
    network = build(settings, freeze=count, layer_decay=0.5)
    before = state(network)
    step(network)
    moved = {name for name, one in network.named_parameters() if not torch.equal(before[name], one)}
    assert not moved & frozen
    assert all(moved & {names[id(one)] for one in layer} for layer in layers[count:])
    assert [group["lr_scale"] for group in network.parameter_groups(1.0)] == [
        *(0.5**n for n in range(of - count - 1, -1, -1)),
        1.0,
    ]
    assert 0 < kept(network) < kept(whole)
    still = [one for one in batch_norms(network.model.encoder) if not one.training]
    buffers = [name for name in before if name.endswith("running_mean") and "encoder" in name]
    unmoved = [name for name in buffers if torch.equal(before[name], network.state_dict()[name])]
    assert len(still) == len(unmoved)
    assert (0 < len(still) < len(buffers)) == (settings is UNET)


def test_layer_decay_holds_for_every_method():
    for name in methods.CLASSES:
        options = {"mode": "supervised"} if name == "LevelSet" else {}
        model = getattr(methods, name)(3, network=NetworkConfig(**UNET, layer_decay=0.5), **options)
        scales = [group["lr_scale"] for group in model.parameter_groups() if "lr_scale" in group]
        assert scales[:5] == [*(0.1 * 0.5**n for n in (3, 2, 1, 0)), 1.0], name


def test_every_method_has_groups_with_a_frozen_encoder():
    for name in methods.CLASSES:
        model = getattr(methods, name)(3, network=NetworkConfig(**UNET, freeze="encoder"))
        optimizer = build_optimizer(torch.optim.AdamW, model.parameter_groups())
        in_groups = sorted(id(one) for group in optimizer.param_groups for one in group["params"])
        others = "discriminator|scale_table"  # have an optimizer of their own
        generator = [one for part, one in model.named_parameters() if one.requires_grad and not re.search(others, part)]
        assert in_groups == sorted(map(id, generator)), name
        assert all(group["params"] for group in optimizer.param_groups)


# LoRA -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [VIT, SEGFORMER, *(pytest.param(one, marks=LARGER) for one in (DINOV3, SWIN))])
def test_low_rank_updates_start_at_zero_learn_alone_and_merge_into_a_plain_network(settings):
    plain, network = build(settings), build(settings, lora=lora())
    network.load_state_dict({**network.state_dict(), **based(plain, network)})
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(image), plain.eval()(image))
    before = state(network)
    step(network)
    unmoved = same(before, network.state_dict(), "model.encoder.")
    assert all(value for name, value in unmoved.items() if ".lora_" not in name)
    assert not any(value for name, value in unmoved.items() if ".lora_B." in name)
    assert sum(".lora_A." in name for name in unmoved) == sum(".lora_B." in name for name in unmoved) > 3
    trained = {f"model.encoder.{name}" for name, one in network.model.encoder.named_parameters() if one.requires_grad}
    assert trained == {name for name in unmoved if ".lora_" in name}

    for name, one in network.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(one)
    network, plain, image = network.double().eval(), plain.double().eval(), image.double()
    one = merged(network)
    assert one.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(one.state_dict())
    with torch.no_grad():
        wanted = network(image)
        torch.testing.assert_close(plain(image), wanted, rtol=1e-9, atol=1e-10)
        network.load_state_dict(before)
        assert (network(image) - wanted).abs().max() > 1e-6
    assert merged(plain) is plain


def based(plain, network):
    """The weights of a plain network by the names that they have under low-rank updates."""
    own = {name.replace(".base_layer.", "."): name for name in network.state_dict()}
    return {own[name]: value for name, value in plain.state_dict().items()}


def test_the_update_is_alpha_over_rank_times_b_a():
    network = build(VIT, lora=lora(rank=2, alpha=6.0, layers=["fc1"]))
    layer = network.model.encoder.model.blocks[1].mlp.fc1
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert (a.shape[0], b.shape[1]) == (2, 2)
    nn.init.normal_(b)
    weight = layer.base_layer.weight + 3 * b @ a
    torch.testing.assert_close(merged(network).model.encoder.model.blocks[1].mlp.fc1.weight, weight)
    names = {name.partition(".lora_")[0] for name, _ in network.named_parameters() if ".lora_" in name}
    assert names == {f"model.encoder.model.blocks.{n}.mlp.fc1" for n in range(6)}


def test_full_training_keeps_more_than_low_rank_updates_and_these_more_than_a_frozen_encoder():
    bytes_of = [kept(build(VIT, **more), side=128) for more in ({"freeze": "encoder"}, {"lora": lora()}, {})]
    assert 0 == bytes_of[0] < bytes_of[1] < bytes_of[2]


def test_a_copy_and_a_teacher_have_updates_of_their_own():
    network = build(VIT, lora=lora())
    teacher, twin = EMATeacher(network, 0.5), copy.deepcopy(network)
    step(network)
    teacher.update(network)
    name = next(name for name in network.state_dict() if ".lora_B." in name)
    assert torch.equal(twin.state_dict()[name], torch.zeros_like(twin.state_dict()[name]))
    torch.testing.assert_close(teacher.network.state_dict()[name], network.state_dict()[name] / 2)


NETWORK = "{arch: UniMatchDPT, encoder: test_vit, decoder: {features: 8, out_channels: [8, 8, 8, 8]}, lora: {rank: 2}}"
RUN = ["--model.init_args.network", NETWORK, "--model.init_args.encoder_lr_scale", "1", "--trainer.max_steps", "4"]


def test_a_run_with_updates_and_a_teacher_resumes_exactly_and_loads(tmp_path, monkeypatch):
    lora()
    run = ["--model", "CutMixSeg", *RUN]
    fit_tiny(tmp_path / "whole", *run)
    stored = load(tmp_path / "whole")["state_dict"]
    for prefix in ("network.", "teacher.network."):
        updates = [name for name in stored if name.startswith(prefix) and ".lora_B." in name]
        assert len(updates) == 6
        assert all(stored[name].abs().max() > 0 for name in updates)
    loaded, image = load_run(tmp_path / "whole", "last").network, torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(merged(loaded)(image), loaded(image), rtol=1e-4, atol=1e-5)

    save = LastCheckpoint._save

    def save_and_die(self, trainer):
        save(self, trainer)
        if trainer.global_step == 2:
            raise ValueError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "_save", save_and_die)
        fit_tiny(tmp_path / "cut", *run, expect=1)
    fit_tiny(tmp_path / "cut", *run, "--resume", "auto")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_with_updates_starts_from_one_of_the_whole_network(tmp_path):
    lora()
    fit_tiny(tmp_path / "full", RUN[0], NETWORK.replace("lora: {rank: 2}", "freeze: 3"), *RUN[2:])
    said = fit_tiny(tmp_path / "from", *RUN, "--init_from", tmp_path / "full" / "checkpoints" / "last.ckpt")
    assert "drawn anew" in said
    assert ".lora_A." in said
    name = "model.encoder.model.blocks.5.attn.qkv"
    one, two = (load_run(tmp_path / run, "last").network.state_dict() for run in ("full", "from"))
    assert torch.equal(one[f"{name}.weight"], two[f"{name}.base_layer.weight"])


@pytest.mark.slow  # torch.export and the import of what it needs
def test_export_merges(tmp_path):
    lora()
    fit_tiny(tmp_path / "run", *RUN)
    weakseg("export", "--run", tmp_path / "run", "--output", tmp_path / "model.pt2", "--size", "32", "48")
    program = torch.export.load(tmp_path / "model.pt2")
    assert not [name for name in program.state_dict if "lora" in name]
    image = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        wanted = load_run(tmp_path / "run").network(image)
        torch.testing.assert_close(program.module()(image), wanted, rtol=1e-4, atol=1e-4)


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({**VIT, "freeze": 7}, ["'test_vit' has 7 layers", "at most 6, or freeze: encoder"]),
        ({**VIT, "freeze": 0}, ["none, encoder or a number of layers from 1 on, got 0"]),
        ({**VIT, "freeze": True}, ["got True"]),
        ({**VIT, "freeze": "decoder"}, ["none, encoder or a number", "'decoder'"]),
        ({**VIT, "freeze": "encoder", "lora": {}}, ["leave freeze at none, got 'encoder'"]),
        ({**VIT, "lora": {"rank": 0}}, ["rank >= 1 and alpha > 0, got 0"]),
        ({**VIT, "lora": {"layers": ["qvk", "proj"]}}, ["'test_vit' has no qvk", "fc1, fc2, head, proj, qkv"]),
        ({**UNET, "lora": {}}, ["'tu-test_resnet' has no attention layers"]),
        ({**SWIN, "encoder": "swinv2_tiny_window8_256", "lora": {}}, ["reads the weights of qkv past", "lora.layers"]),
    ],
)
def test_what_cannot_be_frozen_or_adapted_is_named_with_the_way_out(settings, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        build({**settings, **({"lora": lora(**settings["lora"])} if "lora" in settings else {})})
    for word in words[1:]:
        assert word in str(error.value)


def test_without_peft_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(adapt, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("network.lora needs peft: pip install -e '.[lora]'")):
        build(VIT, lora=LoRAConfig())
    told = fit_tiny(tmp_path, "--model.network.lora={}", expect=1)
    assert told.endswith("weakseg: error: network.lora needs peft: pip install -e '.[lora]'\n")


# Checkpointed activations, compilation --------------------------------------------------------------------------------

TIMM = [
    ("Linear", "test_vit", {}),
    ("Linear", "vit_small_patch16_dinov3", {}),
    ("Linear", "eva02_tiny_patch14_224", {}),
    ("UPerNet", "convnext_atto", {"decoder_channels": 16}),
    ("UPerNet", "sam2_hiera_tiny", {"decoder_channels": 16}),
    pytest.param("Linear", "samvit_base_patch16_224", {}, marks=pytest.mark.slow),
    pytest.param("UPerNet", "hiera_tiny_224", {"decoder_channels": 16}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("arch", "encoder", "decoder"), TIMM)
def test_every_timm_encoder_keeps_less_with_checkpointed_activations(arch, encoder, decoder):
    settings = {"arch": arch, "encoder": encoder, "decoder": decoder, "freeze_bn": True}
    assert kept(build(settings, checkpoint_activations=True)) < 0.7 * kept(build(settings))


@pytest.mark.slow  # half a minute of compilation
@pytest.mark.parametrize("more", [{"freeze": "encoder"}, {"freeze": 3}, {"lora": None}])
def test_a_compiled_network_with_a_frozen_encoder_computes_the_same(more):
    more = {"lora": lora()} if "lora" in more else more
    plain, compiled = build(VIT, **more).double(), build(VIT, **more, compile=True).double()
    image = torch.rand(2, 3, 48, 64, dtype=torch.double)
    one, two = plain(image), compiled(image)
    torch.testing.assert_close(one, two)
    for network, out in ((plain, one), (compiled, two)):
        out.square().mean().backward()
        assert [p.grad is None for p in network.parameters()] == [not p.requires_grad for p in network.parameters()]
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
