"""SGLP's parts against what they must be, and against every partition there is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import blocks, images_of, variables_of

from ispasp_jax import graph, walk
from ispasp_jax.errors import InputError
from ispasp_jax.selection import sglp
from ispasp_jax.walk import flat, gates, layers, streams
from ispasp_jax.walk.pieces import forward, piece


def test_cka_does_not_see_rotations_and_scales():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 6)).astype(np.float32)
    Q, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    Y = (3 * X @ Q + 5).astype(np.float32)
    other = rng.normal(size=(20, 3)).astype(np.float32)
    K, L, M = (sglp.gram(jnp.asarray(A)) for A in (X, Y, other))
    np.testing.assert_allclose(sglp.cka(K, L), 1, rtol=1e-3)
    n = len(X)
    H = np.eye(n) - 1 / n
    expected = np.trace(np.asarray(K) @ H @ np.asarray(M) @ H) / (n - 1) ** 2
    np.testing.assert_allclose(sglp.hsic(K, M), expected, rtol=1e-3)
    assert 0 < sglp.cka(K, M) < 0.9
    S = jax.jit(sglp.similarity)(jnp.stack([K, L, M]))
    np.testing.assert_allclose(S, S.T, rtol=1e-5)
    np.testing.assert_allclose(S[0, 2], sglp.cka(K, M), rtol=1e-5)
    # A representation that says nothing is like none, itself included.
    assert not sglp.cka(K, jnp.zeros_like(K))


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_a_partition_is_the_best_of_all(k):
    S = jnp.asarray(np.random.default_rng(k).random((6, 6)))
    D = np.asarray(sglp.diameters(S))
    A = np.asarray(S.sum(1))
    np.testing.assert_allclose(D[1, 4], 4 * np.var(A[1:5]), rtol=1e-4)

    def total(ends):
        bounds = [0, *ends, 6]
        pairs = zip(bounds, bounds[1:], strict=False)
        return sum(D[low, high - 1] for low, high in pairs)

    found = sglp.fisher_partition(jnp.asarray(D), k)
    assert [i for segment in found for i in segment] == [*range(6)]
    assert len(found) == k
    least = min(map(total, itertools.combinations(range(1, 6), k - 1)))
    np.testing.assert_allclose(total([s.stop for s in found[:-1]]), least)


def test_what_is_alike_and_of_no_importance_goes():
    S = jnp.asarray(np.kron(np.eye(2), np.ones((3, 3))) + 0.1)
    S = S.at[3:, 3:].mul(2)
    importance = [5.0, 1.0, 2.0, 0.5, 3.0, 4.0]
    assert sglp.choose(S, importance, 2, 2) == [1, 3]
    assert sglp.choose(S, importance, 4, 2) == [1, 2, 3, 4]
    assert sglp.choose(S, importance, 0, 6) == []
    with pytest.raises(InputError, match="from 0 to 4, or fewer segments"):
        sglp.choose(S, importance, 5, 2)
    with pytest.raises(InputError, match="7 segments of 6 layers"):
        sglp.choose(S, importance, 1, 7)


def test_the_walk_asks_what_the_paper_asks():
    """Similarity and importance are those of the sums and gradients by hand, whatever
    the batches."""
    network = blocks(4)
    variables, x = variables_of(network), images_of(24)
    label = np.random.default_rng(0).integers(0, 4, 24)
    traced = graph.trace(network, variables, x)
    program = flat.flatten(traced)
    weights = flat.arrays(program, variables)
    here = streams.start(program, weights, [x])
    joins = [branch.join for branch in traced.branches.values()]
    step = piece(program, joins, here.live)
    sums, _ = forward(step)([jnp.asarray(x)], streams.weights_of(step, weights))
    expected = sglp.similarity(jnp.stack([sglp.gram(one) for one in sums]))
    np.testing.assert_allclose(layers._similarity(here, traced), expected, rtol=1e-3)

    def loss(params):
        logits = network.apply({**variables, "params": params}, jnp.asarray(x))
        return -jax.nn.log_softmax(logits)[jnp.arange(24), label].mean()

    gradient = jax.grad(loss)(variables["params"])
    expected = [optax.tree.norm(gradient[name]) for name in traced.branches]
    for ends in ([], [16]):
        here = streams.start(program, weights, np.split(x, ends))
        labels = gates.aligned(np.split(label, ends), here, None)
        ours = layers._importance(here, traced, labels)
        np.testing.assert_allclose(ours, expected, rtol=1e-3)
    names = walk.similar_branches(traced, variables, [x], [label], 1, segments=2)
    assert len(names) == 1 and names[0] in traced.branches
    with pytest.raises(InputError, match="3 branches cannot go"):
        walk.similar_branches(traced, variables, [x], [label], 3)
