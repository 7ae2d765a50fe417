"""The other ways to select, one small function each, and the table of them all."""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ispasp_jax.cosamp import cosamp
from ispasp_jax.errors import InputError
from ispasp_jax.ispasp import ispasp, μ
from ispasp_jax.obs import obs
from ispasp_jax.problem import (
    Criterion,
    Problem,
    Selection,
    Unsuited,
    by_score,
    channels,
    criterion_factory,
    gram,
)


@criterion_factory
def random() -> Criterion:
    """Keeps channels drawn uniformly: the floor that a method has to leave behind."""

    def select(problem, size):
        d = channels(problem)
        return by_score(jax.random.uniform(problem.key, (d,)), size)

    return Criterion(select, needs=frozenset({"key", "producer"}))


@criterion_factory
def activation() -> Criterion:
    """The largest μ(H): i-SpaSP without its candidates, and the same from s >= d/2."""

    def select(problem, size):
        return by_score(μ(problem.hidden.astype(jnp.float32)), size)

    return Criterion(select, needs=frozenset({"hidden"}))


def filters(problem: Problem) -> Float[Array, "p d"]:
    """The filters that make the channels, one a column: the group's first kernel.

    Of several layers in a row (expansion and depthwise convolution) that is the one
    that mixes channels.
    """
    kernels = [array for array in problem.producer.values() if array.ndim > 1]
    if not kernels:
        raise Unsuited(
            f"no kernel makes its channels ({', '.join(problem.producer)}), and this "
            "criterion ranks them by its filters; choose another, ispasp for example."
        )
    kernel = kernels[0]
    return kernel.reshape(-1, kernel.shape[-1])


@criterion_factory
def l1() -> Criterion:
    """The L1 norm of the channel's filter (Li et al., arXiv 1608.08710)."""

    def select(problem, size):
        return by_score(jnp.abs(filters(problem)).sum(0), size)

    return Criterion(select, needs=frozenset({"producer"}))


@criterion_factory
def l2() -> Criterion:
    """The L2 norm of the channel's filter (soft filter pruning, arXiv 1808.06866)."""

    def select(problem, size):
        return by_score(jnp.sqrt(jnp.square(filters(problem)).sum(0)), size)

    return Criterion(select, needs=frozenset({"producer"}))


@criterion_factory
def fpgm() -> Criterion:
    """The filter's distance to all others of the group, summed: those nearest to the
    geometric median go, the others can stand in for them (He et al., arXiv 1811.00250).
    """

    def select(problem, size):
        W = filters(problem)

        def to_all(w):
            return jnp.sqrt(jnp.square(W - w[:, None]).sum(0)).sum()

        return by_score(jax.lax.map(to_all, W.T), size)

    return Criterion(select, needs=frozenset({"producer"}))


@criterion_factory
def bn_scale() -> Criterion:
    """|γ| of the batch norm that normalises the channels (Liu et al., network slimming,
    arXiv 1708.06519); of several, the last. Theirs are trained to be sparse first.
    """

    def select(problem, size):
        scales = [a for p, a in problem.producer.items() if p.endswith("scale")]
        if not scales:
            raise Unsuited(
                "no batch norm normalises its channels "
                f"({', '.join(problem.producer)}), and bn_scale ranks them by its "
                "scale; choose another criterion, l1 for example."
            )
        return by_score(jnp.abs(scales[-1]), size)

    return Criterion(select, needs=frozenset({"producer"}))


@criterion_factory
def gfs() -> Criterion:
    """Greedy forward selection on the local objective: whichever channel brings the
    consumer's output nearest to the whole is next (Ye et al., arXiv 2003.01794, whose
    objective is the network's loss, and arXiv 2010.15969, local imitation).

    The objective is ‖U − consumer(H_S)‖², both centred, from its Gram matrix; exact, up
    to the shift, which batch norm or a bias can take.
    """

    def select(problem, size):
        d = channels(problem)
        with jax.default_matmul_precision("highest"):
            return _greedy(gram(problem.least_squares, d), size)

    return Criterion(select, needs=frozenset({"least_squares", "producer"}))


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


@criterion_factory
def taylor() -> Criterion:
    """What removing the channel does to the loss, to first order: (∂L/∂z_c)², squared
    for each image and then averaged (Molchanov et al., arXiv 1906.10771, with gates,
    who square the average of a mini-batch). Needs labels; see gates.py for the cost.
    """

    def select(problem, size):
        return by_score(jnp.square(problem.gradient).mean(0), size)

    return Criterion(select, needs=frozenset({"gradient"}))


@criterion_factory
def sosp() -> Criterion:
    """First and second order, correlations included (Nonnenmacher et al., SOSP-H, arXiv
    2110.11395):

        |∂L/∂z_c| + ½ |(∂²L/∂z² · 1)_c|

    L averaged over the images, 1 the direction in which all channels go; one product
    with the Hessian. Here all channels are those of the group, in the paper those of
    the network. Needs labels; see gates.py for the cost.
    """

    def select(problem, size):
        first, second = problem.gradient.mean(0), problem.curvature.mean(0)
        return by_score(jnp.abs(first) + jnp.abs(second) / 2, size)

    return Criterion(select, needs=frozenset({"gradient", "curvature"}))


#: Every criterion by name.
CRITERIA: dict[str, Callable[..., Criterion]] = {
    "ispasp": ispasp,
    "cosamp": cosamp,
    "obs": obs,
    "gfs": gfs,
    "activation": activation,
    "l1": l1,
    "l2": l2,
    "bn_scale": bn_scale,
    "fpgm": fpgm,
    "taylor": taylor,
    "sosp": sosp,
    "random": random,
}


def options(name: str) -> tuple[str, ...]:
    """The options that the factory of that name takes.

    Raises:
      InputError: no criterion has that name.
    """
    if name not in CRITERIA:
        raise InputError(
            f"unknown method {name!r}; expected one of {', '.join(CRITERIA)}."
        )
    return tuple(inspect.signature(CRITERIA[name]).parameters)


def create(name: str, **given) -> Criterion:
    """The criterion of that name, with these options.

    Raises:
      InputError: no criterion has that name, or it has no such option.
    """
    known = options(name)
    if unknown := [option for option in given if option not in known]:
        raise InputError(
            f"{name} has no option {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(known) or 'none'}."
        )
    return CRITERIA[name](**given)
