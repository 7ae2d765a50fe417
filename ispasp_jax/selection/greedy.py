"""Greedy forward selection on the local objective (Ye et al., arXiv 2003.01794, whose
objective is the network's loss, and arXiv 2010.15969, local imitation).

    K   Gram matrix of the channels' contributions to the consumer's output  (d, d)
    m   1 for the channels that are kept                                     (d,)

The objective is ‖U − consumer(H_S)‖², both centred: (1 − m)ᵀ K (1 − m). Exact, up to
the shift, which batch norm or a bias can take.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ispasp_jax.selection.criterion import criterion
from ispasp_jax.selection.problem import (
    Producer,
    Regressions,
    Selection,
    Size,
    channels,
    gram,
)


@criterion
def gfs(least_squares: Regressions, producer: Producer, size: Size) -> Selection:
    """Greedy forward selection: whichever channel brings the consumer's output nearest
    to the whole is next (Ye et al., arXiv 2003.01794 and 2010.15969).
    """
    with jax.default_matmul_precision("highest"):
        return _greedy(gram(least_squares, channels(producer)), size)


def _greedy(K: Float[Array, "d d"], size) -> Selection:
    d = len(K)

    def add(step, state):
        m, rank, errors = state
        # (1 − m − e_c)ᵀ K (1 − m − e_c) less what does not depend on c
        gain = jnp.diag(K) - 2 * K @ (1 - m)
        c = jnp.argmin(jnp.where(m > 0, jnp.inf, gain))
        m = m.at[c].set(1)
        error = (1 - m) @ K @ (1 - m)
        return m, rank.at[c].set(step), errors.at[step + 1].set(error)

    nothing = jnp.zeros(d, K.dtype), jnp.zeros(d, jnp.int32)
    errors = jnp.zeros(d + 1, K.dtype).at[0].set(K.sum())
    _, rank, errors = jax.lax.fori_loop(0, d, add, (*nothing, errors))
    return Selection(
        support=rank < size,
        residuals=errors[size][None] / 2,
        iterations=jnp.asarray(size, jnp.int32),
        finite=jnp.isfinite(K).all(),
    )
