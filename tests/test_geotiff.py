"""`weakseg predict --geotiff`: labels in the place of the image."""

import numpy as np
import pytest
from PIL import Image

from common.model import inference, module
from common.training import geotiff
from conftest import draw_folder, fit_tiny, on_folder, weakseg
from experiments.runs.load import load_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    root = draw_folder(tmp_path_factory.mktemp("geotiff") / "data")
    fit_tiny(root.parent / "run", *on_folder(root), "--trainer.max_steps", "2", "--trainer.val_check_interval", "2")
    return root.parent / "run"


def predict(run_dir, images, output, *options, **how):
    return weakseg("predict", "--run", run_dir, "--images", images, "--output", output, "--geotiff", *options, **how)


def test_labels_have_the_place_and_the_reference_system_of_the_image(run_dir, tmp_path, monkeypatch):
    rasterio = pytest.importorskip("rasterio")
    photos = draw_folder(tmp_path / "data") / "images"
    scenes = tmp_path / "scenes"
    (scenes / "day1").mkdir(parents=True)
    transform = rasterio.Affine(0.5, 0.1, 430000.0, -0.1, -0.5, 5400000.0)  # turned, too
    points = [rasterio.control.GroundControlPoint(row, column, 10 + column / 100, 50 - row / 100)
              for row, column in ((0, 0), (0, 20), (20, 0), (20, 20))]  # fmt: skip
    places = {"a": {"crs": "EPSG:32633", "transform": transform}, "day1/b": {"crs": "EPSG:4326", "gcps": points}}
    for number, (name, place) in enumerate(places.items()):
        pixels = np.asarray(Image.open(photos / f"{number}.png")).transpose(2, 0, 1)
        shape = {"count": 3, "height": pixels.shape[1], "width": pixels.shape[2], "dtype": "uint8"}
        how = {"driver": "GTiff", "tiled": True, "blockxsize": 16, "blockysize": 16, "photometric": "rgb"}
        with rasterio.open(scenes / f"{name}.tif", "w", **how, **shape, **place) as file:
            file.write(pixels)
    monkeypatch.setattr(module, "STREAMED", 0)
    monkeypatch.setattr(inference, "STRIP", 3 * 50 * 4)
    written = []
    write = geotiff.GeoTiff.write
    monkeypatch.setattr(geotiff.GeoTiff, "write", lambda self, *rows: (written.append(rows[1]), write(self, *rows)))
    options = ["--model.inference.window", "[16, 16]", "--data.size", "native", "--data.crop", "[32, 32]"]
    predict(run_dir, scenes, tmp_path / "out", *options)
    assert len(written) > 4  # strips
    run = load_run(run_dir)
    for name, place in places.items():
        labels = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        with rasterio.open(tmp_path / "out" / f"{name}.tif") as found:
            np.testing.assert_array_equal(found.read(1), labels)
            assert found.count == 1
            assert found.dtypes == ("uint8",)
            crs = found.gcps[1] if "gcps" in place else found.crs
            assert crs == rasterio.crs.CRS.from_string(place["crs"])
            if "gcps" in place:
                assert [(p.row, p.col, p.x, p.y) for p in found.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in points]
            else:
                assert found.transform == transform
            assert [found.colormap(1)[k][:3] for k in range(3)] == [tuple(color) for color in run.colors]
    assert "exists" in predict(run_dir, scenes, tmp_path / "out", *options, expect=1)
    predict(run_dir, scenes, tmp_path / "out", *options, "--overwrite")


def test_an_image_without_a_place_is_refused_before_anything_is_written(run_dir, tmp_path):
    pytest.importorskip("rasterio")
    photos = draw_folder(tmp_path / "data") / "images"
    assert "0.png is no GeoTIFF" in predict(run_dir, photos, tmp_path / "out", expect=1)
    Image.open(photos / "0.png").save(tmp_path / "plain.tif")
    said = predict(run_dir, tmp_path / "plain.tif", tmp_path / "out", expect=1)
    assert "plain.tif does not say where on the earth it is: leave --geotiff out" in said
    assert not (tmp_path / "out").exists()


def test_without_rasterio_the_way_out_is_said(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(geotiff, "find_spec", lambda name: None)
    photos = draw_folder(tmp_path / "data") / "images"
    assert "pip install -e '.[geo]'" in predict(run_dir, photos, tmp_path / "out", expect=1)
