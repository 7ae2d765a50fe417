"""Cutting what an optimizer keeps, so that training goes on across a cut.

An optimizer's state holds arrays of three kinds: copies of a parameter (moments,
traces, averages), which are cut as the parameter is; what is no parameter's (counts,
rates), which stays; and a parameter's sums over channels, as Adafactor, SM3 and
NovoGrad keep them. What the removed channels put into a sum cannot be taken out again:
it is refused.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax

from ispasp_jax.errors import InputError
from ispasp_jax.graph import by_hand, trees
from ispasp_jax.graph.by_hand import Group
from ispasp_jax.graph.trees import Kept, Tree

#: The shape of what stands where optax keeps nothing of a parameter.
NOTHING = (1,)

#: What to do instead.
ANEW = "start it anew, with its init on the cut parameters"


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """The parameter that an array of the state belongs to; none has the path None."""

    path: str | None = None
    shape: tuple[int, ...] = ()


def take_optimizer(
    optimizer: optax.GradientTransformation,
    state: optax.OptState,
    params: Tree,
    group: Group,
    kept: Kept,
) -> optax.OptState:
    """Cuts what an optimizer keeps for each parameter (moments, traces, averages).

    Args:
      optimizer: the transformation that made the state.
      state: its state for `params`.
      params: the parameters before the cut; their paths say what is cut where.
      group: what to cut.
      kept: the channels that stay: ascending indices, or a mask of the group's width.

    Returns:
      The state for the parameters after the cut.

    Raises:
      InputError: the state is not one of this optimizer for these parameters, or it
        holds sums over the channels, which nothing can cut.
    """
    what = f"group {group.name!r}"
    axes = by_hand.axes(params, group)
    rows = trees.indices(kept, trees.width(params, axes, what), what)
    narrow = trees.take(jax.eval_shape(lambda p: p, params), axes, rows, what)
    _check(jax.eval_shape(optimizer.init, params), state)
    pairs, structure = jax.tree_util.tree_flatten_with_path(state)
    owners, cut = _owners(optimizer, state, params), []
    for (path, leaf), owner in zip(pairs, owners, strict=True):
        own = ()
        if owner.path is not None and np.shape(leaf) != NOTHING:
            own = axes.get(owner.path, ())
        if own and np.shape(leaf) != owner.shape:
            raise InputError(_refusal(state, path, leaf))
        for axis in dict.fromkeys(a % len(owner.shape) for a in own):
            leaf = trees.cut(leaf, rows, axis)
        cut.append(leaf)
    # Whatever an array's name is: what the optimizer would keep for the cut parameters.
    expected = jax.tree.leaves(jax.eval_shape(optimizer.init, narrow))
    for (path, leaf), new, like in zip(pairs, cut, expected, strict=True):
        if np.shape(new) != like.shape:
            raise InputError(_refusal(state, path, leaf))
    return jax.tree.unflatten(structure, cut)


def _owners(optimizer, state, params) -> list[_Parameter]:
    """The parameter of each of the state's arrays."""

    def masked(node):
        return isinstance(node, optax.MaskedNode)

    parameters = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _Parameter(trees.key_path(path), np.shape(leaf)), params
    )
    try:
        owned = optax.tree_map_params(
            optimizer,
            lambda leaf, parameter: leaf if masked(leaf) else parameter,
            state,
            parameters,
            transform_non_params=lambda leaf: _Parameter(),
            is_leaf=masked,
        )
    except Exception as error:  # whatever an init does with what is no array
        raise InputError(
            f"{_names(state)}: an optimizer that does not keep one array for each "
            f"parameter; {ANEW}."
        ) from error
    return jax.tree.leaves(owned)


def _check(expected: optax.OptState, state: optax.OptState) -> None:
    """Raises InputError where the state is another optimizer's, or of other widths."""
    if jax.tree.structure(expected) != jax.tree.structure(state):
        raise InputError(
            f"the state is not of this optimizer for these parameters: expected "
            f"{_names(expected)}, got {_names(state)}; give the three that belong "
            "together."
        )
    pairs, _ = jax.tree_util.tree_flatten_with_path(expected)
    for (path, like), leaf in zip(pairs, jax.tree.leaves(state), strict=True):
        if np.shape(leaf) != like.shape:
            raise InputError(
                f"the optimizer's state has shape {np.shape(leaf)} at "
                f"{trees.key_path(path)!r}, where these parameters need {like.shape}; "
                "give the parameters as they were before the cut."
            )


def _refusal(state: Any, path: tuple, leaf: Any) -> str:
    """What is said of an array that cannot be cut."""
    node, name = state, type(state).__name__
    for key in path:
        if hasattr(node, "_fields"):
            name = type(node).__name__
        if isinstance(key, jax.tree_util.GetAttrKey):
            node = getattr(node, key.name)
        elif isinstance(key, jax.tree_util.SequenceKey):
            node = node[key.idx]
        else:
            break  # inside a tree of parameters
    return (
        f"{name}, an optimizer's state, holds sums over channels at "
        f"{trees.key_path(path)!r} (shape {np.shape(leaf)}), from which no channel can "
        f"be taken; {ANEW}."
    )


def _names(state: optax.OptState) -> str:
    """The kinds of state in a state, by optax's names."""
    kinds, nodes = {}, [state]
    while nodes:
        node = nodes.pop()
        if getattr(node, "_fields", ()):
            kinds[type(node).__name__] = True
        if isinstance(node, tuple):
            nodes += reversed(node)
    return ", ".join(kinds) or type(state).__name__
