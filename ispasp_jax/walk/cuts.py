"""Which channels are left in the middle of a walk. Arrays keep their full width, with
zeros where channels went, so that blocks cut to different widths compile once.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ispasp_jax.graph import Cut, Group, Plan, cut
from ispasp_jax.graph.atoms import Atom
from ispasp_jax.walk.flat import Flat
from ispasp_jax.walk.results import GroupResult
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import Weights


class Cuts:
    """The channels that are left of every group that was decided on so far.

    Attributes:
      masks: of the groups' atoms, (width,), or (layers, width).
      any: whether a channel went.

    Args:
      flat: the program.
      tree: the structure of the variables that were given.
    """

    def __init__(self, flat: Flat, tree: Any):
        self._flat, self._tree = flat, tree
        self.masks: dict[Atom, np.ndarray] = {}
        self.any = False

    def write(
        self, group: Group, layer: int | None, result: GroupResult, weights: Weights
    ) -> Weights:
        """The weights with zeros where a group's channels go, of a layer or of all."""
        self.any |= result.is_narrower
        kept = np.isin(np.arange(group.width), result.cut.kept)
        mask = kept
        if layer is not None:
            rows = np.ones((group.layers, group.width), bool)
            mask = self.masks.get(group.atom, rows).copy()
            mask[layer] = kept
        self.masks[group.atom] = mask
        own = {group.atom: mask}
        changed = {}
        for axis in group.axes:
            value = self._flat.variables[axis.path]
            array = changed.get(value, weights[value])
            changed[value] = cut.masked(array, value.dims, own)
        return {**weights, **changed}

    def left(self, site: Site) -> Int[np.ndarray, " k"]:
        """The places of what a consumer reads that are left."""
        mask = cut.of(site.contracted, self.masks)
        if mask is None:
            return np.arange(site.width)
        return np.flatnonzero(mask if mask.ndim == 1 else mask[site.layer])

    def is_done(self, group: Group) -> bool:
        """Whether a group has been cut, in all its layers alike."""
        mask = self.masks.get(group.atom)
        if mask is None or mask.all():
            return False
        return len({*mask.reshape(-1, group.width).sum(1)}) == 1

    def plan(self) -> Plan:
        """The groups that have lost channels so far."""
        plan = {}
        for group in filter(self.is_done, self._flat.traced.groups):
            mask = self.masks[group.atom]
            kept = np.nonzero(mask)[-1].reshape(*mask.shape[:-1], -1)
            plan[group.name] = Cut(group.width, kept)
        return plan

    def narrow(self, weights: Weights) -> Any:
        """The variables that are left so far, as the model has them."""
        arrays = [weights[value] for value in self._flat.variables.values()]
        whole = jax.tree.unflatten(self._tree, arrays)
        return self._flat.traced.take(self.plan(), whole)

    def widen(self, arrays: Mapping[str, Any]) -> Weights:
        """Variables that `narrow` left, by key path, at full width again."""
        return {
            value: jnp.asarray(cut.widened(arrays[path], value.dims, self.masks))
            for path, value in self._flat.variables.items()
        }
