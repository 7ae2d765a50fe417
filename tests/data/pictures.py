"""Made-up images, and what the tests of the data layer share."""

import threading

import numpy as np
import pytest

from ispasp_jax import data
from ispasp_jax.data.splits import ArraySplit
from ispasp_jax.errors import InputError

IMAGENET = data.Preprocessing(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

#: Eight pixels a side, colours in 0..1.
PLAIN = data.Preprocessing(8, None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def arrays(n=20, size=8, channels=3):
    images = noise(n, size, size, channels)
    return ArraySplit(lambda: images, np.arange(n, dtype=np.int32) % 3, "arrays")


def raises(*words):
    """An InputError of one sentence that holds these words."""
    return pytest.raises(InputError, match="(?s)" + ".*".join(words) + r".*\.$")


def data_threads():
    return [t for t in threading.enumerate() if t.name.startswith("ispasp-data")]
