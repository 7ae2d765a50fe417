"""Batches lose nothing, double nothing, and leave nothing behind."""

import numpy as np
import pytest
from pictures import PLAIN, arrays, data_threads, noise, raises

from ispasp_jax import data
from ispasp_jax.data.splits import ArraySplit
from ispasp_jax.errors import InputError


def test_evaluation_loses_and_doubles_nothing_and_pads_with_zeros():
    split = arrays(n=10)
    found = list(data.batches(split, PLAIN, 4))
    assert [b.weight.tolist() for b in found] == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
    images = np.concatenate([b.image for b in found])
    np.testing.assert_array_equal(images[:10], split.images / np.float32(255))
    assert not images[10:].any()
    labels = np.concatenate([b.label for b in found])
    assert labels.tolist() == [*split.labels.tolist(), 0, 0]
    assert {(b.image.dtype.name, b.label.dtype.name) for b in found} == {
        ("float32", "int32")
    }


def test_indices_choose_and_order():
    split = arrays(n=10)
    (batch,) = data.batches(split, PLAIN, 3, indices=np.array([7, 0, 7]))
    np.testing.assert_array_equal(
        batch.image, split.images[[7, 0, 7]] / np.float32(255)
    )
    assert list(data.batches(split, PLAIN, 3, indices=np.array([], int))) == []


class OneByOne:
    """The same images without the short cut for arrays."""

    def __init__(self, split):
        self.labels, self.read, self.where = split.labels, split.read, split.where

    def __len__(self):
        return len(self.labels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("recipe", [None, "none", "shift", "jitter", "crop"])
def test_the_short_cut_and_the_workers_change_no_bit(recipe, channels):
    split = arrays(n=23, channels=channels)
    wanted = PLAIN._replace(mean=(0.3,) * channels, std=(0.7,) * channels)
    first, *others = (
        list(data.batches(s, wanted, 5, recipe=recipe, seed=3, epoch=1, workers=w))
        for s, w in ((split, 1), (split, 4), (OneByOne(split), 1), (OneByOne(split), 4))
    )
    assert len(first) == (5 if recipe is None else 4)
    for other in others:
        for a, b in zip(first, other, strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)


def test_training_shuffles_by_seed_and_epoch():
    split = ArraySplit(
        lambda: noise(20, 8, 8, 3), np.arange(20, dtype=np.int32), "numbered"
    )

    def order(**options):
        found = data.batches(split, PLAIN, 6, recipe="none", **options)
        return np.concatenate([b.label for b in found]).tolist()

    orders = [order(seed=s, epoch=e) for s in (0, 1) for e in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4
    for one in orders:
        assert len(set(one)) == len(one) == 18
    assert order(seed=1, epoch=1) == orders[3]
    few = order(indices=np.array([3, 5, 8, 13, 17, 19, 2]))
    assert len(few) == 6 and set(few) < {3, 5, 8, 13, 17, 19, 2}


def test_an_image_is_augmented_alike_wherever_it_falls():
    split = arrays(n=12)
    alone = data.augment(
        split.images[4], PLAIN, np.random.default_rng([2, 5, 4]), "shift"
    )
    found = data.batches(split, PLAIN, 4, recipe="shift", seed=2, epoch=5)
    assert any((image == alone).all() for b in found for image in b.image)


def test_arguments_that_do_not_fit_are_refused_at_once():
    with raises("batch size 0"):
        data.batches(arrays(), PLAIN, 0)
    with raises("20 images do not fill one batch of 21", "at most 20"):
        data.batches(arrays(), PLAIN, 21, recipe="none")
    with raises("indices -1 to 3 do not fit a split of 20"):
        data.batches(arrays(), PLAIN, 4, indices=np.array([3, -1]))
    with raises("0 calibration images"):
        data.calibration_indices(arrays(), 0, 0)


@pytest.mark.parametrize("short_cut", [True, False])
def test_stopping_early_leaves_no_threads(short_cut):
    split = arrays(n=200)
    stream = data.batches(split if short_cut else OneByOne(split), PLAIN, 4, workers=3)
    next(stream)
    assert data_threads()
    stream.close()
    assert not data_threads()
    for _ in data.batches(split, PLAIN, 4):
        break
    assert not data_threads()


def test_only_a_few_batches_are_read_ahead():
    split, read = OneByOne(arrays(n=100)), []
    plain = split.read
    split.read = lambda i: (read.append(i), plain(i))[1]
    stream = data.batches(split, PLAIN, 5, workers=2)
    next(stream)
    stream.close()
    assert 5 <= len(read) <= 15


def test_an_error_stops_the_stream_in_order():
    split, plain = OneByOne(arrays(n=40)), arrays(n=40).read

    def read(i):
        if i in (9, 11):
            raise InputError(f"image {i} is bad.")
        return plain(i)

    split.read = read
    stream = data.batches(split, PLAIN, 4, workers=4)
    next(stream), next(stream)
    with pytest.raises(InputError, match="image 9 is bad"):
        next(stream)
    assert not data_threads()


def test_calibration_indices():
    split = arrays(n=50)
    few = data.calibration_indices(split, 10, 0)
    assert len(set(few.tolist())) == 10 and (np.diff(few) > 0).all()
    assert (few == data.calibration_indices(split, 10, 0)).all()
    assert (few != data.calibration_indices(split, 10, 1)).any()
    assert data.calibration_indices(split, 80, 0).tolist() == list(range(50))
