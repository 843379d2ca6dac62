"""A person's hour, in the words of docs/using.md: photos, a day's scribbles in labelme, from doctor to predictions."""

import json

import numpy as np
import pytest
from PIL import Image

from conftest import weakseg

SIDE = (80, 60)
SMALL = ["--model.network.encoder", "tu-test_resnet", "--model.network.decoder",
         "{decoder_channels: [16, 16, 8, 8], encoder_depth: 4}", "--data.size", "64", "--data.batch_size", "4",
         "--data.num_workers", "0", "--trainer.max_steps", "120", "--trainer.val_check_interval", "60",
         "--model.optimizer.lr", "0.01", "--model.encoder_lr_scale", "1"]  # fmt: skip


def photo(rng):
    """A yellow fruit on a blue cloth, and where it lies."""
    x, y, r = rng.integers(18, 62), rng.integers(18, 42), rng.integers(10, 16)
    rows, columns = np.mgrid[: SIDE[1], : SIDE[0]]
    inside = (columns - x) ** 2 + (rows - y) ** 2 < r**2
    colors = np.where(inside[..., None], (220, 190, 40), (40, 60, 140)) + rng.integers(-25, 26, (*inside.shape, 3))
    return colors.clip(0, 255).astype(np.uint8), inside, (int(x), int(y), int(r))


def shape(label, *points):
    return {"label": label, "points": [list(point) for point in points], "group_id": None, "description": "",
            "shape_type": "linestrip", "flags": {}, "mask": None}  # fmt: skip


def scribble(path, place, labels=("background", "fruit")):
    """What labelme saves beside the photo: a stroke over the fruit, and one along the edge of the cloth."""
    x, y, r = place
    strokes = {
        "background": shape("background", (2, 3), (SIDE[0] - 3, 4), (SIDE[0] - 4, SIDE[1] - 3), (3, SIDE[1] - 4)),
        "fruit": shape("fruit", (x - r // 2, y), (x + r // 2, y + 1)),
    }
    content = {"version": "5.5.0", "flags": {}, "shapes": [strokes[label] for label in labels],
               "imagePath": path.with_suffix(".jpg").name, "imageData": None,
               "imageHeight": SIDE[1], "imageWidth": SIDE[0]}  # fmt: skip
    path.write_text(json.dumps(content))


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Twelve photos, ten of them scribbled on, and three new ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEAKSEG_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    (tmp_path / "my_data" / "images").mkdir(parents=True)
    (tmp_path / "photos" / "monday").mkdir(parents=True)
    (tmp_path / "my_data" / "classes.txt").write_text("background\nfruit\n")
    for number in range(12):
        image, _, place = photo(rng)
        path = tmp_path / "my_data" / "images" / f"IMG_{number:04}.jpg"
        Image.fromarray(image).save(path, quality=95)
        if number < 10:
            scribble(path.with_suffix(".json"), place)
    for name in ("a", "b", "monday/c"):
        image, inside, _ = photo(rng)
        Image.fromarray(image).save(tmp_path / "photos" / f"{name}.jpg", quality=95)
        np.save(tmp_path / f"{name.replace('/', '_')}.npy", inside)
    return tmp_path


def test_from_scribbles_to_labels_on_new_photos(desk):
    data = ["--data", "Folder", "--data.root", "my_data"]
    found = weakseg("doctor", "--config", "base", *data, "--sheet", "sheet.png")
    assert "no problem found" in found
    assert "train: 8 images (6 with a mask), 60 x 80 pixels" in found
    assert Image.open("sheet.png").width > 300
    trained = weakseg("fit", "--config", "base", "--config", "tv", *data, *SMALL)
    run_dir = trained.rsplit("Everything is in ", 1)[1].split()[0]
    told = weakseg("predict", "--run", run_dir, "--images", "photos", "--output", "labelled")
    assert "3 images in " in told
    assert "fruit " in told
    for name in ("a", "b", "monday/c"):
        labels = np.asarray(Image.open(desk / "labelled" / f"{name}.png"))
        inside = np.load(desk / f"{name.replace('/', '_')}.npy")
        assert labels.shape == inside.shape
        assert ((labels == 1) & inside).sum() / ((labels == 1) | inside).sum() > 0.4, name  # all fruit would be 0.1
        assert (desk / "labelled" / "overlays" / f"{name}.png").exists()


def test_what_goes_wrong_in_that_hour_is_told(desk):
    """Only the fruit is scribbled on; then a photo is renamed."""
    data = ["--data", "Folder", "--data.root", "my_data"]
    images = desk / "my_data" / "images"
    for path in images.glob("*.json"):
        scribble(path, (40, 30, 12), ["fruit"])
    for verb in ("doctor", "fit"):
        told = weakseg(verb, "--config", "base", "--config", "tv", *data, expect=1)
        assert "fill" in told
        assert "background" in told
    (images / "IMG_0003.jpg").rename(images / "fruit.jpg")
    assert "IMG_0003" in weakseg("doctor", "--config", "base", *data, "--data.fill", "background", expect=1)
