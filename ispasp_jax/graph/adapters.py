"""Every framework's model as a function of (variables, inputs)."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax.errors import InputError
from ispasp_jax.trees import key_path


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
    if _is_nnx(model):
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


def _is_nnx(model: Any) -> bool:
    return _is_of_nnx(model, "Module")


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
        whole = [next(held) if _is_array(leaf) else leaf for leaf in leaves]
        return jax.vmap(jax.tree_util.tree_unflatten(tree, whole))(*inputs)

    arrays = [leaf if _is_array(leaf) else None for leaf in leaves]
    return apply, jax.tree_util.tree_unflatten(tree, arrays)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def parameters(variables: Any, model: Any = None) -> dict[str, Any]:
    """The arrays that training moves by gradients, by key path.

    Args:
      variables: of Linen, those of the collection "params"; an NNX state's nnx.Param;
        of anything else, all floating-point arrays.
      model: of a Haiku transform with state, the first of its pair of variables.
    """
    if isinstance(variables, Mapping) and "params" in variables:
        return _below("params", variables["params"])
    if "State" in type(model).__name__ and isinstance(variables, tuple):
        return _below("0", variables[0])
    found = jax.tree_util.tree_leaves_with_path(variables, is_leaf=_is_variable)
    if any(_is_variable(leaf) for _, leaf in found):
        found = [pair for pair in found if _is_variable(pair[1], "Param")]
    arrays = {}
    for path, leaf in found:
        for below, array in jax.tree_util.tree_leaves_with_path(leaf):
            if _is_array(array) and jnp.issubdtype(array.dtype, jnp.floating):
                arrays[key_path((*path, *below))] = array
    return arrays


def _below(name: str, tree: Any) -> dict[str, Any]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {f"{name}/{key_path(path)}": leaf for path, leaf in found}


def _is_variable(leaf: Any, kind: str = "Variable") -> bool:
    return _is_of_nnx(leaf, kind)


def _is_of_nnx(thing: Any, kind: str) -> bool:
    names = {f"{t.__module__}.{t.__name__}" for t in type(thing).__mro__}
    return any(n.startswith("flax.nnx") and n.endswith(f".{kind}") for n in names)
