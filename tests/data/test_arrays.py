"""Sources in memory (digits, npz, idx), good and broken."""

import gzip
import io
import os
import zipfile

import numpy as np
import pytest
from pictures import IMAGENET, PLAIN, noise, raises

from ispasp_jax import data


def test_digits():
    from sklearn.datasets import load_digits

    source = data.open_source("digits")
    assert (len(source.train), len(source.test)) == (1437, 360)
    assert source.num_classes == 10 and source.preprocessing.shape == (8, 8, 1)
    images = np.concatenate([source.train.images, source.test.images])
    order = np.random.default_rng(0).permutation(1797)
    np.testing.assert_array_equal(
        images[..., 0], np.rint(load_digits().images[order] * 255 / 16)
    )
    labels = np.concatenate([source.train.labels, source.test.labels])
    np.testing.assert_array_equal(labels, load_digits().target[order])
    assert labels.dtype == np.int32
    (large,) = data.batches(
        source.test, source.preprocessing._replace(image_size=16), 360
    )
    assert large.image.shape == (360, 16, 16, 1)


@pytest.mark.parametrize("spec", ["", "digit", "digits:x", "npz", "csv:x", "folder:"])
def test_unknown_sources_are_refused(spec):
    with raises("unknown data source", "digits, npz:FILE"):
        data.open_source(spec)


def npz(path, **changes):
    fields = {
        "x_train": noise(6, 10, 10, 3),
        "y_train": np.arange(6) % 4,
        "x_test": noise(3, 10, 10, 3),
        "y_test": np.array([[4], [0], [1]], np.uint8),
    }
    fields |= changes
    np.savez(path, **{k: v for k, v in fields.items() if v is not None})
    return f"npz:{path}"


def test_npz(tmp_path):
    source = data.open_source(npz(tmp_path / "a.npz"))
    assert source.num_classes == 5 and source.recipe == "shift"
    assert source.preprocessing == IMAGENET._replace(image_size=10, resize=None)
    assert source.test.labels.tolist() == [4, 0, 1]
    image, label = source.train.read(5)
    np.testing.assert_array_equal(image, noise(6, 10, 10, 3)[5])
    assert label == 1 and "item 5 of" in source.train.where(5)
    assert data.describe(f"npz:{tmp_path}/a.npz") == (5, source.preprocessing)


def test_npz_without_channels_is_grey_and_read_late(tmp_path):
    grey = {"x_train": noise(6, 10, 10), "x_test": noise(3, 10, 10)}
    source = data.open_source(npz(tmp_path / "a.npz", **grey))
    assert source.preprocessing.shape == (10, 10, 1)
    assert "images" not in vars(source.train)
    assert source.train.images.shape == (6, 10, 10, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_test": None}, "no array x_test"),
        ({"y_train": None}, "no array y_train"),
        ({"x_train": noise(6, 10, 10, 3) / 255}, "x_train is float64 .*uint8"),
        ({"x_train": noise(6, 3, 10, 10)}, r"x_train is uint8 \(6, 3, 10, 10\)"),
        ({"x_train": noise(6, 10)}, r"x_train is uint8 \(6, 10\)"),
        ({"x_test": noise(3, 9, 10, 3)}, "make them alike"),
        ({"y_test": np.arange(4)}, r"labels of int64 \(4,\); expected integers \(3,\)"),
        ({"y_test": np.ones(3)}, "labels of float64"),
        ({"y_test": np.array([0, -1, 2])}, "labels from -1 to 2"),
        ({"y_test": np.array([0, "a", 2], object)}, "y_test cannot be read"),
        ({"x_test": noise(0, 10, 10, 3), "y_test": np.zeros(0, int)}, "test .*empty"),
    ],
)
def test_npz_that_does_not_fit_is_refused(tmp_path, change, words):
    with raises(words):
        data.open_source(npz(tmp_path / "a.npz", **change))


def head(shape, dtype="|u1", version=b"\x01\x00"):
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode()


def array(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


HEADS = {
    "10^13 labels": ("y_train", head((10**13,), "<i8"), "announces int64"),
    "10^30 labels": ("y_train", head((10**30,), "<i8"), "announces int64"),
    "10^13 images": ("x_train", head((10**13, 10, 10, 3)), "announces uint8"),
    "fewer": ("y_train", array(np.arange(6))[:-8], "announces"),
    "more": ("y_train", array(np.arange(6)) + bytes(8), "announces"),
    "below 0": ("y_train", head((-1,), "<i8") + bytes(48), "announces"),
    "objects": ("y_train", head((6,), "|O") + b"cos\nsystem\n", "Python objects"),
    "records": ("y_train", head((6,), [("a", "<i8")]) + bytes(48), "cannot be read"),
    "no array": ("y_train", b"pickle", "no array of numbers"),
    "empty": ("y_train", b"", "no array of numbers"),
    "version": ("y_train", head((6,), "<i8", b"\x09\x00"), "no array of numbers"),
    "code": ("y_train", head("(__import__('os').abort(),)"), "cannot be read"),
    "nested": ("y_train", head("(" * 3000), "cannot be read"),
    "too many classes": ("y_train", array(np.arange(6) + 10**11), "250000 at most"),
    "NaN": ("y_train", array(np.full(6, np.nan)), "labels of float64"),
}


@pytest.mark.parametrize(("key", "content", "words"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_heads_of_npz_files_are_not_believed(tmp_path, key, content, words, method):
    spec = npz(tmp_path / "a.npz", **{key: None})
    with zipfile.ZipFile(tmp_path / "a.npz", "a", method) as archive:
        archive.writestr(f"{key}.npy", content)
    with raises("a.npz: " + key, words):
        data.open_source(spec)


def test_an_npz_file_that_unpacks_to_more_than_memory_is_refused(tmp_path, monkeypatch):
    spec = npz(tmp_path / "a.npz", x_train=None)
    zeros = np.zeros((6, 1000, 1000, 3), np.uint8)
    with zipfile.ZipFile(tmp_path / "a.npz", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", array(zeros))
    monkeypatch.setattr(os, "sysconf", lambda _: 4000)  # 16 MB
    with raises("x_train cannot be read", "18000000 bytes", "memory"):
        data.open_source(spec)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in ("pipe", "."):
        with raises("cannot be read", "not a file"):
            data.open_source(f"npz:{tmp_path}/{place}")


def test_images_that_are_no_squares_are_noted(tmp_path):
    wide = {"x_train": noise(6, 10, 12), "x_test": noise(3, 10, 12)}
    source = data.open_source(npz(tmp_path / "a.npz", **wide))
    assert source.preprocessing.image_size == 10
    (note,) = source.notes
    assert "10 pixels high and 12 wide" in note and "square in their centre" in note
    assert not data.open_source(npz(tmp_path / "b.npz")).notes


def test_broken_npz_files_are_refused(tmp_path):
    with raises("none.npz", "cannot be read", "No such file"):
        data.open_source(f"npz:{tmp_path}/none.npz")
    spec = npz(tmp_path / "a.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[:500])
    with raises("a.npz", "cannot be read"):
        data.open_source(spec)
    spoilt = bytearray(whole)
    spoilt[700] ^= 255  # inside x_train, past its header
    (tmp_path / "a.npz").write_bytes(spoilt)
    with raises("a.npz: x_train cannot be read", "CRC"):
        next(data.batches(data.open_source(spec).train, PLAIN, 2))


def idx(root, zipped=True, **changes):
    def head(*axes):
        return bytes((0, 0, 8, len(axes))) + b"".join(
            n.to_bytes(4, "big") for n in axes
        )

    files = {}
    for name, n in (("train", 5), ("t10k", 2)):
        files[f"{name}-images-idx3-ubyte"] = (
            head(n, 28, 28) + noise(n, 28, 28).tobytes()
        )
        files[f"{name}-labels-idx1-ubyte"] = head(n) + bytes(range(n))
    for name, content in (files | changes).items():
        if content is None:
            continue
        path = root / (name + ".gz" * zipped)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return f"idx:{root}"


@pytest.mark.parametrize("zipped", [True, False])
def test_idx(tmp_path, zipped):
    source = data.open_source(idx(tmp_path, zipped))
    assert source.num_classes == 5 and source.recipe == "none"
    assert source.preprocessing == data.Preprocessing(28, None, (0.1307,), (0.3081,))
    np.testing.assert_array_equal(source.train.images[..., 0], noise(5, 28, 28))
    assert source.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "neither t10k-labels-idx1-ubyte nor"),
        (b"", "no idx file"),
        (b"\0\0\x08\x03" + bytes(12), "no idx file of 1 axes.*00 00 08 03"),
        (b"\0\0\x08\x01\0\0\0\x02\0", "1 bytes of the 2"),
        (b"\0\0\x08\x01\0\0\0\x02\0\1\2", "more than the 2"),
        (b"\0\0\x08\x01" + b"\xff" * 4 + bytes(2), "2 bytes of the 4294967295"),
        (b"\0\0\x08\x01\0\0\0\x03\0\1\0", r"\(3,\); expected integers \(2,\)"),
    ],
)
def test_broken_idx_files_are_refused(tmp_path, content, words):
    with raises(words):
        data.open_source(idx(tmp_path, **{"t10k-labels-idx1-ubyte": content}))


IDX_HEADS = {
    "most": (b"\xff" * 12, "bytes, and this machine's memory"),
    "no pixels": (b"\0\0\0\5" + bytes(8), "images of .*expected pixels"),
    "other size": (b"\0\0\0\5" + b"\0\0\0\2" * 2 + bytes(20), "expected pixels"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("content", "words"), IDX_HEADS.values(), ids=IDX_HEADS)
def test_heads_of_idx_files_are_not_believed(tmp_path, content, words, zipped):
    content = bytes((0, 0, 8, 3)) + content
    with raises(words):
        data.open_source(idx(tmp_path, zipped, **{"train-images-idx3-ubyte": content}))


def test_a_cut_gzip_file_is_refused(tmp_path):
    spec = idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-400])
    with raises("train-images-idx3-ubyte.gz cannot be read", "fetch it again"):
        data.open_source(spec)


def test_real_arrays_are_read(data_folder):
    source = data.open_source(f"npz:{data_folder}/cifar10/cifar10_lossless.npz")
    assert (source.num_classes, source.recipe) == (10, "shift")
    mnist = data.open_source(f"idx:{data_folder}/mnist")
    assert (len(mnist.train), len(mnist.test), mnist.num_classes) == (60000, 10000, 10)
    total = sum(b.image.mean() for b in data.batches(mnist.train, mnist[4], 1000)) / 60
    assert abs(total) < 1e-3  # the mean is MNIST's own
