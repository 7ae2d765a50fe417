"""What is known of a group at the places where it is read: the sum of H over the
images, moments for criteria that ask for them, and what a cut would lose.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ispasp_jax.errors import InputError
from ispasp_jax.graph import Group, Plan
from ispasp_jax.selection.criterion import Criterion
from ispasp_jax.selection.problem import LeastSquares, batch_sum
from ispasp_jax.walk import (
    consumers,
    fits,
    forms,
    layouts,
    least_squares,
    places,
    sites,
)
from ispasp_jax.walk.batches import Activations
from ispasp_jax.walk.measurement import Measurement
from ispasp_jax.walk.moments import Moments, rows
from ispasp_jax.walk.pieces import compiled
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import Stream, Weights


class Task(NamedTuple):
    """What is the same for every group of a walk.

    Attributes:
      sizes: channels to keep by group; those not named keep all.
      criterion: how to select.
      key: for criteria that draw at random.
      residual_images: how many images the relative residual is measured on.
      plan: what to keep, where it is known; the criterion is then not asked.
    """

    sizes: Mapping[str, int]
    criterion: Criterion
    key: Array
    residual_images: int
    plan: Plan | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Fields of a Problem that have to be gathered."""
        return self.criterion.needs if self.plan is None else frozenset()


class Read(NamedTuple):
    """A place where a group is read, and what was gathered there.

    Attributes:
      site: the consumer.
      kernel: the consumer's.
      scale: of its outputs.
      places: those of H that belong to each channel.
      size: what its share of a stack is divided by.
      total: the sum of H over the images, a batch of one; None where nobody asks.
      squares: ‖V‖² and ‖U‖² on some images, of a support; None without images.
      measurement: moments of its patches and of what it gives; None likewise.
    """

    site: Site
    kernel: Float[Array, "*taps D o"]
    scale: Float[np.ndarray, "*positions o"]
    places: Int[np.ndarray, "d m"]
    size: float
    total: Float[Array, "1 *positions D"] | None
    squares: Callable[[Bool[np.ndarray, " d"]], tuple[float, float]] | None
    measurement: Measurement | None


def gather(
    site: Site,
    group: Group,
    stream: Stream,
    task: Task,
    measurement: Measurement | None,
    stacked: bool = False,
) -> Read:
    """What is known of a group at one of its consumers.

    Args:
      site: the consumer.
      group: the group.
      stream: the network as it is, before the consumer.
      task: what is asked of every group.
      measurement: moments, for criteria that need them.
      stacked: whether others read the group, too.

    Raises:
      InputError: the consumer reads channels in a way that cannot be selected from.
    """
    try:
        index = sites.index(site, group.atom)
        hidden = places.hidden(stream, site)
        total = None
        if "hidden" in task.needs:
            total = _summed(site, hidden, stream.weight)
        size = 1.0
        kernel, scale, _ = consumers.consumer(site, stream.weights)
        if stacked:
            size = max(_mean_size(site, hidden, stream.weight, kernel, scale), 1e-30)
        kept = _first(hidden, stream.weight, task.residual_images)
        squares = functools.partial(_squares, site, index, kept, kernel, scale)
        squares = squares if kept else None
        return Read(site, kernel, scale, index, size, total, squares, measurement)
    except forms.Unsuited as why:
        raise InputError(
            f"group {group.name!r} cannot be selected: of {site.name}, {why}; ignore "
            "it, or give a plan."
        ) from why


def _summed(site: Site, hidden: Activations, weights: Activations) -> Array:
    """The weighted sum of H over examples, as a batch of one."""

    def make():
        def function(h, weight):
            return batch_sum(layouts.as_hidden(site, h).astype(jnp.float32), weight)

        return function

    run = compiled(("sum", site.form, site.hidden.aval), make)
    batches = zip(hidden, weights, strict=True)
    return functools.reduce(operator.add, (run(*batch) for batch in batches))


def _mean_size(site, hidden, weights, kernel, scale) -> float:
    """The mean over images of ‖U − consumer(0)‖."""

    def make():
        def function(h, weight, kernel, scale):
            h = layouts.as_hidden(site, h).astype(jnp.float32)
            u = layouts.linear(site, h, kernel) * scale
            sizes = jnp.sqrt(jnp.square(u).sum(tuple(range(1, u.ndim))))
            return (sizes * weight).sum(), weight.sum()

        return function

    run = compiled(("size", sites.text(site)), make)
    pairs = [run(h, w, kernel, scale) for h, w in zip(hidden, weights, strict=True)]
    total, count = np.sum(jax.device_get(pairs), axis=0)
    return float(total / count)


def regression_of(group: Group, read: Read, weights: Weights) -> LeastSquares:
    """What a criterion is told of a consumer's least squares, an example's share: rows
    tap · d + channel. Places that are not the group's are fitted along.

    Raises:
      InputError: least squares does not reach it.
    """
    try:
        reach = fits.reach(read.site, weights)
    except fits.Unreached as why:
        raise InputError(
            f"group {group.name!r}: no least squares can be asked of {read.site.name}, "
            f"{why}; choose another criterion."
        ) from why
    measurement = read.measurement
    assert measurement is not None, "gathered for criteria that need least squares"
    places, folds = measurement.places, least_squares.about(reach, measurement.folds)
    whole = folds[0] + folds[1]
    size = 1.0
    if read.size != 1:  # of a stack, whose parts count alike
        size = math.sqrt(max(whole.yy / whole.count, 1e-30))
    d = read.site.width
    matrix = reach.matrix[rows(places, d, len(reach.matrix))]
    index = np.searchsorted(places, _left(group, read, places))
    return regression(whole, matrix, len(places), index, size)


def _left(
    group: Group, read: Read, places: Int[np.ndarray, " k"]
) -> Int[np.ndarray, "d m"]:
    """The places of each channel that are left where another group of the same consumer
    has been cut: heads, and then their width.

    Raises:
      InputError: some channels have more than others.
    """
    there = np.isin(read.places, places)
    if len({*there.sum(1).tolist()}) > 1:
        raise InputError(
            f"group {group.name!r}: what was cut before it left some of its channels "
            f"more places in {read.site.name} than others; ignore one of both groups."
        )
    return read.places[there].reshape(len(read.places), -1)


def regression(
    whole: Moments,
    matrix: Float[np.ndarray, "p o"],
    width: int,
    index: Int[np.ndarray, "d m"],
    size: float = 1.0,
) -> LeastSquares:
    """The regression on a group's channels alone, rows tap · d + channel.

    Args:
      whole: moments of all patches.
      matrix: the consumer as it is.
      width: D.
      index: the places of D that are each channel's; the others are fitted along.
      size: what outputs are divided by.
    """
    taps = len(matrix) // width
    own = np.concatenate(
        [t * width + places for t in range(taps) for places in index.T]
    )
    xx, xy = whole.xx / whole.count, whole.xy / whole.count / size
    start = matrix / size
    rest = np.setdiff1d(np.arange(len(matrix)), own)
    a, b = xx[np.ix_(own, own)], xy[own]
    if len(rest):
        among = xx[np.ix_(rest, rest)]
        λ = 1e-3 * max(np.trace(among) / len(rest), 1e-30)
        among = among + λ * np.eye(len(rest))
        along = np.linalg.solve(among, xx[np.ix_(rest, own)])
        error = xy[rest] - xx[np.ix_(rest, rest)] @ start[rest]
        b = b - xx[np.ix_(own, rest)] @ start[rest] - along.T @ error
        a = a - xx[np.ix_(own, rest)] @ along
    return LeastSquares(*(jnp.asarray(x, jnp.float32) for x in (a, b, start[own])))


def _first(
    hidden: Activations, weights: Activations, missing: int
) -> list[tuple[Array, Array, int]]:
    """Batches that hold the first images, how much each image counts, and behind how
    many of a batch none does."""
    result = []
    for h, weight in zip(hidden, weights, strict=True):
        if missing <= 0:
            break
        weight = jnp.where(jnp.cumsum(weight) <= missing, weight, 0)
        result.append((h, weight, min(missing, len(weight))))
        missing -= int(weight.sum())
    return result


def _squares(site, index, batches, kernel, scale, support) -> tuple[float, float]:
    """‖V‖² and ‖U‖² over some images."""

    def make(count):
        def function(h, weight, gone, kernel, scale):
            h = layouts.as_hidden(site, h)[:count].astype(jnp.float32)
            # Beside, not behind each other: rows stay on the device where they lie.
            both = jnp.stack([h * gone, h], 1).reshape(-1, *h.shape[1:])
            u = layouts.linear(site, both, kernel) * scale
            squares = jnp.square(u).sum(tuple(range(1, u.ndim))).reshape(-1, 2)
            lost, whole = (squares * weight[:count, None]).sum(0)
            return lost, whole

        return function

    gone = np.zeros(site.width, np.float32)
    gone[index[~support].ravel()] = 1
    result = []
    for h, weight, count in batches:
        run = compiled(
            ("squares", sites.text(site), count), functools.partial(make, count)
        )
        result.append(run(h, weight, gone, kernel, scale))
    lost, whole = np.sum(jax.device_get(result), axis=0)
    return float(lost), float(whole)
