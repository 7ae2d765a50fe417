"""The equations that each group's channels go through, as programs of their own: what
there is to time.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr

from ispasp_jax.graph.atoms import leaves, root
from ispasp_jax.graph.cut import Masks, Plan
from ispasp_jax.graph.narrowing import attached, jaxpr_of, spread
from ispasp_jax.graph.program import Equation, Program, Value, program, values
from ispasp_jax.graph.traced import Traced
from ispasp_jax.graph.zeros import without


class Piece(NamedTuple):
    """A program at two widths. Equal pieces have equal text.

    Attributes:
      full: with all channels.
      cut: with those that a plan keeps.
    """

    full: ClosedJaxpr
    cut: ClosedJaxpr


#: What is left of the equations of a branch that is gone.
NOTHING = Program((), (), (), ())


def pieces(traced: Traced, plan: Plan, *inputs: Any) -> tuple[Piece, dict[str, Piece]]:
    """The whole function, and of every group of the plan the equations that its
    channels go through, cut as the plan says of this group alone.

    Args:
      traced: the model.
      plan: what stays.
      *inputs: shapes of a batch of any size.
    """
    closed = jax.make_jaxpr(traced.function)(traced.variables, *inputs)
    whole = program(closed, derivatives=True)
    dims = [*traced.dims.values(), *(None for _ in jax.tree.leaves(inputs))]
    copies = attached(whole, dims)
    together, result = {}, {}
    for name, mask in zip(plan, traced.masks(plan).values(), strict=True):
        own: dict = {}
        spread(copies[root(traced[name].atom)], mask, own)
        part = _touched(whole, own)
        left = jaxpr_of(part if mask.any() else NOTHING, own)
        result[name] = Piece(jaxpr_of(part, {}), left)
        together |= own if mask.any() else {}
    gone = {path for branch in traced.gone(plan) for path in branch.paths}
    pairs = zip(traced.dims, whole.inputs, strict=False)
    small = without(whole, [value for path, value in pairs if path in gone])
    return Piece(jaxpr_of(whole, {}), jaxpr_of(small, together)), result


def _touched(whole: Program, masks: Masks) -> Program:
    """The equations with a dimension that the masks cut."""
    own = [eqn for eqn in whole.equations if _touches(eqn, masks)]
    made = {id(value) for eqn in own for value in eqn.outputs}
    given: dict[int, Value] = {}
    for value in (value for eqn in own for value in eqn.inputs):
        if id(value) not in made and value.constant is None:
            given[id(value)] = value
    inside = {id(eqn) for eqn in own}
    read = {id(value) for value in whole.outputs}
    for eqn in whole.equations:
        if id(eqn) not in inside:
            read.update(id(value) for value in eqn.inputs)
    left = [v for eqn in own for v in eqn.outputs if id(v) in read]
    return Program(tuple(given.values()), (), tuple(own), tuple(left))


def _touches(eqn: Equation, masks: Masks) -> bool:
    return any(
        leaf in masks for v in _seen([eqn]) for atom in v.dims for leaf in leaves(atom)
    )


def _seen(equations: Iterable[Equation]) -> Iterator[Value]:
    """All values of equations, and of what is inside them."""
    for eqn in equations:
        yield from (*eqn.inputs, *eqn.outputs)
        for body in eqn.bodies:
            yield from values(body)
            yield from _seen(body.equations)
