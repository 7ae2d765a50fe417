"""The calibration images' live values on their way through a network.

A stream stands at a place of the program and holds what is alive there, batch by batch;
`to` carries it on, one jitted piece for all batches. Channels that a cut took away are
zeros, so that blocks cut to different widths compile once.

With a limit on memory, what would exceed it is computed again whenever it is read, and
what that is computed from lies on the host. The same functions run on the same numbers,
so the results are the same, bit for bit.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ispasp_jax import devices
from ispasp_jax.errors import InputError
from ispasp_jax.graph.program import AnyArray, Value
from ispasp_jax.walk.flat import Flat, nbytes
from ispasp_jax.walk.pieces import Piece, checked, forward, piece

#: Calibration batches, preprocessed: an array each, or a tuple where the model takes
#: several.
Images = Iterable[Any]

Weights = Mapping[Value, AnyArray]


class Lazy:
    """Batches that are made each time they are read, and take no device memory."""

    def __init__(self, make: Callable[[int], Array], count: int):
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: int) -> Array:
        return self._make(range(self._count)[k])

    def __iter__(self) -> Iterator[Array]:
        return map(self._make, range(self._count))


#: A batch each: what is there, or what is made when it is read.
Activations = list[Array] | Lazy


#: What is called with (batch, value) when a value is made.
Watch = Mapping[Value, Callable[[int, Array], None]]


def across(weight: Float[Array, " n"], x: Float[Array, "n ..."]) -> Array:
    """The examples' weights in a shape that multiplies x."""
    return weight.reshape([-1] + [1] * (x.ndim - 1))


class Stream(NamedTuple):
    """Where a network's calibration activations are.

    Attributes:
      flat: the program.
      weights: its variables, at full width.
      place: the equations before it are done.
      live: what is alive there, a batch each.
      weight: of every example; 0 where it is padding.
      memory: bytes of activations that it may keep on all devices together; None is no
        limit.
      name: what is being computed, for errors.
      spends: whether it gives each batch up as soon as what follows it is made; see
        `own`.

    Where it halts with all that later equations depend on, NaN or infinity raise
    FloatingPointError. What it makes for a consumer is not looked at again: whoever
    reads it sums it, and what the consumer makes of it is in the next halt.
    """

    flat: Flat
    weights: Weights
    place: int
    live: Mapping[Value, Activations]
    weight: list[Float[Array, " n"]]
    memory: int | None = None
    name: str = "the input"
    spends: bool = False

    def own(self) -> "Stream":
        """The same, to be used up on its way: a batch's memory is free for what is
        made of it, and a stream that has been carried on is of no use any more."""
        live = {
            value: batches if isinstance(batches, Lazy) else [*batches]
            for value, batches in self.live.items()
        }
        return self._replace(live=live, spends=True)

    def named(self, name: str) -> "Stream":
        """The same, on its way to something else."""
        return self._replace(name=name)

    def to(
        self,
        place: int,
        keep: Iterable[Value] = (),
        watch: Watch | None = None,
    ) -> "Stream":
        """The stream at a later place.

        Args:
          place: where.
          keep: values that are needed although no equation reads them any more.
          watch: what is called with (batch, value) for values made on the way.
        """
        way = self._way(place, keep, watch)
        return self._replace(place=place, live=way.passed | self._made(way))

    def hidden(self, place: int, watch: Watch | None = None) -> "Stream":
        """The stream before a consumer, by way of the waist on the way there; where
        what is alive there exceeds the memory, it is computed at each reading."""
        waist = self.flat.waist(self.place, place)
        there = self.to(waist, watch=watch) if waist > self.place else self
        way = there._way(place, (), watch)
        on_the_way = place > there.place and not way.watch
        lazy = on_the_way and not self._has_room(self.flat.alive(place))
        live = there._lazy(way) if lazy else there._made(way, checks=False)
        return there._replace(place=place, live=way.passed | live)

    def _way(self, place: int, keep: Iterable[Value], watch: Watch | None) -> "_Way":
        """What there is to do up to a place."""
        wanted = [*dict.fromkeys([*self.flat.alive(place), *keep])]
        passed = {v: self.live[v] for v in wanted if v in self.live}
        new = [value for value in wanted if value not in passed]
        made = self.flat.made
        watch = {
            value: seen
            for value, seen in (watch or {}).items()
            if self.place <= made.get(value, -1) < place
        }
        extra = [value for value in watch if value not in new]
        step = piece(self.flat, [*new, *extra], self.live)
        return _Way(passed, step, len(new), watch)

    def _run(self, function: Callable[..., Any], step: Piece, k: int) -> Any:
        """What a function of a piece's inputs and weights gives for a batch."""
        given = [self.live[value][k] for value in step.given]
        return function(given, weights_of(step, self.weights))

    def _made(self, way: "_Way", checks: bool = True) -> dict[Value, Activations]:
        """What is new, batch by batch: on the devices where there is room, else on the
        host."""
        step, new = way.step, way.step.wanted[: way.new]
        if not step.wanted:
            return {}
        function = checked(step) if checks else forward(step)
        sound: list[Array] = []

        def batches() -> Iterator[list[Array]]:
            for k in range(len(self.weight)):
                made, finite = self._run(function, step, k)
                sound.append(finite)
                for value, array in zip(step.wanted, made, strict=True):
                    if value in way.watch:
                        way.watch[value](k, array)
                self._spend(way.passed, k)
                yield made[: way.new]
                jax.block_until_ready(sound[-2:-1])  # what is spent is free when read

        columns: list[Activations]
        if self._has_room([*way.passed, *new]):
            columns = [[*column] for column in zip(*batches(), strict=True)]
        else:
            held = [[*map(_to_host, batch)] for batch in batches()]
            columns = [_lazily([*column]) for column in zip(*held, strict=True)]
        if not all(jax.device_get(sound)) and not all(map(_is_finite, columns)):
            raise FloatingPointError(
                f"{self.name}: its activations hold NaN or infinity, so nothing that "
                "follows means anything; check the weights and the calibration images "
                "(their mean and std, and whether they overflow in half precision)."
            )
        return dict(zip(new, columns, strict=True))

    def _spend(self, kept: Iterable[Value], k: int) -> None:
        """Gives up a batch of what is not kept, where that is asked for."""
        for value, batches in self.live.items() if self.spends else ():
            if value not in kept and not isinstance(batches, Lazy):
                batches[k] = jnp.zeros(0)

    def _lazy(self, way: "_Way") -> dict[Value, Activations]:
        """What is new, computed whenever it is read; of the last batch it is kept."""
        last: dict[int, list[Array]] = {}

        def made(which: int, k: int) -> Array:
            if k not in last:
                last.clear()
                last[k] = self._run(forward(way.step), way.step, k)[0]
            return last[k][which]

        return {
            value: Lazy(functools.partial(made, which), len(self.weight))
            for which, value in enumerate(way.step.wanted)
        }

    def _has_room(self, values: Iterable[Value]) -> bool:
        if self.memory is None:
            return True
        there = {v for v, a in self.live.items() if not isinstance(a, Lazy)}
        size = sum(map(nbytes, {*there, *values}))
        return size * len(self.weight) <= self.memory


class _Way(NamedTuple):
    """What leads a stream from one place to another.

    Attributes:
      passed: what is alive at both.
      step: what is computed.
      new: how many of the step's values, the first, are alive behind it.
      watch: what is called with the step's values.
    """

    passed: dict[Value, Activations]
    step: Piece
    new: int
    watch: Watch


def _is_finite(batches: Activations) -> bool:
    return all(
        bool(jnp.isfinite(array).all())
        for array in batches
        if jnp.issubdtype(array.dtype, jnp.inexact)
    )


def weights_of(step: Piece, weights: Weights) -> list[Any]:
    """The weights that a piece reads."""
    return [weights.get(value, value.constant) for value in step.weights]


def start(
    flat: Flat,
    weights: Weights,
    images: Images,
    mesh: jax.sharding.Mesh | None = None,
    memory: int | None = None,
) -> Stream:
    """Calibration batches at the network's input; see `padded`."""
    held = memory is not None
    batches, weight = padded(images, mesh, _to_host if held else lambda array: array)
    columns = zip(flat.inputs, zip(*batches, strict=True), strict=True)
    live = {value: _lazily(all_) if held else [*all_] for value, all_ in columns}
    return Stream(flat, weights, 0, live, weight, memory)


def padded(
    images: Images,
    mesh: jax.sharding.Mesh | None = None,
    hold: Callable[[Array], Any] = lambda array: array,
) -> tuple[list[tuple[Any, ...]], list[Float[Array, " n"]]]:
    """Batches all of the first one's size, as `examples` has it: a longer one is split,
    a short one padded with examples that weigh nothing. With a mesh (of devices.py)
    each is spread over its devices; `hold` says what is kept of each array.

    Raises:
      InputError: no batches.
    """
    result, weight, size = [], [], None
    for batch in images:
        arrays = batch if isinstance(batch, tuple) else (batch,)
        size = size or examples(batch, mesh)
        for low in range(0, len(arrays[0]), size):
            rows = [jnp.asarray(array[low : low + size]) for array in arrays]
            short = size - len(rows[0])
            real = (jnp.arange(size) < len(rows[0])).astype(jnp.float32)
            if short:  # copies of an example: a network may not be finite on zeros
                rows = [
                    jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1), "edge")
                    for x in rows
                ]
            rows, real = devices.place(mesh, (rows, real))
            weight.append(real)
            result.append(tuple(map(hold, rows)))
    if not result:
        raise InputError("no calibration images: expected at least one batch.")
    return result, weight


def examples(batch: Any, mesh: jax.sharding.Mesh | None = None) -> int:
    """How many examples batches have whose first one this is: as many for each of the
    mesh's devices."""
    count = len(batch[0] if isinstance(batch, tuple) else batch)
    return count if mesh is None else -(-count // mesh.size) * mesh.size


def share(memory: int | None, mesh: jax.sharding.Mesh | None, count: int) -> int | None:
    """What each of `count` streams may keep, of so many bytes on every device."""
    if memory is None:
        return None
    return memory * (1 if mesh is None else mesh.size) // count


def _lazily(batches: Sequence[Callable[[], Array]]) -> Lazy:
    """Batches that lie on the host."""
    return Lazy(lambda k: batches[k](), len(batches))


def _to_host(array: Array) -> Callable[[], Array]:
    """An array whose every device's rows lie on the host until it is read."""
    shape, sharding = array.shape, array.sharding
    rows = [
        (shard.device, np.asarray(shard.data)) for shard in array.addressable_shards
    ]

    def back() -> Array:
        parts = [jax.device_put(data, device) for device, data in rows]
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return back
