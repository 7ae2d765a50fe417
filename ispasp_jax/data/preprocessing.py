"""From an image of any kind to the numbers a network was trained on, pixel for pixel as
torchvision does it: PIL bilinear resize, centre crop, (rgb - mean) / std.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from ispasp_jax.data import depth
from ispasp_jax.data.tokens import Text
from ispasp_jax.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Recipes that only move and mirror the image: (pixels to each side, mirrored or not).
SHIFTS = {"none": (0, False), "shift": (4, True), "jitter": (1, False)}

#: Every recipe that `augment` knows.
RECIPES = (*SHIFTS, "crop")

#: Longest side that images are brought to; beyond, one is larger than a GPU's memory.
MOST_PIXELS = 8192


class Preprocessing(NamedTuple):
    """What a network expects of its input; it belongs to the weights.

    Attributes:
      image_size: side of the square that the network sees, in pixels.
      resize: length of the shorter side before the centre crop, in pixels; None crops
        only.
      mean: one a channel (1 or 3 of them), of values in 0..1.
      std: likewise.
    """

    image_size: int
    resize: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the network's input."""
        return self.image_size, self.image_size, self.channels


#: How images, or texts, become inputs.
Inputs = Preprocessing | Text


def to_json(preprocessing: Inputs) -> dict[str, Any]:
    """The fields by name, in types that JSON has; of a tokenizer its checksum."""
    if isinstance(preprocessing, Text):
        return {"length": preprocessing.length, "tokenizer": preprocessing.sum}
    fields = preprocessing._asdict()
    return fields | {"mean": list(preprocessing.mean), "std": list(preprocessing.std)}


def from_json(fields: Mapping[str, Any]) -> Inputs:
    """The inverse of `to_json`, a checksum in the place of a tokenizer.

    Raises:
      InputError: a field is missing, unknown, or nonsense.
    """
    if isinstance(fields, Mapping) and set(fields) == set(Text._fields):
        return _text(fields)
    if not isinstance(fields, Mapping) or set(fields) != set(Preprocessing._fields):
        raise InputError(
            f"preprocessing {fields!r} is not understood: expected the fields "
            f"{', '.join(Preprocessing._fields)}; write it again with this version."
        )
    return checked(
        Preprocessing(
            fields["image_size"],
            fields["resize"],
            *(
                tuple(fields[name]) if isinstance(fields[name], list | tuple) else ()
                for name in ("mean", "std")
            ),
        )
    )


def _text(fields: Mapping[str, Any]) -> Text:
    length, tokenizer = fields["length"], fields["tokenizer"]
    if type(length) is not int or not 1 <= length <= MOST_PIXELS:
        raise InputError(
            f"length {length!r:.40} is not a number of tokens: expected an integer "
            f"from 1 to {MOST_PIXELS}."
        )
    if not isinstance(tokenizer, str):
        raise InputError("a tokenizer is named by its checksum, a string.")
    return Text(length, tokenizer)


def checked(preprocessing: Preprocessing) -> Preprocessing:
    """The preprocessing itself.

    Raises:
      InputError: a size that is no positive integer, or a mean and std that are not 1
        or 3 numbers each, of values in 0..1 (and not in 0..255).
    """
    size, resize, mean, std = preprocessing
    for name, value in (("image size", size), ("resize", resize)):
        if value is None and name == "resize":
            continue
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (isinstance(value, int) and whole and 1 <= value <= MOST_PIXELS):
            raise InputError(
                f"{name} {value!r:.40} is not a number of pixels: expected an integer "
                f"from 1 to {MOST_PIXELS}{' or none' if name == 'resize' else ''}."
            )
    both = (*mean, *std)
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in both)
    if not (len(mean) == len(std) in (1, 3) and numbers):
        raise InputError(
            f"mean {mean!r:.80} and std {std!r:.80} do not fit: expected 1 or 3 finite "
            "numbers each, one a channel, with std above 0."
        )
    # Colours differ by a thousandth at least, and by no more than all there is.
    if not all(0 <= m <= 1 and 1e-3 <= s <= 1 for m, s in zip(mean, std, strict=True)):
        large = all(0 <= x <= 255 for x in both) and max(both) > 1
        advice = "; divide those for 0..255 by 255" if large else ""
        raise InputError(
            f"mean {mean!r:.80} and std {std!r:.80} are not those of pixels in 0..1: "
            f"expected a mean from 0 to 1 and an std from 0.001 to 1{advice}."
        )
    return preprocessing


def evaluate(
    image: Image.Image | Shaped[np.ndarray, "..."], preprocessing: Preprocessing
) -> Float[np.ndarray, "size size c"]:
    """The image as the network sees it in evaluation.

    An image smaller than `image_size` after `resize` is padded with black, as in
    torchvision. Without `resize` there is nothing to pad for: its shorter side is
    enlarged to `image_size`.

    Args:
      image: a PIL image of any mode, or an array (h, w), or (h, w, c) with 1, 3 or 4
        channels. Values are 0 to 255; others are brought there from 0 to 1 (floats) or
        0 to 65535 (integers).
      preprocessing: what to make of it.

    Raises:
      InputError: the values are of another range, or none can be told.
    """
    image = to_pil(image, preprocessing.channels)
    return normalise(_fit(image, preprocessing), preprocessing)


def augment(
    image: Image.Image | Shaped[np.ndarray, "..."],
    preprocessing: Preprocessing,
    rng: np.random.Generator,
    recipe: str,
) -> Float[np.ndarray, "size size c"]:
    """The image as the network sees it in training.

    Args:
      image: as in `evaluate`.
      preprocessing: what to make of it.
      rng: where chance comes from; equal states give equal images.
      recipe: "none": as in evaluation. "crop": a random part, 0.2 to 1 of the area at
        ratio 3/4 to 4/3, resized, mirrored half the time (ImageNet). "shift": moved by
        up to 4 pixels over black, mirrored half the time (CIFAR). "jitter": moved by up
        to 1 pixel over black (small symbols).

    Raises:
      InputError: an unknown recipe.
    """
    known_recipe(recipe)
    image, size = to_pil(image, preprocessing.channels), preprocessing.image_size
    if recipe == "crop":
        box = _random_box(*image.size, rng)
        image = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
        pixels = as_array(image)[:, :: -1 if rng.random() < 0.5 else 1]
    else:
        pixels = shifted(_fit(image, preprocessing), rng, *SHIFTS[recipe])
    return normalise(pixels, preprocessing)


def known_recipe(recipe: str) -> None:
    if recipe not in RECIPES:
        raise InputError(
            f"unknown augmentation {recipe!r}; expected one of {', '.join(RECIPES)}."
        )


def shifted(
    pixels: UInt8[np.ndarray, "h w c"],
    rng: np.random.Generator,
    reach: int,
    mirror: bool,
) -> UInt8[np.ndarray, "h w c"]:
    """The image moved by up to `reach` pixels over black, mirrored half the time."""
    height, width, depth = pixels.shape
    if reach:
        top, left = rng.integers(0, 2 * reach + 1, 2)
        padded = np.zeros((height + 2 * reach, width + 2 * reach, depth), np.uint8)
        padded[reach : reach + height, reach : reach + width] = pixels
        pixels = padded[top : top + height, left : left + width]
    return pixels[:, ::-1] if mirror and rng.random() < 0.5 else pixels


def normalise(
    pixels: UInt8[np.ndarray, "*n h w c"], preprocessing: Preprocessing
) -> Float[np.ndarray, "*n h w c"]:
    """(rgb / 255 - mean) / std in float32, in the order in which torchvision rounds."""
    out = np.array(pixels, np.float32, order="C")
    # Whole rows at a time: numpy is slow where the last axis has length 3.
    rows = out.reshape(*out.shape[:-2], -1)
    rows /= np.float32(255)
    rows -= np.tile(np.asarray(preprocessing.mean, np.float32), out.shape[-2])
    rows /= np.tile(np.asarray(preprocessing.std, np.float32), out.shape[-2])
    return out


def to_pil(
    image: Image.Image | Shaped[np.ndarray, "..."], channels: int
) -> Image.Image:
    """The image in mode L or RGB, transparency dropped as torchvision does."""
    if isinstance(image, np.ndarray):
        depths = ((), (1,), (3,), (4,))
        if image.ndim < 2 or image.shape[2:] not in depths or not image.size:
            raise InputError(
                f"the image is an array {image.shape}; expected (height, width), or "
                "(height, width, channels) with 1, 3 or 4 channels."
            )
        image = depth.of_array(image)
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    image = depth.eight_bits(image)
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB, PIL warns of byte palettes
    mode = "L" if channels == 1 else "RGB"
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def as_array(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """The pixels, with an axis for channels in grey images too."""
    return np.asarray(image).reshape(image.height, image.width, -1)


def _fit(
    image: Image.Image, preprocessing: Preprocessing
) -> UInt8[np.ndarray, "size size c"]:
    """Resized and cropped to the centre as by torchvision's Resize and CenterCrop;
    without a resize cropped as TensorFlow does it.
    """
    size, resize = preprocessing.image_size, preprocessing.resize
    if resize is None and min(image.size) < size:
        resize = size
    if resize is not None and min(image.size) != resize:
        width, height = image.size
        long = int(resize * max(width, height) / min(width, height))
        if resize * long > MOST_PIXELS**2:
            raise InputError(
                f"the image has {width} x {height} pixels, too long a strip to be "
                f"resized to {resize} x {long}; crop it first."
            )
        shape = (resize, long) if width <= height else (long, resize)
        image = image.resize(shape, Image.Resampling.BILINEAR)
    pixels = as_array(image)
    gaps = [max(size - side, 0) for side in pixels.shape[:2]]
    if any(gaps):
        pixels = np.pad(pixels, [*((g // 2, g - g // 2) for g in gaps), (0, 0)])
    # Half a pixel: torchvision, whose weights come with a resize, rounds to even;
    # TensorFlow, whose images may come cropped already, rounds down.
    down = preprocessing.resize is None
    top, left = (
        (side - size) // 2 if down else round((side - size) / 2)
        for side in pixels.shape[:2]
    )
    return pixels[top : top + size, left : left + size]


def _random_box(
    width: int, height: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) as torchvision's RandomResizedCrop draws it."""
    least, most = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * rng.uniform(0.2, 1.0)
        ratio = math.exp(rng.uniform(math.log(least), math.log(most)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            return int(left), int(top), int(left) + w, int(top) + h
    # No luck: the largest centred part of a ratio in range.
    w = min(width, max(1, round(height * most)))
    h = min(height, max(1, round(width / least)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
