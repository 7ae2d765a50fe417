"""What least squares knows of a consumer: count, means and centred second moments of
the patches that its kernel multiplies and of what it should give, summed over batches.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.linalg import blas

from ispasp_jax.streams import Activations, Stream, width

#: Positions of a feature map that moments are taken from, about: neighbours see nearly
#: the same patch.
POSITIONS = 64

#: Bytes of patches that are in double precision at once.
_PIECE = 2**27


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

    def of(self, channels: Int[np.ndarray, " k"], d: int) -> "Moments":
        """Of some of the d channels' patches alone."""
        if np.array_equal(channels, np.arange(d)):
            return self  # they are large
        index = rows(channels, d, len(self.x))
        return self._replace(
            x=self.x[index], xx=self.xx[np.ix_(index, index)], xy=self.xy[index]
        )


#: Over every second image, and over the others.
Folds = tuple[Moments, Moments]


def rows(channels: Int[np.ndarray, " k"], d: int, p: int) -> Int[np.ndarray, " q"]:
    """Rows of a kernel with p = taps · d rows that belong to the channels."""
    return (np.arange(p // d)[:, None] * d + channels).ravel()


def measure(
    i: int,
    pruned: Stream,
    hidden: Activations,
    dense: Stream,
    channels: Int[np.ndarray, " k"],
) -> Folds:
    """Moments of the patches of some hidden channels, and of the target

        T = dense u + dense skip − pruned skip    for a block's last consumer
        T = dense u                               for one inside a block

    The folds are every second of all images, however they are cut into batches.

    Args:
      i: which pair.
      pruned: the network as pruned so far, before its i-th consumer.
      hidden: its i-th hidden activations.
      dense: the dense network behind its i-th consumer.
      channels: which; the patches are theirs, rows tap · k + place in `channels`.

    Raises:
      FloatingPointError: a moment is NaN or infinite.
    """
    last = i == len(pruned.module.groups) - 1
    k = len(channels)
    padded = np.zeros(_bucket(k, width(hidden)), np.int32)
    padded[:k] = channels
    folds: list[Moments | None] = [None, None]
    images = 0
    for h, x, weight, u, z in zip(
        hidden, pruned.x, pruned.weight, dense.u, dense.x, strict=True
    ):
        pair = _pair(
            i, last, pruned.module, dense.module, pruned.own, dense.own, padded,
            h, x, u, z,
        )  # fmt: skip
        for first, half in _halves(*pair, weight):
            fold = (images + first) % 2
            folds[fold] = half if folds[fold] is None else folds[fold].add(half)
        images += int(weight.sum())
    places = np.arange(k)
    first, second = (fold.of(places, len(padded)) for fold in folds)
    if not (_finite(first) and _finite(second)):
        raise FloatingPointError(
            f"part {pruned.name!r}: the moments of its activations hold NaN or "
            "infinity, so least squares cannot be asked; check the weights and the "
            "calibration images."
        )
    return first, second


def step(positions: tuple[int, ...]) -> int:
    """Moments are taken from every so many rows and columns of a feature map."""
    if len(positions) != 2:
        return 1
    return max(1, math.isqrt(math.prod(positions) // POSITIONS))


def _finite(moments: Moments) -> bool:
    return all(np.isfinite(m).all() for m in moments)


def _bucket(k: int, d: int) -> int:
    """k rounded up to an eighth of d, so that few widths are compiled."""
    step = max(1, d // 8)
    return min(d, -(-k // step) * step)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _pair(i, last, block, dense_block, own, dense_own, channels, h, x, u, z):
    """Patches and target of a batch: h hidden, x and z the block's inputs, u the dense
    consumer's output; z and dense_block are the dense network's.
    """
    # In half precision a difference of skips would be lost in their sum.
    target, x, z = (a.astype(jnp.float32) for a in (u, x, z))
    if last:
        with jax.default_matmul_precision("highest"):
            target += dense_block.apply(dense_own, z, method="skip")
            target -= block.apply(own, x, method="skip")
    every = step(target.shape[1:-1])
    if every > 1:
        target = target[:, ::every, ::every]
    patches = block.apply(own, h[..., channels], i, every, method="patches")
    return patches.astype(jnp.float32), target


def _halves(
    patches: Float[Array, "n *positions p"],
    target: Float[Array, "n *positions o"],
    weight: Float[Array, " n"],
) -> Iterator[tuple[int, Moments]]:
    """Moments of every second example (0) and of the others (1), maybe piece by piece.

    On a CPU they are summed in double precision, which BLAS does as fast as XLA sums in
    single; elsewhere in single precision, on the devices.
    """
    if jax.default_backend() != "cpu" or not patches.is_fully_addressable:
        halves = jax.device_get(_on_devices(patches, target, weight))
        for first, half in enumerate(halves):
            yield first, Moments(*(np.array(m, np.float64) for m in half))
        return
    count = int(np.asarray(weight).sum())  # padding comes last
    x, y = (np.asarray(a)[:count] for a in (patches, target))
    at_once = 2 * max(1, _PIECE * count // (8 * x.size + 1))
    for low in range(0, count, at_once):
        for first in (0, 1):
            some = slice(low + first, low + at_once, 2)
            yield first, _on_host(x[some], y[some])


def _on_host(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Moments:
    x, y = (a.reshape(-1, a.shape[-1]).astype(np.float64) for a in (x, y))
    mean_x, mean_y = (a.sum(0) / max(len(a), 1) for a in (x, y))
    x -= mean_x
    y -= mean_y
    count = np.float64(len(x))
    return Moments(count, mean_x, mean_y, x.T @ x, x.T @ y, (y * y).sum())


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
