"""What a model costs: multiply-adds and parameters by counting, as functions of its
groups' sizes. What it costs in time is measured: timing.py.
"""

import collections
import math
import re
from collections.abc import Callable, Iterable, Mapping, Set
from types import MappingProxyType
from typing import NamedTuple

import jax

from ispasp_jax.graph import Traced, branches
from ispasp_jax.graph.atoms import Atom, leaves, root
from ispasp_jax.graph.program import ClosedJaxpr, Equation, Program, program
from ispasp_jax.graph.traced import COLLECTIONS

#: Names of groups, sorted, one twice for its square -> what their product is multiplied
#: with; () is the constant.
Number = int | float
Terms = Mapping[tuple[str, ...], Number]

#: The size of an atom, called for every dimension that is counted.
Size = Callable[[Atom], Terms]


class BySize(NamedTuple):
    """A cost as a function of the groups' sizes: a sum of products of them, which
    multiply-adds and parameters are exactly.

    Attributes:
      widths: the groups' widths, by name.
      terms: what is added up.
      rest: of a group that is a branch's only one, what goes besides where none of its
        channels is left, and the branch with them.
    """

    widths: dict[str, int]
    terms: Terms
    rest: Mapping[str, Terms] = MappingProxyType({})

    @property
    def full(self) -> float:
        """The cost at full width."""
        return self.total({})

    def total(self, sizes: Mapping[str, int]) -> float:
        """The cost at these sizes; groups that are not named keep their width."""
        at = {**self.widths, **sizes}
        gone = sum(self.saved(name, at) for name in self.rest if not at[name])
        return float(_value(self.terms, at) - gone)

    def saved(self, name: str, sizes: Mapping[str, int]) -> float:
        """What goes besides its channels where the group keeps none, at these sizes of
        the others."""
        at = {**self.widths, **sizes}
        return float(_value(self.rest.get(name, {}), at))

    def marginal(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """What the last channel of each group costs at these sizes."""
        at = {n: max(size, 1) for n, size in {**self.widths, **sizes}.items()}
        result = dict.fromkeys(self.widths, 0.0)
        for names, factor in self.terms.items():
            for name, power in collections.Counter(names).items():
                others = math.prod(at[other] for other in names if other != name)
                less = at[name] ** power - (at[name] - 1) ** power
                result[name] += factor * others * less
        return result


def macs(traced: Traced) -> int:
    """Multiply-adds of one example, counted on plain convolutions."""
    return int(macs_by_size(traced).full)


def macs_by_size(traced: Traced) -> BySize:
    """Multiply-adds of one example by the groups' sizes.

    They are those of `multiply_adds`, at a batch of one.
    """
    size, full = _sizes(traced, _batch(traced)), _widths(traced)
    rest = {}
    for name, branch in branches.alone(traced.branches.values()).items():
        own = [e for e in traced.program.equations if _reads(e, {*branch.paths})]
        rest[name] = _apart(_sum(_count_equation(e, size, full) for e in own), name)
    return BySize(full, _count(traced.program, size, full), rest)


def macs_by_part(traced: Traced) -> dict[str, int]:
    """Multiply-adds of one example by part of the network: the first word of the path
    of the weights that they read; those that read none belong to the part before.
    """
    size, full = _sizes(traced, _batch(traced)), _widths(traced)
    parts: dict[str, int] = collections.defaultdict(int)
    part = ""
    for eqn in traced.program.equations:
        count = _value(_count_equation(eqn, size, full), full)
        if count:
            weights = (value.origin for value in eqn.inputs if value.origin)
            part = next(map(_first_word, weights), part)
            parts[part] += int(count)
    return dict(parts)


def _first_word(path: str) -> str:
    first, _, below = path.partition("/")
    return re.split(r"[./]", below if first in COLLECTIONS and below else path)[0]


def parameters(traced: Traced) -> int:
    """How many parameters: what gradients change. Of Linen that is the collection
    "params", of NNX what is an nnx.Param, of a Haiku transform with state its params,
    of anything else all floating-point arrays.
    """
    return int(parameters_by_size(traced).full)


def parameters_by_size(traced: Traced) -> BySize:
    """Parameters by the groups' sizes."""
    size, known = _sizes(traced), {*traced.parameters}

    def count(paths: Iterable[str]) -> Terms:
        return _sum(_product(traced.dims[p], size) for p in paths if p in known)

    rest = {
        name: _apart(count(branch.paths), name)
        for name, branch in branches.alone(traced.branches.values()).items()
    }
    return BySize(_widths(traced), count(traced.parameters), rest)


def _reads(eqn: Equation, paths: Set[str]) -> bool:
    return any(value.origin in paths for value in eqn.inputs)


def _apart(terms: Terms, name: str) -> Terms:
    """What does not depend on a group."""
    return {names: factor for names, factor in terms.items() if name not in names}


def multiply_adds(function: Callable, *arguments) -> int:
    """Multiply-adds of the convolutions and dot products that a function traces to.

    Padding taps count, as in published figures; of a conditional, the branch with the
    most, and where the platform decides, the default one; a loop's body once for each
    turn, or once where nobody knows how often. Nothing is compiled or computed.

    Args:
      function: a JAX function.
      *arguments: arrays or jax.ShapeDtypeStruct.
    """
    whole = program(jax.make_jaxpr(function)(*arguments))
    return int(_value(_count(whole, lambda atom: {(): atom.size}, {}), {}))


def _widths(traced: Traced) -> dict[str, int]:
    return {group.name: group.width for group in traced.groups}


def _batch(traced: Traced) -> set[Atom]:
    """The leaves of the axis along which the inputs' examples lie."""
    arrays = [value for value in traced.program.inputs if value.live and value.dims]
    axes = [value.dims[0] for value in arrays if value.shape[0] == arrays[0].shape[0]]
    return {leaf for atom in axes for leaf in leaves(atom)}


def _sizes(traced: Traced, single: Set[Atom] = frozenset()) -> Size:
    """The size of atoms by groups' sizes; those of `single` count once."""
    known: dict[Atom, Terms] = {
        root(group.atom): {(group.name,): 1} for group in traced.groups
    }
    known |= dict.fromkeys(single, {(): 1})

    def size(atom: Atom) -> Terms:
        atom = root(atom)
        if atom not in known:
            if atom.kind is None:
                known[atom] = {(): atom.size}
            elif atom.kind == "product":
                known[atom] = _product(atom.parts, size)
            else:
                known[atom] = _sum(map(size, atom.parts))
        return known[atom]

    return size


def _count(whole: Program, size: Size, widths: Mapping[str, int]) -> Terms:
    return _sum(_count_equation(eqn, size, widths) for eqn in whole.equations)


def _count_equation(eqn: Equation, size: Size, widths: Mapping[str, int]) -> Terms:
    if eqn.name == "conv_general_dilated":
        made = eqn.params["dimension_numbers"].rhs_spec[0]
        kernel = eqn.inputs[1].dims
        summed = [atom for place, atom in enumerate(kernel) if place != made]
        return _product([*eqn.outputs[0].dims, *summed], size)
    if eqn.name == "dot_general":
        (summed, _), _ = eqn.params["dimension_numbers"]
        left = eqn.inputs[0].dims
        return _product([*eqn.outputs[0].dims, *(left[d] for d in summed)], size)
    inside = [_count(body, size, widths) for body in eqn.bodies or _unopened(eqn)]
    if eqn.name == "cond":
        return max(inside, key=lambda terms: _value(terms, widths))
    if eqn.name == "scan":
        turns = {(): eqn.params["length"]} if eqn.memo is None else size(eqn.memo)
        return _times(_sum(inside), turns)
    return _sum(inside)


def _unopened(eqn: Equation) -> list[Program]:
    """Programs in the parameters of an equation that the trace does not open."""
    given = eqn.params.values()
    flat = [x for p in given for x in (p if isinstance(p, tuple | list) else (p,))]
    closed = [x if isinstance(x, ClosedJaxpr) else ClosedJaxpr(x, ()) for x in flat
              if hasattr(getattr(x, "jaxpr", x), "eqns")]  # fmt: skip
    return [program(x) for x in closed if len(x.consts) == len(x.jaxpr.constvars)]


def _value(terms: Terms, sizes: Mapping[str, int]) -> Number:
    return sum(c * math.prod(sizes[n] for n in names) for names, c in terms.items())


def _sum(members) -> Terms:
    total: dict[tuple[str, ...], Number] = collections.defaultdict(int)
    for terms in members:
        for names, factor in terms.items():
            total[names] += factor
    return dict(total)


def _times(a: Terms, b: Terms) -> Terms:
    return _sum(
        {tuple(sorted((*m, *n))): x * y} for m, x in a.items() for n, y in b.items()
    )


def _product(atoms, size: Size) -> Terms:
    total: Terms = {(): 1}
    for atom in atoms:
        total = _times(total, size(atom))
    return total
