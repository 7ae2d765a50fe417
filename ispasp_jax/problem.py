"""The vocabulary of selection: a Problem is asked, a Criterion answers, a Selection is
the answer.

Imports jax and jaxtyping alone, so that any JAX program can use it under jit, vmap and
shardings.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

#: The network from the hidden channels to the next sum or activation, called by a
#: criterion: (n, *positions, d) -> (n, *positions', d_out). Examples must not mix.
Consumer = Callable[[Float[Array, "n *positions d"]], Float[Array, "n *out"]]

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


class Problem(NamedTuple):
    """What the walk gathered for one group; a field nobody `needs` stays None.

    Attributes:
      consumer: the dense consumer of the hidden channels.
      hidden: the hidden activations H, channels last. Where the consumer is affine,
        their sum over examples as a batch of one (see `batch_sum`) asks the same.
      producer: the arrays that make the channels, by path, channels on the last axis.
      key: a random key for this group.
      least_squares: the consumer's regression on the dense network's output; only for
        criteria that know about the repair.
      gradient: ∂L/∂z of every image, L its cross-entropy and z a gate on every channel,
        at z = 1: the sum of h · ∂L/∂h over positions. Needs labels.
      curvature: (∂²L/∂z²) · 1 of every image. Needs labels.
    """

    consumer: Consumer | None = None
    hidden: Float[Array, "n *positions d"] | None = None
    producer: Mapping[str, Float[Array, "*any d"]] | None = None
    key: Key[Array, ""] | None = None
    least_squares: LeastSquares | None = None
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


@runtime_checkable
class Select(Protocol):
    """The pure function inside a Criterion; the walk calls it, once a group."""

    def __call__(self, problem: Problem, size: Size) -> Selection: ...


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A way to select: a pure function, and the Problem fields that it reads.

    Attributes:
      select: (problem, size) -> Selection; traceable by jit and vmap.
      needs: names of Problem fields. The walk gathers these and no others.
    """

    select: Select
    needs: frozenset[str]

    @property
    def labels(self) -> bool:
        """Whether the images have to come with labels."""
        return bool(self.needs & LABELLED)

    def __call__(self, problem: Problem, size: Size) -> Selection:
        return self.select(problem, size)


def channels(problem: Problem) -> int:
    """How many channels the group has; from the producer's arrays."""
    (d,) = {array.shape[-1] for array in problem.producer.values()}
    return d


def regularised(
    problem: LeastSquares, ridge: float
) -> tuple[Float[Array, "p p"], Float[Array, ""]]:
    """The patches' second moments plus the ridge, and the ridge: `ridge` times the mean
    variance.
    """
    p = problem.xx.shape[0]
    λ = ridge * jnp.maximum(jnp.trace(problem.xx) / p, 1e-30)
    return problem.xx + λ * jnp.eye(p, dtype=problem.xx.dtype), λ


def gram(problem: LeastSquares, d: int) -> Float[Array, "d d"]:
    """K[c, e] = Σ W_cᵀ A_ce W_e over the taps of channels c and e: with it the error of
    a mask m, nothing refitted, is (1 − m)ᵀ K (1 − m).
    """
    pairs = problem.xx * (problem.start @ problem.start.T)
    taps = len(pairs) // d
    return pairs.reshape(taps, d, taps, d).sum((0, 2))


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
    """
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
