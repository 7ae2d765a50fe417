"""Branches: what is added to a stream unchanged, and can be left out of it.

    x + f(x)        a residual block, attention, a perceptron between two norms

A join is a sum of two activations of one shape. Where one of them, x, leads to the
other, what lies between is a branch, if nothing else reads what it makes and if it is
zero when the variables that it alone reads are.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ispasp_jax.graph import names, zeros
from ispasp_jax.graph.groups import Group
from ispasp_jax.graph.program import Equation, Program, Value


class Branch(NamedTuple):
    """A function that is added to a stream, f of x + f(x).

    Attributes:
      name: what users call it: its group's where it has one, else the module's.
      groups: the groups that lie in it; where all of them keep nothing, it is gone and
        the sum is x.
      paths: the variables that it alone reads.
      join: the sum.
    """

    name: str
    groups: tuple[str, ...]
    paths: tuple[str, ...]
    join: Value


def find(
    program: Program,
    variables: Mapping[str, Value],
    groups: Sequence[Group],
    roots: Sequence[str] = (),
) -> list[Branch]:
    """All branches that hold a group, in the order of their joins.

    Args:
      program: with its rules applied.
      variables: its variables' values by key path.
      groups: of the program.
      roots: first keys of paths that name collections, not modules.
    """
    flow = _Flow(program)
    found: list[Branch] = []
    for eqn in program.equations:
        for inside in _between(eqn, flow):
            own = _own(variables, inside, flow)
            held = [g for g in groups if {axis.path for axis in g.axes} <= {*own}]
            if held and _vanishes(eqn, inside, own, variables, flow):
                found.append(_branch(held, own, eqn.outputs[0], roots))
    return _unlike(found)


def gone(branches: Iterable[Branch], empty: Iterable[str]) -> list[Branch]:
    """The branches all of whose groups keep nothing."""
    empty = {*empty}
    return [branch for branch in branches if empty.issuperset(branch.groups)]


def alone(branches: Iterable[Branch]) -> dict[str, Branch]:
    """The groups that are the only ones of a branch, and that branch."""
    return {b.groups[0]: b for b in branches if len(b.groups) == 1}


class _Flow:
    """What leads where in a program: equations by number."""

    def __init__(self, program: Program):
        self.equations = program.equations
        self.made = {
            value: place
            for place, eqn in enumerate(program.equations)
            for value in eqn.outputs
        }
        self.outputs = {*program.outputs}
        #: The live equations that a value leads to: by itself, or through weights.
        self.users: dict[Value, set[int]] = {}
        for place, eqn in reversed([*enumerate(program.equations)]):
            live = any(value.live for value in eqn.outputs)
            through = (self.users.get(value, set()) for value in eqn.outputs)
            own = {place} if live else set().union(*through)
            for value in eqn.inputs:
                self.users.setdefault(value, set()).update(own)

    def before(self, value: Value, stop: Value | None = None) -> set[int]:
        """The live equations that lead to a value, up to another."""
        ahead, result = [value], set()
        while ahead:
            one = ahead.pop()
            place = self.made.get(one)
            if one is stop or not one.live or place is None or place in result:
                continue
            result.add(place)
            ahead += self.equations[place].inputs
        return result


def _between(eqn: Equation, flow: _Flow) -> Iterator[set[int]]:
    """Of a join x + y, the equations that lead from x to y, where nothing else reads
    what they make."""
    if eqn.name not in ("add", "add_any") or len(eqn.inputs) != 2:
        return
    a, b = eqn.inputs
    if not (a.live and b.live and a.shape == b.shape and a is not b):
        return
    for x, y in ((a, b), (b, a)):
        inside = flow.before(y, x) - flow.before(x)
        if not any(x in flow.equations[place].inputs for place in inside):
            continue
        allowed = inside | {flow.made[eqn.outputs[0]]}
        made = {v for place in inside for v in flow.equations[place].outputs}
        read = set().union(*(flow.users.get(value, set()) for value in made))
        if read <= allowed and made.isdisjoint(flow.outputs):
            yield inside


def _own(variables: Mapping[str, Value], inside: set[int], flow: _Flow) -> list[str]:
    """The variables that these equations alone read, and those beside them that nobody
    reads (moving averages of an average)."""
    users = {path: flow.users.get(value, set()) for path, value in variables.items()}
    own = [path for path, places in users.items() if places and places <= inside]
    theirs = {_module(path) for path, places in users.items() if places - inside}
    beside = {_module(path) for path in own} - theirs
    unread = [path for path, places in users.items() if not places]
    return own + [path for path in unread if _module(path) in beside]


def _vanishes(eqn: Equation, inside, own, variables, flow: _Flow) -> bool:
    """Whether one side of a join is zero where the variables are."""
    zero = [variables[path] for path in own]
    steps = flow.equations[: max(inside) + 1]
    gone = zeros.vanish(steps, zero)
    return any(flow.made.get(side) in inside and side in gone for side in eqn.inputs)


def _branch(held: list[Group], own, join: Value, roots: Sequence[str]) -> Branch:
    if len(held) == 1:
        return Branch(held[0].name, (held[0].name,), tuple(own), join)
    weights = [path for group in held for path in (*group.makers, *group.consumers)]
    modules = [names.module(path, roots) for path in dict.fromkeys(weights)]
    name = ".".join(names.common(modules)) or held[0].name
    return Branch(name, tuple(group.name for group in held), tuple(own), join)


def _unlike(found: Iterable[Branch]) -> list[Branch]:
    """The branches, each once and with a name of its own."""
    result: dict[str, Branch] = {}
    for branch in {branch.paths: branch for branch in found}.values():
        name, number = branch.name, 2
        while name in result:
            name, number = f"{branch.name}.{number}", number + 1
        result[name] = branch._replace(name=name)
    return [*result.values()]


def _module(path: str) -> str:
    return path.rpartition("/")[0]
