"""What a consumer does with the activations that it reads, found by evaluating the
equations behind its contraction: neither epsilon nor names are assumed.

    U = (H K) · scale + shift

With zeros for H K the chain gives the shift, with ones the scale too. What moves them
tells what the chain's variables are:

    a scale    multiplies the scale
    a var      four times as much of it halves the scale: a running variance
    a mean     moves the shift against the scale: a running mean
    a bias     moves the shift: with the scale before a norm, by itself behind it
"""

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ispasp_jax.graph.program import Equation, Value
from ispasp_jax.walk import sites
from ispasp_jax.walk.flat import Flat
from ispasp_jax.walk.pieces import Piece, compiled, evaluate, piece
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import Weights, weights_of

#: Largest difference that counts as rounding, of the largest value.
TOLERANCE = 1e-3

#: The same numbers in another shape, or a part of them.
_REARRANGING = frozenset("reshape transpose squeeze slice rev copy".split())


class Unreached(Exception):
    """Least squares cannot refit this consumer; the message says why, as a clause."""


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
    def is_norm(self) -> bool:
        """Whether there is a norm whose moments and scale can be written anew."""
        return None not in (self.scale, self.mean, self.var)


class Chain(NamedTuple):
    """Affine equations on the way from one value to another.

    Attributes:
      step: the equations, and the weights that they read.
      start: what they begin with.
      bring: what they give as (n, *positions, o).
      mark: the same for chains of one text and one `bring`.
      features: o.
      flat: the program.
      layer: of a scan.
    """

    step: Piece
    start: Value
    bring: Callable[[Array], Array]
    mark: Hashable
    features: int
    flat: Flat
    layer: int | None

    def ends(self, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift: (o,), or (*positions, o) where positions differ."""
        if not self.step.equations:
            o = self.features
            return np.ones(o, np.float32), np.zeros(o, np.float32)
        run = compiled(("chain", self.step.text, self.mark), lambda: self._at_ends)
        shift, one = jax.device_get(run(weights_of(self.step, weights)))
        return _alike(one - shift), _alike(shift)

    def _at_ends(self, weights: list[Array]) -> tuple[Array, Array]:
        def at(value: float) -> Array:
            # In half precision a scale would be known to three digits.
            start = [jnp.full(self.start.shape, value, jnp.float32)]
            made = self.step.run(start, weights, raised=True)
            return self.bring(made[0])[0].astype(jnp.float32)

        return at(0.0), at(1.0)


def chain(site: Site) -> Chain:
    """The affine equations behind a site's contraction."""
    start = site.equation.outputs[0]
    return Chain(
        piece(site.flat, [site.out], [start]),
        start,
        functools.partial(sites.as_out, site),
        sites.form(site),
        sites.as_kernel_shape(site)[-1],
        site.flat,
        site.layer,
    )


def _alike(x: Float[np.ndarray, "*positions o"]) -> np.ndarray:
    """One row where all positions are alike."""
    rows = x.reshape(-1, x.shape[-1])
    return rows[0] if (rows == rows[0]).all() else x


def kernel(site: Site, weights: Weights) -> Float[Array, "*taps D o"]:
    """The kernel with these weights."""
    step = piece(site.flat, [site.kernel])
    key = "kernel", step.text, sites.form(site)
    run = compiled(
        key,
        lambda: (
            lambda given: sites.as_kernel(site, step.run([], given, raised=True)[0])
        ),
    )
    return run(weights_of(step, weights))


class Consumer(NamedTuple):
    """A consumer as it is with some weights.

    Attributes:
      kernel: K.
      scale: of every output; positions come first where they differ.
      shift: of every output, likewise.
    """

    kernel: Float[Array, "*taps D o"]
    scale: Float[np.ndarray, "*positions o"]
    shift: Float[np.ndarray, "*positions o"]


def consumer(site: Site, weights: Weights) -> Consumer:
    """The consumer with these weights."""
    return Consumer(kernel(site, weights), *chain(site).ends(weights))


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
        if size == o and _is_own(found.flat, value, sliced):
            yield Place(value, layer if sliced else None)


def _is_own(flat: Flat, value: Value, sliced: bool = False) -> bool:
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


class Kernel(NamedTuple):
    """Where a site's kernel lies.

    Attributes:
      variable: which.
      operand: what the contraction reads.
      steps: how that follows from the variable.
    """

    variable: Value
    operand: Value
    steps: tuple[Equation, ...]

    @property
    def index(self) -> Int[np.ndarray, "..."]:
        """Of every number of the operand, in the flat variable."""
        numbers = jnp.arange(self.variable.aval.size).reshape(self.variable.shape)
        env = {self.variable: numbers}
        for eqn in self.steps:
            if eqn.name == "convert_element_type":
                env[eqn.outputs[0]] = env[eqn.inputs[0]]
            else:
                evaluate([eqn], [], env)
        return np.asarray(env[self.operand])

    def put(self, weights: Weights, operand: Array) -> Weights:
        """The weights with another operand."""
        whole = jnp.asarray(weights[self.variable])
        flat = whole.ravel().at[self.index.ravel()].set(operand.ravel())
        return {**weights, self.variable: flat.reshape(whole.shape)}


def stored_kernel(site: Site) -> Kernel:
    """Where the site's kernel lies among the variables.

    Raises:
      Unreached: it is computed from them, or others read it, too.
    """
    flat, value, back = site.flat, site.kernel, []
    known = set(flat.variables.values())
    while value not in known:
        place = flat.made.get(value)
        eqn = None if place is None else flat.equations[place]
        if eqn is None or eqn.name not in _REARRANGING | {"convert_element_type"}:
            how = "closed over" if eqn is None else f"made by {eqn.where}"
            raise Unreached(f"its kernel is {how}, not a variable")
        if len(flat.readers[value]) > 1:
            raise Unreached("its kernel is read at several places")
        back.append(eqn)
        value = eqn.inputs[0]
    if not _is_own(flat, value, site.layer is not None):
        raise Unreached(f"{value.origin} is read at several places")
    return Kernel(value, site.kernel, tuple(reversed(back)))


def store(
    site: Site,
    weights: Weights,
    matrix: Float[np.ndarray, "p o"],
    output: Float[np.ndarray, " o"],
    mean: Float[np.ndarray, " o"],
    var: Float[np.ndarray, " o"],
) -> Weights:
    """The weights with a consumer that multiplies with the matrix and gives `output` on
    average, where the patches times the matrix give (mean, var).

    Where there is a norm with running moments and a scale, they become those of the new
    kernel, unscaled, so that training can go on.

    Raises:
      Unreached: the consumer's arrays cannot hold the fit.
    """
    own, link = stored_kernel(site), chain(site)
    found = roles(link)
    _, before = link.ends(weights)
    if found.is_norm:
        weights = found.mean.put(weights, mean)
        weights = found.var.put(weights, var)
        weights = found.scale.put(weights, 1.0)
        if found.before:
            weights = found.before.put(weights, 0.0)
    scale, _ = link.ends(weights)
    alive = scale != 0
    scale = np.where(alive, scale, 1)
    if found.is_norm:
        weights = found.scale.put(weights, 1 / scale)
    written = matrix if found.is_norm else matrix / scale
    operand = sites.from_kernel(site, jnp.asarray(written, jnp.float32))
    weights = own.put(weights, operand)
    turned, shift = _turned(link, weights), before
    if turned:
        place, at_zero, gain = turned
        shift = output - mean
        needed = (shift - at_zero) / np.where(gain, gain, 1)
        weights = place.put(weights, needed)
    scale, found_shift = link.ends(weights)
    real = np.asarray(kernel(site, weights), np.float64).reshape(matrix.shape)
    expected = matrix * alive
    apart = max(
        np.abs(real * scale - expected).max(), np.abs(found_shift - shift).max()
    )
    if not apart <= TOLERANCE * max(np.abs(expected).max(), np.abs(shift).max()):
        raise Unreached("its arrays cannot hold the fit (its scale or shift is shared)")
    return weights


def knob(site: Site, weights: Weights) -> Place | None:
    """The array that moves the consumer's output alone; None where it has none."""
    turned = _turned(chain(site), weights)
    return turned and turned[0]


def _turned(
    link: Chain, weights: Weights
) -> tuple[Place, Float[np.ndarray, " o"], Float[np.ndarray, " o"]] | None:
    """A chain's knob, its output with zeros there, and what a one adds."""
    found = roles(link)
    for place in (found.bias, found.before, found.mean):
        if place is None:
            continue
        at_one, at_zero = (link.ends(place.put(weights, v))[1] for v in (1.0, 0.0))
        if at_one.shape == at_zero.shape and (at_one != at_zero).any():
            return place, at_zero, at_one - at_zero
    return None


class Reach(NamedTuple):
    """How least squares reaches a consumer.

    Attributes:
      site: its contraction.
      matrix: what the patches are multiplied with, all in all.
      shift: what is added.
      knob: what moves the output alone.
    """

    site: Site
    matrix: Float[np.ndarray, "p o"]
    shift: Float[np.ndarray, " o"]
    knob: Place | None


def reach(site: Site, weights: Weights) -> Reach:
    """How least squares reaches a consumer.

    Raises:
      Unreached: it does not; the message says why.
    """
    stored_kernel(site)
    scale, shift = chain(site).ends(weights)
    if scale.ndim > 1 or shift.ndim > 1:
        raise Unreached("its scale or shift differs from place to place")
    own = np.asarray(kernel(site, weights), np.float64)
    matrix = own.reshape(-1, own.shape[-1]) * scale
    return Reach(site, matrix, np.asarray(shift, np.float64), knob(site, weights))
