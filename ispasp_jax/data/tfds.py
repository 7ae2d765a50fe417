"""TensorFlow data sets, read from ArrayRecord or TFRecord files without TensorFlow,
which is wanted only to download and prepare one.
"""

import contextlib
import importlib.util
import os
import re
from typing import Any, Protocol

import numpy as np

from ispasp_jax.data.preprocessing import Preprocessing
from ispasp_jax.data.splits import Picture, Source, defaults, reason
from ispasp_jax.data.tfrecord import TfRecords
from ispasp_jax.errors import InputError

#: NAME, NAME/CONFIG, NAME:1.2.3, each with or without :TRAIN,TEST behind it.
_PLACE = re.compile(r"(?P<name>[^:]+(:\d+\.[\d*]+\.[\d*]+)?)(:(?P<splits>.+))?")


class Records(Protocol):
    """The examples of a split, by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


class TfdsSplit:
    """One split of a prepared data set; labels come with the images."""

    def __init__(
        self, records: Records, keys: tuple[str, str], num_classes: int, origin: str
    ):
        self._records, self._keys = records, keys
        self._num_classes, self._origin = num_classes, origin

    def __len__(self) -> int:
        return len(self._records)

    def read(self, i: int) -> tuple[Picture, int]:
        try:
            image, label = (self._records[i][key] for key in self._keys)
        except Exception as error:  # of ArrayRecord, protobuf and PIL
            raise InputError(
                f"{self.where(i)} cannot be read ({reason(error)}); "
                "prepare the data set again."
            ) from error
        if label < 0:
            raise InputError(
                f"{self.where(i)} has no label; name other splits, as in "
                "tfds:NAME:train,validation."
            )
        if label >= self._num_classes:
            raise InputError(
                f"{self.where(i)} is of class {label} of {self._num_classes}; prepare "
                "the data set again."
            )
        return image, int(label)

    def where(self, i: int) -> str:
        return f"item {i} of {self._origin}"


def open_tfds(place: str) -> Source:
    """A data set by its name in the catalogue, NAME[:TRAIN,TEST].

    It is looked for in the folder of the environment variable TFDS_DATA_DIR, else in
    ~/tensorflow_datasets. Without TRAIN,TEST: train, and test or else validation,
    whichever has labels.

    Raises:
      InputError: the data set is unknown, is not of labelled images, or is not prepared
        and cannot be.
    """
    name, splits = _parse(place)
    builder = _prepared(_builder(name), name)
    keys, preprocessing, recipe, notes = _features(builder, name)
    num_classes = builder.info.features[keys[1]].num_classes

    def split(part: str) -> TfdsSplit:
        try:
            records = _records(builder, part)
        except Exception as error:  # TFDS raises ValueError, KeyError, AssertionError
            raise InputError(
                f"tfds:{name} has no split {part!r} that can be read "
                f"({reason(error)}); expected one of "
                f"{', '.join(builder.info.splits)}."
            ) from error
        return TfdsSplit(records, keys, num_classes, f"tfds:{name} ({part})")

    train, test = map(split, splits) if splits else (split("train"), None)
    for part in ("test", "validation"):
        # The test split of ImageNet, say, comes without labels.
        if test is None and part in builder.info.splits:
            with contextlib.suppress(InputError):
                split(part).read(0)
                test = split(part)
    test = test or split("test")
    return Source("tfds", num_classes, train, test, preprocessing, recipe, notes)


def describe(place: str) -> tuple[int, Preprocessing]:
    """Number of classes and default preprocessing of a data set, prepared or not.

    Raises:
      InputError: the data set is unknown, or is not of labelled images.
    """
    name, _ = _parse(place)
    builder = _builder(name)
    (_, label), preprocessing, *_ = _features(builder, name)
    return builder.info.features[label].num_classes, preprocessing


def _parse(place: str) -> tuple[str, tuple[str, str] | None]:
    match = _PLACE.fullmatch(place)
    splits = match["splits"].split(",") if match and match["splits"] else []
    if match is None or (splits and (len(splits) != 2 or not all(splits))):
        raise InputError(
            f"tfds:{place} is not understood; expected tfds:NAME or "
            "tfds:NAME:TRAIN,TEST, as in tfds:mnist:train[:90%],train[90%:]."
        )
    return match["name"], (splits[0], splits[1]) if splits else None


def _builder(name: str) -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(
            f"tfds:{name} needs the package tensorflow-datasets ({error}); run pip "
            "install tensorflow-datasets importlib_resources."
        ) from error
    try:
        # TFDS reads the variable once, when it is imported: too early for some callers.
        return tensorflow_datasets.builder(
            name, data_dir=os.environ.get("TFDS_DATA_DIR") or None
        )
    except Exception as error:  # an unknown name, configuration or version
        raise InputError(
            f"tfds:{name} cannot be opened ({reason(error)}); see "
            "https://www.tensorflow.org/datasets/catalog for names."
        ) from error


def _prepared(builder: Any, name: str) -> Any:
    """The builder once its files exist; nothing is fetched if they do."""
    try:
        builder.as_data_source(None)
        return builder
    except Exception:  # nothing there, or TFRecord, or broken: reading it will say
        if builder.data_path.exists():
            return builder
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"tfds:{name} is not prepared in {builder.data_path.parent.parent}, and "
            "TensorFlow, which prepares it, is not installed; run pip install "
            f"'ispasp_jax[tfds]' and try again, or run tfds build {name} elsewhere and "
            "set TFDS_DATA_DIR."
        )
    try:
        builder.download_and_prepare(file_format="array_record")
        return _builder(name)
    except Exception as error:  # whatever a download or a generator raises
        raise InputError(
            f"tfds:{name} could not be prepared ({type(error).__name__}: {error}); see "
            "its page in https://www.tensorflow.org/datasets/catalog."
        ) from error


def _records(builder: Any, part: str) -> Records:
    """The examples of a split, in either format."""
    try:
        return builder.as_data_source(part)
    except NotImplementedError:
        files = builder.info.splits[part].file_instructions
        return TfRecords(files, builder.info.features.deserialize_example_np)


def _features(
    builder, name: str
) -> tuple[tuple[str, str], Preprocessing, str, tuple[str, ...]]:
    """The keys of image and label, and what the shape of the images suggests."""
    features = builder.info.features
    keys = builder.info.supervised_keys or ("image", "label")
    try:
        (height, width, channels), label = features[keys[0]].shape, features[keys[1]]
        if channels in (1, 3) and features[keys[0]].np_dtype == np.uint8:
            if label.num_classes:
                return keys, *defaults(height, width, channels)
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise InputError(
        f"tfds:{name} is not a data set of labelled images (it has "
        f"{', '.join(features)}); choose one for image classification."
    )
