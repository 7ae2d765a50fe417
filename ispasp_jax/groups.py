"""A prunable group is data: which axis of which arrays is the same channel.

In Flax every channel that is made is the last axis of an array and every channel that
is consumed is axis -2 of a kernel, so a residual block's hidden channels are

    Group("layer1.1",
          axes=(("layer1.1/conv1/*", -1), ("layer1.1/bn1/*", -1),
                ("layer1.1/conv2/kernel", -2)),
          consumer=("layer1.1/conv2", "layer1.1/bn2"))

`take` (cut) and `mask` (zero) are the only code that changes a parameter tree, and the
same support given to both leaves the network's outputs equal. A tree is a nested dict
of
arrays: params, batch statistics, an optimizer's moments, an average of the weights, the
pure dict of an NNX state; a dict with the key "params" is taken as Linen variables, one
tree a collection.
"""

import fnmatch
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Shaped

Tree = Mapping[Any, Any]
Leaf = Shaped[Array, "..."] | Shaped[np.ndarray, "..."]


class ChannelAxis(NamedTuple):
    """An axis of every array whose "/"-joined path matches a glob."""

    path: str
    axis: int


class Group(NamedTuple):
    """Channels that are cut together.

    Attributes:
      name: what users, plans and reports call it.
      axes: the arrays that carry the channels; makers at -1, the consumer at -2. The
        first is the kernel that makes them.
      consumer: the modules from the hidden channels to the next sum or activation.
      affine: the consumer is affine in evaluation mode, so the exact batch-summed form
        of selection and the least-squares repair hold. If not, the full form runs.
    """

    name: str
    axes: tuple[tuple[str, int], ...]
    consumer: tuple[str, ...]
    affine: bool = True

    def within(self, prefix: str, name: str) -> "Group":
        """The same group where its sub-tree hangs at `prefix` of a larger tree."""
        below = f"{prefix}/" if prefix else ""
        return self._replace(
            name=name,
            axes=tuple(ChannelAxis(below + path, axis) for path, axis in self.axes),
            consumer=tuple(below + path for path in self.consumer),
        )


def width(tree: Tree, group: Group) -> int:
    """How many channels the group has in this tree.

    Raises:
      ValueError: an axis names no array, or the arrays disagree.
    """
    found = {
        path: leaf.shape[axis]
        for tree in _collections(tree).values()
        for path, leaf in leaves(tree)
        for pattern, axis in group.axes
        if fnmatch.fnmatchcase(path, pattern)
    }
    for pattern, _ in group.axes:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in found):
            raise ValueError(
                f"group {group.name!r}: no array matches {pattern!r}; the tree has "
                f"{', '.join(path for path, _ in leaves(tree))}."
            )
    if len(set(found.values())) > 1:
        raise ValueError(
            f"group {group.name!r}: its arrays disagree on the number of channels: "
            f"{found}; the axes must name one channel each."
        )
    return next(iter(found.values()))


def producer(params: Tree, group: Group) -> OrderedDict[str, Leaf]:
    """The arrays that make the group's channels, by path, channels on the last axis; in
    the order of the axes, which (unlike that of a dict) jit keeps.
    """
    return OrderedDict(
        (path, leaf)
        for pattern, axis in group.axes
        if axis == -1
        for path, leaf in leaves(params)
        if fnmatch.fnmatchcase(path, pattern)
    )


def take(tree: Tree, group: Group, kept: np.ndarray) -> dict:
    """Cuts the group down to the channels `kept` (indices); all else is left as it is.

    Args:
      tree: a tree, or Linen variables (see the module).
      group: what to cut.
      kept: indices of the channels that stay, ascending, shape (s,).
    """
    return _map_channels(tree, group, lambda leaf, axis: _take(leaf, kept, axis))


def mask(tree: Tree, group: Group, kept: np.ndarray) -> dict:
    """Zeroes every channel of the group but `kept`: `take`'s twin, for checking it."""
    return gate(tree, group, jnp.zeros(width(tree, group)).at[kept].set(1))


def gate(tree: Tree, group: Group, factors: Shaped[Array, " d"]) -> dict:
    """Multiplies every channel of the group by its factor; traceable."""

    def scale(leaf, axis):
        return leaf * factors.astype(leaf.dtype).reshape([-1] + [1] * (-axis - 1))

    return _map_channels(tree, group, scale)


def take_optimizer(
    optimizer: optax.GradientTransformation,
    state: optax.OptState,
    params: Tree,
    group: Group,
    kept: np.ndarray,
) -> optax.OptState:
    """Cuts what an optimizer keeps for each parameter (moments, traces, averages).

    Args:
      optimizer: the transformation that made the state.
      state: its state for `params`.
      params: the parameters before the cut; their paths say what is cut where.
      group: what to cut.
      kept: indices of the channels that stay, ascending.
    """
    axes = {path: _axis(path, group) for path, _ in leaves(params)}
    addresses = _map_leaves(params, lambda path, leaf: path)

    def masked(node):
        return isinstance(node, optax.MaskedNode)

    def cut(leaf, path):
        if masked(leaf) or jnp.ndim(leaf) == 0 or axes[path] is None:
            return leaf
        return _take(leaf, kept, axes[path])

    return optax.tree_map_params(optimizer, cut, state, addresses, is_leaf=masked)


def leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every array of a nested dict with its "/"-joined path."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}/")
        else:
            yield path, value


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


def _axis(path: str, group: Group) -> int | None:
    for pattern, axis in group.axes:
        if fnmatch.fnmatchcase(path, pattern):
            return axis
    return None


def _take(leaf: Leaf, kept: np.ndarray, axis: int) -> Leaf:
    if isinstance(leaf, jax.Array):
        return jnp.take(leaf, jnp.asarray(kept), axis, mode="clip")
    return np.ascontiguousarray(np.take(leaf, kept, axis))


def _collections(tree: Tree) -> Mapping[str, Tree]:
    return tree if "params" in tree else {"": tree}


def _map_channels(tree: Tree, group: Group, change: Callable) -> dict:
    def visit(path, leaf):
        axis = _axis(path, group)
        return leaf if axis is None else change(leaf, axis)

    changed = {k: _map_leaves(t, visit) for k, t in _collections(tree).items()}
    return changed.get("", changed)


def _map_leaves(tree: Tree, change: Callable, prefix: str = "") -> dict:
    return {
        key: _map_leaves(value, change, f"{prefix}{key}/")
        if isinstance(value, Mapping)
        else change(f"{prefix}{key}", value)
        for key, value in tree.items()
    }
