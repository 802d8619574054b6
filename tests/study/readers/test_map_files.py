"""Map files are read by what mode, channels and values mean, or refused in one sentence."""

import io
import struct
import time
import zlib

import numpy as np
import OpenEXR
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldmprobe_core.errors import UserError
from ldmprobe_core.study.readers.image_files import open_rgb
from ldmprobe_core.study.readers.map_files import load_map

RAMP = np.array([[0, 1, 2], [3, 4, 200]])
MASK = np.array([[0, 1, 1], [0, 0, 1]])


def _image(values, mode=None, palette=None, alpha=None):
    image = Image.fromarray(np.asarray(values), mode=mode) if mode == "P" else Image.fromarray(
        np.asarray(values)
    )  # fmt: skip
    if palette:
        image.putpalette(palette)
    if alpha is not None:
        image.putalpha(Image.fromarray(np.full(np.asarray(values).shape[:2], alpha, np.uint8)))
    return image


def _ramp(dtype):
    return RAMP.astype(dtype)


def _grey_rgb(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, -1)


def _png(width, height, bits, color_type, raw, *further):
    """PNG file of raw rows, each after its filter byte, with further chunks (kind, data)."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    parts = (b"IHDR", head), *further, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def _png_of_16_bit_rgb(path):
    """Three equal 16-bit channels, of which Pillow reads 8 bits."""
    rows = np.repeat((RAMP * 300).astype(">u2")[..., None], 3, -1)
    path.write_bytes(_png(3, 2, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows)))


def _png_of_4_bits(path):
    """Grey values 2 and 5, of which 5 is transparent; decoded to 8 bits they are 34 and 85."""
    path.write_bytes(_png(2, 1, 4, 0, b"\0\x25", (b"tRNS", struct.pack(">H", 5))))


def _write(path, values):
    if callable(values):
        values(path)
    elif isinstance(values, Image.Image):
        values.save(path)
    elif path.suffix == ".npy":
        np.save(path, values)
    else:
        channels = values if isinstance(values, dict) else {"Y": values}
        OpenEXR.File({}, channels).write(str(path))


COLOURED = np.stack([RAMP, RAMP, RAMP + 1], -1)

GREYS = [level for level in range(256) for _ in "rgb"]

READ = [
    # file, property, what is saved, values expected
    ("a.png", "depth", _image(_ramp(np.uint8)), RAMP),
    ("a.png", "depth", _image((RAMP * 300).astype(np.uint16)), RAMP * 300),
    ("a.tif", "depth", _image((RAMP * 300).astype("<u2")), RAMP * 300),
    ("a.tif", "depth", _image((RAMP * 300).astype(">u2")), RAMP * 300),
    ("a.tiff", "depth", _image((RAMP - 7).astype(np.int32)), RAMP - 7),
    ("a.tif", "shading", _image((RAMP / 7).astype(np.float32)), (RAMP / 7).astype(np.float32)),
    ("a.png", "depth", _image(_grey_rgb(RAMP)), RAMP),
    ("a.png", "depth", _image(_ramp(np.uint8), alpha=255), RAMP),
    ("a.png", "depth", _image(_grey_rgb(RAMP), alpha=255), RAMP),
    ("a.png", "depth", _image(_ramp(np.uint8), "P", GREYS), RAMP),
    ("a.npy", "depth", _ramp(np.int64), RAMP),
    ("a.npy", "depth", _ramp(">f4"), RAMP),
    ("a.npy", "depth", np.asfortranarray(_ramp(np.float16)), RAMP),
    ("a.npy", "depth", _ramp(np.float64)[..., None], RAMP),
    ("a.npy", "shading", COLOURED.astype(np.float32), COLOURED.mean(-1)),
    ("a.exr", "depth", {"Z": _ramp(np.float32)}, RAMP),
    ("a.exr", "depth", {"Z": _ramp(np.uint32)}, RAMP),
    ("a.exr", "shading", {"RGB": COLOURED.astype(np.float32)}, COLOURED.mean(-1)),
    ("a.npy", "foreground", MASK.astype(bool), MASK),
    ("a.npy", "foreground", MASK * 7, MASK),
    ("a.npy", "foreground", MASK * 0.0, MASK * 0),
    ("a.npy", "foreground", MASK * 0 + 1, MASK * 0 + 1),
    ("a.png", "foreground", _image(MASK.astype(bool)), MASK),
    ("a.png", "foreground", _image((MASK * 255).astype(np.uint8)), MASK),
    ("a.png", "foreground", _image((MASK * 65535).astype(np.uint16)), MASK),
    ("a.png", "foreground", _image(MASK.astype(np.uint8), "P", [0, 0, 0, 255, 255, 255]), MASK),
    ("a.exr", "foreground", MASK.astype(np.float32), MASK),
]  # fmt: skip


@pytest.mark.parametrize(("name", "prop", "saved", "expected"), READ)
def test_load_map_reads_values_of_every_mode(tmp_path, name, prop, saved, expected):
    _write(tmp_path / name, saved)
    np.testing.assert_allclose(load_map(tmp_path / name, prop).values, expected, rtol=1e-6)


def _soft():
    return np.linspace(0, 1, 24).reshape(4, 6)


THREE = np.array([[0, 15, 255]], np.uint8)
TRANSPARENT = _image(np.dstack([_grey_rgb(RAMP), np.array([[0, 255, 255]] * 2)]).astype(np.uint8))
FRAMES = [_image(_ramp(np.uint8)), _image(_ramp(np.uint8) + 1)]


def _frames(path):
    FRAMES[0].save(path, save_all=True, append_images=FRAMES[1:])


REFUSED = [
    # file, property, what is saved, words of the message
    ("a.png", "foreground", _image(THREE), "this one has 0, 15, 255.*images.missing.foreground"),
    ("a.npy", "foreground", np.array([[0, 1, 2]]), "this one has 0, 1, 2"),
    ("a.npy", "foreground", np.array([[1, 2, 1]]), "this one has 1, 2"),
    ("a.npy", "foreground", np.array([[-1, 0, 0]]), "this one has -1, 0"),
    ("a.npy", "foreground", np.array([[7, 7]]), "this one has 7"),
    ("a.npy", "foreground", _soft(), r"0, 0\.0434783, .* \(24 in all, to 1\).*soft mask"),
    ("a.png", "foreground", _image(COLOURED.astype(np.uint8)), "colour channels differ"),
    ("a.png", "foreground", _image(MASK.astype(np.uint8), "P", [0, 0, 0, 128, 0, 0]), "channels"),
    ("a.png", "foreground", TRANSPARENT, "transparency varies"),
    ("a.png", "depth", _image(_ramp(np.uint8), alpha=0), "transparency varies"),
    ("a.png", "depth", _image(COLOURED.astype(np.uint8)), "colour channels differ"),
    ("a.png", "shading", _image(COLOURED.astype(np.uint8)), "colour channels differ"),
    ("a.npy", "depth", COLOURED.astype(np.float32), "colour channels differ"),
    ("a.png", "depth", _png_of_16_bit_rgb, "16 bits per channel.* in mode RGB"),
    ("a.png", "depth", lambda p: _image(_ramp(np.uint8)).save(p, transparency=2), "value 2 is tra"),
    ("a.png", "depth", _png_of_4_bits, "value 85 is transparent"),
    ("a.tif", "depth", _frames, "2 fr"),
    ("a.png", "depth", _frames, "2 fr"),
    ("a.tif", "depth", Image.new("CMYK", (3, 2)), "mode CMYK is that of a colour image"),
    ("a.png", "depth", lambda p: Image.new("L", (3, 2), 7).save(p, "JPEG"), "not a map .JPEG, "),
    ("a.png", "depth", _image(MASK.astype(bool)), "boolean values are a mask"),
    ("a.npy", "depth", MASK.astype(bool), "boolean values are a mask"),
    ("a.npy", "depth", np.array([[1, np.inf]]), "infinite, or too large for float32.*NaN"),
    ("a.npy", "depth", np.array([[1, 1e300]]), "too large for float32"),
    ("a.exr", "depth", {"Z": np.array([[1, np.inf]], np.float32)}, "some values are infinite"),
    ("a.npy", "depth", np.full((2, 2), np.nan), "no pixel is measured"),
    ("a.npy", "shading", -_ramp(np.float32), r"shading is below 0 \(down to -200\)"),
    ("a.npy", "depth", _ramp(np.complex64), "complex64 are not numbers"),
    ("a.npy", "depth", RAMP.astype(str), "are not numbers"),
    ("a.npy", "depth", lambda p: np.save(p, np.array([{}]), allow_pickle=True), "not a map"),
    ("a.npy", "depth", lambda p: np.savez(p.open("wb"), a=RAMP), "archive of arrays"),
    ("a.npy", "depth", np.ones(4), r"height and width, not shape \(4,\)"),
    ("a.npy", "depth", np.ones((3, 4, 5)), r"not shape \(3, 4, 5\)"),
    ("a.npy", "depth", np.ones((0, 4)), "not a map|height and width"),
    ("a.exr", "depth", {"Z": _ramp(np.float32), "N": _ramp(np.float32)}, "channels N, Z"),
    ("a.exr", "depth", {"RGB": COLOURED.astype(np.float32)}, "colour channels differ"),
    ("a.png", "depth", lambda p: p.write_bytes(b""), "not a map .0 bytes"),
    ("a.npy", "depth", lambda p: p.write_bytes(b"version https://git-lfs.github.com"), "Git LFS"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "prop", "saved", "words"), REFUSED)
def test_load_map_refuses_values_without_a_meaning(tmp_path, name, prop, saved, words):
    _write(tmp_path / name, saved)
    with pytest.raises(UserError, match=rf"a\.\w+: .*{words}") as caught:
        load_map(tmp_path / name, prop)
    assert "Fix: " in str(caught.value)


def test_load_map_marks_pixels_not_measured(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[0, 2.5, np.nan], [np.nan, 7, 0]]))
    expected = np.array([[np.nan, 2.5, np.nan], [np.nan, 7, np.nan]])
    np.testing.assert_array_equal(load_map(tmp_path / "a.npy", "depth", 0).values, expected)
    _image(np.array([[0, 15, 255]], np.uint8)).save(tmp_path / "a.png")
    loaded = load_map(tmp_path / "a.png", "foreground", 255)
    np.testing.assert_array_equal(loaded.values, [[0, 1, np.nan]])
    assert loaded.level == 15
    _image(np.array([[0, 255, 255]], np.uint8)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.zeros((2, 2)))
    with pytest.raises(UserError, match="no pixel is measured"):
        load_map(tmp_path / "b.npy", "depth", 0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("mark", [0.1, -9999.0, 1e-3])
def test_load_map_finds_the_mark_of_pixels_not_measured_in_floats_of_every_width(
    tmp_path, dtype, mark
):
    """The file holds the mark as its type of numbers can."""
    np.save(tmp_path / "a.npy", np.array([[mark, 2.5], [3.5, mark]]).astype(dtype))
    loaded = load_map(tmp_path / "a.npy", "depth", mark)
    np.testing.assert_array_equal(loaded.values, [[np.nan, 2.5], [3.5, np.nan]])


@pytest.mark.parametrize(("dtype", "stated", "mark"), [
    (np.float32, "-9999", -9999), (np.uint16, "65535", 65535), (np.uint8, "0", 0),
    (np.float32, "0.1", 0.1), (np.float32, "nan", np.nan), (np.int32, "-1 ", -1),
])  # fmt: skip
def test_load_map_takes_the_mark_that_a_tiff_states(tmp_path, dtype, stated, mark):
    values = np.array([[mark, 2], [3, mark]]).astype(dtype)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={42113: stated})
    expected = [[np.nan, 2], [3, np.nan]]
    np.testing.assert_array_equal(load_map(tmp_path / "a.tif", "depth").values, expected)
    assert np.isnan(load_map(tmp_path / "a.tif", "depth", 2).values[0]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
def test_load_map_refuses_a_tiff_in_which_zero_is_white(tmp_path, dtype):
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 1], [1, 0]]).astype(dtype)).save(path)
    data = bytearray(path.read_bytes())
    start = struct.unpack("<I", data[4:8])[0]
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        if struct.unpack_from("<H", data, entry)[0] == 262:  # PhotometricInterpretation
            struct.pack_into("<H", data, entry + 8, 0)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"0 is white.*Fix: "):
        load_map(path, "foreground")


def test_load_map_refuses_a_mark_in_a_tiff_that_is_no_number(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tif", tiffinfo={42113: "none"})
    with pytest.raises(UserError, match=r"GDAL_NODATA .* is 'none'.*Fix: "):
        load_map(tmp_path / "a.tif", "depth")


def test_load_map_of_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    """Headers that claim 81 million and 10 billion pixels, within a second each."""
    (tmp_path / "a.png").write_bytes(_png(100_000, 100_000, 8, 0, b""))
    (tmp_path / "b.png").write_bytes(_png(9_000, 9_000, 8, 0, b""))
    with (tmp_path / "a.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (100_000, 100_000)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * 100_000**2)  # a hole: no bytes on disk
    for name in ("a.png", "b.png", "a.npy"):
        start = time.process_time()
        with pytest.raises(UserError, match="more than 80 million"):
            load_map(tmp_path / name, "depth")
        assert time.process_time() - start < 1


def _bytes_of(kind):
    stream = io.BytesIO()
    if kind == "npy":
        np.save(stream, _ramp(np.float32))
    else:
        image = _image(_ramp(np.uint8 if kind == "png" else np.uint16))
        image.save(stream, "PNG" if kind == "png" else "TIFF")
    return stream.getvalue()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.sampled_from(["npy", "png", "tif", "exr"]),
    st.sampled_from(["depth", "foreground", "shading"]),
    st.one_of(
        st.binary(max_size=200),
        st.tuples(
            st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
            st.integers(0, 400),
        ),
    ),
    st.sampled_from([None, 0.0, 200.0]),
)
def test_map_of_any_bytes_is_a_map_or_one_sentence(tmp_path_factory, kind, prop, data, missing):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    if isinstance(data, tuple):
        if kind == "exr":
            OpenEXR.File({}, {"Y": _ramp(np.float32)}).write(str(path))
            whole = bytearray(path.read_bytes())
        else:
            whole = bytearray(_bytes_of(kind))
        for position, value in data[0]:
            whole[position % len(whole)] = value
        data = bytes(whole[: data[1] or len(whole)])
    path.write_bytes(data)
    try:
        values = load_map(path, prop, missing).values
    except UserError as error:
        assert "Fix" in str(error)  # noqa: PT017  (either outcome is right)
        return
    assert values.ndim == 2
    assert not np.isinf(values).any()
    if prop == "foreground":
        assert set(np.unique(values[~np.isnan(values)])) <= {0, 1}


@pytest.mark.parametrize("rows", [3, 12_779_522])
def test_load_map_refuses_a_tiff_that_declares_more_rows_than_it_has(tmp_path, rows):
    """Pillow reads 0 in the rows without data."""
    image = _image(_ramp(np.uint16))
    image.save(tmp_path / "a.tif")
    whole = (tmp_path / "a.tif").read_bytes()
    declared = np.uint32(image.height).tobytes()
    position = whole.index(np.uint16(257).tobytes()) + 8  # ImageLength: tag, type, count, value
    assert whole[position : position + 2] == declared[:2]
    path = tmp_path / "b.tif"
    # A long value in place of a short one.
    entry = np.uint16([257, 4]).tobytes() + np.uint32([1, rows]).tobytes()
    path.write_bytes(whole[: position - 8] + entry + whole[position + 4 :])
    with pytest.raises(UserError, match=r"b\.tif: it has data for \d+ of \d+ pixels\. Fix: "):
        load_map(path, "depth")
    with pytest.raises(UserError, match="it has data for"):
        open_rgb(path)


@pytest.mark.parametrize("compression", ["ZIPS", "ZIP", "PXR24"])
@pytest.mark.parametrize("harm", ["byte", "zeros", "tail", "cut"])
def test_load_map_refuses_an_exr_with_a_damaged_chunk(tmp_path, compression, harm):
    path = tmp_path / "a.depth.exr"
    values = (np.arange(64 * 64).reshape(64, 64) // 9).astype(np.float32)
    header = {"compression": getattr(OpenEXR, f"{compression}_COMPRESSION")}
    OpenEXR.File(header, {"Z": values}).write(str(path))
    np.testing.assert_array_equal(load_map(path, "depth").values, values)
    whole = path.read_bytes()
    middle = 6 * len(whole) // 10
    damaged = {
        "byte": whole[:middle] + bytes([whole[middle] ^ 0x55]) + whole[middle + 1 :],
        "zeros": whole[:middle] + bytes(40) + whole[middle + 40 :],
        "tail": whole[:middle] + bytes(len(whole) - middle),
        "cut": whole[:middle],
    }
    path.write_bytes(damaged[harm])
    with pytest.raises(UserError, match=r"a\.depth\.exr: .*Fix: "):
        load_map(path, "depth")


def test_load_map_refuses_an_exr_of_an_interrupted_copy(tmp_path):
    """Values that do not get smaller by compression are stored without a checksum."""
    path = tmp_path / "a.depth.exr"
    values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    header = {"compression": OpenEXR.PIZ_COMPRESSION}
    OpenEXR.File(header, {"Z": values}).write(str(path))
    whole = path.read_bytes()
    path.write_bytes(whole[:-200] + bytes(200))
    with pytest.raises(UserError, match="the end of the file is all zeros"):
        load_map(path, "depth")


def test_load_map_reads_an_uncompressed_exr_that_ends_in_zeros(tmp_path):
    path = tmp_path / "a.foreground.exr"
    mask = np.zeros((64, 64), np.float32)
    mask[:20, :20] = 1
    OpenEXR.File({"compression": OpenEXR.NO_COMPRESSION}, {"Y": mask}).write(str(path))
    np.testing.assert_array_equal(load_map(path, "foreground").values, mask)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_load_map_reads_a_tiff_wherever_its_directory_lies(tmp_path, compression, dtype):
    """Among these are files in which it begins at byte 116, 160 and so on."""
    path = tmp_path / "a.depth.tif"
    for width in range(4, 44):
        values = np.random.default_rng(width).integers(1, 99, (3, width)).astype(dtype)
        Image.fromarray(values).save(path, compression=compression)
        np.testing.assert_array_equal(load_map(path, "depth").values, values)


def test_load_map_refuses_a_tiff_of_three_channels_of_16_bits(tmp_path):
    path = tmp_path / "a.depth.tif"
    tags = {256: 3, 257: 2, 258: 130, 259: 1, 262: 2, 273: 136, 277: 3, 278: 2, 279: 36}
    entries = [struct.pack("<HHII", tag, 3, 3 if tag == 258 else 1, n) for tag, n in tags.items()]
    start = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries)
    path.write_bytes(start.ljust(130, b"\0") + struct.pack("<3H", 16, 16, 16) + bytes(range(36)))
    with pytest.raises(UserError, match=r"it has 16 bits per channel.* mode RGB\. Fix"):
        load_map(path, "depth")
