"""Images of any depth brought to 8 bits, by the range of their values and never by a
guess: what is black and what of another range is refused where it cannot be told.
"""

from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from ispasp_jax.errors import InputError

#: TIFF's tags: whether values are signed (2), how many bits, whether 0 is white (0).
_SAMPLE_FORMAT, _BITS, _WHITE = 339, 258, 262


def is_deep(image: Image.Image) -> bool:
    """Whether an image that is opened and not yet loaded has 16 bits a value.

    Raises:
      InputError: PIL would take the values for others than they are.
    """
    tags = getattr(image, "tag_v2", {})  # TIFF's
    if 2 in tags.get(_SAMPLE_FORMAT, ()) and max(tags.get(_BITS, (1,))) < 32:
        raise InputError("the image holds signed numbers; save it as 0 to 255.")
    if tags.get(_WHITE) == 0 and image.mode[0] in "IF":
        raise InputError(
            "the image counts from white, 0, to black; save it from black."
        )
    tiles = getattr(image, "tile", ())  # of an image from a file
    ways = [str(tile[3]) for tile in tiles]  # as PNG's RGB;16B; PPM has its white
    return any(";16" in way or "65535" in way for way in ways)


def eight_bits(image: Image.Image, deep: bool = False) -> Image.Image:
    """The image itself, or its values brought to 0..255 where its mode has others.

    Args:
      image: of any mode.
      deep: its file holds 16 bits a value, which PIL has cut to 8 in colours.

    Raises:
      InputError: which values stand for white cannot be told.
    """
    if image.mode[0] in "IF":
        return Image.fromarray(of_array(np.asarray(image), deep))
    if deep and image.mode in ("RGB", "RGBA"):
        extremes: Any = image.getextrema()  # a pair each, as there are several bands
        _told(max(high for _, high in extremes[:3]), 255, "upper bytes of")
    return image


def of_array(
    values: Shaped[np.ndarray, "..."], deep: bool = False
) -> UInt8[np.ndarray, "..."]:
    """Values of any type as 0..255: floats from 0..1 or 0..255, integers from 0..255 or
    0..65535, whose upper byte is the image.

    Raises:
      InputError: they are of another range, NaN or infinite, or none can be told.
    """
    kind = values.dtype.kind
    if values.dtype == np.uint8 or not values.size:
        return values.astype(np.uint8)
    if kind == "b":
        return values * np.uint8(255)
    if kind not in "uif":
        raise InputError(
            f"the image holds {values.dtype}; expected numbers from 0 to 255."
        )
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= (255 if kind == "f" else 65535):  # NaN is neither
        raise InputError(
            f"the image holds {values.dtype} from {low} to {high}; expected floats "
            "from 0 to 1 or 0 to 255, or integers from 0 to 255 or 0 to 65535."
        )
    if kind == "f":
        if high > 1:
            _told(high, 255, values.dtype)
        return np.rint(values * (255 if high <= 1 else 1)).astype(np.uint8)
    deep |= values.dtype.itemsize == 2 and kind == "u"
    if high > 255 or (deep and high):
        _told(high, 65535, values.dtype)
        values = values >> 8
    return values.astype(np.uint8)


def _told(high: float, white: int, what: object) -> None:
    """Raises InputError where an image is so dark that its white may be another."""
    if high < white / 4:
        raise InputError(
            f"the image holds {what} values up to {high}, and {white} would be white: "
            "it is nearly black, or of another range; save it with 8 bits a value."
        )
