"""Which channels are left in the middle of a walk. Arrays keep their full width, with
zeros where channels went, so that blocks cut to different widths compile once.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ispasp_jax.graph import Branch, Cut, Group, Plan, branches, cut
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
        return {**weights, **changed, **self._removed(group, weights)}

    def _removed(self, group: Group, weights: Weights) -> Weights:
        """The variables of branches that go with a group, zeros."""
        values = (
            self._flat.variables[path]
            for branch in self.gone
            if group.name in branch.groups
            for path in branch.paths
        )
        return {value: cut.zeroed(weights[value], value.dims) for value in values}

    @property
    def gone(self) -> list[Branch]:
        """The branches of which nothing is left."""
        traced = self._flat.traced
        empty = [
            group.name
            for group in traced.groups
            if group.atom in self.masks and not self.masks[group.atom].any()
        ]
        return branches.gone(traced.branches.values(), empty)

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
        gone = {path for branch in self.gone for path in branch.paths}
        return {
            value: jnp.zeros(value.shape, value.aval.dtype)
            if path in gone
            else jnp.asarray(cut.widened(arrays[path], value.dims, self.masks))
            for path, value in self._flat.variables.items()
        }
