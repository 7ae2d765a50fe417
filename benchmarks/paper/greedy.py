"""Greedy forward selection of one layer's channels, two ways, for against_gfs.py.

GFS (Ye et al., ICML 2020, and their code): start with no channel; at each step draw a
fresh mini-batch of labelled images and add the channel outside S that gives the whole
network the least cross-entropy. The layer is written as an average, so with n channels
kept each counts d/n. Their analysis lets a channel be added again; their code, and this
one, do not. Their code tries at most 50 random channels a step, their paper all.

On the Gram matrix K[c, e] = Σ ⟨consumer(H_c), consumer(H_e)⟩ the same greedy idea for
the local objective ‖V‖² = (1 − m)ᵀ K (1 − m) is d×d arithmetic and needs no labels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ispasp_jax
from ispasp_jax import data
from ispasp_jax.graph.program import Value
from ispasp_jax.selection.problem import LeastSquares
from ispasp_jax.selection.problem import gram as gram_of
from ispasp_jax.walk import consumers, flat, layouts, pieces, sites
from ispasp_jax.walk.streams import weights_of


class Images(NamedTuple):
    """Images that went as far as the layer.

    Attributes:
      x: what else is alive there, (n, ...) each.
      h: its hidden activations, (n, *positions, d).
      label: classes, (n,).
    """

    x: tuple[jax.Array, ...]
    h: jax.Array
    label: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer inside a network, whose equations are those of one image.

    Attributes:
      site: the consumer of its channels.
      alive: what else is alive before it.
      variables: the network's.
    """

    site: sites.Site = dataclasses.field(metadata={"static": True})
    alive: tuple[Value, ...] = dataclasses.field(metadata={"static": True})
    variables: Any

    @property
    def d(self) -> int:
        """Channels of the layer."""
        return self.site.width

    def run(self, given, wanted, *arrays):
        """Values of every example from others of it."""
        step = pieces.piece(self.site.flat, wanted, given)
        weights = weights_of(step, flat.arrays(self.site.flat, self.variables))

        def one(*example):
            known = dict(zip(given, example, strict=True))
            batch = [known[value][None] for value in step.given]
            return [made[0] for made in step.run(batch, weights)]

        return jax.vmap(one)(*arrays)


def find(network: Any, variables: Any, name: str, shape: tuple[int, ...]) -> Layer:
    """The layer whose channels are the group of that name, on images of that shape."""
    image = jax.ShapeDtypeStruct((1, *shape), "float32")
    traced = ispasp_jax.trace(network, variables, image)
    program = flat.flatten(traced)
    (site,) = sites.of_leaf(sites.sites(program), traced[name].atom)
    alive = [v for v in program.alive(site.place) if v is not site.hidden]
    return Layer(site, tuple(alive), variables)


def reach(layer: Layer, image: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """What is alive before the layer's consumer, and its hidden activations."""
    wanted = [*layer.alive, layer.site.hidden]
    *x, h = layer.run(layer.site.flat.inputs, wanted, image)
    return tuple(x), h


def logits(
    layer: Layer, weights: jax.Array, x: tuple[jax.Array, ...], h: jax.Array
) -> jax.Array:
    """Of the network whose channels count `weights`, (d,), from the layer on."""
    given = [*layer.alive, layer.site.hidden]
    (out,) = layer.run(given, layer.site.flat.outputs, *x, h * weights)
    return out


def consumer(layer: Layer, h: jax.Array) -> jax.Array:
    """What the layer's consumer makes of hidden activations."""
    (u,) = layer.run([layer.site.hidden], [layer.site.out], h)
    return u


def carry(forward: Callable, source: data.Source, split, indices) -> Images:
    """Images of a split as far as the layer; `forward` is `reach`, jitted."""
    found = []
    for batch in data.batches(split, source.preprocessing, 128, indices=indices):
        keep = batch.weight > 0
        x, h = forward(batch.image)
        found.append(Images(tuple(a[keep] for a in x), h[keep], batch.label[keep]))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


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
        batch = jax.tree.map(lambda array: array[chosen], images)
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
    """K, (d, d), from the second moments of the patches."""
    weights = flat.arrays(layer.site.flat, layer.variables)
    own = consumers.kernel(layer.site, weights)
    zero, one = (
        layer.run([layer.site.equation.outputs[0]], [layer.site.out], ends)[0]
        for ends in _ends(layer)
    )
    matrix = (
        own.reshape(-1, own.shape[-1])
        * (one - zero)[0, ..., :].reshape(-1, own.shape[-1])[0]
    )

    def moments(h):
        P = layouts.patches(layer.site, h)
        P = P.reshape(-1, P.shape[-1])
        return P.T @ P

    with jax.default_matmul_precision("highest"):
        whole = len(h) // batch_size * batch_size
        batches = h[:whole].reshape(-1, batch_size, *h.shape[1:])
        xx = jax.lax.map(moments, batches).sum(0) if whole else 0.0
        xx = xx + moments(h[whole:]) if whole < len(h) else xx
        return gram_of(LeastSquares(xx, xx, matrix), layer.d)


def _ends(layer: Layer) -> list[jax.Array]:
    """Zeros and ones for what the contraction gives of an image."""
    out = layer.site.equation.outputs[0].aval
    return [jnp.full(out.shape, value, out.dtype) for value in (0.0, 1.0)]


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
