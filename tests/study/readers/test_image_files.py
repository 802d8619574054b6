"""Pictures are read for what their mode means, or refused in one sentence."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.readers.image_files import open_rgb


def test_image_of_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = np.repeat(np.array([[0, 1, 128, 255]], np.uint8)[..., None], 3, -1)
    np.testing.assert_array_equal(np.asarray(open_rgb(tmp_path / "a.png")), expected)


def test_image_with_transparent_pixels_does_not_show_their_hidden_colours(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (6, 5, 4), np.uint8)
    values[..., 3] = 0
    values[2, 3] = (10, 20, 30, 255)
    values[4, 1] = (0, 100, 200, 128)
    Image.fromarray(values).save(tmp_path / "a.png")
    found = np.asarray(open_rgb(tmp_path / "a.png")).astype(int)
    expected = np.full((6, 5, 3), 255)
    expected[2, 3] = (10, 20, 30)
    expected[4, 1] = np.rint(128 / 255 * np.array([0, 100, 200]) + 127 / 255 * 255)
    assert np.abs(found - expected).max() <= 1


def test_image_of_a_palette_with_a_transparent_entry_is_composed(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.save(tmp_path / "a.png", transparency=0)
    found = np.asarray(open_rgb(tmp_path / "a.png"))
    np.testing.assert_array_equal(found, [[[255, 255, 255], [0, 0, 200]]])


def test_image_that_is_truncated_animated_or_of_floats_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.jpg: not a complete image .*Fix"):
        open_rgb(tmp_path / "a.jpg")
    noise.save(tmp_path / "b.png", save_all=True, append_images=[noise.rotate(90)])
    with pytest.raises(UserError, match="animation of 2 frames"):
        open_rgb(tmp_path / "b.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "c.tiff")
    with pytest.raises(UserError, match="mode F has no defined range"):
        open_rgb(tmp_path / "c.tiff")


def _written(mode: str, kind: str, size: int) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (size, size + 1), 7).save(stream, kind)
    return stream.getvalue()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.sampled_from([("RGB", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("RGB", "JPEG"), ("L", "WEBP")]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    st.integers(0, 400),
    st.binary(max_size=60),
)
def test_damaged_image_gives_an_image_or_one_sentence(tmp_path_factory, kind, flips, cut, rest):
    """Whole files with some bytes replaced, cut files, and files that go on with other bytes."""
    data = bytearray(_written(*kind, size=9))
    for position, value in flips:
        data[position % len(data)] = value
    path = tmp_path_factory.getbasetemp() / f"any.{kind[1].lower()}"
    path.write_bytes(bytes(data[: cut or len(data)]) + rest)
    try:
        assert open_rgb(path).mode == "RGB"
    except UserError as error:
        assert "Fix" in str(error)  # noqa: PT017  (either outcome is right)


def test_image_of_a_camera_with_several_frames_is_its_first(tmp_path):
    """MPO, which phones save with the suffix .jpg."""
    first = Image.new("RGB", (8, 8), (200, 10, 10))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[first.rotate(90)])
    assert open_rgb(tmp_path / "a.jpg").getpixel((4, 4))[0] > 150


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.png", b"", "0 bytes"),
        ("a.png", b"%PDF-1.4 ...", "PDF, 12 bytes"),
        ("a.jpg", b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer, 42 bytes"),
        ("a.jpg", b"<html>not found</html>", "markup, 22 bytes"),
    ],
)
def test_file_that_is_no_image_is_named_with_its_content(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name}: not a complete image \({words}; .*Fix: save"):
        open_rgb(tmp_path / name)


@pytest.mark.parametrize("side", [9_000, 100_000])
def test_image_that_claims_too_many_pixels_is_refused_within_a_second(tmp_path, side):
    data = bytearray(_written("L", "PNG", size=9))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    start = time.process_time()
    with pytest.raises(UserError, match=r"a\.png: .*pixels are more than 80 million\. Fix: scale"):
        open_rgb(tmp_path / "a.png")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("part", [0.3, 0.7, 0.97])
@pytest.mark.parametrize("harm", ["cut", "zeros"])
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_image_of_an_interrupted_copy_is_refused(tmp_path, file_format, options, harm, part):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.png"  # the format is found by content
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path, file_format, **options)
    open_rgb(path)
    whole = path.read_bytes()
    kept = int(part * len(whole))
    path.write_bytes(whole[:kept] + bytes(len(whole) - kept) * (harm == "zeros"))
    with pytest.raises(UserError, match=r"a\.png: .*Fix: "):
        open_rgb(path)


JPEG_OPTIONS = [
    {},
    {"progressive": True},
    {"subsampling": 0, "quality": 95},
    {"restart_marker_blocks": 3},
    {"progressive": True, "restart_marker_rows": 1, "optimize": True},
]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", JPEG_OPTIONS)
def test_jpeg_that_was_cut_and_closed_is_refused(tmp_path, mode, options):
    """The decoder fills the lower part with grey, and reports no error."""
    rng = np.random.default_rng(0)
    patches = np.kron(rng.integers(0, 256, (6, 9, 3)), np.ones((13, 11, 1)))
    noisy = np.clip(patches + rng.normal(0, 6, patches.shape), 0, 255).astype(np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(noisy).convert(mode).save(path, **options)
    whole = path.read_bytes()
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(open_rgb(path)), image.convert("RGB"))
    for share in (0.4, 0.6, 0.8, 0.97):
        path.write_bytes(whole[: int(len(whole) * share)].rstrip(b"\xff") + b"\xff\xd9")
        with Image.open(path) as image:
            image.load()
        with pytest.raises(UserError, match=r"a\.jpg: the file ends before its image.*Fix"):
            open_rgb(path)


def test_jpeg_with_more_bytes_than_its_image_is_read(tmp_path):
    """Cameras write padding, previews and comments after or before the end marker."""
    path = tmp_path / "a.jpg"
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(values).save(path)
    whole, expected = path.read_bytes(), np.asarray(open_rgb(path))
    for data in (whole + whole[:99], whole + bytes(500), whole[:-2] + b"\0\x12\0\xff\xd9"):
        path.write_bytes(data)
        np.testing.assert_array_equal(np.asarray(open_rgb(path)), expected)


@pytest.mark.parametrize("transparent", [0, 257, 40000])
def test_image_of_sixteen_bit_grey_with_a_transparent_value_is_scaled(tmp_path, transparent):
    values = np.array([[0, 257, 40000, 40001, 65535]], np.uint16)
    rows = b"\0" + values.astype(">u2").tobytes()
    picture = png(rows, size=(5, 1), bits=16, color=0, transparent=struct.pack(">H", transparent))
    (tmp_path / "a.png").write_bytes(picture)
    expected = [255 if value == transparent else round(value / 257) for value in values[0].tolist()]
    found = np.asarray(open_rgb(tmp_path / "a.png"))
    np.testing.assert_array_equal(found, np.repeat(np.array(expected)[None, :, None], 3, -1))


@pytest.mark.parametrize(
    ("bits", "packed", "transparent", "expected"),
    [
        (1, 0b01000000, 1, [0, 255]),
        (2, 0b00_01_10_11, 1, [0, 255, 170, 255]),
        (2, 0b00_01_10_11, 0, [255, 85, 170, 255]),
        (4, 0x56, 5, [255, 102]),
        (4, 0x56, 15, [85, 102]),
        (8, 0x55, 5, [85]),
    ],
)
def test_image_of_few_grey_levels_with_a_transparent_one(
    tmp_path, bits, packed, transparent, expected
):
    size = (len(expected), 1)
    of_png = {"size": size, "bits": bits, "color": 0, "transparent": struct.pack(">H", transparent)}
    (tmp_path / "a.png").write_bytes(png(bytes([0, packed]), **of_png))
    found = np.asarray(open_rgb(tmp_path / "a.png"))
    np.testing.assert_array_equal(found, np.repeat(np.array(expected)[None, :, None], 3, -1))


def test_image_of_sixteen_bit_colour_with_a_transparent_colour_is_refused(tmp_path):
    """The decoder keeps 8 bits, in which the two colours are the same."""
    colours = np.array([25600, 257, 0, 25601, 257, 0], ">u2")
    for bits, content in ((16, colours.tobytes()), (8, bytes([100, 1, 0, 101, 1, 0]))):
        transparent = struct.pack(">HHH", *(colours[:3] if bits == 16 else (100, 1, 0)))
        picture = png(b"\0" + content, size=(2, 1), bits=bits, transparent=transparent)
        (tmp_path / f"{bits}.png").write_bytes(picture)
    found = np.asarray(open_rgb(tmp_path / "8.png"))
    np.testing.assert_array_equal(found, [[[255, 255, 255], [101, 1, 0]]])
    with pytest.raises(
        UserError, match=r"16\.png: one colour of 16 bits is transparent.*Fix: save"
    ):
        open_rgb(tmp_path / "16.png")


def png(rows, interlaced=False, size=(13, 7), bits=8, color=2, transparent=None):
    """A PNG file whose chunks are right, with any number of bytes of rows."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", *size, bits, color, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", header),
            b"" if transparent is None else chunk(b"tRNS", transparent),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


@pytest.mark.parametrize(
    ("bits", "color", "interlaced", "needed"),
    [
        (8, 2, False, 7 * (1 + 39)),
        (16, 0, False, 7 * (1 + 26)),
        (1, 0, False, 7 * (1 + 2)),
        (8, 6, False, 7 * (1 + 52)),
        # Rows x (1 + bytes) of the seven passes of 13 x 7 pixels.
        (8, 0, True, 1 * 3 + 1 * 3 + 1 * 5 + 2 * 4 + 2 * 8 + 4 * 7 + 3 * 14),
    ],
)
def test_png_whose_data_ends_early_is_refused(tmp_path, bits, color, interlaced, needed):
    """The decoder leaves the rows that are missing black, and reports no error."""
    path = tmp_path / "a.png"
    for missing in (0, -9):  # more bytes than needed are ignored
        path.write_bytes(png(bytes(needed - missing), interlaced, bits=bits, color=color))
        assert open_rgb(path).size == (13, 7)
    for missing in (1, needed // 2):
        path.write_bytes(png(bytes(needed - missing), interlaced, bits=bits, color=color))
        with pytest.raises(UserError, match=r"a\.png: (its data ends before|not a complete).*Fix"):
            open_rgb(path)
