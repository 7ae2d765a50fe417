"""Repair against float64 numpy, and the identities that it has to keep."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, images_of, variables_of
from programs import draw, sites_of

from ispasp_jax import graph, prune
from ispasp_jax.graph import Cut
from ispasp_jax.graph.check import random_plan
from ispasp_jax.walk import fits, least_squares, measurement, norms, sites, streams
from ispasp_jax.walk.moments import Moments


def moments_of(x, y):
    """In float64, from the definition."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    dx, dy = x - mean_x, y - mean_y
    count = np.float64(len(x))
    return Moments(count, mean_x, mean_y, dx.T @ dx, dx.T @ dy, (dy * dy).sum())


def test_moments_add_up():
    rng = np.random.default_rng(0)
    x, y = rng.normal(5, 1, (60, 7)), rng.normal(-3, 2, (60, 4))
    parts = [moments_of(x[a:b], y[a:b]) for a, b in ((0, 1), (1, 25), (25, 60))]
    ours, whole = vars(parts[0] + parts[1] + parts[2]), vars(moments_of(x, y))
    for name in whole:
        np.testing.assert_allclose(ours[name], whole[name], rtol=1e-10)


def test_the_ridge_survives_dead_channels_and_few_images():
    rng = np.random.default_rng(0)
    x, start = rng.normal(size=(6, 9)), rng.normal(size=(9, 3))
    x[:, 4] = 0  # a dead channel
    y = x @ start + rng.normal(size=(6, 3))
    folds = moments_of(x[::2], y[::2]), moments_of(x[1::2], y[1::2])
    fitted = least_squares.fit(folds, start)
    assert np.isfinite(fitted).all()
    np.testing.assert_allclose(fitted[4], start[4])  # nothing says anything about it
    nothing = moments_of(0 * x[::2], y[::2]), moments_of(0 * x[1::2], y[1::2])
    np.testing.assert_array_equal(least_squares.fit(nothing, start), start)


@pytest.mark.parametrize(
    "name", ["basic", "mlp", pytest.param("mobile", marks=pytest.mark.slow)]
)
def test_least_squares_on_the_dense_network_itself_changes_nothing(name):
    """Patches and target are the dense network's own: the kernel as it is fits."""
    model, x = NETWORKS[name], jnp.asarray(images_of(24))
    variables = variables_of(model)
    found, weights = sites_of(model, variables, x[:12])
    here = streams.start(found[0].flat, weights, [x[:12], x[12:]])
    fitted = dict(weights)
    for site in filter(sites.is_suited, found):
        here = here.hidden(site.place)
        behind, places = here.to(site.end, [site.target]), np.arange(site.width)
        folds = measurement.measure(site, here, behind, places).folds
        reach = fits.reach(site, fitted)
        fitted = least_squares.refit(reach, fitted, folds, places)
    arrays = [fitted[value] for value in found[0].flat.variables.values()]
    again = jax.tree.unflatten(jax.tree.structure(variables), arrays)
    before = model.apply(variables, x)
    size = float(jnp.abs(before).max())
    np.testing.assert_allclose(model.apply(again, x), before, atol=5e-3 * size)
    kernels = jax.tree.map(lambda a, b: bool((a == b).all()), variables, again)
    assert not all(jax.tree.leaves(kernels))


# The walk's least squares once more, by hand.


def ridge_fit(P, T, W0):
    """The kernel and bias that numpy finds: the ridge by two-fold hold-out over every
    second image, and the ties' largest."""

    def solve(P, T, ridge):
        dP, dT = P - P.mean(0), T - T.mean(0)
        A, C = dP.T @ dP, dP.T @ dT
        λ = ridge * np.trace(A) / len(A)
        return W0 + np.linalg.solve(A + λ * np.eye(len(A)), C - A @ W0)

    def missed(ridge):
        total = 0.0
        for a, b in ((0, 1), (1, 0)):
            dP, dT = (X[b::2] - X[b::2].mean(0) for X in (P, T))
            total += np.square(dT - dP @ solve(P[a::2], T[a::2], ridge)).sum()
        return total

    best = min(least_squares.RIDGES, key=missed)
    W = solve(P, T, best)
    return W, T.mean(0) - P.mean(0) @ W


BLOCKS = {
    **{"up": (6, 12), "a": (12,), "down": (12, 6), "b": (6,)},
    **{"up2": (6, 14), "a2": (14,), "down2": (14, 6), "b2": (6,)},
}


def two_blocks(v, x):
    x = x + (jax.nn.relu(x @ v["up"] + v["a"]) @ v["down"] + v["b"])
    return x + (jax.nn.relu(x @ v["up2"] + v["a2"]) @ v["down2"] + v["b2"])


def test_least_squares_equals_numpy_in_float64_and_corrects_what_came_before():
    """The second block is refitted to the dense network's sum less the pruned skip."""
    variables = {name: draw(*shape, seed=2) for name, shape in BLOCKS.items()}
    x = draw(101, 6, seed=3)
    traced = graph.trace(two_blocks, variables, x)
    first, second = (
        next(g.name for g in traced.groups if f"{n}" in g.consumers)
        for n in ("down", "down2")
    )
    cut = {first: Cut(12, np.arange(0, 12, 2)), second: Cut(14, np.arange(1, 14, 2))}
    found = prune(
        two_blocks, variables, [x[:40], x[40:80], x[80:]], plan=cut, repair="lsq"
    )
    v = {name: np.asarray(a, np.float64) for name, a in variables.items()}
    x64 = np.asarray(x, np.float64)

    def branch(x, end, kept=slice(None)):
        h = np.maximum(x @ v[f"up{end}"] + v[f"a{end}"], 0)
        return h[:, kept]

    dense = branch(x64, "") @ v["down"] + v["b"]
    P, kept = branch(x64, "", cut[first].kept), cut[first].kept
    W, b = ridge_fit(P, dense, v["down"][kept])
    dense, pruned = x64 + dense, x64 + P @ W + b
    close = {"rtol": 1e-2, "atol": 2e-3}
    np.testing.assert_allclose(found.variables["down"], W, **close)
    np.testing.assert_allclose(found.variables["b"], b, **close)
    T = dense + branch(dense, "2") @ v["down2"] + v["b2"] - pruned
    P, kept = branch(pruned, "2", cut[second].kept), cut[second].kept
    W, b = ridge_fit(P, T, v["down2"][kept])
    np.testing.assert_allclose(found.variables["down2"], W, **close)
    np.testing.assert_allclose(found.variables["b2"], b, **close)
    for name in ("up", "a"):  # what makes the channels is as it was
        expected = variables[name][..., cut[first].kept]
        np.testing.assert_array_equal(found.variables[name], expected)
    (drift,) = (g.drift for g in found.groups if g.name == second)
    whole = pruned + P @ W + b
    full = T + pruned
    expected = np.linalg.norm(whole - full) / np.linalg.norm(full)
    np.testing.assert_allclose(drift, expected, rtol=2e-2)


STREAM = {"stem": (5, 8), "up": (8, 9), "c": (9,), "down": (9, 8), "head": (8, 4)}


def stream(v, x):
    s = jax.nn.relu(x @ v["stem"])
    s = s + jax.nn.relu(s @ v["up"] + v["c"]) @ v["down"]
    return s @ v["head"] + v["d"]


def test_everything_that_reads_a_cut_stream_is_refitted():
    variables = {n: draw(*s, seed=4) for n, s in {**STREAM, "d": (4,)}.items()}
    x = draw(80, 5, seed=9)
    traced = graph.trace(stream, variables, x)
    (name,) = (g.name for g in traced.groups if g.kind == "stream")
    kept = np.array([0, 2, 3, 6, 7])
    found = prune(
        stream, variables, [x[:50], x[50:]], plan={name: Cut(8, kept)}, repair="lsq"
    )
    v = {n: np.asarray(a, np.float64) for n, a in variables.items()}
    s = np.maximum(np.asarray(x, np.float64) @ v["stem"], 0)
    up, c = ridge_fit(s[:, kept], s @ v["up"] + v["c"], v["up"][kept])
    close = {"rtol": 1e-2, "atol": 2e-3}
    np.testing.assert_allclose(found.variables["up"], up, **close)
    np.testing.assert_allclose(found.variables["c"], c, **close)
    h, ours = (np.maximum(a, 0) for a in (s @ v["up"] + v["c"], s[:, kept] @ up + c))
    whole = s + h @ v["down"]
    # "down" has no bias: moments about the shift as it is, zero.
    down = np.asarray(found.variables["down"], np.float64)
    as_cut = v["down"][:, kept]
    missed = [
        np.square(whole[:, kept] - s[:, kept] - ours @ W).sum() for W in (down, as_cut)
    ]
    assert missed[0] < missed[1]
    t = s[:, kept] + ours @ down
    head, d = ridge_fit(t, whole @ v["head"] + v["d"], v["head"][kept])
    np.testing.assert_allclose(found.variables["head"], head, **close)
    np.testing.assert_allclose(found.variables["d"], d, **close)


# Batch norm's moments.


def measured(model, variables, images, first):
    """Batch norm's moments in a pass where every norm from `first` on takes those of
    what it reads, each behind the ones before."""
    seen = {}

    def catch(call, arguments, options, context):
        module = context.module
        if not isinstance(module, nn.BatchNorm) or context.method_name != "__call__":
            return call(*arguments, **options)
        path = "/".join(module.path)
        if path != first and not seen:
            return call(*arguments, **options)
        x = arguments[0]
        seen[path] = x.mean((0, 1, 2)), x.var((0, 1, 2))
        own = variables["params"]
        for key in module.path:
            own = own[key]
        mean, var = seen[path]
        scaled = (x - mean) / jnp.sqrt(var + module.epsilon) * own["scale"]
        return scaled + own["bias"]

    with nn.intercept_methods(catch):
        model.apply(variables, jnp.asarray(images))
    return seen


@pytest.mark.parametrize(
    "name", ["basic", pytest.param("tf_mobile", marks=pytest.mark.slow)]
)
def test_moments_are_measured_again_after_each_cut_in_order(name):
    """Those before the first cut stay; a stream's cut moves all of them."""
    model, images = NETWORKS[name], images_of(30) * 2 + 1
    variables = variables_of(model)
    traced = graph.trace(model, variables, images[:1])
    for everything in (False, True):
        plan = random_plan(traced, 0.5, 1)
        stream, first = "stream.conv1", "layer1.0/bn2"
        if name == "tf_mobile":
            stream, first = "stream.features.2", "features.1/conv.2"
        if everything:
            first = "bn1" if name == "basic" else "features.0/1"
        else:
            plan = {n: c for n, c in plan.items() if traced[n].kind == "inner"}
        assert (stream in plan) == everything
        found = prune(
            model, variables, [images[:20], images[20:]], plan=plan, repair="bn"
        )
        expected = measured(model, traced.mask(plan, variables), images, first)
        by_path = dict(_leaves(variables["batch_stats"]))
        for path, (mean, var) in expected.items():
            by_path |= {f"{path}/mean": mean, f"{path}/var": var}
        tree = jax.tree.unflatten(
            jax.tree.structure(variables["batch_stats"]), by_path.values()
        )
        expected = traced.take(plan, {**variables, "batch_stats": tree})
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
            found.variables,
            expected,
        )
        chex.assert_trees_all_equal(found.variables["params"], expected["params"])


def _leaves(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield "/".join(key.key for key in path), leaf


def test_a_bias_before_the_norm_counts():
    """The norm's moments are those of the convolution with its bias."""
    model = nn.Sequential([nn.Conv(5, (3, 3)), nn.BatchNorm(True)])
    x = draw(20, 5, 4, 3)
    variables = jax.tree.map(
        lambda a: draw(*a.shape, seed=1) ** 2, model.init(jax.random.key(0), x)
    )
    (site,), weights = sites_of(model, variables, x[:10])
    (norm,) = norms.norms(site.flat)
    here = streams.start(site.flat, weights, [x[:10], x[10:]]).hidden(norm.place)
    weights = norms.recalibrate(norm, here)
    z = nn.Conv(5, (3, 3)).apply({"params": variables["params"]["layers_0"]}, x)
    found = {value.origin: array for value, array in weights.items()}
    for key, expected in (("mean", z.mean((0, 1, 2))), ("var", z.var((0, 1, 2)))):
        ours = found[f"batch_stats/layers_1/{key}"]
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)


# All together.

SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in NETWORKS
    if name not in ("basic", "mlp")
]


@pytest.mark.parametrize("scope", ["inner", "all"])
@pytest.mark.parametrize("name", ["basic", "mlp", *SLOW])
def test_repair_brings_the_logits_nearer_to_the_dense_ones(name, scope):
    model = NETWORKS[name]
    variables = variables_of(model)
    images, fresh = images_of(192), jnp.asarray(images_of(192, seed=1))
    dense = model.apply(variables, fresh)
    batches, errors = [images[:128], images[128:]], {}
    for how in ("none", "lsq"):
        found = prune(model, variables, batches, 0.5, scope=scope, repair=how)
        logits = found.apply(found.variables, fresh)
        errors[how] = float(jnp.square(logits - dense).mean())
    assert errors["lsq"] < 0.8 * errors["none"], errors


def test_a_walk_that_cuts_nothing_repairs_nothing():
    model, images = NETWORKS["bottleneck"], images_of(8)
    variables = variables_of(model)
    for how in ("bn", "lsq"):
        found = prune(model, variables, [images], 1.0, repair=how)
        chex.assert_trees_all_equal(found.variables, variables)
        assert not found.plan
