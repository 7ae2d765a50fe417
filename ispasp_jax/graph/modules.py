"""A framework's own module at the widths that a plan leaves.

`narrow` serves every function; where the module itself can take the narrower arrays, it
goes on training, saving and composing as its framework does. Each framework keeps sizes
beside the arrays, and those are brought to what the arrays have:

    Linen     in layers' fields, while they run (nn.intercept_methods)
    NNX       in attributes of the merged module
    Equinox   in static fields of the tree

What comes out is compared with `narrow`'s function before it is given: equation by
equation, and if they differ (a module may reshape in another order), on a small input.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax.graph import adapters, holders, linen
from ispasp_jax.graph.cut import Plan
from ispasp_jax.graph.narrowing import narrow
from ispasp_jax.graph.program import Equation, Program, Value, program
from ispasp_jax.graph.traced import Traced


class Unfit(Exception):
    """Why a framework's module cannot be given at narrower widths."""


def narrower(model: Any, traced: Traced, plan: Plan, variables: Any) -> Any:
    """The model's module, such that it takes the cut arrays.

    Args:
      model: a Linen, NNX or Equinox module, as `trace` took it.
      traced: its groups.
      plan: what stays.
      variables: its variables, cut.

    Returns:
      A Linen module, for `apply` with the cut variables; an NNX or Equinox module that
      carries them.

    Raises:
      Unfit: the module cannot be run so, or is none of these; `narrow` serves.
    """
    inputs = [
        _example(value.aval) for value in traced.program.inputs[len(traced.dims) :]
    ]
    if isinstance(model, nn.Module):
        made = _linen(model, traced, inputs)
    elif adapters.is_nnx(model):
        made = _nnx(model, traced, plan, variables)
    elif callable(model) and any(leaf is not model for leaf in jax.tree.leaves(model)):
        made = _tree(model, traced, plan, variables)
    else:
        raise Unfit("it is no module; narrow evaluates it on the cut arrays.")
    _verify(made, traced, plan, variables, inputs)
    return made


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluated:
    """A model that does not take cut arrays itself, as a function of (variables,
    *inputs) that does, by narrow.

    Attributes:
      original: the model as its author wrote it.
      traced: its groups.
      plan: what stays.
    """

    original: Any
    traced: Traced
    plan: Plan

    @property
    def num_classes(self) -> int:
        """Of a classifier."""
        return self.original.num_classes

    @functools.cached_property
    def learner(self) -> adapters.Learner:
        """The original's functions, of the cut variables."""
        whole = adapters.learner(self.original)
        evaluate, train = (
            narrow(function, self.traced, self.plan)
            for function in (whole.evaluate, whole.train)
        )
        return whole._replace(evaluate=evaluate, train=train)

    def __call__(self, variables: Any, *inputs: Any) -> Any:
        """The outputs in evaluation."""
        return self.learner.evaluate(variables, *inputs)

    apply = __call__


def whole(module: Any) -> Any:
    """The module as its author wrote it."""
    while isinstance(module, linen.Narrower | Evaluated):
        module = module.original
    return module


def applicable(model: Any, traced: Traced, plan: Plan, variables: Any) -> Any:
    """The model's module that takes the cut arrays, or a function that does."""
    try:
        return narrower(model, traced, plan, variables)
    except Unfit:
        return Evaluated(model, traced, plan)


def _example(aval) -> np.ndarray:
    """A small input of the traced shape."""
    draw = np.random.default_rng(0)
    if jnp.issubdtype(aval.dtype, jnp.inexact):
        return draw.normal(size=aval.shape).astype(aval.dtype)
    return (np.arange(math.prod(aval.shape)).reshape(aval.shape) % 2).astype(aval.dtype)


def _linen(model: nn.Module, traced: Traced, inputs) -> nn.Module:
    if isinstance(model, linen.Narrower):
        return model
    sizes = linen.group_sizes(traced.function, traced.variables, *inputs)
    return linen.Narrower(model, tuple(sizes.items()))


def _nnx(model: Any, traced: Traced, plan: Plan, variables: Any) -> Any:
    from flax import nnx

    made = nnx.merge(nnx.graphdef(model), variables)
    return holders.corrected(made, traced, plan)


def _tree(model: Any, traced: Traced, plan: Plan, variables: Any) -> Any:
    """A pytree that is called, with the cut arrays in the places of its own."""
    leaves, tree = jax.tree.flatten(model)
    held = iter(leaf for leaf in jax.tree.leaves(variables) if adapters.is_array(leaf))
    new = [next(held) if adapters.is_array(leaf) else leaf for leaf in leaves]
    # The nodes of an unflattened tree are new: the user's keep their fields.
    return holders.corrected(jax.tree.unflatten(tree, new), traced, plan)


def _verify(made: Any, traced: Traced, plan: Plan, variables: Any, inputs) -> None:
    """Raises Unfit where the module does not do what narrow's function does."""
    expected = narrow(traced.function, traced, plan)
    try:
        apart = isinstance(made, nn.Module)  # from its variables
        function, own = adapters.function(made, variables if apart else None)
        ours = program(jax.make_jaxpr(function)(own, *inputs))
    except Exception as error:  # of many kinds: the module's own code
        reason = str(error).strip().partition("\n")[0]
        raise Unfit(
            f"its code does not run at the cut widths ({type(error).__name__}: "
            f"{reason:.200}); narrow evaluates it on the cut arrays."
        ) from error
    theirs = program(jax.make_jaxpr(expected)(own, *inputs))
    if _equal(ours, theirs):
        return
    with jax.default_matmul_precision("highest"):
        result = jax.jit(function)(own, *inputs)
        right = jax.jit(expected)(own, *inputs)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(right), strict=True):
        apart = jnp.abs(a - b).max() if a.shape == b.shape else jnp.inf
        if not apart <= 1e-4 * jnp.abs(b).max():
            raise Unfit(
                f"at the cut widths its outputs are {float(apart):.1e} from the cut "
                "function's: its code goes by sizes that are not the arrays'; narrow "
                "evaluates it on the cut arrays."
            )


def _equal(a: Program, b: Program, known: dict[Value, Value] | None = None) -> bool:
    """Whether two programs are the same equations on the same values, in order."""
    first, second = _steps(a), _steps(b)
    if len(a.inputs) != len(b.inputs) or len(first) != len(second):
        return False
    pairs = {**(known or {}), **dict(zip(a.inputs, b.inputs, strict=True))}

    def same(x: Value, y: Value) -> bool:
        if x.constant is None or y.constant is None:
            return pairs.get(x) is y
        return x.shape == y.shape and bool(np.array_equal(x.constant, y.constant))

    for one, other in zip(first, second, strict=True):
        if one.name != other.name or len(one.inputs) != len(other.inputs):
            return False
        read = zip(one.inputs, other.inputs, strict=True)
        if not all(same(*pair) for pair in read) or not _same_params(one, other):
            return False
        bodies = zip(one.bodies, other.bodies, strict=True)
        if not all(_equal(x, y, pairs) for x, y in bodies):
            return False
        pairs.update(zip(one.outputs, other.outputs, strict=True))
    return all(same(x, y) for x, y in zip(a.outputs, b.outputs, strict=True))


def _steps(whole: Program) -> list[Equation]:
    """Its equations, those of constants alone done: one of both may have done them."""
    steps = []
    for eqn in whole.equations:
        known = [value.constant for value in eqn.inputs]
        if eqn.bodies or not known or any(array is None for array in known):
            steps.append(eqn)
            continue
        made = eqn.primitive.bind(*known, **eqn.primitive.get_bind_params(eqn.params))
        made = made if eqn.primitive.multiple_results else [made]
        for value, array in zip(eqn.outputs, made, strict=True):
            value.constant = array
    return steps


def _same_params(one: Equation, other: Equation) -> bool:
    """Whether outputs and parameters are equal, those left out that hold bodies."""
    if [v.shape for v in one.outputs] != [v.shape for v in other.outputs]:
        return False
    return one.params.keys() == other.params.keys() and all(
        "jaxpr" in key
        or key == "branches"
        or value is other.params[key]
        or str(value) == str(other.params[key])
        for key, value in one.params.items()
    )
