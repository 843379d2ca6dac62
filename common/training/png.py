"""Grey and indexed PNG files written row by row, for label maps that need not be in memory as a whole."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

import numpy as np

from common.ops.array import Array

SIGNATURE = b"\x89PNG\r\n\x1a\n"


class RowPng:
    """An 8-bit grey or indexed PNG (PNG specification, chapters 5 and 11), as `PIL.Image.save` has no way to write one
    in parts.

    Args:
        file: open for writing.
        height, width: of the picture.
        palette: uint8 (256, 3), colours of the values; None: they are grey.
    """

    def __init__(self, file: BinaryIO, height: int, width: int, palette: Array | None = None) -> None:
        self.file, self.left, self.width = file, height, width
        self.packer = zlib.compressobj()
        file.write(SIGNATURE)
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0 if palette is None else 3, 0, 0, 0))
        if palette is not None:
            self._chunk(b"PLTE", palette.tobytes())

    def write(self, rows: Array) -> None:
        """The next rows, uint8 (n, width); after the last ones the file is complete.

        Raises:
            ValueError: another width or type, or more rows than were announced.
        """
        if rows.dtype != np.uint8 or rows.shape[1:] != (self.width,) or len(rows) > self.left:
            raise ValueError(f"expected up to {self.left} rows of {self.width} bytes, got {rows.shape} of {rows.dtype}")
        self.left -= len(rows)
        unfiltered = np.zeros((len(rows), 1), np.uint8)  # filter type 0 in front of each row
        packed = self.packer.compress(np.concatenate([unfiltered, rows], 1).tobytes())
        if not self.left:
            packed += self.packer.flush()
        if packed:
            self._chunk(b"IDAT", packed)
        if not self.left:
            self._chunk(b"IEND", b"")

    def _chunk(self, kind: bytes, content: bytes) -> None:
        self.file.write(struct.pack(">I", len(content)) + kind + content)
        self.file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))
