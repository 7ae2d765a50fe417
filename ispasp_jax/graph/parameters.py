"""Which of a model's variables training moves by gradients."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ispasp_jax.trees import key_path


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
            if jnp.issubdtype(getattr(array, "dtype", bool), jnp.floating):
                arrays[key_path((*path, *below))] = array
    return arrays


def _below(name: str, tree: Any) -> dict[str, Any]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {f"{name}/{key_path(path)}": leaf for path, leaf in found}


def _is_variable(leaf: Any, kind: str = "Variable") -> bool:
    """Whether it is an nnx.Variable, or of one of its classes; NNX is not loaded."""
    names = {f"{t.__module__}.{t.__name__}" for t in type(leaf).__mro__}
    return any(n.startswith("flax.nnx") and n.endswith(f".{kind}") for n in names)
