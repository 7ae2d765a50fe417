"""What is left of a program where some of its inputs are zero: 0 · x is 0, x + 0 is x,
and what nothing reads any more is not computed.

So a branch whose weights are gone costs nothing, whatever function of them is asked
for: x + f(x) becomes x, and the derivative of f is never taken.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from ispasp_jax.graph.program import CALLS, Equation, Program, Value

#: Zero where the first operand is.
_FIRST = frozenset(
    (
        "neg reshape transpose squeeze broadcast_in_dim convert_element_type copy "
        "reduce_sum reduce_max reduce_min slice rev reduce_precision dynamic_slice "
        "gather cumsum div sqrt cbrt abs sign sin tan tanh sinh asinh atan erf floor "
        "ceil round square expm1 log1p real stop_gradient"
    ).split()
)
#: Zero where any operand is.
_ANY = frozenset("mul dot_general conv_general_dilated".split())
#: Zero where all operands are.
_ALL = frozenset("add add_any sub max min pad concatenate".split())
#: Calls that are opened where an operand is zero; they only say what to keep in memory.
_REMATERIALISED = frozenset("remat remat2 checkpoint".split())


def without(whole: Program, zero: Iterable[Value]) -> Program:
    """The program that gives the same where these of its inputs are zero; it does not
    read them.

    Args:
      whole: the program.
      zero: inputs.
    """
    state = _State(zero)
    equations = [*state.simplify(whole.equations)]
    outputs = tuple(map(state.read, whole.outputs))
    return whole._replace(equations=_needed(equations, outputs), outputs=outputs)


def vanish(equations: Iterable[Equation], zero: Iterable[Value]) -> set[Value]:
    """All values that are zero where these are."""
    state = _State(zero)
    for _ in state.simplify(equations):
        pass
    return state.zero


class _State:
    """What is known on the way through equations: values that are zero, and values that
    are another's."""

    def __init__(self, zero: Iterable[Value]):
        self.zero = {*zero}
        self._same: dict[Value, Value] = {}
        self._arrays: dict[Value, Value] = {}

    def now(self, value: Value) -> Value:
        """The value that this one is the same as."""
        while value in self._same:
            value = self._same[value]
        return value

    def read(self, value: Value) -> Value:
        """The value as an equation may read it: an array of zeros for one that is."""
        value = self.now(value)
        if value not in self.zero or value.constant is not None:
            return value
        if value not in self._arrays:
            array = np.broadcast_to(np.zeros((), value.aval.dtype), value.shape)
            made = self._arrays[value] = Value(value.aval, array)
            made.dims = value.dims
        return self._arrays[value]

    def is_zero(self, value: Value) -> bool:
        """Whether it is zero, a literal one included."""
        value = self.now(value)
        if value in self.zero:
            return True
        known = value.constant
        return known is not None and np.ndim(known) == 0 and _is_nought(known)

    def simplify(self, equations: Iterable[Equation]) -> Iterator[Equation]:
        """The equations that still compute something, reading what is left."""
        for eqn in equations:
            zeros = [self.is_zero(value) for value in eqn.inputs]
            if not any(zeros):
                yield self._reading(eqn)
            elif eqn.name in _REMATERIALISED:
                self._same.update(zip(eqn.bodies[0].inputs, eqn.inputs, strict=True))
                yield from self.simplify(eqn.bodies[0].equations)
                made = eqn.bodies[0].outputs
                self._same.update(zip(eqn.outputs, made, strict=True))
            elif self._is_nothing(eqn, zeros):
                self.zero.update(eqn.outputs)
            elif (other := self._other(eqn, zeros)) is not None:
                self._same[eqn.outputs[0]] = other
            else:
                yield self._reading(eqn)

    def _reading(self, eqn: Equation) -> Equation:
        inputs = tuple(map(self.read, eqn.inputs))
        return eqn if inputs == eqn.inputs else replace(eqn, inputs=inputs)

    def _is_nothing(self, eqn: Equation, zeros: list[bool]) -> bool:
        """Whether all that the equation gives is zero."""
        if eqn.name in _FIRST:
            return zeros[0]
        if eqn.name == "integer_pow":
            return zeros[0] and eqn.params["y"] > 0
        if eqn.name in _ANY:
            return any(zeros)
        if eqn.name in _ALL:
            return all(zeros)
        if eqn.name == "select_n":
            return all(zeros[1:])
        if eqn.name != "cond" and eqn.name not in CALLS or not eqn.bodies:
            return False
        given = zeros[1:] if eqn.name == "cond" else zeros
        return all(_is_nothing(body, given) for body in eqn.bodies)

    def _other(self, eqn: Equation, zeros: list[bool]) -> Value | None:
        """The operand that a sum is, where the other is zero."""
        if eqn.name not in ("add", "add_any", "sub") or zeros == [True, True]:
            return None
        if eqn.name == "sub" and zeros[0]:
            return None
        other, out = eqn.inputs[0 if zeros[1] else 1], eqn.outputs[0]
        like = (other.shape, other.aval.dtype) == (out.shape, out.aval.dtype)
        return self.now(other) if like else None


def _is_nothing(body: Program, zeros: Iterable[bool]) -> bool:
    """Whether a body gives zeros where these of its inputs are."""
    pairs = zip(body.inputs, zeros, strict=True)
    state = _State(value for value, zero in pairs if zero)
    for _ in state.simplify(body.equations):
        pass
    return all(map(state.is_zero, body.outputs))


def _is_nought(known) -> bool:
    try:
        return not np.asarray(known).any()
    except TypeError:  # a key
        return False


def _needed(
    equations: list[Equation], outputs: Iterable[Value]
) -> tuple[Equation, ...]:
    """Those that lead to the outputs, or do something besides."""
    wanted, result = {*outputs}, []
    for eqn in reversed(equations):
        if not eqn.outputs or not wanted.isdisjoint(eqn.outputs):
            result.append(eqn)
            wanted.update(eqn.inputs)
    return tuple(reversed(result))
