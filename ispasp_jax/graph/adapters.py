"""Every framework's model as functions of (variables, inputs): in evaluation, and as it
learns.

Whether dropout drops and batch norm counts is said in each framework's own way: by an
argument of the call whose name is known (MODES), by nnx.Module's eval and train, by
Equinox's field `inference`.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from ispasp_jax.errors import InputError

#: Arguments that say whether a model learns, and what they are then.
MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}


class Learner(NamedTuple):
    """A model as pure functions.

    Attributes:
      evaluate: outputs of (variables, *inputs), in evaluation.
      train: outputs and the variables as they moved (batch statistics) of (variables,
        key, *inputs), as it learns.
      split: the variables that gradients change, and the rest.
      join: the variables of both.
    """

    evaluate: Callable[..., Any]
    train: Callable[..., tuple[Any, Any]]
    split: Callable[[Any], tuple[Any, Any]]
    join: Callable[[Any, Any], Any]


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
        from flax import nnx

        return learner(model).evaluate, nnx.split(model)[1]
    if isinstance(model, nn.Module):
        _need(variables, "a Linen module", "model.init(key, x)")
    elif is_haiku(model):
        how = "(params, state)" if _has_state(model) else "params"
        _need(variables, "a Haiku transform", f"init gave: {how}")
    elif callable(model) and variables is None:
        variables = _arrays_of(model)
    return learner(model).evaluate, variables


def learner(model: Any) -> Learner:
    """The model as pure functions; the same ones each time, so that what is compiled of
    them is.

    Args:
      model: as `function` takes it.

    Raises:
      InputError: it is none of these.
    """
    if is_nnx(model):
        from flax import nnx

        return _nnx(nnx.graphdef(model))  # the module may be changed
    if callable(model) and not is_haiku(model) and _is_tree(model):
        return _remembered_tree(_Same(model))
    try:
        hash(model)
    except TypeError:  # a Linen module with a list in it: nn.Sequential
        return _learner(model)
    return _remembered(model)


def _learner(model: Any) -> Learner:
    if isinstance(getattr(model, "learner", None), Learner):  # modules.Evaluated
        return model.learner
    if isinstance(model, nn.Module):
        return _linen(model)
    if is_haiku(model):
        return _haiku(model)
    if callable(model):
        return Learner(model, lambda v, key, *x: (model(v, *x), v), _split, _join)
    raise InputError(
        f"a model of type {type(model).__name__} cannot be traced; give a Linen, NNX "
        "or Equinox module, a Haiku transform, or a function of (variables, inputs)."
    )


_remembered = functools.lru_cache(maxsize=64)(_learner)


class _Same:
    """A tree of arrays as a key: equal to itself."""

    def __init__(self, tree: Any):
        self.tree = tree

    def __hash__(self) -> int:
        return id(self.tree)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.tree is other.tree


@functools.lru_cache(maxsize=64)
def _remembered_tree(key: _Same) -> Learner:
    return _tree(key.tree)


def _need(variables, what: str, how: str) -> None:
    if variables is None:
        raise InputError(f"{what} needs its variables: those that {how} gave.")


def _mode(call: Callable[..., Any], train: bool) -> dict[str, Any]:
    """What a call is to be told of whether it learns."""
    try:
        known = inspect.signature(call).parameters
    except (TypeError, ValueError):
        return {}
    return {name: learns is train for name, learns in MODES.items() if name in known}


def _split(variables: Any) -> tuple[Any, Any]:
    """Real arrays, of a mapping with the key "params" those below it; and all others;
    None in the places of what is in the other tree."""
    below = isinstance(variables, Mapping) and "params" in variables

    def stays(path, leaf):
        if below and getattr(path[0], "key", None) != "params":
            return False
        return is_array(leaf) and jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact)

    visit = jax.tree_util.tree_map_with_path
    params = visit(lambda path, leaf: leaf if stays(path, leaf) else None, variables)
    rest = visit(lambda path, leaf: None if stays(path, leaf) else leaf, variables)
    return params, rest


def _join(params: Any, rest: Any) -> Any:
    return jax.tree.map(
        lambda a, b: b if a is None else a, params, rest, is_leaf=lambda x: x is None
    )


def initialise(module: nn.Module, key: Any, *inputs: Any) -> Any:
    """What a Linen module's `init` gives, called as in evaluation."""
    return module.init(key, *inputs, **_mode(_call(module), False))


def _call(module: nn.Module) -> Callable[..., Any]:
    """What its author wrote."""
    return type(getattr(module, "original", module)).__call__


def _linen(model: nn.Module) -> Learner:
    evaluation, training = (_mode(_call(model), train) for train in (False, True))

    def train(variables, key, *inputs):
        moves = [name for name in variables if name != "params"]
        rngs = {name: key for name in ("dropout", "params")}
        made, moved = model.apply(
            variables, *inputs, **training, mutable=moves, rngs=rngs
        )
        return made, {**variables, **moved}

    def evaluate(variables, *inputs):
        return model.apply(variables, *inputs, **evaluation)

    def split(variables):
        rest = {name: tree for name, tree in variables.items() if name != "params"}
        return variables["params"], rest

    return Learner(
        evaluate, train, split, lambda params, rest: {"params": params, **rest}
    )


def is_nnx(model: Any) -> bool:
    """Whether it is an NNX module; NNX is not loaded to find out."""
    names = {f"{t.__module__}.{t.__name__}" for t in type(model).__mro__}
    return any(n.startswith("flax.nnx") and n.endswith(".Module") for n in names)


@functools.lru_cache(maxsize=64)
def _nnx(definition: Any) -> Learner:
    from flax import nnx

    def evaluate(state, *inputs):
        module = nnx.merge(definition, state, copy=True)
        module.eval()
        return module(*inputs)

    def train(state, key, *inputs):
        module = nnx.merge(definition, state, copy=True)
        module.train()
        return module(*inputs), nnx.state(module)

    def split(state):
        params, rest = nnx.split_state(state, nnx.Param, ...)
        return params, rest

    return Learner(evaluate, train, split, nnx.merge_state)


def is_haiku(model: Any) -> bool:
    """Whether it is what hk.transform or hk.transform_with_state gives."""
    return hasattr(model, "init") and callable(getattr(model, "apply", None))


def _has_state(model: Any) -> bool:
    return "State" in type(model).__name__


def _haiku(model: Any) -> Learner:
    """hk.Transformed, or hk.TransformedWithState with variables (params, state)."""
    with_state = _has_state(model)
    draws = "rng" in inspect.signature(model.apply).parameters  # hk.without_apply_rng

    def call(variables, key, train, inputs):
        # Haiku hides the function's signature, so its arguments are tried.
        given = (*variables,) if with_state else (variables,)
        given = (*given, key) if draws else given
        for name, learns in MODES.items():
            try:
                return model.apply(*given, *inputs, **{name: learns is train})
            except TypeError as error:
                if "unexpected keyword argument" not in str(error):
                    raise
        return model.apply(*given, *inputs)

    def evaluate(variables, *inputs):
        made = call(variables, None, False, inputs)
        return made[0] if with_state else made

    def train(variables, key, *inputs):
        made = call(variables, key, True, inputs)
        if not with_state:
            return made, variables
        return made[0], (variables[0], made[1])

    if with_state:
        return Learner(evaluate, train, tuple, lambda params, state: (params, state))
    return Learner(evaluate, train, lambda v: (v, {}), lambda params, rest: params)


def _tree(model: Any) -> Learner:
    """A module that is a pytree and is called with one example (Equinox)."""
    leaves, tree = jax.tree.flatten(model)
    takes_key = "key" in inspect.signature(type(model).__call__).parameters

    def made(variables, train):
        held = iter(jax.tree.leaves(variables))
        arrays = [next(held) if is_array(leaf) else leaf for leaf in leaves]
        module = jax.tree.unflatten(tree, arrays)
        _set_inference(module, not train)
        return module

    def evaluate(variables, *inputs):
        return jax.vmap(made(variables, False))(*inputs)

    def train(variables, key, *inputs):
        module = made(variables, True)
        if not takes_key:
            return jax.vmap(module)(*inputs), variables
        keys = jax.random.split(key, jax.tree.leaves(inputs)[0].shape[0])
        run = jax.vmap(lambda key, *one: module(*one, key=key))
        return run(keys, *inputs), variables

    return Learner(evaluate, train, _split, _join)


def _set_inference(node: Any, value: bool) -> None:
    """Sets every field `inference` of a tree's nodes, which are new."""
    if hasattr(node, "inference") and isinstance(node.inference, bool):
        object.__setattr__(node, "inference", value)
    if isinstance(node, list | tuple):
        inner = node
    elif isinstance(node, dict):
        inner = node.values()
    else:
        inner = vars(node).values() if hasattr(node, "__dataclass_fields__") else ()
    for child in inner:
        _set_inference(child, value)


def _arrays_of(model: Any) -> Any:
    """The arrays of a pytree that is called, nothing in the place of the rest.

    Raises:
      InputError: it is no pytree, but a function.
    """
    leaves, tree = jax.tree.flatten(model)
    if not _is_tree(model):
        raise InputError(
            "a function needs its variables: prune(function, variables, ...), with "
            "function(variables, inputs)."
        )
    return jax.tree.unflatten(tree, [a if is_array(a) else None for a in leaves])


def _is_tree(model: Any) -> bool:
    return any(leaf is not model for leaf in jax.tree.leaves(model))


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, or stands for one."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
