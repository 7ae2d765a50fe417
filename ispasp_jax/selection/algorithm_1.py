"""i-SpaSP, Algorithm 1 of Wolfe and Kyrillidis (arXiv 2112.04905), in their letters.

    H    hidden activations, channels last          (n, *positions, d)
    W    the dense consumer of H (W1 in the paper)  H -> U
    U    dense output W(H); V the residual          (n, *positions', d_out)
    S    support: the channels kept, as a mask      (d,)
    Ω    candidates; Y importance of every channel  (d,), (n, *positions, d)
    μ    sum over examples and positions, signed
    D    the r largest entries
    s, T channels to keep, iterations

This differs from the authors' code in:
 1. V starts as U − W(0), not U: a batch norm's shift in W is constant, and so has no
    part in what the channels are worth. V is then linear in H wherever W is affine. Of
    135 supports (ResNet56's 27 blocks on 128 images, s/d = 0.1, 0.2, … 0.5) this
    changes 48, none of them at one half; without the constant their routine gives the
    same in all 135 (benchmarks/peers.py).
 2. It stops when the support repeats. The sum of μ(H) over S never falls, so there is a
    fixed point and no cycle: the remaining iterations could change nothing.
 3. For an affine W, H may be its sum over examples (problem.batch_sum): the support is
    the same and the T gradients cost one image each.
With s >= d/2 the candidates are all channels and S is the top s of μ(H); the loop
matters below. μ is signed: it says how active a channel is where the activation is
non-negative (ReLU, ReLU6); after GELU or none, a channel that is strongly negative
ranks last, as the paper's definition has it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ispasp_jax.errors import InputError
from ispasp_jax.selection.criterion import check_count, criterion
from ispasp_jax.selection.problem import (
    Consumer,
    Selection,
    Size,
    check_hidden,
    check_size,
)
from ispasp_jax.selection.problem import largest as D


def μ(A: Float[Array, "n *positions d"]) -> Float[Array, " d"]:
    return A.sum(axis=tuple(range(A.ndim - 1)))


def algorithm_1(
    H: Float[Array, "n *positions d"], W: Consumer, s: Size, T: int = 20
) -> Selection:
    """Selects s of d channels by Algorithm 1 of Wolfe and Kyrillidis (arXiv
    2112.04905); pure, for use under jit, vmap and shardings.

    Args:
      H: hidden activations, or for an affine W their batch sum.
      W: the dense consumer.
      s: how many channels to keep; static, or traced.
      T: the most iterations.

    Returns:
      The support, ½‖V‖² after each iteration, and how many there were.

    Raises:
      InputError: shapes, dtypes or a static size that make no problem.
    """
    check_hidden(H)
    check_size(s, H.shape[-1])
    check_count("T", T)
    if jnp.finfo(H.dtype).bits < 32:  # scores are never taken in half precision
        H = H.astype(jnp.float32)
    _check_consumer(W, H)

    def consumed(S: Bool[Array, " d"]) -> Float[Array, "n *out"]:
        return W(H * S.astype(H.dtype))

    def half_square(V: Float[Array, "n *out"]) -> Float[Array, ""]:
        return 0.5 * jnp.square(V).sum()

    def iterate(state):
        t, S, W_S, _, residuals, finite = state
        # I. importance: Y = ∂/∂H ½‖V‖² through the dense consumer, Ω = D(μ(Y), 2s)
        Y = jax.grad(lambda H: half_square(W(H) - W_S))(H)
        Ω = D(μ(Y), 2 * s)
        # II. merge Ω* = Ω ∪ S, threshold: the s members with the largest μ(H)
        S_new = D(jnp.where(Ω | S, μ(H), -jnp.inf), s)
        # III. residual: V = U − W(S)
        W_S = consumed(S_new)
        residual = half_square(W(H) - W_S)
        residuals = jnp.where(jnp.arange(T) >= t, residual, residuals)
        finite &= jnp.isfinite(μ(Y)).all() & jnp.isfinite(residual)
        return t + 1, S_new, W_S, (S_new == S).all(), residuals, finite

    def unfinished(state):
        t, _, _, repeated, _, _ = state
        return (t < T) & ~repeated

    with jax.default_matmul_precision("highest"):
        S = jnp.zeros(H.shape[-1], bool)
        finite = jnp.isfinite(μ(H)).all()
        t = jnp.zeros((), jnp.int32)
        start = (t, S, consumed(S), False, jnp.zeros(T, H.dtype), finite)
        t, S, _, _, residuals, finite = jax.lax.while_loop(unfinished, iterate, start)
    return Selection(S, residuals, t, finite)


def _check_consumer(W, H) -> None:
    if not callable(W):
        raise InputError(
            f"the consumer must be a function of the hidden activations; got "
            f"{type(W).__name__} (for a matrix: lambda h: h @ matrix)."
        )
    try:
        U = jax.eval_shape(W, H)
    except (TypeError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"the consumer cannot be evaluated on hidden activations of shape "
            f"{tuple(H.shape)}: {reason[0]}"
        ) from error
    one = isinstance(U, jax.ShapeDtypeStruct)
    if not one or not U.shape or not jnp.issubdtype(U.dtype, jnp.floating):
        raise InputError(
            f"the consumer must give one array of floating-point numbers, an example a "
            f"row; got {U}."
        )


@criterion
def ispasp(
    hidden: Float[Array, "n *positions d"],
    consumer: Consumer,
    size: Size,
    *,
    num_iters: int = 20,
) -> Selection:
    """The paper's criterion: `algorithm_1` with T = num_iters."""
    return algorithm_1(hidden, consumer, size, num_iters)
