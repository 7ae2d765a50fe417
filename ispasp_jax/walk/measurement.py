"""What least squares knows of a consumer: moments of the patches that its kernel
multiplies and of what it should give, over the calibration images.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ispasp_jax.walk import layouts, places, sites
from ispasp_jax.walk.moments import Folds, Moments, Sums, rows
from ispasp_jax.walk.pieces import compiled, piece
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import Stream, weights_of


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
    folds, images = Sums(), 0
    for batch, weight in enumerate(pruned.weight):
        z = dense.live[site.target][batch]
        patches, target, real = pair(pruned, z, batch, padded)
        folds.add(images % 2, patches, target, weight, real)
        images += int(weight.sum())
    first, second = folds.done()
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
