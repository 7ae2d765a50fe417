"""Pixels against an independent computation, and every kind of image."""

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import IMAGENET, PLAIN, arrays, noise, raises
from PIL import Image

from ispasp_jax import data
from ispasp_jax.data import preprocessing as pixels
from ispasp_jax.data.splits import FileSplit


def torchvision_reference(image, size, resize, mean, std):
    """torchvision's Resize, CenterCrop, ToTensor, Normalize, from its source, in PIL's
    operations."""
    image = image.convert("RGB")
    w, h = image.size
    if resize is not None:
        short, long = (w, h) if w <= h else (h, w)
        new = int(resize * long / short)
        w, h = (resize, new) if w <= h else (new, resize)
        image = image.resize((w, h), Image.BILINEAR)
    if size > w or size > h:
        left, top = max(size - w, 0) // 2, max(size - h, 0) // 2
        canvas = Image.new("RGB", (max(w, size), max(h, size)))
        canvas.paste(image, (left, top))
        image, (w, h) = canvas, canvas.size
    if resize is None:  # nothing of torchvision's to equal: TensorFlow's crop
        top, left = (h - size) // 2, (w - size) // 2
    else:
        top, left = int(round((h - size) / 2.0)), int(round((w - size) / 2.0))
    image = image.crop((left, top, left + size, top + size))
    unit = np.asarray(image, np.float32) / np.float32(255)
    return (unit - np.float32(mean)) / np.float32(std)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    size=st.integers(1, 40),
    resize=st.integers(1, 48),
)
def test_evaluation_is_torchvisions(width, height, size, resize):
    image = Image.fromarray(noise(height, width, 3))
    wanted = IMAGENET._replace(image_size=size, resize=resize)
    expected = torchvision_reference(image, size, resize, *wanted[2:])
    np.testing.assert_array_equal(data.evaluate(image, wanted), expected)


@given(width=st.integers(8, 20), height=st.integers(8, 20))
@settings(max_examples=20, deadline=None)
def test_without_resize_the_centre_is_cut_untouched(width, height):
    image = Image.fromarray(noise(height, width, 3))
    expected = torchvision_reference(image, 8, None, (0,) * 3, (1,) * 3)
    np.testing.assert_array_equal(data.evaluate(image, PLAIN), expected)


def test_a_small_image_is_enlarged_without_resize_and_padded_with_it():
    image = Image.fromarray(noise(4, 6, 3))
    enlarged = data.evaluate(image, PLAIN)
    expected = torchvision_reference(image, 8, 8, (0,) * 3, (1,) * 3)
    np.testing.assert_array_equal(enlarged, expected)
    padded = data.evaluate(image, PLAIN._replace(resize=4))
    assert not padded[:2].any() and not padded[:, 0].any() and padded[3, 3].any()


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_the_channels_wanted(mode, channels):
    image = Image.fromarray(noise(9, 9, 3)).convert("RGB").convert(mode)
    wanted = PLAIN._replace(mean=(0.0,) * channels, std=(1.0,) * channels)
    out = data.evaluate(image, wanted)
    assert out.shape == (8, 8, channels) and out.dtype == np.float32
    expected = image.convert("RGB")
    if channels == 3:
        expected = torchvision_reference(expected, 8, None, (0,) * 3, (1,) * 3)
        np.testing.assert_array_equal(out, expected)


def test_sixteen_bits_keep_their_upper_byte(tmp_path):
    deep = (noise(8, 8).astype(np.uint16) << 8) + 77
    Image.fromarray(deep).save(tmp_path / "deep.png")
    wanted = PLAIN._replace(mean=(0.0,), std=(1.0,))
    with Image.open(tmp_path / "deep.png") as image:
        out = data.evaluate(image, wanted)
    np.testing.assert_array_equal(out[..., 0], noise(8, 8) / np.float32(255))


GREY = PLAIN._replace(mean=(0.0,), std=(1.0,))

#: Grey values of many kinds, made of noise, and what they are in 0..255.
RANGES = {
    "uint16": (lambda p: (p.astype(np.uint16) << 8) + 77, lambda p: p),
    "uint16 big-endian": (lambda p: p.astype(">u2") << 8, lambda p: p),
    "int32 to 255": (lambda p: p.astype(np.int32), lambda p: p),
    "int32 to 65535": (lambda p: p.astype(np.int32) << 8, lambda p: p),
    "int64": (lambda p: p.astype(np.int64), lambda p: p),
    "float32 to 1": (lambda p: p / np.float32(255), lambda p: p),
    "float64 to 1": (lambda p: p / 255, lambda p: p),
    "float to 255": (lambda p: p.astype(np.float32), lambda p: p),
    "bool": (lambda p: p > 127, lambda p: (p > 127) * 255),
    "black": (lambda p: np.zeros((8, 8), np.uint16), lambda p: 0 * p),
    "black floats": (lambda p: np.zeros((8, 8)), lambda p: 0 * p),
    "dark floats": (lambda p: p // 10 / 255, lambda p: p // 10),
    "dark integers": (lambda p: (p // 10).astype(np.int32), lambda p: p // 10),
}


@pytest.mark.parametrize(("kind", "expected"), RANGES.values(), ids=RANGES)
def test_values_are_brought_to_eight_bits_by_their_range(kind, expected):
    values, expected = (f(noise(8, 8))[..., None] for f in (kind, expected))
    grey, colours = data.evaluate(values, GREY), data.evaluate(values, PLAIN)
    np.testing.assert_allclose(255 * grey, expected, atol=0.01)
    np.testing.assert_allclose(255 * colours, np.repeat(expected, 3, -1), atol=0.01)
    three = data.evaluate(np.repeat(values, 3, -1), PLAIN)
    np.testing.assert_array_equal(three, colours)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (noise(8, 8) * np.uint16(16), "uint16 values up to .*65535 would be white"),
        (noise(8, 8).astype(np.uint16), "65535 would be white"),
        (noise(8, 8) * np.int32(16), "int32 values up to"),
        (noise(8, 8) * np.int32(1000), "int32 from .*integers .*0 to 65535"),
        (noise(8, 8) - np.int16(128), "int16 from -"),
        (noise(8, 8) / 100, "float64 values up to .*255 would be white"),
        (noise(8, 8) / 127.5 - 1, "float64 from -.*0 to 1"),
        (noise(8, 8) * 2.0, "float64 from"),
        (np.full((8, 8), np.nan), "float64 from nan to nan"),
        (np.where(noise(8, 8) > 9, 1, np.nan), "from nan"),
        (np.where(noise(8, 8) > 9, 1, np.inf), "to inf"),
        (np.where(noise(8, 8) > 9, 1, -np.inf), "from -inf"),
        (np.ones((8, 8), complex), "complex128"),
        (noise(8), "expected .height, width"),
        (noise(8, 8, 2), "expected .height, width"),
        (noise(8, 8, 3, 3), "expected .height, width"),
        (noise(0, 8, 3), "expected .height, width"),
        (np.full((8, 8), "a"), "<U1"),
        (np.full((8, 8), None), "object"),
    ],
)
def test_values_of_another_range_are_refused(values, words):
    with raises("^the image", words):
        data.evaluate(values, GREY)


def deep_png(pixels):
    """A PNG of 16 bits a value, which PIL reads but does not write in colour."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    size = struct.pack(">II5B", *pixels.shape[1::-1], 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body))
        + name
        + body
        + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def read(path):
    split = FileSplit([path], np.zeros(1, np.int32))
    (batch,) = data.batches(split, PLAIN, 1)
    return batch.image[0] * 255


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_deep_png_files(tmp_path, channels):
    path, plain = tmp_path / "deep.png", noise(8, 8, channels)
    path.write_bytes(deep_png(plain.astype(np.uint16) << 8))
    colours = plain[..., :3] if channels > 2 else np.repeat(plain[..., :1], 3, -1)
    np.testing.assert_allclose(read(path), colours, atol=0.01)
    path.write_bytes(deep_png(plain.astype(np.uint16) << 4))  # 12 of the 16 bits
    with raises("deep.png: the image holds .*would be white.*with 8 bits a value"):
        read(path)


@pytest.mark.parametrize("kind", ["uint16", "int32 to 255", "float32 to 1"])
def test_deep_tiff_files(tmp_path, kind):
    path, plain = tmp_path / "deep.tif", noise(8, 8)
    Image.fromarray(RANGES[kind][0](plain)).save(path)
    np.testing.assert_allclose(
        read(path), np.repeat(plain[..., None], 3, -1), atol=0.01
    )
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(path)
    with raises("deep.tif: the image holds float32 from nan to nan"):
        read(path)


def test_a_strip_is_not_resized_beyond_memory(tmp_path):
    Image.fromarray(noise(1, 40000)).save(tmp_path / "strip.png")
    split = FileSplit([tmp_path / "strip.png"], np.zeros(1, np.int32))
    with raises("strip.png: the image has 40000 x 1 pixels, too long a strip"):
        next(data.batches(split, IMAGENET, 1))


def test_a_transparent_palette_gives_its_colours_without_a_warning():
    image = Image.fromarray(noise(8, 8, 3)).convert("P")
    image.info["transparency"] = bytes(256)
    expected = np.asarray(image.convert("RGBA"))[..., :3] / np.float32(255)
    np.testing.assert_array_equal(data.evaluate(image, PLAIN), expected)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3), (8, 8, 4)])
def test_arrays_are_images_too(shape):
    array = noise(*shape)
    image = Image.fromarray(array[..., 0] if shape[2:] == (1,) else array)
    np.testing.assert_array_equal(
        data.evaluate(array, PLAIN), data.evaluate(image, PLAIN)
    )


@pytest.mark.parametrize("recipe", data.RECIPES)
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 50, 3), (50, 1, 3), (13, 9, 3)])
def test_augmented_images_have_the_size_and_repeat_with_the_seed(recipe, shape):
    once, again, other = (
        data.augment(noise(*shape), IMAGENET, np.random.default_rng(seed), recipe)
        for seed in (5, 5, 6)
    )
    assert once.shape == (224, 224, 3) and once.dtype == np.float32
    np.testing.assert_array_equal(once, again)
    if recipe != "none" and shape == (13, 9, 3):
        assert (once != other).any()


def test_none_augments_nothing():
    image = noise(30, 40, 3)
    out = data.augment(image, IMAGENET, np.random.default_rng(0), "none")
    np.testing.assert_array_equal(out, data.evaluate(image, IMAGENET))


@pytest.mark.parametrize(("recipe", "reach"), [("shift", 4), ("jitter", 1)])
def test_a_shift_is_a_window_of_the_padded_image_and_all_are_drawn(recipe, reach):
    image = noise(8, 8, 3)
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0))) / np.float32(255)
    windows = {}
    for top in range(2 * reach + 1):
        for left in range(2 * reach + 1):
            window = padded[top : top + 8, left : left + 8]
            windows[window.tobytes()] = (top, left, False)
            windows[window[:, ::-1].tobytes()] = (top, left, True)
    seen = {
        windows[data.augment(image, PLAIN, np.random.default_rng(i), recipe).tobytes()]
        for i in range(1500)
    }
    assert len(seen) == (2 * reach + 1) ** 2 * (2 if recipe == "shift" else 1)


def test_random_crops_keep_area_and_ratio():
    rng = np.random.default_rng(0)
    boxes = np.array([pixels._random_box(200, 150, rng) for _ in range(500)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (200, 150)).all()
    assert 0.19 < (w * h / 30000).min() < 0.25 and (w * h / 30000).max() > 0.9
    assert (w / h).min() > 0.73 and (w / h).max() < 1.36


def test_preprocessing_survives_json():
    for wanted in (IMAGENET, PLAIN):
        assert data.from_json(json.loads(json.dumps(data.to_json(wanted)))) == wanted


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 0},
        {"image_size": "8"},
        {"image_size": None},
        {"resize": -1},
        {"resize": 2.5},
        {"mean": [0.5]},
        {"mean": [0.5, float("nan"), 0.5]},
        {"mean": 3},
        {"std": [1, 0, 1]},
        {"std": ["1", "1", "1"]},
        {"std": [1, -1, 1]},
        {"std": [1, 1e-9, 1]},
        {"std": [1, float("nan"), 1]},
        {"std": [1, float("inf"), 1]},
        {"std": [True] * 3},
        {"mean": [-0.1, 0.5, 0.5]},
        {"mean": [10**400, 0.5, 0.5]},
        {"image_size": 10**9},
        {"image_size": 2**63},
        {"image_size": True},
        {"resize": 10**9},
        {"depth": 3},
    ],
)
def test_nonsense_preprocessing_is_refused(change):
    with raises("expected"):
        data.from_json(data.to_json(IMAGENET) | change)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
        {"mean": [123.675, 116.28, 103.53]},
        {"std": [58.395, 57.12, 57.375]},
        {"mean": [127.5] * 3, "std": [127.5] * 3},
        {"mean": [0, 0, 0], "std": [255, 255, 255]},
    ],
)
def test_mean_and_std_of_0_to_255_are_refused(change):
    with raises("not those of pixels in 0..1", "divide those for 0..255 by 255"):
        data.from_json(data.to_json(IMAGENET) | change)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.0,) * 3, (1.0,) * 3), ((0.5,), (0.5,)), ((0,), (1 / 255,))]
)
def test_other_means_and_deviations_are_taken(mean, std):
    wanted = IMAGENET._replace(mean=mean, std=std)
    assert data.checked(wanted) == wanted


def test_unknown_recipes_are_refused():
    with raises("augmentation 'blur'", "none, shift, jitter, crop"):
        data.augment(noise(8, 8), PLAIN, np.random.default_rng(0), "blur")
    with raises("augmentation 'blur'"):
        data.batches(arrays(), PLAIN, 2, recipe="blur")


def test_real_images_are_read(data_folder):
    source = data.open_source(f"folder:{data_folder}/imagenet")
    assert (source.num_classes, len(source.train)) == (1000, 1000)
    assert len(source.test) == 650
    (batch,) = data.batches(source.test, IMAGENET, 16, indices=np.arange(16))
    assert abs(batch.image.mean()) < 0.5 and 0.5 < batch.image.std() < 2
    with Image.open(source.test.where(5)) as image:
        expected = torchvision_reference(image, *IMAGENET)
    np.testing.assert_array_equal(batch.image[5], expected)
