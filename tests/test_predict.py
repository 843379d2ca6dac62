"""`weakseg predict` and loaded models: complete without the training data; no file of people's own is replaced."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import weakseg as package
from common.model import inference, module
from common.training import pictures
from conftest import draw_folder, fit_tiny, on_folder, snapshot, weakseg
from experiments.cli.export import metadata


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run whose training data are gone."""
    root = draw_folder(tmp_path_factory.mktemp("predict") / "data")
    fit_tiny(root.parent / "run", *on_folder(root))
    shutil.rmtree(root)
    return root.parent / "run"


@pytest.fixture
def photos(tmp_path):
    return draw_folder(tmp_path / "data") / "images"


def predict(run_dir, images, output, *options, **how):
    return weakseg("predict", "--run", run_dir, "--images", images, "--output", output, *options, **how)


# Without the training data -----------------------------------------------------------------------------------------


def test_a_model_needs_nothing_but_its_checkpoint(run_dir, photos, tmp_path):
    alone = tmp_path / "model.ckpt"
    shutil.copy(run_dir / "checkpoints" / "best.ckpt", alone)
    text = weakseg("predict", "--ckpt", alone, "--images", photos, "--output", tmp_path / "out")
    assert "10 images in " in text
    assert "ground " in text
    run = package.load_run(alone)
    assert [*run.class_names] == ["ground", "red thing", "blue thing"]
    assert run.photos.size == (32, 40)
    assert len(run.colors) == 3
    assert (run.predict(photos / "3.png") == np.asarray(Image.open(tmp_path / "out" / "3.png"))).all()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        _ = run.data


def test_compare_of_runs_whose_data_are_gone_has_no_pictures_and_says_why(run_dir, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "runs" / "one")
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps({**summary, "test": {"best": {"test/miou": 50.0}}}))
    weakseg("compare", tmp_path / "runs", "--output", tmp_path / "report")
    assert "no pictures: " in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.slow  # torch.export
def test_exported_files_say_what_their_classes_are(run_dir, tmp_path):
    weakseg("export", "--run", run_dir, "--output", tmp_path / "model.pt2")
    found = {"weakseg": ""}
    torch.export.load(str(tmp_path / "model.pt2"), extra_files=found)
    about = json.loads(found["weakseg"])
    assert about["classes"] == ["ground", "red thing", "blue thing"]
    assert about["size"] == [32, 40]
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    weakseg("export", "--run", run_dir, "--output", tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert json.loads({one.key: one.value for one in model.metadata_props}["weakseg"]) == about


OTHER_CLASSES = {
    "another order": "ground\nblue thing\nred thing\n",
    "another name": "ground\nred thing\ngreen thing\n",
    "one more": "ground\nred thing\nblue thing\nsky\n",
}


@pytest.mark.parametrize("verb", ["test", "validate"])
@pytest.mark.parametrize("row", OTHER_CLASSES)
def test_data_with_other_classes_are_refused_with_both_lists(verb, row, run_dir, tmp_path):
    root = draw_folder(tmp_path / "data")
    (root / "classes.txt").write_text(OTHER_CLASSES[row])
    text = weakseg(verb, "--run", run_dir, "--data.init_args.root", root, expect=1)
    assert ", ".join(OTHER_CLASSES[row].split("\n")[:-1]) in text
    assert "was trained on ground, red thing, blue thing" in text
    assert "the same classes in the same order" in text


WRONG = {
    "no list": ("classes", "red"),
    "a number for a name": ("classes", ["a", 7, "c"]),
    "an empty name": ("classes", ["a", "", "c"]),
    "a colour too few": ("colors", [[0, 0, 0]]),
    "a colour beyond 255": ("colors", [[0, 0, 0], [1, 1, 1], [0, 0, 256]]),
    "an absurd size": ("size", [10**6, 10**6]),
    "a size of 0": ("size", [0, 32]),
    "a class too few": ("classes", ["a", "b"]),
}


@pytest.mark.parametrize("row", WRONG)
def test_what_a_checkpoint_says_of_its_classes_is_checked(row, run_dir, photos, tmp_path):
    key, value = WRONG[row]
    content = torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)
    content["weakseg"][key] = value
    torch.save(content, tmp_path / "wrong.ckpt")
    text = weakseg(
        "predict", "--ckpt", tmp_path / "wrong.ckpt", "--images", photos, "--output", tmp_path / "out", expect=1
    )
    assert len([line for line in text.splitlines() if line.startswith("weakseg: error")]) == 1
    assert not (tmp_path / "out").exists()


# What is read ------------------------------------------------------------------------------------------------------


def test_one_image_and_folders_in_the_folder(run_dir, photos, tmp_path):
    predict(run_dir, photos / "3.png", tmp_path / "one")
    assert snapshot(tmp_path / "one").keys() == {".weakseg-predictions.jsonl", "3.png", "overlays/3.png"}
    (photos / "day 1" / "morning").mkdir(parents=True)
    shutil.copy(photos / "3.png", photos / "day 1" / "morning" / "3.png")
    (photos / "phone.heic").write_bytes(b"\0")
    with pytest.warns(UserWarning, match=r"1 pictures in .* are not read: phone\.heic"):
        predict(run_dir, photos, tmp_path / "all")
    assert (tmp_path / "all" / "overlays" / "day 1" / "morning" / "3.png").exists()
    labels = (tmp_path / "all" / "day 1" / "morning" / "3.png").read_bytes()
    assert labels == (tmp_path / "one" / "3.png").read_bytes()


def test_photos_that_cannot_be_read_are_told_and_end_nothing(run_dir, photos, tmp_path):
    whole = (photos / "2.png").read_bytes()
    (photos / "2.png").write_bytes(whole[: len(whole) // 2])
    (photos / "5.png").write_bytes(b"")
    (photos / "7.png").write_bytes(b"no picture")
    text = predict(run_dir, photos, tmp_path / "out", expect=1)
    assert "7 images in " in text
    assert [number for number in "257" if f"{photos / number}.png" in text] == ["2", "5", "7"]
    assert "weakseg: error: 3 of 10 images could not be read" in text
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == set("0134689")


# Large images ------------------------------------------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch):
    """Images of 300 x 200 are large."""
    monkeypatch.setattr(module, "STREAMED", 3 * 200 * 200)
    monkeypatch.setattr(inference, "STRIP", 3 * 300 * 16)
    monkeypatch.setattr(pictures, "LARGE", 200 * 200)
    monkeypatch.setattr(pictures, "SIDE", 128)


@pytest.fixture
def photo(tmp_path):
    """300 x 200 pixels."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (25, 40, 3), np.uint8)).resize((300, 200)).save(tmp_path / "large.png")
    return tmp_path / "large.png"


WINDOWS = {
    "shrunk": [],
    "flipped": ["--model.init_args.inference.flip", "true"],
    "tiles": ["--data.init_args.size", "[200, 300]", "--model.init_args.inference", "{window: [64, 64], smooth: true}"],
}


@pytest.mark.parametrize("row", WINDOWS)
def test_a_large_image_is_labelled_in_strips_as_in_one_piece(row, run_dir, photo, tmp_path, request):
    predict(run_dir, photo, tmp_path / "whole", "--probabilities", *WINDOWS[row])
    request.getfixturevalue("large")
    predict(run_dir, photo, tmp_path / "strips", "--probabilities", *WINDOWS[row])
    whole, strips = (np.load(tmp_path / name / "probabilities" / "large.npy") for name in ("whole", "strips"))
    assert strips.shape == (3, 200, 300)
    assert strips.dtype == np.float16
    np.testing.assert_allclose(strips, whole, atol=1e-3)
    labels = np.asarray(Image.open(tmp_path / "strips" / "large.png"))
    sure = np.diff(np.sort(whole.astype(float), 0), axis=0)[-1] > 2e-3
    assert sure.mean() > 0.9
    assert (labels == np.asarray(Image.open(tmp_path / "whole" / "large.png")))[sure].all()
    full, shrunk = (Image.open(tmp_path / name / "overlays" / "large.png") for name in ("whole", "strips"))
    assert (full.size, shrunk.size) == ((300, 200), (100, 67))
    near = np.asarray(full)[::3, ::3].astype(int) - np.asarray(shrunk)
    assert np.abs(near).mean() < 10  # of the image's bilinear pixels; labels are every third


def test_loaded_models_label_large_images_too(run_dir, photo, large):
    run = package.load_run(run_dir)
    labels, found = run.predict(photo, probabilities=True)
    assert (labels.dtype, labels.shape, found.shape) == (np.uint8, (200, 300), (3, 200, 300))
    assert (found.argmax(0) == labels).all()
    assert (run.predict(photo) == labels).all()


def test_postprocessing_of_an_image_that_is_too_large_is_refused_by_name(run_dir, photo, tmp_path, monkeypatch):
    for name in ("STREAMED", "AT_ONCE"):
        monkeypatch.setattr(module, name, 3 * 200 * 299)
    words = ["--model.init_args.postprocess.kind", "mrf"]
    text = predict(run_dir, photo, tmp_path / "out", *words, expect=1)
    assert "image 'large' has 200 x 300 pixels and 3 classes, and postprocess.kind=mrf needs" in text
    assert "set --model.postprocess.kind none, or cut" in text
    predict(run_dir, photo, tmp_path / "out", "--overwrite")


def test_an_evaluation_of_large_images_counts_every_pixel(run_dir, tmp_path, monkeypatch):
    root = draw_folder(tmp_path / "data")
    words = ["test", "--run", run_dir, "--data.init_args.root", root]
    whole = weakseg(*words)
    monkeypatch.setattr(module, "STREAMED", 0)
    monkeypatch.setattr(inference, "STRIP", 3 * 50 * 4)
    assert weakseg(*words) == whole


def test_a_run_on_images_at_their_own_size(tmp_path, photo, large, monkeypatch):
    root, options = draw_folder(tmp_path / "data"), {"size": "native", "crop": "[32, 32]", "scale": "[0.75, 1.5]"}
    words = [*on_folder(root), *(word for k, v in options.items() for word in (f"--data.init_args.{k}", v))]
    run = tmp_path / "run"
    fit_tiny(run, *words, "--trainer.max_steps", "3")
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["weakseg"]["size"] == "native"
    assert "miou" in weakseg("test", "--run", run)
    shutil.rmtree(root)
    monkeypatch.setattr(inference, "WHOLE", 64 * 64)  # tiles of 64 on 300 x 200
    monkeypatch.setattr(inference, "TILE", [64, 64])
    monkeypatch.setattr(inference, "STEP", [32, 32])
    predict(run, photo, tmp_path / "out")
    loaded = package.load_run(run)
    assert loaded.photos.size is None
    batch = loaded.photos.evaluation_batch(np.asarray(Image.open(photo)))
    assert batch["image"].shape == (1, 3, 200, 300)
    tiles = inference.InferenceConfig([64, 64], [32, 32], smooth=True)
    labels = inference.predict_probabilities(loaded.network, batch["image"], tiles).argmax(1)[0]
    found = np.asarray(Image.open(tmp_path / "out" / "large.png"))
    assert (found == labels.numpy()).mean() > 0.999
    assert json.loads(metadata(loaded))["size"] == "native"


# What is written ---------------------------------------------------------------------------------------------------


PLACES = {
    "the images": lambda data: data / "images",
    "inside the images": lambda data: data / "images" / "labels",
    "the masks": lambda data: data / "masks",
    "a link to the masks": lambda data: data / "link",
}


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
@pytest.mark.parametrize("row", PLACES)
def test_files_of_peoples_own_are_never_replaced(row, options, run_dir, photos):
    (photos.parent / "link").symlink_to(photos.parent / "masks")
    before = snapshot(photos.parent)
    text = predict(run_dir, photos, PLACES[row](photos.parent), *options, expect=1)
    assert "another --output" in text or "another folder" in text
    assert snapshot(photos.parent) == before


def test_only_what_predict_wrote_is_replaced_and_only_when_asked(run_dir, photos, tmp_path):
    out = tmp_path / "out"
    predict(run_dir, photos, out)
    before = snapshot(out)
    assert "replace it with --overwrite" in predict(run_dir, photos, out, expect=1)
    assert snapshot(out) == before
    predict(run_dir, photos, out, "--overwrite")
    Image.new("L", (8, 8)).save(out / "4.png")  # somebody corrects a label
    before = snapshot(out)
    text = predict(run_dir, photos, out, "--overwrite", expect=1)
    assert f"{out / '4.png'} was not written by predict, or was changed since" in text
    assert snapshot(out) == before


def test_cut_off_predictions_can_be_replaced(run_dir, photos, tmp_path):
    out = tmp_path / "out"
    predict(run_dir, photos, out)
    for length in (0, 9):  # the last line was not written, or only in part
        lines = (out / ".weakseg-predictions.jsonl").read_text().splitlines()
        (out / ".weakseg-predictions.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:length]]))
        (out / json.loads(lines[-1])[0]).touch()
        predict(run_dir, photos, out, "--overwrite")


# Shares, and going on ----------------------------------------------------------------------------------------------


def labels_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def test_shares_and_what_is_left_of_a_stopped_command_make_the_files_of_one(run_dir, photos, tmp_path):
    for number in range(5):
        Image.new("RGB", (40 + number, 30), (40 * number, 90, 20)).save(photos / f"more{number}.png")
    predict(run_dir, photos, tmp_path / "one")
    for share in (1, 2, 3):
        predict(run_dir, photos, tmp_path / "shares", "--shard", f"{share}/3")
    assert labels_in(tmp_path / "shares") == labels_in(tmp_path / "one")
    (tmp_path / "shares" / "more1.png").unlink()  # as if stopped before it
    (tmp_path / "shares" / "overlays" / "more3.png").write_bytes(b"cut off")
    journal = tmp_path / "shares" / ".weakseg-predictions.jsonl"
    with journal.open("a") as lines:
        lines.write('["overlays/more3.png", null]\n["more4.p')
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shares").rglob("*.png")}
    text = predict(run_dir, photos, tmp_path / "shares", "--resume")
    assert "2 images in" in text
    assert f"({len(labels_in(tmp_path / 'one')) // 2 - 2} were there)" in text
    assert labels_in(tmp_path / "shares") == labels_in(tmp_path / "one")
    changed = {path.name for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed == {"more1.png", "more3.png"}
    assert "images were labelled before" in predict(run_dir, photos, tmp_path / "shares", "--resume")


def test_labels_of_two_models_are_not_mixed_and_files_of_peoples_own_stay(run_dir, photos, tmp_path):
    out = tmp_path / "out"
    predict(run_dir, photos, out, "--shard", "1/2")
    for words in (["--shard", "2/2"], ["--resume"]):
        text = predict(run_dir, photos, out, *words, "--model.inference.flip", "true", expect=1)
        assert "holds what another checkpoint, or other options, have made" in text
    own = next(path for path in out.glob("*.png"))
    own.write_bytes(b"corrected by hand")
    assert "was not written by predict, or was changed since" in predict(run_dir, photos, out, "--resume", expect=1)
    assert own.read_bytes() == b"corrected by hand"


def test_resume_does_not_mix_ways_to_read_the_images(run_dir, photos, tmp_path):
    predict(run_dir, photos, tmp_path / "out")
    (tmp_path / "out" / "0.png").unlink(missing_ok=True)
    text = predict(run_dir, photos, tmp_path / "out", "--resume", "--data.value_range", "[0, 900]", expect=1)
    assert "holds what another checkpoint, or other options, have made" in text
    predict(run_dir, photos, tmp_path / "out", "--resume", "--data.num_workers", "0")


def test_resume_takes_no_label_of_the_model_before(run_dir, photos, tmp_path):
    """Another model was to overwrite the labels, and was stopped after its first image."""
    other, out, before = ["--model.inference.flip", "true"], tmp_path / "out", tmp_path / "before"
    predict(run_dir, photos, out)
    shutil.copytree(out, before)
    predict(run_dir, photos, out, "--overwrite", *other)
    flipped = labels_in(out)
    assert flipped != labels_in(before)
    first = min(path.stem for path in out.glob("*.png"))
    for path in (path for path in before.rglob("*.png") if path.stem != first):
        shutil.copy2(path, out / path.relative_to(before))
    journal, old = out / ".weakseg-predictions.jsonl", (before / ".weakseg-predictions.jsonl").read_text()
    new = [line for line in journal.read_text().removeprefix(old).splitlines() if line]
    new = [line for line in new if Path(json.loads(line)[0]).stem in ("", ".", first)]
    journal.write_text(old + "\n".join(new) + "\n")
    assert "(1 were there)" in predict(run_dir, photos, out, "--resume", *other)
    assert labels_in(out) == flipped


@pytest.mark.parametrize(
    "words", [["--shard", "0/3"], ["--shard", "4/3"], ["--shard", "third"], ["--resume", "--overwrite"]]
)
def test_a_share_that_is_none_and_options_that_exclude_each_other(words, run_dir, photos, tmp_path):
    text = predict(run_dir, photos, tmp_path / "out", *words, expect=2 if "--shard" in words else 1)
    assert "a share is I/N" in text or "give one of them" in text
    assert not (tmp_path / "out").exists()


def test_an_overlay_does_not_depend_on_the_number_of_threads():
    image = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(pictures.shown_image(image, (240, 320), 1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert found[0].shape == (3, 240, 320)
