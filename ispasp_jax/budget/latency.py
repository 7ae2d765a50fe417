"""What a model costs in time, measured on the present device."""

import functools
import math
import operator
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from ispasp_jax.budget.cost import BySize
from ispasp_jax.graph import Group, Piece, Traced, branches, pieces, widths
from ispasp_jax.graph.runnable import Runnable, runnable

#: How often a program is timed, each time a pass behind one that warms up; and how
#: often that again where a half of the channels seems to take longer than all.
_ROUNDS, _TRIES = 12, 4


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
      input_shape: (height, width, channels) of an image, or (tokens,) of a text.
      batch_size: images a pass.
      repeats: how many passes are timed, after one that compiles.
    """
    kind = np.int32 if len(input_shape) == 1 else np.float32
    images = jax.device_put(np.zeros((batch_size, *input_shape), kind))
    passes = [
        functools.partial(jax.jit(function), jax.device_put(variables), images)
        for function, variables in models
    ]
    times = [
        [seconds(forward, repeats=1) for forward in passes] for _ in range(repeats)
    ]
    return [1e3 * statistics.median(column) for column in zip(*times, strict=True)]


class Latency(NamedTuple):
    """How long a model takes for a batch.

    Attributes:
      batch_size: examples.
      milliseconds: the median.
      low: the quarter of all passes is faster.
      high: the quarter of all passes is slower.
      compilation: seconds of the first call, beyond a pass.
      dense: of the model beside it, timed in turns; None where there is none.
    """

    batch_size: int
    milliseconds: float
    low: float
    high: float
    compilation: float
    dense: "Latency | None" = None


def latency(
    model: Any,
    batch_sizes: Iterable[int] = (1, 32),
    *,
    dense: Any = None,
    variables: Any = None,
    inputs: Sequence[Any] | None = None,
    repeats: int = 20,
) -> list[Latency]:
    """Times a model on the present device.

    Args:
      model: what `load` or `prune` gave; or a model as `trace` takes it.
      batch_sizes: examples a pass.
      dense: a model of the same inputs to time beside it, pass by pass in turns, so
        that what else the machine does slows both alike.
      variables: of a model that does not carry its own.
      inputs: examples or shapes, of a model that does not know them.
      repeats: how many passes are timed, after one that compiles and one that warms up.

    Returns:
      One for every batch size.

    Raises:
      InputError: inputs or variables are missing.
    """
    own = runnable(model, variables, inputs)
    both = [own] if dense is None else [own, runnable(dense, None, own.inputs)]
    return [_beside(both, size, repeats) for size in batch_sizes]


def _beside(models: Sequence[Runnable], size: int, repeats: int) -> Latency:
    calls, firsts = [], []
    for function, variables, inputs in models:
        arrays = [jnp.resize(filled(x), (size, *x.shape[1:])) for x in inputs]
        call = functools.partial(jax.jit(function), jax.device_put(variables), *arrays)
        start = time.perf_counter()
        jax.block_until_ready(call())
        calls.append(call)
        firsts.append(time.perf_counter() - start)
    rows = [[seconds(call, repeats=1) for call in calls] for _ in range(repeats)]
    result = []
    for first, column in zip(firsts, zip(*rows, strict=True), strict=True):
        low, middle, high = 1e3 * np.quantile(column, (0.25, 0.5, 0.75))
        compiling = max(first - middle / 1e3, 0.0)
        result.append(Latency(size, float(middle), float(low), float(high), compiling))
    first, *beside = result
    return first._replace(dense=beside[0]) if beside else first


class Unpaid(NamedTuple):
    """A group whose cut does not make the model faster.

    Attributes:
      name: of the group.
      width: channels of the dense model.
      kept: of these.
      milliseconds: of the equations that they go through, dense and cut.
      better: the nearest width that is faster than both, if one was found.
    """

    name: str
    width: int
    kept: int
    milliseconds: tuple[float, float]
    better: int | None


#: A cut that saves less than this share of its equations' time does not pay; of
#: equations that take fewer milliseconds, a call's own cost is all that can be timed.
PAYS, LEAST = 0.02, 0.1


def unpaid(traced: Traced, sizes: Mapping[str, int], batch_size: int) -> list[Unpaid]:
    """Groups whose cut does not pay on the present device, each timed by itself on the
    equations that its channels go through; equal ones once.

    Args:
      traced: the dense model.
      sizes: channels that are kept, by group.
      batch_size: examples a pass.
    """
    timed, result = _Timed(), []
    inputs = _batches(traced, batch_size)

    def taken(name: str, size: int) -> tuple[float, float]:
        plan = widths.first(traced, {name: size})
        return timed(pieces(traced, plan, *inputs)[1][name])

    for name, kept in sizes.items():
        width = traced[name].width
        if not 0 < kept < width:  # with none left, its branch is gone
            continue
        full, cut = taken(name, kept)
        if full < LEAST or cut <= (1 - PAYS) * full:
            continue
        near = (kept // 8 * 8, -(-kept // 8) * 8, kept // 16 * 16, kept // 2)
        better = None
        for size in sorted({*near} - {0, kept}, key=lambda size: abs(size - kept)):
            if size < width and taken(name, size)[1] <= (1 - PAYS) * min(full, cut):
                better = size
                break
        result.append(Unpaid(name, width, kept, (full, cut), better))
    return result


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
    full, half = timed(whole)
    # Fewer channels that take longer are noise, or do not pay.
    times = {name: timed(own[name]) for name in plan}
    saved = {name: max(operator.sub(*times[name]), 0.0) for name in plan}
    total = sum(saved.values())
    slope = {n: saved[n] / (cut.width - cut.size) for n, cut in plan.items()}
    all_of_it = sum(slope[n] * cut.width for n, cut in plan.items())
    # No channels take some time, never less than none.
    share = min(max(full - half, 0.0) / total, full / all_of_it) if total else 0.0
    terms = {(name,): share * each for name, each in slope.items()}
    constant = max(full - share * all_of_it, 0.0)
    # With a branch go all of its equations, not its channels' share of them alone.
    lone = branches.alone(traced.branches.values())
    rest = {
        name: {(): max(share * (times[name][0] - slope[name] * cut.width), 0.0)}
        for name, cut in plan.items()
        if name in lone
    }
    sizes = {group.name: group.width for group in groups}
    return BySize(sizes, {(): constant, **terms}, rest)


def _batches(traced: Traced, size: int) -> list[jax.ShapeDtypeStruct]:
    """Shapes of the model's inputs for a batch of this size."""
    traced_at = next(x.shape[0] for x in jax.tree.leaves(traced.inputs) if x.shape)

    def sized(x):
        if x.shape[:1] != (traced_at,):
            return x
        return jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)

    return jax.tree.map(sized, list(traced.inputs))


class _Timed:
    """Milliseconds of pieces, full and cut; equal ones are timed once."""

    def __init__(self):
        self._known: dict[tuple[str, str], tuple[float, float]] = {}

    def __call__(self, piece: Piece) -> tuple[float, float]:
        texts = str(piece.full.jaxpr), str(piece.cut.jaxpr)
        if texts not in self._known:
            passes = [_forward(closed) for closed in piece]
            # In turns, and the least: what else the machine does makes a pass slower,
            # never faster. Fewer channels that take longer are timed again.
            full = cut = math.inf
            for done in range(_TRIES * _ROUNDS):
                if done % _ROUNDS == 0 and cut < full:
                    break
                full, cut = (
                    min(least, 1e3 * seconds(forward, repeats=1))
                    for least, forward in zip((full, cut), passes, strict=True)
                )
            self._known[texts] = full, cut
        return self._known[texts]


def _forward(closed: ClosedJaxpr) -> Callable[[], Any]:
    arrays = [filled(value.aval) for value in closed.jaxpr.invars]
    return functools.partial(jax.jit(jaxpr_as_fun(closed)), *arrays)


def filled(like: Any) -> jax.Array:
    """An array to time with: small numbers, indices that are there, keys."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        keys = jax.random.split(jax.random.key(0), like.shape or 1)
        return keys if like.shape else jax.random.key(0)
    value = 0.01 if jnp.issubdtype(like.dtype, jnp.inexact) else 0
    return jnp.full(like.shape, value, like.dtype)
