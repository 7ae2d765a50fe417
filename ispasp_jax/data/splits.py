"""What a source of data is: two splits of labelled images, and how to look at them."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from ispasp_jax.data import depth
from ispasp_jax.data.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Inputs,
    Preprocessing,
)
from ispasp_jax.errors import InputError

#: What files may hold, whatever their names: PIL knows formats that start programs.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000")

#: What `Split.read` gives: a PIL image, or uint8 of (h, w, c).
Picture = Image.Image | UInt8[np.ndarray, "h w c"]

#: More classes than any data set of images has; labels beyond are something else's
#: numbers (WordNet's 1440764), and a classifier for them would not fit in memory.
MOST_CLASSES = 250_000


@runtime_checkable
class Split(Protocol):
    """Labelled images in a fixed order. `read` may be called from several threads."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> tuple[Any, int]:
        """Image (a Picture) or text i and its class.

        Raises:
          InputError: it cannot be read or decoded; the message says which it is.
        """
        ...

    def where(self, i: int) -> str:
        """What to call image i in a message."""
        ...


class Source(NamedTuple):
    """A data set.

    Attributes:
      name: the string that opened it.
      num_classes: classes are 0 to num_classes - 1.
      train: what to train and calibrate on.
      test: what to report on.
      preprocessing: what to make of the images where the weights do not say.
      recipe: how to augment them in training (see `augment`).
      notes: what a person should know of how the data is read.
    """

    name: str
    num_classes: int
    train: Split
    test: Split
    preprocessing: Inputs
    recipe: str
    notes: tuple[str, ...] = ()


class ArraySplit:
    """Images of one size, in memory from their first use on."""

    def __init__(
        self,
        load: Callable[[], UInt8[np.ndarray, "n h w c"]],
        labels: Int32[np.ndarray, " n"],
        origin: str,
    ):
        self.labels = labels
        self._load, self._origin = load, origin

    @functools.cached_property
    def images(self) -> UInt8[np.ndarray, "n h w c"]:
        return self._load()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> tuple[Picture, int]:
        return self.images[i], int(self.labels[i])

    def where(self, i: int) -> str:
        return f"item {i} of {self._origin}"


class FileSplit:
    """One image file an example, decoded whenever it is read."""

    def __init__(self, files: Sequence[Path | str], labels: Int32[np.ndarray, " n"]):
        self.files, self.labels = files, labels

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int) -> tuple[Picture, int]:
        try:
            with open(self.files[i], "rb") as file:
                image = _decoded(file)
        except InputError as error:
            raise InputError(f"{self.files[i]}: {error}") from error
        except Exception as error:  # PIL raises nearly anything on a broken file
            raise InputError(
                f"{self.files[i]} is not an image that can be read ({reason(error)}); "
                "remove it or fetch it again."
            ) from error
        return image, int(self.labels[i])

    def where(self, i: int) -> str:
        return str(self.files[i])


def reason(error: Exception) -> str:
    """What an error says, in one line that fits into a sentence."""
    return next(iter(str(error).splitlines()), "")[:200] or type(error).__name__


def _decoded(file: BinaryIO) -> Image.Image:
    """The image in a file, whole; its checksums fit, where it has some (PNG)."""
    image = Image.open(file, formats=_FORMATS)
    if image.format == "PNG":
        image.verify()
        file.seek(0)
        image = Image.open(file, formats=_FORMATS)
    deep = depth.is_deep(image)  # not to be seen once it is loaded
    image.load()
    return depth.eight_bits(image, deep)


def class_count(*labels: Int32[np.ndarray, " _"]) -> int:
    """How many classes there are at least, where they count from 0."""
    return 1 + max((int(part.max()) for part in labels if len(part)), default=0)


def defaults(
    height: int | None, width: int | None, channels: int
) -> tuple[Preprocessing, str, tuple[str, ...]]:
    """Preprocessing and recipe for images of that size (None: each has its own), and
    what to note of them.

    Up to 224 pixels images stay as they are, up to 64 the augmentation only moves them;
    others are treated as ImageNet's. Grey ones get MNIST's mean, colours ImageNet's.
    """
    mean, std = (
        (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.1307,), (0.3081,))
    )
    if height is None or width is None or min(height, width) > 224:
        notes = _cropped(height, width) if height and width else ()
        return Preprocessing(224, 256, mean, std), "crop", notes
    side = min(height, width)
    recipe = "crop" if side > 64 else "shift" if channels == 3 else "none"
    return Preprocessing(side, None, mean, std), recipe, _cropped(height, width)


def _cropped(height: int, width: int) -> tuple[str, ...]:
    if height == width:
        return ()
    return (
        f"the images are {height} pixels high and {width} wide: the network sees the "
        "square in their centre",
    )
