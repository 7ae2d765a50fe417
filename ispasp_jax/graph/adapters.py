"""Every framework's model as a function of (variables, inputs)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ispasp_jax.errors import InputError


def function(model: Any, variables: Any = None) -> tuple[Callable[..., Any], Any]:
    """The model in evaluation as a pure function, and its variables.

    Args:
      model: a Linen module, an NNX module, an Equinox module (of one example), a Haiku
        transform, or a function of (variables, *inputs).
      variables: of a Linen module, a Haiku transform ((params, state) where it has
        state) or a function; NNX and Equinox modules carry their own.

    Raises:
      InputError: variables are missing, or the model is none of these.
    """
    if is_nnx(model):
        return _nnx(model)
    if isinstance(model, nn.Module):
        _need(variables, "a Linen module", "model.init(key, x)")
        return (lambda v, *x: model.apply(v, *x)), variables
    if hasattr(model, "init") and callable(getattr(model, "apply", None)):
        return _haiku(model, variables)
    if callable(model) and variables is None:
        return _callable_tree(model)
    if callable(model):
        return model, variables
    raise InputError(
        f"a model of type {type(model).__name__} cannot be traced; give a Linen, NNX "
        "or Equinox module, a Haiku transform, or a function of (variables, inputs)."
    )


def _need(variables, what: str, how: str) -> None:
    if variables is None:
        raise InputError(f"{what} needs its variables: those that {how} gave.")


def is_nnx(model: Any) -> bool:
    """Whether it is an NNX module; NNX is not loaded to find out."""
    names = {f"{t.__module__}.{t.__name__}" for t in type(model).__mro__}
    return any(n.startswith("flax.nnx") and n.endswith(".Module") for n in names)


def _nnx(model: Any):
    from flax import nnx

    definition, state = nnx.split(model)

    def apply(state, *inputs):
        return nnx.merge(definition, state)(*inputs)

    return apply, state


def _haiku(model: Any, variables: Any):
    """hk.Transformed, or hk.TransformedWithState with variables (params, state)."""
    with_state = "State" in type(model).__name__
    how = "(params, state)" if with_state else "params"
    _need(variables, "a Haiku transform", f"init gave: {how}")
    if with_state:
        return (lambda v, *x: model.apply(v[0], v[1], None, *x)[0]), variables
    return (lambda v, *x: model.apply(v, None, *x)), variables


def _callable_tree(model: Any):
    """A module that is a pytree and is called with one example (Equinox)."""
    leaves, tree = jax.tree_util.tree_flatten(model)
    if len(leaves) == 1 and leaves[0] is model:
        raise InputError(
            "a function needs its variables: prune(function, variables, ...), with "
            "function(variables, inputs)."
        )

    def apply(module, *inputs):
        held = iter(jax.tree_util.tree_leaves(module))
        whole = [next(held) if is_array(leaf) else leaf for leaf in leaves]
        return jax.vmap(jax.tree_util.tree_unflatten(tree, whole))(*inputs)

    arrays = [leaf if is_array(leaf) else None for leaf in leaves]
    return apply, jax.tree_util.tree_unflatten(tree, arrays)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, or stands for one."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
