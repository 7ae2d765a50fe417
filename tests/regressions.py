"""Least-squares problems of a consumer, and the same arithmetic in float64."""

import jax.numpy as jnp
import numpy as np

from ispasp_jax.selection.problem import LeastSquares


def draw(seed, d, taps, n=400, o=6, dead=(), noise=0.3):
    """A problem as (xx, xy, start) in float64: correlated channels, a target that the
    kernel nearly gives. Rows tap · d + channel; dead channels have no variance.
    """
    rng = np.random.default_rng(seed)
    mix = np.eye(taps * d) + 0.4 * rng.normal(size=(taps * d, taps * d))
    x = rng.normal(size=(n, taps * d)) @ mix * rng.uniform(0.3, 2, taps * d)
    for c in dead:
        x[:, c::d] = 0
    x -= x.mean(0)
    start = rng.normal(size=(taps * d, o))
    y = x @ start + noise * rng.normal(size=(n, o))
    return x.T @ x / n, x.T @ y / n, start


def single(problem):
    """The same as the library takes it."""
    return LeastSquares(*(jnp.asarray(a, jnp.float32) for a in problem))


def objective(problem, kept, d, ridge=1e-3, weights=1.0):
    """The regularised squared error's minimum with those channels, solved afresh; less
    the part that no kernel changes.
    """
    xx, xy, start = problem
    p, strength = len(xx), ridge * np.trace(xx) / len(xx)
    rows = [tap * d + c for tap in range(p // d) for c in sorted(kept)]
    A = xx[np.ix_(rows, rows)] + strength * np.eye(len(rows))
    B = (xy + strength * start)[rows] * np.sqrt(weights)
    W = np.linalg.solve(A, B) if rows else B
    return -(W * B).sum(), rows, W
