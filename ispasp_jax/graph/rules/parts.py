"""Parts one after the other, or side by side."""

from collections.abc import Sequence
from typing import Any

from ispasp_jax.graph.atoms import Atom, join, total
from ispasp_jax.graph.program import Equation, Value
from ispasp_jax.graph.rules.rule import Sizes, equal, fixed, rule


@rule("concatenate")
def concatenate(eqn: Equation) -> None:
    _pieces(eqn, eqn.inputs, eqn.outputs[0], int(eqn.params["dimension"]))


@rule("split", narrow=lambda eqn, size: _split_sizes(eqn, size))
def split(eqn: Equation) -> None:
    _pieces(eqn, eqn.outputs, eqn.inputs[0], int(eqn.params["axis"]))


def _pieces(eqn: Equation, pieces: Sequence[Value], whole: Value, axis: int) -> None:
    """Joins pieces with the whole that they are along an axis."""
    for value in pieces:
        for place, (x, y) in enumerate(zip(value.dims, whole.dims, strict=True)):
            if place != axis:
                join(x, y, eqn.where)
    join(total(value.dims[axis] for value in pieces), whole.dims[axis], eqn.where)


def _split_sizes(eqn: Equation, size: Sizes) -> dict[str, Any]:
    where = eqn.params["axis"]
    return {"sizes": tuple(size(value.dims[where]) for value in eqn.outputs)}


@rule("stack")
def stack(eqn: Equation) -> None:
    _side_by_side(eqn, eqn.inputs, eqn.outputs[0])


@rule("unstack")
def unstack(eqn: Equation) -> None:
    _side_by_side(eqn, eqn.outputs, eqn.inputs[0])


def _side_by_side(eqn: Equation, ones: Sequence[Value], whole: Value) -> None:
    """Joins values with what holds them all along a dimension of its own."""
    axis = eqn.params["axis"]
    rest = [atom for place, atom in enumerate(whole.dims) if place != axis]
    for value in ones:
        for x, y in zip(value.dims, rest, strict=True):
            join(x, y, eqn.where)
    fixed(eqn, [whole.dims[axis]], "counts what lies side by side")


@rule("slice", narrow=lambda eqn, size: _slice_limits(eqn, size))
def slice_(eqn: Equation) -> None:
    p, operand, out = eqn.params, eqn.inputs[0], eqn.outputs[0]
    strides = p["strides"] or (1,) * len(operand.dims)
    before = []
    limits = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    for (low, high, step), x, y in zip(limits, operand.dims, out.dims, strict=True):
        first = None
        if equal(x.size, y.size):
            join(x, y, eqn.where)
        elif step != 1 or not isinstance(x.size, int):
            fixed(eqn, (x, y), "reads a part of it")
        else:
            first, last = Atom(low), Atom(x.size - high)
            join(total((first, y, last)), x, eqn.where)
        before.append(first)
    eqn.memo = before


def _slice_limits(eqn: Equation, size: Sizes) -> dict[str, Any]:
    """Starts after what is left before; a dimension that is frozen keeps its own."""
    p, low, high = eqn.params, [], []
    places = zip(
        eqn.memo, eqn.outputs[0].dims, p["start_indices"], p["limit_indices"],
        eqn.inputs[0].dims, strict=True,
    )  # fmt: skip
    for first, out, start, limit, operand in places:
        if first is not None:
            start = size(first) if first.size else 0
            limit = start + size(out)
        elif equal(operand.size, out.size):
            start, limit = 0, size(out)
        low.append(start)
        high.append(limit)
    return {"start_indices": tuple(low), "limit_indices": tuple(high)}


@rule("pad", narrow=lambda eqn, size: _padding(eqn, size))
def pad(eqn: Equation) -> None:
    operand, out, memo = eqn.inputs[0], eqn.outputs[0], []
    places = zip(eqn.params["padding_config"], operand.dims, out.dims, strict=True)
    for (low, high, inside), x, y in places:
        added = None
        if (low, high, inside) == (0, 0, 0):
            join(x, y, eqn.where)
        elif inside or low < 0 or high < 0 or not isinstance(x.size, int):
            fixed(eqn, (x, y), "pads within it")
        else:
            added = Atom(low), Atom(high)
            join(total((added[0], x, added[1])), y, eqn.where)
        memo.append(added)
    eqn.memo = memo


def _padding(eqn: Equation, size: Sizes) -> dict[str, Any]:
    def narrower(config, added):
        if added is None:
            return config
        low, high = (size(atom) if atom.size else 0 for atom in added)
        return (low, high, 0)

    pairs = zip(eqn.params["padding_config"], eqn.memo, strict=True)
    return {"padding_config": tuple(narrower(*pair) for pair in pairs)}
