"""Repair after a cut, without labels or training.

`least_squares` refits every consumer to what the dense network gives at the same place:

    minimise ‖P W + b − T‖² + λ ‖W − W₀‖²

    P   patches of the kept hidden channels, in the network as pruned so far
    T   for a block's last consumer: dense u + dense skip − pruned skip, before the
        activation, so that errors of earlier blocks are corrected instead of carried;
        for one inside a block, the dense network's u
    W₀  the kernel as cut, batch norm folded in; the ridge pulls towards it
    λ   chosen by two-fold hold-out over the calibration images

and stores the fit so that training can go on: the kernel unscaled, batch norm's moments
those of the refitted convolution, its scale and shift such that evaluation gives P W +
b.

`recalibrate` measures batch norm's moments again on the network as pruned so far: the
alternative, and what serves where least squares does not reach.
"""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ispasp_jax import devices
from ispasp_jax.models.network import Block, Variables

#: Of every shipped batch norm; a user's own has to have it, too.
BATCH_NORM_EPSILON = 1e-5
#: Ridges that compete, as parts of the mean diagonal of the patches' covariance.
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
#: Above this size one ridge is used: the hold-out's eigenvalues would cost minutes.
LARGEST_HELD_OUT, FIXED_RIDGE = 1500, 1e-3


class Moments(NamedTuple):
    """Count, means and centred second moments of patches and targets; they add up."""

    count: Float[np.ndarray, ""]
    x: Float[np.ndarray, " p"]
    y: Float[np.ndarray, " o"]
    xx: Float[np.ndarray, "p p"]
    xy: Float[np.ndarray, "p o"]
    yy: Float[np.ndarray, ""]

    def __add__(self, other: "Moments") -> "Moments":
        """Of both sets together, without cancellation (Chan et al. 1983)."""
        count = self.count + other.count
        dx, dy = other.x - self.x, other.y - self.y
        weight = self.count * other.count / max(count, 1)
        share = other.count / max(count, 1)
        return Moments(
            count,
            self.x + share * dx,
            self.y + share * dy,
            self.xx + other.xx + weight * np.outer(dx, dx),
            self.xy + other.xy + weight * np.outer(dx, dy),
            self.yy + other.yy + weight * dy @ dy,
        )


class Batch(NamedTuple):
    """Activations of a batch, and a weight an example: 0 where it is padding."""

    x: Float[Array, "n ..."]
    weight: Float[Array, " n"]


class Stream(NamedTuple):
    """A part and its variables, with the batches at its input."""

    module: nn.Module
    own: Variables
    batches: list[Batch]


def reaches(block: Block, own: Variables, i: int) -> bool:
    """Whether least squares can refit the consumer: one kernel, then at most a norm."""
    group = block.groups[i]
    linear = _branch(own["params"], group.consumer[0]) or {}
    norms = [_branch(own["params"], path) or {} for path in group.consumer[1:]]
    normal = all("kernel" not in norm and "scale" in norm for norm in norms)
    return group.affine and "kernel" in linear and len(norms) <= 1 and normal


def least_squares(i: int, pruned: Stream, dense: Stream) -> Variables:
    """The pruned block's variables with its i-th consumer refitted.

    Args:
      i: which pair; those before it are as they will stay.
      pruned: the block as cut, and activations of the network as pruned so far.
      dense: the same place in the dense network.
    """
    folds = moments(i, pruned, dense)
    path, *norm = pruned.module.groups[i].consumer
    kernel = np.asarray(_branch(pruned.own["params"], path)["kernel"], np.float64)
    start = kernel.reshape(-1, kernel.shape[-1]) * _scale(pruned.own, norm)
    has_intercept = bool(norm) or "bias" in _branch(pruned.own["params"], path)
    fitted = fit(folds, start)
    whole = folds[0] + folds[1]
    intercept = whole.y - whole.x @ fitted if has_intercept else None
    return _store(
        pruned.own, path, norm, fitted.reshape(kernel.shape), intercept, whole
    )


def moments(i: int, pruned: Stream, dense: Stream) -> tuple[Moments, Moments]:
    """Moments of patches and targets over every second image, and over the others."""
    folds: list[Moments | None] = [None, None]
    for ours, theirs in zip(pruned.batches, dense.batches, strict=True):
        halves = _moments(
            i, pruned.module, pruned.own, ours, dense.module, dense.own, theirs.x
        )
        for fold, half in enumerate(jax.device_get(halves)):
            half = Moments(*(np.asarray(m, np.float64) for m in half))
            folds[fold] = half if folds[fold] is None else folds[fold] + half
    return folds[0], folds[1]


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def _moments(i, block, own, batch, dense_block, dense_own, dense_x):
    with jax.default_matmul_precision("highest"):
        hidden = block.apply(own, batch.x, i, method="reach")
        x = block.apply(own, hidden, i, method="patches")
        hidden = dense_block.apply(dense_own, dense_x, i, method="reach")
        y = dense_block.apply(dense_own, hidden, i, method="consumer")
        if i == len(block.groups) - 1:
            y += dense_block.apply(dense_own, dense_x, method="skip")
            y -= block.apply(own, batch.x, method="skip")

        def half(first):
            return _centred(x[first::2], y[first::2], batch.weight[first::2])

        return half(0), half(1)


def _centred(x, y, weight) -> Moments:
    w = jnp.repeat(weight, math.prod(x.shape[1:-1]))[:, None]
    x, y = (a.reshape(-1, a.shape[-1]).astype(jnp.float32) for a in (x, y))
    count = w.sum()
    mean_x, mean_y = ((a * w).sum(0) / jnp.maximum(count, 1) for a in (x, y))
    x, y = (x - mean_x) * w, (y - mean_y) * w
    return Moments(count, mean_x, mean_y, x.T @ x, x.T @ y, (y * y).sum())


def fit(
    folds: tuple[Moments, Moments], start: Float[np.ndarray, "p o"]
) -> Float[np.ndarray, "p o"]:
    """The ridge solution around `start`, its ridge chosen by hold-out between folds."""
    whole = folds[0] + folds[1]
    p = len(start)
    held_out = p <= LARGEST_HELD_OUT and min(fold.count for fold in folds) > 1
    ridge = _held_out_ridge(folds, start) if held_out else FIXED_RIDGE
    mean = np.trace(whole.xx) / p
    if not mean > 0:  # every hidden channel is constant: the intercept says it all
        return start
    A = whole.xx + ridge * mean * np.eye(p)
    return start + np.linalg.solve(A, whole.xy - whole.xx @ start)


def _held_out_ridge(folds, start) -> float:
    errors = np.zeros(len(RIDGES))
    for a, b in (folds, folds[::-1]):
        values, vectors = np.linalg.eigh(a.xx)
        values = np.maximum(values, 0)
        mean = values.mean() or 1.0
        right = vectors.T @ (a.xy - a.xx @ start)
        # ‖y − xW‖² over the other fold's centred rows, up to a constant.
        for index, ridge in enumerate(RIDGES):
            W = start + vectors @ (right / (values + ridge * mean)[:, None])
            errors[index] += (W * (b.xx @ W - 2 * b.xy)).sum()
    return RIDGES[int(errors.argmin())]


def _scale(own: Variables, norm: list[str]) -> Float[np.ndarray, " o"] | float:
    """What batch norm multiplies the convolution's output with, in evaluation."""
    if not norm:
        return 1.0
    scale = np.asarray(_branch(own["params"], norm[0])["scale"], np.float64)
    var = np.asarray(_branch(own["batch_stats"], norm[0])["var"], np.float64)
    return scale / np.sqrt(var + BATCH_NORM_EPSILON)


def _store(own, path, norm, kernel, intercept, whole: Moments) -> Variables:
    def put(tree, place, **new):
        key, _, rest = place.partition("/")
        if rest:
            return {**tree, key: put(tree[key], rest, **new)}
        like = tree[key]
        arrays = {k: jnp.asarray(v, like[k].dtype) for k, v in new.items()}
        return {**tree, key: {**like, **arrays}}

    linear = {"kernel": kernel}
    own, flat = dict(own), kernel.reshape(-1, kernel.shape[-1])
    bias = "bias" in _branch(own["params"], path)
    if not norm:
        linear |= {"bias": intercept} if bias else {}
        own["params"] = put(own["params"], path, **linear)
        return own
    linear |= {"bias": np.zeros_like(intercept)} if bias else {}
    mean = whole.x @ flat
    var = np.maximum(np.einsum("po,po->o", flat, whole.xx @ flat), 0) / whole.count
    own["params"] = put(
        put(own["params"], path, **linear),
        norm[0],
        scale=np.sqrt(var + BATCH_NORM_EPSILON),
        bias=intercept + mean,
    )
    own["batch_stats"] = put(own["batch_stats"], norm[0], mean=mean, var=var)
    return own


def recalibrate(stream: Stream) -> Variables:
    """The part's variables with batch norm's moments those of these activations."""
    module, own, batches = stream
    if not own.get("batch_stats"):
        return own
    # With a momentum of m a step leaves m · old + (1 − m) · batch; from two different
    # olds follow both, so that no module has to say what its momentum is.
    zero, one = (
        {**own, "batch_stats": jax.tree.map(lambda a, v=v: jnp.full_like(a, v), s)}
        for s, v in ((own["batch_stats"], 0.0), (own["batch_stats"], 1.0))
    )
    found, counts = [], []
    for batch in batches:
        x = devices.rows(batch.x, batch.weight)
        found.append((_train_moments(module, zero, x), _train_moments(module, one, x)))
        counts.append(len(x))
    weights = np.asarray(counts) / sum(counts)

    per_batch = [jax.tree.map(lambda a, b: a / (1 - (b - a)), *pair) for pair in found]
    return {**own, "batch_stats": _total(per_batch, weights)}


@functools.partial(jax.jit, static_argnums=0)
def _train_moments(module, own, x):
    _, moved = module.apply(own, x, train=True, mutable=["batch_stats"])
    return moved["batch_stats"]


def _total(per_batch: list[dict], weights) -> dict:
    """Moments of all batches together: variances within, and between the means."""
    first = per_batch[0]
    if "mean" in first and "var" in first:
        means = jnp.stack([stats["mean"] for stats in per_batch])
        variances = jnp.stack([stats["var"] for stats in per_batch])
        w = jnp.asarray(weights, means.dtype)[:, None]
        mean = (w * means).sum(0)
        between = (w * jnp.square(means - mean)).sum(0)
        return {**first, "mean": mean, "var": (w * variances).sum(0) + between}
    return {key: _total([stats[key] for stats in per_batch], weights) for key in first}


def _branch(tree, path: str):
    for key in path.split("/"):
        tree = tree.get(key) if tree is not None else None
    return tree
