"""CoSaMP over channels against an implementation of its own in numpy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import regressions

from ispasp_jax.selection.cosamp import cosamp, cosamp_selection
from ispasp_jax.selection.problem import Problem

pytestmark = pytest.mark.usefixtures("strict")


def independent(problem, d, s, T=20, ridge=1e-3):
    """Channel by channel, with index sets: (best support, residuals, iterations)."""
    xx, xy, start = problem
    p, strength = len(xx), ridge * np.trace(xx) / len(xx)
    A, B = xx + strength * np.eye(p), xy + strength * start

    def estimate(kept):
        W = np.zeros_like(B)
        error, rows, W[rows] = regressions.objective(problem, kept, d, ridge)
        return W, error

    def top(scores, channels, r):
        return set(sorted(channels, key=lambda c: (-scores[c], c))[:r])

    _, least_error = estimate(range(d))
    support, W, seen = set(), np.zeros_like(B), []
    for _ in range(T):
        correlation = B - A @ W
        proxy = [np.linalg.norm(correlation[c::d]) for c in range(d)]
        merged = top(proxy, range(d), 2 * s) | support
        W, _ = estimate(merged)
        worth = [np.trace(W[c::d].T @ A[c::d, c::d] @ W[c::d]) for c in range(d)]
        before, support = support, top(worth, merged, s)
        W, error = estimate(support)
        seen.append(((error - least_error) / 2, support))
        if support == before:
            break
    return min(seen, key=lambda pair: pair[0])[1], [r for r, _ in seen], len(seen)


CASES = [(seed, 16, 1, s) for seed in range(4) for s in (2, 4, 7, 12)]
CASES += [(seed, 9, 9, s) for seed in range(2) for s in (2, 4)]


@pytest.mark.parametrize("seed, d, taps, s", CASES)
def test_selection_is_the_independent_one(seed, d, taps, s):
    problem = regressions.draw(seed, d, taps)
    found = jax.jit(cosamp_selection, static_argnums=1)(
        regressions.single(problem), d, jnp.int32(s)
    )
    support, residuals, iterations = independent(problem, d, s)
    assert set(np.flatnonzero(found.support).tolist()) == support
    assert int(found.iterations) == iterations and bool(found.finite)
    np.testing.assert_allclose(found.residuals[:iterations], residuals, rtol=1e-3)
    assert (found.residuals[iterations:] == found.residuals[iterations - 1]).all()


@pytest.mark.parametrize("taps", [1, 9])
def test_a_planted_support_is_found(taps):
    d, planted = 20, [2, 3, 11, 17]
    xx, _, start = regressions.draw(0, d, taps, n=2000)
    start[~np.isin(np.arange(taps * d) % d, planted)] = 0
    problem = regressions.single((xx, xx @ start, start))
    found = cosamp_selection(problem, d, 4)
    assert np.flatnonzero(found.support).tolist() == planted
    assert found.residuals[-1] < 1e-4 * np.trace(start.T @ xx @ start)


def test_eager_jit_and_vmap_over_sizes_agree():
    problem, d = regressions.single(regressions.draw(3, 12, 4)), 12
    sizes = jnp.asarray([1, 4, 7, 12])
    many = jax.vmap(lambda s: cosamp_selection(problem, d, s))(sizes)
    traced = jax.jit(lambda s: cosamp_selection(problem, d, s))
    for i, s in enumerate(sizes.tolist()):
        for one in (traced(s), cosamp_selection(problem, d, s)):
            assert (one.support == many.support[i]).all()
            assert int(one.support.sum()) == s
            scale = float(one.residuals[0]) + 1e-3
            np.testing.assert_allclose(
                one.residuals, many.residuals[i], rtol=1e-3, atol=1e-4 * scale
            )


def test_where_it_cycles_the_best_support_is_kept():
    """Random problems include cycles; whatever happens, the least residual is kept."""
    cycles = 0
    for seed in range(30):
        problem = regressions.draw(100 + seed, 10, 1, n=40)
        found = jax.jit(cosamp_selection, static_argnums=1)(
            regressions.single(problem), 10, jnp.int32(3)
        )
        kept = np.flatnonzero(found.support).tolist()
        error = regressions.objective(problem, kept, 10)[0]
        least = regressions.objective(problem, range(10), 10)[0]
        np.testing.assert_allclose(
            found.residuals.min(), (error - least) / 2, rtol=1e-3
        )
        cycles += int(found.iterations) == 20
    assert cycles  # otherwise this tests nothing


def test_the_criterion_reads_moments_and_counts_iterations():
    least_squares = regressions.single(regressions.draw(1, 10, 1))
    problem = Problem(least_squares=least_squares, producer={"k": jnp.zeros((3, 10))})
    found = cosamp(num_iters=3)(problem, 4)
    assert found.residuals.shape == (3,) and int(found.iterations) <= 3
    assert cosamp() == cosamp()
    broken = least_squares._replace(xx=least_squares.xx.at[0, 0].set(jnp.nan))
    assert not bool(cosamp()(problem._replace(least_squares=broken), 4).finite)
