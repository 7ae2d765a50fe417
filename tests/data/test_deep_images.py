"""Image files whose values are not 0 to 255: brought there, or refused by name; none
becomes black, or inverted, without a word.
"""

import struct
import zlib

import numpy as np
import pytest
from pictures import PLAIN, raises
from PIL import Image

from ispasp_jax import data
from ispasp_jax.data.splits import FileSplit

#: A ramp from black to white, as 8 bits show it.
RAMP = np.tile(np.linspace(0, 255, 8), (8, 1)).astype(np.uint8)
WIDE = RAMP.astype(np.uint16) * 257


def png(values, kind):
    """A PNG of 16 bits in grey (0), colours (2), or either with alpha (4, 6)."""

    def chunk(name, content):
        code = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + code.to_bytes(4)

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    rows = np.repeat(values[..., None], channels, 2).astype(">u2")
    head = struct.pack(">2I5B", 8, 8, 16, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = (b"IHDR", head), (b"IDAT", body), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(values, sample_format, white=1):
    """A grey TIFF: unsigned (1), signed (2) or floats (3); 0 is black, or white."""
    raw = values.tobytes()
    tags = {256: 8, 257: 8, 258: 8 * values.itemsize, 259: 1, 262: white, 273: 8}
    tags |= {277: 1, 278: 8, 279: len(raw), 339: sample_format}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    start = struct.pack("<2sHI", b"II", 42, 8 + len(raw))
    return start + raw + struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)


def ppm(values, channels, most):
    pixels = np.repeat(values[..., None], channels, 2)
    head = b"P%d 8 8 %d\n" % (5 if channels == 1 else 6, most)
    return head + pixels.astype(">u2" if most > 255 else "u1").tobytes()


def seen(tmp_path, content):
    path = tmp_path / "ramp.tif"
    path.write_bytes(content)
    split = FileSplit([path], np.zeros(1, np.int32))
    (batch,) = data.batches(split, PLAIN, 1, workers=1)
    return batch.image[0] * 255


def name(part):
    """What to call a case: a file's bytes are no name."""
    return part if isinstance(part, str) else "file"


@pytest.mark.parametrize(
    "content",
    [
        *(png(WIDE, kind) for kind in (0, 2, 4, 6)),
        tiff(RAMP, 1),
        tiff(255 - RAMP, 1, white=0),
        tiff(WIDE, 1),
        tiff(RAMP.astype(np.int32), 2),
        tiff(WIDE.astype(np.int32), 2),
        tiff(RAMP.astype(np.float32), 3),
        tiff(RAMP.astype(np.float32) / 255, 3),
        ppm(RAMP, 1, 255),
        *(ppm(WIDE, channels, 65535) for channels in (1, 3)),
        *(ppm(WIDE >> 4, channels, 4095) for channels in (1, 3)),
    ],
    ids=name,
)
def test_values_are_brought_to_eight_bits(tmp_path, content):
    for c in range(3):
        np.testing.assert_allclose(seen(tmp_path, content)[..., c], RAMP, atol=1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *((png(WIDE >> 4, kind), "nearly black") for kind in (0, 2, 4, 6)),
        *((png(WIDE >> 8, kind), "nearly black") for kind in (0, 2, 4, 6)),
        *((ppm(WIDE >> 4, channels, 65535), "nearly black") for channels in (1, 3)),
        (tiff(WIDE >> 4, 1), "nearly black"),
        (tiff(WIDE, 1, white=0), "counts from white, 0, to black"),
        (tiff(RAMP.astype(np.float32), 3, white=0), "counts from white, 0, to black"),
        (tiff(RAMP.view(np.int8), 2), "signed numbers"),
        (tiff((WIDE >> 1).astype(np.int16), 2), "signed numbers"),
        (tiff(WIDE.astype(np.int32) - 9000, 2), "int32 from -9000 to"),
        (tiff(WIDE.astype(np.uint32) << 14, 1), "expected"),
        (tiff(RAMP / np.float32(128) - 1, 3), "float32 from -1.0 to"),
        (tiff(WIDE.astype(np.float32), 3), "float32 from 0.0 to 65535"),
        (tiff(np.where(RAMP > 9, np.nan, RAMP).astype(np.float32), 3), "nan"),
        (tiff(np.where(RAMP > 9, np.inf, RAMP).astype(np.float32), 3), "inf"),
        (tiff(RAMP / 255, 3), "is not an image that can be read"),
    ],
    ids=name,
)
def test_values_of_no_known_range_are_refused(tmp_path, content, words):
    with raises("ramp.tif", words):
        seen(tmp_path, content)


def test_black_stays_black(tmp_path):
    assert not seen(tmp_path, png(0 * WIDE, 0)).any()


def test_only_images_are_opened_whatever_the_name(tmp_path):
    """PIL would start Ghostscript for a file that says that it is PostScript."""
    with raises("ramp.tif is not an image that can be read"):
        seen(tmp_path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")


def test_a_rotated_photograph_is_read_as_it_lies(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.fromarray(RAMP).save(path, exif=exif)
    np.testing.assert_allclose(seen(tmp_path, path.read_bytes())[..., 0], RAMP)
