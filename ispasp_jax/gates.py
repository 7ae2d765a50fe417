"""What the loss says of a group's channels, for the criteria that need labels.

    L(z) = an example's cross-entropy with every channel c of the group times z_c

is differentiated at z = 1, each example on its own: z = 1 is the network as it is,
z_c = 0 the network without the channel, so the gradient and the curvature along 1 are
what first and second order say of removing channels.

L is the rest of the network: the consumer, later pairs, the join, later parts. It
differs at every group, so each costs one compilation of all that is behind it, and a
batch costs a forward and a backward pass through that (curvature: about twice as much).
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ispasp_jax import devices, inputs, streams
from ispasp_jax.errors import InputError
from ispasp_jax.models.network import Network, Variables, subtree
from ispasp_jax.streams import Activations, Stream

#: Of the calibration batches, (n,) each.
Labels = Iterable[Int[Array, " _"] | Int[np.ndarray, " _"]]


class Rest(NamedTuple):
    """The network behind a part, and what it should say.

    Attributes:
      modules: the later parts.
      variables: their own variables.
      labels: batch by batch as the stream's activations, padding included.
    """

    modules: tuple[nn.Module, ...]
    variables: tuple[Variables, ...]
    labels: list[Int[Array, " n"]]


def aligned(
    labels: Labels | None,
    classes: int,
    stream: Stream,
    mesh: jax.sharding.Mesh | None,
) -> list[Int[Array, " n"]]:
    """The labels, batch by batch as the stream's activations.

    Raises:
      InputError: there are none, or not one of so many classes for each image, in
        batches as long as theirs.
    """
    if labels is None:
        raise InputError(
            "this criterion differentiates the loss and so needs labels; give `labels`,"
            " batches of them as long as those of the images, or choose a criterion "
            "that needs none."
        )
    found = streams.start(inputs.checked_labels(labels, classes), mesh)
    real, expected = ([int(w.sum()) for w in s.weight] for s in (found, stream))
    if real != expected:
        raise InputError(
            f"labels come in batches of {real}, images in batches of {expected}; give "
            "one label for each image, in the same batches."
        )
    return found.x


def rest(
    network: Network, variables: Variables, index: int, labels: list[Int[Array, " n"]]
) -> Rest:
    """What is behind the network's part of that index."""
    parts = network.chain()[index + 1 :]
    modules = tuple(part.module for part in parts)
    return Rest(modules, tuple(subtree(variables, part) for part in parts), labels)


def derivatives(
    i: int, stream: Stream, hidden: Activations, rest: Rest, curvature: bool
) -> tuple[Float[Array, "images d"], Float[Array, "images d"] | None]:
    """∂L/∂z and, if asked for, (∂²L/∂z²) · 1 of every calibration image.

    Args:
      i: which pair.
      stream: the block as it is, activations at the pair's input.
      hidden: the group's activations.
      rest: the network behind the block.
      curvature: whether the second is asked for.
    """
    found = []
    for h, x, labels, weight in zip(
        hidden, stream.x, rest.labels, stream.weight, strict=True
    ):
        pair = _derivatives(
            i, curvature, stream.module, rest.modules, stream.own, rest.variables,
            h, x, labels,
        )  # fmt: skip
        found.append([devices.rows(each, weight) for each in pair])
    first, *second = (jnp.concatenate(batches) for batches in zip(*found, strict=True))
    return first, second[0] if second else None


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _derivatives(i, curvature, block, modules, own, variables, h, x, labels):
    def loss(z):
        u = h * z.reshape(len(z), *[1] * (h.ndim - 2), -1)
        u = block.apply(own, u, i, method="consumer")
        for j in range(i + 1, len(block.groups)):
            u = block.apply(own, u, j, method="hidden")
            u = block.apply(own, u, j, method="consumer")
        y = block.apply(own, x, u, method="join")
        for module, arrays in zip(modules, variables, strict=True):
            y = module.apply(arrays, y)
        return optax.softmax_cross_entropy_with_integer_labels(y, labels).sum()

    one = jnp.ones((len(h), h.shape[-1]), h.dtype)
    with jax.default_matmul_precision("highest"):
        if curvature:  # examples do not mix, so each gets its own Hessian's product
            return jax.jvp(jax.grad(loss), (one,), (one,))
        return (jax.grad(loss)(one),)
