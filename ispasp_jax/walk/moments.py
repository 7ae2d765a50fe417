"""What least squares knows of a consumer: count, means and centred second moments of
the patches that its kernel multiplies and of what it should give, summed over batches.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.linalg import blas

from ispasp_jax.walk import sites
from ispasp_jax.walk.pieces import compiled, piece
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import Stream, weights_of

#: Numbers of patches that are summed in one go.
_AT_ONCE = 2**24


class Moments(NamedTuple):
    """Count, means and centred second moments of patches and targets; they add up."""

    count: Float[np.ndarray, ""]
    x: Float[np.ndarray, " p"]
    y: Float[np.ndarray, " o"]
    xx: Float[np.ndarray, "p p"]
    xy: Float[np.ndarray, "p o"]
    yy: Float[np.ndarray, ""]

    def __add__(self, other: "Moments") -> "Moments":
        """Of both sets together."""
        return Moments(*(np.array(m) for m in self)).add(other)

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
            blas.dger(self.count * share, d, dx, a=products.T, overwrite_a=True)
        return self._replace(
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
            self.yy + self.count * y @ y,
        )

    def of(self, rows: Int[np.ndarray, " k"]) -> "Moments":
        """Of some rows of the patches alone."""
        if np.array_equal(rows, np.arange(len(self.x))):
            return self  # they are large
        return self._replace(
            x=self.x[rows], xx=self.xx[np.ix_(rows, rows)], xy=self.xy[rows]
        )


#: Over every second image, and over the others.
Folds = tuple[Moments, Moments]


def rows(places: Int[np.ndarray, " k"], d: int, p: int) -> Int[np.ndarray, " q"]:
    """Rows of a kernel with p = taps · d rows that belong to some of the d places."""
    return (np.arange(p // d)[:, None] * d + places).ravel()


def measure(
    site: Site, pruned: Stream, dense: Stream, places: Int[np.ndarray, " k"]
) -> Folds:
    """Moments of the patches of some places of H, and of the target

        T = dense U + dense skip − pruned skip    where a skip is added
        T = dense U                               where not

    The folds are every second of all images, however they are cut into batches.

    Args:
      site: the consumer.
      pruned: the network as pruned so far, before the site.
      dense: the dense network behind it.
      places: which; rows tap · k + place in `places`.

    Raises:
      FloatingPointError: a moment is NaN or infinite.
    """
    k = len(places)
    padded = np.zeros(_bucket(k, site.width), np.int32)
    padded[:k] = places
    pair = _pair(site, pruned)
    folds: list[Moments | None] = [None, None]
    images = 0
    for batch, weight in enumerate(pruned.weight):
        arrays = pair(pruned, dense.live[site.target][batch], batch, padded)
        for first, half in _halves(*arrays, weight):
            fold = (images + first) % 2
            folds[fold] = half if folds[fold] is None else folds[fold].add(half)
        images += int(weight.sum())
    own = rows(np.arange(k), len(padded), len(folds[0].x))
    first, second = (fold.of(own) for fold in folds)
    if not (_finite(first) and _finite(second)):
        raise FloatingPointError(
            f"{site.name}: the moments of its activations hold NaN or infinity, so "
            "least squares cannot be asked; check the weights and the calibration "
            "images."
        )
    return first, second


def _finite(moments: Moments) -> bool:
    return all(np.isfinite(m).all() for m in moments)


def _bucket(k: int, d: int) -> int:
    """k rounded up to an eighth of d, so that few widths are compiled."""
    step = max(1, d // 8)
    return min(d, -(-k // step) * step)


def _pair(site: Site, pruned: Stream):
    """A function that gives patches and target of a batch."""
    wanted = [] if site.skip is None else [site.skip]
    skip = piece(site.flat, wanted, pruned.live)

    def make():
        def function(given, weights, h, z, places):
            # In half precision a difference of skips would be lost in their sum.
            target = z.astype(jnp.float32)
            if wanted:
                with jax.default_matmul_precision("highest"):
                    target -= skip.run(given, weights)[0].astype(jnp.float32)
            target = sites.as_out(site, target)
            step = sites.every(target.shape[1:-1])
            h = sites.as_hidden(site, h)[..., places]
            found = sites.patches(site, h, step)
            return found.astype(jnp.float32), sites.thinned(target, step)

        return function

    run = compiled(("pair", sites.text(site), skip.text), make)

    def pair(stream: Stream, z: Array, k: int, places):
        given = [stream.live[value][k] for value in skip.given]
        hidden = stream.live[site.hidden][k]
        return run(given, weights_of(skip, stream.weights), hidden, z, places)

    return pair


def _halves(
    patches: Float[Array, "n *positions p"],
    target: Float[Array, "n *positions o"],
    weight: Float[Array, " n"],
) -> Iterator[tuple[int, Moments]]:
    """Moments of every second example (0) and of the others (1), maybe piece by piece.

    On a CPU the products are BLAS's, which knows that a square of a matrix is
    symmetric, in single precision of numbers about their mean, a piece at a time; the
    pieces add up in double precision. Elsewhere they are the devices'.
    """
    if jax.default_backend() != "cpu" or not patches.is_fully_addressable:
        halves = jax.device_get(_on_devices(patches, target, weight))
        for first, half in enumerate(halves):
            yield first, Moments(*(np.array(m, np.float64) for m in half))
        return
    count = int(np.asarray(weight).sum())  # padding comes last
    x, y = (np.asarray(a)[:count] for a in (patches, target))
    at_once = 2 * max(1, _AT_ONCE * count // (2 * x.size + 1))
    for low in range(0, count, at_once):
        for first in (0, 1):
            some = slice(low + first, low + at_once, 2)
            if len(x[some]):
                yield first, _on_host(x[some], y[some])


def _on_host(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Moments:
    x, y = (a.reshape(-1, a.shape[-1]) for a in (x, y))
    mean_x, mean_y = (a.mean(0, dtype=np.float64) for a in (x, y))
    x, y = x - mean_x.astype(np.float32), y - mean_y.astype(np.float32)
    count = np.float64(len(x))
    products = (x.T @ x, x.T @ y, np.vdot(y, y))
    return Moments(count, mean_x, mean_y, *(m.astype(np.float64) for m in products))


@jax.jit
def _on_devices(patches, target, weight):
    def half(first):
        w, x, y = (a[first::2] for a in (weight, patches, target))
        w = jnp.repeat(w, math.prod(x.shape[1:-1]))[:, None]
        x, y = (a.reshape(-1, a.shape[-1]) for a in (x, y))
        count = w.sum()
        mean_x, mean_y = ((a * w).sum(0) / jnp.maximum(count, 1) for a in (x, y))
        x, y = (x - mean_x) * w, (y - mean_y) * w
        return count, mean_x, mean_y, x.T @ x, x.T @ y, (y * y).sum()

    with jax.default_matmul_precision("highest"):
        return half(0), half(1)
