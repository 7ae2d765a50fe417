"""Least squares where it says little: the answers are finite, and of the size asked."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import images_of, variables_of

from ispasp_jax import prune
from ispasp_jax.models.mlp import MLP
from ispasp_jax.models.resnet import ResNet
from ispasp_jax.selection import criteria, obs
from ispasp_jax.selection.criteria import CRITERIA
from ispasp_jax.selection.problem import LeastSquares, Problem
from ispasp_jax.walk import least_squares
from ispasp_jax.walk.moments import Moments

D, OUTPUTS = 6, 3


def patches(kind, p, rng):
    """Rows of patches that are no regression's favourites."""
    x = rng.normal(size=(60, p))
    if kind == "few":
        return x[:2]
    if kind == "zero":
        return 0 * x
    if kind == "constant":
        return 0 * x + rng.normal(size=p)
    if kind == "duplicate":
        return x[:, np.arange(p) // 2]
    if kind == "one channel":
        return x * (np.arange(p) == 0)
    if kind == "all the same":
        return x[:, :1] + np.zeros(p)
    scale = {"tiny": 1e-12, "huge": 1e12, "one loud": 1.0}[kind]
    return scale * x * np.where((np.arange(p) == 0) & (kind == "one loud"), 1e6, 1)


KINDS = ("few", "zero", "constant", "duplicate", "one channel", "all the same")
KINDS += ("tiny", "huge", "one loud")


def moments_of(x, y):
    dx, dy = x - x.mean(0), y - y.mean(0)
    count = np.float64(len(x))
    return Moments(count, x.mean(0), y.mean(0), dx.T @ dx, dx.T @ dy, (dy * dy).sum())


@pytest.mark.parametrize("taps", [1, 4])
def test_criteria_give_supports_of_their_size(taps):
    for kind in KINDS:
        rng = np.random.default_rng(0)
        x, start = patches(kind, taps * D, rng), rng.normal(size=(taps * D, OUTPUTS))
        for kernel in (start, 0 * start):
            whole = moments_of(x, x @ kernel)
            problem = Problem(
                least_squares=LeastSquares(
                    jnp.asarray(whole.xx / whole.count, jnp.float32),
                    jnp.asarray(whole.xy / whole.count, jnp.float32),
                    jnp.asarray(kernel, jnp.float32),
                ),
                producer={"kernel": jnp.zeros((2, D))},
            )
            for name in ("obs", "cosamp", "gfs"):
                for size in (1, 3, D):
                    found = _select(name, problem, size)
                    where = (kind, name, size)
                    assert bool(found.finite) and int(found.support.sum()) == size, (
                        where
                    )
                    assert np.isfinite(found.residuals).all(), where
            path = _as_cut(problem.least_squares, D)
            assert np.isfinite(path.losses).all() and set(path.order.tolist()) == {
                *range(D)
            }


@jax.jit
def _answers(problem, size):
    return {name: CRITERIA[name]()(problem, size) for name in ("obs", "cosamp", "gfs")}


def _select(name, problem, size):
    return _answers(problem, jnp.int32(size))[name]


_as_cut = jax.jit(obs.elimination_as_cut, static_argnums=1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ridge_solution_is_finite_and_no_worse_than_the_kernel_as_it_is(kind):
    rng = np.random.default_rng(1)
    x, start = patches(kind, D, rng), rng.normal(size=(D, OUTPUTS))
    y = x @ start + np.abs(x).max() * rng.normal(size=(len(x), OUTPUTS))
    folds = moments_of(x[::2], y[::2]), moments_of(x[1::2], y[1::2])
    fitted = least_squares.fit(folds, start)
    assert np.isfinite(fitted).all()
    whole = folds[0] + folds[1]

    def error(W):
        return (W * (whole.xx @ W - 2 * whole.xy)).sum() + whole.yy

    assert error(fitted) <= error(start) * (1 + 1e-6) + 1e-9 * whole.yy


def test_the_ridge_solution_is_least_squares_where_there_is_something_to_fit():
    """Of many rows: numpy's lstsq in float64, but for the smallest of ridges."""
    rng = np.random.default_rng(3)
    x, start = rng.normal(size=(4000, D)), rng.normal(size=(D, OUTPUTS))
    y = x @ rng.normal(size=(D, OUTPUTS)) + 5 + 0.01 * rng.normal(size=(4000, OUTPUTS))
    fitted = least_squares.fit(
        (moments_of(x[::2], y[::2]), moments_of(x[1::2], y[1::2])), start
    )
    expected, *_ = np.linalg.lstsq(np.c_[x, np.ones(4000)], y)
    np.testing.assert_allclose(fitted, expected[:-1], atol=1e-3)


class Plain(nn.Module):
    """A layer whose channels may be anything, and one that reads them."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="read")(nn.relu(nn.Dense(8, name="hidden")(x)))


#: What is done to the hidden layer -> rank of its 8 channels that least squares sees.
CHANNELS = {
    "dead": lambda kernel, bias: (kernel * (np.arange(8) > 2), bias * 0 - 1.0),
    "constant": lambda kernel, bias: (kernel * (np.arange(8) > 2), bias * 0 + 1.0),
    "duplicate": lambda kernel, bias: (kernel[:, np.arange(8) // 2], bias * 0),
    "as they are": lambda kernel, bias: (kernel, bias),
}


@pytest.mark.parametrize("count", [3, 200])
@pytest.mark.parametrize("case", CHANNELS)
def test_a_walk_over_degenerate_channels_is_lstsq_in_float64(case, count):
    """Whatever the channels are; and with fewer images than channels, finite."""
    network, images = Plain(), images_of(count, (16,))
    variables = variables_of(network, (16,))
    hidden = variables["params"]["hidden"]
    made = CHANNELS[case](hidden["kernel"], hidden["bias"])
    hidden["kernel"], hidden["bias"] = made
    for criterion in (None, criteria.obs(), criteria.l1()):
        found = prune(network, variables, [images], 0.5, criterion=criterion)
        out = found.apply(found.variables, images)
        assert np.isfinite(out).all()
        h = np.maximum(np.asarray(images, float) @ made[0] + made[1], 0)
        dense = network.apply(variables, images)
        left = np.c_[h[:, found.plan["hidden"].kept], np.ones(count)]
        best = left @ np.linalg.lstsq(left, np.asarray(dense, float))[0]
        apart = np.square(out - best).sum() / np.square(dense - dense.mean(0)).sum()
        assert apart < 3e-3 or count == 3  # products are single precision's


def test_a_matrix_that_rounding_made_indefinite_is_solved():
    """As sums in single precision leave it: eigenvalues of the wrong sign."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 30))
    start = rng.normal(size=(30, OUTPUTS))
    folds = []
    for half in (x[::2], x[1::2]):
        found = moments_of(
            half, half @ start + 0.1 * rng.normal(size=(len(half), OUTPUTS))
        )
        noise = rng.normal(size=(30, 30))
        noise *= 1e-3 * np.linalg.norm(found.xx) / np.linalg.norm(noise + noise.T)
        folds.append(dataclasses.replace(found, xx=found.xx + noise + noise.T))
    assert np.linalg.eigvalsh(folds[0].xx).min() < -1e-5 * np.trace(folds[0].xx)
    fitted = least_squares.fit(tuple(folds), start)
    assert np.isfinite(fitted).all() and np.abs(fitted - start).max() < 10


CUTS = ((32,), (16, 16), (8, 8, 8, 8), (5, 5, 5, 5, 5, 5, 2), (3, 29), (1,) * 32)


@pytest.mark.parametrize(
    "network",
    [
        MLP(4, hidden=(64, 48)),
        pytest.param(
            ResNet(4, depths=(1, 1), base=16, stem="small"), marks=pytest.mark.slow
        ),
    ],
    ids=["mlp", "resnet"],
)
def test_how_images_are_cut_into_batches_changes_no_ridge(network, monkeypatch):
    """Nor the kernels that it gives. There are fewer images than channels."""
    variables, images = variables_of(network), images_of(32)
    ridges, real = [], least_squares._held_out_ridge

    def chosen(*args):
        ridges.append(real(*args))
        return ridges[-1]

    monkeypatch.setattr(least_squares, "_held_out_ridge", chosen)
    results = []
    cuts = CUTS if isinstance(network, MLP) else CUTS[0:4:3]
    for cut in cuts:
        ridges.clear()
        batches = np.split(images, np.cumsum(cut)[:-1])
        found = prune(network, variables, batches, 0.5, repair="lsq")
        results.append((list(ridges), found))
    first, expected = results[0]
    assert first
    for ridges_there, found in results[1:]:
        assert ridges_there == first
        for name, cut in expected.plan.items():
            np.testing.assert_array_equal(found.plan[name].kept, cut.kept)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
            found.variables,
            expected.variables,
        )


@pytest.mark.parametrize("case", ["consumer", "producer", "bf16", "one image"])
def test_repair_of_what_is_hardly_there_is_finite(case):
    network = ResNet(4, depths=(1, 1), base=10, stem="small")
    variables, images = variables_of(network), jnp.asarray(images_of(12))
    block = variables["params"]["layer2.0"]
    for layer in {"consumer": ("conv2",), "producer": ("conv1",)}.get(case, ()):
        block[layer]["kernel"] = 0 * block[layer]["kernel"]
    if case == "bf16":
        images = images.astype(jnp.bfloat16)
    images = images[:1] if case == "one image" else images
    found = prune(network, variables, [images], 0.5, repair="lsq")
    jax.tree.map(lambda a: np.testing.assert_(np.isfinite(a).all()), found.variables)
