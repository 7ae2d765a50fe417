"""Shrinking while training: at every step the weakest channels of every group get a
little smaller, in proportion to what they are, so that cutting them at the end takes
little from a network that was never dense and then cut. After Iterative Soft Shrinkage
(ISS-P: Wang et al., arXiv 2303.09650), whose step is, of a layer's weights after the
optimizer's,

    w ← α w    where |w| is among the share p of the layer's smallest

found anew at every step, so that a weight which training pulls back leaves the share.
Here, of a group's d channels, of which s are to stay:

    a_c     what array a has of channel c, after the optimizer's step
    m_c     Σ_a ‖a_c‖² / mean_c ‖a_c‖²               every array counts alike
    p_k     (d − s) · min(1, k / K), rounded down    how many shrink at step k = 1, 2 …
    a_c ← (1 − ρ) a_c    where m_c is among the p_k smallest

This differs from the paper in:

1. Channels for weights: all arrays of a group that are trained shrink together.
2. The share grows to its target in K steps; the paper's is whole from the start.
3. No mask is frozen for a last phase; the schedule's small steps end the pulling back.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from ispasp_jax.errors import InputError
from ispasp_jax.graph import Group, Traced, atoms, key_path, trees

#: ρ of the paper's runs.
RATE = 0.05


class ShrinkState(NamedTuple):
    """What shrinking carries from step to step.

    Attributes:
      step: steps done.
    """

    step: Int[Array, ""]


class _Part(NamedTuple):
    """Where an array has a group's channels.

    Attributes:
      path: the array's key path among the parameters.
      axis: the dimension.
      labels: which channel every place is, -1 for none.
    """

    path: str
    axis: int
    labels: Int[np.ndarray, " size"]


def shrink(
    traced: Traced, sizes: Mapping[str, int], steps: int, rate: float = RATE
) -> optax.GradientTransformation:
    """Shrinks the channels that are to go, ever more of them: the last of a chain,
    since it goes by what the others make of the step.

        optax.chain(optax.adam(1e-3), training.shrink(traced, {"layer1.0": 32}, 1000))

    Args:
      traced: the model whose parameters are trained: its variables, or the part of them
        that an optimizer sees (Linen's "params").
      sizes: how many channels of a group are to stay (see `budget.sizes`); groups that
        are not named stay whole.
      steps: K, in which the share grows; half of all is a good number.
      rate: ρ, what a channel loses in a step, as a share of what it is.

    Returns:
      The transformation; its update needs the parameters.

    Raises:
      InputError: a name is of no group of the model, or of one in a scan, where every
        layer has channels of its own; or not 1 to all channels are to stay.
    """
    for name, size in sizes.items():
        group = traced.get(name)
        if group is None or group.layers or not 0 < size <= group.width:
            raise InputError(
                f"cannot shrink group {name!r} to {size} channels: give a group of the "
                "model, outside of scans, and how many of its channels stay, at least "
                "one."
            )
    groups = [traced[name] for name in sizes if sizes[name] < traced[name].width]

    def init(params: Any) -> ShrinkState:
        del params
        return ShrinkState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("shrink goes by the parameters: give update() them.")
        step = state.step + 1
        arrays = dict(trees.leaves(optax.apply_updates(params, updates)))
        stays: dict[str, Array] = {}  # of every array that has channels that shrink
        for group in groups:
            parts = _parts(traced, group, arrays)
            gone = group.width - sizes[group.name]
            count = gone * jnp.minimum(step, steps) // max(steps, 1)
            weak = weakest(magnitudes(arrays, parts, group.width), count)
            for path, axis, labels in parts:
                here = (labels >= 0) & weak[np.maximum(labels, 0)]
                along = [-1 if i == axis else 1 for i in range(arrays[path].ndim)]
                factor = jnp.where(here, 1 - rate, 1.0).reshape(along)
                stays[path] = stays.get(path, 1.0) * factor

        def smaller(path, change):
            path = key_path(path)
            if path not in stays:
                return change
            lost = (1 - stays[path]) * arrays[path]
            return change - lost.astype(change.dtype)

        changes = jax.tree_util.tree_map_with_path(smaller, updates)
        return changes, ShrinkState(step)

    return optax.GradientTransformation(init, update)


def magnitudes(
    arrays: Mapping[str, Array], parts: Sequence[_Part], width: int
) -> Float[Array, " width"]:
    """m: the squared norms of a group's channels in each array over their mean, summed
    over arrays."""
    result = jnp.zeros(width)
    for path, axis, labels in parts:
        array = jnp.moveaxis(arrays[path], axis, 0).astype(jnp.float32)
        places = jnp.square(array).reshape(len(labels), -1).sum(1)
        own = np.flatnonzero(labels >= 0)
        squares = jnp.zeros(width).at[labels[own]].add(places[own])
        result += squares / jnp.maximum(squares.mean(), jnp.finfo(jnp.float32).tiny)
    return result


def weakest(m: Float[Array, " d"], count: Int[Array, ""]) -> Bool[Array, " d"]:
    """The so many smallest; of equals the first."""
    return m.argsort().argsort() < count


def _parts(traced: Traced, group: Group, arrays: Mapping[str, Array]) -> list[_Part]:
    """Where the parameters have a group's channels."""
    result = []
    for path in arrays:
        variable = traced.owner(path)
        if variable is None:
            continue
        for axis, dim in enumerate(traced.dims[variable]):
            labels = atoms.labels(dim, group.atom)
            if (labels >= 0).any():
                result.append(_Part(path, axis, labels))
    return result
