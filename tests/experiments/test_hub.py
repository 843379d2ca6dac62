"""`weakseg push` and `weakseg pull`: the real client of the hub against a stand-in on this machine."""

import json
import pickle
import shutil

import numpy as np
import pytest
import yaml

from conftest import fit_tiny, weakseg
from experiments.runs.load import load_run
from hub_server import TOKEN, standing_in

NAME = "me/horses"
HELD = {"checkpoints/best.ckpt", "config.yaml", "summary.json", "metrics.csv"}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run with what must not leave the machine beside it."""
    folder = tmp_path_factory.mktemp("hub") / "run"
    fit_tiny(folder, "--model", "TV", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2")
    weakseg("test", "--run", folder)
    (folder / ".env").write_text("KEY=secret")
    (folder / "wandb").mkdir()
    (folder / "wandb" / "run_id").write_text("secret")
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with standing_in() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", server.address + template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # a service beside the hub
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_push_uploads_what_a_run_needs_and_nothing_else(hub, run_dir, tmp_path):
    said = weakseg("push", NAME, "--run", run_dir)
    assert f"{run_dir} is at {hub.address}/{NAME}/commit/" in said
    files = hub.repositories[NAME]
    assert files.keys() == HELD | {"README.md"}
    for name in HELD:
        assert files[name] == (run_dir / name).read_bytes()
    assert hub.private[NAME] is True
    weakseg("push", "me/open", "--run", run_dir, "--which", "last", "--public")
    assert not hub.private["me/open"]
    assert "checkpoints/last.ckpt" in hub.repositories["me/open"]

    copy = shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "key").write_text("secret")
    (copy / "metrics.csv").unlink()
    assert "has no metrics.csv" in weakseg("push", "me/third", "--run", copy, expect=1)
    (copy / "metrics.csv").symlink_to(tmp_path / "key")
    assert "a link to a file elsewhere" in weakseg("push", "me/third", "--run", copy, expect=1)
    assert "me/third" not in hub.repositories


def test_the_page_says_what_the_summary_does(hub, run_dir):
    weakseg("push", NAME, "--run", run_dir)
    page = hub.repositories[NAME]["README.md"].decode()
    _, head, text = page.split("---\n")
    assert yaml.safe_load(head)["pipeline_tag"] == "image-segmentation"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert "# TV on Synthetic" in text
    assert f"| test/miou | {summary['test']['best']['test/miou']:.2f} |" in text
    assert f"| val/miou | {summary['best']['val/miou']:.2f} |" in text
    assert ", ".join(load_run(run_dir).class_names) in text
    assert f"{summary['annotation']['labeled_pixels']} pixels of 12 images" in text
    assert f"weakseg pull {NAME} --output run" in text
    assert str(run_dir.parent) not in page


def test_pull_takes_the_files_of_a_run_and_no_others(hub, run_dir, tmp_path):
    weakseg("push", NAME, "--run", run_dir)
    hub.repositories[NAME] |= {"evil.py": b"x", "../out": b"x", ".weakseg": b"x", "checkpoints/../../x.ckpt": b"x"}
    said = weakseg("pull", NAME, "--output", tmp_path / "new" / "run")
    assert "checkpoints/best.ckpt" in said
    assert {*hub.asked} == HELD
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert there == {f"new/run/{name}" for name in HELD}
    for name in HELD:
        assert (tmp_path / "new" / "run" / name).read_bytes() == (run_dir / name).read_bytes()
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    pulled, pushed = load_run(tmp_path / "new" / "run"), load_run(run_dir)
    np.testing.assert_array_equal(pulled.predict(image), pushed.predict(image))
    assert f"--output {tmp_path / 'new' / 'run'} is there" in weakseg(
        "pull", NAME, "--output", tmp_path / "new" / "run", expect=1
    )


class Command:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_a_checkpoint_from_the_hub_with_code_in_it_is_refused_and_nothing_is_left(hub, run_dir, tmp_path):
    weakseg("push", NAME, "--run", run_dir)
    hub.repositories[NAME]["checkpoints/best.ckpt"] = pickle.dumps({"state_dict": Command()})
    said = weakseg("pull", NAME, "--output", tmp_path / "run", expect=1)
    assert said.strip().splitlines()[-1].startswith("weakseg: error: ")
    assert "may run code" in said or "cannot be read" in said
    assert not [*tmp_path.iterdir()]


def test_each_refusal_is_one_line_that_says_what_to_do(hub, run_dir, tmp_path, monkeypatch):
    def last(*words):
        line = weakseg(*words, expect=1).strip().splitlines()[-1]
        assert line.startswith("weakseg: error: ")
        assert len(line) < 500
        return line

    get = ["pull", NAME, "--output", tmp_path / "run"]
    assert "there is no me/horses, or it is not yours to see" in last(*get)
    hub.repositories[NAME] = {"model.safetensors": b""}
    assert "me/horses on the hub holds no run of weakseg" in last(*get)
    assert "no such revision" in last(*get, "--revision", "v9")
    assert "namespace" in last("pull", "a/b/c", "--output", tmp_path / "run")
    assert "has no checkpoints/best.ckpt" in last("push", NAME, "--run", tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert "me/horses is refused (401): log in with `hf auth login`" in last("push", NAME, "--run", run_dir)
    monkeypatch.delenv("HF_TOKEN")
    before = [*hub.asked]
    assert "wants to know who writes: log in" in last("push", NAME, "--run", run_dir)
    assert hub.asked == before
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert "cannot be reached" in last(*get)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "cannot be reached" in last("push", NAME, "--run", run_dir)
    assert not [*tmp_path.iterdir()]
