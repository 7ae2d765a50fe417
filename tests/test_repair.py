"""Repair against float64 numpy, and the identities that it has to keep."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, images_of, variables_of

from ispasp_jax import groups, moments, pruning, repair, streams
from ispasp_jax.models.network import Block, subtree
from ispasp_jax.moments import Moments


def stream_of(block, own, *arrays):
    """Batches of activations at a part's input."""
    return streams.start(arrays).enter(block, own)


def fitted_pair(i, pruned, dense, kept=None):
    """Both streams behind the i-th consumer, the pruned one's refitted."""
    hidden = pruned.hidden(i)
    width = hidden[0].shape[-1]
    kept = np.arange(width) if kept is None else kept
    dense = dense.consume(i, dense.hidden(i))
    folds = moments.measure(i, pruned, hidden, dense, kept)
    reach = repair.reach(i, pruned, hidden)
    own = repair.least_squares(reach, pruned.own, folds, kept)
    pruned = pruned._replace(own=own)
    return pruned.consume(i, hidden), dense


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
    for ours, whole in zip(
        parts[0] + parts[1] + parts[2], moments_of(x, y), strict=True
    ):
        np.testing.assert_allclose(ours, whole, rtol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_patches_times_kernel_is_the_consumer(name):
    """What least squares multiplies is what the network computes."""
    network, variables = NETWORKS[name], variables_of(NETWORKS[name])
    x = jnp.asarray(images_of(2))
    for part in network.chain():
        own, block = subtree(variables, part), part.module
        for i in range(len(block.groups) if isinstance(block, Block) else 0):
            hidden = block.apply(own, x, i, method="reach")
            stream = stream_of(block, own, x)
            consumer = repair.reach(i, stream, [hidden]).consumer
            patches = block.apply(own, hidden, i, method="patches")
            u = block.apply(own, hidden, i, method="consumer")
            ours = patches @ consumer.matrix + consumer.shift
            np.testing.assert_allclose(ours, u, rtol=1e-3, atol=1e-3)
        x = block.apply(own, x)


@pytest.mark.parametrize("name", NETWORKS)
def test_least_squares_on_the_dense_network_itself_changes_nothing(name):
    """Patches and target are the dense network's own: the kernel as it is fits."""
    network, variables = NETWORKS[name], variables_of(NETWORKS[name])
    x = jnp.asarray(images_of(24))
    for part in network.chain():
        own, block = subtree(variables, part), part.module
        before = block.apply(own, x)
        pruned = dense = stream_of(block, own, x[:16], x[16:])
        for i in range(len(block.groups) if isinstance(block, Block) else 0):
            pruned, dense = fitted_pair(i, pruned, dense)
        after = block.apply(pruned.own, x)
        scale = float(jnp.abs(before).max())
        np.testing.assert_allclose(after, before, atol=2e-3 * scale)
        x = before


def test_least_squares_equals_numpy_in_float64_and_batch_norm_can_train_on():
    """One cut block: the stored layer gives the ridge solution's outputs, and batch
    norm's moments are those of the new convolution."""
    name = "basic"
    network, variables = NETWORKS[name], variables_of(NETWORKS[name])
    part = next(p for p in network.chain() if p.name == "layer2.0")
    block, own = part.module, subtree(variables, part)
    stem = network.chain()[: network.chain().index(part)]
    x = jnp.asarray(images_of(64))
    for before in stem:
        x = before.module.apply(subtree(variables, before), x)
    noisy = x + 0.1 * jax.random.normal(jax.random.key(0), x.shape)
    group, kept = block.groups[0], np.arange(0, block.widths[0], 2)
    narrow = block.clone(widths=(len(kept),))
    cut = groups.take(own, group, kept)
    pruned = stream_of(block, own, noisy[:40], noisy[40:])
    fitted, _ = fitted_pair(0, pruned, stream_of(block, own, x[:40], x[40:]), kept)
    fitted = groups.take(fitted.own, group, kept)

    hidden = narrow.apply(cut, noisy, 0, method="reach")
    P = np.asarray(narrow.apply(cut, hidden, 0, method="patches"), np.float64)
    target = block.apply(
        own, block.apply(own, x, 0, method="reach"), 0, method="consumer"
    )
    target += block.apply(own, x, method="skip") - narrow.apply(
        cut, noisy, method="skip"
    )
    P, T = P.reshape(-1, P.shape[-1]), np.asarray(target, np.float64)
    T = T.reshape(len(P), -1)
    kernel = np.asarray(cut["params"]["conv2"]["kernel"], np.float64)
    norm, stats = (cut[c]["bn2"] for c in ("params", "batch_stats"))
    scale = np.asarray(norm["scale"]) / np.sqrt(np.asarray(stats["var"]) + 1e-5)
    W0 = kernel.reshape(P.shape[1], -1) * scale
    dP, dT = P - P.mean(0), T - T.mean(0)
    A, C = dP.T @ dP, dP.T @ dT
    solutions = [
        W0 + np.linalg.solve(A + r * np.trace(A) / len(A) * np.eye(len(A)), C - A @ W0)
        for r in repair.RIDGES
    ]
    outputs = [dP @ W + T.mean(0) for W in solutions]
    ours = narrow.apply(fitted, hidden, 0, method="consumer")
    gaps = [np.abs(out - np.asarray(ours).reshape(out.shape)).max() for out in outputs]
    assert min(gaps) < 1e-3 * np.abs(T).max(), gaps
    as_cut = narrow.apply(cut, hidden, 0, method="consumer")
    errors = [
        np.square(np.asarray(u).reshape(T.shape) - T).sum() for u in (ours, as_cut)
    ]
    assert errors[0] < 0.7 * errors[1]

    # In training mode the same batch gives the same outputs: the moments are its own.
    trained, _ = narrow.apply(
        fitted, hidden, 0, True, method="consumer", mutable=["batch_stats"]
    )
    np.testing.assert_allclose(trained, ours, rtol=1e-3, atol=1e-3)


def test_the_ridge_survives_dead_channels_and_few_images():
    rng = np.random.default_rng(0)
    x, start = rng.normal(size=(6, 9)), rng.normal(size=(9, 3))
    x[:, 4] = 0  # a dead channel
    y = x @ start + rng.normal(size=(6, 3))
    folds = moments_of(x[::2], y[::2]), moments_of(x[1::2], y[1::2])
    fitted = repair.fit(folds, start)
    assert np.isfinite(fitted).all()
    np.testing.assert_allclose(fitted[4], start[4])  # nothing says anything about it
    nothing = moments_of(0 * x[::2], y[::2]), moments_of(0 * x[1::2], y[1::2])
    np.testing.assert_array_equal(repair.fit(nothing, start), start)


def test_recalibrated_moments_are_those_of_all_images():
    network, variables = NETWORKS["basic"], variables_of(NETWORKS["basic"])
    part = network.chain()[0]
    own = subtree(variables, part)
    x = jnp.asarray(images_of(48)) * 3 + 1
    stream = stream_of(part.module, own, x[:32], x[32:])
    found = repair.recalibrate(stream)["batch_stats"]["bn1"]
    kernel = own["params"]["conv1"]["kernel"]
    z = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found["mean"], z.mean((0, 1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["var"], z.var((0, 1, 2)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_repair_brings_the_logits_nearer_to_the_dense_ones(name):
    network, variables = NETWORKS[name], variables_of(NETWORKS[name])
    images, fresh = images_of(192), jnp.asarray(images_of(192, seed=1))
    dense = network.apply(variables, fresh)
    errors = {}
    for how in ("none", "lsq"):
        result = pruning.prune(
            network, variables, [images[:128], images[128:]], 0.5, repair=how
        )
        logits = result.network.apply(result.variables, fresh)
        errors[how] = float(jnp.square(logits - dense).mean())
    assert errors["lsq"] < 0.8 * errors["none"], errors


def test_a_walk_that_cuts_nothing_repairs_nothing():
    network, variables = NETWORKS["bottleneck"], variables_of(NETWORKS["bottleneck"])
    for how in ("bn", "lsq"):
        result = pruning.prune(network, variables, [images_of(8)], 1.0, repair=how)
        chex.assert_trees_all_equal(dict(result.variables), dict(variables))
