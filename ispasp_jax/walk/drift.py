"""How far a pruned network drifts from the dense one, consumer by consumer."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ispasp_jax.graph.program import Value
from ispasp_jax.walk import places
from ispasp_jax.walk.batches import Activations, kept
from ispasp_jax.walk.flat import Flat
from ispasp_jax.walk.results import Key
from ispasp_jax.walk.streams import Stream, Watch


class _Due(NamedTuple):
    """What the dense network gave at a place that the pruned one has yet to come to."""

    dense: Activations
    groups: list[Key]


class Drifts:
    """Drifts that are to be measured once the pruned network comes by."""

    def __init__(self, flat: Flat):
        self._made = flat.made
        self._due: dict[Value, _Due] = {}

    def expect(self, target: Value, dense: Activations, keys: Iterable[Key]) -> None:
        """Has the drift of some groups measured at a value.

        Args:
          target: the value.
          dense: what it is in the dense network.
          keys: the groups.
        """
        self._due.setdefault(target, _Due(kept(dense), [])).groups.extend(keys)

    @property
    def end(self) -> int:
        """The place at which all of them are known; 0 where none is expected."""
        return max((1 + self._made[target] for target in self._due), default=0)

    def advance(self, stream: Stream, place: int) -> tuple[Stream, dict[Key, float]]:
        """The pruned network's stream carried on to a place before a consumer, and the
        drifts on the way: ‖z − z_dense‖/‖z_dense‖."""
        passed = {
            target: due
            for target, due in self._due.items()
            if stream.place <= self._made[target] < place
        }
        result: dict[Value, list] = {target: [] for target in passed}
        watch: Watch = {
            target: _watcher(due.dense, stream, target, result[target])
            for target, due in passed.items()
        }
        stream, known = stream.hidden(place, watch), {}
        for target, due in passed.items():
            known |= dict.fromkeys(due.groups, _relative(result[target]))
            del self._due[target]
        return stream, known


def _watcher(dense: Activations, stream: Stream, target: Value, found: list):
    def seen(k: int, array: Array) -> None:
        weight = places.weight(stream, target, k)
        found.append(_distance(array, dense[k], weight))

    return seen


def _relative(found: list) -> float:
    apart, size = np.sum(jax.device_get(found), axis=0)
    return float(np.sqrt(apart / size)) if size > 0 else 0.0


@jax.jit
def _distance(x, y, weight):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return (jnp.square(x - y) * weight).sum(), (jnp.square(y) * weight).sum()
