"""Data sources by name: digits, npz:FILE, idx:DIR, folder:DIR, tfds:NAME[:SPLITS]."""

import contextlib
import gzip
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from ispasp_jax.data import folder, tfds
from ispasp_jax.data.preprocessing import Preprocessing
from ispasp_jax.data.splits import ArraySplit, Source, defaults
from ispasp_jax.errors import InputError


def open_source(spec: str) -> Source:
    """The data set of that name.

    Args:
      spec: `digits`: scikit-learn's 8x8 digits, 1437 to train and 360 to test.
        `npz:FILE`: x_train, y_train, x_test, y_test; uint8 images (n, h, w, c) or
        (n, h, w). `idx:DIR`: MNIST's four files, gzipped or not. `folder:DIR`:
        DIR/train and DIR/val (or DIR/test), each with a folder a class or a labels.csv.
        `tfds:NAME[:TRAIN,TEST]`: a prepared TensorFlow data set.

    Raises:
      InputError: no such kind, or the data is missing, empty or broken.
    """
    kind, _, place = spec.partition(":")
    if kind not in _KINDS or (kind == "digits") == bool(place):
        raise InputError(
            f"unknown data source {spec!r}; expected digits, npz:FILE, idx:DIR, "
            "folder:DIR or tfds:NAME."
        )
    source = _KINDS[kind](place)._replace(name=spec)
    for name, split in (("training", source.train), ("test", source.test)):
        if not len(split):
            raise InputError(f"the {name} split of {spec} is empty; add images to it.")
    return source


def describe(spec: str) -> tuple[int, Preprocessing]:
    """Number of classes and default preprocessing, with no image read or decoded.

    A TensorFlow data set need not be prepared.

    Raises:
      InputError: as `open_source`.
    """
    if spec.startswith("tfds:"):
        return tfds.describe(spec.removeprefix("tfds:"))
    source = open_source(spec)
    return source.num_classes, source.preprocessing


def digits(_: str = "") -> Source:
    """scikit-learn's digits: grey, 8x8, values 0..16 spread over 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = (
        ArraySplit(lambda rows=rows: images[rows], labels[rows], f"digits ({name})")
        for name, rows in (("train", order[:1437]), ("test", order[1437:]))
    )
    preprocessing = Preprocessing(8, None, (0.5,), (0.5,))
    return Source("digits", 10, train, test, preprocessing, "none")


def npz(file: str) -> Source:
    """Arrays x_train, y_train, x_test, y_test; images are read at their first use."""
    splits, shapes = [], []
    for name in ("train", "test"):
        shape = _npz_shape(file, f"x_{name}")
        labels = _class_labels(
            _npz_array(file, f"y_{name}"), shape[0], f"{file}: y_{name}"
        )

        def load(key=f"x_{name}", shape=shape) -> UInt8[np.ndarray, "n h w c"]:
            return _npz_array(file, key).reshape(shape)

        splits.append(ArraySplit(load, labels, f"{file} (x_{name})"))
        shapes.append(shape[1:])
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{file}: x_train has images of {shapes[0]} and x_test of {shapes[1]}; "
            "make them alike."
        )
    return Source("npz", _num_classes(*splits), *splits, *defaults(*shapes[0]))


def idx(place: str) -> Source:
    """MNIST's four files, as published or unpacked."""
    splits = []
    for name in ("train", "t10k"):
        images = _idx_array(place, f"{name}-images-idx3-ubyte")[..., None]
        labels = _idx_array(place, f"{name}-labels-idx1-ubyte")
        origin = f"{place} ({name})"
        labels = _class_labels(labels, len(images), origin)
        splits.append(ArraySplit(lambda images=images: images, labels, origin))
    train, test = splits
    shape = train.images.shape[1:]
    return Source("idx", _num_classes(train, test), train, test, *defaults(*shape))


#: Every kind of source by what stands before the colon.
_KINDS = {
    "digits": digits,
    "npz": npz,
    "idx": idx,
    "folder": folder.open_folder,
    "tfds": tfds.open_tfds,
}


def _num_classes(*splits: ArraySplit) -> int:
    return 1 + max((int(s.labels.max()) for s in splits if len(s)), default=0)


def _class_labels(labels: np.ndarray, count: int, what: str) -> Int32[np.ndarray, " n"]:
    if labels.shape == (count, 1):  # as in Keras's CIFAR-10
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise InputError(
            f"{what} holds labels of {labels.dtype} {labels.shape}; expected integers "
            f"({count},), one for each image."
        )
    if count and not 0 <= labels.min() <= labels.max() < 2**31 - 1:
        raise InputError(
            f"{what} holds labels from {labels.min()} to {labels.max()}; expected "
            "classes counted from 0."
        )
    return labels.astype(np.int32)


def _npz_shape(file: str, key: str) -> tuple[int, int, int, int]:
    """(n, h, w, c) of an array of images, from its header alone."""
    with _archive(file, key) as array:
        old = np.lib.format.read_magic(array) == (1, 0)
        header = "read_array_header_1_0" if old else "read_array_header_2_0"
        shape, _, dtype = getattr(np.lib.format, header)(array)
    full = (*shape, 1) if len(shape) == 3 else shape
    if dtype != np.uint8 or len(full) != 4 or full[3] not in (1, 3) or 0 in full[1:]:
        raise InputError(
            f"{file}: {key} is {dtype} {shape}; expected uint8 images (n, h, w), "
            "(n, h, w, 1) or (n, h, w, 3)."
        )
    return full


def _npz_array(file: str, key: str) -> np.ndarray:
    with _archive(file, key) as array:
        return np.lib.format.read_array(array, allow_pickle=False)


@contextlib.contextmanager
def _archive(file: str, key: str):
    """One array of an .npz file as a stream; what is wrong with it is an InputError."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{key}.npy") as array:
            yield array
    except KeyError as error:
        raise InputError(
            f"{file} has no array {key}; expected x_train, y_train, x_test and y_test."
        ) from error
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(
            f"{file}: {key} cannot be read ({error}); expected an .npz file with "
            "x_train, y_train, x_test and y_test."
        ) from error


def _idx_array(place: str, name: str) -> UInt8[np.ndarray, "n *hw"]:
    """An idx file of bytes, `name` or `name`.gz."""
    found = [f for f in (Path(place, name), Path(place, f"{name}.gz")) if f.is_file()]
    if not found:
        raise InputError(
            f"{place} has neither {name} nor {name}.gz; expected MNIST's four files "
            "there."
        )
    try:
        opened = gzip.open if found[0].suffix == ".gz" else open
        with opened(found[0], "rb") as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{found[0]} cannot be read ({error}); fetch it again."
        ) from error
    # Magic number 0, 0, 8 (bytes), axes; then the length of every axis, big-endian.
    axes = int(name.split("-")[2][3])
    head = 4 + 4 * axes
    if data[:4] != bytes((0, 0, 8, axes)) or len(data) < head:
        raise InputError(
            f"{found[0]} is no idx file of {axes} axes (it starts with "
            f"{data[:4].hex(' ')}); fetch it again."
        )
    shape = np.frombuffer(data[4:head], ">u4").astype(int)
    if len(data) - head != shape.prod():
        raise InputError(
            f"{found[0]} holds {len(data) - head} bytes of the {shape.prod()} that its "
            "head announces; fetch it again."
        )
    return np.frombuffer(data[head:], np.uint8).reshape(shape)
