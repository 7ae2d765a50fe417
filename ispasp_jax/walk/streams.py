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
from jaxtyping import Array, Float

from ispasp_jax.graph.program import AnyArray, Value
from ispasp_jax.walk.batches import (
    Activations,
    Images,
    Lazy,
    is_finite,
    kept,
    lazily,
    padded,
    to_host,
)
from ispasp_jax.walk.flat import Flat, nbytes
from ispasp_jax.walk.pieces import Piece, forward, piece

Weights = Mapping[Value, AnyArray]


#: What is called with (batch, value) when a value is made.
Watch = Mapping[Value, Callable[[int, Array], None]]


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
      real: 0 at places of the inputs' second dimension that are padding, else 1 (see
        places.py); None where no place is.
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
    real: list[Float[Array, "n t"]] | None = None
    spends: bool = False

    def own(self) -> "Stream":
        """The same, to be used up on its way: a batch's memory is free for what is
        made of it, and a stream that has been carried on is of no use any more."""
        live = {value: kept(batches) for value, batches in self.live.items()}
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
        live = there._lazy(way) if lazy else there._made(way, way.new)
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

    def run(self, step: Piece, k: int, start: int = 0) -> tuple[list[Array], Array]:
        """A piece's values for a batch, and whether those from `start` on seem finite;
        see `forward`."""
        given = [self.live[value][k] for value in step.given]
        return forward(step, start)(given, weights_of(step, self.weights))

    def _made(self, way: "_Way", start: int = 0) -> dict[Value, Activations]:
        """What is new, batch by batch: on the devices where there is room, else on the
        host. Values from `start` on are checked."""
        step, new = way.step, way.step.wanted[: way.new]
        if not step.wanted:
            return {}
        spent = self._spent(way.passed)

        def batches() -> Iterator[list[Array]]:
            before, nothing = None, jnp.zeros(0)
            for k in range(len(self.weight)):
                made, sound = self.run(step, k, start)
                for value, array in zip(step.wanted, made, strict=True):
                    if value in way.watch:
                        way.watch[value](k, array)
                for column in spent:
                    column[k] = nothing
                yield made[: way.new]
                if before:  # a batch behind, so that devices do not wait
                    self.check(*before)
                before = made[start:], sound
            if before:
                self.check(*before)

        columns: list[Activations]
        if self._has_room([*way.passed, *new]):
            columns = [[*column] for column in zip(*batches(), strict=True)]
        else:
            held = [[*map(to_host, batch)] for batch in batches()]
            columns = [lazily(column) for column in zip(*held, strict=True)]
        return dict(zip(new, columns, strict=True))

    def _spent(self, passed: Iterable[Value]) -> list[list[Array]]:
        """The batches that are given up on the way, one after the other."""
        ended = [self.live[value] for value in self.live if value not in passed]
        return [own for own in ended if self.spends and not isinstance(own, Lazy)]

    def check(self, made: Sequence[Array], sound: Array) -> None:
        """Refuses NaN and infinity; `sound` says whether the sums are finite."""
        if not sound and not all(map(is_finite, made)):
            raise FloatingPointError(
                f"{self.name}: its activations hold NaN or infinity, so nothing that "
                "follows means anything; check the weights and the calibration images "
                "(their mean and std, and whether they overflow in half precision)."
            )

    def _lazy(self, way: "_Way") -> dict[Value, Activations]:
        """What is new, computed whenever it is read; of the last batch it is kept."""
        last: dict[int, list[Array]] = {}

        def made(which: int, k: int) -> Array:
            if k not in last:
                last.clear()
                last[k] = self.run(way.step, k, len(way.step.wanted))[0]
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
    batches, weight = padded(images, mesh, to_host if held else lambda array: array)
    columns = zip(flat.inputs, zip(*batches, strict=True), strict=True)
    live = {value: lazily(all_) if held else [*all_] for value, all_ in columns}
    return Stream(flat, weights, 0, live, weight, memory)
