"""Data sources by name: digits, npz:FILE, idx:DIR, folder:DIR, tfds:NAME[:SPLITS],
jsonl:FILE.
"""

import os
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from ispasp_jax.data import folder, jsonl, tfds
from ispasp_jax.data.arrays import idx_array, npz_array, npz_head
from ispasp_jax.data.preprocessing import Inputs, Preprocessing
from ispasp_jax.data.splits import (
    MOST_CLASSES,
    ArraySplit,
    Source,
    class_count,
    defaults,
    reason,
)
from ispasp_jax.errors import InputError


def open_source(spec: str) -> Source:
    """The data set of that name.

    Args:
      spec: `digits`: scikit-learn's 8x8 digits, 1437 to train and 360 to test.
        `npz:FILE`: x_train, y_train, x_test, y_test; uint8 images (n, h, w, c) or
        (n, h, w). `idx:DIR`: MNIST's four files, gzipped or not. `folder:DIR`:
        DIR/train and DIR/val (or DIR/test), each with a folder a class or a labels.csv.
        `tfds:NAME[:TRAIN,TEST]`: a prepared TensorFlow data set. `jsonl:FILE`: texts,
        see jsonl.py.

    Returns:
      The source: splits, number of classes, default preprocessing.

    Raises:
      InputError: no such kind, or the data is missing, empty or broken.
    """
    kind, place = _parts(spec)
    if kind not in _KINDS or (kind == "digits") == bool(place):
        raise InputError(
            f"unknown data source {spec!r}; expected digits, npz:FILE, idx:DIR, "
            "folder:DIR, tfds:NAME or jsonl:FILE."
        )
    try:
        source = _KINDS[kind](place)._replace(name=spec)
    except OSError as error:  # no permission, or a name that is none
        raise InputError(
            f"{spec:.200} cannot be read ({reason(error)}); mend that first."
        ) from error
    for name, split in (("training", source.train), ("test", source.test)):
        if not len(split):
            raise InputError(f"the {name} split of {spec} is empty; add images to it.")
    return source


def describe(spec: str) -> tuple[int, Inputs]:
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

    bunch: Any = load_digits()
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
        shape = _image_shape(file, f"x_{name}")
        key, what = f"y_{name}", f"{file}: y_{name}"
        _check_labels(*npz_head(file, key), shape[0], what)
        labels = _class_labels(npz_array(file, key), shape[0], what)

        def load(key=f"x_{name}", shape=shape) -> UInt8[np.ndarray, "n h w c"]:
            return npz_array(file, key).reshape(shape)

        splits.append(ArraySplit(load, labels, f"{file} (x_{name})"))
        shapes.append(shape[1:])
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{file}: x_train has images of {shapes[0]} and x_test of {shapes[1]}; "
            "make them alike."
        )
    train, test = splits
    count = class_count(train.labels, test.labels)
    return Source("npz", count, train, test, *defaults(*shapes[0]))


def idx(place: str) -> Source:
    """MNIST's four files, as published or unpacked."""
    splits = []
    for name in ("train", "t10k"):
        images = idx_array(place, f"{name}-images-idx3-ubyte")[..., None]
        labels = idx_array(place, f"{name}-labels-idx1-ubyte")
        origin = f"{place} ({name})"
        labels = _class_labels(labels, len(images), origin)
        splits.append(ArraySplit(lambda images=images: images, labels, origin))
    train, test = splits
    shape, other = (split.images.shape[1:] for split in splits)
    if shape != other or 0 in shape:
        raise InputError(
            f"{place} has images of {shape} to train and of {other} to test; expected "
            "pixels, and the same number of them."
        )
    return Source(
        "idx", class_count(train.labels, test.labels), train, test, *defaults(*shape)
    )


def located(spec: str) -> str:
    """The name of the same data from any working folder."""
    kind, place = _parts(spec)
    return f"{kind}:{os.path.realpath(place)}" if kind in _ON_DISK else spec


def _parts(spec: str) -> tuple[str, str]:
    """What stands before the colon and behind it, where ~ is the home as in shells."""
    kind, _, place = spec.partition(":")
    return kind, os.path.expanduser(place) if kind in _ON_DISK else place


#: The kinds whose place is a path.
_ON_DISK = ("folder", "idx", "npz", "jsonl")

#: Every kind of source by what stands before the colon.
_KINDS = {
    "digits": digits,
    "npz": npz,
    "idx": idx,
    "folder": folder.open_folder,
    "tfds": tfds.open_tfds,
    "jsonl": jsonl.open_jsonl,
}


def _check_labels(
    shape: tuple[int, ...], dtype: np.dtype, count: int, what: str
) -> None:
    if dtype.kind not in "iu" or shape not in ((count,), (count, 1)):
        raise InputError(
            f"{what} holds labels of {dtype} {shape}; expected integers ({count},), "
            "one for each image."
        )


def _class_labels(labels: np.ndarray, count: int, what: str) -> Int32[np.ndarray, " n"]:
    _check_labels(labels.shape, labels.dtype, count, what)
    labels = labels.reshape(count)  # Keras's CIFAR-10 has (n, 1)
    if count and not 0 <= labels.min() <= labels.max() < MOST_CLASSES:
        raise InputError(
            f"{what} holds labels from {labels.min()} to {labels.max()}; expected "
            f"classes counted from 0, {MOST_CLASSES} at most."
        )
    return labels.astype(np.int32)


def _image_shape(file: str, key: str) -> tuple[int, int, int, int]:
    """(n, h, w, c) of an array of images, from its head alone."""
    shape, dtype = npz_head(file, key)
    full = (*shape, 1) if len(shape) == 3 else shape
    if dtype != np.uint8 or len(full) != 4 or full[3] not in (1, 3) or 0 in full[1:]:
        raise InputError(
            f"{file}: {key} is {dtype} {shape}; expected uint8 images from 0 to 255, "
            "(n, h, w), (n, h, w, 1) or (n, h, w, 3); save them so."
        )
    return full
