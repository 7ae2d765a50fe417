"""Selecting the channels of one group: gather what the criterion needs from the batches
at the block's input, ask it, and measure what the cut loses.
"""

import functools
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ispasp_jax import groups
from ispasp_jax import plan as plans
from ispasp_jax.plan import Cut, Plan
from ispasp_jax.problem import Criterion, Problem, Selection, checked
from ispasp_jax.repair import Batch, Stream


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
    """

    name: str
    cut: Cut
    relative_residual: float | None
    iterations: int
    drift: float | None


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


def cut_group(
    name: str, i: int, stream: Stream, asked: Asked
) -> tuple[Stream, GroupResult]:
    """Selects channels of a block's i-th group and cuts the others.

    Args:
      name: the group's full name.
      i: which pair of the block.
      stream: the block as pruned so far, its variables, the batches at its input.
      asked: what is asked of every group.

    Raises:
      FloatingPointError: NaN or infinity in the activations or their importance.
    """
    block, own, batches = stream
    width = block.widths[i]
    size = asked.sizes.get(name, width)
    if size >= width:
        return stream, GroupResult(name, Cut(width, np.arange(width)), None, 0, None)
    criterion = plans.criterion(asked.plan[name]) if asked.plan else asked.criterion
    problem, sample = _gather(i, stream, criterion, asked.residual_images)
    if "key" in criterion.needs:
        key = jax.random.fold_in(asked.key, zlib.crc32(name.encode()))
        problem = problem._replace(key=key)
    selection = _select(criterion, size, block, i, own, problem)
    selection = checked(jax.device_get(selection), name)
    residual = _relative_residual(block, i, own, sample, selection.support)
    kept = np.flatnonzero(selection.support)
    narrow = block.clone(widths=(*block.widths[:i], len(kept), *block.widths[i + 1 :]))
    own = groups.take(own, block.groups[i], kept)
    result = GroupResult(
        name, Cut(width, kept), residual, int(selection.iterations), None
    )
    return Stream(narrow, own, batches), result


def _gather(i, stream, criterion, sample_images):
    """The Problem's fields that the criterion needs, and some hidden activations."""
    (block, own, batches), group = stream, stream.module.groups[i]
    wants_hidden = "hidden" in criterion.needs
    total, every, sample, missing = None, [], [], sample_images
    for batch in batches:
        if not wants_hidden and missing <= 0:
            break
        summed, hidden = _hidden(block, i, own, batch)
        total = summed if total is None else total + summed
        if missing > 0:
            first = jnp.cumsum(batch.weight) <= missing
            weight = jnp.where(first, batch.weight, 0)
            sample.append(Batch(hidden, weight))
            missing -= int(batch.weight.sum())
        if wants_hidden and not group.affine:
            every.append(hidden[np.asarray(batch.weight) > 0])
    problem = Problem()
    if wants_hidden:
        problem = problem._replace(
            hidden=total if group.affine else jnp.concatenate(every)
        )
    if "producer" in criterion.needs:
        problem = problem._replace(producer=groups.producer(own["params"], group))
    return problem, sample


@functools.partial(jax.jit, static_argnums=(0, 1))
def _hidden(block, i, own, batch):
    """A batch's hidden activations and their weighted sum as a batch of one."""
    hidden = block.apply(own, batch.x, i, method="reach")
    weight = batch.weight.reshape([-1] + [1] * (hidden.ndim - 1))
    total = (hidden.astype(jnp.float32) * weight).sum(0, keepdims=True)
    return total, hidden


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _select(criterion, size, block, i, own, problem) -> Selection:
    def consumer(h):
        return block.apply(own, h, i, method="consumer")

    if "consumer" in criterion.needs:
        problem = problem._replace(consumer=consumer)
    return criterion(problem, size)


def _relative_residual(block, i, own, sample, support):
    if not sample:
        return None
    squares = [_squares(block, i, own, batch, support) for batch in sample]
    lost, all_of_it = np.sum(jax.device_get(squares), axis=0)
    return float(np.sqrt(lost / all_of_it)) if all_of_it > 0 else 0.0


@functools.partial(jax.jit, static_argnums=(0, 1))
def _squares(block, i, own, batch, support):
    """‖V‖² and ‖U‖² over a batch of hidden activations."""

    def consumed(h):
        return block.apply(own, h, i, method="consumer")

    def square(difference):
        weight = batch.weight.reshape([-1] + [1] * (difference.ndim - 1))
        return (jnp.square(difference.astype(jnp.float32)) * weight).sum()

    dense = consumed(batch.x)
    zero = consumed(jnp.zeros_like(batch.x[:1]))
    return (
        square(dense - consumed(batch.x * support.astype(batch.x.dtype))),
        square(dense - zero),
    )
