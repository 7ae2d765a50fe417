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

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

from ispasp_jax import devices
from ispasp_jax.models.network import Block, Variables
from ispasp_jax.moments import Folds, rows
from ispasp_jax.problem import LeastSquares
from ispasp_jax.streams import Stream

#: Of every shipped batch norm; a user's own has to have it, too.
BATCH_NORM_EPSILON = 1e-5
#: Ridges that compete, as parts of the mean diagonal of the patches' covariance.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
#: Above this size one ridge is used: the hold-out's solutions would cost minutes.
LARGEST_HELD_OUT, FIXED_RIDGE = 1500, 1e-3


def reaches(block: Block, own: Variables, i: int) -> bool:
    """Whether least squares can refit the consumer: one kernel, then at most a norm."""
    group = block.groups[i]
    linear = _branch(own["params"], group.consumer[0]) or {}
    norms = [_branch(own["params"], path) or {} for path in group.consumer[1:]]
    normal = all("kernel" not in norm and "scale" in norm for norm in norms)
    return group.affine and "kernel" in linear and len(norms) <= 1 and normal


def least_squares(
    i: int, stream: Stream, folds: Folds, kept: Int[np.ndarray, " k"]
) -> Variables:
    """The block's variables with its i-th consumer refitted; what it makes of channels
    that are not kept is zero.

    Args:
      i: which pair.
      stream: the block, before the fit.
      folds: moments of the kept channels' patches and of the target.
      kept: the channels, of the block's i-th hidden ones.
    """
    start, has_intercept = consumer(i, stream)
    path, *norm = stream.module.groups[i].consumer
    kernel = _branch(stream.own["params"], path)["kernel"]
    index = rows(kept, kernel.shape[-2], len(start))
    fitted = fit(folds, start[index])
    whole = folds[0] + folds[1]
    intercept = whole.y - whole.x @ fitted if has_intercept else None
    full = np.zeros_like(start)
    full[index] = fitted
    var = np.maximum(np.einsum("po,po->o", fitted, whole.xx @ fitted), 0) / whole.count
    mean = whole.x @ fitted
    return _store(
        stream.own, path, norm, full.reshape(kernel.shape), intercept, mean, var
    )


def consumer(i: int, stream: Stream) -> tuple[Float[np.ndarray, "p o"], bool]:
    """The i-th consumer as a matrix, batch norm folded in; whether it has a shift."""
    path, *norm = stream.module.groups[i].consumer
    linear = _branch(stream.own["params"], path)
    kernel = np.asarray(linear["kernel"], np.float64)
    matrix = kernel.reshape(-1, kernel.shape[-1]) * _scale(stream.own, norm)
    return matrix, bool(norm) or "bias" in linear


def regression(i: int, stream: Stream, folds: Folds) -> LeastSquares:
    """What a criterion is told of the i-th consumer's least squares, an example's
    share.
    """
    whole = folds[0] + folds[1]
    start, _ = consumer(i, stream)
    arrays = whole.xx / whole.count, whole.xy / whole.count, start
    return LeastSquares(*(jnp.asarray(a, jnp.float32) for a in arrays))


def fit(folds: Folds, start: Float[np.ndarray, "p o"]) -> Float[np.ndarray, "p o"]:
    """The ridge solution around `start`, its ridge chosen by hold-out between folds."""
    whole = folds[0] + folds[1]
    p = len(start)
    held_out = p <= LARGEST_HELD_OUT and min(fold.count for fold in folds) > 1
    ridge = _held_out_ridge(folds, start) if held_out else FIXED_RIDGE
    mean = np.trace(whole.xx) / p
    if not mean > 0:  # every hidden channel is constant: the intercept says it all
        return start
    return start + _solve(whole.xx, ridge * mean, whole.xy - whole.xx @ start)


def _held_out_ridge(folds, start) -> float:
    errors = np.zeros(len(RIDGES))
    for a, b in (folds, folds[::-1]):
        error = a.xy - a.xx @ start
        mean = np.trace(a.xx) / len(start) or 1.0
        # ‖y − xW‖² over the other fold's centred rows, up to a constant.
        for index, ridge in enumerate(RIDGES):
            W = start + _solve(a.xx, ridge * mean, error)
            errors[index] += (W * (b.xx @ W - 2 * b.xy)).sum()
    return RIDGES[int(errors.argmin())]


def _solve(xx, ridge, right):
    """(xx + ridge · 1)⁻¹ right."""
    A = xx.copy()
    A[np.diag_indices_from(A)] += ridge
    return scipy.linalg.solve(A, right, assume_a="pos", check_finite=False)


def _scale(own: Variables, norm: list[str]) -> Float[np.ndarray, " o"] | float:
    """What batch norm multiplies the convolution's output with, in evaluation."""
    if not norm:
        return 1.0
    scale = np.asarray(_branch(own["params"], norm[0])["scale"], np.float64)
    var = np.asarray(_branch(own["batch_stats"], norm[0])["var"], np.float64)
    return scale / np.sqrt(var + BATCH_NORM_EPSILON)


def _store(own, path, norm, kernel, intercept, mean, var) -> Variables:
    def put(tree, place, **new):
        key, _, rest = place.partition("/")
        if rest:
            return {**tree, key: put(tree[key], rest, **new)}
        like = tree[key]
        arrays = {k: jnp.asarray(v, like[k].dtype) for k, v in new.items()}
        return {**tree, key: {**like, **arrays}}

    linear = {"kernel": kernel}
    own = dict(own)
    bias = "bias" in _branch(own["params"], path)
    if not norm:
        linear |= {"bias": intercept} if bias else {}
        own["params"] = put(own["params"], path, **linear)
        return own
    linear |= {"bias": np.zeros_like(intercept)} if bias else {}
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
    module, own = stream.module, stream.own
    if not own.get("batch_stats"):
        return own
    # With a momentum of m a step leaves m · old + (1 − m) · batch; from two different
    # olds follow both, so that no module has to say what its momentum is.
    zero, one = (
        {**own, "batch_stats": jax.tree.map(lambda a, v=v: jnp.full_like(a, v), s)}
        for s, v in ((own["batch_stats"], 0.0), (own["batch_stats"], 1.0))
    )
    found, counts = [], []
    for batch, weight in zip(stream.x, stream.weight, strict=True):
        x = devices.rows(batch, weight)
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
