"""How many channels: of arrays that were cut, and the plan that leaves so many."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ispasp_jax.errors import InputError
from ispasp_jax.graph import cut
from ispasp_jax.graph.atoms import Atom, leaves, root
from ispasp_jax.graph.branches import Branch
from ispasp_jax.graph.cut import Cut, Plan
from ispasp_jax.graph.traced import Traced, key_path


def first(traced: Traced, widths: Mapping[str, int]) -> Plan:
    """The plan that keeps the first channels of groups, so many of each; of a branch
    that goes, none.

    Raises:
      InputError: there is no such group, or it has fewer channels.
    """
    plan = {}
    for name, count in widths.items():
        if name not in traced:
            raise InputError(
                f"there is no group {name!r}; the groups are {', '.join(traced)}."
            )
        group = traced[name]
        if not 0 <= count <= group.width:
            raise InputError(
                f"{count} channels of group {name!r} cannot stay, it has {group.width}."
            )
        rows = (group.layers,) if group.layers else ()
        kept = np.broadcast_to(np.arange(count), (*rows, count))
        plan[name] = Cut(group.width, kept)
    return plan


def counted(
    traced: Traced, variables: Any, known: Mapping[str, int] | None = None
) -> dict[str, int]:
    """How many channels of each group there are in narrower variables.

    Args:
      traced: of the model at full width.
      variables: its variables, cut by any plan; arrays or shapes.
      known: what is known of some groups: arrays do not tell channels apart that are
        only ever together (zeros on both sides of a narrower map).

    Raises:
      InputError: they are not this model's, cut; or they do not tell.
    """
    shapes = {
        key_path(path): np.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    result = {traced[name].atom: count for name, count in (known or {}).items()}
    gone = _emptied(traced, shapes)
    result |= {traced[name].atom: 0 for branch in gone for name in branch.groups}
    there = shapes
    shapes = {path: shapes[path] for path in shapes if path not in _paths(gone)}
    result |= _uncut(traced, shapes)
    open_ = {group.atom: group for group in traced.groups if group.atom not in result}
    while open_:
        solved = {}
        for atom, group in open_.items():
            for axis in group.axes:
                dim = traced.dims[axis.path][axis.axis]
                if not open_.keys() & {*leaves(dim)} - {atom} and axis.path in shapes:
                    solved[atom] = _solved(dim, atom, result, shapes[axis.path], axis)
                    break
        if not solved:
            names = ", ".join(group.name for group in open_.values())
            raise InputError(f"it cannot be told how many channels of {names} stayed.")
        result |= solved
        open_ = {atom: g for atom, g in open_.items() if atom not in solved}
    widths = {group.name: result[group.atom] for group in traced.groups}
    _check(traced, widths, there)
    return widths


def _emptied(traced: Traced, shapes) -> list[Branch]:
    """The branches of which no array is left."""

    def is_gone(path: str) -> bool:
        dims, shape = traced.dims[path], shapes.get(path)
        return not dims or shape == (0,) * len(dims)

    branches = traced.branches.values()
    return [branch for branch in branches if all(map(is_gone, branch.paths))]


def _paths(branches: Iterable[Branch]) -> set[str]:
    return {path for branch in branches for path in branch.paths}


def _uncut(traced: Traced, shapes) -> dict[Atom, int]:
    """Leaves of dimensions that are as long as ever."""
    whole = {}
    for path, dims in traced.dims.items():
        for dim, size in zip(dims, shapes.get(path, ()), strict=False):
            if dim.size == size:
                whole |= {leaf: leaf.size for leaf in leaves(dim)}
    return whole


def _solved(dim: Atom, atom: Atom, found: Mapping[Atom, int], shape, axis) -> int:
    """How large a leaf is where the dimension that it is a part of is so long; sizes
    are linear in it."""
    none, one = (_size(dim, {**found, atom: count}) for count in (0, 1))
    size = shape[axis.axis] if axis.axis < len(shape) else 0
    if one == none or (size - none) % (one - none):
        raise InputError(f"{axis.path} has the shape {shape}, which no cut gives.")
    return (size - none) // (one - none)


def _size(atom: Atom, sizes: Mapping[Atom, int]) -> int:
    top = root(atom)
    if top.kind is None:
        return sizes.get(top, top.size)
    inner = [_size(part, sizes) for part in top.parts]
    return sum(inner) if top.kind == "sum" else int(np.prod(inner))


def _check(traced: Traced, widths: Mapping[str, int], shapes) -> None:
    plan = first(traced, widths)
    masks, gone = traced.masks(plan), _paths(traced.gone(plan))
    for path, dims in traced.dims.items():
        expected = tuple(0 if path in gone else cut.size(a, masks) for a in dims)
        if shapes.get(path) != expected:
            raise InputError(
                f"{path} has the shape {shapes.get(path)}, expected {expected} with "
                "the channels that the other arrays have."
            )


def by_number(traced: Traced, plan: Plan) -> bool:
    """Whether it says all of a plan how many channels it keeps: nothing that the model
    closes over differs from channel to channel, so that any others do as well."""
    masks = traced.masks(plan)
    constants = [*traced.program.constants]
    for eqn in traced.program.equations:
        constants += [v for v in eqn.inputs if v.constant is not None]
    for value in constants:
        array = np.asarray(value.constant)
        for axis, atom in enumerate(value.dims):
            if cut.of(atom, masks) is not None:
                if (array != np.take(array, [0], axis)).any():
                    return False
    return True
