"""A prunable group is data: which axis of which arrays is the same channel.

In Flax every channel that is made is the last axis of an array and every channel that
is consumed is axis -2 of a kernel, so a residual block's hidden channels are

    Group("layer1.1",
          axes=(("layer1.1/conv1/*", -1), ("layer1.1/bn1/*", -1),
                ("layer1.1/conv2/kernel", -2)))

`take` cuts and `mask` zeroes them by hand, where nobody traces a model (`Traced.take`
and `.mask` know the groups of one); the same support given to both leaves the network's
outputs equal. A tree is any pytree of
arrays, addressed as in trees.py: params, batch statistics, an average of the weights,
an NNX state, an Equinox module. A mapping with the key "params" is taken as Linen
variables: paths then begin below the collection, and hold in all of them.
"""

import fnmatch
import re
from collections.abc import Mapping
from typing import NamedTuple

from ispasp_jax.errors import InputError
from ispasp_jax.graph import trees
from ispasp_jax.graph.trees import Kept, Tree, leaves
from ispasp_jax.graph.trees import nested as nested


class ChannelAxis(NamedTuple):
    """An axis of the array at a path, or of every array whose path matches a glob.

    Several axes of one array may carry the group's channel; all of them are cut. A name
    is taken as it stands before it is taken as a glob: "block[0]/*" is the block of
    that name, where there is one. A glob passes over scalars and over what is no array.
    """

    path: str
    axis: int


class Group(NamedTuple):
    """Channels that are cut together.

    Attributes:
      name: what users, plans and reports call it.
      axes: the arrays that carry the channels, and which dimension of each.
    """

    name: str
    axes: tuple[tuple[str, int], ...]


def width(tree: Tree, group: Group) -> int:
    """How many channels the group has in this tree.

    Raises:
      InputError: an axis names no array, or the arrays disagree.
    """
    return trees.width(tree, axes(tree, group), _named(group))


def axes(tree: Tree, group: Group) -> dict[str, tuple[int, ...]]:
    """The group's axes in this tree: of each array, by its whole path (see trees.py).

    Raises:
      InputError: the group names no axes, or one of them no array.
    """
    result = [path for path, leaf in leaves(tree) if trees.carries(leaf)]
    whole: dict[str, list[str]] = {}  # by the path below the collection
    for path in result:
        below = path.partition("/")[2] if _is_linen(tree) else path
        whole.setdefault(below, []).append(path)
    own: dict[str, tuple[int, ...]] = {}
    for pattern, axis in group.axes:
        matches = _matches(pattern, whole)
        if not matches:
            raise InputError(
                f"{_named(group)}: no array matches {pattern!r}; the tree has "
                f"{trees.listed(whole)}."
            )
        for path in (path for match in matches for path in whole[match]):
            own[path] = (*own.get(path, ()), axis)
    if not own:
        raise InputError(f"{_named(group)} names no axes, so nothing can be cut.")
    return own


def take(tree: Tree, group: Group, kept: Kept) -> Tree:
    """Cuts the group down to the channels `kept`; all else is left as it is.

    Args:
      tree: any pytree, or Linen variables (see the module); it comes back as the type
        that it was.
      group: what to cut.
      kept: the channels that stay: ascending indices, or a mask of the group's width.

    Returns:
      The tree with smaller arrays.

    Raises:
      InputError: the group names no array, or `kept` is none of the two.
    """
    return trees.take(tree, axes(tree, group), kept, _named(group))


def mask(tree: Tree, group: Group, kept: Kept) -> Tree:
    """Zeroes every channel of the group but `kept`: `take`'s twin, for checking it.

    Args:
      tree: as `take`'s.
      group: whose channels.
      kept: the channels that stay: ascending indices, or a mask of the group's width.

    Returns:
      The tree with arrays of the same shapes.

    Raises:
      InputError: the group names no array, or `kept` is none of the two.
    """
    return trees.mask(tree, axes(tree, group), kept, _named(group))


def _named(group: Group) -> str:
    return f"group {group.name!r}"


def _is_linen(tree: Tree) -> bool:
    return isinstance(tree, Mapping) and "params" in tree


def _matches(pattern: str, paths: Mapping[str, object]) -> list[str]:
    """The paths that a pattern names: taken as it stands, then with its brackets as
    they stand, then as a glob; the first reading that names any.
    """
    if pattern in paths:
        return [pattern]
    literal = re.sub(r"\[", "[[]", pattern)
    for reading in (literal, pattern):
        result = [path for path in paths if fnmatch.fnmatchcase(path, reading)]
        if result:
            return result
    return []
