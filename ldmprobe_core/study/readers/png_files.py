"""Check that the compressed data of a PNG file holds all rows of its image.

The decoder accepts data that ends early, although its checksums are right, and leaves the remaining
rows black.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Number of channels by the colour type in the header of a PNG."""

_PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
           (0, 1, 1, 2)]  # fmt: skip
"""Passes of an interlaced PNG: first column and row, and steps between columns and rows."""

_BLOCK = 1 << 20


def lacks_rows(data: bytes) -> bool:
    """Return whether a PNG file with valid checksums holds fewer rows than its header states.

    Args:
        data: the file's bytes.
    """
    width, height, depth, color, interlaced = 0, 0, 8, 0, 0
    inflate, size = zlib.decompressobj(), 0
    for kind, content in _chunks(data):
        if kind == b"IHDR":
            width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", content[:13])
        elif kind == b"IDAT":
            while content and not inflate.eof:
                size += len(inflate.decompress(content, _BLOCK))
                content = inflate.unconsumed_tail
    size += len(inflate.flush())
    bits = depth * _CHANNELS[color]
    passes = _PASSES if interlaced else [(0, 0, 1, 1)]
    return size < sum(_pass_bytes(width, height, bits, *part) for part in passes)


def _pass_bytes(
    width: int, height: int, bits: int, left: int, top: int, across: int, down: int
) -> int:
    """Return the size in bytes of one interlacing pass, with one filter byte per row."""
    columns = -(-(width - left) // across)
    rows = -(-(height - top) // down)
    return rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Iterate over the type and content of the chunks of a PNG file."""
    position = 8
    while position + 8 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        yield data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        position += 12 + length
