"""Files that were cut, flipped or edited give the right result or one sentence."""

import contextlib
import gzip
import io
import struct
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pictures import noise
from PIL import Image
from spoilt import edits, often, seldom

from ispasp_jax import data
from ispasp_jax.data.crc32c import checksum, crc32c
from ispasp_jax.data.splits import MOST_CLASSES, FileSplit
from ispasp_jax.data.tfrecord import TfRecords
from ispasp_jax.errors import InputError

IMAGES, LABELS = noise(4, 5, 5, 3), np.arange(4)


@contextlib.contextmanager
def one_sentence():
    """Allows an InputError that is one line and ends as a sentence does."""
    try:
        yield
    except InputError as error:
        assert "\n" not in str(error) and str(error).endswith("."), str(error)


@contextlib.contextmanager
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def npz(save):
    stream = io.BytesIO()
    save(stream, x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=LABELS)
    return stream.getvalue()


@often
@given(st.one_of(edits(npz(np.savez)), edits(npz(np.savez_compressed))))
def test_npz(content):
    with folder() as root, one_sentence():
        (root / "a.npz").write_bytes(content)
        source = data.open_source(f"npz:{root}/a.npz")
        for split in (source.train, source.test):
            np.testing.assert_array_equal(split.images, IMAGES)
            np.testing.assert_array_equal(split.labels, LABELS)


def idx():
    def head(*axes):
        return bytes((0, 0, 8, len(axes))) + struct.pack(f">{len(axes)}I", *axes)

    grey = np.ascontiguousarray(IMAGES[..., 0])
    return head(4, 5, 5) + grey.tobytes(), head(4) + bytes(range(4))


@often
@given(edits(idx()[0]), st.booleans())
def test_idx(content, zipped):
    """It has no checksums: what is in the right form is read, as many as announced."""
    with folder() as root, one_sentence():
        for part in ("train", "t10k"):
            (root / f"{part}-images-idx3-ubyte").write_bytes(idx()[0])
            (root / f"{part}-labels-idx1-ubyte").write_bytes(idx()[1])
        spoilt = root / "train-images-idx3-ubyte"
        spoilt.unlink()
        if zipped:
            Path(f"{spoilt}.gz").write_bytes(gzip.compress(content, 1))
        else:
            spoilt.write_bytes(content)
        assert data.open_source(f"idx:{root}").train.images.shape == (4, 5, 5, 1)


@often
@given(edits(gzip.compress(idx()[0])))
def test_idx_zipped(content):
    with folder() as root, one_sentence():
        for part in ("train", "t10k"):
            (root / f"{part}-images-idx3-ubyte.gz").write_bytes(content)
            (root / f"{part}-labels-idx1-ubyte").write_bytes(idx()[1])
        images = data.open_source(f"idx:{root}").train.images
        np.testing.assert_array_equal(images, IMAGES[..., :1])


TABLE = b'file,class_index,wnid\r\na.png,0,n1\r\n"b, c.png",1,n2\r\nd/e.png,2,n3\r\n'


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    root = tmp_path_factory.mktemp("listed")
    for part in ("train", "val"):
        (root / part / "d").mkdir(parents=True)
        for name in ("a.png", "b, c.png", "d/e.png"):
            (root / part / name).touch()
        (root / part / "labels.csv").write_bytes(TABLE)
    (root / "a.png").touch()
    return root


@often
@given(edits(TABLE))
@example(TABLE.replace(b'"b', b'"\nb'))
@example(TABLE.replace(b",wnid\r", b',"wn\nid",x\r'))
@example(TABLE.replace(b"a.png", b'"../\na.png"'))
def test_labels_csv(listed, content):
    (listed / "train" / "labels.csv").write_bytes(content)
    with one_sentence():
        split = data.open_source(f"folder:{listed}").train
        assert 0 <= split.labels.min() <= split.labels.max() < MOST_CLASSES
        for file in split.files:
            assert file.startswith(f"{listed}/train/") and Path(file).is_file()


def encoded(format, **options):
    stream = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(stream, format, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "a.png"
    return path, FileSplit([path], np.zeros(1, np.int32))


@often
@given(edits(encoded("PNG")))
def test_png(picture, content):
    """Every part of it is summed."""
    path, split = picture
    path.write_bytes(content)
    with one_sentence():
        image = np.asarray(split.read(0)[0].convert("RGB"))
        np.testing.assert_array_equal(image, IMAGES[0])


FORMATS = ("JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000")


@pytest.mark.filterwarnings("ignore")  # of PIL's own, about what it finds in them
@pytest.mark.parametrize("format", FORMATS)
@seldom
@given(chance=st.data())
def test_other_images(picture, format, chance):
    """They have no checksums: whatever is decoded becomes an image for the network."""
    path, split = picture
    path.write_bytes(chance.draw(edits(encoded(format))))
    wanted = data.Preprocessing(5, 5, (0.5,) * 3, (0.5,) * 3)
    with one_sentence():
        (batch,) = data.batches(split, wanted, 1, workers=1)
        assert batch.image.shape == (1, 5, 5, 3) and np.isfinite(batch.image).all()


def records(*contents):
    parts = (part for c in contents for part in (struct.pack("<Q", len(c)), c))
    return b"".join(part + struct.pack("<I", checksum(part)) for part in parts)


RECORDS = (b"first" * 4, b"", b"third" * 9)


@often
@given(edits(records(*RECORDS)))
def test_tfrecord(content):
    with folder() as root:
        path = root / "a.tfrecord"
        path.write_bytes(content)
        part = SimpleNamespace(filename=str(path), skip=0, take=3, examples_in_shard=3)
        try:
            found = [TfRecords([part], bytes)[i] for i in range(3)]
        except ValueError:
            return
        assert found == list(RECORDS)


def plain_crc32c(data):
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


@pytest.mark.parametrize("size", [0, 1, 3, 4, 255, 256, 257, 511, 512, 513, 1031])
def test_the_checksum_is_everybodys(size):
    record = noise(size).tobytes()
    assert crc32c(record) == plain_crc32c(record)


def test_the_checksum_is_tensorflows():
    assert crc32c(b"123456789") == 0xE3069283
    # The first twelve bytes of an empty record, as TensorFlow writes it.
    assert checksum(bytes(8)) == int.from_bytes(b"\x29\x03\x98\x07", "little")
