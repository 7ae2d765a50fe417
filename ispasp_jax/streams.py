"""The calibration images' activations on their way through a network, part after part
and, inside a block, pair after pair.

Every step is one jitted function of a static module, so blocks of equal shape compile
once; channels that a cut took away are zeros until the walk leaves the block, so that
blocks cut to different widths stay of equal shape, too.

With a limit on memory, activations that would exceed it are `Lazy`: hidden ones are
computed again whenever they are read, inputs of blocks and pairs lie on the host. The
same functions run on the same numbers, so the results are the same, bit for bit.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ispasp_jax import devices
from ispasp_jax import groups as rewriter
from ispasp_jax.errors import InputError
from ispasp_jax.models.network import Block, Variables

#: Calibration batches, preprocessed, (n, height, width, channels) each.
Images = Iterable[Float[Array, "_ ..."] | Float[np.ndarray, "_ ..."]]

#: A batch each: a list of what is there, or Lazy.
Activations = Sequence[Float[Array, "n ..."]]


class Lazy(Sequence):
    """Batches that are made each time they are read, and take no device memory.

    Attributes:
      like: shape and dtype of each.
    """

    def __init__(self, make: Callable[[int], Array], count: int, like):
        self._make, self._count, self.like = make, count, like

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: int) -> Array:
        return self._make(range(self._count)[k])


def across(weight: Float[Array, " n"], x: Float[Array, "n ..."]) -> Array:
    """The examples' weights in a shape that multiplies x."""
    return weight.reshape([-1] + [1] * (x.ndim - 1))


def width(activations: Activations) -> int:
    """How many channels they have."""
    return _like(activations).shape[-1]


def positions(activations: Activations) -> tuple[int, ...]:
    """The shape of an example without its channels."""
    return _like(activations).shape[1:-1]


class Stream(NamedTuple):
    """Where a network's calibration activations are.

    Attributes:
      module: the part that they enter.
      own: its variables, at its full width.
      x: activations at the part's input, a batch each.
      weight: of every example; 0 where it is padding.
      u: in a block, activations at the present pair's input.
      memory: bytes of activations that it may keep on all devices together; None is no
        limit.
      name: the part's, for errors.

    Whatever it makes and keeps is checked: NaN or infinity among a part's activations
    raise FloatingPointError.
    """

    module: nn.Module
    own: Variables
    x: Activations
    weight: list[Float[Array, " n"]]
    u: Activations
    memory: int | None = None
    name: str = ""

    def enter(self, module: nn.Module, own: Variables, name: str = "") -> "Stream":
        """The same activations at the input of another part."""
        return self._replace(module=module, own=own, u=self.x, name=name)

    def hidden(self, i: int) -> Activations:
        """The i-th hidden activations; computed at each reading where they and what
        their consumer makes of them exceed the memory.
        """

        def make(u):
            return _hidden(self.module, i, self.own, u)

        if self.memory is not None:
            like = self._like_hidden(i)
            behind = self._like_behind(i, like)
            if not self._has_room(like, behind):
                u = self.u
                return Lazy(lambda k: make(u[k]), len(u), like)
        return self._checked(make(u) for u in self.u)

    def consume(self, i: int, hidden: Activations) -> "Stream":
        """The stream behind the i-th consumer."""
        made = (_consumer(self.module, i, self.own, h) for h in hidden)
        like = functools.partial(self._like_behind, i, _like(hidden))
        return self._replace(u=self._keep(made, like, hidden))

    def advance(
        self, i: int, hidden: Activations, support: Bool[np.ndarray, " d"]
    ) -> "Stream":
        """The stream behind the i-th pair, nothing coming from channels outside the
        support: at the next pair, or behind the last one at the block's output, in one
        program, as the dense network has it.
        """
        masked = self.masked(i, support)
        if i < len(self.module.groups) - 1:
            return masked.consume(i, hidden)._replace(own=self.own)
        pairs = zip(self.x, hidden, strict=True)
        made = (_finish(self.module, masked.own, x, h) for x, h in pairs)

        def like():
            x, h = _like(self.x), _like(hidden)
            return _finish.eval_shape(self.module, self.own, x, h)

        y = self._keep(made, like, hidden)
        return self._replace(x=y, u=y)

    def masked(self, i: int, support: Bool[np.ndarray, " d"]) -> "Stream":
        """The stream with variables whose i-th group has zeros outside the support:
        cheaper than zeros in every image's activations, and the consumer gives the
        same.
        """
        return self._replace(own=_masked(self.module, i, self.own, support))

    def consumed(self, i: int, h: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """What the i-th consumer makes of any hidden activations."""
        return _consumer(self.module, i, self.own, h)

    def pass_pair(self, i: int) -> "Stream":
        """The stream behind the i-th consumer, where nobody asks for the hidden
        activations: they are dropped batch by batch.
        """
        hidden = (_hidden(self.module, i, self.own, u) for u in self.u)
        made = (_consumer(self.module, i, self.own, h) for h in hidden)

        def like():
            return self._like_behind(i, self._like_hidden(i))

        return self._replace(u=self._keep(made, like))

    def leave(self) -> "Stream":
        """The stream at the part's output."""
        if not isinstance(self.module, Block):
            return self.through()
        pairs = zip(self.x, self.u, strict=True)
        made = (_join(self.module, self.own, x, u) for x, u in pairs)

        def like():
            x, u = _like(self.x), _like(self.u)
            return _join.eval_shape(self.module, self.own, x, u)

        y = self._keep(made, like)
        return self._replace(x=y, u=y)

    def through(self) -> "Stream":
        """The stream at the part's output, all pairs at once."""
        made = (_apply(self.module, self.own, x) for x in self.x)

        def like():
            return _apply.eval_shape(self.module, self.own, _like(self.x))

        y = self._keep(made, like)
        return self._replace(x=y, u=y)

    def _like_hidden(self, i: int) -> jax.ShapeDtypeStruct:
        return _hidden.eval_shape(self.module, i, self.own, _like(self.u))

    def _like_behind(self, i: int, hidden) -> jax.ShapeDtypeStruct:
        return _consumer.eval_shape(self.module, i, self.own, hidden)

    def _keep(
        self,
        made: Iterator[Array],
        like: Callable[[], jax.ShapeDtypeStruct],
        beside: Activations = (),
    ) -> Activations:
        """All that is made: on the devices where there is room, else on the host."""
        if self.memory is None or self._has_room(like(), beside=beside):
            return self._checked(made)
        finite: list[Array] = []
        kept = _on_host(_watched(made, finite), like())
        self._refuse_unless(finite)
        return kept

    def _checked(self, made: Iterable[Array]) -> list[Array]:
        """All that is made."""
        finite: list[Array] = []
        kept = list(_watched(made, finite))
        self._refuse_unless(finite)
        return kept

    def _refuse_unless(self, finite: list[Array]) -> None:
        if not all(jax.device_get(finite)):
            raise FloatingPointError(
                f"part {self.name!r}: its activations hold NaN or infinity, so nothing "
                "that follows means anything; check the weights and the calibration "
                "images (their mean and std, and whether they overflow in half "
                "precision)."
            )

    def _has_room(self, *new: jax.ShapeDtypeStruct, beside: Activations = ()) -> bool:
        """Whether batches of these shapes fit in beside what is there."""
        there = {id(a): a for a in (self.x, self.u, beside) if isinstance(a, list)}
        batch = sum(map(_bytes, new)) + sum(_bytes(a[0]) for a in there.values() if a)
        return batch * len(self.weight) <= self.memory


def start(
    images: Iterable,
    mesh: jax.sharding.Mesh | None = None,
    memory: int | None = None,
) -> Stream:
    """Calibration batches at the network's input, all of the first one's size: a longer
    one is split, a short one padded with examples that weigh nothing. With a mesh (of
    devices.py) each is spread over its devices. With a limit on memory (Stream's) they
    lie on the host.

    Raises:
      InputError: no batches.
    """
    weight = []

    def placed():
        size = None
        for array in images:
            size = size or len(array)
            for low in range(0, len(array), size):
                rows = jnp.asarray(array[low : low + size])
                short = size - len(rows)
                real = (jnp.arange(size) < len(rows)).astype(jnp.float32)
                pad = [(0, short)] + [(0, 0)] * (rows.ndim - 1)
                # Copies of an example: a network may not be finite on zeros.
                rows = jnp.pad(rows, pad, "edge") if short else rows
                rows, real = devices.place(mesh, (rows, real))
                weight.append(real)
                yield rows

    x = list(placed()) if memory is None else _on_host(placed())
    if not x:
        raise InputError("no calibration images: expected at least one batch.")
    return Stream(None, {}, x, weight, x, memory)


def behind(module: nn.Module, own: Variables, x) -> jax.ShapeDtypeStruct:
    """Shape and dtype of what a part makes of an input of x's."""
    return _apply.eval_shape(module, own, x)


def shape_hidden(block: Block, i: int, own: Variables, u) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the i-th hidden activations, from the pair's input's."""
    return _hidden.eval_shape(block, i, own, u)


def shape_behind(block: Block, i: int, own: Variables, h) -> jax.ShapeDtypeStruct:
    """Shape and dtype of what the i-th consumer makes of hidden activations."""
    return _consumer.eval_shape(block, i, own, h)


def share(memory: int | None, mesh: jax.sharding.Mesh | None, count: int) -> int | None:
    """What each of `count` streams may keep, of so many bytes on every device."""
    if memory is None:
        return None
    return memory * (1 if mesh is None else mesh.size) // count


def _watched(arrays: Iterable[Array], finite: list[Array]) -> Iterator[Array]:
    """The arrays; whether each is finite is noted, without waiting for it."""
    for array in arrays:
        finite.append(_is_finite(array))
        yield array


@jax.jit
def _is_finite(x):
    return jnp.isfinite(x).all()


def _like(activations: Activations) -> jax.ShapeDtypeStruct | Array:
    """Something of a batch's shape and dtype, without computing any."""
    return activations.like if isinstance(activations, Lazy) else activations[0]


def _bytes(array: jax.ShapeDtypeStruct | Array) -> int:
    return array.size * array.dtype.itemsize


def _on_host(arrays: Iterable[Array], like=None) -> Lazy:
    """Arrays whose every device's rows lie on the host until they are read."""
    kept = []
    for array in arrays:
        rows = [
            (shard.device, np.asarray(shard.data)) for shard in array.addressable_shards
        ]
        kept.append((array.shape, array.sharding, rows))
        like = like or jax.ShapeDtypeStruct(array.shape, array.dtype)

    def back(k):
        shape, sharding, rows = kept[k]
        parts = [jax.device_put(data, device) for device, data in rows]
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return Lazy(back, len(kept), like)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _hidden(block, i, own, u):
    return block.apply(own, u, i, method="hidden")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _consumer(block, i, own, h):
    return block.apply(own, h, i, method="consumer")


@functools.partial(jax.jit, static_argnums=0)
def _finish(block, own, x, h):
    u = block.apply(own, h, len(block.groups) - 1, method="consumer")
    return block.apply(own, x, u, method="join")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _masked(block, i, own, support):
    return rewriter.gate(own, block.groups[i], support)


@functools.partial(jax.jit, static_argnums=0)
def _join(block, own, x, u):
    return block.apply(own, x, u, method="join")


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, own, x):
    return module.apply(own, x)
