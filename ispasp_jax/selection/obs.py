"""Backward elimination with compensation: optimal brain surgeon for groups of weights
(Hassibi and Stork 1993; Frantar and Alistarh, arXiv 2208.11580, for layers).

    A   second moments of the patches, centred, plus the ridge    (p, p)
    W   the consumer's kernel, at its least-squares optimum       (p, o)
    c   a channel: the rows tap · d + c for every tap of the kernel

Taking channel c away and letting the others make up for it costs

    loss(c) = tr(W_cᵀ ((A⁻¹)_cc)⁻¹ W_c)

more of the squared error. The cheapest channel goes, W and A⁻¹ are brought up to date
by a rank-`taps` step, and the next one is chosen, until none is left: supports of every
size, nested, and what each of them loses *after* the least-squares repair.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ispasp_jax.selection.criterion import criterion
from ispasp_jax.selection.problem import (
    LeastSquares,
    Producer,
    Regressions,
    Selection,
    Size,
    channels,
    gram,
    regressions,
    regularised,
    total,
)

#: Of the mean variance of the patches; what the repair's hold-out mostly chooses.
RIDGE = 1e-3


class Path(NamedTuple):
    """Supports of every size, nested.

    Attributes:
      order: channels in the order in which they go.
      losses: the squared error with s channels left, for s = 0 … d; the error at full
        width is counted as 0.
    """

    order: Int[Array, " d"]
    losses: Float[Array, " d+1"]


def elimination(problem: Regressions, d: int, ridge: float = RIDGE) -> Path:
    """Takes channels away one by one, the cheapest first; pure and jittable.

    Args:
      problem: moments of the patches and of what they should give; several where
        several consumers read the channels, and their losses add up.
      d: channels; p = taps · d.
      ridge: pulls towards `problem.start`, in parts of the patches' mean variance.
    """
    with jax.default_matmul_precision("highest"):
        return _elimination(regressions(problem), d, ridge)


def _start(problem: LeastSquares, d: int, ridge: float):
    """W at full width and A⁻¹, channel-major: a channel's rows are neighbours."""
    A, _ = regularised(problem, ridge)
    error = problem.xy - problem.xx @ problem.start
    W = problem.start + jnp.linalg.solve(A, error)  # the best at full width
    p, o = W.shape
    inverse = jnp.linalg.inv(A).reshape(p // d, d, p // d, d)
    return W.reshape(p // d, d, o).swapaxes(0, 1), inverse.transpose(1, 0, 3, 2)


def _elimination(problems, d, ridge):
    starts = tuple(_start(problem, d, ridge) for problem in problems)
    dtype = starts[0][0].dtype

    def remove(step, state):
        pairs, gone, order, losses = state
        owns = [_own(inverse, gone) for _, inverse in pairs]
        loss = total(
            jnp.einsum("cio,cio->c", W, _divide(W, own))
            for (W, _), own in zip(pairs, owns, strict=True)
        )
        c = jnp.argmin(jnp.where(gone, jnp.inf, loss))
        pairs = tuple(
            _without(c, W, inverse, own)
            for (W, inverse), own in zip(pairs, owns, strict=True)
        )
        return (
            pairs,
            gone.at[c].set(True),
            order.at[step].set(c),
            losses.at[step].set(jnp.maximum(loss[c], 0)),
        )

    nothing = jnp.zeros(d, bool), jnp.zeros(d, jnp.int32), jnp.zeros(d, dtype)
    *_, order, losses = jax.lax.fori_loop(0, d, remove, (starts, *nothing))
    by_size = jnp.cumsum(losses)[::-1]
    return Path(order, jnp.concatenate([by_size, jnp.zeros(1, dtype)]))


def _own(inverse, gone):
    """(A⁻¹)_cc of every channel; 1 of those that are gone."""
    own = jnp.einsum("cicj->cij", inverse)
    return jnp.where(gone[:, None, None], jnp.eye(own.shape[-1], dtype=own.dtype), own)


def _without(c, W, inverse, own):
    """W and A⁻¹ when channel c goes and the others make up for it."""
    column = inverse[:, :, c]  # (d, taps, taps)
    one = jnp.eye(own.shape[-1], dtype=own.dtype)
    gain = jnp.einsum("dij,jk->dik", column, _divide(one, own[c]))
    W = W - jnp.einsum("dij,jo->dio", gain, W[c])
    inverse = inverse - jnp.einsum("dij,ekj->diek", gain, column)
    return W.at[c].set(0), inverse.at[c].set(0).at[:, :, c].set(0)


def _divide(a: Float[Array, "... t o"], by: Float[Array, "... t t"]):
    """by⁻¹ a; one tap needs no solver, which would be called for every channel."""
    return a / by if by.shape[-1] == 1 else jnp.linalg.solve(by, a)


def elimination_as_cut(problem: Regressions, d: int) -> Path:
    """The same where nothing makes up for a cut: the squared error of the kernel as it
    is, from the Gram matrix K of the channels' contributions, ‖V‖² = (1−m)ᵀ K (1−m).
    """
    with jax.default_matmul_precision("highest"):
        K = gram(problem, d)

    def remove(step, state):
        gone, order, losses = state
        so_far = losses[step - 1] * (step > 0)
        loss = so_far + jnp.diagonal(K) + 2 * K @ gone.astype(K.dtype)
        c = jnp.argmin(jnp.where(gone, jnp.inf, loss))
        return gone.at[c].set(True), order.at[step].set(c), losses.at[step].set(loss[c])

    nothing = jnp.zeros(d, bool), jnp.zeros(d, jnp.int32), jnp.zeros(d, K.dtype)
    _, order, losses = jax.lax.fori_loop(0, d, remove, nothing)
    losses = jnp.maximum(losses, 0)[::-1]
    return Path(order, jnp.concatenate([losses, jnp.zeros(1, K.dtype)]))


def support(path: Path, size: Size) -> Selection:
    """The path's support of that size, as a criterion answers it."""
    d = path.order.shape[0]
    rank = jnp.zeros(d, jnp.int32).at[path.order].set(jnp.arange(d))
    return Selection(
        support=rank >= d - size,
        residuals=path.losses[size][None] / 2,
        iterations=jnp.asarray(d - size, jnp.int32),
        finite=jnp.isfinite(path.losses).all(),
    )


@criterion
def obs(
    least_squares: Regressions,
    producer: Producer,
    size: Size,
    *,
    ridge: float = RIDGE,
) -> Selection:
    """Backward elimination with compensation, against the dense network's target."""
    return support(elimination(least_squares, channels(producer), ridge), size)
