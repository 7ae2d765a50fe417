"""Width → residual curves: what every group loses at every size, from one pass over
the dense network.

In every group the channels are taken away one by one, the cheapest first
(obs.elimination), on second moments of the calibration images; supports are nested. The
curves know nothing of a budget, so any number of budgets can be solved from them
(budget.py).
"""

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ispasp_jax.errors import InputError
from ispasp_jax.graph import Group, Traced
from ispasp_jax.graph.program import Value
from ispasp_jax.selection import obs
from ispasp_jax.selection.problem import LeastSquares
from ispasp_jax.walk import (
    fits,
    flat,
    forms,
    inputs,
    least_squares,
    places,
    sites,
    streams,
)
from ispasp_jax.walk.batches import Images, share
from ispasp_jax.walk.fits import Reach, Unreached
from ispasp_jax.walk.measurement import measure
from ispasp_jax.walk.moments import Moments
from ispasp_jax.walk.reads import regression
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import Stream, Watch


class Curve(NamedTuple):
    """What a group loses with s = 0 … d channels left.

    Attributes:
      relative: ‖V‖/‖U‖, of the consumer's output about its mean; of several consumers,
        of all of them.
      damage: ‖V‖² over the variance of what U is added up to, skip included: what makes
        groups comparable, since a later block sees the error against that.
      order: the channels in the order in which they go; the last s are the support.
    """

    relative: Float[np.ndarray, " d+1"]
    damage: Float[np.ndarray, " d+1"]
    order: Int[np.ndarray, " d"]


Curves = dict[str, Curve]


class _Seen(NamedTuple):
    """A group's regression at one of its consumers."""

    site: Site
    problem: LeastSquares
    variance: float


# Nine parameters, five of which have a default: as `walk` has them, without a plan.
def measure_curves(
    traced: Traced,
    variables: Any,
    images: Images,
    groups: Iterable[Group],
    *,
    repaired: bool = True,
    mesh: Mesh | None = None,
    memory: int | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
    real: places.Real | None = None,
) -> Curves:
    """The curve of every group whose consumers least squares reaches.

    Args:
      traced: the dense model.
      variables: its variables.
      images: calibration batches, preprocessed.
      groups: of the model, those to measure.
      repaired: what is lost after the least-squares repair; if not, as cut.
      mesh: devices to spread the images over.
      memory: bytes of the images' activations that each device may keep; see
        streams.py. None: all that are alive at once.
      progress: wraps the iterable of consumers.
      real: which places of the inputs are no padding; see places.py.

    Returns:
      Curves by group; a group that least squares does not reach has none.

    Raises:
      FloatingPointError: NaN or infinity in weights, images or activations.
      InputError: the images are no batches that the model takes.
    """
    inputs.check_variables(variables)
    traced, batches = inputs.opened(traced, images, mesh)
    program = flat.flatten(traced)
    weights = flat.arrays(program, jax.device_put(variables))
    every = sites.suited(program)
    readers = _reached(traced, every, {group.name for group in groups}, weights)
    ends = {site: _branch_end(site, every) for own in readers.values() for site in own}
    sums = {v: _Sums() for end in ends.values() if end for v in (end.out, end.target)}
    watch = {value: one.add for value, one in sums.items()}
    memory = share(memory, mesh, 1)
    here = streams.start(program, weights, batches, mesh, memory)
    here = places.start(here, real, mesh)
    for value, one in sums.items():
        one.weight = functools.partial(places.weight, here, value)
    seen: dict[str, list[_Seen]] = {name: [] for name in readers}
    ordered = sorted(ends, key=lambda site: site.place)
    for reach, moments, variance in _moments(here, ordered, watch, progress):
        site = reach.site
        for name in [name for name, own in readers.items() if site in own]:
            index = sites.index(site, traced[name].atom)
            one = regression(moments, reach.matrix, site.width, index)
            seen[name].append(_Seen(site, one, variance))
    shares = {site: _share(end, sums) for site, end in ends.items()}
    return {
        name: _curve(name, traced[name].width, result, shares, repaired)
        for name, result in seen.items()
    }


def _moments(
    here: Stream,
    ordered: Sequence[Site],
    watch: Watch,
    progress: Callable[[Iterable], Iterable],
) -> Iterator[tuple[Reach, Moments, float]]:
    """Takes the network past these consumers, and to all that is watched: how least
    squares reaches each, the moments there, and the target's variance."""
    end = len(here.flat.equations)
    following = [*(site.place for site in ordered), end][1:]
    for site, next_place in zip(progress(ordered), following, strict=True):
        here = here.named(site.name).hidden(site.place, watch)
        passes = site.end <= next_place  # else a branch beside comes first
        after = here.to(site.end, [site.target], watch if passes else None)
        folds = measure(site, here, after, np.arange(site.width)).folds
        reach = fits.reach(site, here.weights)
        whole = folds[0] + folds[1]
        variance = max(float(whole.yy / whole.count), 1e-30)
        first, second = least_squares.about(reach, folds)
        yield reach, first + second, variance
        here = after if passes else here
    last = max((here.flat.made[value] for value in watch), default=-1) + 1
    if last > here.place:
        here.to(last, watch=watch)


def _reached(traced, every, names, weights) -> dict[str, list[Site]]:
    """The consumers of every group all of whose consumers least squares reaches."""
    result = {}
    for group in traced.groups:
        own = [*sites.of_leaf(every, group.atom)]
        if group.name not in names or group.layers or not own:
            continue
        try:
            for site in own:
                fits.reach(site, weights)
                sites.index(site, group.atom)
        except (Unreached, forms.Unsuited):
            continue
        result[group.name] = own
    return result


def _branch_end(site: Site, every: Sequence[Site]) -> Site | None:
    """The consumer at the end of the site's branch, where a skip is added."""
    by_place = {one.place: one for one in every}
    while site.join is None:
        value = site.out
        while True:
            readers = site.flat.readers.get(value, [])
            if len(readers) != 1:
                return None
            if readers[0] in by_place:
                break
            eqn = site.flat.equations[readers[0]]
            live = [v for v in eqn.inputs if v.live]
            if len(live) != 1 or len(eqn.outputs) != 1:
                return None
            value = eqn.outputs[0]
        site = by_place[readers[0]]
    return site


def _share(end: Site | None, sums: Mapping[Value, "_Sums"]) -> float:
    """What an error of the branch counts, of the variance behind the skip."""
    if end is None:
        return 1.0
    return sums[end.out].variance / max(sums[end.target].variance, 1e-30)


def _curve(name, width, found: Sequence[_Seen], shares, repaired) -> Curve:
    factors = [shares[one.site] / one.variance for one in found]
    problems = tuple(
        _scaled(one.problem, np.sqrt(factor))
        for one, factor in zip(found, factors, strict=True)
    )
    path = jax.device_get(_path(problems, width, repaired))
    if not np.isfinite(path.losses).all():
        raise FloatingPointError(
            f"group {name!r}: the residuals of its sizes hold NaN or infinity; check "
            "the weights and the calibration images."
        )
    damage = path.losses.astype(np.float64)
    whole = sum(shares[one.site] for one in found)
    return Curve(np.sqrt(damage / max(whole, 1e-30)), damage, path.order)


def _scaled(problem: LeastSquares, factor: float) -> LeastSquares:
    """The same for outputs that many times as large."""
    return problem._replace(xy=problem.xy * factor, start=problem.start * factor)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _path(problems, d, repaired):
    if repaired:
        return obs.elimination(problems, d)
    return obs.elimination_as_cut(problems, d)


class _Sums:
    """The variance of activations, all features together, from their batches."""

    def __init__(self):
        self.weight: Callable[[int], Array]
        self._sums: list = []

    def add(self, k: int, x: Array) -> None:
        self._sums.append(_sums(x, self.weight(k)))

    @property
    def variance(self) -> float:
        columns = zip(*jax.device_get(self._sums), strict=True)
        count, total, squares = (functools.reduce(operator.add, c) for c in columns)
        return max(float((squares - total**2 / count).sum() / count), 1e-30)


@jax.jit
def _sums(x, weight):
    """Count, sums and squares of every feature: the last dimension."""
    axes = tuple(range(x.ndim - 1))
    count = jnp.broadcast_to(weight, (*x.shape[:-1], 1)).sum()
    x = x.astype(jnp.float32)
    return count, (x * weight).sum(axes), (jnp.square(x) * weight).sum(axes)


def to_json(curves: Curves) -> list[dict[str, Any]]:
    """The curves as curves.json has them."""
    return [
        {"name": name, **{key: a.tolist() for key, a in curve._asdict().items()}}
        for name, curve in curves.items()
    ]


def from_json(groups: Any) -> Curves:
    """The curves from what curves.json holds.

    Raises:
      InputError: it does not hold curves.
    """
    try:
        result = {group["name"]: _read(group) for group in groups}
        if len(result) != len(groups):
            raise ValueError("a group named twice")
        if not all(isinstance(name, str) for name in result):
            raise TypeError("a group's name")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            "not curves: expected name, relative, damage and order for every group; "
            f"{error} is missing or wrong."
        ) from error
    return result


def _read(group: Mapping[str, Any]) -> Curve:
    """A group of curves.json."""
    name, order = group["name"], group["order"]
    d = len(order)
    if not d or not all(type(index) is int for index in order):
        raise ValueError(f"the order of group {name!r}")
    if sorted(order) != list(range(d)):
        raise ValueError(
            f"the order of group {name!r}, no permutation of 0 to {d - 1},"
        )
    losses = {}
    for key in ("relative", "damage"):
        numbers = group[key]
        if len(numbers) != d + 1 or not all(type(x) in (int, float) for x in numbers):
            raise ValueError(f"{key} of group {name!r} (expected {d + 1} numbers)")
        losses[key] = np.asarray(numbers, np.float64)
        if not (np.isfinite(losses[key]).all() and (losses[key] >= 0).all()):
            raise ValueError(f"{key} of group {name!r} (negative or not finite)")
    return Curve(**losses, order=np.asarray(order, np.int64))
