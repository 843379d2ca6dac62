"""Images of more than three bands: every file form gives the same pixels, and the command takes them from fit to
predict."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

import weakseg as package
from common.model.networks import NetworkConfig, build_network, normalise_by
from conftest import FOLDER_SIZES, draw_folder, fit_tiny, on_folder, weakseg
from datamodules.bands import image_reader
from datamodules.transforms import draw_strong, resize_image, strong_view
from experiments.runs.start import start_from

RNG = np.random.default_rng(3)
FIVE = RNG.integers(0, 256, (9, 7, 5), np.uint8)
FOUR = FIVE[..., :4]


def tiff(**how):
    return lambda path, pixels: tifffile.imwrite(path.with_suffix(".tif"), pixels, **how)


def planes(path, pixels):
    with tifffile.TiffWriter(path.with_suffix(".tif")) as file:
        for band in np.moveaxis(pixels, -1, 0):
            file.write(band, photometric="minisblack")


def array(path, pixels):
    np.save(path.with_suffix(".npy"), pixels)


# What writes (H, W, C) as a file of each form.
FORMS = {
    "interleaved": tiff(photometric="minisblack", planarconfig="contig"),
    "RGB and more": tiff(photometric="rgb", planarconfig="contig", extrasamples=(0,) * 2),
    "planes": lambda path, pixels: tiff(photometric="minisblack", planarconfig="separate")(
        path, np.moveaxis(pixels, -1, 0)
    ),
    "deflated": tiff(photometric="minisblack", planarconfig="contig", compression="zlib"),
    "a page a band": planes,
    "an ImageJ stack": lambda path, pixels: tiff(imagej=True)(path, np.moveaxis(pixels, -1, 0)),
    "array": array,
    "array, bands first": lambda path, pixels: array(path, np.ascontiguousarray(np.moveaxis(pixels, -1, 0))),
}


def written(folder, write, pixels):
    write(folder / "image", pixels)
    [path] = folder.iterdir()
    return path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_holds_the_same_bands(tmp_path, form):
    path = written(tmp_path, FORMS[form], FIVE)
    assert (image_reader(5, None, None)(path) == FIVE).all()
    assert (image_reader(5, [4, 3, 2], None)(path) == FIVE[..., [3, 2, 1, 0, 4]]).all()


def test_a_picture_with_four_bands(tmp_path):
    path = written(tmp_path, lambda path, pixels: Image.fromarray(pixels).save(path.with_suffix(".png")), FOUR)
    assert (image_reader(4, None, None)(path) == FOUR).all()


def test_values_of_other_types_need_a_range_for_all_bands_or_for_each(tmp_path):
    deep = (FIVE.astype(np.uint16) * 40).copy()
    path = written(tmp_path, FORMS["interleaved"], deep)
    with pytest.raises(ValueError, match="which are black and white"):
        image_reader(5, None, None)(path)
    together = (deep / 10200 * 255).round().astype(np.uint8)
    assert (image_reader(5, None, [0, 10200])(path) == together).all()
    ranges = [[0, 10200], [0, 5000], [100, 9000], [0, 20000], [-50, 50]]
    found = image_reader(5, [5, 1, 2], ranges)(path)
    for place, band in enumerate((4, 0, 1, 2, 3)):
        low, high = ranges[band]
        slow = ((deep[..., band] - float(low)) / (high - low) * 255).clip(0, 255).round()
        assert np.abs(found[..., place] - slow).max() <= 1, band  # float32 may round a half the other way
        assert (found[..., place] == slow).mean() > 0.95


def test_orientation_turns_all_bands(tmp_path):
    path = written(
        tmp_path, tiff(photometric="minisblack", planarconfig="contig", extratags=[(274, "H", 1, 6, True)]), FIVE
    )
    assert (image_reader(5, None, None)(path) == np.rot90(FIVE, -1)).all()


def hostile(path, header):
    with path.with_suffix(".npy").open("wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


WRONG_FILES = {
    "four bands": (FORMS["interleaved"], FOUR, "has 4 bands, data.channels says 5"),
    "RGB": (FORMS["interleaved"], FIVE[..., :3], "has 3 bands, data.channels says 5"),
    "a plane": (array, FIVE[..., 0], r"holds an array \(9, 7\)"),
    "no dimension of five": (array, FIVE[..., :4], r"holds an array \(9, 7, 4\)"),
    "first or last": (array, RNG.integers(0, 9, (5, 7, 5), np.uint8), "are the bands first or last"),
    "complex numbers": (array, FIVE.astype(complex), "values of the type complex128"),
    "not a number": (array, np.where(FIVE > 9, FIVE, np.nan), "no numbers"),
    "objects": (lambda path, pixels: np.save(path.with_suffix(".npy"), pixels.astype(object)), FIVE, "Python objects"),
    "an empty file": (lambda path, _: path.with_suffix(".npy").write_bytes(b""), FIVE, "cannot be read as an image"),
    "cut short": (
        lambda path, _: hostile(path, b"{'descr': '|u1', 'fortran_order': False, 'shape': (9, 7, 5)}\n"),
        FIVE,
        "cannot be read as an image",
    ),
    "a size of terabytes": (
        lambda path, _: hostile(path, b"{'descr': '|u1', 'fortran_order': False, 'shape': (999999, 999999, 5)}\n"),
        FIVE,
        "999999 x 999999 pixels",
    ),
    "code in a header": (lambda path, _: hostile(path, b"__import__('os').abort()\n"), FIVE, "cannot be read as an"),
    "pages of two sizes": (
        lambda path, pixels: [
            tifffile.imwrite(path.with_suffix(".tif"), pixels[: 9 - n, :, 0], append=n > 0) for n in range(5)
        ],
        FIVE,
        "planes of one size",
    ),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_file_that_does_not_fit_is_named(tmp_path, case):
    write, pixels, message = WRONG_FILES[case]
    path = written(tmp_path, write, pixels)
    with pytest.raises(ValueError, match=message) as error:
        image_reader(5, None, None)(path)
    assert str(path) in str(error.value)


WRONG_OPTIONS = {
    "two channels": ({"channels": 2}, "from 3"),
    "a thousand": ({"channels": 1000}, "to 256"),
    "no such band": ({"channels": 5, "rgb": [0, 1, 2]}, "three of the bands 1 to 5"),
    "two bands": ({"channels": 5, "rgb": [1, 2]}, "three of the bands"),
    "one twice": ({"channels": 5, "rgb": [1, 1, 2]}, "three of the bands"),
    "of pictures": ({"channels": 3, "rgb": [3, 2, 1]}, "more than three bands"),
    "too few ranges": ({"channels": 5, "value_range": [[0, 1]] * 4}, "each of the 5 channels"),
    "high below low": ({"channels": 5, "value_range": [[0, 1]] * 4 + [[1, 0]]}, "low < high"),
    "not a number": ({"channels": 3, "value_range": [0, float("nan")]}, "low < high"),
    "ranges of pictures": ({"channels": 3, "value_range": [[0, 1]] * 3}, "low < high"),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_options_that_contradict_each_other(case):
    options, message = WRONG_OPTIONS[case]
    with pytest.raises(ValueError, match=message):
        image_reader(options["channels"], options.get("rgb"), options.get("value_range"))


def test_resizing_and_strong_views_leave_the_further_bands_in_step():
    image = np.kron(FIVE, np.ones((4, 4, 1), np.uint8))
    small = resize_image(image, (12, 10))
    for band in range(5):
        assert (small[..., band] == resize_image(image[..., [band] * 3], (12, 10))[..., 0]).all()
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    draws = draw_strong(0, torch.zeros(1, 2, dtype=torch.int64), 1)[:, 0]
    view = strong_view(batch, draws)
    assert torch.equal(view[:, 3:], batch[:, 3:])
    assert torch.equal(view[:, :3], strong_view(batch[:, :3], draws))


def test_pretrained_weights_of_rgb_are_repeated_for_further_channels(tmp_path):
    three = build_network(
        NetworkConfig(encoder="tu-test_resnet", decoder={"encoder_depth": 4, "decoder_channels": [8] * 4}), 2
    )
    file = tmp_path / "encoder.pt"
    torch.save(three.model.encoder.state_dict(), file)
    config = NetworkConfig(
        encoder="tu-test_resnet",
        weights=str(file),
        channels=5,
        decoder={"encoder_depth": 4, "decoder_channels": [8] * 4},
    )
    five = build_network(config, 2)
    state = three.model.encoder.state_dict()
    name = next(name for name, weight in state.items() if weight.ndim == 4 and weight.shape[1] == 3)
    weight, found = state[name], five.model.encoder.state_dict()[name]
    for channel in range(5):
        assert torch.allclose(found[:, channel], weight[:, channel % 3] * 3 / 5)
    assert five(torch.rand(1, 5, 37, 41)).shape == (1, 2, 37, 41)


# Through the command -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten images of five bands of 12 bits, arrays and TIFF files."""
    root = draw_folder(tmp_path_factory.mktemp("bands") / "data")
    for number in range(len(FOLDER_SIZES)):
        file = root / "images" / f"{number}.png"
        rgb = np.asarray(Image.open(file)).astype(np.uint16) * 16
        five = np.concatenate([rgb[..., 2:], rgb[..., 1:2] // 2, rgb], -1)
        file.unlink()
        write = FORMS["array" if number % 2 else "interleaved"]
        write(file, five)
    return root


BANDS = ["--data.channels", "5", "--data.rgb", "[3, 4, 5]", "--data.value_range", "[0, 4095]"]


@pytest.fixture(scope="module")
def run_dir(folder):
    options = [*on_folder(folder), *BANDS, "--model", "TV", "--model.weighting", "contrast", "--data.cache", "ram"]
    fit_tiny(folder.parent / "run", *options)
    return folder.parent / "run"


def test_normalisation_is_that_of_the_training_images(folder, run_dir):
    run = package.load_run(run_dir)
    images = [run.data.image(name) / 255 for name in run.data.names("train")]
    mean = np.mean([one.mean((0, 1)) for one in images], 0)
    deviation = np.sqrt(np.mean([(one**2).mean((0, 1)) for one in images], 0) - mean**2)
    assert run.network.mean.flatten().tolist() == pytest.approx(mean.tolist(), abs=1e-5)
    assert run.network.std.flatten().tolist() == pytest.approx(deviation.tolist(), abs=1e-5)
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["model"]["init_args"]["network"]["channels"] == 5


MEASURED = SimpleNamespace(channels=5, statistics=lambda: ([0.9] * 5, [0.8] * 5))
TINY = {"arch": "Unet", "encoder": "tu-test_resnet", "dropout": 0.2, "channels": 5,
        "decoder": {"encoder_depth": 4, "decoder_channels": [16, 16, 8, 8]}}  # fmt: skip


def test_of_mean_and_deviation_the_one_that_is_not_given_is_measured():
    for given, mean, std in (({"mean": [0.1] * 5}, 0.1, 0.8), ({"std": [0.2] * 5}, 0.9, 0.2)):
        network = build_network(NetworkConfig(**TINY, **given), 2)
        normalise_by(network, MEASURED)
        assert network.mean.flatten().tolist() == pytest.approx([mean] * 5)
        assert network.std.flatten().tolist() == pytest.approx([std] * 5)


@pytest.mark.parametrize("method", ["TV", "UniMatch"])
def test_weights_that_a_run_starts_from_keep_their_normalisation(run_dir, method):
    model = getattr(package.methods, method)(3, network=NetworkConfig(**TINY))
    start_from(model, run_dir / "checkpoints" / "last.ckpt", package.load_run(run_dir).class_names)
    normalise_by(model, MEASURED)
    trained = package.load_run(run_dir, "last").network
    assert trained.mean.max() < 0.9
    for network in model.eval_networks().values():
        assert torch.equal(network.mean, trained.mean)
        assert torch.equal(network.std, trained.std)


def test_predictions_tests_and_exports_take_five_bands(folder, run_dir, tmp_path):
    weakseg("test", "--run", run_dir)
    weakseg("compare", run_dir, "--output", tmp_path / "report", "--images", "1")
    with Image.open(next((tmp_path / "report" / "figures").glob("*_pictures.png"))) as sheet:
        assert sheet.mode == "RGB"
    FORMS["interleaved"](folder / "images" / "zz", FOUR)
    try:
        text = weakseg("predict", "--run", run_dir, "--images", folder / "images", "--output", tmp_path, expect=1)
    finally:
        (folder / "images" / "zz.tif").unlink()
    assert "zz.tif has 4 bands, data.channels says 5" in text
    assert "10 images in " in text
    run = package.load_run(run_dir)
    found = run.predict(folder / "images" / "3.npy")
    assert (found == np.asarray(Image.open(tmp_path / "3.png"))).all()
    assert (found == run.predict(run.data.image("3"))).all()
    with pytest.raises(ValueError, match=r"\(height, width, 5\)"):
        run.predict(np.zeros((9, 9, 3), np.uint8))


@pytest.mark.parametrize("method", ["UniMatch", "RRN", "DFR"])
def test_methods_that_look_at_colours_train_on_five_bands(folder, tmp_path, method):
    more = [] if method == "DFR" else ["--data.unlabeled_pool", "all"]
    fit_tiny(tmp_path / "run", *on_folder(folder), *BANDS, "--model", method, *more, "--trainer.max_steps", "2")
    assert np.isfinite(json.loads((tmp_path / "run" / "summary.json").read_text())["last"]["val/miou"])


def test_a_network_for_rgb_is_refused_by_name(folder, tmp_path):
    data = package.datamodules.Folder(str(folder), channels=5, value_range=[0, 4095])
    with pytest.raises(ValueError, match=r"set model\.network\.channels to 5"):
        normalise_by(package.methods.Supervised(data.num_classes), data)


def test_bands_without_channels_name_the_option(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    for file in sorted((tmp_path / "data" / "images").glob("*.npy")):
        FORMS["interleaved"](file, np.load(file))
        file.unlink()
    text = fit_tiny(tmp_path / "run", *on_folder(tmp_path / "data"), expect=1)
    assert "has 5 bands" in text
    assert "data.channels=5" in text
