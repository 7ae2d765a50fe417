"""The calibration images' activations on their way through a network, part after part
and, inside a block, pair after pair.

Every step is one jitted function of a static module, so blocks of equal shape compile
once; channels that a cut took away are zeros until the walk leaves the block, so that
blocks cut to different widths stay of equal shape, too.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ispasp_jax import devices
from ispasp_jax.models.network import Block, Variables

Activations = list[Float[Array, "n ..."]]


class Stream(NamedTuple):
    """Where a network's calibration activations are.

    Attributes:
      module: the part that they enter.
      own: its variables, at its full width.
      x: activations at the part's input, a batch each.
      weight: of every example; 0 where it is padding.
      u: in a block, activations at the present pair's input.
    """

    module: nn.Module
    own: Variables
    x: Activations
    weight: list[Float[Array, " n"]]
    u: Activations

    def enter(self, module: nn.Module, own: Variables) -> "Stream":
        """The same activations at the input of another part."""
        return Stream(module, own, self.x, self.weight, self.x)

    def hidden(self, i: int) -> Activations:
        """The i-th hidden activations."""
        return [_hidden(self.module, i, self.own, u) for u in self.u]

    def consume(
        self, i: int, hidden: Activations, mask: Float[Array, " d"] | None = None
    ) -> "Stream":
        """The stream behind the i-th consumer, with channels masked before it."""
        u = [_consumer(self.module, i, self.own, h, mask) for h in hidden]
        return self._replace(u=u)

    def leave(self) -> "Stream":
        """The stream at the part's output."""
        if isinstance(self.module, Block):
            pairs = zip(self.x, self.u, strict=True)
            y = [_join(self.module, self.own, x, u) for x, u in pairs]
        else:
            y = [_apply(self.module, self.own, x) for x in self.x]
        return self._replace(x=y, u=y)

    def through(self) -> "Stream":
        """The stream at the part's output, all pairs at once."""
        y = [_apply(self.module, self.own, x) for x in self.x]
        return self._replace(x=y, u=y)


def start(images: Iterable, mesh: jax.sharding.Mesh | None = None) -> Stream:
    """Calibration batches at the network's input, all of the first one's size: a longer
    one is split, a short one padded with examples that weigh nothing. With a mesh (of
    devices.py) each is spread over its devices.

    Raises:
      ValueError: no images.
    """
    x, weight, size = [], [], None
    for array in images:
        size = size or len(array)
        for low in range(0, len(array), size):
            rows = jnp.asarray(array[low : low + size])
            short = size - len(rows)
            real = (jnp.arange(size) < len(rows)).astype(jnp.float32)
            pad = [(0, short)] + [(0, 0)] * (rows.ndim - 1)
            rows = jnp.pad(rows, pad) if short else rows
            rows, real = devices.place(mesh, (rows, real))
            x.append(rows)
            weight.append(real)
    if not x:
        raise ValueError("no calibration images: expected at least one batch.")
    return Stream(None, {}, x, weight, x)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _hidden(block, i, own, u):
    return block.apply(own, u, i, method="hidden")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _consumer(block, i, own, h, mask):
    h = h if mask is None else h * mask.astype(h.dtype)
    return block.apply(own, h, i, method="consumer")


@functools.partial(jax.jit, static_argnums=0)
def _join(block, own, x, u):
    return block.apply(own, x, u, method="join")


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, own, x):
    return module.apply(own, x)
