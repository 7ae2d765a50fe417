"""Groups of channels: what they are, which may be cut, and how they are shown."""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ispasp_jax.errors import InputError
from ispasp_jax.graph.atoms import Atom


class Axis(NamedTuple):
    """A dimension of a variable that carries a group's channels.

    Attributes:
      path: the variable's key path, joined by "/".
      axis: which dimension.
      size: its length; more than the group's width where a channel is a block of it
        (a head, a flattened feature).
    """

    path: str
    axis: int
    size: int


class Group(NamedTuple):
    """Channels that are cut together.

    Attributes:
      name: what users, plans and reports call it.
      width: how many channels.
      kind: "inner" (made at one place, read at one, an activation between), "linear"
        (none between), "shared" (read at several), "stream" (residual: several makers
        are added), "head" (products of activations go side by side), "concatenated",
        or "product" (two activations are multiplied along it: a query-key width).
      layers: of a scan, each with channels of its own; 0 for none.
      axes: the dimensions that carry it.
      makers: the variables whose contraction makes it, in order.
      consumers: the variables that contract it.
      atom: its leaf.
    """

    name: str
    width: int
    kind: str
    layers: int
    axes: tuple[Axis, ...]
    makers: tuple[str, ...]
    consumers: tuple[str, ...]
    atom: Atom


class Whole(NamedTuple):
    """Channels that are left alone.

    Attributes:
      axes: the dimensions that carry them.
      reason: why.
    """

    axes: tuple[Axis, ...]
    reason: str


def table(
    groups: Iterable[Group],
    whole: Iterable[Whole],
    steps: int,
    branches: Sequence[str] = (),
) -> str:
    """The groups as people read them, what was left alone and why, and the names of
    branches."""
    rows = [("group", "width", "kind", "arrays", "read by")]
    for group in groups:
        width = f"{group.layers} x {group.width}" if group.layers else str(group.width)
        arrays = len({axis.path for axis in group.axes})
        readers = _some(group.consumers)
        rows.append((group.name, width, group.kind, str(arrays), readers))
    lines = _columns(rows)
    if branches:
        lines += ["", f"branches, which can go whole: {', '.join(branches)}"]
    alone: dict[str, dict[str, None]] = {}
    for one in whole:
        names = [f"{axis.path}[{axis.axis}]" for axis in one.axes]
        alone.setdefault(one.reason, {})[_some(names)] = None
    if alone:
        lines += ["", "left alone:"]
        lines += [f"  {'; '.join(of)}: {why}" for why, of in alone.items()]
    return "\n".join([*lines, "", f"{len(rows) - 1} groups in {steps} equations"])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


#: Kinds of groups that a scope cuts; a product has no reader's weights to go by.
SCOPES = {
    "inner": frozenset({"inner"}),
    "all": frozenset({"inner", "linear", "shared", "stream", "head", "concatenated"}),
}


def scope(
    groups: Iterable[Group], name: str = "inner", ignore: Iterable[str] = ()
) -> tuple[Group, ...]:
    """The groups that may be cut.

    Args:
      groups: of a model.
      name: "inner", the paper's hidden channels, or "all".
      ignore: globs over names of groups that stay whole.

    Raises:
      InputError: there is no such scope, or a glob matches no group.
    """
    groups, ignore = [*groups], [ignore] if isinstance(ignore, str) else [*ignore]
    if name not in SCOPES:
        raise InputError(f"scope {name!r} is none of {', '.join(map(repr, SCOPES))}.")
    names = [group.name for group in groups]
    for glob in ignore:
        if not fnmatch.filter(names, glob):
            raise InputError(
                f"ignore {glob!r} matches no group; the groups are {', '.join(names)}."
            )
    whole = {name for glob in ignore for name in fnmatch.filter(names, glob)}
    return tuple(g for g in groups if g.kind in SCOPES[name] and g.name not in whole)
