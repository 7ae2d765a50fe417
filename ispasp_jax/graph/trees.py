"""Channels of any pytree: some axes of some arrays, by path, cut or zeroed by a kept
set.

A path is jax's own key path, its keys joined by "/":

    jax.tree_util.keystr(path, simple=True, separator="/")

so dicts, FrozenDicts, lists, tuples, dataclasses, NNX states and Equinox modules are
addressed alike, and come back as what they were. Nothing here knows of groups, globs
or networks.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, Shaped

from ispasp_jax.errors import InputError

Tree = Any
Leaf = Shaped[Array, "..."] | Shaped[np.ndarray, "..."] | jax.ShapeDtypeStruct

#: The axes of each array, by its path, that carry one and the same channel.
Axes = Mapping[str, tuple[int, ...]]

#: What stays: ascending indices, or a mask as long as there are channels.
Kept = Any


def leaves(tree: Tree) -> Iterator[tuple[str, Any]]:
    """Every leaf of a pytree with its path."""
    try:
        pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    except ValueError as error:  # a dict's keys of several types, for one
        raise InputError(f"this is not a pytree: {error}.") from error
    return ((key_path(path), leaf) for path, leaf in pairs)


def key_path(path: tuple) -> str:
    """A leaf's address: its keys joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def nested(arrays: Mapping[str, Any]) -> dict:
    """The nested dict whose `leaves` these are."""
    tree: dict = {}
    for path, leaf in arrays.items():
        *folders, name = path.split("/")
        branch = tree
        for key in folders:
            branch = branch.setdefault(key, {})
        branch[name] = leaf
    return tree


def width(tree: Tree, axes: Axes, what: str = "the tree") -> int:
    """How many channels the axes have, all of them alike.

    Args:
      tree: any pytree.
      axes: which axes of which arrays.
      what: the beginning of an error's sentence.

    Raises:
      InputError: a path that is no array's, or that several arrays have; an axis that
        the array lacks; axes of several lengths, or of none.
    """
    result: dict[str, Any] = {}
    for path, leaf in leaves(tree):
        if path in axes and path in result:
            raise InputError(f"{what}: several arrays have the path {path!r}.")
        result[path] = leaf
    lengths = {}
    for path, own in axes.items():
        if path not in result:
            raise InputError(
                f"{what}: no array has the path {path!r}; the tree has "
                f"{listed(result)}."
            )
        for axis in own:
            name = path if len(own) == 1 else f"{path}, axis {axis}"
            lengths[name] = _length(result[path], path, axis, what)
    if len(set(lengths.values())) != 1:
        raise InputError(
            f"{what}: its arrays disagree on the number of channels: {lengths}; the "
            "axes must name one channel each."
        )
    return next(iter(lengths.values()))


def indices(
    kept: Kept, channels: int, what: str = "the tree", layers: int = 0
) -> Int[np.ndarray, "*layers s"]:
    """What stays, as ascending indices.

    Args:
      kept: ascending indices, or a mask.
      channels: how many there are.
      what: the beginning of an error's sentence.
      layers: that have channels of their own, the same number of each: a row of
        indices each. 0: none, one row without an axis of its own.

    Raises:
      InputError: it is neither ascending indices in range nor a mask of that length.
    """
    rows = (layers,) if layers else ()
    expected = (
        f"indices must be ascending integers in [0, {channels}), at least one, or a "
        f"boolean mask of length {channels}"
        f"{f', and a row of them for each of {layers} layers' if layers else ''}"
    )
    if isinstance(kept, Tracer):
        raise InputError(
            f"{what}: what is kept decides shapes, but jit traced it; "
            f"{expected}, known outside jit."
        )
    try:
        given = np.asarray(kept)
    except ValueError:  # ragged lists
        given = np.asarray(None)
    if given.dtype == bool and given.shape == (*rows, channels):
        counts = {int(count) for count in np.atleast_1d(given.sum(-1))}
        if len(counts) == 1:
            given = np.nonzero(given)[-1].reshape(*rows, -1)
    fits = given.dtype.kind in "iu" and given.shape[:-1] == rows and given.size
    if not fits or given.ndim != len(rows) + 1 or not _ascending(given, channels):
        raise InputError(f"{what}: {expected}; got {shown(kept)}.")
    return given.astype(np.int64)


def _ascending(given: np.ndarray, channels: int) -> bool:
    inside = given.min() >= 0 and given.max() < channels
    return bool(inside and (np.diff(given) > 0).all())


def take(tree: Tree, axes: Axes, kept: Kept, what: str = "the tree") -> Tree:
    """The tree with the kept channels alone, on every one of the axes.

    Args:
      tree: any pytree; it comes back as the same type, and leaves that nothing cuts as
        the same objects. NumPy arrays stay NumPy's.
      axes: which axes of which arrays; all axes of an array are cut.
      kept: ascending indices, or a mask.
      what: the beginning of an error's sentence.
    """
    rows = indices(kept, width(tree, axes, what), what)
    return _change(tree, axes, lambda leaf, axis: cut(leaf, rows, axis))


def mask(tree: Tree, axes: Axes, kept: Kept, what: str = "the tree") -> Tree:
    """The tree with zeros in all channels but the kept ones: `take`'s twin."""
    channels = width(tree, axes, what)
    alive = np.isin(np.arange(channels), indices(kept, channels, what))
    return _change(tree, axes, lambda leaf, axis: _zero(leaf, alive, axis))


def cut(leaf: Leaf, rows: Int[np.ndarray, " s"], axis: int) -> Leaf:
    """An array's rows along an axis; they are in range."""
    if isinstance(leaf, np.ndarray):
        return np.ascontiguousarray(np.take(leaf, rows, axis))
    taken = functools.partial(jnp.take, indices=rows, axis=axis, mode="clip")
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(taken, leaf)
    return taken(leaf)


def across(vector: Any, ndim: int, axis: int) -> Any:
    """A vector shaped to multiply an array of `ndim` axes along one of them."""
    shape = [1] * ndim
    shape[axis] = -1
    return vector.reshape(shape)


def listed(paths: Mapping[str, Any]) -> str:
    """The first paths, for a sentence."""
    first = ", ".join([*paths][:40]) or "no arrays"
    return f"{first}, …" if len(paths) > 40 else first


def shown(value: Any) -> str:
    """A value, for a sentence."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else f"{text[:120]}…"


def carries(leaf: Any) -> bool:
    """Whether a leaf can carry channels: counters, names and functions have no axes."""
    return len(getattr(leaf, "shape", ())) > 0


def _length(leaf: Any, path: str, axis: int, what: str) -> int:
    if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        raise InputError(
            f"{what}: {path!r} is {type(leaf).__name__}; only arrays of jax and numpy "
            "have channels."
        )
    if not -len(leaf.shape) <= axis < len(leaf.shape):
        raise InputError(
            f"{what}: {path!r} has shape {tuple(leaf.shape)}, and so no axis {axis}."
        )
    return leaf.shape[axis]


def _zero(leaf: Leaf, alive: Bool[np.ndarray, " d"], axis: int) -> Leaf:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    keep = across(alive, leaf.ndim, axis)  # where, as NaN times zero is no zero
    if isinstance(leaf, np.ndarray):
        return np.where(keep, leaf, np.zeros_like(leaf))
    return jnp.where(keep, leaf, jnp.zeros_like(leaf))


def _change(tree: Tree, axes: Axes, change: Callable[[Leaf, int], Leaf]) -> Tree:
    def visit(path, leaf):
        own = axes.get(key_path(path), ())
        for axis in dict.fromkeys(a % len(leaf.shape) for a in own):
            leaf = change(leaf, axis)
        return leaf

    return jax.tree_util.tree_map_with_path(visit, tree)
