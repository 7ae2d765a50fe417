"""Greedy forward selection of one layer's channels, two ways, for against_gfs.py.

GFS (Ye et al., ICML 2020, and their code): start with no channel; at each step draw a
fresh mini-batch of labelled images and add the channel outside S that gives the whole
network the least cross-entropy. The layer is written as an average, so with n channels
kept each counts d/n. Their analysis lets a channel be added again; their code, and this
one, do not. Their code tries at most 50 random channels a step, their paper all.

On the Gram matrix K[c, e] = Σ ⟨consumer(H_c), consumer(H_e)⟩ the same greedy idea for
the local objective ‖V‖² = (1 − m)ᵀ K (1 − m) is d×d arithmetic and needs no labels.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ispasp_jax.models.network import Network, subtree

from ispasp_jax import data, groups


class Images(NamedTuple):
    """Images that went as far as the layer.

    Attributes:
      x: the block's input, (n, ...).
      h: its hidden activations, (n, *positions, d).
      label: classes, (n,).
    """

    x: jax.Array
    h: jax.Array
    label: jax.Array


class Layer(NamedTuple):
    """A layer inside a network.

    Attributes:
      before: modules before the block.
      block: the block; its first pair is the layer.
      after: modules behind it.
      variables: the variables of all of them, in the same order.
    """

    before: tuple
    block: object
    after: tuple
    variables: tuple

    @property
    def d(self) -> int:
        """Channels of the layer."""
        return self.block.widths[0]

    @property
    def own(self):
        """The block's variables."""
        return self.variables[len(self.before)]


def find(network: Network, variables, name: str) -> Layer:
    """The layer of the part with that name."""
    parts = network.chain()
    at = [part.name for part in parts].index(name)
    modules = tuple(part.module for part in parts)
    own = tuple(subtree(variables, part) for part in parts)
    return Layer(modules[:at], modules[at], modules[at + 1 :], own)


def reach(layer: Layer, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The block's input and its hidden activations."""
    for module, own in zip(layer.before, layer.variables, strict=False):
        image = module.apply(own, image)
    return image, layer.block.apply(layer.own, image, 0, method="hidden")


def logits(layer: Layer, weights: jax.Array, x: jax.Array, h: jax.Array) -> jax.Array:
    """Of the network whose channels count `weights`, (d,), from the layer on."""
    u = layer.block.apply(layer.own, h * weights, 0, method="consumer")
    y = layer.block.apply(layer.own, x, u, method="join")
    for module, own in zip(
        layer.after, layer.variables[len(layer.before) + 1 :], strict=True
    ):
        y = module.apply(own, y)
    return y


def carry(forward: Callable, source: data.Source, split, indices) -> Images:
    """Images of a split as far as the layer; `forward` is `reach`, jitted."""
    found = []
    for batch in data.batches(split, source.preprocessing, 128, indices=indices):
        keep = batch.weight > 0
        x, h = forward(batch.image)
        found.append((x[keep], h[keep], batch.label[keep]))
    return Images(*(jnp.concatenate(parts) for parts in zip(*found, strict=True)))


def gfs(
    layer: Layer,
    images: Images,
    key: jax.Array,
    *,
    steps: int,
    batch_size: int = 128,
    candidates: int | None = None,
    scaled: bool = True,
    at_once: int = 16,
) -> jax.Array:
    """The channels in the order in which GFS adds them, (steps,).

    The part of the network before the layer is the same for all candidates and is not
    run again for each: `images` holds what it gave.

    Args:
      layer: where to select.
      images: labelled.
      key: for the mini-batches and the random candidates.
      steps: how many channels to add.
      batch_size: images of a mini-batch.
      candidates: random ones tried a step; None tries all.
      scaled: channels count d/n, as published; else 1, as after a plain cut.
      at_once: candidates of a vmap.
    """
    d, n = layer.d, len(images.label)

    def loss(weights, batch):
        scores = jax.nn.log_softmax(logits(layer, weights, batch.x, batch.h))
        return -jnp.take_along_axis(scores, batch.label[:, None], 1).mean()

    def step(S, inputs):
        size, key = inputs
        for_batch, for_order = jax.random.split(key)
        chosen = jax.random.choice(for_batch, n, (min(batch_size, n),), replace=False)
        batch = Images(*(array[chosen] for array in images))
        # Channels outside S in random order, then the others; only the first are tried.
        order = jnp.argsort(jnp.where(S, 2.0, jax.random.uniform(for_order, (d,))))
        tried = d - size + 1 if candidates is None else candidates
        tried = jnp.minimum(tried, d - size + 1)
        weight = d / size if scaled else 1.0

        def some(turn, losses):
            place = turn * at_once + jnp.arange(at_once)
            c = order[jnp.minimum(place, d - 1)]
            masks = jax.vmap(lambda c: S.at[c].set(True))(c)
            found = jax.vmap(lambda mask: loss(mask * weight, batch))(masks)
            return losses.at[c].min(jnp.where(place < tried, found, jnp.inf))

        turns = -(-tried // at_once)
        losses = jax.lax.fori_loop(0, turns, some, jnp.full(d, jnp.inf))
        best = jnp.argmin(losses)
        return S.at[best].set(True), best

    sizes = jnp.arange(1, steps + 1)
    _, order = jax.lax.scan(
        step, jnp.zeros(d, bool), (sizes, jax.random.split(key, steps))
    )
    return order


def passes(d: int, steps: int, candidates: int | None = None) -> int:
    """How many mini-batches GFS evaluates on the way to `steps` channels."""
    return sum(min(d - k, candidates or d) for k in range(steps))


def gram(layer: Layer, h: jax.Array, batch_size: int = 128) -> jax.Array:
    """K, (d, d): the consumer is applied to one channel at a time, each a cut network
    of width one, so that all of them together cost one dense consumer.
    """
    one = layer.block.clone(widths=(1,))
    narrow = groups.take(layer.own, layer.block.groups[0], np.array([0]))

    def contribution(h, c):
        def cut(leaf, first):
            """The leaf as `groups.take` cuts it, for a traced channel."""
            axes = [a for a in range(leaf.ndim) if leaf.shape[a] != first.shape[a]]
            return jnp.take(leaf, c[None], axes[0]) if axes else leaf

        own = jax.tree.map(cut, layer.own, narrow)
        h = h[..., c[None]]

        def consumer(h):
            return one.apply(own, h, 0, method="consumer")

        return (consumer(h) - consumer(jnp.zeros_like(h[:1]))).ravel()

    def of_batch(h):
        C = jax.lax.map(functools.partial(contribution, h), jnp.arange(layer.d))
        return C @ C.T

    with jax.default_matmul_precision("highest"):
        whole = len(h) // batch_size * batch_size
        batches = h[:whole].reshape(-1, batch_size, *h.shape[1:])
        K = jax.lax.map(of_batch, batches).sum(0) if whole else 0.0
        return K + of_batch(h[whole:]) if whole < len(h) else K


def gram_forward(K: jax.Array) -> jax.Array:
    """All channels in the order in which greedy forward selection on ‖V‖² adds them:
    adding c changes it by K[c, c] − 2 (K (1 − m))[c].
    """

    def step(state, _):
        lost, S = state
        c = jnp.argmin(jnp.where(S, jnp.inf, jnp.diagonal(K) - 2 * lost))
        return (lost - K[:, c], S.at[c].set(True)), c

    start = K.sum(1), jnp.zeros(len(K), bool)
    return jax.lax.scan(step, start, length=len(K))[1]


def nested(order: jax.Array, sizes: np.ndarray, d: int) -> np.ndarray:
    """The first s channels of an order as masks, (sizes, d)."""
    rank = np.full(d, d)
    rank[np.asarray(order)] = np.arange(len(order))
    return rank < np.asarray(sizes)[:, None]


def relative_residual(K: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """‖U − consumer(weights · H)‖ / ‖U‖ for rows of weights, U without the shift."""
    K, missing = np.asarray(K, np.float64), 1 - np.asarray(weights, np.float64)
    squares = np.einsum("sc,ce,se->s", missing, K, missing)
    return np.sqrt(np.maximum(squares, 0) / K.sum())
