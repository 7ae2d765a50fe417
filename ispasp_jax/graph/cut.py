"""A plan, and what it does to arrays: `take` makes them smaller, `mask` writes zeros,
and a function gives the same on both (check.py).
"""

import functools
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Int

from ispasp_jax.errors import InputError
from ispasp_jax.graph import trees
from ispasp_jax.graph.atoms import Atom, Size, root

_KEYS = jax.dtypes.prng_key

#: Leaf atom -> which of its places stay, (width,), or (layers, width) where every
#: layer of a scan has channels of its own.
Masks = Mapping[Atom, Bool[np.ndarray, "..."]]


class Cut(NamedTuple):
    """What stays of one group.

    Attributes:
      width: channels before the cut.
      kept: indices of those that stay, ascending; of scanned layers a row each. None
        of the groups of a branch: the branch goes.
    """

    width: int
    kept: Int[np.ndarray, "*layers kept"]

    @property
    def size(self) -> int:
        """How many channels stay, in every layer."""
        return np.shape(self.kept)[-1]


#: Group name -> Cut, in coordinates of the network that the plan is applied to.
Plan = Mapping[str, Cut]


def indices(
    name: str, cut: Any, layers: int | None = None
) -> Int[np.ndarray, "*layers kept"]:
    """What a plan keeps of a group.

    Args:
      name: the group's.
      cut: what the plan has under it.
      layers: that have channels of their own; None: as many as the plan has.

    Raises:
      InputError: it is no Cut, or its indices are not ascending and in range. Masks are
        none, since the length of `kept` is the width that the cut leaves.
    """
    kept = cut.kept if isinstance(cut, Cut) else None
    if kept is None or isinstance(kept, jax.Array | np.ndarray) and kept.dtype == bool:
        raise InputError(
            f"the plan's group {name!r} must be a Cut(width, kept) with the indices of "
            f"what is kept; got {trees.shown(cut)}."
        )
    if np.size(kept) == 0 and np.ndim(kept) == 1 and not layers:
        return np.zeros(0, np.int64)
    if layers is None:
        layers = next(iter(getattr(kept, "shape", ())[:-1]), 0)
    return trees.indices(kept, cut.width, f"group {name!r} of the plan", layers)


def places(name: str, width: int, layers: int, cut: Any) -> Bool[np.ndarray, "..."]:
    """What stays of a group, as a mask over its channels.

    Raises:
      InputError: the cut does not fit the group.
    """
    kept = indices(name, cut, layers)
    if cut.width != width:
        raise InputError(
            f"the plan expects {cut.width} channels in group {name!r}, this network "
            f"has {width}; apply it to the network that it was made for."
        )
    result = np.zeros((*kept.shape[:-1], width), bool)
    np.put_along_axis(result, kept, True, -1)
    return result


def of(atom: Atom, masks: Masks) -> Bool[np.ndarray, "*layers size"] | None:
    """Which places of a dimension stay; None where all do."""
    atom = root(atom)
    if atom.kind is None:
        return masks.get(atom)
    found = [of(part, masks) for part in atom.parts]
    if all(mask is None for mask in found):
        return None
    whole = [
        np.ones(part.size, bool) if mask is None else mask
        for mask, part in zip(found, atom.parts, strict=True)
    ]
    rows = np.broadcast_shapes(*(mask.shape[:-1] for mask in whole))
    if atom.kind == "sum":
        return np.concatenate(
            [np.broadcast_to(m, (*rows, m.shape[-1])) for m in whole], -1
        )
    result = whole[0]
    for mask in whole[1:]:
        both = result[..., :, None] & mask[..., None, :]
        result = both.reshape(*both.shape[:-2], -1)
    return result


def size(atom: Atom, masks: Masks) -> Size:
    """How many places stay."""
    mask = of(atom, masks)
    if mask is None:
        return atom.size
    return int(mask.reshape(-1, mask.shape[-1])[0].sum())


def _by_numpy(change):
    """The change of an array, by numpy where the array is one device's: nothing is
    compiled then."""

    @functools.wraps(change)
    def changed(array, dims, masks: Masks):
        known = isinstance(array, jax.Array) and not isinstance(array, Tracer)
        if not known or len(array.devices()) > 1 or jnp.issubdtype(array.dtype, _KEYS):
            return change(array, dims, masks)
        if all(of(atom, masks) is None for atom in dims):
            return array
        made = change(np.asarray(array), dims, masks)
        return jax.device_put(made, array.sharding if array.committed else None)

    return changed


@_by_numpy
def taken(array, dims, masks: Masks):
    """The array with what stays of every dimension; jax's or numpy's, or a shape."""
    if isinstance(array, jax.ShapeDtypeStruct):
        shape = tuple(size(atom, masks) for atom in dims)
        return jax.ShapeDtypeStruct(shape, array.dtype)
    xp = jnp if isinstance(array, jax.Array) else np
    for axis, atom in enumerate(dims):
        mask = of(atom, masks)
        if mask is None:
            continue
        array = xp.asarray(array)
        if mask.ndim == 1:
            array = xp.take(array, np.flatnonzero(mask), axis=axis)
        else:  # of every layer, which is the first axis, its own
            kept = np.nonzero(mask)[1].reshape(len(mask), -1)
            index = [1] * array.ndim
            index[0], index[axis] = kept.shape
            array = xp.take_along_axis(array, kept.reshape(index), axis=axis)
    return array


def emptied(array, dims, masks: Masks = types.MappingProxyType({})):
    """What is left of an array of a branch that is gone: nothing, of as many
    dimensions."""
    shape = (0,) * len(dims)
    if isinstance(array, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, array.dtype)
    return array[(slice(0),) * len(dims)]


def zeroed(array, dims, masks: Masks = types.MappingProxyType({})):
    """The same array, masked: zeros."""
    if jnp.issubdtype(array.dtype, _KEYS):
        return array
    return (jnp if isinstance(array, jax.Array) else np).zeros_like(array)


def widened(array, dims, masks: Masks):
    """The full-width array of which `taken` leaves this one, zeros where it was cut."""
    for axis, atom in enumerate(dims):
        mask = of(atom, masks)
        if mask is None:
            continue
        array = np.moveaxis(np.asarray(array), axis, -1)
        full = np.zeros((*array.shape[:-1], mask.shape[-1]), array.dtype)
        if mask.ndim == 1:
            full[..., mask] = array
        else:  # of every layer, which is the first axis, its own
            for layer, own, values in zip(full, mask, array, strict=True):
                layer[..., own] = values
        array = np.moveaxis(full, -1, axis)
    return array


@_by_numpy
def masked(array, dims, masks: Masks):
    """The array with zeros at what goes."""
    xp = jnp if isinstance(array, jax.Array) else np
    for axis, atom in enumerate(dims):
        mask = of(atom, masks)
        if mask is None:
            continue
        index = [1] * array.ndim
        index[axis] = mask.shape[-1]
        if mask.ndim == 2:
            index[0] = len(mask)
        array = xp.where(mask.reshape(index), array, xp.zeros((), array.dtype))
    return array
