"""Elimination with compensation against a loop that solves every problem afresh."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import regressions

from ispasp_jax.selection import obs
from ispasp_jax.selection.criteria import CRITERIA
from ispasp_jax.selection.problem import Problem
from ispasp_jax.walk.moments import Moments
from ispasp_jax.walk.reads import regression

pytestmark = pytest.mark.usefixtures("strict")


def brute_force(problem, d):
    """The channels in the order in which they go, and the errors of every size."""

    def error(kept):
        return regressions.objective(problem, kept, d)[0]

    kept, order, full = set(range(d)), [], error(range(d))
    losses = [0.0]
    while kept:
        c = min(kept, key=lambda c: error(kept - {c}))
        kept.remove(c)
        order.append(c)
        losses.append(error(kept) - full)
    return order, losses[::-1]


@pytest.mark.parametrize(
    "seed, d, taps", [(0, 12, 1), (1, 12, 1), (2, 7, 9), (3, 5, 4)]
)
def test_elimination_is_the_brute_force_loop(seed, d, taps):
    problem = regressions.draw(seed, d, taps)
    path = jax.jit(obs.elimination, static_argnums=1)(regressions.single(problem), d)
    order, losses = brute_force(problem, d)
    assert path.order.tolist() == order
    np.testing.assert_allclose(path.losses, losses, rtol=1e-3, atol=1e-5 * losses[0])


@pytest.mark.parametrize("taps", [1, 9])
def test_dead_channels_go_first(taps):
    dead = (1, 4, 5)
    problem = regressions.draw(7, 8, taps, dead=dead)
    path = obs.elimination(regressions.single(problem), 8)
    assert set(path.order[:3].tolist()) == set(dead)
    # All that they lose is the ridge's pull towards the start.
    xx, _, start = problem
    rows = np.isin(np.arange(len(xx)) % 8, dead)
    pull = 1e-3 * np.trace(xx) / len(xx) * np.square(start[rows]).sum()
    np.testing.assert_allclose(path.losses[5], pull, rtol=1e-3)


def test_supports_are_nested_and_of_their_size():
    path = obs.elimination(regressions.single(regressions.draw(8, 10, 4)), 10)
    supports = [obs.support(path, s) for s in range(11)]
    traced = jax.vmap(lambda s: obs.support(path, s))(jnp.arange(11))
    for s, selection in enumerate(supports):
        assert int(selection.support.sum()) == s
        assert s == 0 or (supports[s - 1].support <= selection.support).all()
        assert (traced.support[s] == selection.support).all()
        np.testing.assert_allclose(selection.residuals[0], path.losses[s] / 2)
    assert (np.diff(path.losses) <= 0).all() and path.losses[10] == 0


def test_the_criterion_is_the_path_s_support():
    least_squares = regressions.single(regressions.draw(9, 10, 1))
    problem = Problem(least_squares=least_squares, producer={"k": jnp.zeros((3, 10))})
    selection = CRITERIA["obs"]()(problem, 4)
    expected = obs.support(obs.elimination(least_squares, 10), 4)
    assert (selection.support == expected.support).all() and bool(selection.finite)
    broken = least_squares._replace(xy=least_squares.xy.at[0, 0].set(jnp.nan))
    assert not bool(CRITERIA["obs"]()(problem._replace(least_squares=broken), 4).finite)


def test_channels_beside_others_are_asked_with_the_others_refitted():
    """Where a consumer reads two groups: what a support misses, but for a constant."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 7)) @ (np.eye(7) + 0.3 * rng.normal(size=(7, 7)))
    y = x @ rng.normal(size=(7, 3)) + rng.normal(size=(300, 3))
    x, y = x - x.mean(0), y - y.mean(0)
    whole = Moments(300.0, x[0], y[0], x.T @ x, x.T @ y, float((y * y).sum()))
    own, rest = [0, 2, 3, 6], [1, 4, 5]
    start = rng.normal(size=(7, 3))  # whatever the consumer is before
    found = regression(whole, start, 7, np.array(own)[:, None])
    np.testing.assert_allclose(found.start, start[own], rtol=1e-6)
    ours, exact = [], []
    for pair in itertools.combinations(range(4), 2):
        xx, xy = (np.asarray(m, np.float64)[[*pair]] for m in found[:2])
        ours.append(-(xy * np.linalg.solve(xx[:, [*pair]], xy)).sum())
        z = x[:, [*(own[i] for i in pair), *rest]]
        exact.append(np.square(y - z @ np.linalg.lstsq(z, y)[0]).sum() / 300)
    apart = np.ptp(exact)
    np.testing.assert_allclose(
        np.subtract(ours, ours[0]), np.subtract(exact, exact[0]), atol=0.01 * apart
    )
