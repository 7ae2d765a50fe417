"""Finds the groups of channels that a program's equations make.

A leaf atom that may be cut, lies in a variable and is summed over by a dot or a
convolution is a group.
"""

from collections.abc import Mapping

from ispasp_jax.graph.atoms import POSITIONS, Atom, join
from ispasp_jax.graph.facts import Facts, facts
from ispasp_jax.graph.groups import Group, Whole
from ispasp_jax.graph.names import from_modules
from ispasp_jax.graph.program import Program, Value, equations


def find(
    program: Program, variables: Mapping[str, Value], roots: tuple[str, ...] = ()
) -> tuple[list[Group], list[Whole]]:
    """All groups in the order in which they are made, and what is left alone.

    Args:
      program: with its rules applied.
      variables: its variables' values by key path.
      roots: first keys of paths that name collections, not modules.
    """
    known = facts(program, variables)
    result, whole = [], []
    order = {leaf: place for place, leaf in enumerate(known.contracted)}
    axes_of = sorted(known.axes.items(), key=lambda pair: order.get(pair[0], -1))
    for leaf, axes in axes_of:
        consumers = known.contracted.get(leaf, [])
        reason = leaf.reason.text if leaf.reason else None
        if not isinstance(leaf.size, int) or leaf.size < 2:
            continue
        if not reason and not consumers:
            reason = "no dot or convolution reads it"
        if not reason and len(axes) < 2 and leaf not in known.made:
            reason = "no variable makes it"
        if reason == POSITIONS:
            continue
        if reason:
            whole.append(Whole(tuple(axes), reason))
            continue
        paths = dict.fromkeys(path for _, path in consumers if path)
        result.append(
            Group(
                "",
                leaf.size,
                _kind(leaf, known),
                known.layers.get(leaf, 0),
                tuple(axes),
                tuple(dict.fromkeys(p for p in known.made.get(leaf, ()) if p)),
                tuple(paths),
                leaf,
            )
        )
    return from_modules(result, known.made, roots), whole


def _kind(leaf: Atom, facts: Facts) -> str:
    consumers = facts.contracted[leaf]
    if any(path is None for _, path in consumers):
        return "product"
    if leaf in facts.added:
        return "stream"
    if leaf in facts.blocks:
        return "head"
    if leaf in facts.pieces:
        return "concatenated"
    if len(consumers) > 1:
        return "shared"
    return "inner" if leaf in facts.bent else "linear"


def reads(program: Program) -> set[int]:
    """Ids of the values that any equation reads, or that come back."""
    result = {id(value) for value in program.outputs}
    for eqn in equations(program):
        result.update(id(value) for value in eqn.inputs)
    return result


def tie(program: Program, variables: Mapping[str, Value]) -> None:
    """Joins variables that nothing reads (moving averages beside those that are read)
    with those of the same module and shape."""
    read = reads(program)
    for path, value in variables.items():
        if id(value) in read or not value.dims:
            continue
        module = path.rpartition("/")[0]
        for other, near in variables.items():
            if other.rpartition("/")[0] == module and near.shape == value.shape:
                if id(near) in read:
                    for a, b in zip(value.dims, near.dims, strict=True):
                        join(a, b, f"beside {other}")
                    break
