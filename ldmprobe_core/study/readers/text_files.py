"""Decoding of text files whose encoding is not stated."""

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
"""Byte order marks; UTF-32's begins with UTF-16's and comes first."""

_MULTIBYTE = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def decode_text(data: bytes, name: str) -> str:
    """Decode a file as UTF-8, or else as Windows-1252 if it has no multi-byte UTF-8 character.

    Spreadsheet programs write Windows-1252, which equals Latin-1 for accented letters.  A file with
    both valid and invalid multi-byte UTF-8 is refused, since either encoding would decode some of
    its characters wrongly.

    Args:
        data: the file's bytes.
        name: of the file, for messages.

    Raises:
        UserError: neither encoding fits, or there is a control character; with line and byte.
    """
    for mark, encoding in _WIDE.items():
        if data.startswith(mark):
            raise UserError(f"{name}: the file is {encoding}. Fix: save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = _windows_1252(data, error.start, name)
    control = _CONTROL.search(text)
    if control is not None:
        line = text.count("\n", 0, control.start()) + 1
        raise UserError(
            f"{name}, line {line}: control character {ord(control[0]):#04x}. Fix: remove it, or "
            "save the file as UTF-8 text"
        )
    return text


def _windows_1252(data: bytes, invalid: int, name: str) -> str:
    """Decode as Windows-1252; refuse a file that contains multi-byte UTF-8 characters.

    Args:
        invalid: index of the first byte that is not UTF-8.
    """
    line = data.count(b"\n", 0, invalid) + 1
    if _MULTIBYTE.search(data):
        raise UserError(
            f"{name}, line {line}: byte {data[invalid]:#04x} is not UTF-8, as the rest of the file "
            "is. Fix: save the file as UTF-8"
        )
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name}, line {line}: byte {data[error.start]:#04x} is neither UTF-8 nor "
            "Windows-1252. Fix: save the file as UTF-8"
        ) from None
