"""SGLP's parts against what they must be, and against every partition there is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ispasp_jax.errors import InputError
from ispasp_jax.selection import sglp


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

    found = sglp.fisher_partition(D, k)
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
