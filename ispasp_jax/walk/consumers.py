"""What a consumer does with the activations that it reads, found by evaluating the
equations behind its contraction: neither epsilon nor names are assumed.

    U = (H K) · scale + shift

With zeros for H K the chain gives the shift, with ones the scale too.
"""

import functools
from collections.abc import Callable, Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ispasp_jax.graph.program import Value
from ispasp_jax.walk import layouts
from ispasp_jax.walk.flat import Flat
from ispasp_jax.walk.pieces import Piece, compiled, piece
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import Weights, weights_of


class Chain(NamedTuple):
    """Affine equations on the way from one value to another.

    Attributes:
      step: the equations, and the weights that they read.
      start: what they begin with.
      bring: what they give as (n, *positions, o).
      mark: the same for chains of one text and one `bring`.
      features: o.
      flat: the program.
      layer: of a scan.
    """

    step: Piece
    start: Value
    bring: Callable[[Array], Array]
    mark: Hashable
    features: int
    flat: Flat
    layer: int | None

    def ends(self, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift: (o,), or (*positions, o) where positions differ."""
        if not self.step.equations:
            o = self.features
            return np.ones(o, np.float32), np.zeros(o, np.float32)
        run = compiled(("chain", self.step.text, self.mark), lambda: self._at_ends)
        shift, one = jax.device_get(run(weights_of(self.step, weights)))
        return _alike(one - shift), _alike(shift)

    def _at_ends(self, weights: list[Array]) -> tuple[Array, Array]:
        def at(value: float) -> Array:
            # In half precision a scale would be known to three digits.
            start = [jnp.full(self.start.shape, value, jnp.float32)]
            made = self.step.run(start, weights, raised=True)
            return self.bring(made[0])[0].astype(jnp.float32)

        return at(0.0), at(1.0)


def chain(site: Site) -> Chain:
    """The affine equations behind a site's contraction."""
    start = site.equation.outputs[0]
    return Chain(
        piece(site.flat, [site.out], [start]),
        start,
        functools.partial(layouts.as_out, site),
        site.form,
        layouts.as_kernel_shape(site)[-1],
        site.flat,
        site.layer,
    )


def _alike(x: Float[np.ndarray, "*positions o"]) -> np.ndarray:
    """One row where all positions are alike."""
    rows = x.reshape(-1, x.shape[-1])
    return rows[0] if (rows == rows[0]).all() else x


def kernel(site: Site, weights: Weights) -> Float[Array, "*taps D o"]:
    """The kernel with these weights."""
    step = piece(site.flat, [site.kernel])
    key = "kernel", step.text, site.form
    run = compiled(
        key,
        lambda: (
            lambda given: layouts.as_kernel(site, step.run([], given, raised=True)[0])
        ),
    )
    return run(weights_of(step, weights))


class Consumer(NamedTuple):
    """A consumer as it is with some weights.

    Attributes:
      kernel: K.
      scale: of every output; positions come first where they differ.
      shift: of every output, likewise.
    """

    kernel: Float[Array, "*taps D o"]
    scale: Float[np.ndarray, "*positions o"]
    shift: Float[np.ndarray, "*positions o"]


def consumer(site: Site, weights: Weights) -> Consumer:
    """The consumer with these weights."""
    return Consumer(kernel(site, weights), *chain(site).ends(weights))
