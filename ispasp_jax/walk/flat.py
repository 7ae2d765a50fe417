"""A program as the walk reads it: one list of equations, what each value is made and
read by, and which values are alive between two of them.

Scans over layers are opened here: a copy of the body for every layer, whose weights are
slices of the stacked arrays.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax import lax

from ispasp_jax.graph import Traced
from ispasp_jax.graph.program import Equation, Program, Value


@dataclasses.dataclass(eq=False)
class Flat:
    """Equations in order, everything live on one level.

    A place p is the moment at which the equations before the p-th are done.

    Attributes:
      traced: the model.
      equations: in order.
      inputs: live values that are given: the images.
      outputs: values that come back.
      variables: the model's variables by key path.
      layers: the layer of every equation that was copied out of a scan.
    """

    traced: Traced
    equations: tuple[Equation, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    variables: Mapping[str, Value]
    layers: Mapping[Equation, int]

    @functools.cached_property
    def made(self) -> dict[Value, int]:
        """Which equation makes a value."""
        return {
            value: place
            for place, eqn in enumerate(self.equations)
            for value in eqn.outputs
        }

    @functools.cached_property
    def readers(self) -> dict[Value, list[int]]:
        """Which equations read a value, once for each time that they do."""
        result: dict[Value, list[int]] = {}
        for place, eqn in enumerate(self.equations):
            for value in eqn.inputs:
                result.setdefault(value, []).append(place)
        return result

    @functools.cached_property
    def _last(self) -> dict[Value, int]:
        """Up to which place a live value is needed."""
        last = {value: places[-1] for value, places in self.readers.items()}
        last |= dict.fromkeys(self.outputs, len(self.equations))
        return {value: place for value, place in last.items() if value.live}

    def alive(self, place: int) -> list[Value]:
        """Live values that are there at a place and read later, in order of making."""
        return [
            value
            for value, last in self._last.items()
            if self.made.get(value, -1) < place <= last
        ]

    @functools.cached_property
    def _sizes(self) -> list[int]:
        """Bytes that are alive at every place."""
        changes = [0] * (len(self.equations) + 2)
        for value, last in self._last.items():
            size = nbytes(value)
            changes[self.made.get(value, -1) + 1] += size
            changes[last + 1] -= size
        sizes, now = [], 0
        for change in changes[:-1]:
            now += change
            sizes.append(now)
        return sizes

    def size(self, place: int) -> int:
        """Bytes that are alive at a place, of the traced batch."""
        return self._sizes[place]

    def waist(self, after: int, place: int) -> int:
        """The place with the fewest bytes alive behind `after` and up to `place`; of
        several, the last."""
        between = range(place, after, -1)
        return min(between, key=lambda p: self._sizes[p], default=place)


def nbytes(value: Value) -> int:
    """Bytes of a value."""
    return math.prod(value.shape) * value.aval.dtype.itemsize


def flatten(traced: Traced) -> Flat:
    """The traced model's program with its scans opened."""
    whole = traced.program
    count = len(traced.dims)
    variables = dict(zip(traced.dims, whole.inputs[:count], strict=True))
    opener = _Opener()
    opener.copy(whole.equations, {}, None)
    outputs = tuple(opener.now(value) for value in whole.outputs)
    return Flat(
        traced,
        tuple(opener.equations),
        tuple(whole.inputs[count:]),
        outputs,
        variables,
        opener.layers,
    )


def unrolled(whole: Program) -> Program:
    """A program whose live values are marked, with its scans opened."""
    opener = _Opener()
    opener.copy(whole.equations, {}, None)
    outputs = tuple(opener.now(value) for value in whole.outputs)
    return whole._replace(equations=tuple(opener.equations), outputs=outputs)


class _Opener:
    """Copies equations, a scan's body once for every layer."""

    def __init__(self):
        self.equations: list[Equation] = []
        self.layers: dict[Equation, int] = {}
        self._named: dict[Value, Value] = {}  # a scan's outputs

    def now(self, value: Value, env: Mapping[Value, Value] | None = None) -> Value:
        return (env or {}).get(value) or self._named.get(value, value)

    def copy(
        self, equations: Iterable[Equation], env: dict[Value, Value], layer: int | None
    ) -> None:
        for eqn in equations:
            given = tuple(self.now(value, env) for value in eqn.inputs)
            if eqn.name == "scan" and any(value.live for value in eqn.outputs):
                self._open(eqn, given, env, layer)
                continue
            made = eqn.outputs
            if layer is not None:
                made = tuple(_like(value) for value in eqn.outputs)
                env |= zip(eqn.outputs, made, strict=True)
            choice = eqn.choice
            if choice:
                choice = dataclasses.replace(
                    choice,
                    inputs=tuple(self.now(value, env) for value in choice.inputs),
                    outputs=made,
                )
            self._add(
                dataclasses.replace(eqn, inputs=given, outputs=made, choice=choice),
                layer,
            )

    def _add(self, eqn: Equation, layer: int | None) -> None:
        self.equations.append(eqn)
        if layer is not None:
            self.layers[eqn] = layer

    def _open(self, eqn, given, outer, layer) -> None:
        body, length = eqn.bodies[0], eqn.params["length"]
        consts, carried = eqn.params["num_consts"], eqn.params["num_carry"]
        fed = consts + carried
        carry, stacked = list(given[consts:fed]), given[fed:]
        rows: list[list[Value]] = [[] for _ in eqn.outputs[carried:]]
        order = range(length)
        for index in reversed(order) if eqn.params["reverse"] else order:
            inner = index if layer is None else layer
            slices = [
                self._row(eqn, whole, like, index, inner)
                for whole, like in zip(stacked, body.inputs[fed:], strict=True)
            ]
            env = dict(
                zip(body.inputs, (*given[:consts], *carry, *slices), strict=True)
            )
            self.copy(body.equations, env, inner)
            made = [self.now(value, env) for value in body.outputs]
            carry = made[:carried]
            for row, value in zip(rows, made[carried:], strict=True):
                row.insert(0, value) if eqn.params["reverse"] else row.append(value)
        outputs = [*carry, *(self._stack(eqn, row) for row in rows)]
        for value, now in zip(eqn.outputs, outputs, strict=True):
            self._named[value] = now
            if layer is not None:
                outer[value] = now

    def _row(self, eqn, whole: Value, like: Value, index: int, layer: int) -> Value:
        """A layer's slice of what a scan goes through."""
        shape = whole.shape
        cut = Value(whole.aval.update(shape=(1, *shape[1:])))
        row = _like(like)
        cut.live = row.live = whole.live
        cut.origin = row.origin = whole.origin
        cut.dims = [cut.dims[0], *row.dims]
        limits = {
            "start_indices": (index, *(0 for _ in shape[1:])),
            "limit_indices": (index + 1, *shape[1:]),
            "strides": None,
        }
        self._add(_step(lax.slice_p, limits, [whole], cut, eqn), layer)
        self._add(_step(lax.squeeze_p, {"dimensions": (0,)}, [cut], row, eqn), layer)
        return row

    def _stack(self, eqn, rows: Sequence[Value]) -> Value:
        """What a scan gives for every layer, as one array."""
        high = []
        for row in rows:
            value = Value(row.aval.update(shape=(1, *row.shape)))
            value.dims = [value.dims[0], *row.dims]
            value.live, value.origin = row.live, row.origin
            params = {
                "shape": value.shape,
                "broadcast_dimensions": tuple(range(1, len(value.shape))),
                "sharding": None,
            }
            self._add(_step(lax.broadcast_in_dim_p, params, [row], value, eqn), None)
            high.append(value)
        whole = Value(high[0].aval.update(shape=(len(high), *high[0].shape[1:])))
        whole.dims = [whole.dims[0], *high[0].dims[1:]]
        whole.live, whole.origin = high[0].live, high[0].origin
        self._add(_step(lax.concatenate_p, {"dimension": 0}, high, whole, eqn), None)
        return whole


def _step(primitive, params: dict[str, Any], given, made: Value, eqn) -> Equation:
    return Equation(primitive, params, tuple(given), (made,), eqn.where)


def _like(value: Value) -> Value:
    """A value of the same kind, with the same channels."""
    made = Value(value.aval)
    made.dims, made.live, made.origin = value.dims, value.live, value.origin
    return made


def arrays(flat: Flat, variables: Any) -> dict[Value, jax.Array]:
    """A model's variables as the flat program's."""
    leaves = jax.tree.leaves(variables)
    return dict(zip(flat.variables.values(), leaves, strict=True))
