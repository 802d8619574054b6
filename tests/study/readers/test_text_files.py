"""Text files are decoded for what they hold, or refused with line and byte."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.readers.text_files import decode_text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("prompt,seed\nthe café,1\n", "utf-8"),
        ("prompt,seed\nthe café,1\n", "utf-8-sig"),
        ("prompt,seed\nthe cat’s hat,1\n", "cp1252"),
        ("prompt,seed\nŠkoda, Œuvre, MAŽ, naïve Žofie,1\n", "cp1252"),
        ("prompt,seed\n„das“ Bild ‚eins‘ heißt„Haus“…,1\n", "cp1252"),
        ("prompt,seed\na déjà-vu,1\n", "latin-1"),
        ("prompt,seed\r\nplain,1\r\n", "ascii"),
    ],
)
def test_decode_text_reads_what_was_written(text, encoding):
    assert decode_text(text.encode(encoding), "f.csv") == text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("prompt,seed\ncafé,1\n".encode() + b"na\xefve,2\n", "line 3: byte 0xef is not UTF-8, but"),
        (b"prompt,seed\na\x81b,1\n", "line 2: byte 0x81 is neither UTF-8 nor Windows-1252"),
        ("prompt,seed\n".encode("utf-16-le"), "f.csv: the file is UTF-16 without a byte order"),
        ("prompt,seed\n".encode("utf-16-be"), "f.csv: the file is UTF-16 without a byte order"),
        ("prompt,seed\n".encode("utf-32-be"), "f.csv: the file is UTF-32 without a byte order"),
        (
            gzip.compress(b"prompt,seed\n", mtime=0),
            "f.csv: the file is compressed .gzip.. Fix: unpack it",
        ),
        (b"PK\x03\x04rest", "f.csv: the file is a spreadsheet"),
        ("prompt,seed\n\ufeffa,1\n".encode(), "line 2: a byte order mark inside the file"),
        ("\ufeff\ufeffprompt,seed\n".encode(), "line 1: a byte order mark inside the file"),
        ("prompt,seed\rcaf\ufffd,1\r".encode(), "line 2: a character that was lost"),
        ("prompt,seed\r\na\ud800b,1\r\n".encode("utf-8", "surrogatepass"), "line 2: byte 0xed"),
        ("prompt,seed\ra\ud83d\ude00b,1\r".encode("utf-8", "surrogatepass"), "line 2: byte 0xed"),
        (
            "prompt,seed\nкот,1\n".encode("cp1251"),
            "line 2: byte 0xea is not UTF-8, nor part of a Western European word in Windows-1252",
        ),
        (
            "prompt,seed\na cat,1\nle café,2\n".encode("mac_roman"),
            "line 3: byte 0x8e is not UTF-8, and in Windows-1252 a misplaced Ž.*Fix: save",
        ),
        ("prompt,seed\nüber grünem Gras,1\n".encode("mac_roman"), "line 2: byte 0x9f .*Ÿ"),
        ("prompt,seed\nle café,1\n".encode("cp437"), "line 2: byte 0x82 .* a misplaced ‚"),
        ("prompt,seed\nla crème,1\n".encode("cp850"), "line 2: byte 0x8a .* a misplaced Š"),
        ("prompt,seed\n猫坐在桌子上,1\n".encode("gbk"), "line 2: byte 0x.. is "),
        ("prompt,seed\n猫の帽子,1\n".encode("shift-jis"), "line 2: byte 0x.. is "),
        ("prompt,seed\n".encode("utf-16"), "f.csv: the file is UTF-16. Fix: save it as UTF-8"),
        ("prompt,seed\n".encode("utf-32"), "f.csv: the file is UTF-32"),
        (b"prompt,seed\na\x00b,1\n", "line 2: control character 0x00"),
        ("prompt,seed\nthe cat\x92s hat,1\n".encode(), "line 2: control character 0x92"),
    ],
)
def test_decode_text_refuses_with_line_and_byte(data, words):
    with pytest.raises(UserError, match=words):
        decode_text(data, "f.csv")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_decode_text_of_any_bytes_is_text_or_one_sentence(data):
    try:
        text = decode_text(data, "f.csv")
    except UserError:
        return
    assert not any(ord(c) < 32 and c not in "\t\n\r" for c in text)
    assert text.encode("utf-8") in (data, data.removeprefix(b"\xef\xbb\xbf")) or (
        text.encode("cp1252") == data
    )
