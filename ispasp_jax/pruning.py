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
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ispasp_jax import budget, groups
from ispasp_jax.ispasp import ispasp
from ispasp_jax.models.network import (
    Block,
    Network,
    Variables,
    cuttable,
    graft,
    group_names,
    subtree,
)
from ispasp_jax.plan import Cut, Plan
from ispasp_jax.problem import Criterion, Problem, Selection, checked
from ispasp_jax.repair import Batch, Stream, least_squares, reaches, recalibrate

#: Called by the walk after each block that was cut, with the network so far: trains it
#: and returns the new variables.
Tune = Callable[[Network, Variables], Variables]


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
    """The walk's result: a network that is really smaller, and how it came about.

    Attributes:
      network: the narrower network.
      variables: its variables.
      groups: what became of every group.
      seconds: of the walk without repair and `tune`.
      repair_seconds: of the repair.
    """

    network: Network
    variables: Variables
    groups: tuple[GroupResult, ...]
    seconds: float
    repair_seconds: float

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
    repair: Literal["none", "bn", "lsq"] = "none",
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
      repair: after a cut, refit consumers by least squares ("lsq") or measure batch
        norm's moments again ("bn"); see repair.py.
      tune: trains the network after each block. The walk then computes the activations
        at the boundary again from the images.
      carry_dense: walk the dense network beside, to report how far outputs drift; the
        least squares do so anyway.
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
    if repair not in ("none", "bn", "lsq"):
        raise ValueError(f"repair {repair!r} is none of none, bn, lsq.")
    pruned, dense = inputs, inputs if carry_dense or repair == "lsq" else None
    original, results, clock = variables, [], _Clock()
    aside = _Clock()
    parts = network.chain()
    for index, part in enumerate(progress(parts)):
        own = subtree(variables, part)
        theirs = Stream(part.module, subtree(original, part), dense)
        differs = any(len(g.cut.kept) < g.cut.width for g in results)
        block, found = part.module, []
        if isinstance(block, Block):
            names = dict(zip(cuttable(part), group_names(part), strict=True))
            for i, group in enumerate(block.groups):
                if group in names:
                    name = names[group]
                    block, own, result = _cut_pair(
                        name,
                        block,
                        i,
                        own,
                        pruned,
                        sizes,
                        criterion,
                        key,
                        residual_images,
                    )
                    differs |= len(result.cut.kept) < result.cut.width
                    found.append(result)
                if repair == "lsq" and differs and reaches(block, own, i):
                    with clock:
                        own = least_squares(i, Stream(block, own, pruned), theirs)
        reached = repair == "lsq" and _fitted(block, own)
        if differs and repair != "none" and not reached:
            with clock:
                own = recalibrate(Stream(block, own, pruned))
        network = network.narrowed({g.name: len(g.cut.kept) for g in found})
        variables = graft(variables, part, own)
        if dense is not None:
            dense = _through(theirs.module, theirs.own, dense)
        if tune is not None and any(len(g.cut.kept) < g.cut.width for g in found):
            with aside:
                variables = tune(network, variables)
            pruned = inputs
            for before in network.chain()[: index + 1]:
                pruned = _through(before.module, subtree(variables, before), pruned)
        else:
            pruned = _through(block, own, pruned)
        drift = None if dense is None or not found else _drift(pruned, dense)
        results += [group._replace(drift=drift) for group in found]
    jax.block_until_ready(variables)
    total = time.perf_counter() - start - aside.seconds
    return Pruned(
        network, variables, tuple(results), total - clock.seconds, clock.seconds
    )


def _fitted(module, own) -> bool:
    """Whether least squares reached every consumer of a part."""
    pairs = module.groups if isinstance(module, Block) else ()
    return bool(pairs) and all(reaches(module, own, i) for i in range(len(pairs)))


class _Clock:
    """Adds up the seconds spent inside `with`."""

    seconds = 0.0

    def __enter__(self):
        self._start = time.perf_counter()

    def __exit__(self, *_):
        self.seconds += time.perf_counter() - self._start


def _cut_pair(name, block, i, own, stream, sizes, criterion, key, residual_images):
    """Selects and cuts one group; the block, its variables and what became of it."""
    group, width = block.groups[i], block.widths[i]
    size = sizes.get(name, width)
    if size >= width:
        cut = Cut(width, np.arange(width))
        return block, own, GroupResult(name, cut, None, 0, None)
    problem, sample = _gather(block, i, own, stream, criterion, group, residual_images)
    if "key" in criterion.needs:
        own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        problem = problem._replace(key=own_key)
    selection = _select(criterion, size, block, i, own, problem)
    selection = checked(jax.device_get(selection), name)
    residual = _relative_residual(block, i, own, sample, selection.support)
    kept = np.flatnonzero(selection.support)
    widths = (*block.widths[:i], len(kept), *block.widths[i + 1 :])
    result = GroupResult(
        name, Cut(width, kept), residual, int(selection.iterations), None
    )
    return block.clone(widths=widths), groups.take(own, group, kept), result


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
