"""Norms with running moments, wherever they are, measured again on a network as pruned
so far: the repair "bn", and what serves where least squares does not reach.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax.graph.atoms import root
from ispasp_jax.graph.program import Value
from ispasp_jax.walk import places, roles, sites
from ispasp_jax.walk.consumers import Chain
from ispasp_jax.walk.flat import Flat
from ispasp_jax.walk.pieces import compiled, piece
from ispasp_jax.walk.roles import Roles
from ispasp_jax.walk.streams import Stream, Weights


class Norm(NamedTuple):
    """A norm with running moments.

    Attributes:
      value: what it normalises.
      place: where that is alive.
      axis: of its features.
      chain: its equations.
    """

    value: Value
    place: int
    axis: int
    chain: Chain

    @property
    def roles(self) -> Roles:
        """Its variables, found by evaluating it."""
        return roles.roles(self.chain)

    @property
    def is_running(self) -> bool:
        """Whether there is a running mean and variance."""
        return None not in (self.roles.mean, self.roles.var)

    @property
    def name(self) -> str:
        """The layer, for people."""
        mean = self.roles.mean
        return str(mean.variable.origin if mean else self.value.origin)


def norms(flat: Flat) -> list[Norm]:
    """Every norm with a running mean and variance, in order."""
    return [norm for norm in candidates(flat) if norm.is_running]


def candidates(flat: Flat) -> list[Norm]:
    """What reads like a norm: evaluating it tells whether it is one."""
    result = (_norm(flat, place) for place in range(len(flat.equations)))
    return [norm for norm in result if norm]


def _norm(flat: Flat, place: int) -> Norm | None:
    eqn = flat.equations[place]
    if len(eqn.outputs) != 1 or not eqn.outputs[0].live or _goes_on(flat, place):
        return None
    start = eqn.outputs[0]
    value, chain = start, []
    while len(readers := flat.readers.get(value, [])) == 1 and _goes_on(
        flat, readers[0]
    ):
        chain.append(flat.equations[readers[0]])
        value = chain[-1].outputs[0]
    if len(chain) < 2:  # a mean, and a variance
        return None
    step = piece(flat, [value], [start])
    axis = _features(start, step.weights)
    if axis is None:
        return None
    link = Chain(
        step,
        start,
        lambda u: jnp.moveaxis(u, axis, -1)[None],
        axis,
        start.shape[axis],
        flat,
        flat.layers.get(chain[0]),
    )
    return Norm(start, place + 1, axis, link)


def _goes_on(flat: Flat, place: int) -> bool:
    """Whether an equation continues a chain that began before."""
    eqn = flat.equations[place]
    live = [value for value in eqn.inputs if value.live]
    return len(live) == 1 and sites.is_placewise(eqn, live[0])


def _features(value: Value, weights) -> int | None:
    """The axis that the weights have in common with the value."""
    own = [root(atom) for atom in value.dims]
    for weight in weights:
        for atom in weight.dims:
            if atom.size > 1 and root(atom) in own:
                return own.index(root(atom))
    return None


def recalibrate(norm: Norm, stream: Stream) -> Weights:
    """The weights with the norm's moments those of the stream's activations."""

    def make():
        def function(x, weight):
            x = jnp.moveaxis(x.astype(jnp.float32), norm.axis, -1)
            weight = jnp.moveaxis(weight, norm.axis, -1)
            weight = jnp.broadcast_to(weight, (*x.shape[:-1], 1))
            x, weight = (a.reshape(len(x), -1, a.shape[-1]) for a in (x, weight))
            count = weight.sum()
            mean = jnp.einsum("npi,npc->c", weight, x) / count
            squares = jnp.einsum("npi,npc->c", weight, jnp.square(x - mean))
            return count, mean, squares

        return function

    run = compiled(("moments", norm.value.aval, norm.axis), make)
    batches = (
        (x, places.weight(stream, norm.value, k))
        for k, x in enumerate(stream.live[norm.value])
    )
    count, mean, squares = 0.0, 0.0, 0.0
    for batch in jax.device_get([run(*pair) for pair in batches]):
        n, m, s = (np.asarray(a, np.float64) for a in batch)
        if not (np.isfinite(m).all() and np.isfinite(s).all()):
            raise FloatingPointError(
                f"{stream.name}: its activations hold NaN or infinity, so its moments "
                "cannot be measured; check the weights and the calibration images."
            )
        if not n:
            continue
        apart, whole = m - mean, count + n
        mean = mean + apart * n / whole
        squares = squares + s + np.square(apart) * count * n / whole
        count = whole
    roles, weights = norm.roles, stream.weights
    assert roles.mean and roles.var, "asked of norms that are running"
    if roles.before:
        mean = mean + roles.before.get(weights)
    weights = roles.mean.put(weights, mean)
    return roles.var.put(weights, squares / count)
