"""i-SpaSP with the step that it leaves out of CoSaMP (Needell and Tropp 2009): the
estimate, least squares on the support.

    A    second moments of the patches, plus the ridge       (p, p)
    B    their moments with the target, plus the ridge's     (p, o)
    W*   the consumer's kernel at full width: A W* = B       (p, o)
    W̃    its estimate from some channels alone               (p, o)
    c    a channel: the rows tap · d + c for every tap of the kernel
    S    support: the channels kept, as a mask               (d,)
    Ω    candidates; Y importance of every channel           (d,)
    D    the r largest entries
    s, T channels to keep, iterations

The squared error of any W is, up to a constant, tr((W* − W)ᵀ A (W* − W)).

This differs from CoSaMP in:
 1. The signal's entries are channels, each a block of rows with one column an output.
 2. The estimate is made again on the s channels that the threshold leaves, so that the
    next residual is that of the best kernel there.
 3. It can cycle, so the support with the smallest residual seen is the answer.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ispasp_jax.selection.criterion import check_count, criterion
from ispasp_jax.selection.problem import (
    LeastSquares,
    Producer,
    Regressions,
    Selection,
    Size,
    Unsuited,
    channels,
    check_size,
    regularised,
)
from ispasp_jax.selection.problem import largest as D


# Sixty-seven lines: the algorithm in its letters, each step where the paper has it.
def cosamp_selection(
    problem: LeastSquares, d: int, s: Size, T: int = 20, ridge: float = 1e-3
) -> Selection:
    """Selects s of d channels; pure, for use under jit, vmap and shardings.

    Args:
      problem: moments of the patches and of what they should give.
      d: channels; p = taps · d.
      s: how many channels to keep; static, or traced.
      T: the most iterations.
      ridge: pulls towards `problem.start`, in parts of the patches' mean variance.
    """
    check_size(s, d)
    check_count("T", T)
    p = problem.xx.shape[0]
    A, λ = regularised(problem, ridge)
    B = problem.xy + λ * problem.start

    def by_channel(rows: Float[Array, "p o"]) -> Float[Array, " d"]:
        return rows.reshape(p // d, d, -1).sum((0, 2))

    def estimate(S: Bool[Array, " d"]) -> Float[Array, "p o"]:
        """The best kernel on S. The shape is fixed: other rows say 1 · W = 0."""
        m = jnp.tile(S, p // d).astype(A.dtype)
        masked = A * m[:, None] * m + jnp.diag(1 - m)
        # LU: on the CPU jax's Cholesky was four times as slow at p = 2304.
        return jnp.linalg.solve(masked, B * m[:, None])

    def contribution(W: Float[Array, "p o"]) -> Float[Array, " d"]:
        """tr(W_cᵀ A_cc W_c) of every channel c."""
        own = jnp.einsum("tcuc->ctu", A.reshape(p // d, d, p // d, d))
        W = W.reshape(p // d, d, -1)
        return jnp.einsum("tco,ctu,uco->c", W, own, W)

    def iterate(state):
        t, S, W, _, best, least, residuals, finite = state
        # I. importance: Y = ‖rows of A (W* − W̃)‖², Ω = D(Y, 2s)
        E = B - A @ W  # of any size: its largest entry is 1 before squares are taken
        Y = by_channel(jnp.square(E / jnp.maximum(jnp.abs(E).max(), 1e-30)))
        Ω = D(Y, 2 * s)
        # II. estimate on Ω* = Ω ∪ S, threshold: the s members that contribute most
        merged = Ω | S
        worth = contribution(estimate(merged))
        S_new = D(jnp.where(merged, worth, -jnp.inf), s)
        # III. residual of the estimate on S
        W = estimate(S_new)
        E = W_all - W
        residual = 0.5 * jnp.vdot(E, A @ E)
        residuals = jnp.where(jnp.arange(T) >= t, residual, residuals)
        best = jnp.where(residual < least, S_new, best)
        finite &= jnp.isfinite(Y).all() & jnp.isfinite(residual)
        least, repeated = jnp.minimum(residual, least), (S_new == S).all()
        return t + 1, S_new, W, repeated, best, least, residuals, finite

    def unfinished(state):
        t, _, _, repeated, *_ = state
        return (t < T) & ~repeated

    with jax.default_matmul_precision("highest"):
        W_all = estimate(jnp.ones(d, bool))
        S, W = jnp.zeros(d, bool), jnp.zeros_like(B)
        least, residuals = jnp.asarray(jnp.inf, A.dtype), jnp.zeros(T, A.dtype)
        t, finite = jnp.zeros((), jnp.int32), jnp.isfinite(W_all).all()
        start = (t, S, W, False, S, least, residuals, finite)
        t, _, _, _, best, _, residuals, finite = jax.lax.while_loop(
            unfinished, iterate, start
        )
    return Selection(best, residuals, t, finite)


@criterion
def cosamp(
    least_squares: Regressions,
    producer: Producer,
    size: Size,
    *,
    num_iters: int = 20,
    ridge: float = 1e-3,
) -> Selection:
    """`cosamp_selection` against the dense network's target, with T = num_iters."""
    if not isinstance(least_squares, LeastSquares):
        raise Unsuited(
            "several consumers read its channels, and cosamp asks one; choose another "
            "criterion, obs for example."
        )
    d = channels(producer)
    return cosamp_selection(least_squares, d, size, num_iters, ridge)
