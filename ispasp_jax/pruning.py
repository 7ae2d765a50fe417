"""One walk through the network, from input to output: for every group gather what the
criterion needs, select, cut, and carry the activations through the block as cut.

The walk holds the calibration images' activations at the present block's input and
nothing else of the network's inside, sums a group's hidden activations over batches,
and never runs a layer before the present block again. A block of a shape that was met
before costs no tracing: modules are static arguments, equal modules hash equal.
"""

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ispasp_jax import budget
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
from ispasp_jax.plan import Plan, check
from ispasp_jax.problem import Criterion
from ispasp_jax.repair import Batch, Stream, least_squares, reaches, recalibrate
from ispasp_jax.selecting import Asked, GroupResult, cut_group

#: Calibration batches, preprocessed, (n, height, width, channels) each.
Images = Iterable[Float[Array, "_ ..."] | Float[np.ndarray, "_ ..."]]

#: Called by the walk after each block that was cut, with the network so far: trains it
#: and returns the new variables.
Tune = Callable[[Network, Variables], Variables]


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
        return {group.name: group.cut for group in self.groups if _lost(group)}


def prune(
    network: Network,
    variables: Variables,
    images: Images,
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
    images: Images,
    sizes: dict[str, int],
    criterion: Criterion | None = None,
    *,
    plan: Plan | None = None,
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
      plan: which channels to keep, where that is known: nothing is selected then, and
        sizes and criterion are not asked.
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
      InputError: the plan does not fit the network.
      ValueError: no images.
    """
    start = time.perf_counter()
    key = jax.random.key(0) if key is None else key
    inputs = list(_padded(images))
    if not inputs:
        raise ValueError("no calibration images: expected at least one batch.")
    if repair not in ("none", "bn", "lsq"):
        raise ValueError(f"repair {repair!r} is none of none, bn, lsq.")
    if plan is not None:
        check(plan, network)
        sizes = {name: len(cut.kept) for name, cut in plan.items()}
    asked = Asked(sizes, criterion or ispasp(), key, residual_images, plan)
    clocks = {"repair": _Clock(), "tune": _Clock()}
    pruned, dense = inputs, inputs if carry_dense or repair == "lsq" else None
    original, results = variables, []
    for index, part in enumerate(progress(network.chain())):
        here = Stream(part.module, subtree(variables, part), pruned)
        there = Stream(part.module, subtree(original, part), dense)
        here, found = _prune_part(
            part, here, there, asked, repair, any(map(_lost, results)), clocks["repair"]
        )
        network = network.narrowed({g.name: len(g.cut.kept) for g in found})
        variables = graft(variables, part, here.own)
        dense = dense and _through(there)
        if tune is not None and any(map(_lost, found)):
            with clocks["tune"]:
                variables = tune(network, variables)
            pruned = inputs
            for before in network.chain()[: index + 1]:
                own = subtree(variables, before)
                pruned = _through(Stream(before.module, own, pruned))
        else:
            pruned = _through(here)
        drift = _drift(pruned, dense) if dense and found else None
        results += [group._replace(drift=drift) for group in found]
    jax.block_until_ready(variables)
    seconds = time.perf_counter() - start - sum(c.seconds for c in clocks.values())
    return Pruned(network, variables, tuple(results), seconds, clocks["repair"].seconds)


def _prune_part(part, here, there, asked, repair, differs, clock):
    """Cuts and repairs a part, pair after pair; `differs`: something before was cut."""
    names = dict(zip(cuttable(part), group_names(part), strict=True))
    pairs = here.module.groups if isinstance(here.module, Block) else ()
    found, missed = [], not pairs
    for i, group in enumerate(pairs):
        if group in names:
            here, result = cut_group(names[group], i, here, asked)
            found.append(result)
            differs |= _lost(result)
        if repair == "lsq" and differs:
            if not reaches(here.module, here.own, i):
                missed = True
                continue
            with clock:
                here = here._replace(own=least_squares(i, here, there))
    if differs and (repair == "bn" or (repair == "lsq" and missed)):
        with clock:
            here = here._replace(own=recalibrate(here))
    return here, found


def _lost(result: GroupResult) -> bool:
    return len(result.cut.kept) < result.cut.width


class _Clock:
    """Adds up the seconds spent inside `with`."""

    seconds = 0.0

    def __enter__(self):
        self._start = time.perf_counter()

    def __exit__(self, *_):
        self.seconds += time.perf_counter() - self._start


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, own, x):
    return module.apply(own, x)


def _through(stream: Stream) -> list[Batch]:
    module, own, batches = stream
    return [Batch(_apply(module, own, batch.x), batch.weight) for batch in batches]


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


def _padded(images: Images) -> Iterator[Batch]:
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
