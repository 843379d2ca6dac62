"""Files and folders that are written whole or not at all: whoever reads them, or is killed writing, sees no half."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path to write a file at. It becomes `path` when the block ends, and is removed if the block fails.

    It is in the same folder, which is made if it is missing, and has no suffix: name the format, or pass an open file,
    to libraries that go by it. The new file is on the disk before it replaces the old one; of two writers, the last one
    wins. Permissions follow the umask, as for any new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch_of(path)
    try:
        yield scratch
        sync(scratch)
        os.replace(scratch, path)
        sync(path.parent)  # the new name too
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """The same for a folder: an empty one to write into. If there is a `folder` with files by then, that one stays."""
    scratch = _scratch_of(folder)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        for path in [*scratch.rglob("*"), scratch]:
            sync(path)
        try:
            os.replace(scratch, folder)
        except OSError:
            if not folder.is_dir():  # nobody else was faster
                raise
        sync(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch_of(path: Path) -> Path:
    return path.with_name(f".{path.name}-{uuid4().hex[:12]}")


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk. Some file systems refuse it for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with written_whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")
