"""Which layers go: similarity guided layer partition (SGLP, Li et al., arXiv
2410.14720).

    X      representations of a layer, one row an example              (n, p)
    K, L   Gram matrices of two layers, K = X Xᵀ                       (n, n)
    H      I − 11ᵀ/n, which centres
    S      similarity of all layers, S_ij = CKA(K_i, K_j)              (l, l)
    A      how alike a layer is to all others, A_i = Σ_j S_ij          (l,)
    D      diameters, D(i, j) = Σ_{a=i}^{j} (A_a − mean)²              (l, l)
    P      Fisher's optimal partition of l layers into k segments in a row

       HSIC(K, L) = tr(K H L H) / (n − 1)²
       CKA(K, L)  = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L))
       e(j, k)    = min_i e(i − 1, k − 1) + D(i, j),   e(j, 1) = D(1, j)

A layer here is a branch, x + f(x), since that can be left out. What differs from the
paper:

1. Every segment keeps its most important layer, and the least important of all others
   go, of whatever segment: the paper prunes each segment by itself, and the authors'
   code for language models drops whole segments.
2. The importance is the norm of the loss's gradient by the layer's parameters
   (GradNorm); that code takes it of the layer's output.
3. The number of segments is asked for; that code chooses it by clustering A.

Written from the paper's abstract and that code; the paper's equations were not at hand.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from ispasp_jax.errors import InputError


def gram(X: Float[Array, "n ..."]) -> Float[Array, "n n"]:
    """K = X Xᵀ, of everything that a layer gives for each example."""
    X = X.reshape(len(X), -1).astype(jnp.float32)
    return jnp.matmul(X, X.T, precision="highest")


def hsic(K: Float[Array, "n n"], L: Float[Array, "n n"]) -> Float[Array, ""]:
    """tr(K H L H) / (n − 1)²: how much of K is in L, both centred.

    Args:
      K: a Gram matrix.
      L: another, of the same examples.
    """
    n = len(K)

    def centre(G: Float[Array, "n n"]) -> Float[Array, "n n"]:
        G = G - G.mean(0, keepdims=True)
        return G - G.mean(1, keepdims=True)

    return (centre(K) * centre(L)).sum() / (n - 1) ** 2


def cka(K: Float[Array, "n n"], L: Float[Array, "n n"]) -> Float[Array, ""]:
    """Centred kernel alignment, from 0 to 1: the same for representations that differ
    by a rotation or a scale.

    Args:
      K: a Gram matrix.
      L: another, of the same examples.
    """
    own = jnp.sqrt(hsic(K, K) * hsic(L, L))
    return hsic(K, L) / jnp.maximum(own, jnp.finfo(own.dtype).tiny)


def similarity(grams: Float[Array, "l n n"]) -> Float[Array, "l l"]:
    """S: the CKA of every two layers.

    Args:
      grams: of every layer.
    """
    return jax.vmap(lambda K: jax.vmap(functools.partial(cka, K))(grams))(grams)


def diameters(S: Float[Array, "l l"]) -> Float[Array, "l l"]:
    """D: how unlike the layers i to j are among themselves; 0 below the diagonal.

    Args:
      S: similarity of all layers.
    """
    A, places = S.sum(1), jnp.arange(len(S))

    def diameter(i, j):
        inside = (places >= i) & (places <= j)
        mean = jnp.where(inside, A, 0).sum() / jnp.maximum(inside.sum(), 1)
        return jnp.where(inside, jnp.square(A - mean), 0).sum()

    return jax.vmap(lambda i: jax.vmap(lambda j: diameter(i, j))(places))(places)


def fisher_partition(D: Num[Array, "l l"], k: int) -> list[range]:
    """P: the k segments in a row whose diameters' sum is least, by dynamic programming.

    Args:
      D: diameter of the segment from i to j, both included, at [i, j].
      k: how many segments.

    Returns:
      The layers of each segment, in order.

    Raises:
      InputError: k is not from 1 to the number of layers.
    """
    d = [[float(x) for x in row] for row in D.tolist()]
    count = len(d)
    if not 1 <= k <= count:
        raise InputError(
            f"{k} segments of {count} layers; expected a number from 1 to {count}."
        )
    least, first = [d[0]], [[0] * count]
    for _ in range(1, k):
        before, row, starts = least[-1], [float("inf")] * count, [0] * count
        for j in range(len(least), count):
            options = range(len(least), j + 1)
            starts[j] = min(options, key=lambda i: before[i - 1] + d[i][j])
            row[j] = before[starts[j] - 1] + d[starts[j]][j]
        least.append(row)
        first.append(starts)
    segments, end = [], count - 1
    for starts in reversed(first):
        segments.append(range(starts[end], end + 1))
        end = starts[end] - 1
    return segments[::-1]


def choose(
    S: Float[Array, "l l"], importance: Sequence[float], count: int, k: int
) -> list[int]:
    """The layers that go.

    Args:
      S: similarity of all layers.
      importance: of each, the norm of its gradient.
      count: how many go.
      k: how many segments the layers are in; each keeps its most important one.

    Returns:
      Places of the layers that go, ascending.

    Raises:
      InputError: fewer could go, or k is not from 1 to the number of layers.
    """
    segments = fisher_partition(diameters(S), k)
    kept = {max(segment, key=lambda i: importance[i]) for segment in segments}
    others = [i for i in range(len(S)) if i not in kept]
    if not 0 <= count <= len(others):
        raise InputError(
            f"{count} of {len(S)} layers cannot go, with one kept in each of {k} "
            f"segments; expected a number from 0 to {len(others)}, or fewer segments."
        )
    return sorted(sorted(others, key=lambda i: importance[i])[:count])
