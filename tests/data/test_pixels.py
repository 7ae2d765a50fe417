"""Pixels against an independent computation, and every kind of image."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import IMAGENET, PLAIN, arrays, noise, raises
from PIL import Image

from ispasp_jax import data
from ispasp_jax.data import preprocessing as pixels


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


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
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
        {"depth": 3},
    ],
)
def test_nonsense_preprocessing_is_refused(change):
    with raises("expected"):
        data.from_json(data.to_json(IMAGENET) | change)


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
