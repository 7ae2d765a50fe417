"""How much memory a walk will take, before it takes any."""

import math

import jax
import jax.numpy as jnp

from ispasp_jax import streams
from ispasp_jax.consumers import branch
from ispasp_jax.models.network import Block, Network, Variables, subtree

#: Square matrices of second moments at a time: two folds, their sum, what is solved.
_MATRICES = 5


def estimate(
    network: Network,
    variables: Variables,
    image: tuple[int, ...],
    count: int,
    *,
    least_squares: bool = True,
    dtype=jnp.float32,
    limit: int | None = None,
) -> int:
    """Bytes that a walk (or, without least squares, curves or a criterion without
    moments) will hold at most, about: activations of all images at a block's input and
    inside it, and second moments.

    Args:
      network: the network.
      variables: its variables, or their shapes.
      image: the shape of one image.
      count: how many images.
      least_squares: as a repair, or for a criterion that needs them: the dense network
        is carried beside, and second moments are summed.
      dtype: of the images.
      limit: `memory` of the walk: what activations may take, on one device.
    """
    carried = 2 if least_squares else 1
    x, activations, moments = jax.ShapeDtypeStruct((1, *image), dtype), 0, 0
    for part in network.chain():
        own, u = subtree(variables, part), x
        pairs = part.module.groups if isinstance(part.module, Block) else ()
        for i, group in enumerate(pairs):
            hidden = streams.shape_hidden(part.module, i, own, u)
            behind = streams.shape_behind(part.module, i, own, hidden)
            held = {id(a): a for a in (x, u, behind)}.values()
            inside = carried * sum(map(_bytes, held)) + _bytes(hidden)
            activations = max(activations, inside)
            kernel = branch(own["params"], group.consumer[0]).get("kernel")
            rows = 0 if kernel is None else math.prod(kernel.shape[:-1])
            moments = max(moments, 8 * _MATRICES * rows**2)
            u = behind
        after = streams.behind(part.module, own, x)
        activations = max(activations, carried * (_bytes(x) + _bytes(after)))
        x = after
    activations *= count
    if limit is not None:
        activations = min(activations, limit)
    return activations + (moments if least_squares else 0)


def _bytes(array: jax.ShapeDtypeStruct) -> int:
    return array.size * array.dtype.itemsize
