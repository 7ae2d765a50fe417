"""How least squares reaches a consumer: where its arrays lie among the variables, and
how a fit is written into them so that training can go on.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ispasp_jax.graph.program import Equation, Value
from ispasp_jax.walk import layouts
from ispasp_jax.walk.consumers import Chain, chain, kernel
from ispasp_jax.walk.pieces import evaluate
from ispasp_jax.walk.roles import TOLERANCE, Place, is_own, roles
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import Weights

#: The same numbers in another shape, or a part of them.
_REARRANGING = frozenset("reshape transpose squeeze slice rev copy".split())


class Unreached(Exception):
    """Least squares cannot refit this consumer; the message says why, as a clause."""


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
    def indices(self) -> Int[np.ndarray, "..."]:
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
        flat = whole.ravel().at[self.indices.ravel()].set(operand.ravel())
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
    if not is_own(flat, value, site.layer is not None):
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
    result = roles(link)
    _, before = link.ends(weights)
    norm = result.norm
    if norm:
        weights = norm.mean.put(weights, mean)
        weights = norm.var.put(weights, var)
        weights = norm.scale.put(weights, 1.0)
        if result.before:
            weights = result.before.put(weights, 0.0)
    scale, _ = link.ends(weights)
    alive = scale != 0
    scale = np.where(alive, scale, 1)
    if norm:
        weights = norm.scale.put(weights, 1 / scale)
    written = matrix if norm else matrix / scale
    operand = layouts.from_kernel(site, jnp.asarray(written, jnp.float32))
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
    result = roles(link)
    for place in (result.bias, result.before, result.mean):
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
