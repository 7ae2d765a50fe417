"""What a walk has decided so far, and keeps, so that one that was killed goes on."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ispasp_jax.graph import Group, Traced
from ispasp_jax.walk.clocks import Clocks
from ispasp_jax.walk.cuts import Cuts
from ispasp_jax.walk.flat import Flat
from ispasp_jax.walk.results import GroupResult, Key, together, uncut
from ispasp_jax.walk.resume import Done, Store
from ispasp_jax.walk.streams import Weights


class Decisions:
    """Of every group what became of it, the cuts, and a store of both.

    Attributes:
      cuts: what is left of every array.
      missed: whether a consumer was not refitted, since one last was.
      count: how many steps have been kept.
    """

    def __init__(
        self,
        traced: Traced,
        program: Flat,
        structure: Any,
        clocks: Clocks,
        store: Store | None,
    ):
        self.cuts, self.missed, self.count = Cuts(program, structure), False, 0
        self._traced, self._variables = traced, program.variables
        self._clocks, self._store = clocks, store
        self._found: dict[Key, GroupResult] = {}

    def cut(
        self, group: Group, layer: int | None, result: GroupResult, weights: Weights
    ) -> Weights:
        """Takes a decision: the weights with zeros where channels go."""
        self._found[group.name, layer] = result
        return self.cuts.write(group, layer, result, weights)

    def amend(self, key: Key, **known: Any) -> None:
        """What is known later of a decision: its drift, why it was not repaired."""
        self._found[key] = self._found[key]._replace(**known)

    def done(self) -> Done | None:
        """What was kept of the present step."""
        return self._store.read(self.count) if self._store else None

    def keep(
        self,
        before: Weights,
        after: Weights,
        keys: Sequence[Key],
        tuned: Mapping[str, Any] | None = None,
    ) -> None:
        """Keeps the present step, done, by the weights before and after it."""
        if not self._store:
            return
        names = {value: path for path, value in self._variables.items()}
        changed = {
            names[value]: np.asarray(array)
            for value, array in after.items()
            if array is not before.get(value)
        }
        results = tuple(self._found[key] for key in keys)
        drifts = tuple(
            (*key, result.drift)
            for key, result in self._found.items()
            if result.drift is not None
        )
        seconds = self._clocks.so_far()
        done = Done(results, changed, drifts, self.missed, seconds, tuned)
        self._store.write(self.count, done)

    def replay(
        self, done: Done, layers: Mapping[str, int | None], weights: Weights
    ) -> Weights:
        """Takes over a step that was done before, on these layers of groups: the
        weights behind it."""
        for result in done.results:
            group = self._traced[result.name]
            weights = self.cut(group, layers.get(result.name), result, weights)
        for name, layer, drift in done.drifts:
            self.amend((name, layer), drift=drift)
        self.missed = done.missed
        self._clocks.seconds.clear()
        self._clocks.seconds.update(done.seconds)
        changed = {
            self._variables[path]: jnp.asarray(array)
            for path, array in done.changed.items()
        }
        return {**weights, **changed}

    def results(self, sizes: Mapping[str, int]) -> tuple[GroupResult, ...]:
        """What has become of every group that was asked about, layers together."""
        plan, results = self.cuts.plan(), []
        for group in self._traced.groups:
            own = [r for (name, _), r in self._found.items() if name == group.name]
            if own:
                results.append(together(own, plan.get(group.name)))
            elif group.name in sizes:
                results.append(uncut(group.name, group.width))
        return tuple(results)
