"""Groups of channels as a program's equations make them, with names that people know.

A leaf atom that may be cut, lies in a variable and is summed over by a dot or a
convolution is a group.
"""

import collections
import fnmatch
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ispasp_jax.errors import InputError
from ispasp_jax.graph.atoms import POSITIONS, Atom, leaves, root
from ispasp_jax.graph.program import Equation, Program, Value, equations, values
from ispasp_jax.graph.rules import Contraction, is_affine


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


class _Facts(NamedTuple):
    """What the equations say of leaves."""

    axes: Mapping[Atom, list[Axis]]
    #: Contracting equation and the variable that it multiplies, if it is one.
    contracted: Mapping[Atom, list[tuple[Equation, str | None]]]
    #: Variables whose layer makes the channels, in order.
    made: Mapping[Atom, list[str]]
    added: set[Atom]
    bent: set[Atom]
    pieces: set[Atom]
    blocks: set[Atom]
    layers: Mapping[Atom, int]


def find(
    program: Program, variables: Mapping[str, Value], roots: tuple[str, ...] = ()
) -> tuple[list[Group], list[Whole]]:
    """All groups in the order in which they are made, and what is left alone.

    Args:
      program: with its rules applied.
      variables: its variables' values by key path.
      roots: first keys of paths that name collections, not modules.
    """
    facts = _facts(program, variables)
    found, whole = [], []
    order = {leaf: place for place, leaf in enumerate(facts.contracted)}
    axes_of = sorted(facts.axes.items(), key=lambda pair: order.get(pair[0], -1))
    for leaf, axes in axes_of:
        consumers = facts.contracted.get(leaf, [])
        reason = leaf.reason.text if leaf.reason else None
        if not isinstance(leaf.size, int) or leaf.size < 2:
            continue
        if not reason and not consumers:
            reason = "no dot or convolution reads it"
        if not reason and len(axes) < 2 and leaf not in facts.made:
            reason = "no variable makes it"
        if reason == POSITIONS:
            continue
        if reason:
            whole.append(Whole(tuple(axes), reason))
            continue
        paths = dict.fromkeys(path for _, path in consumers if path)
        found.append(
            Group(
                "",
                leaf.size,
                _kind(leaf, facts),
                facts.layers.get(leaf, 0),
                tuple(axes),
                tuple(dict.fromkeys(p for p in facts.made.get(leaf, ()) if p)),
                tuple(paths),
                leaf,
            )
        )
    return _named(found, facts, roots), whole


def _kind(leaf: Atom, facts: _Facts) -> str:
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


def _facts(program: Program, variables: Mapping[str, Value]) -> _Facts:
    axes = collections.defaultdict(list)
    contracted, made = collections.defaultdict(list), collections.defaultdict(list)
    added, bent, pieces, blocks = set(), set(), set(), set()
    for path, value in variables.items():
        for axis, atom in enumerate(value.dims):
            for leaf in dict.fromkeys(leaves(atom)):
                axes[leaf].append(Axis(path, axis, atom.size))
    for eqn in equations(program):
        if isinstance(eqn.memo, Contraction):
            _contraction(eqn, contracted, made, blocks)
        if eqn.name in ("add", "add_any", "sub"):
            if _of_two_makers(eqn):
                for atom in eqn.outputs[0].dims:
                    added.update(leaves(atom))
        if not is_affine(eqn):
            for value in eqn.outputs:
                bent.update(leaf for atom in value.dims for leaf in leaves(atom))
        for value in eqn.outputs:
            for atom in value.dims:
                _compound(atom, pieces, blocks)
    layers = {}
    for eqn in equations(program):
        if eqn.name == "scan":
            for leaf in _of_layers(eqn, program):
                layers[leaf] = eqn.params["length"]
    return _Facts(axes, contracted, made, added, bent, pieces, blocks, layers)


def _contraction(eqn: Equation, contracted, made, blocks) -> None:
    """What the equation sums over, and what its weights make."""
    for here, there, summed in (
        (eqn.inputs[0], eqn.inputs[1], eqn.memo.left),
        (eqn.inputs[1], eqn.inputs[0], eqn.memo.right),
    ):
        if here.live or not there.live:
            continue
        gone = {id(atom) for atom in summed}
        for atom in here.dims:
            if id(atom) not in gone:
                for leaf in dict.fromkeys(leaves(atom)):
                    made[leaf].append(here.origin or "")
    live = [value.live for value in eqn.inputs[:2]]
    if all(live):
        for atom in eqn.memo.batch:
            blocks.update(leaves(atom))
    weights = eqn.inputs[0] if live[1] and not live[0] else eqn.inputs[1]
    path = None if all(live) else weights.origin or ""
    for atom in eqn.memo.left:
        for leaf in dict.fromkeys(leaves(atom)):
            contracted[leaf].append((eqn, path))


def _of_two_makers(eqn: Equation) -> bool:
    a, b = eqn.inputs
    return a.live and b.live and a.maker is not b.maker and a.shape == b.shape


def _compound(atom: Atom, pieces: set[Atom], blocks: set[Atom]) -> None:
    """Leaves that are a piece of a concatenation, or count blocks of others that could
    be cut, too."""
    atom = root(atom)
    if atom.kind is None:
        return
    members = [root(part) for part in atom.parts]
    free = [
        part
        for part in members
        if any(leaf.reason is None and leaf.size > 1 for leaf in leaves(part))
    ]
    for place, part in enumerate(free):
        if part.kind is not None:
            _compound(part, pieces, blocks)
        elif atom.kind == "sum":
            pieces.add(part)
        elif place < len(free) - 1:
            blocks.add(part)


def _of_layers(scan: Equation, program: Program) -> Iterator[Atom]:
    """Leaves that live in the slices of what a scan goes through, and nowhere else."""
    layers = root(scan.memo)
    body = scan.bodies[0]
    inside = {id(value) for value in values(body)}
    for eqn in equations(body):
        inside.update(id(value) for value in eqn.outputs)
    found: dict[Atom, bool] = {}
    every = [*values(program)]
    for eqn in equations(program):
        for nested in eqn.bodies:
            every += values(nested)
    for value in every:
        sliced = id(value) in inside or (value.dims and root(value.dims[0]) is layers)
        for atom in value.dims:
            for leaf in leaves(atom):
                found[leaf] = found.get(leaf, True) and bool(sliced)
    for value in values(body):
        for atom in value.dims:
            for leaf in leaves(atom):
                if found.pop(leaf, False) and leaf is not layers:
                    yield leaf


def _named(groups: list[Group], facts: _Facts, roots) -> list[Group]:
    """Names from modules: the one that makes the channels and reads them, if it holds
    no other such group; else the outermost that makes no others, or the layer itself.
    """
    layers = [_layer(group, facts, roots) for group in groups]
    homes = [
        _common([layer, *(_module(path, roots) for path in group.consumers)])
        for layer, group in zip(layers, groups, strict=True)
    ]
    streams = [group.kind == "stream" for group in groups]
    own = [h for h, stream in zip(homes, streams, strict=True) if h and not stream]
    names = []
    for layer, home, stream in zip(layers, homes, streams, strict=True):
        if not stream and own.count(home) == 1:
            names.append(".".join(home))
            continue
        others = [
            path
            for path, other in zip(layers, streams, strict=True)
            if other == stream and path != layer
        ]
        taken = [] if stream else own
        names.append(("stream." if stream else "") + _shortest(layer, others, taken))
    count = collections.Counter(names)
    seen: collections.Counter = collections.Counter()
    result = []
    for name, group in zip(names, groups, strict=True):
        seen[name] += 1
        number = f".{seen[name]}" if count[name] > 1 else ""
        result.append(group._replace(name=name + number))
    return result


def _layer(group: Group, facts: _Facts, roots) -> tuple[str, ...]:
    """The module that makes the channels last before they are read; of a stream, the
    first."""
    makers = [path for path in facts.made.get(group.atom, ()) if path]
    first = group.kind == "stream"
    path = (makers[0] if first else makers[-1]) if makers else group.axes[0].path
    return _module(path, roots)


def _module(path: str, roots) -> tuple[str, ...]:
    """The keys of the module that holds a variable."""
    keys = path.split("/")
    if keys[-1] == "value":  # NNX keeps every array in a variable of that name
        keys = keys[:-1]
    if len(keys) > 1 and keys[0] in roots:
        keys = keys[1:]
    named = [key for key in keys[:-1] or keys if key != "~"]  # Haiku's methods
    return tuple(named)


def _common(modules: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The module that holds all of these, two at least; a list of them is none."""
    together = itertools.takewhile(
        lambda keys: len(set(keys)) == 1, zip(*modules, strict=False)
    )
    common = tuple(keys[0] for keys in together)
    inside = [module[len(common)] for module in modules if len(module) > len(common)]
    listed = any(key.isdigit() for key in inside)
    return common if len(inside) == len(modules) and not listed else ()


def _shortest(layer: tuple[str, ...], others, taken) -> str:
    for length in range(1, len(layer) + 1):
        start = layer[:length]
        if length < len(layer) and layer[length].isdigit():
            continue  # a list of modules is none
        if start not in taken and not any(o[:length] == start for o in others):
            return ".".join(start)
    return ".".join(layer)


def table(groups: Iterable[Group], whole: Iterable[Whole], steps: int) -> str:
    """The groups as people read them, and what was left alone and why."""
    rows = [("group", "width", "kind", "arrays", "read by")]
    for group in groups:
        width = f"{group.layers} x {group.width}" if group.layers else str(group.width)
        arrays = len({axis.path for axis in group.axes})
        readers = _some(group.consumers)
        rows.append((group.name, width, group.kind, str(arrays), readers))
    lines = _columns(rows)
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


def reads(program: Program) -> set[int]:
    """Ids of the values that any equation reads, or that come back."""
    found = {id(value) for value in program.outputs}
    for eqn in equations(program):
        found.update(id(value) for value in eqn.inputs)
    return found


def tie(program: Program, variables: Mapping[str, Value], join: Any) -> None:
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
