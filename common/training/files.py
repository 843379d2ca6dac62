"""Files and folders that are written whole or not at all: whoever reads them, or is killed writing, sees no half."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from lightning_utilities.core.rank_zero import rank_zero_warn

DAY = 86400.0
SCRATCH = re.compile(r"\..+-[0-9a-f]{12}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path to write a file at. It becomes `path` when the block ends, and is removed if the block fails.

    It is in the same folder, which is made if it is missing, and has no suffix: name the format, or pass an open file,
    to libraries that go by it. The new file is on the disk before it replaces the old one; of two writers, the last one
    wins. Permissions follow the umask, as for any new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_of(path)
    with held(os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)):
        try:
            os.utime(scratch, (0, 0))  # a block that writes nothing leaves this time
            yield scratch
            if not scratch.stat().st_mtime:
                raise FileNotFoundError(f"nothing was written for {path}")
            sync(scratch)
            os.replace(scratch, path)
            sync(path.parent)  # the new name too
        except OSError as error:
            if error.errno and error.filename is None:  # of a write: say of which file
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise
        finally:
            scratch.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(folder: Path, before: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """The same for a folder: an empty one to write into. If there is a `folder` with files by then, that one stays.
    `before` is called once all is on the disk and about to get its name."""
    scratch = scratch_of(folder)
    scratch.mkdir(parents=True)
    with held(os.open(scratch, os.O_RDONLY)):
        try:
            yield scratch
            for path in [*scratch.rglob("*"), scratch]:
                sync(path)
            before()
            try:
                os.replace(scratch, folder)
            except OSError:
                if not folder.is_dir():  # nobody else was faster
                    raise
            sync(folder.parent)
        except OSError as error:
            if error.errno and error.filename is None:  # of a write: say of which folder
                raise OSError(error.errno, error.strerror, str(folder)) from error
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def clean(folder: Path, name: str | None = None) -> None:
    """Remove what writers that were killed have left in a folder, of all files or of the one of that `name`; what is
    being written now stays. Whether a writer of another machine lives no lock tells: what it left stays for a day."""
    for path in folder.glob(".*"):
        if not SCRATCH.fullmatch(path.name) or (name is not None and path.name[1:-13] != name):
            continue
        with contextlib.suppress(OSError):  # gone meanwhile
            if path.name[-12:-8] != host() and time.time() - path.stat().st_ctime < DAY:
                continue
        with contextlib.suppress(OSError):  # gone meanwhile, or its writer lives (BlockingIOError)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            finally:
                os.close(descriptor)


def scratch_of(path: Path) -> Path:
    """A new name beside a path, which `clean` knows; it tells the machine."""
    return path.with_name(f".{path.name}-{host()}{uuid4().hex[:8]}")


def host() -> str:
    """Four hexadecimal digits of this machine's name."""
    return sha256(socket.gethostname().encode()).hexdigest()[:4]


@contextmanager
def held(descriptor: int) -> Iterator[None]:
    """Mark a scratch as in use: the kernel lets go of the lock when its writer dies."""
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk. Some file systems refuse it for folders."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not path.is_dir():
            raise
        rank_zero_warn(f"{path} cannot be synced to the disk ({error}): a power cut may lose the newest file in it")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with written_whole(path) as scratch:
        scratch.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; names of files that are none have the bytes that they have."""
    with written_whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        ValueError: there is a number in it that is not finite, which JSON does not have.
    """
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, way_out: str = "", most: int = 2**24) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: the file.
        way_out: end of the message, what to do about a file that is broken.
        most: bytes that are read of it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is broken, larger, or holds something else.
    """
    try:
        if (size := path.stat().st_size) > most:
            raise ValueError(f"it has {size} bytes, at most {most} are read")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is broken ({' '.join(str(error).split())[:100]}){way_out}") from error
    return content


def read_summary(run_dir: Path) -> dict[str, Any]:
    """`summary.json` of a run directory.

    Raises:
        OSError: it cannot be read.
        ValueError: it is broken.
    """
    path = run_dir / "summary.json"
    way_out = ": remove it, and start the run again with `--resume auto`, which writes it anew"
    summary = read_json(path, way_out)
    if not all(isinstance(summary.get(part), dict) for part in ("last", "best")):
        raise ValueError(f"{path} is broken (it lacks what a run writes){way_out}")
    return summary


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV, whole or not at all; columns in the order in which rows name them first, unless given."""
    text = io.StringIO()
    names = dict.fromkeys(key for row in rows for key in row) if columns is None else columns
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def plain_yaml(text: str, most: int = 100_000) -> Any:
    """What YAML from elsewhere says, as plain values.

    Raises:
        ValueError: it has merges (`<<`) or more than `most` values, aliases counted each time: a few lines of these can
            say more than memory holds.
        yaml.YAMLError, RecursionError: it is none.
    """
    if "<<" in text:
        raise ValueError("it merges mappings (<<): write them out")
    content = yaml.safe_load(text)
    left, seen = [content], 0
    while left:
        one, seen = left.pop(), seen + 1
        if isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, (list, tuple, set)):
            left += one
        if seen + len(left) > most:
            raise ValueError(f"it holds more than {most} values")
    return content
