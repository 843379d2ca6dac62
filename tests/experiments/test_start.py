"""`--init_from`: the network of another method, or of other classes; what does not fit is named."""

import pytest
import torch
from PIL import Image

import methods
from common.model.networks import NetworkConfig
from conftest import REPRESENTATIVE, draw_folder, fit_tiny, on_folder, slow_but_for
from experiments.runs.start import HEAD, start_from
from same_run import load

STILL = ["--model.init_args.optimizer.init_args.lr", "0", "--trainer.max_steps", "1"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The first phase: partial cross entropy on a folder of three classes."""
    root = draw_folder(tmp_path_factory.mktemp("first") / "data")
    fit_tiny(root.parent / "run", *on_folder(root), "--trainer.max_steps", "3")
    return root.parent


def source(first):
    return first / "run" / "checkpoints" / "last.ckpt"


def trained(first):
    return {name: value for name, value in load(first / "run")["state_dict"].items() if name.startswith("network.")}


def learned(weights):
    """What an optimizer moves: not the statistics, which a step changes too."""
    return {name: value for name, value in weights.items() if name.endswith(("weight", "bias"))}


OF_PIXELS = [name for name in methods.CLASSES if "pixels" in getattr(methods, name).supervision]


@pytest.mark.parametrize("method", slow_but_for(OF_PIXELS, *REPRESENTATIVE))
def test_every_method_starts_from_partial_cross_entropy(method, first, tmp_path):
    options = ["--model", method, *on_folder(first / "data"), *STILL, "--init_from", source(first)]
    text = fit_tiny(tmp_path / "run", *options)
    assert f"start from {source(first)}" in text
    assert "drawn anew" not in text
    found = load(tmp_path / "run")["state_dict"]
    for name, value in learned(trained(first)).items():
        assert torch.equal(found[name], value), name


def test_a_teacher_starts_as_a_copy(first):
    model = methods.UniMatch(3, variant="v2", network=small())
    text = start_from(model, source(first), ["ground", "red thing", "blue thing"])
    assert "of Supervised" in text
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, trained(first)[f"network.{name}"])
        assert torch.equal(value, model.teacher.network.state_dict()[name])


@pytest.mark.parametrize(
    "classes", ["ground\nblue thing\nred thing\n", "ground\nred thing\nblue thing\nsky\n", "a\nb\n"]
)
def test_the_last_layer_starts_anew_for_other_classes(classes, first, tmp_path):
    root = draw_folder(tmp_path / "data")
    (root / "classes.txt").write_text(classes)
    if classes == "a\nb\n":
        for path in (root / "masks").iterdir():
            with Image.open(root / "images" / path.name) as image:
                mask = Image.new("L", image.size)
            mask.paste(1, (0, 0, 9, 9))
            mask.save(path)
    text = fit_tiny(tmp_path / "run", *on_folder(root), *STILL, "--init_from", source(first))
    assert f"drawn anew: {HEAD}0.weight, {HEAD}0.bias (the classes were ground, red thing, blue thing)" in text
    found = load(tmp_path / "run")["state_dict"]
    for name, value in learned(trained(first)).items():
        assert name.startswith(HEAD) or torch.equal(found[name], value), name
    head = trained(first)[f"{HEAD}0.weight"]
    assert found[f"{HEAD}0.weight"].shape != head.shape or not torch.equal(found[f"{HEAD}0.weight"], head)


def test_of_another_decoder_the_encoder_is_taken(first, tmp_path):
    other = ["--model.init_args.network.decoder.decoder_channels", "[16, 16, 8, 4]"]
    text = fit_tiny(tmp_path / "run", *on_folder(first / "data"), *other, *STILL, "--init_from", source(first))
    assert "drawn anew: network.model.decoder" in text
    found = load(tmp_path / "run")["state_dict"]
    encoder = {name: value for name, value in learned(trained(first)).items() if ".encoder." in name}
    assert encoder
    assert all(torch.equal(found[name], value) for name, value in encoder.items())


def test_another_encoder_is_refused_and_nothing_is_written(first, tmp_path):
    other = ["--model.init_args.network", "{arch: Unet, encoder: tu-test_convnext, decoder: {encoder_depth: 4, "
             "decoder_channels: [12, 12, 6, 6]}}"]  # fmt: skip
    text = fit_tiny(tmp_path / "run", *on_folder(first / "data"), *other, "--init_from", source(first), expect=1)
    assert f"{source(first)} has another encoder than this network" in text
    assert not (tmp_path / "run").exists()


def small():
    decoder = {"decoder_channels": [16, 16, 8, 8], "encoder_depth": 4}
    return NetworkConfig(arch="Unet", encoder="tu-test_resnet", decoder=decoder, dropout=0.2, weights=None)


def test_a_segmentation_network_and_its_classifier_start_from_each_other(tmp_path):
    """The encoder is the same; the head is drawn anew either way."""
    data = draw_folder(tmp_path / "data")
    (data / "classes.txt").write_text("background\nred thing\nblue thing\n")
    last = "checkpoints/last.ckpt"
    for method, before in (("CAM", None), ("Supervised", "CAM"), ("CAM", "Supervised")):
        run = tmp_path / f"{method}-{before}"
        start = ["--init_from", next(tmp_path.glob(f"{before}-*/{last}"))] if before else []
        text = fit_tiny(run, "--model", method, *on_folder(data), *STILL, *start)
        if before:
            assert f"of {before}" in text
            old, new = (load(path.parents[1])["state_dict"] for path in (start[1], run / last))
            encoder = [name for name in learned(old) if ".encoder." in name]
            assert encoder
            assert all(torch.equal(old[name], new[name]) for name in encoder)
