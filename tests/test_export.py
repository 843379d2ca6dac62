"""Networks as files: what they compute, for which sizes, and what is refused."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from common.model.networks import NetworkConfig, build_network
from conftest import ROOT, fit_tiny, weakseg
from experiments.cli import export
from experiments.runs.load import load_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    fit_tiny(folder)
    return folder


@pytest.mark.slow  # torch.export and the import of what it needs
def test_the_file_computes_what_the_network_does_at_other_sizes_and_batches(run_dir, tmp_path):
    printed = weakseg("export", "--run", run_dir, "--output", tmp_path / "new" / "model.pt2")
    assert "any batch, multiples of 16 pixels" in printed
    program = torch.export.load(tmp_path / "new" / "model.pt2").module()
    network = load_run(run_dir).network
    for batch, height, width in ((1, 32, 32), (3, 64, 48)):
        image = torch.rand(batch, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(program(image), network(image))
    with pytest.raises(AssertionError, match=r"Guard failed"):
        program(torch.rand(1, 3, 33, 32))


@pytest.mark.slow  # torch.export and the import of what it needs
def test_onnx_computes_what_the_network_does(run_dir, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    weakseg("export", "--run", run_dir, "--output", tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    network = load_run(run_dir).network
    for batch, height, width in ((1, 32, 32), (3, 64, 48)):
        image = torch.rand(batch, 3, height, width)
        found = session.run(["logits"], {"image": image.numpy()})[0]
        np.testing.assert_allclose(found, network(image).detach().numpy(), atol=1e-4)


@pytest.mark.slow  # torch.export and the import of what it needs
def test_the_example_of_the_page_labels_a_photo_without_this_project(run_dir, tmp_path):
    """In a process of its own, in which torch and weakseg cannot be imported."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    weakseg("export", "--run", run_dir, "--output", tmp_path / "model.onnx")
    rng = np.random.default_rng(5)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
    small.resize((150, 101), Image.Resampling.BICUBIC).save(tmp_path / "photo.jpg", quality=95)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    barred = "import sys\nfor name in ('torch', 'common', 'weakseg'):\n    sys.modules[name] = None\n"
    done = subprocess.run([sys.executable, "-c", barred + code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = load_run(run_dir)
    expected, found = run.predict(tmp_path / "photo.jpg"), np.asarray(Image.open(tmp_path / "labels.png"))
    assert found.shape == expected.shape == (101, 150)
    assert len(np.unique(expected)) > 1
    assert (found == expected).mean() > 0.999
    assert all(run.class_names[k] in done.stdout for k in np.unique(expected))


def test_metadata_say_all_that_the_file_does_not_do(run_dir):
    run = load_run(run_dir)
    told = json.loads(export.metadata(run))
    assert told["classes"] == list(run.class_names)
    assert told["colors"] == [list(color) for color in run.colors]
    assert told["size"] == [32, 32]
    assert told["multiple_of"] == run.network.stride
    image = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(told[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close((image - mean) / std, (image - run.network.mean) / run.network.std)
    assert (told["channels"], told["rgb"], told["value_range"]) == (3, [1, 2, 3], None)
    assert told["inference"]["flip"] is False
    assert told["postprocess"]["kind"] == "none"
    bound = json.loads(export.metadata(run, (64, 96)))
    assert bound["bound_to"] == [64, 96]
    assert "multiple_of" not in bound
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "export.md").read_text(), re.MULTILINE)
    assert {*re.findall(r"`(\w+)`", " ".join(rows))} == told.keys() | bound.keys()  # the page names all of them


@pytest.mark.slow  # torch.export and the import of what it needs
def test_a_network_whose_graph_holds_for_one_size_says_so_and_is_exported_for_it():
    network = build_network(NetworkConfig(arch="UPerNet", encoder="mit_b0", weights=None), 3).eval()
    with pytest.raises(export.ShapeError, match="give one, --size HEIGHT WIDTH"):
        export.export_network(network)
    program = export.export_network(network, (64, 96)).module()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(program(image), network(image), atol=1e-4, rtol=1e-4)


def test_a_file_that_computes_something_else_is_refused(run_dir):
    network = load_run(run_dir).network
    with pytest.raises(ValueError, match="differs from the trained one by"):
        export.check(lambda image: network(image) + 0.01, network, (32, 32))


def test_missing_packages_and_wrong_suffixes_are_named(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else object())
    words = ["export", "--run", run_dir, "--output"]
    said = weakseg(*words, tmp_path / "model.onnx", expect=1)
    assert "ONNX needs onnxscript: pip install -e '.[export]'" in said
    assert "the suffix says the format" in weakseg(*words, tmp_path / "model.bin", expect=1)
    assert not [*tmp_path.iterdir()]
