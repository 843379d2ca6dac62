"""Lists of names and files in arrays: what they hold is what a list and a dictionary would."""

import json
import pickle
import random
import sys

import numpy as np
import pytest

from conftest import draw_folder
from datamodules import Folder
from datamodules.files import find_images
from datamodules.names import Files, Names
from datamodules.parallel import FEW, mapped
from datamodules.state import digest_of, digest_of_state, plain

WORDS = ["", "a", "aa", "b/a", "b/ä", "日本", "\udcff", *(f"frame_{number}" for number in range(500))]


def test_names_are_a_sorted_list_without_doubles():
    shuffled = [*WORDS, *WORDS[:9]]
    random.Random(0).shuffle(shuffled)
    names = Names(shuffled)
    assert [*names] == sorted(WORDS)
    assert names == sorted(WORDS)
    assert names != sorted(WORDS)[1:]
    assert [names[at] for at in (0, 7, -1)] == [sorted(WORDS)[at] for at in (0, 7, -1)]
    assert names[3:90:7] == sorted(WORDS)[3:90:7]
    assert [names.place(word) for word in sorted(WORDS)] == [*range(len(WORDS))]
    assert not any(word in names for word in ("c", "frame_", "frame_500", None, 3))
    assert pickle.loads(pickle.dumps(names)) == names
    with pytest.raises(IndexError):
        names[len(WORDS)]


def test_names_of_one_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr("datamodules.names.hash", lambda name: 5, raising=False)
    names = Names(["a", "b", "c"])
    assert [names.place(name) for name in "abcd"] == [0, 1, 2, None]


def test_files_are_a_dictionary(tmp_path):
    paths = {"b": "b.png", "a": "a.JPG", "c/d": "c/d.png", "ä": "a\u0308.png", "e": "ee"}
    files = Files(tmp_path, paths)
    assert dict(files) == dict(files.items()) == {name: tmp_path / path for name, path in paths.items()}
    assert [*files] == sorted(paths)
    assert "b.png" not in files
    assert files.get("x") is None
    assert files.folders() == {tmp_path, tmp_path / "c"}
    assert pickle.loads(pickle.dumps(files)) == files


def test_a_million_names_take_little_memory():
    """Less than forty bytes a name and file, and less than two thirds of a list of the names alone."""
    count = 20_000
    files = Files("folder", {f"frame_{number:07d}": f"frame_{number:07d}.png" for number in range(count)})
    names = files.names
    held = len(names.text) + names.ends.nbytes + names.order.nbytes + 8 * len(names.hashes) + files.kinds.nbytes
    assert held < 40 * count
    assert held < sum(sys.getsizeof(name) + 8 for name in names) / 1.5


def test_the_digest_of_a_state_is_that_of_its_text(tmp_path):
    state = Folder(str(draw_folder(tmp_path))).looked_at()[0]
    assert digest_of_state(state) == digest_of(plain(state)) == digest_of(json.loads(json.dumps(plain(state))))


def test_folders_are_walked_in_order_and_a_link_that_leads_back_is_left_out(tmp_path):
    for name in ("b/x.png", "a.png", "b/.hidden/y.png", "__MACOSX/a.png", "b/z.PNG"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "images" / "b" / "back").symlink_to(tmp_path / "images")
    found = find_images(tmp_path / "images", nested=True)
    assert [path.relative_to(tmp_path / "images").as_posix() for path in found.values()] == [
        "a.png",
        "b/x.png",
        "b/z.PNG",
    ]


def half(number):
    if number % 2:
        raise OSError(2, "odd", f"file{number}")
    return np.full(3, number // 2)


@pytest.mark.parametrize("count", [3, FEW])
def test_work_is_shared_in_order_and_its_errors_are_its_own(count):
    found = mapped(half, range(0, 2 * count, 2), "halving")
    assert [one.tolist() for one in found] == [[number] * 3 for number in range(count)]
    found = mapped(half, [*range(0, 2 * count, 2), 5, 7], "halving")
    with pytest.raises(OSError, match="odd") as raised:
        list(found)
    assert raised.value.filename == "file5"


def test_an_annotation_drawn_by_many_processes_is_that_of_one(tmp_path, monkeypatch):
    root = draw_folder(tmp_path / "data")
    folders = []
    for few in (10_000, 1):
        monkeypatch.setattr("datamodules.parallel.FEW", few)
        data = Folder(str(root), cache_dir=str(tmp_path / f"cache{few}"))
        data.prepare_data()
        folders.append(data.annotation_dir())
    one, many = ({path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} for folder in folders)
    assert one == many
    assert len(one) > 5
