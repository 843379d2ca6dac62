"""Text files that people write: lists of classes and of images."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, with or without a byte order mark, whatever ends them.

    Raises:
        ValueError: it is in another encoding.
    """
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        raise ValueError(f"{path} is UTF-16 or no text: save it as UTF-8")
    try:
        return re.split(r"\r\n|\r|\n", content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: the byte 0x{content[error.start]:02x} is not UTF-8 (perhaps Windows-1252): "
            "save the file as UTF-8"
        ) from None


def normal(name: str) -> str:
    """A name in Unicode's normal form C: macOS and some archives write an ü as two characters, others as one."""
    return unicodedata.normalize("NFC", name)
