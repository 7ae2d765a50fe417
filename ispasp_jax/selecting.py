"""Selecting the channels of one group: gather what the criterion needs, ask it, and
measure what the cut will lose.
"""

import functools
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ispasp_jax import consumers, devices, gates, groups
from ispasp_jax.errors import InputError
from ispasp_jax.plan import Cut, Plan
from ispasp_jax.problem import (
    LABELLED,
    Criterion,
    LeastSquares,
    Problem,
    Selection,
    Unsuited,
    batch_sum,
    checked,
)
from ispasp_jax.streams import Activations, Stream, across


class GroupResult(NamedTuple):
    """What became of a group.

    Attributes:
      name: the group's name.
      cut: its width before, and the channels kept.
      relative_residual: ‖V‖/‖U‖ with U = consumer(H) − consumer(0), on the first
        `residual_images` images; None where no channel was cut or none was asked for.
      iterations: of the criterion, until the support repeated.
      drift: ‖y − y_dense‖/‖y_dense‖ of the block's output against the dense network's;
        None unless the dense stream was carried.
      unrepaired: why least squares was asked for and did not reach the consumer; None
        where it did, or was not asked. Batch norm's moments are measured again then.
    """

    name: str
    cut: Cut
    relative_residual: float | None
    iterations: int
    drift: float | None
    unrepaired: str | None = None


class Asked(NamedTuple):
    """What is the same for every group of a walk.

    Attributes:
      sizes: channels to keep by group; those not named keep all.
      criterion: how to select.
      key: for criteria that draw at random.
      residual_images: how many images the relative residual is measured on.
      plan: what to keep, where it is known; the criterion is then not asked.
    """

    sizes: dict[str, int]
    criterion: Criterion
    key: Array
    residual_images: int
    plan: Plan | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Fields of a Problem that have to be gathered."""
        return self.criterion.needs if self.plan is None else frozenset()


def select(
    name: str,
    i: int,
    stream: Stream,
    hidden: Activations,
    asked: Asked,
    least_squares: LeastSquares | None,
    rest: gates.Rest | None = None,
) -> GroupResult:
    """Selects the channels of a block's i-th group that stay.

    Args:
      name: the group's full name.
      i: which pair of the block.
      stream: the block as it is before this cut, activations at the pair's input.
      hidden: the group's activations.
      asked: what is asked of every group.
      least_squares: for criteria that need it.
      rest: the network behind the block and its labels, for criteria that need labels.

    Raises:
      FloatingPointError: NaN or infinity in the activations or their importance.
      InputError: the criterion cannot be asked of this group.
    """
    if asked.plan is not None:
        cut = asked.plan[name]
        support = np.isin(np.arange(cut.width), cut.kept)
        residual = _relative_residual(i, stream, hidden, support, asked)
        return GroupResult(name, cut, residual, 0, None)
    block, own = stream.module, stream.own
    needs = asked.needs
    problem = Problem(least_squares=least_squares)
    if "hidden" in needs:
        affine = "consumer" not in needs or block.groups[i].affine
        if affine and "consumer" in needs:  # what a group declares may be wrong
            affine = consumers.is_affine(consumers.probe(i, stream, hidden), own)
        found = _summed if affine else _together
        problem = problem._replace(hidden=found(hidden, stream.weight))
    if "producer" in needs:
        arrays = groups.producer(own["params"], block.groups[i])
        problem = problem._replace(producer=arrays)
    if "key" in needs:
        key = jax.random.fold_in(asked.key, zlib.crc32(name.encode()))
        problem = problem._replace(key=key)
    if needs & LABELLED:
        second = "curvature" in needs
        gradient, curvature = gates.derivatives(i, stream, hidden, rest, second)
        gradient = gradient if "gradient" in needs else None
        problem = problem._replace(gradient=gradient, curvature=curvature)
    size = jnp.int32(asked.sizes[name])  # traced: sizes may differ from block to block
    try:
        selection = _select(asked.criterion, size, block, i, own, problem)
    except Unsuited as error:
        raise InputError(f"group {name!r}: {error}") from error
    selection = checked(devices.agree(jax.device_get(selection)), name)
    residual = _relative_residual(i, stream, hidden, selection.support, asked)
    cut = Cut(len(selection.support), np.flatnonzero(selection.support))
    return GroupResult(name, cut, residual, int(selection.iterations), None)


def uncut(name: str, width: int) -> GroupResult:
    """What becomes of a group that keeps all its channels."""
    return GroupResult(name, Cut(width, np.arange(width)), None, 0, None)


def _summed(hidden: Activations, weights: Activations) -> Array:
    """The weighted sum over examples, as a batch of one."""
    return sum(_sum(h, w) for h, w in zip(hidden, weights, strict=True))


@jax.jit
def _sum(h, weight):
    return batch_sum(h.astype(jnp.float32), weight)


def _together(hidden: Activations, weights: Activations) -> Array:
    """All examples, without padding."""
    pairs = zip(hidden, weights, strict=True)
    return jnp.concatenate([devices.rows(h, w) for h, w in pairs])


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _select(criterion, size, block, i, own, problem) -> Selection:
    def consumer(h):
        return block.apply(own, h, i, method="consumer")

    if "consumer" in criterion.needs:
        problem = problem._replace(consumer=consumer)
    return criterion(problem, size)


def _relative_residual(i, stream, hidden, support, asked):
    missing, squares = asked.residual_images, []
    if missing <= 0:
        return None
    cut = stream.masked(i, support)
    for h, weight in zip(hidden, stream.weight, strict=True):
        if missing <= 0:
            break
        h, weight = h[: asked.residual_images], weight[: asked.residual_images]
        h = h.astype(jnp.float32)  # half precision would round differences away
        weight = jnp.where(jnp.cumsum(weight) <= missing, weight, 0)
        U, zero = stream.consumed(i, h), stream.consumed(i, jnp.zeros_like(h[:1]))
        squares.append(_squares(U, cut.consumed(i, h), zero, weight))
        missing -= int(weight.sum())
    lost, all_of_it = np.sum(jax.device_get(squares), axis=0)
    return float(np.sqrt(lost / all_of_it)) if all_of_it > 0 else 0.0


@jax.jit
def _squares(U, cut, zero, weight):
    """‖V‖² and ‖U‖² over a batch."""

    def square(difference):
        return (jnp.square(difference) * across(weight, difference)).sum()

    return square(U - cut), square(U - zero)
