"""A public ResNet for CIFAR-10, its images, and its way through them; from the folder
that ISPASP_DATA names.
"""

import flax.linen as nn
import rows
from ispasp_jax.streams import Stream

from ispasp_jax import data, models, streams, weights


def load(name: str) -> tuple[nn.Module, dict, data.Source]:
    """The network, its variables, and CIFAR-10."""
    folder = rows.data_folder()
    source = data.open_source(f"npz:{folder}/cifar10/cifar10_lossless.npz")
    network = models.create(name, 10)
    arrays, _ = weights.read(str(folder / f"weights/cifar10_{name}.safetensors"))
    variables = weights.to_variables(arrays, network, source.preprocessing.shape)
    return network, variables, source


def calibrate(name: str, images: int) -> tuple[models.Network, dict, Stream]:
    """The network, its variables, and a stream of training images before it."""
    network, variables, source = load(name)
    chosen = data.calibration_indices(source.train, images, 0)
    found = data.batches(source.train, source.preprocessing, 250, indices=chosen)
    return network, variables, streams.start(batch.image for batch in found)
