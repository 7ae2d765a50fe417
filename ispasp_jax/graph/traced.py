"""`trace`: a model's groups of channels, and the arrays that a plan takes or masks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval

from ispasp_jax.errors import InputError
from ispasp_jax.graph import adapters, branches, cut, groups, rules, search
from ispasp_jax.graph.atoms import freeze
from ispasp_jax.graph.branches import Branch
from ispasp_jax.graph.cut import Cut, Masks, Plan
from ispasp_jax.graph.groups import Group, Whole
from ispasp_jax.graph.names import Names, rename
from ispasp_jax.graph.program import ClosedJaxpr, Program, Value, program
from ispasp_jax.graph.trees import key_path

#: First keys of Linen's and Haiku's trees that name a collection, not a module.
COLLECTIONS = ("params", "batch_stats", "0", "1")


class Traced(Mapping[str, Group]):
    """A model's groups by name; printed, a table of them and of what was left alone.

    Attributes:
      function: the model as a function of (variables, *inputs).
      variables: shapes and dtypes of its variables, at full width.
      inputs: of the example inputs.
      parameters: key paths of the variables that training moves by gradients.
      groups: in the order in which they are made.
      whole: channels that cannot be cut, and why.
      branches: what is added to a stream and can be left out, by name.
      program: its equations.
      dims: the atoms of every variable's dimensions, by key path.
    """

    # Ten parameters: what `trace` found; nobody else makes one.
    def __init__(
        self,
        function: Callable[..., Any],
        variables: Any,
        inputs: tuple,
        parameters: Iterable[str],
        found: list[Group],
        whole: list[Whole],
        added: list[Branch],
        program: Program,
        dims: Mapping[str, list],
    ):
        self.function, self.variables, self.program = function, variables, program
        self.inputs, self.parameters = inputs, tuple(parameters)
        self.groups, self.whole = tuple(found), tuple(whole)
        self.branches = {branch.name: branch for branch in added}
        self._by_name = {group.name: group for group in found}
        self.dims = dims
        self._below = _below_collections(dims)

    def __getitem__(self, name: str) -> Group:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self.groups)

    def __str__(self) -> str:
        steps = len(self.program.equations)
        return groups.table(self.groups, self.whole, steps, [*self.branches])

    def without(self, *names: str) -> Plan:
        """The plan that removes branches of these names.

        Raises:
          InputError: there is no such branch.
        """
        for name in names:
            if name not in self.branches:
                raise InputError(
                    f"there is no branch {name!r}; the branches are "
                    f"{', '.join(self.branches) or 'none'}."
                )
        held = [group for name in names for group in self.branches[name].groups]
        return {group: Cut(self[group].width, np.zeros(0, int)) for group in held}

    def gone(self, plan: Plan) -> tuple[Branch, ...]:
        """The branches that a plan removes: it keeps nothing of all their groups.

        Raises:
          InputError: it keeps nothing of a group without removing a branch with it.
        """
        empty = [name for name, one in plan.items() if not np.size(one.kept)]
        removed = branches.gone(self.branches.values(), empty)
        held = {group for branch in removed for group in branch.groups}
        for name in empty:
            if name not in held:
                raise InputError(_half(name, self.branches.values()))
        return tuple(removed)

    def masks(self, plan: Plan) -> Masks:
        """The plan as masks of leaf atoms.

        Raises:
          InputError: the plan is for another model, or for other widths.
        """
        result = {}
        for name, one in plan.items():
            if name not in self._by_name:
                raise InputError(
                    f"the plan cuts group {name!r}, which this model does not have; it "
                    f"has {', '.join(self._by_name) or 'none'}."
                )
            group = self._by_name[name]
            result[group.atom] = cut.places(name, group.width, group.layers, one)
        if not all(mask.any() for mask in result.values()):
            self.gone(plan)
        return result

    def owner(self, path: str) -> str | None:
        """The variable that a leaf of another tree belongs to: the longest whose path
        ends the leaf's."""
        while path:
            if path in self.dims:
                return path
            if path in self._below:
                return self._below[path]
            path = path.partition("/")[2]
        return None

    def take(self, plan: Plan, tree: Any) -> Any:
        """The tree's arrays with what the plan keeps: variables, or any tree that holds
        trees like them (an optimizer's moments, an average).

        Raises:
          InputError: an array belongs to a variable that is cut and has another shape.
        """
        return self._change(cut.taken, cut.emptied, plan, tree)

    def mask(self, plan: Plan, tree: Any) -> Any:
        """The same arrays at full width, with zeros at what the plan cuts."""
        return self._change(cut.masked, cut.zeroed, plan, tree)

    def _change(self, change, remove, plan: Plan, tree: Any) -> Any:
        masks = self.masks(plan)
        removed = {path for branch in self.gone(plan) for path in branch.paths}

        def visit(path, leaf):
            name = key_path(path)
            variable = self.owner(name)
            if variable is None:
                return leaf
            how = remove if variable in removed else change
            return self._changed(how, name, variable, leaf, masks)

        return jax.tree_util.tree_map_with_path(visit, tree)

    def _changed(self, change, name, variable, leaf, masks):
        dims = self.dims[variable]
        shape = tuple(atom.size for atom in dims)
        if np.shape(leaf) == shape:
            return change(leaf, dims, masks)
        if all(cut.of(atom, masks) is None for atom in dims) or np.size(leaf) == 1:
            return leaf
        raise InputError(
            f"{name} has the shape {np.shape(leaf)}, the variable {variable} that it "
            f"belongs to {shape}, so it is not known what to cut; make it anew from "
            "the cut variables (an optimizer's init)."
        )


def _half(name: str, known: Iterable[Branch]) -> str:
    """Why a plan cannot keep nothing of a group."""
    holders = [branch for branch in known if name in branch.groups]
    if not holders:
        return (
            f"the plan keeps no channel of group {name!r}, which lies in no branch "
            "that could go with it; keep at least one."
        )
    groups = ", ".join(holders[0].groups)
    return (
        f"the plan keeps no channel of group {name!r}, so nothing is left of the "
        f"branch {holders[0].name!r}; keep none of {groups}, or one of each at least."
    )


def _below_collections(paths: Iterable[str]) -> dict[str, str]:
    """Paths without their collection (an optimizer sees "params" alone), where that
    still names one variable."""
    below_collections: dict[str, list[str]] = {}
    for path in paths:
        collection, _, below = path.partition("/")
        if collection in COLLECTIONS and below:
            below_collections.setdefault(below, []).append(path)
    return {below: of[0] for below, of in below_collections.items() if len(of) == 1}


def trace(
    model: Any, variables: Any = None, *inputs: Any, names: Names | None = None
) -> Traced:
    """Finds the model's groups of channels.

    Args:
      model: a Linen, NNX or Equinox module, a Haiku transform, or a function of
        (variables, *inputs).
      variables: arrays or shapes; None for a module that carries its own.
      *inputs: examples, arrays or shapes, a batch of them.
      names: your own names of groups, each with {path or glob: axis} of some variables
        that carry its channels; the equations say which others do.

    Returns:
      The groups by name, and what was left alone and why; printed, a table of both.

    Raises:
      InputError: the model cannot be called so, or the axes of a name are not of one
        group.
    """
    function, variables = adapters.function(model, variables)
    variables, inputs = jax.tree.map(_like, (variables, inputs))
    closed = jax.make_jaxpr(function)(variables, *inputs)
    used = [True] * len(closed.jaxpr.outvars)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, used, instantiate=True)
    whole = program(ClosedJaxpr(jaxpr, closed.consts))
    paths = [
        key_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)
    ]
    by_path: dict[str, Value] = dict(zip(paths, whole.inputs, strict=False))
    for path, value in by_path.items():
        value.origin = path
    for value in whole.inputs[len(paths) :]:
        value.live = True
        for atom in value.dims:
            freeze(atom, "an input")
    rules.apply(whole.equations)
    for value in whole.outputs:
        for atom in value.dims:
            freeze(atom, "an output")
    search.tie(whole, by_path)
    result, alone = search.find(whole, by_path, COLLECTIONS)
    dims = {path: value.dims for path, value in by_path.items()}
    if names:
        ranks = {path: len(atoms) for path, atoms in dims.items()}
        result = rename(result, alone, ranks, names, COLLECTIONS)
    moved = _moved(model, variables)
    added = branches.find(whole, by_path, result, COLLECTIONS)
    return Traced(function, variables, inputs, moved, result, alone, added, whole, dims)


def _moved(model: Any, variables: Any) -> list[str]:
    """Key paths of the variables that gradients change, as the framework says."""
    leaves = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
                          variables)  # fmt: skip
    paths = {
        id(leaf): key_path(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(leaves)
    }
    params, _ = adapters.learner(model).split(leaves)
    return [paths[id(leaf)] for leaf in jax.tree.leaves(params)]


def _like(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.result_type(leaf))
