"""The vocabulary of selection: a Problem is asked, a Selection is the answer.

Imports jax and jaxtyping alone, so that any JAX program can use it under jit, vmap and
shardings. What is static (shapes, dtypes, a size that is a Python int) is checked; a
traced size is taken as it comes.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key

from ispasp_jax.errors import InputError

#: The network from the hidden channels to the next sum or activation, called by a
#: criterion: (n, *positions, d) -> (n, *positions', d_out). Examples must not mix.
Consumer = Callable[[Float[Array, "n *positions d"]], Float[Array, "n *out"]]

#: The arrays that make a group's channels, by path, channels on the last axis.
Producer = Mapping[str, Float[Array, "*any d"]]

#: How many channels to keep: a Python int, or a traced integer (then vmap over sizes).
Size = int | Int[Array, ""]


class LeastSquares(NamedTuple):
    """What refitting the consumer knows: centred second moments over examples and
    positions.

    Attributes:
      xx: of the patches that the consumer's kernel multiplies, rows tap · d + channel.
      xy: of patches and the target, what the consumer should give.
      start: the kernel as it is, batch norm folded in.
    """

    xx: Float[Array, "p p"]
    xy: Float[Array, "p o"]
    start: Float[Array, "p o"]


#: The regression of a group's consumer, or those of all its consumers.
Regressions = LeastSquares | Sequence[LeastSquares]


class Problem(NamedTuple):
    """What the walk gathered for one group; a field nobody `needs` stays None.

    Attributes:
      consumer: the dense consumer of the hidden channels.
      hidden: the hidden activations H, channels last. Where the consumer is affine,
        their sum over examples as a batch of one (see `batch_sum`) asks the same.
      producer: the arrays that make the channels, by path, channels on the last axis.
      key: a random key for this group.
      least_squares: the consumer's regression on the dense network's output, or those
        of all consumers; only for criteria that know about the repair.
      gradient: ∂L/∂z of every image, L its cross-entropy and z a gate on every channel,
        at z = 1: the sum of h · ∂L/∂h over positions. Needs labels.
      curvature: (∂²L/∂z²) · 1 of every image. Needs labels.
    """

    consumer: Consumer | None = None
    hidden: Float[Array, "n *positions d"] | None = None
    producer: Producer | None = None
    key: Key[Array, ""] | None = None
    least_squares: Regressions | None = None
    gradient: Float[Array, "images d"] | None = None
    curvature: Float[Array, "images d"] | None = None


#: Fields of a Problem that only labelled images give.
LABELLED = frozenset({"gradient", "curvature"})


class Unsuited(ValueError):
    """A criterion cannot be asked of a group; the message says why."""


class Selection(NamedTuple):
    """What a criterion answers.

    Attributes:
      support: True for the channels that stay.
      residuals: ½‖V‖² after each iteration (the last value repeats); empty where the
        criterion does not iterate.
      iterations: how many iterations ran until the support repeated.
      finite: False if a score or a residual was NaN or infinite; `checked` raises then.
    """

    support: Bool[Array, " d"]
    residuals: Float[Array, " T"]
    iterations: Int[Array, ""]
    finite: Bool[Array, ""]


def check_size(size: Any, d: int) -> None:
    """Raises InputError where a size is not a number of channels, 1 to d. Of a traced
    one the dtype and shape alone are known.
    """
    if isinstance(size, Tracer):
        sound, got = jnp.issubdtype(size.dtype, jnp.integer) and not size.shape, size
    else:
        got = repr(size)
        try:
            sound = not isinstance(size, bool) and 1 <= operator.index(size) <= d
        except TypeError:
            sound = False
    if not sound:
        raise InputError(
            f"the number of channels to keep must be an integer from 1 to {d}; got "
            f"{got} (of a ratio, keep max(1, int(ratio * {d})))."
        )


def check_hidden(H: Any) -> None:
    """Raises InputError where these are no hidden activations."""
    shape, dtype = getattr(H, "shape", None), getattr(H, "dtype", None)
    if dtype is None or shape is None or not jnp.issubdtype(dtype, jnp.floating):
        result = type(H).__name__ if dtype is None else f"dtype {dtype}"
        raise InputError(
            f"hidden activations must be an array of floating-point numbers; got "
            f"{result}."
        )
    if len(shape) < 2 or 0 in shape:
        raise InputError(
            "hidden activations must have the shape (examples, *positions, channels), "
            f"none of them 0; got {tuple(shape)}."
        )


def channels(producer: Producer) -> int:
    """How many channels the group has; from the arrays that make them.

    Raises:
      Unsuited: no array makes them.
    """
    result = {path: array.shape[-1] for path, array in producer.items()}
    if len({*result.values()}) != 1:
        raise Unsuited(
            "its number of channels is that of the arrays that make them, channels on "
            f"the last axis; found {result}."
        )
    return next(iter(result.values()))


def regularised(
    problem: LeastSquares, ridge: float
) -> tuple[Float[Array, "p p"], Float[Array, ""]]:
    """The patches' second moments plus the ridge, and the ridge: `ridge` times the mean
    variance.
    """
    p = problem.xx.shape[0]
    λ = ridge * jnp.maximum(jnp.trace(problem.xx) / p, 1e-30)
    return problem.xx + λ * jnp.eye(p, dtype=problem.xx.dtype), λ


def regressions(
    problem: Regressions,
) -> tuple[LeastSquares, ...]:
    """The regression of every consumer."""
    return (problem,) if isinstance(problem, LeastSquares) else tuple(problem)


def gram(problem: Regressions, d: int) -> Float[Array, "d d"]:
    """K[c, e] = Σ W_cᵀ A_ce W_e over the taps of channels c and e: with it the error of
    a mask m, nothing refitted, is (1 − m)ᵀ K (1 − m).
    """

    def one(problem: LeastSquares) -> Float[Array, "d d"]:
        pairs = problem.xx * (problem.start @ problem.start.T)
        taps = len(pairs) // d
        return pairs.reshape(taps, d, taps, d).sum((0, 2))

    return total(map(one, regressions(problem)))


def total(arrays: Iterable[Float[Array, "..."]]) -> Float[Array, "..."]:
    """The sum of arrays, one at least."""
    return functools.reduce(operator.add, arrays)


def batch_sum(
    hidden: Float[Array, "n *positions d"], weights: Float[Array, " n"] | None = None
) -> Float[Array, "1 *positions d"]:
    """The sum over examples, as a batch of one.

    For an affine consumer that treats every example alike, V is linear in H and its
    gradient linear in V, so the importance summed over examples depends on H only
    through this sum: Algorithm 1 gives the same support on it as on all of H.

    Args:
      hidden: hidden activations.
      weights: of the examples, 0 for one that is padding; all are 1 if None.

    Returns:
      The sum, with a first dimension of one, in the activations' dtype.

    Raises:
      InputError: no floating-point activations, or other weights than one an example.
    """
    check_hidden(hidden)
    if weights is not None and jnp.shape(weights) != hidden.shape[:1]:
        raise InputError(
            f"expected one weight for each of {hidden.shape[0]} examples, got an array "
            f"of shape {jnp.shape(weights)}."
        )
    if weights is None:
        weights = jnp.ones(len(hidden))
    # A product of matrices runs as fast as memory is read; XLA's sum over the first
    # axis takes a hundred times as long on a CPU.
    weights = weights.astype(hidden.dtype)
    return jnp.tensordot(weights, hidden, 1, precision="highest")[None]


def largest(v: Float[Array, " d"], r: Size) -> Bool[Array, " d"]:
    """D(v, r): marks the r largest entries of v, all of them where r > d.

    Equal entries: the lower index wins (-0 counts as 0). With a static r this is one
    top-k; a traced r compares ranks, so that sizes can be vmapped.
    """
    d = v.shape[-1]
    k = min(r, d) if isinstance(r, int) else d
    _, order = jax.lax.top_k(jnp.where(v == 0, jnp.zeros_like(v), v), k)
    return jnp.zeros(d, bool).at[order].set(jnp.arange(k) < r)


def by_score(scores: Float[Array, " d"], size: Size) -> Selection:
    """Keeps the largest scores: the answer of every criterion that does not iterate."""
    return Selection(
        support=largest(scores, size),
        residuals=jnp.zeros((0,), scores.dtype),
        iterations=jnp.zeros((), jnp.int32),
        finite=jnp.isfinite(scores).all(),
    )


def checked(selection: Selection, group: str) -> Selection:
    """The selection itself, outside jit.

    Raises:
      FloatingPointError: it came from NaN or infinity, so its support means nothing.
    """
    if not bool(selection.finite):
        raise FloatingPointError(
            f"group {group!r}: the hidden activations or their importance hold NaN or "
            "infinity, so nothing can be selected; check the weights and the "
            "calibration images."
        )
    return selection
