"""What a model costs in time, measured on the present device."""

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from ispasp_jax.cost import BySize
from ispasp_jax.graph import Group, Traced, pieces, widths


def seconds(function: Callable, *arguments, repeats: int = 5) -> float:
    """Median seconds of a call after one that warms up, results waited for."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def latencies(
    models: Sequence[tuple[Callable[..., Any], Any]],
    input_shape: tuple[int, ...],
    batch_size: int = 1,
    repeats: int = 9,
) -> list[float]:
    """Median milliseconds of a forward pass of each model on the present device.

    The models take turns, so that what else the machine does slows all of them alike.

    Args:
      models: functions of (variables, images), and their variables.
      input_shape: (height, width, channels) of an image.
      batch_size: images a pass.
      repeats: how many passes are timed, after one that compiles.
    """
    images = jax.device_put(np.zeros((batch_size, *input_shape), np.float32))
    passes = [
        functools.partial(jax.jit(function), jax.device_put(variables), images)
        for function, variables in models
    ]
    times = [
        [seconds(forward, repeats=1) for forward in passes] for _ in range(repeats)
    ]
    return [1e3 * statistics.median(column) for column in zip(*times, strict=True)]


def latency_by_size(
    traced: Traced, batch_size: int, groups: Iterable[Group] | None = None
) -> BySize:
    """Milliseconds of a forward pass on the present device by the groups' sizes, linear
    between two points that are measured: the whole model, and the model with a half of
    every group. What each group has of the difference is timed on the equations that
    its channels go through, with them and with a half of them; equal ones once.

    Args:
      traced: the model.
      batch_size: examples a pass.
      groups: that may be cut; None: all.
    """
    groups = [g for g in (traced.groups if groups is None else groups) if g.width > 1]
    plan = widths.first(traced, {g.name: g.width - g.width // 2 for g in groups})
    whole, own = pieces(traced, plan, *_batches(traced, batch_size))
    timed = _Timed()
    full, half = timed(whole.full), timed(whole.cut)
    # Fewer channels that take longer are noise, or do not pay.
    saved = {n: max(timed(own[n].full) - timed(own[n].cut), 0.0) for n in plan}
    total = sum(saved.values())
    slope = {n: saved[n] / (cut.width - cut.size) for n, cut in plan.items()}
    all_of_it = sum(slope[n] * cut.width for n, cut in plan.items())
    # No channels take some time, never less than none.
    share = min(max(full - half, 0.0) / total, full / all_of_it) if total else 0.0
    terms = {(name,): share * each for name, each in slope.items()}
    constant = max(full - share * all_of_it, 0.0)
    return BySize({g.name: g.width for g in groups}, {(): constant, **terms})


def _batches(traced: Traced, size: int) -> list[jax.ShapeDtypeStruct]:
    """Shapes of the model's inputs for a batch of this size."""
    traced_at = next(x.shape[0] for x in jax.tree.leaves(traced.inputs) if x.shape)

    def sized(x):
        if x.shape[:1] != (traced_at,):
            return x
        return jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)

    return jax.tree.map(sized, list(traced.inputs))


class _Timed:
    """Milliseconds of a program, by its text: equal ones are timed once."""

    def __init__(self):
        self._known: dict[str, float] = {}

    def __call__(self, closed: ClosedJaxpr) -> float:
        text = str(closed.jaxpr)
        if text not in self._known:
            arrays = [filled(value.aval) for value in closed.jaxpr.invars]
            forward = functools.partial(jax.jit(jaxpr_as_fun(closed)), *arrays)
            # What else the machine does makes a pass slower, never faster.
            self._known[text] = 1e3 * min(seconds(forward, repeats=3) for _ in range(4))
        return self._known[text]


def filled(like: Any) -> jax.Array:
    """An array to time with: small numbers, indices that are there, keys."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        keys = jax.random.split(jax.random.key(0), like.shape or 1)
        return keys if like.shape else jax.random.key(0)
    value = 0.01 if jnp.issubdtype(like.dtype, jnp.inexact) else 0
    return jnp.full(like.shape, value, like.dtype)
