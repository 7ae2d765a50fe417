"""A public ResNet for CIFAR-10, its images, and its way through them; from the folder
that ISPASP_DATA names.
"""

from collections.abc import Iterator

import flax.linen as nn

from benchmarks.benchmark import data_folder
from ispasp_jax import data, graph, models, weights
from ispasp_jax.walk import flat, sites, steps, streams
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import Stream


def load(name: str) -> tuple[nn.Module, dict, data.Source]:
    """The network, its variables, and CIFAR-10."""
    folder = data_folder()
    source = data.open_source(f"npz:{folder}/cifar10/cifar10_lossless.npz")
    network = models.create(name, 10)
    arrays, _ = weights.read(str(folder / f"weights/cifar10_{name}.safetensors"))
    variables = weights.to_variables(arrays, network, source.preprocessing.shape)
    return network, variables, source


def consumers(name: str, images: int) -> Iterator[tuple[str, Site, Stream, Stream]]:
    """Every inner group and its consumer: training images on the dense network before
    it, and behind it."""
    network, variables, source = load(name)
    chosen = data.calibration_indices(source.train, images, 0)
    found = data.batches(source.train, source.preprocessing, 250, indices=chosen)
    batches = [batch.image for batch in found]
    traced = graph.trace(network, variables, batches[0])
    program = flat.flatten(traced)
    inner = graph.scope(traced.groups, "inner", ())
    here = streams.start(program, flat.arrays(program, variables), batches)
    for site, (group,) in steps.readers(sites.suited(program), inner).own.items():
        here = here.hidden(site.place)
        yield group.name, site, here, here.to(site.end, [site.target])
