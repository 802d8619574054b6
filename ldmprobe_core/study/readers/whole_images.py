"""Check that a PNG or JPEG file holds all rows of its image.

The decoder accepts compressed data of a PNG file that ends early, although its checksums are right,
and leaves the remaining rows black.

A JPEG file that was cut and then closed with an end marker, as some recovery tools do, is decoded
without an error: the decoder fills the rest with grey.  Neither the decoder's warning nor a
checksum is available, so the file is decoded a second time with other bytes before the end marker.
They change the pixels if, and only if, the decoder needs data that the file lacks.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from ldmprobe_core.errors import UserError

_HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2}
"""Markers of frames whose data is Huffman-coded.

Arithmetic-coded files may omit zeros at the end of their data, so that their end cannot be checked.
"""
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE, _SCAN, _RESTART_INTERVAL, _END = 0xC2, 0xDA, 0xDD, 0xD9
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}

_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
_RESTART = re.compile(rb"\xff[\xd0-\xd7]", re.DOTALL)

_OTHER_BYTES = bytes((i * 197 + 91) % 251 for i in range(1 << 14))
"""Bytes that are decoded in place of missing data; none of them is 0xff, so there is no marker."""


@dataclass(frozen=True)
class _Scan:
    """Part of a JPEG file that holds entropy-coded data.

    Attributes:
        components: ids of the components in the scan.
        first, last: range of the coefficients, 0 to 63.
        low: number of the coefficients' low bits that are left to later scans.
        restarts: number of restart markers in the data.
        interval: number of blocks between two restart markers; 0 if there are none.
        end: index of the byte after the data.
    """

    components: tuple[int, ...]
    first: int
    last: int
    low: int
    restarts: int
    interval: int
    end: int


@dataclass
class _Frame:
    """Layout of a JPEG image: its marker, size, sampling factors by component, and scans."""

    marker: int
    height: int
    width: int
    sampling: dict[int, tuple[int, int]]
    scans: list[_Scan] = field(default_factory=list)

    def blocks(self, scan: _Scan) -> int:
        """Number of minimum coded units (MCUs) in a scan; restart intervals are counted in MCUs."""
        across = max(h for h, _ in self.sampling.values())
        down = max(v for _, v in self.sampling.values())
        if len(scan.components) > 1:
            return math.ceil(self.width / (8 * across)) * math.ceil(self.height / (8 * down))
        h, v = self.sampling[scan.components[0]]
        return math.ceil(math.ceil(self.width * h / across) / 8) * math.ceil(
            math.ceil(self.height * v / down) / 8
        )


def require_whole_jpeg(path: Path, image: Image.Image) -> None:
    """Check that a JPEG file is complete; decoders fill in missing parts without an error.

    Args:
        path: file of the image; of a file with several images, the first is checked.
        image: the image as it was decoded.

    Raises:
        UserError: the file ends before its image does.
    """
    data = path.read_bytes()
    try:
        frame = _frame(data)
    except (IndexError, KeyError, ValueError, ZeroDivisionError):
        # The decoder has accepted this file, although this module cannot read its header.  An
        # unknown layout is no proof of damage, so the file is accepted unchecked.
        return
    if frame is None or not frame.scans:
        return
    if _lacks_scans(frame) or _lacks_data(data, frame, image):
        raise UserError(
            f"{path}: the file ends before its image is complete, so a part would be grey or "
            "blurred. Fix: copy it again, or remove it"
        )


def _frame(data: bytes) -> _Frame | None:
    """Read the layout of the first image of a JPEG file; None if it is not Huffman-coded."""
    frame, interval = None, 0
    for marker, start, segment in _segments(data):
        if marker in _FRAMES:
            if marker not in _HUFFMAN_FRAMES:
                return None
            sampling = {
                segment[i]: (segment[i + 1] >> 4, segment[i + 1] & 15)
                for i in range(6, 6 + 3 * segment[5], 3)
            }
            height, width = (int.from_bytes(segment[i : i + 2]) for i in (1, 3))
            frame = _Frame(marker, height, width, sampling)
        elif marker == _RESTART_INTERVAL:
            interval = int.from_bytes(segment[:2])
        elif marker == _SCAN and frame is not None:
            end = _scan_end(data, start + len(segment))
            n = segment[0]
            first, last, bits = segment[1 + 2 * n : 4 + 2 * n]
            restarts = len(_RESTART.findall(data, start + len(segment), end))
            components = tuple(segment[1 : 1 + 2 * n : 2])
            frame.scans.append(_Scan(components, first, last, bits & 15, restarts, interval, end))
    return frame


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield marker, position and content of each segment of the first image in a JPEG file."""
    position = 2
    while position < len(data):
        match = _NEXT_MARKER.search(data, position)
        if match is None or data[match.end() - 1] == _END:
            return
        marker, position = data[match.end() - 1], match.end()
        if marker in _WITHOUT_LENGTH:
            continue
        length = int.from_bytes(data[position : position + 2])
        yield marker, position + 2, data[position + 2 : position + length]
        position += length


def _scan_end(data: bytes, start: int) -> int:
    """Return the index of the marker that ends a scan, or the length of the data."""
    match = _NEXT_MARKER.search(data, start)
    return len(data) if match is None else match.start()


def _lacks_scans(frame: _Frame) -> bool:
    """Return whether the scans lack a component or, in a progressive image, coefficient bits."""
    if frame.marker != _PROGRESSIVE:
        coded = {component for scan in frame.scans for component in scan.components}
        return bool(frame.sampling.keys() - coded)
    low = dict.fromkeys(((c, k) for c in frame.sampling for k in range(64)), 16)
    for scan in frame.scans:
        for component in scan.components:
            for k in range(scan.first, scan.last + 1):
                low[component, k] = min(low[component, k], scan.low)
    return any(low.values())


def _lacks_data(data: bytes, frame: _Frame, image: Image.Image) -> bool:
    """Return whether a scan lacks restart markers, or the decoder reads beyond the last scan."""
    for scan in frame.scans:
        if scan.interval and scan.restarts < math.ceil(frame.blocks(scan) / scan.interval) - 1:
            return True
    end = frame.scans[-1].end
    other = JpegImageFile(io.BytesIO(data[:end] + _OTHER_BYTES + b"\xff\xd9"))
    other.load()
    return not np.array_equal(np.asarray(image), np.asarray(other))


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
    for kind, content in _png_chunks(data):
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


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Iterate over the type and content of the chunks of a PNG file."""
    position = 8
    while position + 8 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        yield data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        position += 12 + length
