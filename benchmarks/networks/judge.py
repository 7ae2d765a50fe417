"""How like the dense network another one answers, image by image: on images that
nothing was calibrated on, and enough of them to decide small differences.
"""

import functools
import io
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from benchmarks.benchmark import data_folder
from ispasp_jax import data, models, weights
from ispasp_jax.data import Preprocessing
from ispasp_jax.data.splits import ArraySplit
from ispasp_jax.weights import Model, folders

#: Images evaluated at once.
BATCH = 250
#: Standard errors that a difference has to be away from zero to be called decided.
DECIDED = 2


class Outcome(NamedTuple):
    """What a network makes of every image.

    Attributes:
      right: whether the class is the image's.
      agrees: whether it is the dense network's.
      divergence: KL(dense ‖ own) of the softmax, in nats.
    """

    right: Bool[np.ndarray, " n"]
    agrees: Bool[np.ndarray, " n"]
    divergence: Float[np.ndarray, " n"]


class Mean(NamedTuple):
    """A mean over images and its standard error."""

    mean: float
    error: float


def mean(values: Float[np.ndarray, " n"]) -> Mean:
    """The mean of independent values, and its standard error."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values))
    return Mean(float(values.mean()), float(error))


def means(found: Outcome) -> dict[str, Mean]:
    """Of all images, by what was asked."""
    return {name: mean(values) for name, values in found._asdict().items()}


def differences(found: Outcome, base: Outcome) -> dict[str, Mean]:
    """Those of two networks on the same images: image by image, so that what both find
    hard does not count."""
    pairs = zip(Outcome._fields, found, base, strict=True)
    return {name: mean(1.0 * own - 1.0 * other) for name, own, other in pairs}


def verdict(difference: Mean, larger_is_better: bool) -> str:
    """ "better", "worse" or "open"."""
    if abs(difference.mean) <= DECIDED * difference.error:
        return "open"
    return "better" if (difference.mean > 0) == larger_is_better else "worse"


def outcome(
    logits: Float[np.ndarray, "n classes"],
    dense: Float[np.ndarray, "n classes"],
    labels: np.ndarray,
) -> Outcome:
    """What these logits come to, beside the dense network's."""
    own, theirs = _log_softmax(logits), _log_softmax(dense)
    chosen = own.argmax(-1)
    divergence = (np.exp(theirs) * (theirs - own)).sum(-1)
    return Outcome(chosen == labels, chosen == theirs.argmax(-1), divergence)


def _log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def logits(model: Model, split: data.Split) -> Float[np.ndarray, "n classes"]:
    """Of all images of a split, in their order."""
    found = []
    for batch in data.batches(split, model.images, BATCH):
        found.append(jax.device_get(model(batch.image))[batch.weight > 0])
    return np.concatenate(found)


def dense(name: str, file: str, prep: Preprocessing, num_classes: int) -> Model:
    """The network of public weights; images become inputs as told."""
    made = models.create(name, num_classes)
    arrays, _ = weights.read(str(data_folder() / f"weights/{file}.safetensors"))
    variables = weights.to_variables(arrays, made, prep.shape)
    return folders.of(name, made, prep, {}).replace(made, variables)


@functools.cache
def cifar() -> data.Split:
    """CIFAR-10's 10,000 test images, as JPEG."""
    with np.load(data_folder() / "cifar10" / "cifar10_jpeg75.npz") as file:
        content, ends = file["test_jpeg"].tobytes(), file["test_offsets"]
        labels = file["y_test"].astype(np.int32)

    def load():
        files = [content[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
        images = [Image.open(io.BytesIO(one)).convert("RGB") for one in files]
        return np.stack([np.asarray(image) for image in images])

    return ArraySplit(load, labels, "CIFAR-10's JPEG test images")


@functools.cache
def imagenet() -> data.Split:
    """All validation images at hand."""
    return data.open_source(f"folder:{data_folder()}/imagenet").test


#: What gives the images to judge by.
Judges = Callable[[], data.Split]
