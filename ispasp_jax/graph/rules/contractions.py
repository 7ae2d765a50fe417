"""Products summed over what they have in common: where channels are read."""

from typing import Any, NamedTuple

from ispasp_jax.graph.atoms import POSITIONS, Atom, freeze, join, product
from ispasp_jax.graph.program import Equation
from ispasp_jax.graph.rules.rule import Sizes, rule


class Contraction(NamedTuple):
    """What a dot or a convolution sums over: the memo of such an equation.

    Attributes:
      left: atoms of the first operand's dimensions that are summed over.
      right: of the second operand's.
      batch: dimensions of both that go side by side.
    """

    left: tuple[Atom, ...]
    right: tuple[Atom, ...]
    batch: tuple[Atom, ...] = ()


@rule("dot_general")
def dot_general(eqn: Equation) -> None:
    (summed_a, summed_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
    a, b = (value.dims for value in eqn.inputs[:2])
    for x, y in zip((*summed_a, *batch_a), (*summed_b, *batch_b), strict=True):
        join(a[x], b[y], eqn.where)
    free_a = [d for d in range(len(a)) if d not in (*summed_a, *batch_a)]
    free_b = [d for d in range(len(b)) if d not in (*summed_b, *batch_b)]
    made = [a[d] for d in (*batch_a, *free_a)] + [b[d] for d in free_b]
    for x, y in zip(made, eqn.outputs[0].dims, strict=True):
        join(x, y, eqn.where)
    eqn.memo = Contraction(
        tuple(a[d] for d in summed_a),
        tuple(b[d] for d in summed_b),
        tuple(a[d] for d in batch_a),
    )


@rule("conv_general_dilated", narrow=lambda eqn, size: _groups_of_conv(eqn, size))
def convolution(eqn: Equation) -> None:
    """Plain, grouped and depthwise: features in = groups x kernel's, kernel's features
    out = groups x a group's. Gradients come with batch groups.
    """
    numbers = eqn.params["dimension_numbers"]
    groups, batches = (
        eqn.params["feature_group_count"],
        eqn.params["batch_group_count"],
    )
    (lhs, rhs), out = (value.dims for value in eqn.inputs), eqn.outputs[0].dims
    n, c, *space = (lhs[d] for d in numbers.lhs_spec)
    o, i, *taps = (rhs[d] for d in numbers.rhs_spec)
    n_out, c_out, *space_out = (out[d] for d in numbers.out_spec)
    join(o, c_out, eqn.where)
    for atom in (*space, *taps, *space_out):
        freeze(atom, POSITIONS, shape=True)
    if groups == batches == 1:
        join(n, n_out, eqn.where)
        join(c, i, eqn.where)
    else:
        count = Atom(max(groups, batches))
        each = Atom(o.size // count.size)
        join(product((count, each)), o, eqn.where)
        join(product((count, i)) if groups > 1 else i, c, eqn.where)
        join(n_out if groups > 1 else product((count, n_out)), n, eqn.where)
    left = () if groups > 1 and i.size == 1 else (i,)
    eqn.memo = Contraction(left, left)


def _groups_of_conv(eqn: Equation, size: Sizes) -> dict[str, Any]:
    numbers, p = eqn.params["dimension_numbers"], eqn.params
    lhs, rhs = (value.dims for value in eqn.inputs)
    n, c = (lhs[d] for d in numbers.lhs_spec[:2])
    _, i = (rhs[d] for d in numbers.rhs_spec[:2])
    if p["feature_group_count"] > 1:
        return {"feature_group_count": size(c) // size(i)}
    if p["batch_group_count"] > 1:
        kept = eqn.outputs[0].dims[numbers.out_spec[0]]
        return {"batch_group_count": size(n) // size(kept)}
    return {}
