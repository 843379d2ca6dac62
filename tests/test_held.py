"""What `suggest`, `review` and `pseudo` hold of a large image: a strip of its probabilities, never all of them; what
they find in strips is what they find in one piece."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from common.model import inference, module
from common.model.module import SegmentationModule
from common.training import pictures
from conftest import draw_folder, fit_tiny, on_folder, weakseg

WIDEST = 61  # pixels of an image's row


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    root = draw_folder(tmp_path_factory.mktemp("held") / "data")
    for name in "45":
        (root / "masks" / f"{name}.png").unlink()
    more = ["--model", "Supervised", "--model.init_args.ema_decay", "0.5", "--trainer.max_steps", "6"]
    fit_tiny(root.parent / "run", *on_folder(root), *more)
    return root, root.parent / "run"


def run_all(learned, folder):
    root, run = learned
    for by in ("entropy", "disagreement"):
        weakseg("suggest", "--run", run, "--images", root / "images", "--by", by, "--output", folder / by)
    weakseg("review", "--run", run, "--split", "val", "--confidence", 0, "--area", 0.02, "--output", folder / "review")
    weakseg("pseudo", "--run", run, "--threshold", 0.4, "--output", folder / "pseudo")


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(learned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_all(learned, folder)
    return folder


@pytest.fixture
def strips(monkeypatch):
    """Every image is large, and probabilities of all of it are refused; the sizes of those that are made."""
    monkeypatch.setattr(module, "STREAMED", 0)
    monkeypatch.setattr(module, "AT_ONCE", 0)
    monkeypatch.setattr(inference, "STRIP", 3 * WIDEST * 4)
    made, before = [], SegmentationModule.predict_strips

    def counted(self, *arguments, **options):
        for labels, probabilities in before(self, *arguments, **options):
            made.append(probabilities.numel())
            yield labels, probabilities

    monkeypatch.setattr(SegmentationModule, "predict_strips", counted)
    return made


def test_in_strips_they_find_the_same_and_hold_no_more_than_one(learned, whole, strips, tmp_path):
    run_all(learned, tmp_path)
    assert len(strips) > 100
    assert max(strips) <= 3 * WIDEST * 4
    for by in ("entropy", "disagreement"):
        one, other = (rows_of(folder / by / "suggest.csv") for folder in (whole, tmp_path))
        assert [row["file"] for row in one] == [row["file"] for row in other]
        for a, b in zip(one, other, strict=True):
            assert float(a["score"]) == pytest.approx(float(b["score"]), abs=2e-5)
            name = a["file"].replace(".png", ".json")
            drawings = [json.loads((folder / by / "labelme" / name).read_text()) for folder in (whole, tmp_path)]
            assert drawings[0]["shapes"] == drawings[1]["shapes"]
    for name in ("images.csv", "label_errors.csv"):
        one, other = (rows_of(folder / "review" / name) for folder in (whole, tmp_path))
        assert len(one) == len(other) > 0
        for a, b in zip(one, other, strict=True):
            for key in a:
                near = a[key] if key in ("file", "mask", "prediction") else pytest.approx(float(a[key]), rel=0.02)
                assert (b[key] if isinstance(near, str) else float(b[key])) == near
    differ = 0
    for path in sorted((whole / "pseudo").glob("*.png")):
        one, other = Image.open(path), Image.open(tmp_path / "pseudo" / path.name)
        assert one.getpalette() == other.getpalette()
        differ += (np.asarray(one) != np.asarray(other)).sum()
    assert differ < 20  # rounding, at the threshold
    about = [json.loads((folder / "pseudo" / "pseudo.json").read_text()) for folder in (whole, tmp_path)]
    assert about[0]["miou_train"] == pytest.approx(about[1]["miou_train"], abs=0.2)


def test_of_a_large_image_regions_and_polygons_are_made_of_every_few_pixels(learned, strips, tmp_path, monkeypatch):
    """They are on the scale of the image all the same."""
    monkeypatch.setattr(pictures, "LARGE", 20 * 20)
    monkeypatch.setattr(pictures, "SIDE", 30)
    run_all(learned, tmp_path)
    root, _ = learned
    for path in (tmp_path / "entropy" / "labelme").glob("*.json"):
        drawing = json.loads(path.read_text())
        size = Image.open(root / "images" / f"{path.stem}.png").size
        assert (drawing["imageWidth"], drawing["imageHeight"]) == size
        corners = np.concatenate([shape["points"] for shape in drawing["shapes"]])
        assert corners.max(0) == pytest.approx(np.array(size) - 1)
    for row in rows_of(tmp_path / "review" / "label_errors.csv"):
        step = -(-max(Image.open(root / "images" / f"{row['file']}.png").size) // 30)
        assert step > 1
        assert int(row["pixels"]) % step**2 == 0
        assert (int(row["bottom"]) - int(row["top"])) % step == 0
    assert (tmp_path / "review" / "review.html").stat().st_size > 5000
