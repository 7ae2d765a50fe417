"""What a rule is, and what rules are made of."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from ispasp_jax.graph.atoms import Atom, Size, freeze, join
from ispasp_jax.graph.program import Equation, Value

#: The new size of an atom, called by `narrow` functions.
Sizes = Callable[[Atom], Size]

#: What a rule does to the atoms of an equation's dimensions, called once an equation.
Join = Callable[[Equation], Any]

#: The parameters that change with the sizes, called when an equation is evaluated.
Narrow = Callable[[Equation, Sizes], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is known of a primitive.

    Attributes:
      join: changes the atoms of an equation's dimensions; called once an equation.
      narrow: the parameters that change with the sizes; called when it is evaluated.
    """

    join: Join
    narrow: Narrow | None = None


RULES: dict[str, Rule] = {}

#: Primitives whose output is made anew; all others change what was made before them.
MAKERS = frozenset({"dot_general", "conv_general_dilated", "gather"})


def rule(*names: str, narrow: Narrow | None = None) -> Callable[[Join], Join]:
    """Registers the decorated function for primitives of these names.

    Args:
      *names: of primitives.
      narrow: (equation, size of an atom) -> the parameters of the equation that change
        when dimensions are narrower; None where none of them holds a size.

    Returns:
      A decorator of (equation) -> None, which joins, refines or freezes atoms.
    """

    def register(function: Join) -> Join:
        for name in names:
            RULES[name] = Rule(function, narrow)
        return function

    return register


def shape(value: Value, size: Sizes) -> tuple[Size, ...]:
    """The value's narrower shape."""
    return tuple(size(atom) for atom in value.dims)


def apply(equations: Iterable[Equation]) -> None:
    """Applies every equation's rule, in order, and says where values come from."""
    for eqn in equations:
        _describe(eqn)
        known = RULES.get(eqn.name)
        if known is None:
            unknown(eqn)
        else:
            known.join(eqn)


def _describe(eqn: Equation) -> None:
    live = [value for value in eqn.inputs if value.live]
    named = [value for value in eqn.inputs if value.origin]
    largest = max(named, key=lambda v: v.aval.size, default=None)
    makers = {id(value.maker): value.maker for value in live}
    mixes = eqn.name in MAKERS or len(makers) != 1
    for value in eqn.outputs:
        value.live = bool(live)
        value.maker = eqn if mixes else next(iter(makers.values()))
        value.origin = largest.origin if largest and not live else None


def unknown(eqn: Equation) -> None:
    """What nothing is known of: all that it touches stays as it is."""
    for value in (*eqn.inputs, *eqn.outputs):
        for atom in value.dims:
            freeze(atom, f"no rule for {eqn.where}", shape=True)


def same(eqn: Equation, a: Value, b: Value) -> None:
    """Joins two values of one shape, dimension by dimension."""
    for x, y in zip(a.dims, b.dims, strict=True):
        join(x, y, eqn.where)


def fixed(eqn: Equation, atoms: Iterable[Atom], why: str, in_shape=True) -> None:
    """Freezes atoms; `why` follows the equation's name."""
    for atom in atoms:
        freeze(atom, f"{eqn.where} {why}", in_shape)


def matched(eqn: Equation, a: Atom, b: Atom, why: str) -> None:
    """Joins atoms of equal size, a whole dimension; freezes them where only a part of
    one is read."""
    if equal(a.size, b.size):
        join(a, b, eqn.where)
    else:
        fixed(eqn, (a, b), why)


def equal(a: Size, b: Size) -> bool:
    """Whether two sizes are one and the same number, or symbol."""
    return a is b or bool(a == b)


def remaining(eqn: Equation, gone: set[int]) -> None:
    """Joins the dimensions that are left when some are gone."""
    for operand in eqn.inputs:
        left = [a for place, a in enumerate(operand.dims) if place not in gone]
        for out in eqn.outputs:
            for x, y in zip(left, out.dims, strict=True):
                join(x, y, eqn.where)
