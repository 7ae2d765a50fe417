"""What least squares knows of a consumer: count, means and centred second moments of
the patches that its kernel multiplies and of what it should give, summed over batches.
"""

import functools
import math
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
        return _accumulated(Moments(*(np.array(m) for m in self)), other)

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

    Args:
      i: which pair.
      pruned: the network as pruned so far, before its i-th consumer.
      hidden: its i-th hidden activations.
      dense: the dense network behind its i-th consumer.
      channels: which; the patches are theirs, rows tap · k + place in `channels`.
    """
    last = i == len(pruned.module.groups) - 1
    k = len(channels)
    padded = np.zeros(_bucket(k, width(hidden)), np.int32)
    padded[:k] = channels
    folds: list[Moments] = []
    for batch in zip(hidden, pruned.x, pruned.weight, dense.u, dense.x, strict=True):
        halves = _moments(
            i, last, pruned.module, dense.module, pruned.own, dense.own, padded, *batch
        )
        halves = [Moments(*half) for half in jax.device_get(halves)]
        if folds:
            folds = [*map(_accumulated, folds, halves)]
        else:  # copies, in double precision
            folds = [Moments(*(np.array(m, np.float64) for m in h)) for h in halves]
    places = np.arange(k)
    return folds[0].of(places, len(padded)), folds[1].of(places, len(padded))


def _accumulated(total: Moments, batch: Moments) -> Moments:
    """Of both sets together, without cancellation (Chan et al. 1983), in the memory of
    `total`: the products are large.
    """
    count = total.count + batch.count
    dx, dy = batch.x - total.x, batch.y - total.y
    weight = total.count * batch.count / max(count, 1)
    share = batch.count / max(count, 1)
    for products, of_batch, d in ((total.xx, batch.xx, dx), (total.xy, batch.xy, dy)):
        products += of_batch
        # products += weight · dx dᵀ; BLAS has columns where numpy has rows.
        blas.dger(weight, d, dx, a=products.T, overwrite_a=True)
    return total._replace(
        count=count,
        x=total.x + share * dx,
        y=total.y + share * dy,
        yy=total.yy + batch.yy + weight * dy @ dy,
    )


def _bucket(k: int, d: int) -> int:
    """k rounded up to an eighth of d, so that few widths are compiled."""
    step = max(1, d // 8)
    return min(d, -(-k // step) * step)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _moments(i, last, block, dense_block, own, dense_own, channels, h, x, weight, u, z):
    """Of a batch: h hidden, x and z the block's inputs, u the dense consumer's output;
    z and dense_block are the dense network's.
    """
    with jax.default_matmul_precision("highest"):
        # In half precision a difference of skips would be lost in their sum.
        target, x, z = (a.astype(jnp.float32) for a in (u, x, z))
        if last:
            target += dense_block.apply(dense_own, z, method="skip")
            target -= block.apply(own, x, method="skip")
        positions = target.shape[1:-1]
        step = 1
        if len(positions) == 2:
            step = max(1, math.isqrt(math.prod(positions) // POSITIONS))
            target = target[:, ::step, ::step]
        patches = block.apply(own, h[..., channels], i, step, method="patches")

        def half(first):
            return _centred(patches[first::2], target[first::2], weight[first::2])

        return half(0), half(1)


def _centred(
    x: Float[Array, "n *positions p"],
    y: Float[Array, "n *positions o"],
    weight: Float[Array, " n"],
) -> tuple:
    w = jnp.repeat(weight, math.prod(x.shape[1:-1]))[:, None]
    x, y = (a.reshape(-1, a.shape[-1]).astype(jnp.float32) for a in (x, y))
    count = w.sum()
    mean_x, mean_y = ((a * w).sum(0) / jnp.maximum(count, 1) for a in (x, y))
    x, y = (x - mean_x) * w, (y - mean_y) * w
    return count, mean_x, mean_y, x.T @ x, x.T @ y, (y * y).sum()
