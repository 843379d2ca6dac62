"""Files and folders that are written whole or not at all."""

import json
import os
import signal
import stat
import subprocess
import sys

import pytest

from common.training import files
from common.training.files import folder_written_whole, write_json, write_text, written_whole
from conftest import ROOT

KILLED = """
import os, signal, sys
from pathlib import Path
from common.training.files import {writer}

with {writer}(Path(sys.argv[1])) as scratch:
    ({target}).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def killed(path, writer, target):
    script = KILLED.format(writer=writer, target=target)
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.fixture
def umask():
    """A umask that is not the usual one, for the time of a test."""
    old = os.umask(0o027)
    yield
    os.umask(old)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_appears_with_its_folder_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "new" / "one.txt"
    write_text(path, "first ü\n")
    write_text(path, "second\n")
    assert path.read_bytes() == b"second\n"
    write_json(tmp_path / "one.json", {"b": [1, 2], "a": None})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "one.json", {"b": float("-inf")})
    assert (tmp_path / "one.json").read_text().endswith("}\n")
    assert json.loads((tmp_path / "one.json").read_text()) == {"b": [1, 2], "a": None}
    assert names(path.parent) == ["one.txt"]


def test_an_error_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "one.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError), written_whole(path) as scratch:
        scratch.write_text("half \udc80", encoding="utf-8")
    with pytest.raises(FileNotFoundError), written_whole(path):
        pass  # nothing was written
    assert path.read_text() == "old"
    assert names(tmp_path) == ["one.txt"]


def test_a_kill_half_way_keeps_the_old_file(tmp_path):
    path = tmp_path / "one.txt"
    write_text(path, "old")
    killed(path, "written_whole", "scratch")
    assert path.read_text() == "old"
    assert not list(tmp_path.glob("*.txt"))[1:]


def test_of_two_writers_of_a_file_the_last_one_wins(tmp_path):
    path = tmp_path / "one.txt"
    with written_whole(path) as outer:
        outer.write_text("outer")
        with written_whole(path) as inner:
            inner.write_text("inner")
        assert path.read_text() == "inner"
    assert path.read_text() == "outer"
    assert names(tmp_path) == ["one.txt"]


def test_permissions_follow_the_umask(tmp_path, umask):
    write_text(tmp_path / "one.txt", "")
    with folder_written_whole(tmp_path / "folder") as scratch:
        (scratch / "inside").touch()
    assert mode(tmp_path / "one.txt") == mode(tmp_path / "folder" / "inside") == 0o640
    assert mode(tmp_path / "folder") == 0o750


def test_all_is_synced_and_a_folder_that_cannot_be_is_no_error(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2])
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(files.os, "fsync", fsync)
    write_text(tmp_path / "one.txt", "")
    assert [name.split("-")[0] for name in synced] == [".one.txt", tmp_path.name.split("-")[0]]
    synced.clear()
    with folder_written_whole(tmp_path / "folder") as scratch:
        (scratch / "inside").touch()
    assert synced[0] == "inside"
    assert len(synced) == 3


def test_a_file_that_cannot_be_synced_is_an_error(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "one.txt", "old")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "one.txt", "new")
    assert (tmp_path / "one.txt").read_text() == "old"
    assert names(tmp_path) == ["one.txt"]


# Folders --------------------------------------------------------------------------------------------------------------


def test_a_folder_appears_whole_and_the_first_one_stays(tmp_path):
    folder = tmp_path / "cache" / "one"

    def write(text):
        with folder_written_whole(folder) as scratch:
            (scratch / "text").touch()
            (scratch / "text").write_text(text)

    with pytest.raises(TypeError):
        write(None)
    assert not names(tmp_path / "cache")
    write("first")
    write("second")
    assert [path.read_text() for path in (tmp_path / "cache").rglob("text")] == ["first"]
    assert names(tmp_path / "cache") == ["one"]


def test_of_two_writers_of_a_folder_the_first_one_wins(tmp_path):
    with folder_written_whole(tmp_path / "one") as outer:
        (outer / "text").write_text("outer")
        with folder_written_whole(tmp_path / "one") as inner:
            (inner / "text").write_text("inner")
    assert (tmp_path / "one" / "text").read_text() == "inner"
    assert names(tmp_path) == ["one"]


def test_a_folder_that_cannot_be_put_in_place_is_an_error(tmp_path):
    (tmp_path / "one").touch()  # a file has the name
    with pytest.raises(NotADirectoryError), folder_written_whole(tmp_path / "one"):
        pass
    assert names(tmp_path) == ["one"]


def test_a_kill_half_way_leaves_no_folder_of_the_name(tmp_path):
    killed(tmp_path / "one", "folder_written_whole", "scratch / 'text'")
    assert not (tmp_path / "one").exists()
