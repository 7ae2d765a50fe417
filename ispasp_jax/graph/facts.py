"""What a program's equations say of its leaf atoms."""

import collections
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ispasp_jax.graph.atoms import Atom, leaves, root
from ispasp_jax.graph.groups import Axis
from ispasp_jax.graph.program import Equation, Program, Value, equations, values
from ispasp_jax.graph.rules import Contraction, is_affine


class Facts(NamedTuple):
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


def facts(program: Program, variables: Mapping[str, Value]) -> Facts:
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
    return Facts(axes, contracted, made, added, bent, pieces, blocks, layers)


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
    result: dict[Atom, bool] = {}
    every = [*values(program)]
    for eqn in equations(program):
        for nested in eqn.bodies:
            every += values(nested)
    for value in every:
        sliced = id(value) in inside or (value.dims and root(value.dims[0]) is layers)
        for atom in value.dims:
            for leaf in leaves(atom):
                result[leaf] = result.get(leaf, True) and bool(sliced)
    for value in values(body):
        for atom in value.dims:
            for leaf in leaves(atom):
                if result.pop(leaf, False) and leaf is not layers:
                    yield leaf
