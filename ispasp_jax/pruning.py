"""One walk through the network, from input to output: for every group gather what the
criterion needs, select, cut, and carry the activations through the block as cut.

The walk holds the calibration images' activations at the present block's input and
nothing else of the network's inside, sums a group's hidden activations over batches,
and never runs a layer before the present block again. A block of a shape that was met
before costs no tracing: modules are static arguments, equal modules hash equal.
"""

import functools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ispasp_jax import budget, groups
from ispasp_jax.ispasp import ispasp
from ispasp_jax.models.network import (
    Block,
    Network,
    Variables,
    graft,
    group_names,
    subtree,
)
from ispasp_jax.plan import Cut, Plan
from ispasp_jax.problem import Criterion, Problem, Selection, checked

#: Called by the walk after each block that was cut, with the network so far: trains it
#: and returns the new variables.
Tune = Callable[[Network, Variables], Variables]


class Batch(NamedTuple):
    """Activations of a batch, and a weight an example: 0 where it is padding."""

    x: Float[Array, "n ..."]
    weight: Float[Array, " n"]


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


class Pruned(NamedTuple):
    """The walk's result: a network that is really smaller, and how it came about."""

    network: Network
    variables: Variables
    groups: tuple[GroupResult, ...]
    seconds: float

    @property
    def plan(self) -> Plan:
        """The groups that lost channels."""
        return {
            group.name: group.cut
            for group in self.groups
            if len(group.cut.kept) < group.cut.width
        }


def prune(
    network: Network,
    variables: Variables,
    images: Iterable[np.ndarray],
    keep: budget.Keep = 0.4,
    **options,
) -> Pruned:
    """Prunes a trained network by i-SpaSP, without labels or training.

    Args:
      network: a shipped model or your own `Network`.
      variables: its Linen variables.
      images: calibration batches, preprocessed, (n, height, width, channels) each.
      keep: the fraction of each group's channels that stays, or fractions by glob.
      **options: of `walk`.
    """
    return walk(network, variables, images, budget.sizes(network, keep), **options)


def walk(
    network: Network,
    variables: Variables,
    images: Iterable[np.ndarray],
    sizes: dict[str, int],
    criterion: Criterion | None = None,
    *,
    key: Array | None = None,
    tune: Tune | None = None,
    carry_dense: bool = False,
    residual_images: int = 256,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Pruned:
    """Prunes group after group, each on the network as pruned so far.

    Args:
      network: the network to prune.
      variables: its variables.
      images: calibration batches, preprocessed. A short one is padded, its padding
        weighs nothing.
      sizes: channels to keep for each group; those not named keep all.
      criterion: how to select; i-SpaSP with T = 20 if None.
      key: for criteria that draw at random; jax.random.key(0) if None.
      tune: trains the network after each block. The walk then computes the activations
        at the boundary again from the images.
      carry_dense: walk the dense network beside, to report how far outputs drift.
      residual_images: how many images the relative residual is measured on, 0 for none.
      progress: wraps the iterable of parts, to show how far the walk is.

    Raises:
      FloatingPointError: NaN or infinity in a group's activations or importance.
      ValueError: no images.
    """
    start = time.perf_counter()
    criterion = criterion or ispasp()
    key = jax.random.key(0) if key is None else key
    inputs = list(_padded(images))
    if not inputs:
        raise ValueError("no calibration images: expected at least one batch.")
    pruned, dense = inputs, inputs if carry_dense else None
    original = variables
    results = []
    parts = network.chain()
    for index, part in enumerate(progress(parts)):
        own = subtree(variables, part)
        if dense is not None:
            dense = _through(part.module, subtree(original, part), dense)
        if isinstance(part.module, Block):
            part, own, found = _prune_block(
                part, own, pruned, sizes, criterion, key, residual_images
            )
            cuts = {g.name: len(g.cut.kept) for g in found}
            changed = cuts != {g.name: g.cut.width for g in found}
            network = network.narrowed(cuts)
            variables = graft(variables, part, own)
        else:
            found, changed = [], False
        if tune is not None and changed:
            variables = tune(network, variables)
            pruned = inputs
            for before in network.chain()[: index + 1]:
                pruned = _through(before.module, subtree(variables, before), pruned)
        else:
            pruned = _through(part.module, own, pruned)
        drift = None if dense is None or not found else _drift(pruned, dense)
        results += [group._replace(drift=drift) for group in found]
    jax.block_until_ready(variables)
    return Pruned(network, variables, tuple(results), time.perf_counter() - start)


def _prune_block(part, own, stream, sizes, criterion, key, residual_images):
    """Selects and cuts the groups of one block, first pair to last."""
    block, results = part.module, []
    for i, name in enumerate(group_names(part)):
        group, width = block.groups[i], block.widths[i]
        size = sizes.get(name, width)
        if size >= width:
            cut = Cut(width, np.arange(width))
            results.append(GroupResult(name, cut, None, 0, None))
            continue
        problem, sample = _gather(
            block, i, own, stream, criterion, group, residual_images
        )
        if "key" in criterion.needs:
            own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
            problem = problem._replace(key=own_key)
        selection = _select(criterion, size, block, i, own, problem)
        selection = checked(jax.device_get(selection), name)
        residual = _relative_residual(block, i, own, sample, selection.support)
        kept = np.flatnonzero(selection.support)
        own = groups.take(own, group, kept)
        widths = (*block.widths[:i], len(kept), *block.widths[i + 1 :])
        block = block.clone(widths=widths)
        results.append(
            GroupResult(
                name, Cut(width, kept), residual, int(selection.iterations), None
            )
        )
    return part._replace(module=block), own, results


def _gather(block, i, own, stream, criterion, group, sample_images):
    """The Problem's fields that the criterion needs, and some hidden activations."""
    wants_hidden = "hidden" in criterion.needs
    total, every, sample, missing = None, [], [], sample_images
    for batch in stream:
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


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, own, x):
    return module.apply(own, x)


def _through(module, own, stream: list[Batch]) -> list[Batch]:
    return [Batch(_apply(module, own, batch.x), batch.weight) for batch in stream]


def _drift(pruned: list[Batch], dense: list[Batch]) -> float:
    squares = [
        _square_distance(p.x, d.x, p.weight) for p, d in zip(pruned, dense, strict=True)
    ]
    apart, size = np.sum(jax.device_get(squares), axis=0)
    return float(np.sqrt(apart / size)) if size > 0 else 0.0


@jax.jit
def _square_distance(x, y, weight):
    weight = weight.reshape([-1] + [1] * (x.ndim - 1))
    return (jnp.square(x - y) * weight).sum(), (jnp.square(y) * weight).sum()


def _padded(images: Iterable[np.ndarray]) -> Iterator[Batch]:
    """Batches of the first one's size (a longer one is split)."""
    size = None
    for array in images:
        size = size or len(array)
        for low in range(0, len(array), size):
            x = jnp.asarray(array[low : low + size])
            short = size - len(x)
            weight = jnp.arange(size) < len(x)
            x = jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1)) if short else x
            yield Batch(x, weight.astype(jnp.float32))
