"""Pieces of a program as jitted functions, one for all pieces that read alike.

What a piece computes follows from its equations, so two of them with the same text
(primitives, parameters, numbered values, shapes) share one compiled program: blocks of
equal shape, networks pruned twice, the dense network and the pruned one.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax.graph.program import Equation, Value
from ispasp_jax.walk.flat import Flat


class Piece(NamedTuple):
    """Some values as a function of others and of weights.

    Attributes:
      equations: what is computed, in order.
      given: live values that it reads.
      weights: variables and constants that it reads.
      wanted: what it gives.
      text: the same for all pieces that compute the same.
    """

    equations: tuple[Equation, ...]
    given: tuple[Value, ...]
    weights: tuple[Value, ...]
    wanted: tuple[Value, ...]
    text: str

    def run(
        self, given: Sequence[Any], weights: Sequence[Any], raised: bool = False
    ) -> list[Any]:
        """What it gives; traceable. In single precision, if `raised`."""
        env = dict(zip((*self.given, *self.weights), (*given, *weights), strict=True))
        return evaluate(self.equations, self.wanted, env, raised)


def evaluate(
    equations: Iterable[Equation],
    wanted: Iterable[Value],
    env: dict[Value, Any],
    raised: bool = False,
) -> list[Any]:
    """Computes equations one by one, from what is known; `env` is added to.

    Args:
      equations: in order.
      wanted: what to give.
      env: what is known.
      raised: compute in single precision what is in half.
    """

    def read(value: Value):
        array = env[value] if value in env else value.constant
        return _raise(array) if raised else array

    for eqn in equations:
        bound = eqn.choice or eqn
        if raised and eqn.name == "convert_element_type" and _is_half(eqn.outputs[0]):
            env[eqn.outputs[0]] = read(eqn.inputs[0])
            continue
        params = bound.primitive.get_bind_params(bound.params)
        made = bound.primitive.bind(*map(read, bound.inputs), **params)
        made = made if bound.primitive.multiple_results else [made]
        env.update(zip(eqn.outputs, made, strict=True))
    return [read(value) for value in wanted]


def _raise(array: Any) -> Any:
    dtype = jnp.result_type(array)
    half = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.asarray(array, jnp.float32) if half else array


def _is_half(value: Value) -> bool:
    dtype = value.aval.dtype
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def piece(flat: Flat, wanted: Iterable[Value], given: Iterable[Value] = ()) -> Piece:
    """How values follow from those that are given, and from weights."""
    wanted, stop = tuple(wanted), set(given)
    chosen: set[int] = set()
    ahead = [value for value in wanted if value not in stop]
    while ahead:
        place = flat.made.get(ahead.pop())
        if place is None or place in chosen:
            continue
        chosen.add(place)
        eqn = flat.equations[place]
        read = (eqn.choice or eqn).inputs
        ahead += [value for value in read if value not in stop]
    return of([flat.equations[place] for place in sorted(chosen)], wanted)


def of(equations: Sequence[Equation], wanted: Sequence[Value]) -> Piece:
    """The piece that these equations make up."""
    numbers: dict[Value, int] = {}
    made = {value for eqn in equations for value in eqn.outputs}
    given: list[Value] = []
    weights: list[Value] = []

    def named(value: Value) -> str:
        if value not in numbers:
            if value not in made and _is_literal(value):
                return _literal(value.constant)
            numbers[value] = len(numbers)
            if value not in made:
                (given if value.live else weights).append(value)
            return f"{numbers[value]}:{value.aval.str_short()}{'*' * value.live}"
        return str(numbers[value])

    lines = []
    for eqn in equations:
        bound = eqn.choice or eqn
        read = " ".join(map(named, bound.inputs))
        gives = " ".join(map(named, eqn.outputs))
        lines.append(f"{gives} = {_parameters(bound)} {read}")
    lines.append(" ".join(map(named, wanted)))
    text = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return Piece(tuple(equations), tuple(given), tuple(weights), tuple(wanted), text)


def _is_literal(value: Value) -> bool:
    return value.constant is not None and np.size(value.constant) == 1


def _literal(constant: Any) -> str:
    array = np.asarray(constant)
    return f"{array.dtype}{array.shape}{array.tolist()!r}"


def _parameters(eqn: Equation) -> str:
    """Primitive and parameters; their text is made once an equation."""
    parameters = _TEXTS.get(eqn)
    if parameters is None:
        pairs = sorted(eqn.params.items())
        parameters = (
            f"{eqn.name}[{' '.join(f'{name}={value}' for name, value in pairs)}]"
        )
        if len(parameters) > 200:
            parameters = hashlib.sha256(parameters.encode()).hexdigest()
        if len(_TEXTS) > 100_000:
            _TEXTS.clear()
        _TEXTS[eqn] = parameters
    return parameters


_TEXTS: dict[Equation, str] = {}
_COMPILED: dict[Any, Callable] = {}


def compiled(key: Any, make: Callable[[], Callable], **options) -> Callable:
    """The jitted function of that key; made when it is first asked for."""
    if key not in _COMPILED:
        if len(_COMPILED) > 4096:
            _COMPILED.clear()
        _COMPILED[key] = jax.jit(make(), **options)
    return _COMPILED[key]


def forward(piece: Piece) -> Callable[..., tuple[list[jax.Array], jax.Array]]:
    """The piece jitted: of (given, weights), its values and True; see `checked`."""

    def make():
        return lambda given, weights: (piece.run(given, weights), jnp.bool_(True))

    return compiled(("forward", piece.text), make)


def checked(piece: Piece) -> Callable[..., tuple[list[jax.Array], jax.Array]]:
    """The piece jitted: of (given, weights), its values and whether the sum of each is
    finite; that takes half of a look at every number, and only an infinite sum need
    not mean that one of them is."""

    def make():
        def function(given, weights):
            made = piece.run(given, weights)
            floats = [a for a in made if jnp.issubdtype(a.dtype, jnp.inexact)]
            sums = [a.sum(dtype=jnp.promote_types(a, jnp.float32)) for a in floats]
            sound = map(jnp.isfinite, sums)
            return made, functools.reduce(jnp.logical_and, sound, jnp.bool_(True))

        return function

    return compiled(("checked", piece.text), make)
