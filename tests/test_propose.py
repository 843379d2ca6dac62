"""`weakseg propose`: rounds of proposals through the command, resumed, refused, and read by a network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import fit_tiny, weakseg
from datamodules import Rooms
from datamodules.supervision import Supervision
from experiments.runs import propose

ROOMS = ["--data", "Rooms", "--data.train", "2", "--data.val", "1", "--data.test", "1", "--data.around", "6",
         "--data.width", "64", "--data.size", "[48, 64]", "--data.num_workers", "0"]  # fmt: skip
BOXES = ["--data.supervision", "{kind: boxes, real: true, inside: filled, number: 5, seed: 1}"]
FIRST = ["--config", "base", *ROOMS, *BOXES]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    said = weakseg("propose", *FIRST, "--output", folder / "p0", "--picture", folder / "p0.png")
    return folder, said


def about(folder):
    return json.loads((folder / "pseudo.json").read_text())


def test_a_round_labels_all_views_and_says_what_came_of_it(first):
    folder, said = first
    found = about(folder / "p0")
    assert "round 0: 12 views, 5 of them with boxes" in said
    assert "train000: 9" in said
    assert (found["images"], found["round"], len(found["boxed"])) == (12, 0, 5)
    assert found["classes"] == ["background", "box", "cylinder", "table"]
    assert found["miou_unboxed"] > 40  # chance is below 25
    assert 0 < found["unlabeled"] < 0.8
    assert Image.open(folder / "p0.png").size[0] > 300
    assert Image.open(folder / "p0.png").mode == "P"
    for path in (folder / "p0").glob("*.png"):
        assert {*np.unique(np.asarray(Image.open(path)))} <= {0, 1, 2, 3, 255}
    assert len([*(folder / "p0").glob("*.png")]) == 12
    assert not [*folder.glob(".*unfinished")]


def test_a_network_learns_from_it_and_votes_in_the_next_round(first, tmp_path):
    folder, _ = first
    dense = ["--data.supervision", "{kind: dense}", "--data.pseudo_masks", folder / "p0", "--data.batch_size", "4"]
    words = ["--config", "base", "--config", "guided_3d", *ROOMS, *dense, "--trainer.max_steps", "4"]
    weakseg("fit", *words, "--trainer.val_check_interval", "4", "--run_dir", tmp_path / "r0")
    said = weakseg("propose", "--run", tmp_path / "r0", "--which", "last", "--output", tmp_path / "p1")
    assert "round 1: 12 views, 5 of them with boxes" in said
    assert "round 0 had" in said
    found = about(tmp_path / "p1")
    assert (found["round"], found["boxed"]) == (1, about(folder / "p0")["boxed"])


def test_a_round_that_is_stopped_goes_on_and_ends_the_same(first, tmp_path, monkeypatch):
    folder, _ = first
    seen = []
    real = propose.Round.one

    def stops(self, name, work, votes):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(name)
        real(self, name, work, votes)

    monkeypatch.setattr(propose.Round, "one", stops)
    weakseg("propose", *FIRST, "--output", tmp_path / "p0", expect=130)
    assert not (tmp_path / "p0").exists()
    again = []

    def counts(self, name, work, votes):
        again.append(name)
        real(self, name, work, votes)

    monkeypatch.setattr(propose.Round, "one", counts)
    said = weakseg("propose", *FIRST, "--vote", "veto", "--output", tmp_path / "p0", expect=1)
    assert "holds an unfinished round of other settings" in said
    weakseg("propose", *FIRST, "--output", tmp_path / "p0")
    assert not {*seen} & {*again}
    for path in (folder / "p0").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "p0" / path.name).read_bytes()
    assert about(tmp_path / "p0") == about(folder / "p0")
    said = weakseg("propose", *FIRST, "--output", tmp_path / "p0", expect=1)
    assert "replace them with --overwrite" in said


def test_what_no_view_has_seen_stays_unknown_where_colours_decide():
    pytest.importorskip("cv2")
    image = np.zeros((12, 16, 3), np.uint8)
    image[3:9, 4:12] = 220
    found = torch.full((12, 16), 255)
    assert (propose.cut(torch.full((2, 12, 16), 0.5), found, image) == 255).all()
    s = torch.full((2, 12, 16), 0.5)
    s[0] = 0.1
    s[0, 4:8, 5:11] = 0.9
    s[1] = 0.1  # known to be elsewhere
    labeled = propose.cut(s, found, image)
    assert (labeled[4:8, 5:11] == 1).all()
    assert (labeled[:2] == 0).all()
    s[1, :, 14:] = 0.5
    assert (propose.cut(s, found, image)[:, 14:] == 255).all()


def test_no_view_votes_for_its_own_cloud(monkeypatch):
    data = Rooms(train=1, val=1, test=1, around=4, width=48, size=[36, 48], num_workers=0,
                 supervision=Supervision("boxes", real=True, inside="filled"))  # fmt: skip
    names = data.names("train")
    made = propose.Round(data, names[:1], propose.How(cloud="voxel"))
    kept = {}
    monkeypatch.setattr(made, "one", lambda name, work, votes: kept.update({name: votes}))
    group, members = next(iter(data.groups(names).items()))
    made.group(group, members, Path("nowhere"))
    assert kept[names[0]] is None  # nobody else votes
    both = propose.Round(data, names[:2], propose.How(cloud="voxel"))
    monkeypatch.setattr(both, "one", lambda name, work, votes: kept.update({name: votes}))
    both.group(group, members, Path("nowhere"))
    # Of two voters each counts once at most in the other's view, both in a third one.
    assert [float(kept[name].seen.max().round()) for name in (*names[:2], names[2])] == [1, 1, 2]


@pytest.mark.parametrize("words", [["--cloud", "voxel"], ["--refine", "crf"], ["--refine", "grabcut"], ["--through"]])
def test_each_way_gives_proposals_above_chance(words, first, tmp_path):
    if "grabcut" in words:
        pytest.importorskip("cv2")
    weakseg("propose", *FIRST, *words, "--output", tmp_path / "p")
    found = about(tmp_path / "p")
    assert found["miou_boxed"] > 35
    if words[0] == "--refine":
        assert found["unlabeled"] < about(first[0] / "p0")["unlabeled"]


@pytest.mark.parametrize(("words", "told"), [
    (["--config", "quickstart"], "Synthetic has no depth, cameras and boxes"),
    (["--config", "base", *ROOMS, "--data.supervision", "{kind: boxes}"], "the first round starts from boxes"),
])  # fmt: skip
def test_data_without_depth_or_boxes_are_refused(words, told, tmp_path):
    assert told in weakseg("propose", *words, "--output", tmp_path / "p", expect=1)
    assert "needs --output" in weakseg("propose", *words, expect=1)


def test_a_run_that_learned_from_something_else_is_refused(tmp_path):
    fit_tiny(tmp_path / "run", "--trainer.max_steps", "2")
    said = weakseg("propose", "--run", tmp_path / "run", "--which", "last", "--output", tmp_path / "p", expect=1)
    assert "was not trained on proposals" in said
