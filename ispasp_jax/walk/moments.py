"""What least squares knows of a consumer: count, means and centred second moments of
the patches that its kernel multiplies and of what it should give, summed over batches.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.linalg import blas

from ispasp_jax.walk import layouts, places, sites
from ispasp_jax.walk.pieces import compiled, piece
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import Stream, weights_of

#: A matrix plus a · x yᵀ, in place; scipy's stubs do not name what Fortran gives.
_dger: Callable[..., Any] = getattr(blas, "dger")  # noqa: B009

#: Numbers of patches that are summed in one go.
_AT_ONCE = 2**23


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Count, means and centred second moments of patches and targets; they add up."""

    count: float
    x: Float[np.ndarray, " p"]
    y: Float[np.ndarray, " o"]
    xx: Float[np.ndarray, "p p"]
    xy: Float[np.ndarray, "p o"]
    yy: float

    def __add__(self, other: "Moments") -> "Moments":
        """Of both sets together."""
        own = dataclasses.replace(self, xx=self.xx.copy(), xy=self.xy.copy())
        return own.add(other)

    def add(self, other: "Moments") -> "Moments":
        """Of both sets together, without cancellation (Chan et al. 1983), in the memory
        of this one, which is of no use afterwards: the products are large.
        """
        count = self.count + other.count
        dx, dy = other.x - self.x, other.y - self.y
        share = other.count / max(count, 1)
        for products, more, d in ((self.xx, other.xx, dx), (self.xy, other.xy, dy)):
            products += more
            # products += weight · dx dᵀ; BLAS has columns where numpy has rows.
            _dger(self.count * share, d, dx, a=products.T, overwrite_a=True)
        return dataclasses.replace(
            self,
            count=count,
            x=self.x + share * dx,
            y=self.y + share * dy,
            yy=self.yy + other.yy + self.count * share * dy @ dy,
        )

    def about(self, shift: Float[np.ndarray, " o"]) -> "Moments":
        """Second moments about zero of the patches and about `shift` of the targets."""
        y = self.y - shift
        return Moments(
            self.count,
            np.zeros_like(self.x),
            np.zeros_like(y),
            self.xx + self.count * np.outer(self.x, self.x),
            self.xy + self.count * np.outer(self.x, y),
            float(self.yy + self.count * y @ y),
        )

    def of(self, rows: Int[np.ndarray, " k"]) -> "Moments":
        """Of some rows of the patches alone."""
        if np.array_equal(rows, np.arange(len(self.x))):
            return self  # they are large
        return dataclasses.replace(
            self, x=self.x[rows], xx=self.xx[np.ix_(rows, rows)], xy=self.xy[rows]
        )


#: Over every second image, and over the others.
Folds = tuple[Moments, Moments]


def rows(places: Int[np.ndarray, " k"], d: int, p: int) -> Int[np.ndarray, " q"]:
    """Rows of a kernel with p = taps · d rows that belong to some of the d places."""
    return (np.arange(p // d)[:, None] * d + places).ravel()


class Measurement(NamedTuple):
    """Moments at a consumer.

    Attributes:
      folds: rows tap · k + place in `places`.
      places: those of H that the patches are of.
    """

    folds: Folds
    places: Int[np.ndarray, " k"]

    def of(self, places: Int[np.ndarray, " j"]) -> "Measurement":
        """Of some of the places alone, ascending."""
        if len(places) == len(self.places):
            return self
        first, second = self.folds
        index = np.searchsorted(self.places, places)
        own = rows(index, len(self.places), len(first.x))
        return Measurement((first.of(own), second.of(own)), places)


def measure(
    site: Site, pruned: Stream, dense: Stream, own: Int[np.ndarray, " k"]
) -> Measurement:
    """Moments of the patches of some places of H, and of the target

        T = dense U + dense skip − pruned skip    where a skip is added
        T = dense U                               where not

    The folds are every second of all images, however they are cut into batches.

    Args:
      site: the consumer.
      pruned: the network as pruned so far, before the site.
      dense: the dense network behind it.
      own: which places, ascending.

    Raises:
      FloatingPointError: a moment is NaN or infinite.
    """
    k = len(own)
    padded = np.zeros(_bucket(k, site.width), np.int32)
    padded[:k] = own
    pair = _pair(site, pruned)
    folds, images = (_Sum(), _Sum()), 0
    for batch, weight in enumerate(pruned.weight):
        z = dense.live[site.target][batch]
        patches, target, real = pair(pruned, z, batch, padded)
        _add(folds, images % 2, patches, target, weight, real)
        images += int(weight.sum())
    first, second = (fold.done() for fold in folds)
    index = rows(np.arange(k), len(padded), len(first.x))
    first, second = first.of(index), second.of(index)
    if not (_finite(first) and _finite(second)):
        raise FloatingPointError(
            f"{site.name}: the moments of its activations hold NaN or infinity, so "
            "least squares cannot be asked; check the weights and the calibration "
            "images."
        )
    return Measurement((first, second), own)


def _finite(moments: Moments) -> bool:
    return all(np.isfinite(m).all() for m in vars(moments).values())


def _bucket(k: int, d: int) -> int:
    """k rounded up to an eighth of d, so that few widths are compiled."""
    step = max(1, d // 8)
    return min(d, -(-k // step) * step)


def _pair(site: Site, pruned: Stream):
    """A function that gives patches, target and what counts of them of a batch."""
    wanted = [] if site.skip is None else [site.skip]
    skip = piece(site.flat, wanted, pruned.live)

    def make():
        def function(given, weights, h, z, own, real):
            # In half precision a difference of skips would be lost in their sum.
            target = z.astype(jnp.float32)
            if wanted:
                with jax.default_matmul_precision("highest"):
                    target -= skip.run(given, weights)[0].astype(jnp.float32)
            target = layouts.as_out(site, target)
            step = layouts.every(target.shape[1:-1])
            h = layouts.as_hidden(site, h)
            result = layouts.patches(site, h, step, own)
            if real.ndim > 1:
                real = layouts.thinned(layouts.as_hidden(site, real), step)[..., 0]
            return result.astype(jnp.float32), layouts.thinned(target, step), real

        return function

    run = compiled(("pair", sites.text(site), skip.text), make)

    def pair(stream: Stream, z: Array, k: int, own):
        given = [stream.live[value][k] for value in skip.given]
        hidden = stream.live[site.hidden][k]
        real = places.rows(stream, site, k)
        return run(given, weights_of(skip, stream.weights), hidden, z, own, real)

    return pair


def _add(
    folds, first: int, patches: Array, target: Array, weight: Array, real: Array
) -> None:
    """Adds every second example of a batch to the fold `first`, the others to the
    other; of both what is real, which is of (n, *positions), or as the weight is.

    On a CPU the products are BLAS's, which knows that a square of a matrix is
    symmetric, in single precision of numbers about a mean; elsewhere the devices'.
    """
    if not _on_host(patches):
        halves = jax.device_get(_on_devices(patches, target, real))
        for place, half in enumerate(halves):
            count, x, y, xx, xy, yy = (np.array(m, np.float64) for m in half)
            result = Moments(np.float64(count), x, y, xx, xy, float(yy))
            folds[(place + first) % 2].put(result)
        return
    count = int(np.asarray(weight).sum())  # padding comes last
    x, y, counts = (np.asarray(a)[:count] for a in (patches, target, real))
    for place in (0, 1):
        own, wanted = (a[place::2].reshape(-1, a.shape[-1]) for a in (x, y))
        if counts.ndim > 1:
            those = counts[place::2].ravel() > 0
            own, wanted = own[those], wanted[those]
        folds[(place + first) % 2].add(own, wanted)


def _on_host(patches: Array) -> bool:
    """Whether the products are taken on the host."""
    return jax.default_backend() == "cpu" and patches.is_fully_addressable


class _Sum:
    """Moments of rows that come little by little."""

    def __init__(self):
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []
        self._size = 0
        self._found: Moments | None = None

    def add(self, x: Float[np.ndarray, "n p"], y: Float[np.ndarray, "n o"]) -> None:
        """Takes rows; their products are taken when there are many."""
        if not len(x):
            x, y = x[:0], y[:0]
        self._rows.append((x, y))
        self._size += x.size
        if self._size >= _AT_ONCE:
            self._flush()

    def put(self, moments: Moments) -> None:
        """Takes moments."""
        self._found = moments if self._found is None else self._found.add(moments)

    def done(self) -> Moments:
        """Of all rows."""
        if self._rows:
            self._flush()
        assert self._found is not None, "of one batch at least"
        return self._found

    def _flush(self) -> None:
        x, y = (np.concatenate(column) for column in zip(*self._rows, strict=True))
        self._rows, self._size = [], 0
        count = np.float64(len(x))
        mean_x, mean_y = (_centre(a) for a in (x, y))
        products = (x.T @ x, x.T @ y, np.vdot(y, y))
        xx, xy, yy = (np.asarray(m, np.float64) for m in products)
        self.put(Moments(count, mean_x, mean_y, xx, xy, float(yy)))


def _centre(x: Float[np.ndarray, "n p"]) -> Float[np.ndarray, " p"]:
    """Takes the mean from the rows, in place, and gives it."""
    if not len(x):
        return np.zeros(x.shape[1])
    ones = np.full(len(x), 1 / len(x), np.float32)
    mean = ones @ x
    x -= mean
    return mean.astype(np.float64) + ones @ x  # what single precision left of it


@jax.jit
def _on_devices(patches, target, real):
    def half(first):
        w, x, y = (a[first::2] for a in (real, patches, target))
        w = w.reshape(w.shape + (1,) * (x.ndim - 1 - w.ndim))
        w = jnp.broadcast_to(w, x.shape[:-1]).reshape(-1, 1)
        x, y = (a.reshape(-1, a.shape[-1]) for a in (x, y))
        count = w.sum()
        mean_x, mean_y = ((a * w).sum(0) / jnp.maximum(count, 1) for a in (x, y))
        x, y = (x - mean_x) * w, (y - mean_y) * w
        return count, mean_x, mean_y, x.T @ x, x.T @ y, (y * y).sum()

    with jax.default_matmul_precision("highest"):
        return half(0), half(1)
