"""Decoder of text files whose encoding is unknown."""

from __future__ import annotations

import codecs
import re

from ldmprobe_core.errors import UserError

_WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order mark to encoding; UTF-32 is first, since its mark begins with that of UTF-16."""

_SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""First bytes of ZIP archives, such as XLSX and ODS files, and of XLS files."""

_MULTIBYTE = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
_NOT_WESTERN = re.compile(rb"[\xc0-\xff]{3}|[\x80-\xff]{4}")
"""Pattern of byte runs that occur in Cyrillic or Chinese text, but not in Western words."""

_MISPLACED = re.compile("(?<=[a-z\u00df-\u00ff])(?:[ŠŒŽŸ]|[‚„](?![^\\W\\d_]))")
"""Pattern of characters that are accented letters in Mac Roman or in a code page of DOS.

In Windows-1252 their bytes are capital letters, which do not follow a lowercase letter, and opening
quotes, which precede a word.
"""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffd\ufffe\uffff]")
_NAMED = {"\ufeff": "a byte order mark inside the file", "\ufffd": "a character that was lost"}


def decode_text(data: bytes, name: str) -> str:
    """Decode a file as UTF-8, or as Windows-1252 if that gives plausible Western European words.

    Spreadsheet programs write Windows-1252, which equals Latin-1 for accented letters.  A file with
    both valid and invalid multi-byte UTF-8 is refused, since either encoding would decode some of
    its characters wrongly.

    Args:
        data: the file's bytes.
        name: name of the file, for messages.

    Raises:
        UserError: neither encoding fits, or the text has a control character, a replacement
            character, or a byte order mark after its beginning.
    """
    if data.startswith(_SPREADSHEETS):
        raise UserError(f"{name}: the file is a spreadsheet. Fix: export it as CSV, in UTF-8")
    if data.startswith(b"\x1f\x8b"):
        raise UserError(f"{name}: the file is compressed (gzip). Fix: unpack it with gunzip")
    for mark, encoding in _WIDE.items():
        if data.startswith(mark):
            raise UserError(f"{name}: the file is {encoding}. Fix: save it as UTF-8")
    if 4 * data.count(0) > len(data):
        encoding = "UTF-32" if 2 * data.count(0) > len(data) else "UTF-16"
        raise UserError(
            f"{name}: the file is {encoding} without a byte order mark. Fix: save it as UTF-8"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = _windows_1252(data, error.start, name)
    control = _CONTROL.search(text)
    if control is not None:
        character = _NAMED.get(control[0], f"control character {ord(control[0]):#04x}")
        raise UserError(
            f"{name}, line {line_of(text, control.start())}: {character}. Fix: remove this "
            "character, or save the file as UTF-8 text"
        )
    return text


def line_of(text: str, position: int) -> int:
    """Return the line number, from 1, of a position in a text with any convention of line ends."""
    before = text[:position].replace("\r\n", "\n")
    return before.count("\n") + before.count("\r") + 1


def _windows_1252(data: bytes, invalid: int, name: str) -> str:
    """Decode a file as Windows-1252, and refuse a file that seems to have another encoding.

    Args:
        invalid: index of the first byte that is not UTF-8.
    """

    def byte_error(position: int, reason: str) -> UserError:
        line = line_of(data[:position].decode("latin-1"), position)
        return UserError(
            f"{name}, line {line}: byte {data[position]:#04x} is {reason}. Fix: save the file as "
            "UTF-8"
        )

    if _MULTIBYTE.search(data):
        raise byte_error(invalid, "not UTF-8, but the rest of the file is")
    other = _NOT_WESTERN.search(data)
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError as error:
        raise byte_error(error.start, "neither UTF-8 nor Windows-1252") from None
    if other is not None:
        raise byte_error(
            other.start(), "not UTF-8, nor part of a Western European word in Windows-1252"
        )
    misplaced = _MISPLACED.search(text)
    if misplaced is not None:
        raise byte_error(
            misplaced.start(),
            f"not UTF-8, and in Windows-1252 a misplaced {misplaced[0]}, as if the file were from "
            "an old Macintosh or DOS",
        )
    return text
