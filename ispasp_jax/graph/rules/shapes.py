"""The same numbers in another shape, or numbers that only a shape asks for."""

from typing import Any

from ispasp_jax.graph.atoms import Atom, join, product
from ispasp_jax.graph.program import Equation
from ispasp_jax.graph.rules.rule import Sizes, equal, fixed, remaining, rule, shape


@rule(
    "broadcast_in_dim",
    narrow=lambda eqn, size: {"shape": shape(eqn.outputs[0], size)},
)
def broadcast_in_dim(eqn: Equation) -> None:
    operand, out = eqn.inputs[0], eqn.outputs[0]
    for x, place in zip(operand.dims, eqn.params["broadcast_dimensions"], strict=True):
        if equal(x.size, out.dims[place].size):
            join(x, out.dims[place], eqn.where)


@rule("tile")
def tile(eqn: Equation) -> None:
    """Every repeated dimension is so many times the operand's."""
    places = zip(
        eqn.params["reps"], eqn.inputs[0].dims, eqn.outputs[0].dims, strict=True
    )
    for count, x, y in places:
        if isinstance(count, int):
            join(product((Atom(count), x)), y, eqn.where)
        else:
            fixed(eqn, (x, y), "repeats it")


@rule("reshape", narrow=lambda eqn, size: {"new_sizes": shape(eqn.outputs[0], size)})
def reshape(eqn: Equation) -> None:
    """Joins the smallest runs of dimensions with equal products, in order."""
    given, after = eqn.inputs[0].dims, list(eqn.outputs[0].dims)
    order = eqn.params.get("dimensions")  # gradients transpose first
    before = [given[d] for d in order] if order is not None else list(given)
    for ends in (0, -1):  # equal first and last dimensions need no arithmetic
        while before and after and equal(before[ends].size, after[ends].size):
            join(before.pop(ends), after.pop(ends), eqn.where)
    for left, right in _runs(before, after):
        if left and right:
            join(product(left), product(right), eqn.where)


def _runs(before: list[Atom], after: list[Atom]):
    if not all(isinstance(atom.size, int) for atom in (*before, *after)):
        yield before, after
        return
    while before or after:
        left, right = [], []
        p = q = 1
        while (before or after) and (not (left or right) or p != q):
            if before and (p <= q or not after):
                left.append(before.pop(0))
                p *= left[-1].size
            else:
                right.append(after.pop(0))
                q *= right[-1].size
        yield left, right


@rule("transpose")
def transpose(eqn: Equation) -> None:
    for place, atom in zip(eqn.params["permutation"], eqn.outputs[0].dims, strict=True):
        join(eqn.inputs[0].dims[place], atom, eqn.where)


@rule("squeeze")
def squeeze(eqn: Equation) -> None:
    gone = {int(d) % len(eqn.inputs[0].dims) for d in eqn.params["dimensions"]}
    remaining(eqn, gone)


@rule("rev")
def rev(eqn: Equation) -> None:
    turned = set(eqn.params["dimensions"])
    for place, (x, y) in enumerate(
        zip(eqn.inputs[0].dims, eqn.outputs[0].dims, strict=True)
    ):
        if place in turned:
            fixed(eqn, (x, y), "turns it round")
        else:
            join(x, y, eqn.where)


@rule("iota", narrow=lambda eqn, size: {"shape": shape(eqn.outputs[0], size)})
def iota(eqn: Equation) -> None:
    counted = eqn.outputs[0].dims[eqn.params["dimension"]]
    fixed(eqn, [counted], "counts along it", False)


@rule("random_bits", narrow=lambda eqn, size: _bits(eqn, size))
def random_bits(eqn: Equation) -> None:
    """Any other number of them is as random."""
    for x, y in zip(eqn.inputs[0].dims, eqn.outputs[0].dims, strict=False):
        join(x, y, eqn.where)


def _bits(eqn: Equation, size: Sizes) -> dict[str, Any]:
    keys = len(eqn.inputs[0].dims)
    return {"shape": shape(eqn.outputs[0], size)[keys:]}
