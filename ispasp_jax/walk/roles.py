"""What the variables of a consumer's chain are: what moves them tells.

a scale    multiplies the scale
a var      four times as much of it halves the scale: a running variance
a mean     moves the shift against the scale: a running mean
a bias     moves the shift: with the scale before a norm, by itself behind it
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ispasp_jax.graph.program import Value
from ispasp_jax.walk.consumers import Chain
from ispasp_jax.walk.flat import Flat
from ispasp_jax.walk.streams import Weights

#: Largest difference that counts as rounding, of the largest value.
TOLERANCE = 1e-3


class Place(NamedTuple):
    """A variable, or a layer's part of a stacked one.

    Attributes:
      variable: which.
      layer: of a scan; None for all of it.
    """

    variable: Value
    layer: int | None = None

    def put(self, weights: Weights, values: Any) -> Weights:
        """The weights with other values here: as many as there are, or one for all."""
        whole = jnp.asarray(weights[self.variable])
        like = whole if self.layer is None else whole[self.layer]
        new = jnp.asarray(values, whole.dtype)
        new = jnp.broadcast_to(new, like.shape) if new.ndim == 0 else new
        new = new.reshape(like.shape)
        if self.layer is not None:
            new = whole.at[self.layer].set(new)
        return {**weights, self.variable: new}

    def get(self, weights: Weights) -> np.ndarray:
        """The values here."""
        whole = np.asarray(weights[self.variable])
        return whole if self.layer is None else np.asarray(whole[self.layer])


class Norm(NamedTuple):
    """A norm's scale and running moments."""

    scale: Place
    mean: Place
    var: Place


class Roles(NamedTuple):
    """What a chain's variables are; None for what there is not.

    Attributes:
      scale: of a norm.
      mean: running.
      var: running.
      bias: moves the output alone, behind a norm if there is one.
      before: a bias before the norm.
    """

    scale: Place | None = None
    mean: Place | None = None
    var: Place | None = None
    bias: Place | None = None
    before: Place | None = None

    @property
    def norm(self) -> "Norm | None":
        """The norm whose moments and scale can be written anew, if there is one."""
        if self.scale is None or self.mean is None or self.var is None:
            return None
        return Norm(self.scale, self.mean, self.var)


def roles(found: Chain) -> Roles:
    """What the chain's variables are, by what moves when they move."""
    places = [*_places(found)]
    key = found.step.text, tuple(p.layer is None for p in places)
    if key not in _ROLES:
        _ROLES[key] = _roles(found, places)
    return Roles(*(None if k is None else places[k] for k in _ROLES[key]))


_ROLES: dict[Any, tuple[int | None, ...]] = {}


def _places(found: Chain) -> Iterator[Place]:
    """Variables that this chain alone reads, in an order that equal chains share."""
    if not found.step.equations:
        return
    o = found.features
    known = {*found.flat.variables.values()}
    for value in found.step.weights:
        if value not in known or not jnp.issubdtype(value.aval.dtype, jnp.floating):
            continue
        layer = found.layer
        sliced = layer is not None and value.aval.size != o
        size = value.aval.size // value.shape[0] if sliced else value.aval.size
        if size == o and is_own(found.flat, value, sliced):
            yield Place(value, layer if sliced else None)


def is_own(flat: Flat, value: Value, sliced: bool = False) -> bool:
    """Whether one equation alone reads a variable, or one a layer."""
    readers = flat.readers.get(value, [])
    if sliced:
        return all(flat.equations[place].name == "slice" for place in readers)
    return len(readers) == 1


def _roles(found: Chain, places: list[Place]) -> tuple[int | None, ...]:
    draw = np.random.default_rng(0)
    drawn = {v: draw.uniform(0.5, 1.5, v.shape) for v in found.step.weights}
    scale, shift = found.ends(_like(drawn))
    roles: dict[str, int] = {}

    def moved(place: Place, times: float, more: float):
        values = place.get(drawn) * times + more
        return found.ends(_like(place.put(drawn, values)))

    for number, place in enumerate(places):
        four, one = moved(place, 4, 0), moved(place, 1, 1)
        if any(a.shape != scale.shape for a in (four[0], one[0])):
            continue
        if not _near(four[0], scale):
            if _near(four[0], 4 * scale):
                roles.setdefault("scale", number)
            elif _near(2 * four[0], scale, 0.01):
                roles.setdefault("var", number)
            continue
        gain = one[1] - shift if one[1].shape == shift.shape else np.zeros(1)
        if not gain.any():
            continue
        unscaled = _near(scale, np.ones_like(scale))
        if _near(gain, -scale):
            roles.setdefault("mean", number)
        elif _near(gain, scale) and not unscaled:
            roles.setdefault("before", number)
        else:
            roles.setdefault("bias", number)
    return tuple(roles.get(name) for name in Roles._fields)


def _like(values: Mapping[Value, Any]) -> dict[Value, Array]:
    return {v: jnp.asarray(a, v.aval.dtype) for v, a in values.items()}


def _near(a: np.ndarray, b: np.ndarray, tolerance: float = TOLERANCE) -> bool:
    return bool((np.abs(a - b) <= tolerance * np.abs(b).max()).all())
